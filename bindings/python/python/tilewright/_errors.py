"""The package's exceptions: one base class, and the built-in class that a Python user expects beside it."""

from __future__ import annotations


class TilewrightError(Exception):
    """Base of every error of this package. ``code`` is stable: ``"shape"``, ``"dtype"``, ``"index"``, …"""

    code = "error"


class ShapeError(TilewrightError, ValueError):
    """Two extents, or a rank, disagree."""

    code = "shape"


class DTypeError(TilewrightError, TypeError):
    """An element type that does not fit."""

    code = "dtype"


class TraceError(TilewrightError, TypeError):
    """A user's function did something that cannot be traced."""

    code = "trace"


class TraceAttributeError(TraceError, AttributeError):
    """A user's function asked a traced value for an attribute that it has not."""


class OutOfRangeError(TilewrightError, IndexError):
    """A captured array was read outside its bounds, for a pair that is not masked out."""

    code = "index"


class LayoutError(TilewrightError, ValueError):
    """Strides that an operation cannot take."""

    code = "layout"


class LimitError(TilewrightError, ValueError):
    """A limit of the compiler, or a size that overflows."""

    code = "limit"


class ArgumentError(TilewrightError, ValueError):
    """An argument whose value is wrong."""

    code = "argument"


class OutOfMemoryError(TilewrightError, MemoryError):
    """Memory could not be had; a retry with less works."""

    code = "out_of_memory"


class DeviceUnavailableError(TilewrightError, RuntimeError):
    """A device that is not there, or not able."""

    code = "device_unavailable"


class ForkError(TilewrightError, RuntimeError):
    """A GPU that was used before the process forked: start such processes by ``spawn``."""

    code = "fork"


class InternalError(TilewrightError, RuntimeError):
    """A fault of the compiler: please report it."""

    code = "internal"


_CLASSES: dict[str, type[TilewrightError]] = {
    "shape": ShapeError,
    "dtype": DTypeError,
    "trace": TraceError,
    "index": OutOfRangeError,
    "layout": LayoutError,
    "limit": LimitError,
    "too_large": LimitError,
    "argument": ArgumentError,
    "out_of_memory": OutOfMemoryError,
    "device_unavailable": DeviceUnavailableError,
    "fork": ForkError,
}


def error_from(code: str, message: str) -> TilewrightError:
    """The exception for an error of the compiler: called from the native module."""
    return _CLASSES.get(code, InternalError)(message)
