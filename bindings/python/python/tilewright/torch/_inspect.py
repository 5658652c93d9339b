"""Looking at a call: what it is compiled to, and what its score function does, as a picture."""

from __future__ import annotations

import math
from os import PathLike

import torch
from torch import Tensor

from tilewright import _native
from tilewright.torch import _program
from tilewright.torch._attention import flex_attention
from tilewright.torch._block_mask import BlockMask, resolve
from tilewright.torch._program import ScoreMod

__all__ = ["explain", "visualize"]


def explain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: ScoreMod | None = None,
    block_mask: BlockMask | None = None,
    scale: float | None = None,
) -> str:
    """What ``flex_attention`` of these arguments consists of: kernels, times of the compiler's passes, memory; and, for
    captured tensors that require a gradient, how each is reduced in the backward pass.

    >>> import torch
    >>> q, k, v = (torch.randn(1, 2, 8, 4) for _ in range(3))
    >>> print(explain(q, k, v).splitlines()[-1])
    attention f32 B1 H2 Q8 K8 D4 V4
    """
    mask_mod = None if block_mask is None else resolve(block_mask)
    scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    program, captures = _program.attention(query, score_mod, mask_mod, scale, "%out, %lse")
    inputs = [query, key, value, *captures]
    text = _native.explain_torch(program, inputs)
    wanted = [x.requires_grad for x in inputs]
    if not any(wanted):
        return text
    rows = query.shape[:3]
    out = query.new_empty((*rows, value.shape[3]))
    lse = query.new_empty(rows, dtype=_program.score_type(query.dtype))
    derivative = _program.vjp(program, wanted, [True, False])
    return text + _native.explain_torch(derivative, [*inputs, out, lse, out])


def visualize(
    path: str | PathLike[str],
    queries: int,
    keys: int,
    score_mod: ScoreMod | None = None,
    block_mask: BlockMask | None = None,
    *,
    batch: int = 0,
    head: int = 0,
) -> None:
    """Draws what a score function and a mask make of a score of zero, for each query and key, to a PNG file.

    Masked pairs are grey. The scores of one query are found from attention of one-hot values, so no other definition of
    the function is needed than the one that is run.
    """
    shape = (batch + 1, head + 1)
    zeros = torch.zeros(*shape, queries, 1)
    values = torch.eye(keys).expand(*shape, keys, keys)
    with torch.no_grad():
        weights, lse = flex_attention(
            zeros, torch.zeros(*shape, keys, 1), values, score_mod, block_mask, return_lse=True
        )
    scores = (torch.log(weights) + lse.unsqueeze(-1))[batch, head]
    _native.heat_map(path, f"batch element {batch}, head {head}", "key", "query", scores.tolist())
