"""Attention with a pair bias that rows share, as in models of protein structure.

Each of ``rows`` sequences of an alignment attends along its residues with one bias ``[batch, heads, residues, residues]``,
made from a pair representation. Rows are folded into the batch, so row ``r`` of element ``b`` is batch element
``b·rows + r``, and the score function reads ``bias[b // rows, h, q, k]``: nothing is repeated, and the gradient of the
bias sums over rows inside the kernel.

    python examples/python/pair_bias.py
"""

from __future__ import annotations

import time

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
    """One training step, and the error of its gradients against attention that repeats the bias."""
    torch.manual_seed(0)
    layer = PairBiasAttention(width=64, pair_width=32, heads=4)
    alignment, pair = torch.randn(1, rows, residues, 64), torch.randn(1, residues, residues, 32)
    start = time.perf_counter()
    layer(alignment, pair).square().mean().backward()
    print(f"forward and backward: {1e3 * (time.perf_counter() - start):.1f} ms")
    ours = layer.bias.weight.grad
    assert ours is not None

    layer.zero_grad()
    projected = layer.project(alignment).view(rows, residues, 3, 4, 16).permute(2, 0, 3, 1, 4)
    scores = projected[0] @ projected[1].transpose(-1, -2) / 4 + layer.bias(pair).permute(0, 3, 1, 2)
    out = torch.softmax(scores, -1) @ projected[2]
    layer.output(out.transpose(1, 2).reshape(1, rows, residues, 64)).square().mean().backward()
    dense = layer.bias.weight.grad
    assert dense is not None
    return float(((ours - dense).norm() / dense.norm()).item())


if __name__ == "__main__":
    print(f"relative difference to a dense evaluation: {main():.2e}")
