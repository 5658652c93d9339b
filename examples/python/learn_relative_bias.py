"""A small transformer that learns how far to look back, on real text, under ``torch.compile``, on the CPU.

Each layer's attention has one learned number a head and distance. PyTorch's own ``flex_attention`` cannot train it on
the CPU; dense attention would hold every score. The text is this repository's own source. What was learned is drawn:
one row a layer and head, one column a distance.

    python examples/python/learn_relative_bias.py --steps 200 --out runs/relative_bias
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import tilewright
from tilewright.torch import BlockMask, create_block_mask, flex_attention

ROOT = Path(__file__).resolve().parents[2]


class Layer(nn.Module):
    """Attention with a relative bias, then a perceptron."""

    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.heads = heads
        self.before = nn.LayerNorm(width)
        self.between = nn.LayerNorm(width)
        self.project = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.bias = nn.Parameter(torch.zeros(heads, length))

    def forward(self, x: Tensor, mask: BlockMask) -> Tensor:
        batch, length, width = x.shape
        heads = self.project(self.before(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)

        def score(s: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return s + self.bias[h, q - k]

        out: Tensor = flex_attention(query, key, value, score, mask)
        x = x + self.output(out.transpose(1, 2).reshape(batch, length, width))
        y: Tensor = x + self.perceptron(self.between(x))
        return y


class Model(nn.Module):
    """A transformer over bytes, with no other notion of position than the bias."""

    def __init__(self, width: int, heads: int, layers: int, length: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, width)
        self.layers = nn.ModuleList(Layer(width, heads, length) for _ in range(layers))
        self.last = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, targets: Tensor, mask: BlockMask) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x, mask)
        logits = functional.linear(self.last(x), self.embed.weight) / math.sqrt(x.shape[-1])
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def text() -> Tensor:
    """The repository's Rust sources as bytes."""
    sources = sorted((ROOT / "crates").glob("*/src/**/*.rs"))
    return torch.frombuffer(bytearray(b"".join(path.read_bytes() for path in sources)), dtype=torch.uint8).long()


def batch_of(data: Tensor, size: int, length: int) -> tuple[Tensor, Tensor]:
    """Random stretches of the text, and the same a byte later."""
    starts = torch.randint(0, len(data) - length - 1, (size,))
    rows = torch.stack([data[start : start + length + 1] for start in starts.tolist()])
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def progress(step: int, steps: int, loss: float, start: float) -> None:
    """A line that is drawn over."""
    done = 30 * step // steps
    speed = step / (time.perf_counter() - start)
    sys.stderr.write(f"\r[{'#' * done}{'.' * (30 - done)}] {step}/{steps}  loss {loss:.3f}  {speed:.1f} steps/s ")
    sys.stderr.flush()


def train(steps: int, out: Path, length: int = 128, size: int = 8) -> list[float]:
    """Trains, writes the picture, and gives the losses."""
    torch.manual_seed(0)
    data = text()
    model = Model(width=64, heads=4, layers=2, length=length)
    compiled = torch.compile(model, fullgraph=True)
    mask = create_block_mask(lambda b, h, q, k: q >= k, None, None, length, length, device="cpu")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    start = time.perf_counter()
    for step in range(1, steps + 1):
        loss = compiled(*batch_of(data, size, length), mask)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(float(loss.item()))
        progress(step, steps, losses[-1], start)
    sys.stderr.write("\n")
    out.mkdir(parents=True, exist_ok=True)
    learned = torch.cat([parameter.detach() for name, parameter in model.named_parameters() if name.endswith(".bias")
                         and parameter.shape == (4, length)])
    tilewright.heat_map(
        out / "relative_bias.png", "learned bias", "distance", "layer and head", learned
    )
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "relative_bias")
    given = parser.parse_args()
    history = train(given.steps, given.out)
    print(f"loss {history[0]:.3f} → {history[-1]:.3f}; picture: {given.out / 'relative_bias.png'}")
