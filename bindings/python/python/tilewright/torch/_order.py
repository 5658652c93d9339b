"""The order in which the axes of attention's results lie in memory, as PyTorch has it: an output as its query, a gradient as its
input, but that rows are always whole. What follows then reads them as it would read the inputs: nothing is copied for it."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from torch import Tensor

from tilewright._program import ordered, orders_of


def order_of(tensor: Tensor) -> str:
    """The axes from the outermost to the innermost; ``""`` for row-major."""
    if tensor.is_contiguous():
        return ""
    strides = batch, head, position, _ = tensor.stride()
    # The order of a projection's result, seen as heads, and row-major with gaps are found without sorting.
    if batch >= head >= position:
        return ""
    if batch >= position > head:
        return "0213"
    axes = sorted(range(3), key=lambda axis: (-strides[axis], axis))
    return "".join([str(axis) for axis in (*axes, 3)])


def is_attention(program: str) -> bool:
    """Whether it is a call of attention, whose first three inputs are query, key and value."""
    return program.startswith("graph(%query: ")


_in_orders = functools.lru_cache(maxsize=4096)(ordered)


def like(program: str, tensors: Sequence[Tensor]) -> str:
    """The program whose first results lie in the order of these tensors' axes; one text for each order."""
    orders = tuple([order_of(tensor) for tensor in tensors])
    return _in_orders(program, orders) if any(orders) else program


@functools.lru_cache(maxsize=64)
def _back(order: str) -> tuple[int, ...]:
    return tuple(order.index(str(axis)) for axis in range(len(order)))


def seen(program: str, results: list[Tensor]) -> list[Tensor]:
    """What a program gave, with its axes as they are meant."""
    orders, _ = orders_of(program)
    if not orders:
        return results
    return [
        result.permute(_back(orders[place])) if place < len(orders) and orders[place] else result
        for place, result in enumerate(results)
    ]


def shape_in(order: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape with its axes in an order."""
    return tuple(shape[int(axis)] for axis in order) if order else shape
