"""Scans against a loop in ``float64``: forward, backward, double backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from oracle import error
from torch import Tensor

from tilewright.torch import associative_scan

LENGTHS = [1, 2, 3, 5, 17, 128, 1000]


def loop(combine: Callable[..., Any], xs: Any, dim: int, reverse: bool = False) -> Any:
    """The definition: a fold, position by position."""
    leaves, structure = pytree.tree_flatten(xs)
    length = leaves[0].shape[dim]
    order = range(length - 1, -1, -1) if reverse else range(length)
    state: Any = None
    outputs: dict[int, list[Tensor]] = {}
    for t in order:
        x = pytree.tree_unflatten([leaf.select(dim, t) for leaf in leaves], structure)
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


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


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
}


def _float_leaves(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if leaf.is_floating_point()]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", CASES)
def test_scan(name: str, length: int, reverse: bool) -> None:
    torch.manual_seed(length)
    combine, make = CASES[name]
    xs = pytree.tree_map(lambda x: x.requires_grad_() if x.is_floating_point() else x, make(length))
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 2e-4)):
        given = pytree.tree_map(
            lambda x, dtype=dtype: x.detach().to(dtype).requires_grad_() if x.is_floating_point() else x, xs
        )
        ours = associative_scan(combine, given, dim=1, reverse=reverse)
        golden = loop(combine, xs, 1, reverse)
        for a, b in zip(pytree.tree_leaves(ours), pytree.tree_leaves(golden)):
            assert a.dtype == (dtype if b.is_floating_point() else b.dtype)
            assert error(a, b) <= tolerance * (1 + float(b.double().abs().max()))
        cotangents = [torch.randn_like(x) for x in _float_leaves(golden)]
        mine = torch.autograd.grad(_float_leaves(ours), _float_leaves(given), [c.to(dtype) for c in cotangents])
        theirs = torch.autograd.grad(_float_leaves(golden), _float_leaves(xs), cotangents)
        for a, b in zip(mine, theirs):
            assert error(a, b) <= tolerance * 10 * (1 + float(b.abs().max()))


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


def test_matrix_products() -> None:
    torch.manual_seed(0)
    xs = (torch.eye(3, dtype=torch.float64) + 0.2 * _normal(7, 2, 3, 3)).requires_grad_()
    ours = associative_scan(lambda x, y: y @ x, xs, dim=0, combine_mode="generic")
    golden = loop(lambda x, y: y @ x, xs, 0)
    torch.testing.assert_close(ours, golden)
    g = torch.randn_like(golden)
    torch.testing.assert_close(torch.autograd.grad(ours, xs, g), torch.autograd.grad(golden, xs, g))


def test_state_space_leaves_of_different_shapes() -> None:
    torch.manual_seed(0)
    a = torch.rand(6, 2, 4, dtype=torch.float64).requires_grad_()
    b = _normal(6, 2, 3, 4).requires_grad_()

    def combine(l: Any, r: Any) -> Any:
        return l[0] * r[0], r[0].unsqueeze(1) * l[1] + r[1]

    ours, golden = associative_scan(combine, (a, b), dim=0), loop(combine, (a, b), 0)
    g = torch.randn_like(golden[1])
    torch.testing.assert_close(ours[1], golden[1])
    torch.testing.assert_close(torch.autograd.grad(ours[1], (a, b), g), torch.autograd.grad(golden[1], (a, b), g))


def test_captured_gate_learns() -> None:
    torch.manual_seed(0)
    a, b = (torch.rand(3, 20, dtype=torch.float64) for _ in range(2))
    gate = torch.rand(3, dtype=torch.float64).requires_grad_()

    def combine(l: Any, r: Any) -> Any:
        return l[0] * r[0], r[0] * l[1] + r[1] + 0.0 * gate

    scale = gate.unsqueeze(1)
    ours = associative_scan(combine, (a * scale, b), dim=1)[1]
    golden = loop(combine, (a * scale, b), 1)[1]
    g = torch.randn_like(golden)
    torch.testing.assert_close(torch.autograd.grad(ours, gate, g), torch.autograd.grad(golden, gate, g))


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
