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


class Block(torch.nn.Module):
    """A layer of the language model example. Biases are gathered into a dense additive mask, since PyTorch's
    flex_attention does not train on a CPU."""

    def __init__(self, width, heads, context, biases):
        super().__init__()
        self.heads = heads
        self.attention_norm = torch.nn.RMSNorm(width, eps=1e-5)
        self.perceptron_norm = torch.nn.RMSNorm(width, eps=1e-5)
        linear = lambda a, b: torch.nn.Linear(a, b, bias=False)  # noqa: E731
        self.query_key_value, self.output = linear(width, 3 * width), linear(width, width)
        self.up, self.down = linear(width, 4 * width), linear(4 * width, width)
        self.bias = torch.nn.Parameter(torch.zeros(heads, context)) if biases else None
        distance = torch.arange(context)[:, None] - torch.arange(context)[None, :]
        self.register_buffer("distance", distance.clamp(min=0))
        self.register_buffer("hidden", torch.zeros(context, context).masked_fill(distance < 0, float("-inf")))

    def forward(self, x):
        batch, length, width = x.shape
        packed = self.query_key_value(self.attention_norm(x)).view(batch, length, 3, self.heads, -1)
        query, key, value = packed.permute(2, 0, 3, 1, 4)
        attend = torch.nn.functional.scaled_dot_product_attention
        if self.bias is None:
            mixed = attend(query, key, value, is_causal=True)
        else:
            mixed = attend(query, key, value, attn_mask=self.bias[:, self.distance] + self.hidden)
        x = x + self.output(mixed.transpose(1, 2).reshape(batch, length, width))
        hidden = torch.nn.functional.gelu(self.up(self.perceptron_norm(x)), approximate="tanh")
        return x + self.down(hidden)


class Gpt(torch.nn.Module):
    def __init__(self, layers, width, heads, context, biases):
        super().__init__()
        self.embedding = torch.nn.Embedding(256, width)
        self.layers = torch.nn.ModuleList(Block(width, heads, context, biases) for _ in range(layers))
        self.norm = torch.nn.RMSNorm(width, eps=1e-5)

    def forward(self, windows):
        x = self.embedding(windows[:, :-1])
        for layer in self.layers:
            x = layer(x)
        logits = self.norm(x) @ self.embedding.weight.T
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def model(case):
    torch._dynamo.reset()
    network = Gpt(case["layers"], case["width"], case["heads"], case["context"], case["biases"])
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
    windows = torch.randint(0, 256, (case["batch"], case["context"] + 1))
    loss = torch.compile(network) if case["implementation"] == "compiled" else network

    def step():
        optimizer.zero_grad()
        loss(windows).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()

    return timed(step, case["repeats"])


def main():
    torch.manual_seed(0)
    print("ready", flush=True)
    for line in sys.stdin:
        case = json.loads(line)
        torch.set_num_threads(case["threads"])
        try:
            answer = {"times": {"attention": attention, "scan": scan, "model": model}[case["kind"]](case)}
        except Exception as error:  # noqa: BLE001
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:120]}
        print(json.dumps(answer), flush=True)


main()
