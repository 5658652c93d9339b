"""The stand-in for ``torch.nn.attention.flex_attention`` and for PyTorch's ``associative_scan``.

Change the import; score functions, masks and combines stay as they are::

    from tilewright.torch import flex_attention, create_block_mask   # was: torch.nn.attention.flex_attention

They train on the CPU, give exact and repeatable gradients to every tensor that they capture, and work under
``torch.compile(fullgraph=True)``.
"""

from __future__ import annotations

from torch.nn.attention.flex_attention import (
    _DEFAULT_SPARSE_BLOCK_SIZE as _DEFAULT_SPARSE_BLOCK_SIZE,
)
from torch.nn.attention.flex_attention import (
    FlexKernelOptions,
    create_mask,
)
from torch.nn.attention.flex_attention import (
    _mask_mod_signature as _mask_mod_signature,
)
from torch.nn.attention.flex_attention import (
    _score_mod_signature as _score_mod_signature,
)

from tilewright.torch import _compile
from tilewright.torch._attention import AuxOutput, AuxRequest, flex_attention
from tilewright.torch._block_mask import BlockMask, and_masks, create_block_mask, noop_mask, or_masks
from tilewright.torch._compile import enable
from tilewright.torch._inspect import explain, synchronize, visualize
from tilewright.torch._scan import associative_scan

__all__ = [
    "AuxOutput",
    "AuxRequest",
    "BlockMask",
    "FlexKernelOptions",
    "and_masks",
    "associative_scan",
    "create_block_mask",
    "create_mask",
    "enable",
    "explain",
    "flex_attention",
    "noop_mask",
    "or_masks",
    "synchronize",
    "visualize",
]

_compile.install()
