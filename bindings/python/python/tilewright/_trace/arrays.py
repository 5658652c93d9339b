"""Operations on traced arrays as a whole: shapes, reductions, products."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tilewright._trace.elementwise import Operation, binary, broadcast, cast, common_shape, divide
from tilewright._trace.region import Value, refuse, region_of
from tilewright._trace.types import is_float


def _axes(x: Value, dim: Any) -> list[int]:
    if dim is None:
        return list(range(x.ndim))
    dims = [dim] if isinstance(dim, int) else list(dim)
    return sorted(axis(d, x.ndim) for d in dims)


def axis(dim: int, rank: int) -> int:
    """An axis, counted from the front."""
    if not -rank <= dim < rank:
        raise refuse(f"axis {dim} of an array with {rank} axes", f"name one between {-rank} and {rank - 1}")
    return dim % rank


def reduce(op: str, x: Any, dim: Any = None, keepdim: bool = False) -> Value:
    """The elements along some axes combined."""
    axes = _axes(x, dim)
    shape = tuple(extent for i, extent in enumerate(x._shape) if i not in axes)
    result: Value = x.region.emit(f"reduce_{op}", [x], x.kind, shape, f"axes={axes}") if axes else x
    if keepdim:
        result = reshape(result, tuple(1 if i in axes else extent for i, extent in enumerate(x._shape)))
    return result


def reduce_of(op: str) -> Operation:
    """:func:`reduce` of one operation."""
    return lambda x, dim=None, keepdim=False: reduce(op, x, dim, keepdim)


def sum_of(x: Value, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Value:
    """The sum along some axes."""
    wanted = x.region.library.parse_kind(dtype) if dtype is not None else None
    return reduce("sum", cast(x, wanted or (x.kind if is_float(x.kind) else "i64")), dim, keepdim)


def mean(x: Value, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Value:
    """The mean along some axes."""
    count = math.prod(x._shape[i] for i in _axes(x, dim))
    return divide(sum_of(x, dim, keepdim, dtype=dtype), count)


def truth_of(op: str) -> Operation:
    """Whether any, or all, of the elements along some axes hold."""
    return lambda x, dim=None, keepdim=False: reduce(op, cast(x, "bool"), dim, keepdim)


def extremum(op: str) -> Operation:
    """The greatest or least of two arrays, or along some axes."""

    def operation(x: Any, other: Any = None, *, dim: Any = None, keepdim: bool = False) -> Value:
        if other is not None and not isinstance(other, (int, tuple, list)):
            return binary(op, x, other)
        return reduce(op, x, other if dim is None else dim, keepdim)

    return operation


def softmax(x: Value, dim: int, dtype: Any = None) -> Value:
    """Shares exp(x) / Σ exp(x) along an axis."""
    kind = x.region.library.parse_kind(dtype) if dtype is not None else None
    x = cast(x, kind or x.kind)
    shifted = binary("sub", x, reduce("max", x, dim, True))
    weight = x.region.emit("exp", [shifted], shifted.kind, shifted._shape)
    return divide(weight, reduce("sum", weight, dim, True))


def matmul(x: Any, y: Any) -> Value:
    """A product of vectors, matrices, or batches of matrices."""
    region = region_of(x, y)
    kind = region.result_kind([x, y])
    a, b = region.lift(x, kind), region.lift(y, kind)
    if a.ndim == 0 or b.ndim == 0:
        raise refuse("a matrix product of single numbers", "use * for them")
    if b.ndim == 1:
        axes = f"left_contract=[{a.ndim - 1}] right_contract=[0]"
        return region.emit("dot", [a, b], kind, a._shape[:-1], f"left_batch=[] right_batch=[] {axes}")
    if a.ndim == 1:
        return matmul(transpose(b, -1, -2), a)
    batch = common_shape([a._shape[:-2], b._shape[:-2]]) if a.ndim > 2 or b.ndim > 2 else ()
    a, b = broadcast(a, batch + a._shape[-2:]), broadcast(b, batch + b._shape[-2:])
    n = len(batch)
    leading = list(range(n))
    attributes = f"left_batch={leading} right_batch={leading} left_contract=[{n + 1}] right_contract=[{n}]"
    return region.emit("dot", [a, b], kind, (*batch, a._shape[-2], b._shape[-1]), attributes)


def einsum(equation: str, *operands: Any) -> Value:
    """Products, summed along the axes whose letters the result lacks."""
    items = _sequence(operands)
    terms, arrow, result = equation.replace(" ", "").partition("->")
    letters = terms.split(",")
    result = result if arrow else "".join(sorted(letter for letter in set(terms) - {","} if terms.count(letter) == 1))
    once = all(term.isalpha() and len(set(term)) == len(term) for term in (*letters, result or "a"))
    if not once or len(letters) != len(items) or not set(result) <= set(terms):
        raise refuse(f"einsum {equation!r} of {len(items)} arrays", "give each axis of an array a letter of its own")
    region = region_of(items)
    kind = region.result_kind(items)
    values = [region.lift(item, kind) for item in items]
    for value, term in zip(values, letters):
        if value.ndim != len(term):
            raise refuse(f"einsum {equation!r}: {value.ndim} axes for {term!r}", "give each axis a letter")
    value, term = values[0], letters[0]
    for place, (other, right) in enumerate(zip(values[1:], letters[1:]), 2):
        value, term = _contract(value, term, other, right, set(result).union(*letters[place:]))
    value = reduce("sum", value, [axis for axis, letter in enumerate(term) if letter not in result])
    kept = [letter for letter in term if letter in result]
    return permute(value, [kept.index(letter) for letter in result])


def _contract(a: Value, left: str, b: Value, right: str, kept: set[str]) -> tuple[Value, str]:
    """The product of two arrays, summed along the axes that both have and nobody keeps; and its axes."""
    extents = dict(zip(left, a._shape))
    for letter, extent in zip(right, b._shape):
        if extents.setdefault(letter, extent) != extent:
            raise refuse(f"einsum: axis {letter!r} has {extents[letter]} and {extent} positions", "give it one extent")
    shared = [letter for letter in left if letter in right]
    batch, summed = ([letter for letter in shared if (letter in kept) == flag] for flag in (True, False))
    axes = [[term.index(letter) for letter in group] for group in (batch, summed) for term in (left, right)]
    names = "left_batch", "right_batch", "left_contract", "right_contract"
    term = "".join([*batch, *(x for x in left if x not in shared), *(x for x in right if x not in shared)])
    attributes = " ".join(f"{name}={places}" for name, places in zip(names, axes))
    return a.region.emit("dot", [a, b], a.kind, tuple(extents[letter] for letter in term), attributes), term


def _sequence(items: tuple[Any, ...]) -> tuple[int, ...]:
    """``f(x, 2, 3)`` and ``f(x, (2, 3))`` mean the same."""
    return tuple(items[0]) if len(items) == 1 and isinstance(items[0], (tuple, list)) else items


def reshape(x: Value, *shape: Any) -> Value:
    """The same elements in row-major order under another shape; one extent may be -1."""
    extents = _sequence(shape)
    if -1 in extents:
        rest = math.prod(extent for extent in extents if extent != -1)
        extents = tuple(math.prod(x._shape) // max(rest, 1) if extent == -1 else extent for extent in extents)
    if extents == x._shape:
        return x
    return x.region.emit("reshape", [x], x.kind, extents)


def permute(x: Value, *dims: Any) -> Value:
    """The axes in another order."""
    order = tuple(axis(d, x.ndim) for d in _sequence(dims))
    if order == tuple(range(x.ndim)):
        return x
    return x.region.emit("transpose", [x], x.kind, tuple(x._shape[d] for d in order), f"permutation={list(order)}")


def transpose(x: Value, first: int, second: int) -> Value:
    """Two axes exchanged."""
    order = list(range(x.ndim))
    order[first], order[second] = order[second], order[first]
    return permute(x, order)


def unsqueeze(x: Value, dim: int) -> Value:
    """A new axis of extent 1."""
    position = axis(dim, x.ndim + 1)
    return reshape(x, (*x._shape[:position], 1, *x._shape[position:]))


def squeeze(x: Value, dim: int | None = None) -> Value:
    """Without axes of extent 1, or without one of them."""
    drop = [i for i, extent in enumerate(x._shape) if extent == 1 and (dim is None or i == axis(dim, x.ndim))]
    return reshape(x, tuple(extent for i, extent in enumerate(x._shape) if i not in drop))


def expand(x: Value, *shape: Any) -> Value:
    """``x`` repeated to a shape; -1 leaves an extent as it is."""
    extents = _sequence(shape)
    missing = len(extents) - x.ndim
    return broadcast(x, tuple(x._shape[i - missing] if e == -1 else e for i, e in enumerate(extents)))


def pad(x: Value, dim: int, low: int, high: int) -> Value:
    """Zeros before and after the positions along one axis."""
    before, after = ([amount if i == dim else 0 for i in range(x.ndim)] for amount in (low, high))
    shape = tuple(extent + before[i] + after[i] for i, extent in enumerate(x._shape))
    nothing = x.region.constant(0, x.kind)
    attributes = f"low={before} high={after} interior={[0] * x.ndim}"
    return x.region.emit("pad", [x, nothing], x.kind, shape, attributes)


def concatenate(arrays: Sequence[Any], dim: int = 0) -> Value:
    """Arrays one after the other along an axis."""
    region = region_of(arrays)
    kind = region.result_kind(arrays)
    lifted = [region.lift(array, kind) for array in arrays]
    along = axis(dim, lifted[0].ndim)
    shape = list(lifted[0]._shape)
    shape[along] = sum(array._shape[along] for array in lifted)
    return region.emit("concatenate", lifted, kind, tuple(shape), f"axis={along}")


def stack(arrays: Sequence[Any], dim: int = 0) -> Value:
    """Arrays side by side along a new axis."""
    region = region_of(arrays)
    return concatenate([unsqueeze(region.lift(array), dim) for array in arrays], dim)
