"""Which operation a function of PyTorch or NumPy is, by its name. Reflected operators are there by the names that
PyTorch hands over."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tilewright._errors import TraceError
from tilewright._trace import arrays, bits, elementwise, indexing
from tilewright._trace.elementwise import (
    Operation,
    binary_of,
    broadcast,
    cast,
    compare_of,
    divide,
    filled,
    float_binary,
    float_unary,
    floor_divide,
    logical_of,
    power,
    reflected,
    unary,
    whole,
)
from tilewright._trace.region import Region, Value, refuse, region_of


def _filled_like(number: int | None) -> Callable[..., Value]:
    def operation(x: Value, fill_value: Any = None, *, dtype: Any = None, **_: Any) -> Value:
        kind = x.kind if dtype is None else _kind(x.region, dtype)
        return filled(x.region, fill_value if number is None else number, kind, x._shape)

    return operation


def _filled_new(number: int | None) -> Callable[..., Value]:
    def operation(x: Value, size: Any, fill_value: Any = None, *, dtype: Any = None, **_: Any) -> Value:
        kind = x.kind if dtype is None else _kind(x.region, dtype)
        extents = (size,) if isinstance(size, int) else tuple(size)
        return filled(x.region, fill_value if number is None else number, kind, extents)

    return operation


def _new_tensor(x: Value, value: Any, dtype: Any = None, **_: Any) -> Value:
    return x.region.lift(value, x.kind if dtype is None else _kind(x.region, dtype))


def _kind(region: Region, dtype: object) -> str:
    kind = region.library.parse_kind(dtype)
    if kind is None:
        raise refuse(f"{dtype!r} as an element type", "name one of the library's float, integer or bool types")
    return kind


def _to(x: Value, *args: Any, **kwargs: Any) -> Value:
    library = x.region.library
    for argument in (*args, *kwargs.values()):
        if isinstance(argument, Value) or library.is_array(argument):
            return cast(x, x.region.kind_of(argument))
        kind = library.parse_kind(argument)
        if kind is not None:
            return cast(x, kind)
    return x


def _to_kind(kind: str) -> Callable[..., Value]:
    return lambda x, **_: cast(x, kind)


def _same(x: Value, **_: Any) -> Value:
    return x


def _is_infinite(x: Value) -> Value:
    return elementwise.compare("eq", unary("abs", x), math.inf)


def _clamp_min(x: Value, min: Any) -> Value:  # noqa: A002
    return elementwise.clamp(x, min=min)


def _clamp_max(x: Value, max: Any) -> Value:  # noqa: A002
    return elementwise.clamp(x, max=max)


def _relu(x: Value, inplace: bool = False) -> Value:
    return elementwise.clamp(x, min=0)


def _is_in(x: Any, among: Any) -> Value:
    region = region_of(x, among)
    each = arrays.reshape(region.lift(among), -1)
    return arrays.reduce("max", elementwise.compare("eq", arrays.unsqueeze(region.lift(x), -1), each), -1)


def _linear(x: Any, weight: Any, bias: Any = None) -> Value:
    product = arrays.matmul(x, arrays.transpose(region_of(x, weight).lift(weight), -1, -2))
    return product if bias is None else elementwise.binary("add", product, bias)


def _embedding(indices: Any, weight: Any, *_options: Any, **_named: Any) -> Value:
    return indexing.index(weight, indices)


_ADD, _SUB, _MUL, _REM = (binary_of(op) for op in ("add", "sub", "mul", "rem"))
_AND, _OR, _XOR = (binary_of(op) for op in ("and", "or", "xor"))

OPERATIONS: dict[str, Operation] = {
    **{name: float_unary(name) for name in (
        "exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "sin", "cos", "tan", "tanh", "sigmoid", "erf",
    )},
    "exp2": elementwise.exp2, "log2": elementwise.logarithm(2), "log10": elementwise.logarithm(10),
    "sinh": elementwise.hyperbolic("sub"), "cosh": elementwise.hyperbolic("add"),
    "erfc": lambda x: elementwise.binary("sub", 1, unary("erf", x, elementwise.as_float(x))),
    "expit": float_unary("sigmoid"), "arctan2": float_binary("atan2"), "atan2": float_binary("atan2"),
    "logaddexp": elementwise.log_add_exp,

    **{name: compare_of(name) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    "equal": compare_of("eq"), "not_equal": compare_of("ne"), "greater": compare_of("gt"),
    "greater_equal": compare_of("ge"), "less": compare_of("lt"), "less_equal": compare_of("le"),
    "isnan": lambda x: elementwise.compare("ne", x, x), "isinf": _is_infinite,
    "isfinite": lambda x: elementwise.compare("lt", unary("abs", x), math.inf), "isin": _is_in,

    "logical_and": logical_of("and"), "logical_or": logical_of("or"), "logical_xor": logical_of("xor"),
    "logical_not": lambda x: unary("not", x, "bool"),
    "bitwise_not": lambda x: unary("not", x), "invert": lambda x: unary("not", x),
    "bitwise_and": _AND, "bitwise_or": _OR, "bitwise_xor": _XOR, "and": _AND, "or": _OR, "xor": _XOR,
    "rand": reflected(_AND), "ror": reflected(_OR), "rxor": reflected(_XOR),
    "bitwise_left_shift": bits.left_shift, "lshift": bits.left_shift, "left_shift": bits.left_shift,
    "bitwise_right_shift": bits.right_shift, "rshift": bits.right_shift, "right_shift": bits.right_shift,
    "rlshift": reflected(bits.left_shift), "rrshift": reflected(bits.right_shift),

    "add": _ADD, "radd": reflected(_ADD), "sub": _SUB, "subtract": _SUB,
    "rsub": lambda x, y, alpha=1: elementwise.binary("sub", y, x, alpha=alpha),
    "mul": _MUL, "multiply": _MUL, "rmul": reflected(_MUL),
    "div": divide, "divide": divide, "true_divide": divide, "truediv": divide,
    "rdiv": reflected(divide), "rtruediv": reflected(divide),
    "floor_divide": floor_divide, "floordiv": floor_divide, "rfloordiv": reflected(floor_divide),
    "remainder": _REM, "mod": _REM, "rmod": reflected(_REM), "fmod": elementwise.remainder_of_truncated,
    "pow": power, "power": power, "rpow": reflected(power), "float_power": power,
    "square": lambda x: power(x, 2), "reciprocal": lambda x: divide(1.0, x),
    "neg": lambda x: unary("neg", x), "negative": lambda x: unary("neg", x), "positive": _same,
    "abs": lambda x: unary("abs", x), "absolute": lambda x: unary("abs", x),
    "sign": lambda x: unary("sign", x), "sgn": lambda x: unary("sign", x),
    "floor": whole("floor"), "ceil": whole("ceil"), "round": elementwise.round_half_to_even,
    "rint": elementwise.round_half_to_even, "trunc": elementwise.truncate, "fix": elementwise.truncate,
    "maximum": binary_of("max"), "minimum": binary_of("min"), "fmax": binary_of("max"), "fmin": binary_of("min"),
    "clamp": elementwise.clamp, "clip": elementwise.clamp, "clamp_min": _clamp_min, "clamp_max": _clamp_max,
    "where": elementwise.where, "masked_fill": elementwise.masked_fill,
    "relu": _relu, "silu": elementwise.silu, "gelu": elementwise.gelu, "softplus": elementwise.softplus,
    "logsigmoid": elementwise.log_sigmoid, "log_sigmoid": elementwise.log_sigmoid,
    "leaky_relu": elementwise.leaky_relu, "elu": elementwise.elu,
    "linear": _linear, "embedding": _embedding,

    "max": arrays.extremum("max"), "min": arrays.extremum("min"),
    "amax": arrays.reduce_of("max"), "amin": arrays.reduce_of("min"), "prod": arrays.reduce_of("prod"),
    "sum": arrays.sum_of, "mean": arrays.mean, "any": arrays.truth_of("max"), "all": arrays.truth_of("min"),
    "softmax": arrays.softmax,
    **{name: arrays.matmul for name in ("dot", "matmul", "mm", "bmm", "mv", "vdot", "inner")},
    "rmatmul": reflected(arrays.matmul), "einsum": arrays.einsum,

    "reshape": arrays.reshape, "view": arrays.reshape, "flatten": lambda x: arrays.reshape(x, -1),
    "ravel": lambda x: arrays.reshape(x, -1),
    "permute": arrays.permute, "transpose": arrays.transpose, "swapaxes": arrays.transpose,
    "t": lambda x: arrays.transpose(x, 0, 1), "unsqueeze": arrays.unsqueeze, "expand_dims": arrays.unsqueeze,
    "squeeze": arrays.squeeze, "expand": arrays.expand, "broadcast_to": arrays.expand,
    "expand_as": lambda x, other: broadcast(x, tuple(other.shape)),
    "cat": arrays.concatenate, "concat": arrays.concatenate, "concatenate": arrays.concatenate, "stack": arrays.stack,
    "index": indexing.index_list, "flex_index": indexing.index_list, "getitem": indexing.index, "select": indexing.select,

    "zeros_like": _filled_like(0), "ones_like": _filled_like(1), "full_like": _filled_like(None),
    "new_zeros": _filled_new(0), "new_ones": _filled_new(1), "new_full": _filled_new(None), "new_tensor": _new_tensor,
    "to": _to, "type": _to, "type_as": _to, "astype": _to, "_to_copy": _to, "convert_element_type": _to,
    "float": _to_kind("f32"), "double": _to_kind("f64"), "half": _to_kind("f16"), "bfloat16": _to_kind("bf16"),
    "int": _to_kind("i32"), "long": _to_kind("i64"), "bool": _to_kind("bool"),
    "clone": _same, "copy": _same, "contiguous": _same, "alias": _same, "scalar_tensor": _same,
    "detach": lambda x: unary("stop_gradient", x), "stop_gradient": lambda x: unary("stop_gradient", x),
}  # fmt: skip

#: NumPy's names of keyword arguments, which PyTorch takes as well.
_KEYWORDS = {"axis": "dim", "keepdims": "keepdim", "a_min": "min", "a_max": "max"}


def operation(name: str) -> Operation | None:
    """The operation of a name; dunder names stand for their operators."""
    return OPERATIONS.get(name) or OPERATIONS.get(name.strip("_"))


def record(operation: Operation | None, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    """Records a call of a library's function; raises ``TraceError`` for one that has no counterpart."""
    if operation is None:
        raise refuse(
            f"{name} cannot be traced inside a score function, mask or combine",
            "write it with arithmetic, `where`, comparisons and element-wise functions, or compute it before the call",
        )
    try:
        return operation(*args, **{_KEYWORDS.get(key, key): value for key, value in kwargs.items()})
    except TypeError as error:
        if isinstance(error, TraceError):
            raise
        raise refuse(f"{name}: {error}", "call it as its documentation says") from error
