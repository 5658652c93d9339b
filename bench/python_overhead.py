"""What a call from Python costs, beside PyTorch, on this machine's CPU, in one run.

Ours and its peers run in turn, so that whatever else the machine does falls on all of them. Each line has the median of
the runs, the least and the greatest, and how many times ours the median is.

    python bench/python_overhead.py [--rounds 15] [--dtype float32] [part of a table's name]
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
from torch.nn import functional

from tilewright.torch import create_block_mask, flex_attention

BATCH, HEADS, LENGTH, SIZE = 1, 8, 2048, 64
Run = Callable[[], object]


def measured(runs: dict[str, Run], rounds: int, calls: int = 1) -> dict[str, list[float]]:
    """Seconds of a call, ``rounds`` times each, in turn; without one that cannot run, whose reason is printed."""
    times: dict[str, list[float]] = {}
    for name, run in runs.items():
        try:
            run()
            times[name] = []
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
            print(f"  {name}: {type(error).__name__}: {reason[:100]}")
    for _ in range(rounds):
        for name in times:
            start = time.perf_counter()
            for _ in range(calls):
                runs[name]()
            times[name].append((time.perf_counter() - start) / calls)
    return times


def table(title: str, times: dict[str, list[float]], unit: str = "ms") -> None:
    """Prints the times; the first line is ours."""
    factor = {"ms": 1e3, "µs": 1e6, "s": 1.0}[unit]
    print(f"\n{title}")
    ours = statistics.median(next(iter(times.values())))
    for name, seconds in times.items():
        median = statistics.median(seconds)
        spread = f"{min(seconds) * factor:9.2f} … {max(seconds) * factor:9.2f}"
        print(f"  {name:42} {median * factor:9.2f} {unit}  ({spread})  {median / ours:6.2f} ×")


def inputs(dtype: torch.dtype, length: int, heads: int, grad: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value."""
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn((BATCH, heads, length, SIZE), generator=generator).to(dtype).requires_grad_(grad) for _ in range(3)]
    return made[0], made[1], made[2]


def causal(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """A query sees the keys up to itself."""
    return q >= k


def forward(dtype: torch.dtype, rounds: int) -> None:
    """Attention without gradients: ours, PyTorch's compiled flex attention, its fused attention."""
    q, k, v = inputs(dtype, LENGTH, HEADS)
    bias = torch.randn(HEADS, 2 * LENGTH - 1) * 0.1

    def relative(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return s + bias[h, i - j + LENGTH - 1]

    ours = create_block_mask(causal, None, None, LENGTH, LENGTH, device="cpu")
    theirs = torch_flex.create_block_mask(causal, None, None, LENGTH, LENGTH, device="cpu")
    whole, masked, biased = (torch.compile(torch_flex.flex_attention, dynamic=False) for _ in range(3))
    fused = functional.scaled_dot_product_attention
    with torch.no_grad():
        table("forward, all pairs", measured({
            "ours": lambda: flex_attention(q, k, v),
            "PyTorch flex_attention, compiled": lambda: whole(q, k, v),
            "PyTorch fused attention": lambda: fused(q, k, v),
        }, rounds))  # fmt: skip
        table("forward, causal", measured({
            "ours": lambda: flex_attention(q, k, v, block_mask=ours),
            "PyTorch flex_attention, compiled": lambda: masked(q, k, v, block_mask=theirs),
            "PyTorch fused attention": lambda: fused(q, k, v, is_causal=True),
        }, rounds))  # fmt: skip
        table("forward, relative bias", measured({
            "ours": lambda: flex_attention(q, k, v, relative),
            "PyTorch flex_attention, compiled": lambda: biased(q, k, v, relative),
        }, rounds))  # fmt: skip


def training(dtype: torch.dtype, rounds: int) -> None:
    """Forward and backward with a learned relative bias: ours, and what PyTorch has on a CPU, which is dense."""
    q, k, v = inputs(dtype, LENGTH, HEADS, grad=True)
    bias = (torch.randn(HEADS, 2 * LENGTH - 1) * 0.1).to(dtype).requires_grad_()
    cotangent = torch.randn(q.shape).to(dtype)
    offsets = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH) + LENGTH - 1

    def ours(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return flex_attention(q, k, v, lambda s, b, h, i, j: s + bias[h, i - j + LENGTH - 1])

    def dense(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return torch.softmax(q @ k.transpose(-1, -2) * SIZE**-0.5 + bias[:, offsets], -1) @ v

    def masked(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias[:, offsets][None])

    def step(function: Callable[..., Tensor]) -> Run:
        return lambda: torch.autograd.grad(function(q, k, v, bias), (q, k, v, bias), cotangent)

    found, golden = (step(function)() for function in (ours, dense))
    assert isinstance(found, tuple) and isinstance(golden, tuple)
    for name, a, b in zip(("query", "key", "value", "bias"), found, golden):
        print(f"  gradient of {name}: relative difference {float((a - b).norm() / b.norm()):.1e}")
    table("training, learned relative bias", measured({
        "ours": step(ours),
        "ours in torch.compile": step(torch.compile(ours, fullgraph=True)),
        "PyTorch, dense": step(dense),
        "PyTorch, dense, compiled": step(torch.compile(dense)),
        "PyTorch, fused with the bias as a mask": step(masked),
    }, rounds))  # fmt: skip


def overhead(dtype: torch.dtype, rounds: int) -> None:
    """A call so small that all is overhead, and the first call of a new function."""
    q, k, v = inputs(dtype, 16, 2)
    bias = torch.zeros(2, 31)
    learned, leaves = torch.zeros(2, 31, requires_grad=True), inputs(dtype, 16, 2, grad=True)
    compiled = torch.compile(torch_flex.flex_attention, dynamic=False)

    def relative(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return s + bias[h, i - j + 15]

    def without() -> Tensor:
        with torch.no_grad():
            return flex_attention(q, k, v, lambda s, b, h, i, j: s + bias[h, i - j + 15])

    def peer() -> Tensor:
        with torch.no_grad():
            result: Tensor = compiled(q, k, v, relative)
            return result

    table("call at 16 positions, a captured bias", measured({
        "ours, a new function each call": without,
        "ours, recording for gradients": lambda: flex_attention(*leaves, lambda s, b, h, i, j: s + learned[h, i - j + 15]),
        "PyTorch flex_attention, compiled": peer,
        "PyTorch fused attention, no bias": lambda: functional.scaled_dot_product_attention(q, k, v),
    }, rounds, 200), "µs")  # fmt: skip

    for length, heads in ((16, 2), (LENGTH, HEADS)):
        q, k, v = inputs(dtype, length, heads)
        factors = iter(range(1, 1 << 30))
        wide = torch.zeros(heads, 2 * length - 1)

        def new() -> Tensor:
            # The number is part of the function, so that each is compiled anew.
            factor = next(factors) / 7
            return flex_attention(q, k, v, lambda s, b, h, i, j: s * factor + wide[h, i - j + length - 1])

        def known() -> Tensor:
            return flex_attention(q, k, v, lambda s, b, h, i, j: s * 0.5 + wide[h, i - j + length - 1])

        def first_of_peer() -> Tensor:
            torch._dynamo.reset()
            factor = next(factors) / 7
            run = torch.compile(torch_flex.flex_attention, dynamic=False)
            result: Tensor = run(q, k, v, lambda s, b, h, i, j: s * factor + wide[h, i - j + length - 1])
            return result

        with torch.no_grad():
            table(f"first call at {length} positions", measured({"ours": new, "ours, again": known}, rounds))
            table("…of PyTorch, compiled", measured({"PyTorch flex_attention": first_of_peer}, 1), "s")


TABLES: dict[str, Callable[[torch.dtype, int], None]] = {"overhead": overhead, "forward": forward, "training": training}

if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("table", nargs="?", default="", choices=["", *TABLES])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(f"PyTorch {torch.__version__}, {given.threads} threads, {given.dtype}, "
          f"B={BATCH} H={HEADS} S={LENGTH} D={SIZE}; median (least … greatest) of {given.rounds}")  # fmt: skip
    for name, run in TABLES.items():
        if given.table in name:
            run(getattr(torch, given.dtype), given.rounds)
