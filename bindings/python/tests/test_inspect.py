"""What can be seen of a call."""

from __future__ import annotations

from pathlib import Path

import torch

from tilewright.torch import create_block_mask, explain, visualize


def test_explain_says_how_a_bias_is_reduced() -> None:
    q, k, v = (torch.randn(1, 2, 32, 8, requires_grad=True) for _ in range(3))
    bias = torch.randn(2, 63, requires_grad=True)
    text = explain(q, k, v, lambda s, b, h, i, j: s + bias[h, i - j + 31])
    assert "attention f32 B1 H2 Q32 K32 D8 V8" in text
    assert "attention gradient" in text and "learned capture" in text
    assert "gradient" not in explain(q.detach(), k.detach(), v.detach())


def test_picture(tmp_path: Path) -> None:
    mask = create_block_mask(lambda b, h, q, k: q >= k, None, None, 40, 40, device="cpu")
    path = tmp_path / "scores.png"
    visualize(path, 40, 40, lambda s, b, h, q, k: s + 0.1 * (k - q), mask)
    assert path.read_bytes().startswith(b"\x89PNG")
