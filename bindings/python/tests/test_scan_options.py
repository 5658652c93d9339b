"""What a scan starts from, leaves out and is cut by: against a loop, forward and backward, eager and compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor

import tilewright as tw
from tilewright.torch import associative_scan


def folded(
    combine: Callable[..., Any], xs: Any, reverse: bool, init: Any, exclusive: bool, segments: Tensor | None
) -> Any:
    """The definition, along axis 1."""
    leaves, structure = pytree.tree_flatten(xs)
    length = leaves[0].shape[1]
    state, outputs = init, [None] * length
    for t in range(length - 1, -1, -1) if reverse else range(length):
        x = pytree.tree_unflatten([leaf[:, t] for leaf in leaves], structure)
        before = state
        state = x if state is None else combine(state, x)
        if segments is not None:
            # From the end, a segment begins before the start of the next one.
            place = t + 1 if reverse else t
            starts = segments[..., place] if place < length else torch.zeros_like(segments[..., 0])
            alone = combine(init, x) if exclusive else x
            before = pytree.tree_map(lambda new, old: torch.where(starts, new, old), init, before) if exclusive else before
            state = pytree.tree_map(lambda new, both: torch.where(starts, new, both), alone, state)
        outputs[t] = before if exclusive else state
    columns = [pytree.tree_leaves(output) for output in outputs]
    return pytree.tree_unflatten([torch.stack(column, 1) for column in zip(*columns)], structure)


def linear(l: Any, r: Any) -> Any:
    """A linear recurrence: coupled leaves."""
    return {"a": l["a"] * r["a"], "b": r["a"] * l["b"] + r["b"]}


def _inputs(length: int) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    return {"a": normal(3, length), "b": normal(3, length)}, {"a": normal(3), "b": normal(3)}


ONE_ROW = torch.tensor([False, True, False, False, True, True, False])
EACH_ROW = torch.rand(3, 7, generator=torch.Generator().manual_seed(0)) < 0.4
OPTIONS: dict[str, tuple[bool, bool, Tensor | None]] = {
    "init": (True, False, None),
    "exclusive": (True, True, None),
    "segments": (False, False, ONE_ROW),
    "segments_of_each_row": (False, False, EACH_ROW),
    "init_and_segments": (True, False, ONE_ROW),
    "init_and_segments_of_each_row": (True, False, EACH_ROW),
    "init_before_a_start": (True, False, torch.ones(7, dtype=torch.bool)),
    "exclusive_and_segments": (True, True, ONE_ROW),
    "exclusive_and_segments_of_each_row": (True, True, EACH_ROW),
    "exclusive_before_a_start": (True, True, torch.ones(7, dtype=torch.bool)),
}


def _check(found: Any, golden: Any, leaves: list[Tensor]) -> None:
    ours, theirs = pytree.tree_leaves(found), pytree.tree_leaves(golden)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b)
    cotangents = [torch.randn_like(x) for x in theirs]
    gradients = (torch.autograd.grad(x, leaves, cotangents, allow_unused=True) for x in (ours, theirs))
    for leaf, a, b in zip(leaves, *gradients):
        torch.testing.assert_close(torch.zeros_like(leaf) if a is None else a, torch.zeros_like(leaf) if b is None else b)


def _scanned(name: str, reverse: bool, xs: Any, start: Any) -> Any:
    with_init, exclusive, segments = OPTIONS[name]
    init = start if with_init else None
    return associative_scan(linear, xs, 1, reverse, init=init, exclusive=exclusive, segments=segments)


def _golden(name: str, reverse: bool, xs: Any, start: Any) -> Any:
    with_init, exclusive, segments = OPTIONS[name]
    return folded(linear, xs, reverse, start if with_init else None, exclusive, segments)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_options(name: str, reverse: bool) -> None:
    xs, start = _inputs(7)
    _check(_scanned(name, reverse, xs, start), _golden(name, reverse, xs, start), pytree.tree_leaves((xs, start)))


@pytest.mark.parametrize("reverse", [False, True])
def test_compiled_options(reverse: bool) -> None:
    """All of them in one graph, each on leaves of its own."""
    given = {name: _inputs(7) for name in OPTIONS}

    def function(given: dict[str, Any]) -> list[Any]:
        return [_scanned(name, reverse, xs, start) for name, (xs, start) in given.items()]

    golden = [_golden(name, reverse, xs, start) for name, (xs, start) in given.items()]
    _check(torch.compile(function, fullgraph=True)(given), golden, pytree.tree_leaves(given))


def test_a_scan_in_parts_is_the_whole_scan() -> None:
    x, starts = torch.randn(3, 20), torch.rand(20) < 0.3
    whole = associative_scan(torch.add, x, 1, segments=starts)
    head = associative_scan(torch.add, x[:, :9], 1, segments=starts[:9])
    tail = associative_scan(torch.add, x[:, 9:], 1, init=head[:, -1], segments=starts[9:])
    torch.testing.assert_close(torch.cat([head, tail], 1), whole)


def test_captures_and_one_position() -> None:
    gate = torch.rand(3, dtype=torch.float64).requires_grad_()
    xs, init = _inputs(1)

    def gated(l: Any, r: Any) -> Any:
        return {"a": l["a"] * r["a"], "b": r["a"] * l["b"] * gate + r["b"]}

    found = associative_scan(gated, xs, 1, init=init)["b"]
    golden = folded(gated, xs, False, init, False, None)["b"]
    torch.testing.assert_close(found, golden)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), gate), torch.autograd.grad(golden.sum(), gate))


def test_second_derivatives_reach_init() -> None:
    xs, init = _inputs(4)
    leaves, structure = pytree.tree_flatten((xs, init))

    def function(*flat: Tensor) -> tuple[Tensor, ...]:
        xs, init = pytree.tree_unflatten(list(flat), structure)
        starts = torch.tensor([False, False, True, False])
        return tuple(pytree.tree_leaves(associative_scan(linear, xs, 1, init=init, segments=starts)))

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_arrays_without_pytorch(reverse: bool, exclusive: bool) -> None:
    xs, init = _inputs(7)
    arrays, start = (pytree.tree_map(lambda x: x.detach().numpy(), tree) for tree in (xs, init))
    golden = folded(linear, xs, reverse, init, exclusive, EACH_ROW)
    found = tw.associative_scan(linear, arrays, 1, reverse, init=start, exclusive=exclusive, segments=EACH_ROW.numpy())
    for name in ("a", "b"):
        np.testing.assert_allclose(found[name], golden[name].detach().numpy(), rtol=1e-12)

    def last(arrays: Any, start: Any) -> Any:
        return tw.associative_scan(linear, arrays, 1, init=start)["b"].sum()

    gradient = tw.grad(last, argnums=1)(arrays, start)
    loss = folded(linear, xs, False, init, False, None)["b"].sum()
    for name, expected in zip(("a", "b"), torch.autograd.grad(loss, (init["a"], init["b"]), allow_unused=True)):
        wanted = np.zeros(3) if expected is None else expected.numpy()
        np.testing.assert_allclose(gradient[name], wanted, rtol=1e-12, atol=1e-12)


def test_refusals() -> None:
    x = torch.randn(3, 7)
    add: Callable[..., Any] = torch.add
    with pytest.raises(tw.ArgumentError, match="needs init"):
        associative_scan(add, x, 1, exclusive=True)
    with pytest.raises(tw.ArgumentError, match="init: a tree like xs"):
        associative_scan(add, x, 1, init=(torch.zeros(3),))
    with pytest.raises(tw.ShapeError, match=r"init: leaf 0: \[3\].*\[4\] found"):
        associative_scan(add, x, 1, init=torch.zeros(4))
    with pytest.raises(tw.DTypeError, match="init: leaf 0: f32.*f64 found"):
        associative_scan(add, x, 1, init=torch.zeros(3, dtype=torch.float64))
    with pytest.raises(tw.ShapeError, match="segments: axis 1: 7 as xs expected, 6 found"):
        associative_scan(add, x, 1, segments=ONE_ROW[:6])
    with pytest.raises(tw.ShapeError, match="segments: axis 0: 1 or 3 as xs expected, 2 found"):
        associative_scan(add, x, 1, segments=EACH_ROW[:2])
