"""``associative_scan``: PyTorch's prototype, over any tree, differentiable, and what it lacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from tilewright._errors import ArgumentError, ShapeError
from tilewright.torch import _compile, _program
from tilewright.torch._operator import call

__all__ = ["associative_scan"]


def associative_scan(
    combine_fn: Callable[[Any, Any], Any],
    xs: Any,
    dim: int,
    reverse: bool = False,
    combine_mode: str = "pointwise",
    *,
    init: Any = None,
    exclusive: bool = False,
    segments: Tensor | None = None,
) -> Any:
    """All prefixes of a fold along an axis, as ``torch._higher_order_ops.associative_scan``.

    Args:
        combine_fn: ``(left, right) -> tree``, associative, on slices without axis ``dim``. Captured tensors may require
            gradients.
        xs: a tree of tensors with one extent along ``dim``.
        dim: the axis, negative from the end.
        reverse: whether to run from the end.
        combine_mode: ``"pointwise"`` or ``"generic"``: accepted for PyTorch's sake, any function works in both.
        init: a tree of slices that is combined in front.
        exclusive: whether position t holds the fold of the positions before it (needs ``init``).
        segments: booleans with the extent of the axis (or the shape of the leaves up to broadcasting): true where a new
            segment begins, whose fold starts afresh.

    Returns:
        A tree like ``xs``. Length 0 is returned unchanged.

    >>> import torch
    >>> a, b = torch.full((4,), 0.5), torch.ones(4)
    >>> _, y = associative_scan(lambda l, r: (l[0] * r[0], r[0] * l[1] + r[1]), (a, b), dim=0)
    >>> y.tolist()
    [1.0, 1.5, 1.75, 1.875]
    """
    if combine_mode not in ("pointwise", "generic"):
        raise ArgumentError(f'combine_mode: "pointwise" or "generic" expected, {combine_mode!r} found')
    leaves, structure = pytree.tree_flatten(xs)
    if not leaves:
        raise ArgumentError("xs: at least one tensor expected, an empty tree found")
    for i, leaf in enumerate(leaves):
        if not isinstance(leaf, Tensor):
            raise ArgumentError(f"xs: leaf {i}: a tensor expected, {type(leaf).__name__} found")
    rank = leaves[0].dim()
    if not -rank <= dim < rank:
        raise ArgumentError(f"dim: between {-rank} and {rank - 1} expected, {dim} found")
    # A number also where Dynamo would take it for a symbol.
    axis = range(rank)[dim]
    for i, leaf in enumerate(leaves):
        if leaf.dim() <= axis or leaf.shape[axis] != leaves[0].shape[axis]:
            raise ShapeError(
                f"xs: leaf {i}: axis {axis}: {leaves[0].shape[axis]} as leaf 0 expected, {list(leaf.shape)} found"
            )
    if exclusive and init is None:
        raise ArgumentError("exclusive: needs init, the value at the first position")

    combine = combine_fn
    if segments is not None:
        leaves, structure, combine = _segmented(combine_fn, xs, segments, axis, reverse)
    results = _run(combine, leaves, structure, axis, reverse)
    if segments is not None:
        tree = pytree.tree_unflatten(results, structure)[1]
        if init is None:
            return tree
        results, structure = pytree.tree_flatten(tree)
        raise ArgumentError("init: not together with segments; put it in the first element of each segment")
    if init is not None:
        results = _carried(combine_fn, results, structure, init, axis, reverse, exclusive)
    return pytree.tree_unflatten(results, structure)


def _run(combine: Callable[..., Any], leaves: list[Tensor], structure: Any, axis: int, reverse: bool) -> list[Tensor]:
    if leaves[0].shape[axis] == 0:
        return list(leaves)
    if torch.compiler.is_dynamo_compiling():
        return _compile.associative_scan(combine, leaves, structure, axis, reverse)
    program, captures = _program.scan(
        combine,
        leaves,
        lambda flat: pytree.tree_unflatten(list(flat), structure),
        pytree.tree_flatten,
        axis,
        reverse,
    )
    return call([*leaves, *captures], program)


def _segmented(
    combine: Callable[[Any, Any], Any], xs: Any, segments: Tensor, axis: int, reverse: bool
) -> tuple[list[Tensor], Any, Callable[[Any, Any], Any]]:
    """The lift of Blelloch: pairs (a segment began, value), which is associative where ``combine`` is."""
    first: Tensor = pytree.tree_leaves(xs)[0]
    if segments.dim() == 1 and first.dim() > 1:
        shape = [1] * first.dim()
        shape[axis] = segments.shape[0]
        segments = segments.reshape(shape)
    flags = segments.to(torch.bool).expand(first.shape)

    def lifted(left: Any, right: Any) -> Any:
        flag_left, value_left = left
        flag_right, value_right = right
        combined = combine(value_left, value_right)
        chosen = pytree.tree_map(lambda new, both: torch.where(flag_right, new, both), value_right, combined)
        return flag_left | flag_right, chosen

    if reverse:
        # From the end, a segment's last position starts it: the position before the next one's flag.
        flags = torch.cat([flags.narrow(axis, 1, flags.shape[axis] - 1), torch.ones_like(flags.narrow(axis, 0, 1))], axis)
    leaves, structure = pytree.tree_flatten((flags, xs))
    return leaves, structure, lifted


def _carried(
    combine: Callable[[Any, Any], Any],
    results: list[Tensor],
    structure: Any,
    init: Any,
    axis: int,
    reverse: bool,
    exclusive: bool,
) -> list[Tensor]:
    carries, init_structure = pytree.tree_flatten(init)
    if init_structure != structure:
        raise ArgumentError("init: a tree like xs expected")
    carries = [carry.unsqueeze(axis) for carry in carries]
    wide = [carry.expand_as(result) for carry, result in zip(carries, results)]
    in_front = pytree.tree_unflatten(wide, structure)
    # The axis goes to the front, so that the function sees slices when it broadcasts.
    moved = [torch.movedim(leaf, axis, 0) for leaf in pytree.tree_leaves(in_front)]
    folded = [torch.movedim(leaf, axis, 0) for leaf in results]
    combined = torch.func.vmap(
        lambda left, right: tuple(
            pytree.tree_leaves(
                combine(pytree.tree_unflatten(list(left), structure), pytree.tree_unflatten(list(right), structure))
            )
        )
    )(tuple(moved), tuple(folded))
    whole = [torch.movedim(leaf, 0, axis) for leaf in combined]
    if not exclusive:
        return whole
    length = whole[0].shape[axis]
    if reverse:
        return [torch.cat([x.narrow(axis, 1, length - 1), c], axis) for x, c in zip(whole, carries)]
    return [torch.cat([c, x.narrow(axis, 0, length - 1)], axis) for x, c in zip(whole, carries)]
