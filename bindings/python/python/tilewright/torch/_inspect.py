"""Looking at a call: what it is compiled to, and what its score function does, as a picture."""

from __future__ import annotations

import math
from os import PathLike

import torch
from torch import Tensor

from tilewright import _native
from tilewright._program import score_matrix, vjp
from tilewright.torch import _program
from tilewright.torch._block_mask import BlockMask, resolve
from tilewright.torch._program import ScoreMod
from tilewright.torch._values import LIBRARY

__all__ = ["explain", "synchronize", "visualize"]


def synchronize(device: torch.device | str | int | None = None) -> None:
    """Waits for a GPU, as ``torch.cuda.synchronize``, and raises what can be known only then: a captured tensor that a
    call read out of range. Calls themselves wait for nothing.

    Raises:
        OutOfRangeError: with the tensor's axis and size, and the line of the read.
    """
    torch.cuda.synchronize(device)
    number = torch.cuda._utils._get_device_index(device, optional=True)
    _native.synchronize(number)


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
    results = _program.attention_results(query.dtype, lse=True, maximum=False, derivative=True)
    program, captures = _program.attention(query, key, value, score_mod, mask_mod, scale, results)
    inputs = [query, key, value, *captures]
    text = _native.explain(program, inputs)
    wanted = [x.requires_grad for x in inputs]
    if not any(wanted):
        return text
    saved = [query.new_empty(shape, dtype=dtype) for dtype, shape in _program.result_shapes(program, inputs)]
    derivative = vjp(program, wanted, [True] + [False] * (len(saved) - 1))
    return text + _native.explain(derivative, [*inputs, *saved, saved[0]])


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

    Masked pairs are grey. Scores are found from attention on one-hot values, so that what is drawn is what runs.
    """
    mask_mod = None if block_mask is None else resolve(block_mask)
    program, captures = score_matrix(LIBRARY, queries, keys, score_mod, mask_mod, batch, head)
    on_host = [capture.cpu() for capture in captures]
    (scores,) = _native.call(program, on_host, torch.empty, torch.get_num_threads())
    _native.heat_map(path, f"batch element {batch}, head {head}", "key", "query", scores)
