"""Element types by the compiler's names, and PyTorch's rules of promotion, which every front follows."""

from __future__ import annotations

#: Truth values, whole numbers, floats: promotion goes by these first.
CATEGORY: dict[str, int] = {
    "bool": 0,
    "u8": 1,
    "i32": 1,
    "i64": 1,
    "f16": 2,
    "bf16": 2,
    "f32": 2,
    "f64": 2,
}

#: From the narrowest; within a category the later one wins.
_WIDTH = {kind: position for position, kind in enumerate(CATEGORY)}

#: The names that array libraries use, and those that the compiler uses.
LONG_NAMES: dict[str, str] = {
    "bool": "bool",
    "u8": "uint8",
    "i32": "int32",
    "i64": "int64",
    "f16": "float16",
    "bf16": "bfloat16",
    "f32": "float32",
    "f64": "float64",
}


def is_float(kind: str) -> bool:
    """Whether it is a float type."""
    return CATEGORY[kind] == 2


def promote(first: str, second: str) -> str:
    """The type that both convert to."""
    if {first, second} == {"f16", "bf16"}:
        return "f32"
    return first if _WIDTH[first] >= _WIDTH[second] else second


def category_of(number: bool | int | float) -> int:
    """The category of a Python number."""
    return 0 if isinstance(number, bool) else 1 if isinstance(number, int) else 2


def score_kind(kind: str) -> str:
    """The type in which the scores of attention are computed."""
    return "f64" if kind == "f64" else "f32"
