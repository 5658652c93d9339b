"""Scans. What one starts from, shifts by and is cut into is expressed in the elements that are scanned:

- ``init`` is combined with the element at the first position; ``exclusive`` scans ``init`` and all elements but the last.
  Both choose by position, so nothing is concatenated. In segments, ``exclusive`` puts ``init`` where each starts.
- ``segments`` scans pairs (a segment starts here, value), where a right side that starts a segment forgets the left one:
  (f, x) · (g, y) = (f ∨ g, y if g else x · y), which is associative where · is (Blelloch, Prefix sums and their
  applications, 1990).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tilewright._errors import ArgumentError, DTypeError, ShapeError, TraceError
from tilewright._program import capture_parameters, region_text
from tilewright._trace import arrays
from tilewright._trace.elementwise import binary, broadcast, cast, compare, where
from tilewright._trace.indexing import slice_of
from tilewright._trace.region import Region, Value, refuse

#: A combine function on lists of leaves.
Combine = Callable[[list[Value], list[Value]], Sequence[Any]]


@dataclass(frozen=True)
class Order:
    """Along which axis a scan runs, from where, and whether a position's own element is left out of its result."""

    axis: int
    reverse: bool = False
    exclusive: bool = False


def axis_of(leaves: Sequence[Any], axis: int, name: str) -> int:
    """The axis, called ``name``, counted from the front; raises where there are no leaves, or their extents along it
    differ."""
    if not leaves:
        raise ArgumentError("xs: at least one array expected, an empty tree found")
    rank = leaves[0].ndim
    if not -rank <= axis < rank:
        raise ArgumentError(f"{name}: between {-rank} and {rank - 1} expected, {axis} found")
    # A number also where PyTorch's compiler would take it for a symbol.
    along = next(place for place in range(rank) if axis in (place, place - rank))
    for i, leaf in enumerate(leaves):
        if leaf.ndim <= along or leaf.shape[along] != leaves[0].shape[along]:
            raise ShapeError(
                f"xs: leaf {i}: axis {along}: {leaves[0].shape[along]} as leaf 0 expected, {list(leaf.shape)} found"
            )
    return along


def check_options(init: Any, exclusive: bool) -> None:
    """Raises for options that lack another."""
    if exclusive and init is None:
        raise ArgumentError("exclusive: needs init, which is the result at the first position")


def scan(
    leaves: Sequence[Value],
    combine: Combine,
    order: Order,
    init: Sequence[Value] | None = None,
    segments: Value | None = None,
) -> list[Value]:
    """Writes a scan over ``leaves`` to their graph."""
    graph = leaves[0].region
    if graph.parent is not None:
        raise refuse("a scan inside a score function, mask or combine", "call it in the function around")
    slices = [(leaf.kind, leaf._shape[: order.axis] + leaf._shape[order.axis + 1 :]) for leaf in leaves]
    scanned, flags = list(leaves), None
    if segments is not None:
        flags = _flags(segments, leaves, order)
    if init is not None:
        scanned = _started(scanned, combine, order, _checked_init(init, slices), slices, flags)
    return _emit(graph, scanned, combine, order, slices, flags)


def _emit(
    graph: Region,
    leaves: list[Value],
    combine: Combine,
    order: Order,
    slices: Sequence[tuple[str, tuple[int, ...]]],
    flags: Value | None,
) -> list[Value]:
    region = Region(graph.library, graph)
    left, right = ([region.parameter(f"%{side}{i}", *ty) for i, ty in enumerate(slices)] for side in "lr")
    parameters = [*left], [*right]
    results = _combined(region, combine, left, right, slices)
    named = [(f"y{i}", leaf.kind, leaf._shape) for i, leaf in enumerate(leaves)]
    if flags is not None:
        shape = flags._shape[: order.axis] + flags._shape[order.axis + 1 :]
        left_flag, right_flag = (region.parameter(f"%{side}", "bool", shape) for side in "fg")
        results = [where(_for_rank(right_flag, y.ndim), y, both) for y, both in zip(right, results)]
        results.insert(0, binary("or", left_flag, right_flag))
        parameters[0].insert(0, left_flag)
        parameters[1].insert(0, right_flag)
        named.insert(0, ("starts", "bool", flags._shape))
        leaves = [flags, *leaves]
    typed = [f"{value.name}: {value.written_type()}" for side in parameters for value in side]
    body = region_text("combine", [*typed, *capture_parameters(region.captures)], region, results)
    reverse = "true" if order.reverse else "false"
    attributes = f"leaves={len(leaves)} axis={order.axis} reverse={reverse} {body}"
    scanned = graph.emit_several(named, "associative_scan", [*leaves, *region.captures], attributes)
    return scanned[len(scanned) - len(slices) :]


def _combined(
    region: Region,
    combine: Combine,
    left: list[Value],
    right: list[Value],
    slices: Sequence[tuple[str, tuple[int, ...]]],
) -> list[Value]:
    """What ``combine`` gives for two slices, as values of a region: of the slices' types, or an error."""
    results = []
    for i, ((kind, shape), result) in enumerate(zip(slices, combine(left, right))):
        if not isinstance(result, Value) and not region.library.is_array(result):
            raise TraceError(f"combine_fn returned a {type(result).__name__} for leaf {i}, not an array")
        lifted = region.lift(result)
        if lifted.kind != kind or lifted._shape != shape:
            raise TraceError(
                f"combine_fn's leaf {i} has type {lifted.kind} and shape {list(lifted._shape)}, "
                f"its argument has {kind} and {list(shape)}"
            )
        results.append(lifted)
    return results


def _started(
    leaves: list[Value],
    combine: Combine,
    order: Order,
    init: list[Value],
    slices: Sequence[tuple[str, tuple[int, ...]]],
    flags: Value | None,
) -> list[Value]:
    """The leaves with ``init`` in front."""
    graph, length = leaves[0].region, leaves[0]._shape[order.axis]
    first = length - 1 if order.reverse else 0
    if order.exclusive:
        leaves = [_moved(leaf, order) for leaf in leaves]
        if flags is not None:
            leaves = [
                where(_for_rank(flags, leaf.ndim), arrays.unsqueeze(x, order.axis), leaf) for leaf, x in zip(leaves, init)
            ]
        start = init
    else:
        elements = [_at(leaf, order.axis, first) for leaf in leaves]
        start = _combined(graph, combine, init, elements, slices)
        if flags is not None:
            flag = _at(flags, order.axis, first)
            start = [where(_for_rank(flag, x.ndim), x, both) for x, both in zip(elements, start)]
    return [_with_first(leaf, slice_, order.axis, first) for leaf, slice_ in zip(leaves, start)]


def _with_first(leaf: Value, first_slice: Value, axis: int, first: int) -> Value:
    place = leaf.region.emit("iota", [], "i64", leaf._shape, f"axis={axis}")
    return where(compare("eq", place, first), arrays.unsqueeze(first_slice, axis), leaf)


def _at(leaf: Value, axis: int, position: int) -> Value:
    part = slice_of(leaf, axis, position, position + 1)
    return arrays.reshape(part, leaf._shape[:axis] + leaf._shape[axis + 1 :])


def _moved(leaf: Value, order: Order) -> Value:
    """The leaf moved by one position in the direction of the scan; what is at the first position is of no use."""
    axis, length = order.axis, leaf._shape[order.axis]
    if order.reverse:
        return arrays.pad(slice_of(leaf, axis, 1, length), axis, 0, 1)
    return arrays.pad(slice_of(leaf, axis, 0, length - 1), axis, 1, 0)


def _checked_init(init: Sequence[Value], slices: Sequence[tuple[str, tuple[int, ...]]]) -> list[Value]:
    """The leaves of ``init``, each as wide as a slice."""
    wide = []
    for i, (leaf, (kind, shape)) in enumerate(zip(init, slices)):
        if leaf.kind != kind:
            raise DTypeError(f"init: leaf {i}: {kind} as the elements expected, {leaf.kind} found")
        padded = (1,) * (len(shape) - leaf.ndim) + leaf._shape
        if len(padded) != len(shape) or any(extent not in (1, there) for extent, there in zip(padded, shape)):
            raise ShapeError(f"init: leaf {i}: {list(shape)} as a slice of xs expected, {list(leaf._shape)} found")
        wide.append(broadcast(leaf, shape))
    return wide


def _flags(segments: Value, leaves: Sequence[Value], order: Order) -> Value:
    """Where a scan starts afresh, as a leaf to scan with the others."""
    axis, length = order.axis, leaves[0]._shape[order.axis]
    shape = (1,) * axis + segments._shape if segments.ndim == 1 else segments._shape
    if len(shape) <= axis:
        raise ShapeError(f"segments: [{length}] or the shape of the leaves expected, {list(segments._shape)} found")
    for i, extent in enumerate(shape):
        for leaf in leaves:
            there = leaf._shape[i] if i < leaf.ndim else 1
            if extent != there and (i == axis or extent != 1):
                expected = str(there) if i == axis else f"1 or {there}"
                raise ShapeError(f"segments: axis {i}: {expected} as xs expected, {extent} found")
    flags = arrays.reshape(cast(segments, "bool"), shape)
    if not order.reverse:
        return flags
    # From the end, a segment begins before the start of the next one; what follows the last position is unknown.
    return arrays.pad(slice_of(flags, axis, 1, length), axis, 0, 1)


def _for_rank(flag: Value, rank: int) -> Value:
    """A flag for a value with so many axes: its leading axes are the value's, the others have extent 1."""
    return arrays.reshape(flag, flag._shape + (1,) * (rank - flag.ndim))
