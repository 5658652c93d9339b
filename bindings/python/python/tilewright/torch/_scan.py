"""``associative_scan``: PyTorch's prototype, over any tree, differentiable, and what it lacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch._higher_order_ops.associative_scan import associative_scan as torchs_scan

from tilewright._errors import ArgumentError
from tilewright._scan import Order, axis_of, check_options
from tilewright._trace.region import Value, refuse
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
        init: a tree of slices that is combined in front of the first position (in reverse, of the last). With
            ``segments`` it enters the segment that the first position goes on with, and is forgotten where one starts.
        exclusive: whether position t holds the fold of ``init``, which must be given, and the positions before it. With
            ``segments``, those before it in its own segment: each segment starts from ``init``.
        segments: booleans with the extent of the axis, or with as many axes as the leaves up to ``dim`` (1 where all
            positions share them): true where a segment starts, whose fold starts afresh.

    Returns:
        A tree like ``xs``. Length 0 is returned unchanged.

    Raises:
        ShapeError, ArgumentError, DTypeError, TraceError: subclasses of ``TilewrightError``: no leaves, extents that
            differ along ``dim``, ``exclusive`` without ``init``, a ``combine_fn`` whose result has
            another tree, shape or element type than its arguments.

    >>> import torch
    >>> a, b = torch.full((4,), 0.5), torch.ones(4)
    >>> _, y = associative_scan(lambda l, r: (l[0] * r[0], r[0] * l[1] + r[1]), (a, b), dim=0)
    >>> y.tolist()
    [1.0, 1.5, 1.75, 1.875]
    """
    if torch.compiler.is_dynamo_compiling() and _compile.is_transformed():
        return _uncompiled(combine_fn, xs, dim, reverse, init=init, exclusive=exclusive, segments=segments)
    _check_arguments(combine_fn, dim, reverse, combine_mode)
    leaves, structure = pytree.tree_flatten(xs)
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, Value):
            raise refuse("associative_scan inside a score function, mask or combine", "scan in the function around it")
        if not isinstance(leaf, Tensor):
            raise ArgumentError(f"xs: leaf {i}: a tensor expected, {type(leaf).__name__} found")
        if leaf.layout != torch.strided:
            raise ArgumentError(f"xs: leaf {i}: a dense tensor expected, {leaf.layout} found; give leaf.to_dense()")
    axis = axis_of(leaves, dim, "dim")
    check_options(init, exclusive)
    start = None if init is None else _init(init, structure)
    if leaves[0].shape[axis] == 0:
        return xs
    if torch.compiler.is_dynamo_compiling():
        if start is None and segments is None and _compile.is_plain_backend():
            return torchs_scan(combine_fn, xs, axis, reverse, combine_mode="generic")
        results = _compile.associative_scan(combine_fn, leaves, structure, axis, reverse, start, exclusive, segments)
    else:
        program, captures = _program.scan(
            combine_fn,
            leaves,
            lambda flat: pytree.tree_unflatten(list(flat), structure),
            pytree.tree_flatten,
            Order(axis, reverse, exclusive),
            start,
            segments,
        )
        results = call([*leaves, *(start or ()), *([] if segments is None else [segments]), *captures], program)
    return pytree.tree_unflatten(results, structure)


_uncompiled = _compile.uncompiled(associative_scan)


def _check_arguments(combine_fn: object, dim: object, reverse: object, combine_mode: str) -> None:
    if not callable(combine_fn):
        raise ArgumentError(f"combine_fn: a function expected, {type(combine_fn).__name__} found")
    if not isinstance(dim, int):
        raise ArgumentError(f"dim: a whole number expected, {type(dim).__name__} found")
    if not isinstance(reverse, bool):
        raise ArgumentError(f"reverse: True or False expected, {type(reverse).__name__} found")
    if combine_mode not in ("pointwise", "generic"):
        raise ArgumentError(f'combine_mode: "pointwise" or "generic" expected, {combine_mode!r} found')


def _init(init: Any, structure: Any) -> list[Tensor]:
    leaves, found = pytree.tree_flatten(init)
    if found != structure:
        raise ArgumentError(f"init: a tree like xs expected, {found} found")
    for i, leaf in enumerate(leaves):
        if not isinstance(leaf, Tensor):
            raise ArgumentError(f"init: leaf {i}: a tensor expected, {type(leaf).__name__} found")
    return leaves
