"""What a call on CUDA tensors costs, beside PyTorch's compiled flex attention, in one run.

    python bench/python_gpu.py [--rounds 9]
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import torch
import torch.nn.attention.flex_attention as torch_flex
from torch import Tensor

from tilewright.torch import create_block_mask, flex_attention

Run = Callable[[], object]


def measured(title: str, runs: dict[str, Run], rounds: int, calls: int, unit: str) -> None:
    """Prints the time of a call, of ``calls`` asked for one after the other and then waited for; in turn."""
    times: dict[str, list[float]] = {}
    for name, run in runs.items():
        try:
            run()
            torch.cuda.synchronize()
            times[name] = []
        except Exception as error:
            print(f"  {name}: {type(error).__name__}: {str(error).strip().splitlines()[0][:100]}")
    for _ in range(rounds):
        for name in times:
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(calls):
                runs[name]()
            torch.cuda.synchronize()
            times[name].append((time.perf_counter() - start) / calls)
    factor = {"ms": 1e3, "µs": 1e6}[unit]
    print(f"\n{title}")
    for name, seconds in times.items():
        spread = f"{min(seconds) * factor:9.2f} … {max(seconds) * factor:9.2f}"
        print(f"  {name:42} {statistics.median(seconds) * factor:9.2f} {unit}  ({spread})")


def inputs(batch: int, heads: int, length: int, size: int, grad: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value."""
    shape = (batch, heads, length, size)
    made = [torch.randn(shape, device="cuda", dtype=torch.bfloat16).requires_grad_(grad) for _ in range(3)]
    return made[0], made[1], made[2]


def overhead(rounds: int) -> None:
    """A call so small that all is overhead."""
    q, k, v = inputs(1, 8, 128, 64, False)
    bias = torch.zeros(8, 255, device="cuda")
    compiled = torch.compile(torch_flex.flex_attention, dynamic=False)

    def relative(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return s + bias[h, i - j + 127]

    with torch.no_grad():
        measured("call at 128 positions, a captured bias", {
            "ours": lambda: flex_attention(q, k, v, relative),
            "PyTorch flex_attention, compiled": lambda: compiled(q, k, v, relative),
            "PyTorch fused attention, no bias": lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v),
        }, rounds, 500, "µs")  # fmt: skip


def causal(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """A query sees the keys up to itself."""
    return q >= k


def attention(rounds: int) -> None:
    """Forward, and forward with backward, of causal attention without and with a learned bias."""
    batch, heads, length, size = 4, 16, 4096, 128
    q, k, v = inputs(batch, heads, length, size, True)
    cotangent = torch.randn_like(q)
    bias = torch.zeros(heads, 2 * length - 1, device="cuda", requires_grad=True)
    ours = create_block_mask(causal, None, None, length, length, device="cuda")
    theirs = torch_flex.create_block_mask(causal, None, None, length, length, device="cuda")
    compiled = torch.compile(torch_flex.flex_attention, dynamic=False)

    def relative(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return s + bias[h, i - j + length - 1]

    def both(attend: Callable[..., Tensor], leaves: tuple[Tensor, ...]) -> Run:
        return lambda: torch.autograd.grad(attend(), leaves, cotangent)

    def without_gradient(attend: Callable[..., Tensor]) -> Run:
        def run() -> Tensor:
            with torch.no_grad():
                return attend()

        return run

    plain = (lambda: flex_attention(q, k, v, block_mask=ours), lambda: compiled(q, k, v, block_mask=theirs))
    learned = (lambda: flex_attention(q, k, v, relative, ours), lambda: compiled(q, k, v, relative, theirs))
    for title, (mine, peer), leaves in (("causal", plain, (q, k, v)), ("causal, learned relative bias", learned, (q, k, v, bias))):
        measured(f"forward, {title}", {
            "ours": without_gradient(mine), "PyTorch flex_attention, compiled": without_gradient(peer),
        }, rounds, 5, "ms")  # fmt: skip
        measured(f"forward and backward, {title}", {
            "ours": both(mine, leaves), "PyTorch flex_attention, compiled": both(peer, leaves),
        }, rounds, 5, "ms")  # fmt: skip


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    print(f"PyTorch {torch.__version__}, {torch.cuda.get_device_name()}; median (least … greatest) of {given.rounds}")
    overhead(given.rounds)
    attention(given.rounds)
