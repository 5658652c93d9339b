"""A compiler for attention and scans that people write as ordinary functions.

:mod:`tilewright.torch` stands in for PyTorch's ``flex_attention`` and ``associative_scan``.
"""

from __future__ import annotations

from tilewright._errors import (
    ArgumentError,
    DeviceUnavailableError,
    DTypeError,
    InternalError,
    LayoutError,
    LimitError,
    OutOfMemoryError,
    OutOfRangeError,
    ShapeError,
    TilewrightError,
    TraceError,
)
from tilewright._native import __version__, heat_map

__all__ = [
    "ArgumentError",
    "DTypeError",
    "DeviceUnavailableError",
    "InternalError",
    "LayoutError",
    "LimitError",
    "OutOfMemoryError",
    "OutOfRangeError",
    "ShapeError",
    "TilewrightError",
    "TraceError",
    "__version__",
    "heat_map",
]
