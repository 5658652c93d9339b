"""Shifts, which the compiler has no operation for: products and quotients with powers of two."""

from __future__ import annotations

from typing import Any

from tilewright._trace.elementwise import Operation, binary, compare, together, where
from tilewright._trace.region import Value, refuse, region_of

#: The greatest power of two that a type holds, and how many bits a shift's count has.
_BITS = {"u8": (7, 3), "i32": (30, 5), "i64": (62, 6)}


def _by(op: str, x: Value, count: int) -> Value:
    while count > 0:
        step = min(count, _BITS[x.kind][0])
        x = binary(op, x, 1 << step)
        count -= step
    return x


def _shift(op: str) -> Operation:
    def operation(x: Any, count: Any) -> Value:
        kind = region_of(x, count).result_kind([x, count])
        if kind not in _BITS:
            raise refuse(f"a shift of whole numbers expected, {kind} found", "convert it first: x.to(torch.int32)")
        if isinstance(count, int):
            if count < 0:
                raise refuse(f"a shift by {count}", "shift the other way")
            return _by(op, region_of(x).lift(x, kind), count)
        shifted, amount = together([x, count], kind)
        for bit in range(_BITS[kind][1]):
            chosen = compare("ne", binary("and", amount, 1 << bit), 0)
            shifted = where(chosen, _by(op, shifted, 1 << bit), shifted)
        return shifted

    return operation


#: ``x << count``.
left_shift = _shift("mul")

#: ``x >> count``: the quotient of whole numbers rounds down, as a shift that keeps the sign does.
right_shift = _shift("div")
