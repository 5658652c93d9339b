"""Traced values: user functions run once on them and leave the text of a region.

A :class:`Traced` stands for a value inside a score function, mask or combine. It takes part in PyTorch's
``__torch_function__`` protocol, so that operators, methods and functions of ``torch`` that are given one are recorded
instead of run. Everything that is not given one runs as it always does. A real tensor met on the way becomes a
*capture*: an operand of the operation, and a parameter of the region.

The text is that of the compiler's intermediate representation. A capture's type is written ``$n``, filled in by
the shapes of each call, so that one text serves every length.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from tilewright._errors import TraceError

Number: TypeAlias = "bool | int | float"
Operand: TypeAlias = "Traced | Tensor | bool | int | float"

_NAMES: dict[torch.dtype, str] = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.bfloat16: "bf16",
    torch.float16: "f16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.uint8: "u8",
    torch.bool: "bool",
}

#: Types that the compiler has no name for, held as the next wider one.
_WIDENED: dict[torch.dtype, torch.dtype] = {torch.int8: torch.int32, torch.int16: torch.int32}


def dtype_name(dtype: torch.dtype) -> str:
    """The compiler's name of an element type; raises :class:`TraceError` where it has none."""
    name = _NAMES.get(_WIDENED.get(dtype, dtype))
    if name is None:
        raise TraceError(f"element type {dtype} is not supported; convert the tensor first")
    return name


def type_text(dtype: torch.dtype, shape: Sequence[int]) -> str:
    """A type as the compiler writes it: ``f32[2, 3]``."""
    return f"{dtype_name(dtype)}{list(shape)}"


#: Operations whose text must say the type of the result.
_TYPED = frozenset(("cast", "broadcast", "reshape"))


#: Truth values, whole numbers, floats: PyTorch's promotion goes by these first.
_CATEGORIES: dict[torch.dtype, int] = {
    dtype: 2 if dtype.is_floating_point else 0 if dtype == torch.bool else 1 for dtype in (*_NAMES, *_WIDENED)
}
_NUMBERS: dict[type, int] = {bool: 0, int: 1, float: 2}


def _user_frame() -> tuple[str, int]:
    """File and line of the innermost frame that is neither this package's nor PyTorch's."""
    frame = sys._getframe(2)
    while frame.f_globals.get("__name__", "").startswith(("tilewright.", "torch.")) and frame.f_back is not None:
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


def user_line() -> str:
    """``file:line`` of the user's code that is running."""
    file, line = _user_frame()
    return f"{file}:{line}"


@functools.lru_cache(maxsize=4096)
def _origin(file: str, line: int) -> str:
    file = file.replace("\\", "\\\\").replace('"', '\\"')
    return f'@ "{file}":{line}:0'


def _refuse(what: str, instead: str) -> TraceError:
    return TraceError(f"{what}\n  --> {user_line()}\n   = help: {instead}")


class Region:
    """The text of a region as it is written, line by line, and what it captures."""

    def __init__(self, captures: list[Tensor]) -> None:
        self.captures = captures
        self.lines: list[str] = []
        self._count = 0
        self._constants: dict[tuple[torch.dtype, str], Traced] = {}
        self._seen: dict[int, Traced] = {}

    def fresh(self, dtype: torch.dtype, shape: tuple[int, ...] = ()) -> Traced:
        """A new value, not yet defined."""
        self._count += 1
        return Traced(self, f"%{self._count}", dtype, shape)

    def emit(
        self, op: str, operands: Sequence[Traced], dtype: torch.dtype, shape: tuple[int, ...], attributes: str = ""
    ) -> Traced:
        """Writes one operation and gives its result."""
        result = self.fresh(dtype, shape)
        names = ", ".join([operand.name for operand in operands])
        typed = f": {type_text(dtype, shape)}" if op in _TYPED else ""
        self.lines.append(f"{result.name}{typed} = {op} {names} {attributes}")
        return result

    def constant(self, value: Number, dtype: torch.dtype) -> Traced:
        """A rank-0 constant."""
        text = _literal(value, dtype)
        known = self._constants.get((dtype, text))
        if known is None:
            known = self.fresh(dtype)
            self.lines.append(f"{known.name}: {dtype_name(dtype)}[] = constant {text}")
            self._constants[dtype, text] = known
        return known

    def capture(self, tensor: Tensor) -> Traced:
        """The region's parameter that stands for a tensor from outside."""
        known = self._seen.get(id(tensor))
        if known is None:
            number = next((i for i, other in enumerate(self.captures) if other is tensor), len(self.captures))
            if number == len(self.captures):
                dtype_name(tensor.dtype)
                self.captures.append(tensor)
            dtype = _WIDENED.get(tensor.dtype, tensor.dtype)
            known = Traced(self, f"%c{number}", dtype, tuple(tensor.shape))
            self._seen[id(tensor)] = known
        return known


def _literal(value: Number, dtype: torch.dtype) -> str:
    if dtype == torch.bool:
        return "true" if value else "false"
    if not dtype.is_floating_point:
        return str(int(value))
    number = float(value)
    if math.isnan(number):
        return "nan"
    if math.isinf(number):
        return "inf" if number > 0 else "-inf"
    return repr(number)


class Traced:
    """A value inside a traced function. It behaves like a tensor, but holds no number."""

    __slots__ = ("_shape", "dtype", "name", "region")

    def __init__(self, region: Region, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        self.region = region
        self.name = name
        self.dtype = dtype
        self._shape = shape

    @property
    def shape(self) -> torch.Size:
        """The extent of each axis."""
        return torch.Size(self._shape)

    @property
    def ndim(self) -> int:
        """How many axes it has."""
        return len(self._shape)

    @property
    def device(self) -> torch.device:
        """Where the value would be."""
        return torch.device("cpu")

    @property
    def requires_grad(self) -> bool:
        """Always false: differentiation is the compiler's."""
        return False

    @property
    def T(self) -> Traced:  # noqa: N802
        """The transposed matrix."""
        return _permute(self, tuple(reversed(range(self.ndim))))

    @property
    def mT(self) -> Traced:  # noqa: N802
        """The last two axes exchanged."""
        return _transpose(self, -1, -2)

    def dim(self) -> int:
        """How many axes it has."""
        return self.ndim

    def size(self, dim: int | None = None) -> Any:
        """The extent of every axis, or of one."""
        return self.shape if dim is None else self.shape[dim]

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return record(func, args, dict(kwargs or {}))

    def __getattr__(self, name: str) -> Any:
        operation = OPERATIONS.get(name)
        if operation is None or name.startswith("__"):
            raise AttributeError(
                f"a value inside a traced function has no attribute {name!r} (at {user_line()}); "
                "see tilewright.torch's documentation for what can be traced"
            )
        bound = operation

        def method(*args: Any, **kwargs: Any) -> Any:
            return bound(self, *args, **kwargs)

        return method

    def __bool__(self) -> bool:
        raise _refuse(
            "a value inside a traced function has no truth value yet, so `if`, `and`, `or`, `not` cannot ask for it",
            "use torch.where(condition, x, y) instead of `if`, and &, |, ~ instead of `and`, `or`, `not`",
        )

    def _no_number(self, function: str) -> TraceError:
        return _refuse(
            f"a value inside a traced function holds no number yet, so {function} cannot ask for one",
            "keep it a tensor: torch functions and operators take it as it is",
        )

    def __int__(self) -> int:
        raise self._no_number("int()")

    def __float__(self) -> float:
        raise self._no_number("float()")

    def __index__(self) -> int:
        raise self._no_number("range() or a list's index")

    def __len__(self) -> int:
        if not self._shape:
            raise self._no_number("len()")
        return self._shape[0]

    def __iter__(self) -> Any:
        if not self._shape:
            raise self._no_number("iteration")
        return (self[i] for i in range(self._shape[0]))

    def item(self) -> float:
        """Refused: there is no number yet."""
        raise self._no_number(".item()")

    def __repr__(self) -> str:
        return f"Traced({self.name}, {self.dtype}, {list(self._shape)})"

    def __hash__(self) -> int:
        return id(self)

    def __getitem__(self, index: Any) -> Traced:
        return index_array(self, index)

    def __add__(self, other: Operand) -> Traced:
        return _binary("add", self, other)

    def __radd__(self, other: Operand) -> Traced:
        return _binary("add", other, self)

    def __sub__(self, other: Operand) -> Traced:
        return _binary("sub", self, other)

    def __rsub__(self, other: Operand) -> Traced:
        return _binary("sub", other, self)

    def __mul__(self, other: Operand) -> Traced:
        return _binary("mul", self, other)

    def __rmul__(self, other: Operand) -> Traced:
        return _binary("mul", other, self)

    def __truediv__(self, other: Operand) -> Traced:
        return _divide(self, other)

    def __rtruediv__(self, other: Operand) -> Traced:
        return _divide(other, self)

    def __floordiv__(self, other: Operand) -> Traced:
        return _divide(self, other, rounding_mode="floor")

    def __rfloordiv__(self, other: Operand) -> Traced:
        return _divide(other, self, rounding_mode="floor")

    def __mod__(self, other: Operand) -> Traced:
        return _binary("rem", self, other)

    def __rmod__(self, other: Operand) -> Traced:
        return _binary("rem", other, self)

    def __pow__(self, other: Operand) -> Traced:
        return _power(self, other)

    def __rpow__(self, other: Operand) -> Traced:
        return _power(other, self)

    def __matmul__(self, other: Operand) -> Traced:
        return _matmul(self, other)

    def __rmatmul__(self, other: Operand) -> Traced:
        return _matmul(other, self)

    def __neg__(self) -> Traced:
        return _unary("neg", self)

    def __pos__(self) -> Traced:
        return self

    def __abs__(self) -> Traced:
        return _unary("abs", self)

    def __invert__(self) -> Traced:
        return _unary("not", self)

    def __and__(self, other: Operand) -> Traced:
        return _binary("and", self, other)

    def __rand__(self, other: Operand) -> Traced:
        return _binary("and", other, self)

    def __or__(self, other: Operand) -> Traced:
        return _binary("or", self, other)

    def __ror__(self, other: Operand) -> Traced:
        return _binary("or", other, self)

    def __xor__(self, other: Operand) -> Traced:
        return _binary("xor", self, other)

    def __rxor__(self, other: Operand) -> Traced:
        return _binary("xor", other, self)

    def __eq__(self, other: object) -> Any:
        return _compare("eq", self, cast(Operand, other))

    def __ne__(self, other: object) -> Any:
        return _compare("ne", self, cast(Operand, other))

    def __lt__(self, other: Operand) -> Traced:
        return _compare("lt", self, other)

    def __le__(self, other: Operand) -> Traced:
        return _compare("le", self, other)

    def __gt__(self, other: Operand) -> Traced:
        return _compare("gt", self, other)

    def __ge__(self, other: Operand) -> Traced:
        return _compare("ge", self, other)


def _name(func: Callable[..., Any]) -> str:
    return str(getattr(getattr(func, "overloadpacket", func), "__name__", func))


@functools.lru_cache(maxsize=1024)
def _operation(func: Callable[..., Any]) -> Callable[..., Any] | None:
    name = _name(func)
    return OPERATIONS.get(name) or OPERATIONS.get(name.strip("_"))


def record(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Records a call of a function of PyTorch; raises :class:`TraceError` for one that has no counterpart."""
    operation = _operation(func)
    if operation is None:
        raise _refuse(
            f"torch.{_name(func)} cannot be traced inside a score function, mask or combine",
            "write it with arithmetic, torch.where, comparisons and element-wise functions, or compute it before the call",
        )
    try:
        return operation(*args, **kwargs)
    except TypeError as error:
        raise _refuse(f"torch.{_name(func)}: {error}", "call it as PyTorch's documentation of the function says") from error


def _region(*values: Any) -> Region:
    for value in values:
        if isinstance(value, Traced):
            return value.region
        if isinstance(value, (tuple, list)):
            for inner in value:
                if isinstance(inner, Traced):
                    return inner.region
    raise TypeError("no traced value among the arguments")


def _is_number(value: object) -> bool:
    return isinstance(value, (bool, int, float))


def _number_dtype(value: Number, other: torch.dtype) -> torch.dtype:
    """The type that a Python number takes beside a tensor of type ``other``, by PyTorch's promotion."""
    category = 0 if isinstance(value, bool) else 1 if isinstance(value, int) else 2
    if category <= _CATEGORIES.get(other, 2):
        return other
    return torch.get_default_dtype() if category == 2 else torch.int64


def _result_type(values: Sequence[Any]) -> torch.dtype:
    """PyTorch's promotion: by category, and in a category arrays come before rank-0 values, those before numbers."""
    best: list[torch.dtype | None] = [None, None]
    for value in values:
        if isinstance(value, (Traced, Tensor)):
            level = 0 if value.ndim > 0 else 1
            dtype = _WIDENED.get(value.dtype, value.dtype)
            known = best[level]
            best[level] = dtype if known is None else torch.promote_types(known, dtype)
    arrays, scalars = best
    if arrays is None:
        result = scalars
    elif scalars is None or _CATEGORIES.get(scalars, 2) <= _CATEGORIES.get(arrays, 2):
        result = arrays
    else:
        result = torch.promote_types(arrays, scalars)
    assert result is not None
    for value in values:
        if _is_number(value):
            result = _number_dtype(value, result)
    return result


def lift(region: Region, value: Any, dtype: torch.dtype | None = None) -> Traced:
    """A traced value, tensor or number as a value of the region, converted to ``dtype`` where one is given."""
    if isinstance(value, Traced):
        traced = value
        if traced.region is not region:
            raise _refuse(
                "a value of one traced function is used inside another",
                "return it from its own function; only tensors may be captured",
            )
    elif isinstance(value, Tensor):
        traced = region.capture(value)
    elif _is_number(value):
        number_type = torch.int64 if isinstance(value, int) else torch.get_default_dtype()
        return region.constant(value, dtype or (torch.bool if isinstance(value, bool) else number_type))
    else:
        raise TypeError(f"a {type(value).__name__} is no tensor or number")
    return traced if dtype is None else _cast(traced, dtype)


def _cast(x: Traced, dtype: torch.dtype) -> Traced:
    dtype = _WIDENED.get(dtype, dtype)
    if x.dtype == dtype:
        return x
    return x.region.emit("cast", [x], dtype, x._shape)


def _broadcast(x: Traced, shape: tuple[int, ...]) -> Traced:
    if x._shape == shape:
        return x
    axes = list(range(len(shape) - x.ndim, len(shape)))
    return x.region.emit("broadcast", [x], x.dtype, shape, f"axes={axes}")


def _together(values: Sequence[Any], dtype: torch.dtype | None = None) -> list[Traced]:
    """The values as arrays of one type and shape."""
    region = _region(*values)
    dtype = dtype or _result_type(values)
    return _same_shape([lift(region, value, dtype) for value in values])


def _pair(x: Any, y: Any) -> list[Traced]:
    """Two values as arrays of one type and shape: the common cases in few steps, since tracing runs in each call."""
    if type(x) is Traced:
        if type(y) is Traced:
            if x.dtype is y.dtype and x._shape == y._shape and x.region is y.region:
                return [x, y]
        elif not x._shape and (type(y) is int or type(y) is float) and _NUMBERS[type(y)] <= _CATEGORIES[x.dtype]:
            return [x, x.region.constant(y, x.dtype)]
    return _together([x, y])


def _common(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape that all broadcast to."""
    rank = max(len(shape) for shape in shapes)
    common = [1] * rank
    for shape in shapes:
        for axis, extent in enumerate(shape, rank - len(shape)):
            if extent != 1:
                if common[axis] not in (1, extent):
                    raise TypeError(f"shapes {' and '.join(str(list(s)) for s in shapes)} do not broadcast together")
                common[axis] = extent
    return tuple(common)


def _same_shape(values: list[Traced]) -> list[Traced]:
    first = values[0]._shape
    if all(value._shape == first for value in values):
        return values
    shape = _common([value._shape for value in values])
    return [_broadcast(value, shape) for value in values]


def _unary(op: str, x: Any, dtype: torch.dtype | None = None) -> Traced:
    region = _region(x)
    x = lift(region, x, dtype)
    return region.emit(op, [x], x.dtype, x._shape)


def _float(x: Any) -> torch.dtype:
    dtype: torch.dtype = x.dtype
    return dtype if dtype.is_floating_point else torch.get_default_dtype()


def _float_unary(op: str) -> Callable[..., Traced]:
    def operation(x: Any, *, out: None = None) -> Traced:
        return _unary(op, x, _float(x))

    return operation


def _binary(op: str, x: Any, y: Any, *, alpha: Number = 1) -> Traced:
    if alpha != 1:
        y = _binary("mul", y, alpha) if isinstance(y, Traced) else y * alpha
    a, b = _pair(x, y)
    return a.region.emit(op, [a, b], a.dtype, a._shape)


def _binary_of(op: str) -> Callable[..., Traced]:
    def operation(x: Any, y: Any, **options: Any) -> Traced:
        return _binary(op, x, y, **options)

    return operation


def _float_binary(op: str) -> Callable[..., Traced]:
    def operation(x: Any, y: Any) -> Traced:
        dtype = _result_type([x, y])
        a, b = _together([x, y], dtype if dtype.is_floating_point else torch.get_default_dtype())
        return a.region.emit(op, [a, b], a.dtype, a._shape)

    return operation


def _compare(op: str, x: Any, y: Any) -> Traced:
    a, b = _pair(x, y)
    return a.region.emit(op, [a, b], torch.bool, a._shape)


def _compare_of(op: str) -> Callable[..., Traced]:
    return lambda x, y: _compare(op, x, y)


def _logical_of(op: str) -> Callable[..., Traced]:
    def operation(x: Any, y: Any) -> Traced:
        a, b = _together([_truth(x), _truth(y)])
        return a.region.emit(op, [a, b], torch.bool, a._shape)

    return operation


def _truth(x: Any) -> Any:
    return _cast(x, torch.bool) if isinstance(x, Traced) else x.bool() if isinstance(x, Tensor) else bool(x)


def _logical_not(x: Traced) -> Traced:
    return _unary("not", x, torch.bool)


def _divide(x: Any, y: Any, *, rounding_mode: str | None = None) -> Traced:
    dtype = _result_type([x, y])
    if rounding_mode is None:
        return _float_binary("div")(x, y)
    if rounding_mode == "floor":
        quotient = _binary("div", x, y)
        return _unary("floor", quotient) if dtype.is_floating_point else quotient
    if rounding_mode != "trunc":
        raise TypeError(f"rounding_mode {rounding_mode!r} is not None, 'floor' or 'trunc'")
    if dtype.is_floating_point:
        return _truncate(_binary("div", x, y))
    a, b = _together([x, y])
    return _unary("sign", a) * _unary("sign", b) * _divide(_unary("abs", a), _unary("abs", b), rounding_mode="floor")


def _truncate(x: Traced) -> Traced:
    return _where(x < 0, _unary("ceil", x), _unary("floor", x)) if x.dtype.is_floating_point else x


def _remainder_of_truncated(x: Any, y: Any) -> Traced:
    return _binary("sub", x, _binary("mul", _divide(x, y, rounding_mode="trunc"), y))


def _power(x: Any, y: Any) -> Traced:
    if isinstance(y, (int, float)) and not isinstance(y, bool) and isinstance(x, Traced):
        if y == 1:
            return x
        if y == 2:
            return x * x
        if y == 3:
            return x * x * x
        if y == 0.5:
            return _unary("sqrt", x, _float(x))
        if isinstance(y, int) and 0 <= y <= 64 and not x.dtype.is_floating_point:
            result = x.region.constant(1, x.dtype)
            for _ in range(y):
                result = result * x
            return result
    if isinstance(x, (int, float)) and x == 2 and isinstance(y, Traced) and y.dtype.is_floating_point:
        return _unary("exp", y * math.log(2.0))
    return _float_binary("pow")(x, y)


def _where(condition: Any, x: Any, y: Any) -> Traced:
    region = _region(condition, x, y)
    dtype = _result_type([x, y]) if not (_is_number(x) and _is_number(y)) else None
    if dtype is None:
        both_int = isinstance(x, int) and isinstance(y, int)
        both_bool = isinstance(x, bool) and isinstance(y, bool)
        dtype = torch.bool if both_bool else torch.int64 if both_int else torch.get_default_dtype()
    operands = _same_shape([lift(region, condition, torch.bool), lift(region, x, dtype), lift(region, y, dtype)])
    return region.emit("select", operands, dtype, operands[0]._shape)


def _clamp(x: Any, min: Any = None, max: Any = None) -> Traced:  # noqa: A002
    if min is not None:
        x = _binary("max", x, min)
    if max is not None:
        x = _binary("min", x, max)
    return cast(Traced, x)


def _masked_fill(x: Any, mask: Any, value: Any) -> Traced:
    region = _region(x, mask, value)
    x = lift(region, x)
    return _where(mask, lift(region, value, x.dtype), x)


def _extremum(op: str) -> Callable[..., Traced]:
    def operation(x: Any, other: Any = None, *, dim: Any = None, keepdim: bool = False) -> Traced:
        if isinstance(other, (Traced, Tensor)):
            return _binary(op, x, other)
        return _reduce(op, x, other if dim is None else dim, keepdim)

    return operation


def _axes(x: Traced, dim: Any) -> list[int]:
    if dim is None:
        return list(range(x.ndim))
    dims = [dim] if isinstance(dim, int) else list(dim)
    return sorted(d % x.ndim for d in dims)


def _reduce(op: str, x: Any, dim: Any = None, keepdim: bool = False) -> Traced:
    axes = _axes(x, dim)
    shape = tuple(extent for i, extent in enumerate(x._shape) if i not in axes)
    result: Traced = x.region.emit(f"reduce_{op}", [x], x.dtype, shape, f"axes={axes}")
    if keepdim:
        result = _reshape(result, tuple(1 if i in axes else extent for i, extent in enumerate(x._shape)))
    return result


def _sum(x: Any, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Traced:
    wanted = dtype or (x.dtype if x.dtype.is_floating_point else torch.int64)
    return _reduce("sum", _cast(x, wanted), dim, keepdim)


def _mean(x: Any, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Traced:
    count = math.prod(x._shape[axis] for axis in _axes(x, dim))
    return _divide(_sum(x, dim, keepdim, dtype=dtype), count)


def _prod(x: Any, dim: Any = None, keepdim: bool = False) -> Traced:
    return _reduce("prod", x, dim, keepdim)


def _any(x: Any, dim: Any = None, keepdim: bool = False) -> Traced:
    return _reduce("max", _truth(x), dim, keepdim)


def _all(x: Any, dim: Any = None, keepdim: bool = False) -> Traced:
    return _reduce("min", _truth(x), dim, keepdim)


def _matmul(x: Any, y: Any) -> Traced:
    region = _region(x, y)
    dtype = _result_type([x, y])
    a, b = lift(region, x, dtype), lift(region, y, dtype)
    if a.ndim == 0 or b.ndim == 0:
        raise TypeError("both operands need at least one axis")
    if b.ndim == 1:
        batch: tuple[int, ...] = ()
        axes = f"left_contract=[{a.ndim - 1}] right_contract=[0]"
        return region.emit("dot", [a, b], dtype, a._shape[:-1], f"left_batch=[] right_batch=[] {axes}")
    if a.ndim == 1:
        return _matmul(_transpose(b, -1, -2), a)
    batch = _common([a._shape[:-2], b._shape[:-2]])
    a, b = _broadcast(a, batch + a._shape[-2:]), _broadcast(b, batch + b._shape[-2:])
    n = len(batch)
    leading = list(range(n))
    attributes = f"left_batch={leading} right_batch={leading} left_contract=[{n + 1}] right_contract=[{n}]"
    return region.emit("dot", [a, b], dtype, (*batch, a._shape[-2], b._shape[-1]), attributes)


def _reshape(x: Traced, *shape: Any) -> Traced:
    extents = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list, torch.Size)) else tuple(shape)
    if -1 in extents:
        rest = math.prod(extent for extent in extents if extent != -1)
        extents = tuple(math.prod(x._shape) // max(rest, 1) if extent == -1 else extent for extent in extents)
    if extents == x._shape:
        return x
    return x.region.emit("reshape", [x], x.dtype, extents)


def _permute(x: Traced, *dims: Any) -> Traced:
    order = tuple(dims[0]) if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else tuple(dims)
    order = tuple(d % x.ndim for d in order)
    if order == tuple(range(x.ndim)):
        return x
    shape = tuple(x._shape[d] for d in order)
    return x.region.emit("transpose", [x], x.dtype, shape, f"permutation={list(order)}")


def _transpose(x: Traced, first: int, second: int) -> Traced:
    order = list(range(x.ndim))
    order[first], order[second] = order[second], order[first]
    return _permute(x, order)


def _unsqueeze(x: Traced, dim: int) -> Traced:
    position = dim % (x.ndim + 1)
    return _reshape(x, (*x._shape[:position], 1, *x._shape[position:]))


def _squeeze(x: Traced, dim: int | None = None) -> Traced:
    drop = [i for i, extent in enumerate(x._shape) if extent == 1 and (dim is None or i == dim % x.ndim)]
    return _reshape(x, tuple(extent for i, extent in enumerate(x._shape) if i not in drop))


def _expand(x: Traced, *shape: Any) -> Traced:
    extents = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list, torch.Size)) else tuple(shape)
    missing = len(extents) - x.ndim
    return _broadcast(x, tuple(x._shape[i - missing] if e == -1 else e for i, e in enumerate(extents)))


def _concatenate(tensors: Sequence[Any], dim: int = 0) -> Traced:
    region = _region(tensors)
    dtype = _result_type(tensors)
    lifted = [lift(region, tensor, dtype) for tensor in tensors]
    axis = dim % lifted[0].ndim
    shape = list(lifted[0]._shape)
    shape[axis] = sum(tensor._shape[axis] for tensor in lifted)
    return region.emit("concatenate", lifted, dtype, tuple(shape), f"axis={axis}")


def _stack(tensors: Sequence[Any], dim: int = 0) -> Traced:
    region = _region(tensors)
    return _concatenate([_unsqueeze(lift(region, tensor), dim) for tensor in tensors], dim)


def _full_like(x: Traced, value: Number, dtype: torch.dtype | None) -> Traced:
    return _broadcast(x.region.constant(value, dtype or x.dtype), x._shape)


def _to(x: Traced, *args: Any, **kwargs: Any) -> Traced:
    for argument in (*args, *kwargs.values()):
        if isinstance(argument, torch.dtype):
            return _cast(x, argument)
        if isinstance(argument, (Tensor, Traced)):
            return _cast(x, argument.dtype)
    return x


def _type(dtype: torch.dtype) -> Callable[..., Traced]:
    return lambda x, **_: _cast(x, dtype)


def _round(x: Traced, *, decimals: int = 0) -> Traced:
    if decimals:
        factor = 10.0**decimals
        return _unary("round", x * factor) / factor
    return _unary("round", x) if x.dtype.is_floating_point else x


def _whole(op: str) -> Callable[..., Traced]:
    return lambda x: _unary(op, x) if x.dtype.is_floating_point else x


def _gelu(x: Traced, approximate: str = "none") -> Traced:
    if approximate == "tanh":
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)
        return 0.5 * x * (1 + _unary("tanh", inner))
    return 0.5 * x * (1 + _unary("erf", x * math.sqrt(0.5)))


def _softplus(x: Traced, beta: float = 1.0, threshold: float = 20.0) -> Traced:
    scaled = x * beta
    smooth = _unary("log1p", _unary("exp", _clamp(scaled, max=threshold))) / beta
    return _where(scaled > threshold, x, smooth)


def _logaddexp(x: Any, y: Any) -> Traced:
    top, bottom = _binary("max", x, y), _binary("min", x, y)
    difference = _where(top == bottom, 0.0, bottom - top)
    return top + _unary("log1p", _unary("exp", difference))


def _is_infinite(x: Traced) -> Traced:
    return _compare("eq", _unary("abs", x), math.inf)


def _index_of_tensors(x: Any, indices: Sequence[Any]) -> Traced:
    return index_array(x, tuple(slice(None) if index is None else index for index in indices))


def index_array(array: Any, index: Any) -> Traced:
    """``array[index]``: traced or whole numbers for leading axes, then slices of the rest."""
    items = index if isinstance(index, tuple) else (index,)
    region = _region(array, items)
    array = lift(region, array)
    if any(item is None for item in items):
        raise _refuse("`None` in an index of a traced value", "use unsqueeze on the result")
    if any(item is Ellipsis for item in items):
        at = next(i for i, item in enumerate(items) if item is Ellipsis)
        fill = array.ndim - len(items) + 1
        items = (*items[:at], *([slice(None)] * fill), *items[at + 1 :])
    if len(items) > array.ndim:
        raise _refuse(
            f"an array with {array.ndim} axes is indexed with {len(items)}", "index at most every axis of the array"
        )
    leading = 0
    while leading < len(items) and not isinstance(items[leading], slice):
        leading += 1
    if any(not isinstance(item, slice) for item in items[leading:]):
        raise _refuse(
            "an index that follows a slice, as in `table[:, q]`",
            "permute the array before the call, so that the axes that are indexed come first",
        )
    result = _gather(array, list(items[:leading])) if leading else array
    slices = list(items[leading:])
    if any(item != slice(None) for item in slices):
        result = _slice(result, slices)
    return result


def _gather(array: Traced, items: list[Any]) -> Traced:
    region = array.region
    indices: list[Traced] = []
    for item in items:
        if type(item) is Traced and item.dtype is torch.int32:
            indices.append(item)
            continue
        if not isinstance(item, (Traced, Tensor, int)) or isinstance(item, bool):
            raise _refuse(f"a {type(item).__name__} as an index", "index with whole numbers or traced indices")
        index = lift(region, item)
        if index.dtype.is_floating_point or index.dtype == torch.bool:
            raise _refuse(f"an index of type {index.dtype}", "convert it: index.to(torch.int32)")
        indices.append(index)
    first = indices[0]
    if any([index.dtype is not first.dtype or index._shape != first._shape for index in indices]):
        indices = _together(indices)
    shape = indices[0]._shape + array._shape[len(items) :]
    return region.emit("gather", [array, *indices], array.dtype, shape, _origin(*_user_frame()))


def _slice(x: Traced, slices: list[slice]) -> Traced:
    slices = slices + [slice(None)] * (x.ndim - len(slices))
    bounds = [item.indices(extent) for item, extent in zip(slices, x._shape)]
    if any(step < 1 for _, _, step in bounds):
        raise _refuse("a slice with a negative step", "use torch.flip before the call")
    start, limit, step = ([bound[i] for bound in bounds] for i in range(3))
    limit = [max(low, high) for low, high in zip(start, limit)]
    shape = tuple(-(-(high - low) // by) for low, high, by in zip(start, limit, step))
    return x.region.emit("slice", [x], x.dtype, shape, f"start={start} limit={limit} step={step}")


OPERATIONS: dict[str, Callable[..., Any]] = {
    **{name: _float_unary(name) for name in (
        "exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "sin", "cos", "tan", "tanh", "sigmoid", "erf",
    )},
    **{name: _compare_of(name) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    "greater": _compare_of("gt"), "greater_equal": _compare_of("ge"), "not_equal": _compare_of("ne"),
    "less": _compare_of("lt"), "less_equal": _compare_of("le"),
    "logical_and": _logical_of("and"), "logical_or": _logical_of("or"), "logical_xor": _logical_of("xor"),
    "logical_not": _logical_not, "bitwise_not": lambda x: _unary("not", x), "invert": lambda x: _unary("not", x),
    "bitwise_and": _binary_of("and"), "bitwise_or": _binary_of("or"), "bitwise_xor": _binary_of("xor"),
    "and": _binary_of("and"), "or": _binary_of("or"), "xor": _binary_of("xor"),
    "rand": lambda x, y: _binary("and", y, x), "ror": lambda x, y: _binary("or", y, x),
    "rxor": lambda x, y: _binary("xor", y, x),
    "add": _binary_of("add"), "radd": lambda x, y: _binary("add", y, x),
    "sub": _binary_of("sub"), "subtract": _binary_of("sub"),
    "rsub": lambda x, y, alpha=1: _binary("sub", y, x, alpha=alpha),
    "mul": _binary_of("mul"), "multiply": _binary_of("mul"), "rmul": lambda x, y: _binary("mul", y, x),
    "div": _divide, "divide": _divide, "true_divide": _divide, "truediv": _divide,
    "rdiv": lambda x, y: _divide(y, x), "rtruediv": lambda x, y: _divide(y, x),
    "floor_divide": lambda x, y: _divide(x, y, rounding_mode="floor"),
    "floordiv": lambda x, y: _divide(x, y, rounding_mode="floor"),
    "rfloordiv": lambda x, y: _divide(y, x, rounding_mode="floor"),
    "remainder": _binary_of("rem"), "mod": _binary_of("rem"), "rmod": lambda x, y: _binary("rem", y, x),
    "fmod": _remainder_of_truncated,
    "pow": _power, "rpow": lambda x, y: _power(y, x), "float_power": _power,
    "square": lambda x: x * x, "reciprocal": lambda x: _divide(1.0, x),
    "exp2": lambda x: _unary("exp", x * math.log(2.0), _float(x)),
    "log2": lambda x: _unary("log", x, _float(x)) * (1 / math.log(2.0)),
    "log10": lambda x: _unary("log", x, _float(x)) * (1 / math.log(10.0)),
    "atan2": _float_binary("atan2"), "arctan2": _float_binary("atan2"), "logaddexp": _logaddexp,
    "sinh": lambda x: (_unary("exp", x) - _unary("exp", -x)) * 0.5,
    "cosh": lambda x: (_unary("exp", x) + _unary("exp", -x)) * 0.5,
    "erfc": lambda x: 1 - _unary("erf", x, _float(x)),
    "neg": lambda x: _unary("neg", x), "negative": lambda x: _unary("neg", x), "positive": lambda x: x,
    "abs": lambda x: _unary("abs", x), "absolute": lambda x: _unary("abs", x),
    "sign": lambda x: _unary("sign", x), "sgn": lambda x: _unary("sign", x),
    "floor": _whole("floor"), "ceil": _whole("ceil"), "round": _round, "trunc": _truncate, "fix": _truncate,
    "maximum": _binary_of("max"), "minimum": _binary_of("min"), "fmax": _binary_of("max"), "fmin": _binary_of("min"),
    "max": _extremum("max"), "min": _extremum("min"), "amax": _extremum("max"), "amin": _extremum("min"),
    "clamp": _clamp, "clip": _clamp, "clamp_min": lambda x, min: _clamp(x, min=min),
    "clamp_max": lambda x, max: _clamp(x, max=max),
    "where": _where, "masked_fill": _masked_fill,
    "relu": lambda x, inplace=False: _clamp(x, min=0), "silu": lambda x, inplace=False: x * _unary("sigmoid", x),
    "gelu": _gelu, "softplus": _softplus, "logsigmoid": lambda x: -_softplus(-x),
    "isnan": lambda x: x != x, "isinf": _is_infinite,
    "sum": _sum, "mean": _mean, "prod": _prod, "any": _any, "all": _all,
    "dot": _matmul, "matmul": _matmul, "mm": _matmul, "bmm": _matmul, "mv": _matmul, "vdot": _matmul,
    "rmatmul": lambda x, y: _matmul(y, x), "inner": _matmul,
    "reshape": _reshape, "view": _reshape, "flatten": lambda x: _reshape(x, (-1,)),
    "permute": _permute, "transpose": _transpose, "swapaxes": _transpose, "t": lambda x: _transpose(x, 0, 1),
    "unsqueeze": _unsqueeze, "squeeze": _squeeze, "expand": _expand,
    "expand_as": lambda x, other: _broadcast(x, tuple(other.shape)), "broadcast_to": _expand,
    "cat": _concatenate, "concat": _concatenate, "concatenate": _concatenate, "stack": _stack,
    "zeros_like": lambda x, dtype=None, **_: _full_like(x, 0, dtype),
    "ones_like": lambda x, dtype=None, **_: _full_like(x, 1, dtype),
    "full_like": lambda x, value, dtype=None, **_: _full_like(x, value, dtype),
    "new_zeros": lambda x, shape, dtype=None, **_: _broadcast(x.region.constant(0, dtype or x.dtype), tuple(shape)),
    "new_ones": lambda x, shape, dtype=None, **_: _broadcast(x.region.constant(1, dtype or x.dtype), tuple(shape)),
    "new_full": lambda x, shape, value, dtype=None, **_: _broadcast(
        x.region.constant(value, dtype or x.dtype), tuple(shape)
    ),
    "new_tensor": lambda x, value, dtype=None, **_: x.region.constant(value, dtype or x.dtype),
    "scalar_tensor": lambda x, **_: x,
    "to": _to, "type": _to, "type_as": _to, "_to_copy": _to, "convert_element_type": _to,
    "float": _type(torch.float32), "double": _type(torch.float64), "half": _type(torch.float16),
    "bfloat16": _type(torch.bfloat16), "int": _type(torch.int32), "long": _type(torch.int64), "bool": _type(torch.bool),
    "clone": lambda x, **_: x, "contiguous": lambda x, **_: x, "alias": lambda x: x,
    "detach": lambda x: _unary("stop_gradient", x),
    "index": _index_of_tensors, "getitem": index_array, "select": lambda x, dim, index: _select(x, dim, index),
    "flex_index": _index_of_tensors,
}  # fmt: skip


def _select(x: Any, dim: int, index: Any) -> Traced:
    return index_array(x, (*([slice(None)] * (dim % x.ndim)), index))
