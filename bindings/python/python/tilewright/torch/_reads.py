"""What a function reads, so that it need not be traced again.

Tracing costs more than a small call takes to run. A traced program may be used again where all that its function can
read is the same, or a tensor of the same type and shape, which then takes the place of the one before. :func:`reads`
finds what a function can read from its code: the closure, defaults and globals that it names, attributes of objects
among these, and functions among these in turn. It refuses code that stores or imports, that names an attribute of
tensors whose value does not follow from type and shape, and objects of unknown kind; such a function is traced in each
call.

Two things cannot be seen in code, and :func:`watched` sees them while the function is traced: that it asks for the
*numbers* of a real tensor (``if``, ``float()``), and that it runs a function which was not looked at.
"""

from __future__ import annotations

import dis
import functools
import math
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tilewright._trace.operations import OPERATIONS
from tilewright.torch._values import DTYPES, WIDENED, TorchTraced

Result = TypeVar("Result")

#: What is looked at in one call, at most: beyond it tracing costs less.
_LIMIT = 200

_MODULES = ("torch", "torch.nn", "torch.nn.functional", "torch.special", "math")
_BUILTINS = frozenset(
    "abs all any bool enumerate float int isinstance len list map max min pow range reversed round sum tuple zip".split()
)

#: Attributes of tensors, traced values and modules that follow from types and shapes.
_ATTRIBUTES = frozenset(
    [*OPERATIONS, *(str(dtype).removeprefix("torch.") for dtype in (*DTYPES.values(), *WIDENED))]
    + "shape ndim dtype device dim size numel is_floating_point T mT nn functional special pi inf e tau nan".split()
)

#: Beginnings of instructions that change something, or read what is not looked at.
_REFUSED = ("STORE_GLOBAL", "STORE_DEREF", "STORE_ATTR", "STORE_NAME", "STORE_SUBSCR", "DELETE_", "IMPORT_", "LOAD_NAME",
            "YIELD", "RETURN_GENERATOR", "LOAD_BUILD_CLASS", "BEFORE_WITH", "LOAD_SPECIAL")  # fmt: skip


class _Unknown(Exception):
    """It cannot be told what a function reads."""


class _Names:
    """What a function's code, and the code within it, names."""

    def __init__(self, code: types.CodeType) -> None:
        self.codes = [code]
        self.globals: set[str] = set()
        self.attributes: set[str] = set()
        for instruction in dis.get_instructions(code):
            if instruction.opname.startswith(_REFUSED):
                raise _Unknown
            if instruction.opname == "LOAD_GLOBAL":
                self.globals.add(instruction.argval)
            elif instruction.opname.startswith(("LOAD_ATTR", "LOAD_METHOD")):
                self.attributes.add(instruction.argval)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                inner = _Names(constant)
                self.codes += inner.codes
                self.globals |= inner.globals
                self.attributes |= inner.attributes
        if any(name not in _ATTRIBUTES and (hasattr(Tensor, name) or hasattr(torch, name)) for name in self.attributes):
            raise _Unknown


#: By the identity of a code object, which the entry keeps alive.
_names_of: dict[int, tuple[types.CodeType, _Names | None]] = {}


def _names(code: types.CodeType) -> _Names:
    known = _names_of.get(id(code))
    if known is None:
        if len(_names_of) >= 4096:
            _names_of.clear()
        try:
            known = (code, _Names(code))
        except _Unknown:
            known = (code, None)
        _names_of[id(code)] = known
    if known[1] is None:
        raise _Unknown
    return known[1]


class Reads:
    """What functions can read: ``key`` is equal where it is the same but for the numbers in ``tensors``.

    A tensor that is an operand of the call already is not listed again.
    """

    def __init__(self, functions: Sequence[Callable[..., Any] | None], operands: Sequence[Tensor]) -> None:
        # An object that one function holds may be handed to another: each is looked at for the attributes that any of
        # the functions names, which are known when all were met.
        named: set[str] | None = None
        while named is None or (self._objects and named != self._attributes):
            named = set() if named is None else self._attributes
            self._look(functions, operands, named)

    def _look(
        self, functions: Sequence[Callable[..., Any] | None], operands: Sequence[Tensor], named: set[str]
    ) -> None:
        self.key: list[Any] = []
        self.tensors: list[Tensor] = []
        #: To be kept with the key, which holds their identities.
        self.codes: list[types.CodeType] = []
        self._places: dict[int, int] = {}
        self._named = named
        self._attributes: set[str] = set()
        self._objects = False
        for operand in operands:
            self.key.append(self._places.setdefault(id(operand), len(self._places)))
        for function in functions:
            if isinstance(function, nn.Module):
                self._function(type(function).forward, function)
            elif isinstance(function, (types.FunctionType, types.MethodType, functools.partial)) or function is None:
                self._value(function)
            else:
                self._function(type(function).__call__, function)

    def _value(self, value: Any) -> None:
        """Whatever code can get hold of."""
        kind = type(value)
        if kind is int or kind is bool or kind is str or value is None or kind is torch.dtype:
            self.key += (kind, value)
        elif kind is float:
            self.key += (kind, value, math.copysign(1.0, value))
        elif self._seen_before(value):
            return
        elif kind is Tensor or kind is nn.Parameter:
            self.tensors.append(value)
            self.key += (value.dtype, value.shape)
        elif kind is types.FunctionType:
            self._function(value)
        elif kind is types.MethodType:
            self._function(value.__func__, value.__self__)
        elif kind is types.ModuleType and value.__name__ in _MODULES:
            self.key.append(value.__name__)
        elif kind is tuple or kind is list:
            self.key += (kind, len(value))
            for item in value:
                self._value(item)
        elif kind is dict:
            self._value([item for pair in value.items() for item in pair])
        elif kind is functools.partial:
            self._value([value.func, value.args, value.keywords])
        elif getattr(torch, name := getattr(value, "__name__", ""), None) is value:
            self.key.append(name)
        else:
            self._object(value)

    def _seen_before(self, value: Any) -> bool:
        """Two names for one object are not the same as two objects alike."""
        if len(self.key) > _LIMIT:
            raise _Unknown
        count = len(self._places)
        place = self._places.setdefault(id(value), count)
        self.key.append(place)
        return place < count

    def _function(self, function: Any, bound_to: Any = None) -> None:
        if type(function) is not types.FunctionType:
            raise _Unknown
        code = function.__code__
        names = _names(code)
        self.codes += names.codes
        self.key.append(id(code))
        self._attributes |= names.attributes
        if bound_to is not None:
            self._value(bound_to)
        for cell in function.__closure__ or ():
            self._value(cell.cell_contents)
        if function.__defaults__ or function.__kwdefaults__:
            self._value([function.__defaults__, function.__kwdefaults__])
        for name in names.globals:
            if name in function.__globals__:
                self._value(function.__globals__[name])
            elif name not in _BUILTINS:
                raise _Unknown

    def _object(self, value: Any) -> None:
        """An object of a user's class, by the attributes that are named."""
        self._objects = True
        kind = type(value)
        own = getattr(value, "__dict__", None)
        if own is None or isinstance(value, type) or _defined(kind, "__getattribute__") is not object.__getattribute__:
            raise _Unknown
        places: tuple[Mapping[str, Any], ...] = (own,)
        if isinstance(value, nn.Module) and kind.__getattr__ is nn.Module.__getattr__:
            places = (own, own["_parameters"], own["_buffers"], own["_modules"])
        elif hasattr(kind, "__getattr__"):
            raise _Unknown
        self.key.append(kind)
        for name in sorted(self._named):
            holder = next((place for place in places if name in place), None)
            if holder is not None:
                self.key.append(name)
                self._value(holder[name])
                continue
            shared = _defined(kind, name)
            if shared is None:
                continue
            self.key.append(name)
            if not isinstance(shared, (types.FunctionType, bool, int, float, str)):
                raise _Unknown
            self._value(shared)


def _defined(kind: type, name: str) -> Any:
    """What a class, or one that it derives from, defines under a name."""
    return next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), None)


def reads(functions: Sequence[Callable[..., Any] | None], operands: Sequence[Tensor]) -> Reads | None:
    """What the functions of a call can read, ``None`` where it cannot be told."""
    try:
        return Reads(functions, operands)
    except (_Unknown, ValueError):  # the latter: a cell of a closure that is not filled yet
        return None


def watched(trace: Callable[[], Result], known: Reads) -> tuple[Result, bool]:
    """What ``trace`` gives, and whether it did only what ``known`` knows of: ran functions that were looked at, and asked
    for the number of no tensor, as far as can be seen."""
    if sys.getprofile() is not None:
        return trace(), False
    codes = set(known.codes)
    strange = False

    def ran(frame: types.FrameType, event: str, _: Any) -> None:
        nonlocal strange
        if event == "call" and frame.f_code not in codes:
            strange |= not frame.f_globals.get("__name__", "").startswith(("tilewright.", "torch."))

    with _Numbers() as numbers:
        sys.setprofile(ran)
        try:
            result = trace()
        finally:
            sys.setprofile(None)
    return result, not strange and not numbers.computed


class _Numbers(TorchFunctionMode):
    """Sees computation on real tensors, whose numbers a program may then hold."""

    computed = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if not any(issubclass(kind, TorchTraced) for kind in types) and func not in _SHAPES_ONLY:
            self.computed = True
        return func(*args, **(kwargs or {}))


_SHAPES_ONLY = frozenset(
    [getattr(Tensor, name) for name in ("dim", "size", "numel", "is_floating_point")]
    + [getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device")]
)
