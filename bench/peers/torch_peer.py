"""PyTorch's side of the benchmarks: reads a case a line (JSON), answers with its times in seconds, or why it has none.

Run by `cargo xtask bench … --peer torch`, so that project and peer are measured in turn, in one run.
"""

from __future__ import annotations

import json
import sys
import time
import warnings

warnings.filterwarnings("ignore")
import torch  # noqa: E402
from torch.nn.attention.flex_attention import create_block_mask, flex_attention  # noqa: E402

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def timed(function, repeats):
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return times


def score_mod(case):
    heads, length = case["heads"], case["queries"]
    if case["score"] == "relative":
        bias = torch.randn(heads, 2 * length) * 0.1
        return lambda s, b, h, i, j: s + bias[h, i - j + length - 1]
    if case["score"] == "softcap":
        return lambda s, b, h, i, j: 20 * torch.tanh(s / 20)
    return None


def attention(case):
    dtype = DTYPES[case["dtype"]]
    shape = (case["batch"], case["heads"], case["queries"], case["head_size"])
    query, key, value = (torch.randn(shape, dtype=dtype) for _ in range(3))
    causal = case["mask"] == "causal"
    if case["implementation"] == "fused":
        if case["score"] != "none":
            raise NotImplementedError("no score functions")
        if case["direction"] == "forward":
            run = lambda: torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=causal)  # noqa: E731
        else:
            leaves = [x.requires_grad_() for x in (query, key, value)]
            out = torch.nn.functional.scaled_dot_product_attention(*leaves, is_causal=causal)
            cotangent = torch.randn_like(out)
            run = lambda: torch.autograd.grad(out, leaves, cotangent, retain_graph=True)  # noqa: E731
        return timed(run, case["repeats"])
    if case["direction"] == "backward":
        raise NotImplementedError("refused on the CPU")
    torch._dynamo.reset()
    length = case["queries"]
    mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, length, length, device="cpu") if causal else None
    compiled = torch.compile(flex_attention, dynamic=False)
    function = score_mod(case)
    with torch.no_grad():
        return timed(lambda: compiled(query, key, value, score_mod=function, block_mask=mask), case["repeats"])


def linear(left, right):
    return left[0] * right[0], right[0] * left[1] + right[1]


def scan(case):
    shape, axis = case["shape"], case["axis"]
    a = torch.rand(shape) * 0.1 + 0.9
    b = torch.randn(shape)
    if case["implementation"] == "cumsum":
        if case["scan"] != "sum" or case["direction"] != "forward":
            raise NotImplementedError("sums only")
        return timed(lambda: torch.cumsum(b, axis), case["repeats"])
    from torch._higher_order_ops.associative_scan import associative_scan

    if case["direction"] != "forward":
        raise NotImplementedError("its gradient takes minutes to compile, or is wrong for coupled leaves")
    torch._dynamo.reset()
    combine, xs = (lambda p, q: p + q, b) if case["scan"] == "sum" else (linear, (a, b))
    compiled = torch.compile(lambda xs: associative_scan(combine, xs, dim=axis, combine_mode="pointwise"), dynamic=False)
    return timed(lambda: compiled(xs), case["repeats"])


def main():
    torch.manual_seed(0)
    for line in sys.stdin:
        case = json.loads(line)
        torch.set_num_threads(case["threads"])
        try:
            answer = {"times": {"attention": attention, "scan": scan}[case["kind"]](case)}
        except Exception as error:  # noqa: BLE001
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:120]}
        print(json.dumps(answer), flush=True)


main()
