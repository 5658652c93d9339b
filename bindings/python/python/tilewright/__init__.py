"""A compiler for attention and scans that people write as ordinary functions.

Here are the operations on arrays of any library that speaks DLPack (NumPy, JAX, CuPy, …), and ``compile``, ``grad`` and
``value_and_grad`` for functions made of them. :mod:`tilewright.torch` stands in for PyTorch's ``flex_attention`` and
``associative_scan``, under autograd and ``torch.compile``.

>>> import numpy as np
>>> import tilewright as tw
>>> def loss(q, k, v, bias):
...     return (tw.flex_attention(q, k, v, lambda s, b, h, i, j: s + bias[h, i - j + 7]) ** 2).sum()
>>> q, k, v = (np.ones((1, 2, 8, 4), np.float32) for _ in range(3))
>>> value, gradient = tw.value_and_grad(loss, argnums=3)(q, k, v, np.zeros((2, 15), np.float32))
>>> gradient.shape
(2, 15)
"""

from __future__ import annotations

from tilewright._arrays import ArrayTraced, Capture, SupportsDLPack, capture
from tilewright._attention import associative_scan, flex_attention, mask_picture, visualize
from tilewright._errors import (
    ArgumentError,
    DeviceUnavailableError,
    DTypeError,
    ForkError,
    InternalError,
    LayoutError,
    LimitError,
    OutOfMemoryError,
    OutOfRangeError,
    ShapeError,
    TilewrightError,
    TraceError,
)
from tilewright._functions import (
    abs,
    clip,
    concatenate,
    cos,
    erf,
    exp,
    log,
    log1p,
    logical_and,
    logical_not,
    logical_or,
    maximum,
    minimum,
    sigmoid,
    sin,
    softmax,
    softplus,
    sqrt,
    stop_gradient,
    tanh,
    where,
)
from tilewright._native import __version__, heat_map
from tilewright._transform import Compiled, compile, grad, value_and_grad

__all__ = [
    "ArgumentError",
    "ArrayTraced",
    "Capture",
    "Compiled",
    "DTypeError",
    "DeviceUnavailableError",
    "ForkError",
    "InternalError",
    "LayoutError",
    "LimitError",
    "OutOfMemoryError",
    "OutOfRangeError",
    "ShapeError",
    "SupportsDLPack",
    "TilewrightError",
    "TraceError",
    "__version__",
    "abs",
    "associative_scan",
    "capture",
    "clip",
    "compile",
    "concatenate",
    "cos",
    "erf",
    "exp",
    "flex_attention",
    "grad",
    "heat_map",
    "log",
    "log1p",
    "logical_and",
    "logical_not",
    "logical_or",
    "mask_picture",
    "maximum",
    "minimum",
    "sigmoid",
    "sin",
    "softmax",
    "softplus",
    "sqrt",
    "stop_gradient",
    "tanh",
    "value_and_grad",
    "visualize",
    "where",
]
