"""Attention and scans on arrays of any library, and pictures of what a call does."""

from __future__ import annotations

import math
from collections.abc import Callable
from os import PathLike
from typing import Any, Literal, TypeAlias, overload

from tilewright import _native, _program
from tilewright._arrays import LIBRARY, ArrayTraced, ArrayType
from tilewright._errors import ArgumentError, TraceError
from tilewright._scan import Order, axis_of, check_options, scan
from tilewright._trace.calling import run
from tilewright._trace.region import Value, region_of
from tilewright._transform import Compiled
from tilewright._tree import flatten, unflatten

ScoreMod: TypeAlias = Callable[[ArrayTraced, ArrayTraced, ArrayTraced, ArrayTraced, ArrayTraced], Any]
MaskMod: TypeAlias = Callable[[ArrayTraced, ArrayTraced, ArrayTraced, ArrayTraced], Any]


@overload
def flex_attention(
    query: ArrayType,
    key: ArrayType,
    value: ArrayType,
    score_mod: ScoreMod | None = None,
    mask_mod: MaskMod | None = None,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: Literal[False] = False,
) -> ArrayType: ...


@overload
def flex_attention(
    query: ArrayType,
    key: ArrayType,
    value: ArrayType,
    score_mod: ScoreMod | None = None,
    mask_mod: MaskMod | None = None,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: Literal[True],
) -> tuple[ArrayType, ArrayType]: ...


def flex_attention(
    query: Any,
    key: Any,
    value: Any,
    score_mod: ScoreMod | None = None,
    mask_mod: MaskMod | None = None,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
) -> Any:
    """Attention with a score function and a mask, on arrays or within a function that is compiled or differentiated.

    Args:
        query: ``[B, Hq, L, E]``, a float type; any strides.
        key: ``[B, Hkv, S, E]``; its batch may be 1.
        value: ``[B, Hkv, S, Ev]``.
        score_mod: ``(score, b, h, q, k) -> score``, of one pair. Arrays that it indexes are made so by
            :func:`tilewright.capture`; those that want a gradient are arguments of the function that is differentiated.
        mask_mod: ``(b, h, q, k) -> bool``; a pair that it leaves out contributes nothing.
        scale: factor of the dot products; ``1 / sqrt(E)`` where ``None``.
        enable_gqa: whether ``Hq`` may be a multiple of ``Hkv``.
        return_lse: whether to give the log-sum-exp ``[B, Hq, L]`` of each row's scores as well.

    Returns:
        ``[B, Hq, L, Ev]``, an array of the library that ``query`` is from.

    Raises:
        ShapeError, DTypeError, TraceError: subclasses of ``TilewrightError`` that name argument, axis and both sizes.

    >>> import numpy as np
    >>> q = k = v = np.ones((1, 2, 8, 4), dtype=np.float32)
    >>> flex_attention(q, k, v, lambda s, b, h, i, j: s - 0.1 * abs(i - j), lambda b, h, i, j: i >= j).shape
    (1, 2, 8, 4)
    """
    operands = (query, key, value)
    if not any(isinstance(operand, Value) for operand in operands):
        names = ("query", "key", "value")
        for name, operand in zip(names, operands):
            if not LIBRARY.is_array(operand):
                raise ArgumentError(f"{name}: an array expected, a {type(operand).__name__} found")

        def whole(*traced: Any) -> Any:
            return _traced_attention(traced, score_mod, mask_mod, scale, enable_gqa, return_lse)

        return Compiled(whole, names=names)(*operands)
    return _traced_attention(operands, score_mod, mask_mod, scale, enable_gqa, return_lse)


def _traced_attention(
    operands: tuple[Any, ...],
    score_mod: ScoreMod | None,
    mask_mod: MaskMod | None,
    scale: float | None,
    grouped: bool,
    return_lse: bool,
) -> Any:
    graph = region_of(*operands)
    q, k, v = [graph.lift(operand) for operand in operands]
    _program.check_attention(q, k, v, [x.kind for x in (q, k, v)], grouped)
    factor = 1.0 / math.sqrt(q._shape[-1]) if scale is None else scale
    results = _program.attention(q, k, v, score_mod, mask_mod, factor)
    return (results["out"], results["lse"]) if return_lse else results["out"]


def associative_scan(
    combine: Callable[[Any, Any], Any],
    xs: Any,
    axis: int,
    reverse: bool = False,
    *,
    init: Any = None,
    exclusive: bool = False,
    segments: Any = None,
) -> Any:
    """All prefixes of a fold along an axis, on arrays or within a function that is compiled or differentiated.

    Args:
        combine: ``(left, right) -> tree``, associative, on slices without ``axis``.
        xs: an array, or a tree (tuples, lists, dictionaries) of arrays with one extent along ``axis``.
        axis: negative from the end.
        reverse: whether to run from the end.
        init: a tree of slices that is combined in front of the first position (in reverse, of the last). With
            ``segments`` it enters the segment that the first position goes on with, and is forgotten where one starts.
        exclusive: whether position t holds the fold of ``init``, which must be given, and the positions before it. With
            ``segments``, those before it in its own segment: each segment starts from ``init``.
        segments: booleans with the extent of the axis, or with as many axes as the leaves up to ``axis`` (1 where all
            positions share them): true where a segment starts, whose fold starts afresh.

    Returns:
        A tree like ``xs``.

    Raises:
        ShapeError, ArgumentError, DTypeError, TraceError: subclasses of ``TilewrightError``.

    >>> import numpy as np
    >>> a, b = np.full(4, 0.5), np.ones(4)
    >>> _, y = associative_scan(lambda l, r: (l[0] * r[0], r[0] * l[1] + r[1]), (a, b), axis=0)
    >>> y.tolist()
    [1.0, 1.5, 1.75, 1.875]
    >>> starts = np.array([False, False, True, False])
    >>> associative_scan(lambda l, r: l + r, b, axis=0, init=np.array(10.0), segments=starts).tolist()
    [11.0, 12.0, 1.0, 2.0]
    """
    leaves, structure = flatten(xs)
    for i, leaf in enumerate(leaves):
        if not isinstance(leaf, Value) and not LIBRARY.is_array(leaf):
            raise ArgumentError(f"xs: leaf {i}: an array expected, a {type(leaf).__name__} found")
    along = axis_of(leaves, axis, "axis")
    check_options(init, exclusive)
    start: list[Any] = []
    if init is not None:
        start, found = flatten(init)
        if found != structure:
            raise ArgumentError("init: a tree like xs expected")
    flags = [] if segments is None else [segments]

    def whole(leaves: list[Any], start: list[Any], flags: list[Any]) -> Any:
        graph = region_of(leaves, start, flags)
        elements, first, starts = [[graph.lift(x) for x in part] for part in (leaves, start, flags)]
        order = Order(along, reverse, exclusive)
        results = scan(elements, flat, order, first if start else None, starts[0] if starts else None)
        return unflatten(structure, results)

    def flat(left: list[Value], right: list[Value]) -> list[Any]:
        both = (unflatten(structure, left), unflatten(structure, right))
        results, found = flatten(run(combine, both, "combine", left[0]))
        if found != structure:
            raise TraceError("combine returned another tree than its arguments have")
        return results

    if leaves[0].shape[along] == 0:
        return xs
    if any(isinstance(operand, Value) for operand in (*leaves, *start, *flags)):
        return whole(leaves, start, flags)
    return Compiled(whole, names=("xs", "init", "segments"))(leaves, start, flags)


def mask_picture(
    mask_mod: MaskMod, queries: int, keys: int, *, block: int = 128, batch: int = 0, head: int = 0
) -> str:
    """What a mask leaves, a character a block: ``█`` all pairs, ``▒`` some, ``·`` none. Nothing of size queries × keys
    is made.

    >>> print(mask_picture(lambda b, h, q, k: q >= k, 512, 512))
    ▒···
    █▒··
    ██▒·
    ███▒
    """
    if block < 1:
        raise ArgumentError(f"block: a positive size expected, {block} found")
    program, captures = _program.mask_text(LIBRARY, mask_mod)
    kinds = _native.block_kinds(program, captures, (batch + 1, head + 1), (queries, keys), (block, block))
    columns = -(-keys // block)
    rows = -(-queries // block)
    start = (batch * (head + 1) + head) * rows * columns
    text = "".join("·▒█"[kind] for kind in kinds[start:])
    return "\n".join(text[row * columns : (row + 1) * columns] for row in range(rows))


def visualize(
    path: str | PathLike[str],
    queries: int,
    keys: int,
    score_mod: ScoreMod | None = None,
    mask_mod: MaskMod | None = None,
    *,
    batch: int = 0,
    head: int = 0,
) -> None:
    """Draws what a score function and a mask make of a score of zero, for each query and key, to a PNG file.

    Masked pairs are grey. Scores are found from attention on one-hot values, so that what is drawn is what runs.
    """
    program, captures = _program.score_matrix(LIBRARY, queries, keys, score_mod, mask_mod, batch, head)
    (scores,) = _native.call(program, captures, None, 0)
    _native.heat_map(path, f"batch element {batch}, head {head}", "key", "query", scores)
