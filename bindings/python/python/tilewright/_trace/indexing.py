"""``array[…]``: reads at traced indices, slices and new axes, in any order, as PyTorch and NumPy have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tilewright._trace import arrays
from tilewright._trace.elementwise import together
from tilewright._trace.region import Region, Value, origin, refuse, region_of
from tilewright._trace.types import is_float

_ALL = slice(None)


def index(array: Any, position: Any) -> Value:
    """``array[position]``."""
    given = position if isinstance(position, tuple) else (position,)
    region = region_of(array, given)
    x = region.lift(array)
    items = _whole(given, x.ndim)
    per_axis = [item for item in items if item is not None]
    read = [axis for axis, item in enumerate(per_axis) if not isinstance(item, slice)]
    kept = [axis for axis in range(x.ndim) if axis not in read]
    indices = [_as_index(region, per_axis[axis]) for axis in read]
    shape: tuple[int, ...] = ()
    if read:
        # The axes that are read come first for the compiler.
        gathered = _gather(arrays.permute(x, [*read, *kept]), indices)
        shape = gathered._shape[: gathered.ndim - len(kept)]
        x = gathered
    if any(per_axis[axis] != _ALL for axis in kept):
        x = _slice(x, [*[_ALL] * len(shape), *(per_axis[axis] for axis in kept)])
    if not shape:
        return _with_new_axes(x, [item for item in items if item is None or isinstance(item, slice)])
    if len(per_axis) != len(items):
        raise refuse("`None` beside an array of indices", "use unsqueeze on the result")
    # Arrays of indices that stand side by side stay where they are; else theirs are the first axes.
    if read[-1] - read[0] == len(read) - 1 and read[0] > 0:
        rank = len(shape)
        before = range(rank, rank + read[0])
        x = arrays.permute(x, [*before, *range(rank), *range(rank + read[0], x.ndim)])
    return x


def index_list(x: Any, indices: Sequence[Any]) -> Value:
    """``aten.index``: ``None`` stands for a whole axis."""
    return index(x, tuple(_ALL if item is None else item for item in indices))


def select(x: Any, dim: int, position: Any) -> Value:
    """One position along an axis."""
    return index(x, (*([_ALL] * arrays.axis(dim, x.ndim)), position))


def slice_of(x: Value, dim: int, start: int, limit: int) -> Value:
    """Some positions along one axis."""
    return _slice(x, [*[_ALL] * dim, slice(start, limit)])


def _whole(items: tuple[Any, ...], rank: int) -> list[Any]:
    """The items with the ellipsis written out, and a slice for each axis that is not mentioned."""
    mentioned = sum(1 for item in items if item is not None and item is not Ellipsis)
    if mentioned > rank:
        raise refuse(f"an array with {rank} axes is indexed with {mentioned}", "index at most every axis of the array")
    rest = [_ALL] * (rank - mentioned)
    at = next((i for i, item in enumerate(items) if item is Ellipsis), len(items))
    return [*items[:at], *rest, *items[at + 1 :]]


def _with_new_axes(x: Value, items: Sequence[Any]) -> Value:
    """``x``, whose axes the slices stand for, with an axis of extent 1 for each ``None``."""
    if all(item is not None for item in items):
        return x
    extents = iter(x._shape)
    return arrays.reshape(x, tuple(1 if item is None else next(extents) for item in items))


def _as_index(region: Region, item: Any) -> Value:
    if isinstance(item, (bool, float, str)):
        raise refuse(f"a {type(item).__name__} as an index", "index with whole numbers or traced indices")
    try:
        position = region.lift(item)
    except TypeError as error:
        raise refuse(f"a {type(item).__name__} as an index", "index with whole numbers or traced indices") from error
    if is_float(position.kind) or position.kind == "bool":
        raise refuse(f"an index of type {position.kind}", "convert it to whole numbers: index.to(torch.int32)")
    return position


def _gather(x: Value, indices: list[Value]) -> Value:
    first = indices[0]
    if any([other.kind != first.kind or other._shape != first._shape for other in indices]):
        indices = together(indices)
    shape = indices[0]._shape + x._shape[len(indices) :]
    return x.region.emit("gather", [x, *indices], x.kind, shape, origin())


def _slice(x: Value, slices: list[slice]) -> Value:
    slices = slices + [_ALL] * (x.ndim - len(slices))
    bounds = [item.indices(extent) for item, extent in zip(slices, x._shape)]
    if any(step < 1 for _, _, step in bounds):
        raise refuse("a slice with a negative step", "reverse the array before the call")
    start, limit, step = ([bound[i] for bound in bounds] for i in range(3))
    limit = [max(low, high) for low, high in zip(start, limit)]
    shape = tuple(-(-(high - low) // by) for low, high, by in zip(start, limit, step))
    return x.region.emit("slice", [x], x.kind, shape, f"start={start} limit={limit} step={step}")
