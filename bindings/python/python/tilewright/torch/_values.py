"""Traced values as PyTorch's functions see them.

A :class:`TorchTraced` takes part in the ``__torch_function__`` protocol, so that operators, methods and functions of
``torch`` that are given one are recorded instead of run. Everything that is not given one runs as it always does. A
real tensor met on the way becomes a capture.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from tilewright._errors import TraceError
from tilewright._trace.elementwise import Operation
from tilewright._trace.operations import operation, record
from tilewright._trace.region import Library, number_of_numpy, refuse
from tilewright._trace.types import LONG_NAMES, is_float
from tilewright._trace.value import Traced

DTYPES: dict[str, torch.dtype] = {kind: getattr(torch, name) for kind, name in LONG_NAMES.items()}

#: Types that the compiler has no name for, held as the next wider one.
WIDENED: dict[torch.dtype, torch.dtype] = {torch.int8: torch.int32, torch.int16: torch.int32}

_KINDS: dict[torch.dtype, str] = {
    **{dtype: kind for kind, dtype in DTYPES.items()},
    **{narrow: "i32" for narrow in WIDENED},
}


def kind_of(tensor: Tensor) -> str:
    """The compiler's name of a tensor's element type; raises ``TraceError`` where it has none."""
    kind = _KINDS.get(tensor.dtype)
    if kind is None:
        raise TraceError(f"element type {tensor.dtype} is not supported; convert the tensor first")
    return kind


def parse_kind(dtype: object) -> str | None:
    """The compiler's name of an element type, or ``None``."""
    return _KINDS.get(dtype) if isinstance(dtype, torch.dtype) else None


class TorchTraced(Traced):
    """A value inside a traced function, with the attributes of a tensor."""

    __slots__ = ()

    @property
    def dtype(self) -> torch.dtype:
        """The element type."""
        return DTYPES[self.kind]

    @property
    def shape(self) -> torch.Size:
        """The extent of each axis."""
        return torch.Size(self._shape)

    @property
    def device(self) -> torch.device:
        """Where the value would be: where the call's tensors are."""
        region = self.region
        while region.parent is not None:
            region = region.parent
        device: torch.device = region.inputs[0].device if region.inputs else torch.device("cpu")
        return device

    @property
    def requires_grad(self) -> bool:
        """Always false: differentiation is the compiler's."""
        return False

    def dim(self) -> int:
        """How many axes it has."""
        return self.ndim

    def size(self, dim: int | None = None) -> Any:
        """The extent of every axis, or of one."""
        return self.shape if dim is None else self.shape[dim]

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """The value in another element type; it stays where it is."""
        for argument in (*args, *kwargs.values()):
            if isinstance(argument, (str, torch.device)) and torch.device(argument).type != self.device.type:
                raise refuse(
                    f"a value inside a traced function is moved from device {self.device} to {argument}",
                    "leave it where the call's tensors are",
                )
        return record(operation("to"), ".to()", (self, *args), kwargs)

    def is_floating_point(self) -> bool:
        """Whether it is of a float type."""
        return is_float(self.kind)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        found, name = _operation(func)
        return record(found, name, args, dict(kwargs or {}))


@functools.lru_cache(maxsize=1024)
def _operation(func: Callable[..., Any]) -> tuple[Operation | None, str]:
    name = str(getattr(getattr(func, "overloadpacket", func), "__name__", func))
    return operation(name), f"torch.{name}"


def _number(value: object) -> Any:
    """A symbol of PyTorch's compiler as the number that it stands for now, on which PyTorch then depends."""
    if isinstance(value, torch.SymInt):
        return int(value)
    if isinstance(value, torch.SymFloat):
        return float(value)
    return bool(value) if isinstance(value, torch.SymBool) else number_of_numpy(value)


LIBRARY = Library(
    module="torch",
    traced=TorchTraced,
    is_array=lambda value: isinstance(value, Tensor),
    kind_of=kind_of,
    parse_kind=parse_kind,
    default_float=lambda: _KINDS[torch.get_default_dtype()],
    number=_number,
    differentiates=torch.is_grad_enabled,
)
