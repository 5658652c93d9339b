"""Element-wise functions for traced functions, by NumPy's names. NumPy's own work as well; those of other libraries know
nothing of traced values."""

from __future__ import annotations

from typing import Any, cast

from tilewright._trace.operations import OPERATIONS, record
from tilewright._trace.value import Traced

__all__ = [
    "abs",
    "clip",
    "concatenate",
    "cos",
    "erf",
    "exp",
    "log",
    "log1p",
    "logical_and",
    "logical_not",
    "logical_or",
    "maximum",
    "minimum",
    "sigmoid",
    "sin",
    "softmax",
    "softplus",
    "sqrt",
    "stop_gradient",
    "tanh",
    "where",
]


def _record(name: str, *operands: Any, **options: Any) -> Traced:
    return cast(Traced, record(OPERATIONS[name], f"tilewright.{name}", operands, options))


def abs(x: Any) -> Traced:  # noqa: A001
    """The absolute value."""
    return _record("abs", x)


def clip(x: Any, min: Any = None, max: Any = None) -> Traced:  # noqa: A002
    """``x`` within bounds, each of which may be absent."""
    return _record("clip", x, min, max)


def concatenate(arrays: Any, axis: int = 0) -> Traced:
    """Arrays one after the other along an axis."""
    return _record("concatenate", arrays, axis)


def cos(x: Any) -> Traced:
    """The cosine."""
    return _record("cos", x)


def erf(x: Any) -> Traced:
    """The error function."""
    return _record("erf", x)


def exp(x: Any) -> Traced:
    """eˣ."""
    return _record("exp", x)


def log(x: Any) -> Traced:
    """The natural logarithm."""
    return _record("log", x)


def log1p(x: Any) -> Traced:
    """log(1 + x), exact near 0."""
    return _record("log1p", x)


def logical_and(x: Any, y: Any) -> Traced:
    """Whether both hold."""
    return _record("logical_and", x, y)


def logical_not(x: Any) -> Traced:
    """Whether it does not hold."""
    return _record("logical_not", x)


def logical_or(x: Any, y: Any) -> Traced:
    """Whether one holds."""
    return _record("logical_or", x, y)


def maximum(x: Any, y: Any) -> Traced:
    """The greater; NaN if either is."""
    return _record("maximum", x, y)


def minimum(x: Any, y: Any) -> Traced:
    """The lesser; NaN if either is."""
    return _record("minimum", x, y)


def sigmoid(x: Any) -> Traced:
    """1 / (1 + e⁻ˣ)."""
    return _record("sigmoid", x)


def sin(x: Any) -> Traced:
    """The sine."""
    return _record("sin", x)


def softmax(x: Any, axis: int) -> Traced:
    """Shares exp(x) / Σ exp(x) along an axis."""
    return _record("softmax", x, axis)


def softplus(x: Any) -> Traced:
    """log(1 + eˣ)."""
    return _record("softplus", x)


def sqrt(x: Any) -> Traced:
    """The square root."""
    return _record("sqrt", x)


def stop_gradient(x: Any) -> Traced:
    """``x`` itself, through which no gradient passes."""
    return _record("stop_gradient", x)


def tanh(x: Any) -> Traced:
    """The hyperbolic tangent."""
    return _record("tanh", x)


def where(condition: Any, x: Any, y: Any) -> Traced:
    """``x`` where the condition holds, else ``y``; the other side never shows."""
    return _record("where", condition, x, y)
