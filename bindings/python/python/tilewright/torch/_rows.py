"""Reads of rows, ``table[b, q, :]``, in score functions that PyTorch's compiler looks at.

While it does, a mode of PyTorch's makes ``table[b, q]`` a read at traced indices; an index that has a slice as well falls
through to Python's rules, which ask the indices for their numbers, and compiling fails. The mode is taught such indices:
the axes that are read go first, and the slices apply to what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex


_MARK = "_tilewright"


def install() -> None:
    """Teaches PyTorch's mode. Idempotent."""
    known: Any = TransformGetItemToIndex.__torch_function__
    if not getattr(known, _MARK, False):
        setattr(TransformGetItemToIndex, "__torch_function__", _taught(known))  # noqa: B010


def _taught(before: Callable[..., Any]) -> Any:
    def __torch_function__(
        self: Any, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__getitem__ and len(args) == 2:
            items = _items(args[0], args[1])
            if items is not None:
                return _read(args[0], items, lambda x, indices: before(self, func, types, (x, indices)))
        return before(self, func, types, args, kwargs or {})

    setattr(__torch_function__, _MARK, True)  # noqa: B010
    return __torch_function__


def _items(tensor: Tensor, position: Any) -> list[Any] | None:
    """One item an axis, and the new axes, of an index that has both traced indices and slices; ``None`` of others."""
    items = list(position) if isinstance(position, tuple) else [position]
    read = [item for item in items if isinstance(item, (Tensor, int)) and not isinstance(item, bool)]
    others = [item for item in items if item is None or item is Ellipsis or isinstance(item, slice)]
    if len(read) + len(others) != len(items) or not others:
        return None
    if not any(isinstance(item, Tensor) for item in read) or any(isinstance(x, Tensor) and x.dim() for x in read):
        return None
    rest = [slice(None)] * (tensor.dim() - sum(item is not None and item is not Ellipsis for item in items))
    at = next((place for place, item in enumerate(items) if item is Ellipsis), len(items))
    return [*items[:at], *rest, *items[at + 1 :]]


def _read(tensor: Tensor, items: list[Any], at: Callable[[Tensor, tuple[Any, ...]], Tensor]) -> Tensor:
    per_axis = [item for item in items if item is not None]
    read = [axis for axis, item in enumerate(per_axis) if not isinstance(item, slice)]
    kept = [axis for axis in range(len(per_axis)) if axis not in read]
    rows = at(tensor.permute(*read, *kept), tuple(per_axis[axis] for axis in read))
    return rows[tuple(item for item in items if item is None or isinstance(item, slice))]


__all__ = ["install"]
