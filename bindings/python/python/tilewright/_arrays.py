"""Arrays of any library that speaks DLPack: what they are to the tracer, and what stands for them in a traced function."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

from tilewright import _native, _program
from tilewright._errors import DTypeError
from tilewright._trace.indexing import index
from tilewright._trace.operations import operation, record
from tilewright._trace.region import Library, Value, refuse
from tilewright._trace.types import LONG_NAMES
from tilewright._trace.value import Traced


@runtime_checkable
class SupportsDLPack(Protocol):
    """An array that lends its memory: of NumPy, JAX, CuPy, PyTorch, …"""

    def __dlpack__(self) -> Any: ...

    def __dlpack_device__(self) -> tuple[Any, int]: ...


ArrayType = TypeVar("ArrayType", bound=SupportsDLPack)

_KINDS = {long: short for short, long in LONG_NAMES.items()}
_PYTHON_KINDS = {"float": "f32", "int": "i64"}


def parse_kind(dtype: object) -> str | None:
    """The compiler's name of an element type: of a name, of a library's own type object, or of Python's."""
    name = dtype if isinstance(dtype, str) else getattr(dtype, "name", None) or getattr(dtype, "__name__", None) or str(dtype)
    name = str(name).rpartition(".")[2]
    return _KINDS.get(name) or _PYTHON_KINDS.get(name)


def kind_of(array: Any) -> str:
    """The element type of an array."""
    kind = parse_kind(array.dtype)
    if kind is None:
        raise DTypeError(f"an array of element type {array.dtype} is not supported; convert it first")
    return kind


class ArrayTraced(Traced):
    """A value inside a traced function, with what NumPy's functions ask of an array."""

    __slots__ = ()

    @property
    def dtype(self) -> str:
        """The element type: ``"float32"``, …"""
        return LONG_NAMES[self.kind]

    def __dlpack__(self, **_: Any) -> Any:
        raise refuse(
            "a value inside a traced function has no memory yet, so no array library can take it",
            "use operators and tilewright's or NumPy's functions",
        )

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Value:
        found = operation(ufunc.__name__) if method == "__call__" else None
        return record(found, f"numpy.{ufunc.__name__}", inputs, options)

    def __array_function__(self, func: Any, types: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Value:
        return record(operation(func.__name__), f"numpy.{func.__name__}", args, options)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise refuse(
            "an array that is no capture is asked for a traced index or value",
            "make it one before the call: table = tilewright.capture(table)",
        )


class Capture:
    """An array from outside that traced functions may index: made by :func:`capture`."""

    __slots__ = ("array",)

    def __init__(self, array: SupportsDLPack) -> None:
        #: The array itself, which is read where it is.
        self.array = array

    @property
    def shape(self) -> tuple[int, ...]:
        """The extent of each axis."""
        return tuple(cast(Any, self.array).shape)

    @property
    def ndim(self) -> int:
        """How many axes it has."""
        return len(self.shape)

    @property
    def dtype(self) -> Any:
        """The element type, as the array's library names it."""
        return cast(Any, self.array).dtype

    def __dlpack__(self, **options: Any) -> Any:
        return cast(Any, self.array).__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[Any, int]:
        return self.array.__dlpack_device__()

    def __getitem__(self, position: Any) -> Any:
        """A read at traced indices; at other ones, a capture of that part, which is not copied."""
        items = position if isinstance(position, tuple) else (position,)
        if any(isinstance(item, Value) for item in items):
            return index(self, items)
        # The ellipsis makes libraries give an array, and no number, where nothing is left of the axes.
        rest = () if any(item is Ellipsis for item in items) else (Ellipsis,)
        return Capture(cast(Any, self.array)[(*items, *rest)])


def capture(array: SupportsDLPack) -> Capture:
    """Makes an array one that traced functions may index: ``table = capture(table)``, then ``table[h, q - k]``.

    It is not copied: each call reads what the array then holds.

    >>> import numpy as np
    >>> slopes = capture(np.array([0.5, 0.25], dtype=np.float32))
    >>> q = k = v = np.ones((1, 2, 3, 4), dtype=np.float32)
    >>> from tilewright import flex_attention
    >>> flex_attention(q, k, v, lambda s, b, h, i, j: s - slopes[h] * abs(i - j)).shape
    (1, 2, 3, 4)
    """
    return array if isinstance(array, Capture) else Capture(array)


LIBRARY = Library(
    module="tilewright",
    traced=ArrayTraced,
    is_array=lambda value: isinstance(value, SupportsDLPack) and not isinstance(value, Value),
    kind_of=kind_of,
    parse_kind=parse_kind,
    default_float=lambda: "f32",
)


def run(program: str, inputs: Sequence[SupportsDLPack], threads: int, like: ArrayType) -> list[ArrayType]:
    """Runs a program, and gives its results as arrays of the library that ``like`` is from."""
    _program.check_devices(program, inputs, [_device_name(array) for array in inputs])
    convert = _from_dlpack(like)
    return [convert(result) for result in _native.call(program, inputs, None, threads)]


#: DLPack's numbers of the kinds of memory that programs can read.
_DEVICES = {1: "cpu", 2: "cuda", 3: "cpu", 13: "cuda"}


def _device_name(array: SupportsDLPack) -> str:
    kind, number = array.__dlpack_device__()
    name = _DEVICES.get(int(kind), f"device {int(kind)} of DLPack")
    return "cpu" if name == "cpu" else f"{name}:{number}"


def _from_dlpack(example: Any) -> Callable[[Any], Any]:
    """The function by which an array's library takes over memory: its array namespace has it, or its module."""
    if isinstance(example, Capture):
        return _from_dlpack(example.array)
    if hasattr(example, "__array_namespace__"):
        return cast(Callable[[Any], Any], example.__array_namespace__().from_dlpack)
    module = sys.modules.get(type(example).__module__.partition(".")[0])
    return getattr(module, "from_dlpack", lambda array: array)
