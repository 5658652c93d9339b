"""A gated linear recurrence, as in state-space models, learned with ``associative_scan``.

The model sees noisy samples of a decaying signal and learns how fast it decays: ``y[t] = a·y[t-1] + x[t]``, with one
``a`` a channel. The gradient of ``a`` passes through a scan whose two leaves are coupled.

    python examples/python/recurrence.py
"""

from __future__ import annotations

import torch
from torch import Tensor

from tilewright.torch import associative_scan

Pair = tuple[Tensor, Tensor]


def linear(left: Pair, right: Pair) -> Pair:
    """Two steps of ``y → a·y + b`` as one."""
    return left[0] * right[0], right[0] * left[1] + right[1]


def filtered(decay: Tensor, x: Tensor) -> Tensor:
    """``x``: ``[batch, time, channel]``; ``decay``: ``[channel]``."""
    y: Tensor = associative_scan(linear, (decay.expand_as(x), x), dim=1)[1]
    return y


def main(steps: int = 200) -> float:
    """Trains, and gives the greatest error of the learned decay."""
    torch.manual_seed(0)
    truth = torch.tensor([0.3, 0.8, 0.95, 0.99])
    parameter = torch.zeros(4, requires_grad=True)
    optimizer = torch.optim.Adam([parameter], lr=0.1)
    for step in range(steps):
        x = torch.randn(8, 256, 4)
        with torch.no_grad():
            target = filtered(truth, x)
        loss = (filtered(torch.sigmoid(parameter), x) - target).square().mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        if step % 20 == 0:
            learned = "  ".join(f"{decay:.3f}" for decay in torch.sigmoid(parameter).tolist())
            print(f"step {step:4}  loss {loss.item():10.5f}  decay {learned}")
    return float((torch.sigmoid(parameter) - truth).abs().max().item())


if __name__ == "__main__":
    print(f"greatest error of the learned decay: {main():.4f}")
