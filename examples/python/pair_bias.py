"""Attention with a pair bias that rows share, as in models of protein structure.

Each of ``rows`` sequences of an alignment attends along its residues with one bias ``[batch, heads, residues, residues]``,
made from a pair representation. Rows are folded into the batch, so row ``r`` of element ``b`` is batch element
``b·rows + r``, and the score function reads ``bias[b // rows, h, q, k]``: nothing is repeated, and the gradient of the
bias sums over rows inside the kernel.

    python examples/python/pair_bias.py
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tilewright.torch import flex_attention


class PairBiasAttention(nn.Module):
    """Row-wise attention of an alignment, biased by a pair representation."""

    def __init__(self, width: int, pair_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(width, 3 * width, bias=False)
        self.bias = nn.Linear(pair_width, heads, bias=False)
        self.output = nn.Linear(width, width)

    def forward(self, alignment: Tensor, pair: Tensor) -> Tensor:
        """``alignment``: ``[batch, rows, residues, width]``; ``pair``: ``[batch, residues, residues, pair_width]``."""
        batch, rows, residues, width = alignment.shape
        folded = self.project(alignment).view(batch * rows, residues, 3, self.heads, width // self.heads)
        query, key, value = folded.permute(2, 0, 3, 1, 4)
        bias: Tensor = self.bias(pair).permute(0, 3, 1, 2).contiguous()

        def score(s: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return s + bias[b // rows, h, q, k]

        out: Tensor = flex_attention(query, key, value, score)
        mixed: Tensor = self.output(out.transpose(1, 2).reshape(batch, rows, residues, width))
        return mixed


def main(rows: int = 16, residues: int = 128) -> float:
    """A training step beside one that holds every score, and the difference of their gradients."""
    torch.manual_seed(0)
    layer = PairBiasAttention(width=64, pair_width=32, heads=4)
    alignment, pair = torch.randn(1, rows, residues, 64), torch.randn(1, residues, residues, 32)

    def dense() -> Tensor:
        query, key, value = layer.project(alignment).view(rows, residues, 3, 4, 16).permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-1, -2) / 4 + layer.bias(pair).permute(0, 3, 1, 2)
        out = torch.softmax(scores, -1) @ value
        mixed: Tensor = layer.output(out.transpose(1, 2).reshape(1, rows, residues, 64))
        return mixed

    def step(forward: Callable[[], Tensor], name: str) -> Tensor:
        times = []
        for _ in range(5):
            layer.zero_grad()
            start = time.perf_counter()
            torch.autograd.backward(forward().square().mean())
            times.append(time.perf_counter() - start)
        print(f"{name:6} first step {1e3 * times[0]:6.1f} ms, then {1e3 * min(times):6.1f} ms")
        gradient = layer.bias.weight.grad
        assert gradient is not None
        return gradient.clone()

    ours, golden = step(lambda: layer(alignment, pair), "ours"), step(dense, "dense")
    return float(((ours - golden).norm() / golden.norm()).item())


if __name__ == "__main__":
    print(f"relative difference to a dense evaluation: {main():.2e}")
