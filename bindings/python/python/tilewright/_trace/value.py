"""Traced values: what a user's function runs on."""

from __future__ import annotations

from typing import Any

from typing_extensions import Self

from tilewright._errors import TraceAttributeError, TraceError
from tilewright._trace import arrays, bits, elementwise, indexing
from tilewright._trace.elementwise import binary, compare, unary
from tilewright._trace.operations import OPERATIONS, record
from tilewright._trace.region import Value, refuse

#: What operators take beside a traced value.
Operand = Any


class Traced(Value):
    """A value inside a traced function. It behaves like an array, but holds no number."""

    __slots__ = ()

    def _own(self, value: Value) -> Self:
        """Every value of a region is of its library's class, which is this one."""
        assert isinstance(value, type(self))
        return value

    @property
    def shape(self) -> tuple[int, ...]:
        """The extent of each axis."""
        return self._shape

    @property
    def T(self) -> Self:  # noqa: N802
        """The axes in reverse order."""
        return self._own(arrays.permute(self, tuple(reversed(range(self.ndim)))))

    @property
    def mT(self) -> Self:  # noqa: N802
        """The last two axes exchanged."""
        return self._own(arrays.transpose(self, -1, -2))

    def __getattr__(self, name: str) -> Any:
        operation = OPERATIONS.get(name)
        if operation is None:
            instead = "assign the result of a function: x = x + y" if name.endswith("_") else "use operators and functions"
            missing = refuse(f"a value inside a traced function has no attribute {name!r}", instead)
            raise TraceAttributeError(str(missing))
        return lambda *args, **kwargs: record(operation, f".{name}()", (self, *args), kwargs)

    def __bool__(self) -> bool:
        raise refuse(
            "a value inside a traced function has no truth value yet, so `if`, `and`, `or`, `not` cannot ask for it",
            f"use {self.region.library.module}.where(condition, x, y) instead of `if`, and &, |, ~ instead of `and`, `or`, `not`",
        )

    def _no_number(self, function: str) -> TraceError:
        return refuse(
            f"a value inside a traced function holds no number yet, so {function} cannot ask for one",
            "keep it as it is: functions and operators take it",
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
        return f"{type(self).__name__}({self.name}, {self.kind}, {list(self._shape)})"

    def __hash__(self) -> int:
        return id(self)

    def __getitem__(self, position: Any) -> Self:
        return self._own(indexing.index(self, position))

    def __add__(self, other: Operand) -> Self:
        return self._own(binary("add", self, other))

    def __radd__(self, other: Operand) -> Self:
        return self._own(binary("add", other, self))

    def __sub__(self, other: Operand) -> Self:
        return self._own(binary("sub", self, other))

    def __rsub__(self, other: Operand) -> Self:
        return self._own(binary("sub", other, self))

    def __mul__(self, other: Operand) -> Self:
        return self._own(binary("mul", self, other))

    def __rmul__(self, other: Operand) -> Self:
        return self._own(binary("mul", other, self))

    def __truediv__(self, other: Operand) -> Self:
        return self._own(elementwise.divide(self, other))

    def __rtruediv__(self, other: Operand) -> Self:
        return self._own(elementwise.divide(other, self))

    def __floordiv__(self, other: Operand) -> Self:
        return self._own(elementwise.floor_divide(self, other))

    def __rfloordiv__(self, other: Operand) -> Self:
        return self._own(elementwise.floor_divide(other, self))

    def __mod__(self, other: Operand) -> Self:
        return self._own(binary("rem", self, other))

    def __rmod__(self, other: Operand) -> Self:
        return self._own(binary("rem", other, self))

    def __pow__(self, other: Operand) -> Self:
        return self._own(elementwise.power(self, other))

    def __rpow__(self, other: Operand) -> Self:
        return self._own(elementwise.power(other, self))

    def __matmul__(self, other: Operand) -> Self:
        return self._own(arrays.matmul(self, other))

    def __rmatmul__(self, other: Operand) -> Self:
        return self._own(arrays.matmul(other, self))

    def __neg__(self) -> Self:
        return self._own(unary("neg", self))

    def __pos__(self) -> Self:
        return self

    def __abs__(self) -> Self:
        return self._own(unary("abs", self))

    def __invert__(self) -> Self:
        return self._own(unary("not", self))

    def __and__(self, other: Operand) -> Self:
        return self._own(binary("and", self, other))

    def __rand__(self, other: Operand) -> Self:
        return self._own(binary("and", other, self))

    def __or__(self, other: Operand) -> Self:
        return self._own(binary("or", self, other))

    def __ror__(self, other: Operand) -> Self:
        return self._own(binary("or", other, self))

    def __xor__(self, other: Operand) -> Self:
        return self._own(binary("xor", self, other))

    def __rxor__(self, other: Operand) -> Self:
        return self._own(binary("xor", other, self))

    def __lshift__(self, other: Operand) -> Self:
        return self._own(bits.left_shift(self, other))

    def __rlshift__(self, other: Operand) -> Self:
        return self._own(bits.left_shift(other, self))

    def __rshift__(self, other: Operand) -> Self:
        return self._own(bits.right_shift(self, other))

    def __rrshift__(self, other: Operand) -> Self:
        return self._own(bits.right_shift(other, self))

    def __eq__(self, other: object) -> Any:
        return compare("eq", self, other)

    def __ne__(self, other: object) -> Any:
        return compare("ne", self, other)

    def __lt__(self, other: Operand) -> Self:
        return self._own(compare("lt", self, other))

    def __le__(self, other: Operand) -> Self:
        return self._own(compare("le", self, other))

    def __gt__(self, other: Operand) -> Self:
        return self._own(compare("gt", self, other))

    def __ge__(self, other: Operand) -> Self:
        return self._own(compare("ge", self, other))

