"""Scans against a loop in ``float64``: forward, backward, double backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from oracle import DEVICES, check, error
from torch import Tensor

from tilewright.torch import associative_scan

LENGTHS = [1, 2, 3, 5, 17, 128, 1000, 4097]


def loop(combine: Callable[..., Any], xs: Any, dim: int, reverse: bool = False) -> Any:
    """The definition: a fold, position by position."""
    leaves, structure = pytree.tree_flatten(xs)
    length = leaves[0].shape[dim]
    # Not position by position, whose gradients would each be as large as a leaf.
    parts = [leaf.unbind(dim) for leaf in leaves]
    order = range(length - 1, -1, -1) if reverse else range(length)
    state: Any = None
    outputs: dict[int, list[Tensor]] = {}
    for t in order:
        x = pytree.tree_unflatten([part[t] for part in parts], structure)
        state = x if state is None else combine(state, x)
        outputs[t] = pytree.tree_leaves(state)
    stacked = [torch.stack([outputs[t][i] for t in range(length)], dim) for i in range(len(leaves))]
    return pytree.tree_unflatten(stacked, structure)


def linear(l: Any, r: Any) -> Any:
    return l[0] * r[0], r[0] * l[1] + r[1]


def complex_linear(l: Any, r: Any) -> Any:
    (lar, lai, lbr, lbi), (rar, rai, rbr, rbi) = l, r
    return (
        lar * rar - lai * rai,
        lar * rai + lai * rar,
        rar * lbr - rai * lbi + rbr,
        rar * lbi + rai * lbr + rbi,
    )


def log_sum_exp(l: Any, r: Any) -> Any:
    m = torch.maximum(l[0], r[0])
    return m, l[1] * torch.exp(l[0] - m) + r[1] * torch.exp(r[0] - m)


def running_argmax(l: Any, r: Any) -> Any:
    better = r[0] > l[0]
    return torch.where(better, r[0], l[0]), torch.where(better, r[1], l[1])


def online_softmax(l: Any, r: Any) -> Any:
    m = torch.maximum(l[0], r[0])
    left, right = torch.exp(l[0] - m), torch.exp(r[0] - m)
    return m, l[1] * left + r[1] * right, l[2] * left + r[2] * right


def segmented(l: Any, r: Any) -> Any:
    """The lift that a user writes: a right side that starts a segment forgets the left one."""
    return l[0] | r[0], torch.where(r[0], r[1], l[1] + r[1])


def state_space(l: Any, r: Any) -> Any:
    return l[0] * r[0], r[0].unsqueeze(1) * l[1] + r[1]


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def _rotations(n: int, size: int) -> Tensor:
    """Matrices whose products neither grow nor vanish."""
    rotations: Tensor = torch.linalg.qr(_normal(2, n, size, size))[0]
    return rotations


CASES: dict[str, tuple[Callable[..., Any], Callable[[int], Any]]] = {
    "sum": (lambda l, r: l + r, lambda n: _normal(3, n)),
    "product": (lambda l, r: l * r, lambda n: 1 + 0.1 * _normal(3, n)),
    "max": (torch.maximum, lambda n: _normal(3, n)),
    "tuple": (lambda l, r: (l[0] + r[0], l[1] * r[1]), lambda n: (_normal(3, n), 1 + 0.1 * _normal(3, n))),
    "nested": (
        lambda l, r: {"a": [l["a"][0] + r["a"][0]], "b": torch.maximum(l["b"], r["b"])},
        lambda n: {"a": [_normal(3, n)], "b": _normal(3, n)},
    ),
    "linear": (linear, lambda n: (0.9 + 0.1 * torch.rand(3, n, dtype=torch.float64), _normal(3, n))),
    "complex": (
        complex_linear,
        lambda n: tuple(0.6 * _normal(3, n).clamp(-1, 1) if i < 2 else _normal(3, n) for i in range(4)),
    ),
    "log_sum_exp": (log_sum_exp, lambda n: (_normal(3, n), torch.rand(3, n, dtype=torch.float64) + 0.5)),
    "argmax": (running_argmax, lambda n: (_normal(3, n), torch.arange(n).expand(3, n).contiguous())),
    "online_softmax": (online_softmax, lambda n: (_normal(3, n), torch.rand(3, n).double() + 0.5, _normal(3, n))),
    "segmented": (segmented, lambda n: (torch.rand(3, n) < 0.2, _normal(3, n))),
    "matrices_2": (lambda x, y: y @ x, lambda n: _rotations(n, 2)),
    "matrices_5": (lambda x, y: y @ x, lambda n: _rotations(n, 5)),
    "state_space": (state_space, lambda n: (torch.rand(2, n, 4).double(), _normal(2, n, 3, 4))),
    "logical_xor": (torch.logical_xor, lambda n: torch.rand(3, n) < 0.5),
    "bitwise_xor": (torch.bitwise_xor, lambda n: torch.randint(0, 1000, (3, n))),
}


def _gated(dtype: torch.dtype) -> tuple[Callable[..., Any], Callable[[int], Any], list[Tensor]]:
    gate = (0.5 + torch.rand(3)).to(dtype).requires_grad_()
    return lambda l, r: (gate * l[0] * r[0], gate * r[0] * l[1] + r[1]), CASES["linear"][1], [gate]


def _weighted(dtype: torch.dtype) -> tuple[Callable[..., Any], Callable[[int], Any], list[Tensor]]:
    weight = torch.linalg.qr(torch.randn(2, 2))[0].to(dtype).requires_grad_()
    return lambda x, y: x @ weight @ y, lambda n: _rotations(n, 2), [weight]


#: Associative functions with learned captures, which they give as well.
CAPTURING = {"gated": _gated, "weighted": _weighted}


def _moved(tree: Any, device: str) -> Any:
    return pytree.tree_map(lambda x: x.to(device), tree)


def _float_leaves(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if leaf.is_floating_point()]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("device", DEVICES)
def test_scan(device: str, name: str, length: int, reverse: bool) -> None:
    if device == "cuda" and length > 1000:
        pytest.skip("a loop of so many steps takes too long on a GPU")
    torch.manual_seed(length)
    combine, make = CASES[name]
    xs = pytree.tree_map(lambda x: x.requires_grad_() if x.is_floating_point() else x, _moved(make(length), device))
    golden = loop(combine, xs, 1, reverse)
    cotangents = [torch.randn_like(x) for x in _float_leaves(golden)]
    theirs = torch.autograd.grad(_float_leaves(golden), _float_leaves(xs), cotangents) if cotangents else ()
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 2e-4)):
        given = pytree.tree_map(
            lambda x, dtype=dtype: x.detach().to(dtype).requires_grad_() if x.is_floating_point() else x, xs
        )
        ours = associative_scan(combine, given, dim=1, reverse=reverse)
        for a, b in zip(pytree.tree_leaves(ours), pytree.tree_leaves(golden)):
            assert a.dtype == (dtype if b.is_floating_point() else b.dtype)
            assert error(a, b) <= tolerance * (1 + float(b.detach().double().abs().max()))
        if not cotangents:
            continue
        mine = torch.autograd.grad(_float_leaves(ours), _float_leaves(given), [c.to(dtype) for c in cotangents])
        for a, b in zip(mine, theirs):
            assert error(a, b) <= tolerance * 10 * (1 + float(b.abs().max()))


@pytest.mark.parametrize("name", ["tuple", "nested", "linear", "complex", "log_sum_exp", "online_softmax", "state_space"])
def test_a_loss_of_one_leaf(name: str) -> None:
    torch.manual_seed(0)
    combine, make = CASES[name]
    xs = pytree.tree_map(lambda x: x.requires_grad_(), make(17))
    leaves = pytree.tree_leaves(xs)
    ours, golden = (pytree.tree_leaves(scan(combine, xs, 1)) for scan in (associative_scan, loop))
    for a, b in zip(ours, golden):
        g = torch.randn_like(b)
        found, expected = (torch.autograd.grad(x, leaves, g, retain_graph=True, allow_unused=True) for x in (a, b))
        for x, y in zip(found, expected):
            zero = torch.zeros(())
            torch.testing.assert_close(zero if x is None or not x.any() else x, zero if y is None or not y.any() else y,
                                       check_dtype=False)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", [name for name in CASES if "xor" not in name])
@pytest.mark.parametrize("device", DEVICES)
def test_half_types(device: str, name: str, dtype: torch.dtype) -> None:
    """The golden rule: our error is at most 1.35 times that of a loop in the same type."""
    torch.manual_seed(0)
    combine, make = CASES[name]
    evaluated = []
    given = pytree.tree_map(lambda x: x.to(dtype) if x.is_floating_point() else x, _moved(make(128), device))
    for scan, kind in ((associative_scan, dtype), (loop, dtype), (loop, torch.float64)):
        xs = pytree.tree_map(lambda x, kind=kind: x.to(kind).requires_grad_() if x.is_floating_point() else x, given)
        results = _float_leaves(scan(combine, xs, 1))
        generator = torch.Generator().manual_seed(1)
        cotangents = [torch.randn(x.shape, generator=generator).to(device, dtype).to(kind) for x in results]
        evaluated.append([*results, *torch.autograd.grad(results, _float_leaves(xs), cotangents)])
    for i, (ours, plain, golden) in enumerate(zip(*evaluated)):
        check(f"result {i}", ours, plain, golden, dtype)


@pytest.mark.parametrize("name", CAPTURING)
def test_learned_captures(name: str) -> None:
    torch.manual_seed(0)
    combine, make, captured = CAPTURING[name](torch.float64)
    xs = pytree.tree_map(lambda x: x.requires_grad_(), make(17))
    leaves = [*pytree.tree_leaves(xs), *captured]
    ours, golden = (pytree.tree_leaves(scan(combine, xs, 1)) for scan in (associative_scan, loop))
    cotangents = [torch.randn_like(x) for x in golden]
    for a, b in zip([*ours, *torch.autograd.grad(ours, leaves, cotangents)], [*golden, *torch.autograd.grad(golden, leaves, cotangents)]):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_scans_of_scans(compiled: bool) -> None:
    """One after the other, over two axes, and before a matrix product."""
    torch.manual_seed(0)
    a, b = (torch.rand(3, 9, 4, dtype=torch.float64).requires_grad_() for _ in range(2))
    weight = _normal(4, 2).requires_grad_()

    def function(scan: Callable[..., Any], a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
        once = scan(linear, (a, b), 1)[1]
        twice = scan(linear, (a, once), -2)[1]
        across = scan(lambda l, r: l + r, twice, 2)
        result: Tensor = torch.tanh(across) @ weight
        return result

    run = torch.compile(function, fullgraph=True) if compiled else function
    ours = run(associative_scan, a, b, weight)
    golden = function(lambda f, xs, dim: loop(f, xs, dim % 3), a, b, weight)
    torch.testing.assert_close(ours, golden)
    g = torch.randn_like(golden)
    for x, y in zip(*(torch.autograd.grad(out, (a, b, weight), g) for out in (ours, golden))):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("name", ["linear", "product", "log_sum_exp"])
def test_second_derivatives(name: str) -> None:
    torch.manual_seed(0)
    combine, make = CASES[name]
    leaves, structure = pytree.tree_flatten(make(5))
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]

    def function(*flat: Tensor) -> tuple[Tensor, ...]:
        return tuple(pytree.tree_leaves(associative_scan(combine, pytree.tree_unflatten(list(flat), structure), dim=1)))

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


def test_carry_exclusive_segments() -> None:
    torch.manual_seed(0)
    x = _normal(2, 6).requires_grad_()
    init = _normal(2).requires_grad_()
    with_init = associative_scan(lambda l, r: l + r, x, dim=1, init=init)
    torch.testing.assert_close(with_init, x.cumsum(1) + init[:, None])
    before = associative_scan(lambda l, r: l + r, x, dim=1, init=init, exclusive=True)
    torch.testing.assert_close(before, torch.cat([init[:, None], with_init[:, :-1]], 1))
    starts = torch.tensor([True, False, True, False, False, True])
    parts = associative_scan(lambda l, r: l + r, x, dim=1, segments=starts)
    expected = torch.cat([x[:, :2].cumsum(1), x[:, 2:5].cumsum(1), x[:, 5:].cumsum(1)], 1)
    torch.testing.assert_close(parts, expected)
    backward = associative_scan(lambda l, r: l + r, x, dim=1, segments=starts, reverse=True)
    flip = [part.flip(1).cumsum(1).flip(1) for part in (x[:, :2], x[:, 2:5], x[:, 5:])]
    torch.testing.assert_close(backward, torch.cat(flip, 1))
    g = torch.randn_like(parts)
    torch.testing.assert_close(torch.autograd.grad(parts, x, g), torch.autograd.grad(expected, x, g))


def test_other_kinds() -> None:
    bits = torch.rand(3, 50) < 0.5
    parity = associative_scan(torch.logical_xor, bits, dim=1)
    assert torch.equal(parity, bits.int().cumsum(1) % 2 == 1)
    numbers = torch.randint(0, 1000, (3, 50))
    assert torch.equal(associative_scan(torch.bitwise_xor, numbers, dim=-1), loop(torch.bitwise_xor, numbers, 1))
    empty = torch.randn(3, 0)
    assert associative_scan(lambda l, r: l + r, empty, dim=1).shape == (3, 0)
    strided = torch.randn(40, 3).t()
    torch.testing.assert_close(associative_scan(lambda l, r: l + r, strided, dim=1), strided.cumsum(1))
