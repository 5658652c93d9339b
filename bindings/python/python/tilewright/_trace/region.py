"""The text of a function as it is traced: regions, the values in them, and what they capture.

The text is that of the compiler's intermediate representation. An input's type is written ``$n``, filled in by the
array of each call, so that one text serves every length.
"""

from __future__ import annotations

import functools
import math
import numbers
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from tilewright._errors import TraceError
from tilewright._trace.types import CATEGORY, category_of, promote

Number: TypeAlias = "bool | int | float"


def number_of_numpy(value: object) -> Any:
    """A number of NumPy's types as Python's own; ``None`` for anything else."""
    return cast(Any, value).item() if isinstance(value, numbers.Real) and hasattr(value, "item") else None


#: Operations whose text must say the type of the result.
_TYPED = frozenset(("cast", "broadcast", "reshape", "iota"))


@dataclass(frozen=True)
class Library:
    """What the tracer must know about the arrays of a front."""

    #: The module that users take functions from.
    module: str
    #: What stands for an array inside a traced function.
    traced: type[Value]
    #: Whether something is an array that can be captured.
    is_array: Callable[[object], bool]
    #: The element type of such an array.
    kind_of: Callable[[Any], str]
    #: The element type that a user's object names, ``None`` where it names none.
    parse_kind: Callable[[object], str | None]
    #: The element type of a Python float among whole numbers.
    default_float: Callable[[], str]
    #: What stands for a number of the library's own kind: one of Python's, or an array without axes; ``None`` for
    #: anything that is no number.
    number: Callable[[object], Any] = number_of_numpy
    #: Whether gradients go by way of what is computed now.
    differentiates: Callable[[], bool] = lambda: True


class Value:
    """A value inside a traced function: it holds no number."""

    __slots__ = ("_shape", "kind", "name", "region", "type_text")

    def __init__(self, region: Region, name: str, kind: str, shape: tuple[int, ...], type_text: str | None = None) -> None:
        self.region = region
        self.name = name
        self.kind = kind
        self._shape = shape
        #: Its type as a nested region writes it; ``None`` where it follows from ``kind`` and shape.
        self.type_text = type_text

    @property
    def ndim(self) -> int:
        """How many axes it has."""
        return len(self._shape)

    def written_type(self) -> str:
        """Its type as the text has it."""
        return self.type_text or written_type(self.kind, self._shape)


def written_type(kind: str, shape: Sequence[int]) -> str:
    """A type as the compiler writes it: ``f32[2, 3]``."""
    # An extent that is a symbol becomes the number that it stands for now.
    return f"{kind}{[int(extent) for extent in shape]}"


def is_users(frame: types.FrameType) -> bool:
    """Whether a frame is neither this package's nor that of an array library."""
    inside = ("tilewright.", "torch.", "numpy.", "functools", "jax.", "jaxlib.", "cupy.")
    return not frame.f_globals.get("__name__", "").startswith(inside)


def _user_frame() -> tuple[str, int]:
    """File and line of the innermost frame that is the user's."""
    frame = sys._getframe(2)
    while not is_users(frame) and frame.f_back is not None:
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


def user_line() -> str:
    """``file:line`` of the user's code that is running."""
    file, line = _user_frame()
    return f"{file}:{line}"


@functools.lru_cache(maxsize=4096)
def _origin(file: str, line: int) -> str:
    for character, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r")):
        file = file.replace(character, escaped)
    return f'@ "{file}":{line}:0'


def origin() -> str:
    """The user's line, as the text writes it behind an operation that can fail."""
    return _origin(*_user_frame())


def refuse(what: str, instead: str) -> TraceError:
    """The error for a construct that cannot be traced: what it is, where, and what to write instead."""
    return TraceError(f"{what}\n  --> {user_line()}\n   = help: {instead}")


class Region:
    """The text of a region as it is written, statement by statement, and what it reads from outside.

    A region with a ``parent`` is a score function, mask or combine: what it captures are values of the parent, listed
    in ``captures`` (which regions of one operation share), and parameters ``%c0``, ``%c1``, … of its own. One without
    is a whole program: the arrays that it meets become its inputs, called what errors shall call them.
    """

    def __init__(self, library: Library, parent: Region | None = None, captures: list[Value] | None = None) -> None:
        self.library = library
        self.parent = parent
        self.captures: list[Value] = [] if captures is None else captures
        self.inputs: list[Any] = []
        self.input_names: list[str] = []
        self.statements: list[str] = []
        self._count = 0
        self._constants: dict[tuple[str, str], Value] = {}
        self._seen: dict[int, Value] = {}

    def fresh(self, kind: str, shape: tuple[int, ...] = ()) -> Value:
        """A new value, not yet defined."""
        self._count += 1
        return self.library.traced(self, f"%{self._count}", kind, shape)

    def parameter(self, name: str, kind: str, shape: tuple[int, ...] = ()) -> Value:
        """A value that the region is given."""
        return self.library.traced(self, name, kind, shape)

    def emit(
        self, op: str, operands: Sequence[Value], kind: str, shape: tuple[int, ...], attributes: str = ""
    ) -> Value:
        """Writes one operation and gives its result."""
        result = self.fresh(kind, shape)
        names = ", ".join([operand.name for operand in operands])
        typed = f": {written_type(kind, shape)}" if op in _TYPED else ""
        self.statements.append(f"{result.name}{typed} = {op} {names} {attributes}")
        if op != "stop_gradient" and not self.library.differentiates():
            return self.emit("stop_gradient", [result], kind, shape)
        return result

    def emit_several(
        self, results: Sequence[tuple[str, str, tuple[int, ...]]], op: str, operands: Sequence[Value], attributes: str
    ) -> list[Value]:
        """Writes an operation with several results, given by name, type and shape."""
        again = f"_{len(self.statements)}" if self.statements else ""
        values = [self.library.traced(self, f"%{name}{again}", kind, shape) for name, kind, shape in results]
        names = ", ".join([value.name for value in values])
        self.statements.append(f"{names} = {op} {', '.join([operand.name for operand in operands])} {attributes}")
        return values

    def constant(self, number: Number, kind: str) -> Value:
        """A rank-0 constant."""
        text = _literal(number, kind)
        known = self._constants.get((kind, text))
        if known is None:
            known = self.fresh(kind)
            self.statements.append(f"{known.name}: {kind}[] = constant {text}")
            self._constants[kind, text] = known
        return known

    def capture(self, outside: Any) -> Value:
        """The region's own value for an array, or for a value of an enclosing region."""
        known = self._seen.get(id(outside))
        if known is not None:
            return known
        if self.parent is None:
            if isinstance(outside, Value):
                raise refuse(
                    "a value of one traced function is used inside another",
                    "return it from its own function; only arrays may be captured",
                )
            known = self.input(outside)
        else:
            inside_parent = isinstance(outside, Value) and outside.region is self.parent
            value = outside if inside_parent else self.parent.capture(outside)
            number = next((i for i, other in enumerate(self.captures) if other is value), len(self.captures))
            if number == len(self.captures):
                self.captures.append(value)
            known = self.library.traced(self, f"%c{number}", value.kind, value._shape, value.written_type())
            self._seen[id(outside)] = known
        return known

    def input(self, array: Any, name: str = "capture") -> Value:
        """The program's input for an array: an argument of this name, or one that a function captures."""
        number = len(self.inputs)
        shape = tuple(array.shape)
        if name == "capture":
            name = f"capture_{sum(other.startswith('capture_') for other in self.input_names)}"
        value = self.library.traced(self, f"%{name}", self.library.kind_of(array), shape, f"${number}")
        self.inputs.append(array)
        self.input_names.append(name)
        self._seen[id(array)] = value
        return value

    def lift(self, value: Any, kind: str | None = None) -> Value:
        """A traced value, array or number as a value of this region, converted to ``kind`` where one is given."""
        if isinstance(value, Value):
            lifted = value if value.region is self else self.capture(value)
        elif isinstance(value, (bool, int, float)):
            return self.constant(value, kind or self._number_kind(value))
        elif self.library.is_array(value):
            lifted = self.capture(value)
        else:
            number = self._number(value)
            if isinstance(number, (bool, int, float)):
                return self.constant(number, kind or self._number_kind(number))
            lifted = self.capture(number)
        return lifted if kind is None or lifted.kind == kind else self.emit("cast", [lifted], kind, lifted._shape)

    def _number_kind(self, number: Number) -> str:
        return ("bool", "i64", self.library.default_float())[category_of(number)]

    def kind_of(self, value: Any) -> str:
        """The element type of a traced value or array."""
        return value.kind if isinstance(value, Value) else self.library.kind_of(value)

    def _number(self, value: Any) -> Any:
        """A number of another kind than Python's, as one of Python's or an array without axes."""
        number = self.library.number(value)
        if number is None:
            raise refuse(
                f"a {type(value).__name__} where an array or a number is expected", "convert it before the call"
            )
        return number

    def result_kind(self, values: Sequence[Any]) -> str:
        """PyTorch's promotion: by category, and in a category arrays come before rank-0 values, those before numbers."""
        arrays: str | None = None
        scalars: str | None = None
        category = 0
        for value in values:
            if isinstance(value, (bool, int, float)):
                category = max(category, category_of(value))
                continue
            if not isinstance(value, Value) and not self.library.is_array(value):
                number = self._number(value)
                plain = isinstance(number, (bool, int, float))
                category = max(category, category_of(number) if plain else CATEGORY[self.library.kind_of(number)])
                continue
            kind = self.kind_of(value)
            if value.ndim > 0:
                arrays = kind if arrays is None else promote(arrays, kind)
            else:
                scalars = kind if scalars is None else promote(scalars, kind)
        if arrays is None or (scalars is not None and CATEGORY[scalars] > CATEGORY[arrays]):
            result = scalars
        else:
            result = arrays
        if result is None or category > CATEGORY[result]:
            return ("bool", "i64", self.library.default_float())[category]
        return result

    def body(self) -> str:
        """The statements."""
        return " ".join(self.statements)


def region_of(*values: Any) -> Region:
    """The region of the traced values among the arguments: the innermost, where a captured one is among them."""
    found: Region | None = None
    for value in values:
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, Value) and (found is None or _encloses(found, item.region)):
                found = item.region
    if found is None:
        raise refuse(
            "a function for traced values is called without one",
            "call it inside a function that is traced; outside of one, use your array library's own",
        )
    return found


def _encloses(outer: Region, inner: Region) -> bool:
    parent = inner.parent
    while parent is not None and parent is not outer:
        parent = parent.parent
    return parent is outer


def _literal(value: Number, kind: str) -> str:
    if kind == "bool":
        return "true" if value else "false"
    if CATEGORY[kind] == 1:
        return str(int(value))
    number = float(value)
    if math.isnan(number):
        return "nan"
    if math.isinf(number):
        return "inf" if number > 0 else "-inf"
    return repr(number)
