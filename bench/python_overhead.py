"""What a call from Python costs, beside PyTorch, on this machine's CPU. Prints medians.

    python bench/python_overhead.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.attention.flex_attention as torch_flex
from torch import Tensor

from tilewright.torch import create_block_mask, flex_attention

BATCH, HEADS, LENGTH, SIZE = 1, 8, 2048, 64


def median(function: Callable[[], object], repeat: int = 7) -> float:
    """Seconds of one run, after one that does not count."""
    function()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def inputs(length: int = LENGTH, heads: int = HEADS, grad: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value."""
    generator = torch.Generator().manual_seed(0)
    shape = (BATCH, heads, length, SIZE)
    made = [torch.randn(shape, generator=generator).requires_grad_(grad) for _ in range(3)]
    return made[0], made[1], made[2]


def causal(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """A query sees the keys up to itself."""
    return q >= k


def forward() -> None:
    """Causal attention: ours, PyTorch's compiled flex attention, its fused attention."""
    q, k, v = inputs()
    ours = create_block_mask(causal, None, None, LENGTH, LENGTH, device="cpu")
    theirs = torch_flex.create_block_mask(causal, None, None, LENGTH, LENGTH, device="cpu")
    compiled = torch.compile(torch_flex.flex_attention)
    with torch.no_grad():
        print(f"forward, ours               {1e3 * median(lambda: flex_attention(q, k, v, block_mask=ours)):9.2f} ms")
        print(f"forward, PyTorch flex       {1e3 * median(lambda: compiled(q, k, v, block_mask=theirs)):9.2f} ms")
        fused = torch.nn.functional.scaled_dot_product_attention
        print(f"forward, PyTorch fused      {1e3 * median(lambda: fused(q, k, v, is_causal=True)):9.2f} ms")


def training() -> None:
    """Forward and backward with a learned relative bias: ours, and dense PyTorch."""
    q, k, v = inputs(grad=True)
    bias = torch.zeros(HEADS, 2 * LENGTH - 1, requires_grad=True)
    offsets = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH) + LENGTH - 1

    def ours() -> None:
        out: Tensor = flex_attention(q, k, v, lambda s, b, h, i, j: s + bias[h, i - j + LENGTH - 1])
        out.sum().backward()

    def dense() -> None:
        scores = q @ k.transpose(-1, -2) * SIZE**-0.5 + bias[:, offsets]
        (torch.softmax(scores, -1) @ v).sum().backward()

    print(f"training, ours              {1e3 * median(ours, 3):9.2f} ms")
    print(f"training, dense PyTorch     {1e3 * median(dense, 3):9.2f} ms")


def overhead() -> None:
    """A call so small that all is overhead, and the first call of a new function."""
    q, k, v = inputs(16, 2)
    bias = torch.zeros(2, 31)
    with torch.no_grad():
        start = time.perf_counter()
        flex_attention(q, k, v, lambda s, b, h, i, j: s + bias[h, i - j + 15] * 2)
        print(f"first call                  {1e3 * (time.perf_counter() - start):9.2f} ms")
        call = median(lambda: flex_attention(q, k, v, lambda s, b, h, i, j: s + bias[h, i - j + 15]), 3000)
        print(f"call at 16 positions        {1e6 * call:9.2f} µs")


if __name__ == "__main__":
    overhead()
    forward()
    training()
