"""PyTorch's published cases of ``associative_scan``: their functions, shapes, axes and tolerances, eager and compiled.

The golden results are those of a loop in the same type, as there. Functions that are not associative are among them, whose
scans have three positions, so that there is one order to take them in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from test_scan import loop
from torch import Tensor

import tilewright as tw
from tilewright.torch import associative_scan

Function = Callable[..., Any]
#: Of gradients; results have PyTorch's own tolerances.
RTOL, ATOL = 6e-6, 6e-5


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape).requires_grad_()


def _add(x: Any, y: Any) -> Any:
    return x + y


def _mul(x: Any, y: Any) -> Any:
    return x * y


def _non_pointwise(x: Any, y: Any) -> Any:
    weight = torch.arange(4.0).view(2, 2)
    return x @ weight + y @ weight


def _recurrence(x: Any, y: Any) -> Any:
    return y[0] * x[0], y[0] * x[1] + y[1]


def _leaves_of_several_sizes(x: Any, y: Any) -> Any:
    state = x[0] + y[0]
    return state, y[1] + 0.0, y[2] + 0.0, y[3] + 0.0, torch.einsum("bdn,bn->bd", state, y[3])


def _expanded(x: Any, y: Any) -> Any:
    return x * torch.sum(y, -1).expand(x.shape)


def _with_loop(x: Any, y: Any) -> Any:
    total = torch.zeros_like(y[0, :])
    for i in range(10):
        total = total + torch.abs(y[i])
    return x * total


def _with_writes_in_place(x: Any, y: Any) -> Any:
    total = torch.zeros_like(y[0, :])
    for i in range(10):
        total += torch.abs(y[i])
    return x * total


def _tree(x: Any, y: Any) -> Any:
    (xj, xo), (yj, yo) = x["j"], y["j"]
    return {"i": x["i"] * y["i"], "j": ([xj[0] * yj[0]], [{"o": xo[0]["o"] + yo[0]["o"]}])}


def _leaves_of_a_tree(*shape: int) -> Any:
    return {"i": _normal(*shape), "j": ([_normal(*shape)], [{"o": _normal(*shape)}])}



#: A function, leaves, the axis.
CASES: dict[str, tuple[Function, Callable[[], Any], int]] = {
    "add": (_add, lambda: _normal(3, 10, 2), 0),
    "mul": (_mul, lambda: _normal(3, 10, 2), 0),
    "whole_numbers": (_add, lambda: torch.arange(4), 0),
    "more_whole_numbers": (_add, lambda: torch.arange(9), 0),
    "not_contiguous": (_add, lambda: torch.arange(30).view(10, 3).t(), 0),
    "rank_2": (_mul, lambda: _normal(6, 9), 1),
    "rank_3": (_add, lambda: _normal(2, 5, 7), 1),
    "rank_4": (_add, lambda: _normal(9, 1, 3, 4), 0),
    "rank_5": (_mul, lambda: _normal(1, 3, 2, 5, 8), 3),
    "one_position": (_mul, lambda: _normal(3, 1, 4), 1),
    "tuple": (lambda x, y: (x[0] + y[0], x[1] * y[1]), lambda: (_normal(3, 2, 2), _normal(3, 2, 2)), 0),
    "expanded": (_expanded, lambda: _normal(3, 2, 2), 0),
    "tree": (_tree, lambda: _leaves_of_a_tree(3, 2, 2), 0),
    "loop": (_with_loop, lambda: _normal(3, 10, 1), 0),
    "writes_in_place": (_with_writes_in_place, lambda: _normal(3, 10, 1), 0),
    "non_pointwise": (_non_pointwise, lambda: _normal(3, 10, 2), 0),
    "recurrence": (_recurrence, lambda: (_normal(20).repeat(10, 1).detach().requires_grad_(), _normal(10, 20)), 0),
}


def _free(name: str) -> tuple[Function, Any, int, list[Tensor]]:
    """A function that reads tensors from around it: itself, leaves, the axis, those tensors."""
    vector, matrix = torch.rand(2).requires_grad_(), torch.rand(2, 2).requires_grad_()
    one, other = torch.rand(1).requires_grad_(), torch.rand(1).requires_grad_()
    rows, column = torch.rand(4, 5).requires_grad_(), torch.rand(4, 1).requires_grad_()
    tree = _leaves_of_a_tree(2, 2)

    def nested(x: Any, y: Any) -> Any:
        def inside(x: Any, y: Any) -> Any:
            return x * rows + y * rows

        return inside(x, y) + column

    def helper(x: Any) -> Any:
        return x * vector + matrix

    def with_tree(x: Any, y: Any) -> Any:
        return {
            "i": x["i"] * y["i"] + tree["i"],
            "j": (
                [x["j"][0][0] * tree["j"][0][0] + y["j"][0][0]],
                [{"o": x["j"][1][0]["o"] + y["j"][1][0]["o"] * tree["j"][1][0]["o"]}],
            ),
        }

    functions: dict[str, tuple[Function, Any, list[Tensor]]] = {
        "vector": (lambda x, y: x * vector + y * 2, _normal(3, 2, 2), [vector]),
        "vector_twice": (lambda x, y: x * vector + y * vector, _normal(3, 2, 2), [vector]),
        "two_numbers": (lambda x, y: x * one + y * other, _normal(3, 2, 2), [one, other]),
        "nested": (nested, _normal(3, 4, 5), [rows, column]),
        "function": (lambda x, y: helper(x) + y, _normal(3, 2, 2), [vector, matrix]),
        "product": (lambda x, y: x @ matrix + y, _normal(3, 2, 2), [matrix]),
        "tree": (with_tree, _leaves_of_a_tree(3, 2, 2), pytree.tree_leaves(tree)),
    }
    function, xs, captured = functions[name]
    return function, xs, 0, captured


FREE = ["vector", "vector_twice", "two_numbers", "nested", "function", "product", "tree"]


def _check(ours: Any, golden: Any, leaves: list[Tensor]) -> None:
    """Results and, with cotangents of ones, gradients."""
    assert pytree.tree_structure(ours) == pytree.tree_structure(golden)
    mine, theirs = pytree.tree_leaves(ours), pytree.tree_leaves(golden)
    for a, b in zip(mine, theirs):
        torch.testing.assert_close(a, b)
    if not leaves:
        return
    learned = [i for i, b in enumerate(theirs) if b.requires_grad]
    found, wanted = (torch.autograd.grad([results[i].sum() for i in learned], leaves) for results in (mine, theirs))
    for a, b in zip(found, wanted):
        torch.testing.assert_close(a, b, rtol=RTOL, atol=ATOL)


def _learned(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if leaf.requires_grad]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_functions(name: str, reverse: bool) -> None:
    torch.manual_seed(0)
    combine, make, dim = CASES[name]
    xs = make()
    for mode in ("pointwise", "generic"):
        ours = associative_scan(combine, xs, dim, reverse=reverse, combine_mode=mode)
        _check(ours, loop(combine, xs, dim, reverse), _learned(xs))


@pytest.mark.parametrize(("backend", "dynamic"), [("inductor", False), ("inductor", True), ("eager", False)])
def test_compiled_functions(backend: str, dynamic: bool) -> None:
    """All of them in one graph, in the one direction and the other in turn; of plain operators, which PyTorch takes long to
    trace, every fourth."""
    torch.manual_seed(0)
    free = {name: _free(name) for name in FREE}
    cases = {name: (combine, dim) for name, (combine, _, dim) in CASES.items()}
    cases |= {f"free_{name}": (combine, dim) for name, (combine, _, dim, _) in free.items()}
    every = {name: make() for name, (_, make, _) in CASES.items()}
    every |= {f"free_{name}": xs for name, (_, xs, _, _) in free.items()}
    chosen = list(cases)[:: 4 if backend == "eager" else 1]

    def function(scan: Function, every: dict[str, Any]) -> list[Any]:
        return [scan(cases[name][0], every[name], cases[name][1], place % 2 == 1) for place, name in enumerate(chosen)]

    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend=backend)
    leaves = _learned([every[name] for name in chosen])
    leaves += [tensor for name in FREE if f"free_{name}" in chosen for tensor in free[name][3]]
    _check(compiled(associative_scan, every), function(loop, every), leaves)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", FREE)
def test_free_variables(name: str, reverse: bool) -> None:
    torch.manual_seed(0)
    combine, xs, dim, captured = _free(name)
    ours, golden = associative_scan(combine, xs, dim, reverse), loop(combine, xs, dim, reverse)
    _check(ours, golden, [*_learned(xs), *captured])


@pytest.mark.parametrize("reverse", [False, True])
def test_leaves_of_several_sizes(reverse: bool) -> None:
    torch.manual_seed(0)
    x, decay, drive = (_normal(5, 3, 10, 7) for _ in range(3))
    read, out = _normal(5, 7, 10), _normal(5, 3, 10)
    xs = (x, decay, drive, read, out)
    ours = associative_scan(_leaves_of_several_sizes, xs, 2, reverse, "generic")
    _check(ours, loop(_leaves_of_several_sizes, xs, 2, reverse), list(xs))
    with pytest.raises(ValueError, match=r"xs: leaf 3: axis 3"):
        associative_scan(_leaves_of_several_sizes, xs, 3)


EQUATIONS: dict[str, Callable[[str, Any, Any], Any]] = {
    "ij,jk->ik": lambda equation, x, y: torch.einsum(equation, x, y),
    "ij,jk": lambda equation, x, y: torch.einsum(equation, x, y),
    "ij,kj->ki": lambda equation, x, y: torch.einsum(equation, x, y),
    "ij,kl->ik": lambda equation, x, y: torch.einsum(equation, [x, y]),
    "ij,jk,kl->li": lambda equation, x, y: torch.einsum(equation, x, y, y),
    "ij->": lambda equation, x, y: x + y * torch.einsum(equation, x),
    "ij->ji": lambda equation, x, y: x + torch.einsum(equation, y),
    "ij,ij->j": lambda equation, x, y: x + torch.einsum(equation, x, y)[:, None],
}


@pytest.mark.parametrize("equation", EQUATIONS)
def test_einsum(equation: str) -> None:
    torch.manual_seed(0)
    x = _normal(3, 2, 2)

    def combine(x: Any, y: Any) -> Any:
        return EQUATIONS[equation](equation, x, y)

    _check(associative_scan(combine, x, 0), loop(combine, x, 0), [x])


def test_what_einsum_cannot_do() -> None:
    refused: list[Function] = [
        lambda x, y: torch.einsum("ii->i", x),
        lambda x, y: torch.einsum("ij,jk->iz", x, y),
        lambda x, y: torch.einsum("...j->...j", x),
    ]
    for combine in refused:
        with pytest.raises(tw.TraceError, match="a letter of its own"):
            associative_scan(combine, torch.randn(3, 2, 2), 0)
    with pytest.raises(tw.TraceError, match="2 axes for 'i'"):
        associative_scan(lambda x, y: torch.einsum("i->i", x), torch.randn(3, 2, 2), 0)


@pytest.mark.parametrize("compiled", [False, True])
def test_one_after_another(compiled: bool) -> None:
    """Before a matrix product, and along the same axis or another, in the same direction or the other."""
    torch.manual_seed(0)
    x = _normal(3, 10, 2)

    def function(scan: Function, x: Tensor) -> list[Tensor]:
        weight = torch.ones(2, 5)
        results = [scan(_add, x, 1, False) @ weight, scan(_add, x, 1, True) @ weight]
        for dim in (1, 0):
            for first in (False, True):
                results += [scan(_add, scan(_add, x, 1, first), dim, second) for second in (False, True)]
        return results

    run = torch.compile(function, fullgraph=True) if compiled else function
    _check(run(associative_scan, x), function(loop, x), [x])


def _half_learned(x: Any, y: Any) -> Any:
    with torch.no_grad():
        first = x[0] * y[0]
    return first, x[1] * y[1]


@pytest.mark.parametrize("learned", [(True, False), (False, True), (True, True)], ids=str)
def test_gradients_of_some_leaves(learned: tuple[bool, bool]) -> None:
    torch.manual_seed(0)
    xs = tuple(torch.randn(3, 10, 2, requires_grad=flag) for flag in learned)

    def combine(x: Any, y: Any) -> Any:
        return x[0] * y[0], x[1] * y[1] + y[0]

    ours, golden = (scan(combine, xs, 0) for scan in (associative_scan, loop))
    _check(ours, golden, _learned(xs))


def test_no_gradient_by_way_of_what_is_computed_without() -> None:
    torch.manual_seed(0)
    xs = _normal(3, 10, 2), _normal(3, 10, 2)
    ours, golden = (scan(_half_learned, xs, 0) for scan in (associative_scan, loop))
    _check(ours, golden, list(xs))


ALIASES: dict[str, Function] = {
    "itself": lambda x: x,
    "flat": lambda x: x.view(-1).view(x.shape),
    "reshaped": lambda x: x.reshape(-1).reshape(x.shape),
    "squeezed": lambda x: x.unsqueeze(0).squeeze(0),
    "transposed": lambda x: x.transpose(0, 1).transpose(0, 1),
    "expanded": lambda x: x.expand(1, *x.size())[0],
}


@pytest.mark.parametrize("name", ALIASES)
def test_results_that_are_arguments_or_each_other(name: str) -> None:
    """PyTorch refuses these; here no value has memory that another could share."""
    torch.manual_seed(0)
    xs = _normal(3, 2, 2), _normal(3, 2, 2)
    alias = ALIASES[name]

    def combine(x: Any, y: Any) -> Any:
        total = x[0] + y[0]
        return alias(total), alias(y[1]) if name != "itself" else total

    ours, golden = (scan(combine, xs, 0) for scan in (associative_scan, loop))
    _check([y.clone() for y in ours], [y.clone() for y in golden], list(xs))


def test_an_empty_axis() -> None:
    x = torch.randn(3, 0, requires_grad=True)
    y = associative_scan(_add, x, 1)
    assert y.shape == (3, 0)
    assert torch.autograd.grad(y.sum(), x)[0].shape == (3, 0)


def _in_place(x: Any, y: Any) -> Any:
    x.add_(1)
    return x + y


def _with_if(x: Any, y: Any) -> Any:
    return x * torch.cond(torch.sum(y) > 0.0, lambda y: y + 0.0, lambda y: 1.0 - y, (y,))


def _with_vmap(x: Any, y: Any) -> Any:
    return x + torch.vmap(lambda row: row**2)(y)


def _with_scan(x: Any, y: Any) -> Any:
    return x + associative_scan(_mul, y, 0)


@pytest.mark.parametrize(
    ("combine", "message"),
    [(_in_place, "add_"), (_with_if, "torch.where"), (_with_vmap, "vmap"), (_with_scan, "in the function around")],
)
def test_what_a_function_cannot_do(combine: Function, message: str) -> None:
    with pytest.raises(tw.TraceError, match=message) as caught:
        associative_scan(combine, torch.randn(3, 10, 2), 0, combine_mode="generic")
    assert len(str(caught.value)) < 1000 and __file__ in str(caught.value)


def _other_tree(x: Any, y: Any) -> Any:
    return {"i": x["i"] * y["j"][0][0], "k": 0.0, "j": ([x["j"][1][0]["o"]], [{"o": torch.sin(x["i"])}])}


def test_wrong_results() -> None:
    x = torch.randn(3, 3, 2, 3, 3)
    with pytest.raises(tw.TraceError, match="leaf 0 has type i64"):
        associative_scan(lambda x, y: (x + y).to(torch.int64), x, 0)
    with pytest.raises(tw.TraceError, match="device"):
        associative_scan(lambda x, y: (x + y).to("cuda"), x, 0)
    # Values inside have no strides: this asks for nothing.
    same = associative_scan(lambda x, y: (x + y).to(memory_format=torch.channels_last), x, 0)
    torch.testing.assert_close(same, x.cumsum(0))
    with pytest.raises(tw.TraceError, match="another tree"):
        associative_scan(_other_tree, _leaves_of_a_tree(3, 2, 2), 0)
    with pytest.raises(tw.TraceError, match=r"returned a float for leaf 0|another tree"):
        associative_scan(lambda x, y: 0.0, x, 0)


def test_wrong_arguments() -> None:
    x = torch.randn(3, 2)
    anything: Any = associative_scan
    for arguments, message in (
        ((None, x, 0), "combine_fn: a function expected, NoneType found"),
        ((_add, x, "0"), "dim: a whole number expected, str found"),
        ((_add, x, 0, 1), "reverse: True or False expected, int found"),
        ((_add, x, 0, False, "other"), "combine_mode"),
        ((_add, [], 0), "at least one"),
        ((_add, [x, 1.0], 0), "xs: leaf 1: a tensor expected, float found"),
        ((_add, x.to_sparse(), 0), r"xs: leaf 0: a dense tensor expected.*to_dense"),
        ((_add, x, 2), "dim"),
        ((_add, (x, x[0]), 1), "leaf 1"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            anything(*arguments)
        assert isinstance(caught.value, tw.TilewrightError)
