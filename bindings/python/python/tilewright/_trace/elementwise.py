"""Element-wise operations on traced values: promotion, broadcasting, and what is made of simpler operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tilewright._trace.region import Number, Region, Value, refuse, region_of
from tilewright._trace.types import CATEGORY, category_of, is_float

Operation = Callable[..., Value]


def cast(x: Value, kind: str) -> Value:
    """``x`` converted."""
    return x if x.kind == kind else x.region.emit("cast", [x], kind, x._shape)


def broadcast(x: Value, shape: tuple[int, ...]) -> Value:
    """``x`` repeated along new axes and those of extent 1."""
    if x._shape == shape:
        return x
    axes = list(range(len(shape) - x.ndim, len(shape)))
    return x.region.emit("broadcast", [x], x.kind, shape, f"axes={axes}")


def common_shape(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape that all broadcast to."""
    rank = max(len(shape) for shape in shapes)
    common = [1] * rank
    for shape in shapes:
        for axis, extent in enumerate(shape, rank - len(shape)):
            if extent != 1:
                if common[axis] not in (1, extent):
                    named = " and ".join(str(list(s)) for s in shapes)
                    raise refuse(f"shapes {named} do not broadcast together", "index or sum the larger one")
                common[axis] = extent
    return tuple(common)


def same_shape(values: list[Value]) -> list[Value]:
    """The values, broadcast to their common shape."""
    first = values[0]._shape
    if all([value._shape == first for value in values]):
        return values
    shape = common_shape([value._shape for value in values])
    return [broadcast(value, shape) for value in values]


def together(values: Sequence[Any], kind: str | None = None) -> list[Value]:
    """The values as arrays of one type and shape."""
    region = region_of(*values)
    kind = kind or region.result_kind(values)
    return same_shape([region.lift(value, kind) for value in values])


def _pair(x: Any, y: Any) -> list[Value]:
    """Two values as arrays of one type and shape: the common cases in few steps."""
    if isinstance(x, Value):
        if isinstance(y, Value):
            if x.kind == y.kind and x._shape == y._shape and x.region is y.region:
                return [x, y]
        elif not x._shape and isinstance(y, (bool, int, float)) and category_of(y) <= CATEGORY[x.kind]:
            return [x, x.region.constant(y, x.kind)]
    return together([x, y])


def unary(op: str, x: Any, kind: str | None = None) -> Value:
    """One operation on each element."""
    operand = region_of(x).lift(x, kind)
    return operand.region.emit(op, [operand], operand.kind, operand._shape)


def as_float(x: Any) -> str:
    """The type of ``x``, or the library's own float type for whole numbers."""
    region = region_of(x)
    kind = region.kind_of(x)
    return kind if is_float(kind) else region.library.default_float()


def float_unary(op: str) -> Operation:
    """A function that makes floats of whole numbers."""
    return lambda x, out=None: unary(op, x, as_float(x))


def binary(op: str, x: Any, y: Any, *, alpha: Number = 1) -> Value:
    """One operation on two elements; ``alpha`` is a factor of the second, as PyTorch's ``add`` has it."""
    if alpha != 1:
        y = binary("mul", y, alpha) if isinstance(y, Value) else y * alpha
    a, b = _pair(x, y)
    return a.region.emit(op, [a, b], a.kind, a._shape)


def binary_of(op: str) -> Operation:
    """:func:`binary` of one operation."""
    return lambda x, y, **options: binary(op, x, y, **options)


def reflected(operation: Operation) -> Operation:
    """The operation with its operands exchanged."""
    return lambda x, y: operation(y, x)


def float_binary(op: str) -> Operation:
    """A function of two elements that makes floats of whole numbers."""

    def operation(x: Any, y: Any) -> Value:
        region = region_of(x, y)
        kind = region.result_kind([x, y])
        a, b = together([x, y], kind if is_float(kind) else region.library.default_float())
        return region.emit(op, [a, b], a.kind, a._shape)

    return operation


def compare(op: str, x: Any, y: Any) -> Value:
    """A comparison."""
    a, b = _pair(x, y)
    return a.region.emit(op, [a, b], "bool", a._shape)


def compare_of(op: str) -> Operation:
    """:func:`compare` of one operation."""
    return lambda x, y: compare(op, x, y)


def logical_of(op: str) -> Operation:
    """A logical operation, on any types."""

    def operation(x: Any, y: Any) -> Value:
        region = region_of(x, y)
        a, b = same_shape([region.lift(x, "bool"), region.lift(y, "bool")])
        return region.emit(op, [a, b], "bool", a._shape)

    return operation


def divide(x: Any, y: Any, *, rounding_mode: str | None = None) -> Value:
    """A quotient; ``rounding_mode`` as PyTorch's ``div`` has it."""
    if rounding_mode is None:
        return float_binary("div")(x, y)
    if rounding_mode not in ("floor", "trunc"):
        raise refuse(f"rounding_mode {rounding_mode!r}", "use None, 'floor' or 'trunc'")
    a, b = together([x, y])
    if is_float(a.kind):
        quotient = binary("div", a, b)
        return unary("floor", quotient) if rounding_mode == "floor" else truncate(quotient)
    # The compiler's quotient of whole numbers rounds down.
    if rounding_mode == "floor":
        return binary("div", a, b)
    signs = binary("mul", unary("sign", a), unary("sign", b))
    return binary("mul", signs, binary("div", unary("abs", a), unary("abs", b)))


def floor_divide(x: Any, y: Any) -> Value:
    """A quotient rounded down."""
    return divide(x, y, rounding_mode="floor")


def truncate(x: Value) -> Value:
    """``x`` rounded towards zero."""
    if not is_float(x.kind):
        return x
    return where(compare("lt", x, 0), unary("ceil", x), unary("floor", x))


def remainder_of_truncated(x: Any, y: Any) -> Value:
    """C's remainder, with the sign of ``x``."""
    return binary("sub", x, binary("mul", divide(x, y, rounding_mode="trunc"), y))


def power(x: Any, y: Any) -> Value:
    """``x`` to the power of ``y``; small whole powers are products."""
    if isinstance(y, (int, float)) and isinstance(x, Value):
        x = cast(x, x.region.result_kind([x, y]))
        if y == 0.5:
            return unary("sqrt", x)
        whole = isinstance(y, int) and not is_float(x.kind)
        if y in (1, 2, 3) or (whole and 0 <= y <= 64):
            result = x if y > 0 else broadcast(x.region.constant(1, x.kind), x._shape)
            for _ in range(int(y) - 1):
                result = binary("mul", result, x)
            return result
    if isinstance(x, (int, float)) and x == 2 and isinstance(y, Value) and is_float(y.kind):
        return exp2(y)
    return float_binary("pow")(x, y)


def where(condition: Any, x: Any, y: Any) -> Value:
    """``x`` where the condition holds, else ``y``."""
    region = region_of(condition, x, y)
    kind = region.result_kind([x, y])
    operands = same_shape([region.lift(condition, "bool"), region.lift(x, kind), region.lift(y, kind)])
    return region.emit("select", operands, kind, operands[0]._shape)


def clamp(x: Any, min: Any = None, max: Any = None) -> Value:  # noqa: A002
    """``x`` within bounds."""
    if min is not None:
        x = binary("max", x, min)
    if max is not None:
        x = binary("min", x, max)
    return region_of(x).lift(x)


def masked_fill(x: Any, mask: Any, value: Any) -> Value:
    """``x`` with ``value`` where the mask holds."""
    region = region_of(x, mask, value)
    x = region.lift(x)
    return where(mask, region.lift(value, x.kind), x)


def exp2(x: Any) -> Value:
    """2 to the power of ``x``."""
    return unary("exp", binary("mul", region_of(x).lift(x, as_float(x)), math.log(2.0)))


def logarithm(base: float) -> Operation:
    """The logarithm to a base."""
    return lambda x: binary("mul", unary("log", x, as_float(x)), 1 / math.log(base))


def hyperbolic(op: str) -> Operation:
    """(eˣ ± e⁻ˣ) / 2, with ``add`` or ``sub``."""

    def operation(x: Any) -> Value:
        x = region_of(x).lift(x, as_float(x))
        return binary("mul", binary(op, unary("exp", x), unary("exp", unary("neg", x))), 0.5)

    return operation


def round_half_to_even(x: Value, *, decimals: int = 0) -> Value:
    """``x`` rounded to so many decimals."""
    if decimals:
        factor = 10.0**decimals
        return divide(unary("round", binary("mul", x, factor)), factor)
    return unary("round", x) if is_float(x.kind) else x


def whole(op: str) -> Operation:
    """A rounding, which leaves whole numbers as they are."""
    return lambda x: unary(op, x) if is_float(x.kind) else x


def silu(x: Value, inplace: bool = False) -> Value:
    """x · sigmoid(x)."""
    return binary("mul", x, unary("sigmoid", x))


def gelu(x: Value, approximate: str = "none") -> Value:
    """x · Φ(x), or its approximation by a hyperbolic tangent."""
    if approximate == "tanh":
        cube = binary("mul", power(x, 3), 0.044715)
        inner = unary("tanh", binary("mul", binary("add", x, cube), math.sqrt(2 / math.pi)))
    else:
        inner = unary("erf", binary("mul", x, math.sqrt(0.5)))
    return binary("mul", binary("mul", x, 0.5), binary("add", inner, 1))


def softplus(x: Value, beta: float = 1.0, threshold: float = 20.0) -> Value:
    """log(1 + exp(beta · x)) / beta; ``x`` itself beyond the threshold."""
    scaled = binary("mul", x, beta)
    smooth = unary("log1p", unary("exp", clamp(scaled, max=threshold)))
    return where(compare("gt", scaled, threshold), x, divide(smooth, beta))


def log_sigmoid(x: Value) -> Value:
    """log(sigmoid(x))."""
    return unary("neg", softplus(unary("neg", x)))


def leaky_relu(x: Value, negative_slope: float = 0.01, inplace: bool = False) -> Value:
    """``x`` where it is positive, else a part of it."""
    return where(compare("gt", x, 0), x, binary("mul", x, negative_slope))


def elu(x: Value, alpha: float = 1.0, inplace: bool = False) -> Value:
    """``x`` where it is positive, else α (eˣ − 1)."""
    # The other side's exponential must not overflow: its gradient would be no number.
    return where(compare("gt", x, 0), x, binary("mul", unary("expm1", binary("min", x, 0)), alpha))


def log_add_exp(x: Any, y: Any) -> Value:
    """log(exp(x) + exp(y)), also where both are the same infinity."""
    top, bottom = binary("max", x, y), binary("min", x, y)
    difference = where(compare("eq", top, bottom), 0.0, binary("sub", bottom, top))
    return binary("add", top, unary("log1p", unary("exp", difference)))


def filled(region: Region, value: Number, kind: str, shape: Sequence[int]) -> Value:
    """An array that holds one number everywhere."""
    return broadcast(region.constant(value, kind), tuple(shape))
