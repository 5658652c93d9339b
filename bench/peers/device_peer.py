"""PyTorch's and JAX's side of the benchmarks on a GPU: `device_peer.py scans|gpt2|copy|jax|jax-model`, a line of JSON a case.

Run beside `device` (bench/src/bin/device) in the same call on the same machine.
"""

from __future__ import annotations

import json
import sys
import time
import warnings

warnings.filterwarnings("ignore")
import torch  # noqa: E402

DEVICE = "cuda"


def emit(**case):
    print(json.dumps(case), flush=True)


def median_ms(function, calls=20, measurements=5):
    times = []
    for _ in range(measurements + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            function()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / calls * 1e3)
    return sorted(times[1:])[measurements // 2]


def copy():
    x = torch.empty(2**30, dtype=torch.uint8, device=DEVICE)
    y = torch.empty_like(x)
    ms = median_ms(lambda: y.copy_(x))
    emit(case="copy", ms=round(ms, 4), gbps=round(2 * 2**30 / ms / 1e6))


def scans():
    from torch._higher_order_ops.associative_scan import associative_scan

    copy()

    def recurrence(left, right):
        return left[0] * right[0], right[0] * left[1] + right[1]

    for rows, length in [(4096, 16384), (64, 2**20), (1, 2**26)]:
        n = rows * length
        a = torch.rand(rows, length, device=DEVICE) * 0.1 + 0.9
        b = torch.rand(rows, length, device=DEVICE) * 2 - 1
        for name, args, combine, size in (
            ("sum", b, lambda x, y: x + y, 8),
            ("linear recurrence", (a, b), recurrence, 16),
        ):
            torch._dynamo.reset()
            run = torch.compile(lambda xs, f=combine: associative_scan(f, xs, dim=1, combine_mode="pointwise"))
            try:
                ms = median_ms(lambda: run(args), calls=5 if rows == 1 and size == 16 else 20)
                emit(case="torch " + name, R=rows, T=length, ms=round(ms, 4), gbps=round(size * n / ms / 1e6))
            except Exception as error:  # a peer that fails is a result too
                emit(case="torch " + name, R=rows, T=length, error=str(error)[:200])
        del a, b
        torch.cuda.empty_cache()


def jax_scans():
    import os

    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    import jax

    def recurrence(left, right):
        return left[0] * right[0], right[0] * left[1] + right[1]

    for rows, length in [(4096, 16384), (64, 2**20)]:
        key = jax.random.PRNGKey(0)
        a = jax.random.uniform(key, (rows, length)) * 0.1 + 0.9
        b = jax.random.normal(key, (rows, length))
        forward = jax.jit(lambda a, b: jax.lax.associative_scan(recurrence, (a, b), axis=1))
        both = jax.jit(
            jax.grad(lambda a, b: jax.lax.associative_scan(recurrence, (a, b), axis=1)[1].sum(), argnums=(0, 1))
        )
        for name, run in (("linear recurrence", forward), ("linear recurrence forward+backward", both)):
            jax.block_until_ready(run(a, b))
            times = []
            for _ in range(10):
                start = time.perf_counter()
                jax.block_until_ready(run(a, b))
                times.append(time.perf_counter() - start)
            emit(case="jax " + name, R=rows, T=length, ms=round(sorted(times)[5] * 1e3, 4))


def jax_model(layers=12, batch=8, length=2048, width=768, words=256):
    """The gated linear recurrences of `device recurrence`, jitted whole."""
    import os

    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    import jax
    import jax.numpy as jnp

    def recurrence(left, right):
        return left[0] * right[0], right[0] * left[1] + right[1]

    def half(x):
        return x.astype(jnp.bfloat16)

    def loss(model, tokens):
        x = model["embedding"][tokens[:, :-1]]
        for layer in model["layers"]:
            normed = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5) * layer["gain"]
            gates = (half(normed) @ half(layer["gates"])).astype(jnp.float32)
            kept, entering, leaving = jnp.split(gates, 3, axis=-1)
            kept = jax.nn.sigmoid(kept)
            states = jax.lax.associative_scan(recurrence, (kept, (1 - kept) * entering), axis=1)[1]
            x = x + (half(states * jax.nn.silu(leaving)) @ half(layer["output"])).astype(jnp.float32)
        logits = (half(x) @ half(model["embedding"]).T).astype(jnp.float32)
        picked = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
        return (jax.nn.logsumexp(logits, axis=-1) - picked).mean()

    def step(model, first, second, count, tokens):
        value, gradient = jax.value_and_grad(loss)(model, tokens)
        count = count + 1
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradient)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, gradient)
        one, two = 1 - 0.9**count, 1 - 0.999**count

        def moved(p, m, v):
            return p - 3e-4 * (m / one / (jnp.sqrt(v / two) + 1e-8) + 0.01 * p)

        return value, jax.tree.map(moved, model, first, second), first, second, count

    keys = jax.random.split(jax.random.PRNGKey(0), 2 * layers + 1)
    model = {
        "embedding": 0.02 * jax.random.normal(keys[-1], (words, width)),
        "layers": [
            {
                "gain": jnp.ones(width),
                "gates": 0.02 * jax.random.normal(keys[2 * i], (width, 3 * width)),
                "output": 0.02 * jax.random.normal(keys[2 * i + 1], (width, width)),
            }
            for i in range(layers)
        ],
    }
    rows, columns = jnp.meshgrid(jnp.arange(batch), jnp.arange(length + 1), indexing="ij")
    tokens = (rows * 79 + columns * columns * 31) % words
    compiled = jax.jit(step, donate_argnums=(0, 1, 2, 3))
    state = (model, jax.tree.map(jnp.zeros_like, model), jax.tree.map(jnp.zeros_like, model), jnp.float32(0))
    times, losses = [], []
    for _ in range(6):
        start = time.perf_counter()
        for _ in range(6):
            value, *state = compiled(*state, tokens)
            losses.append(value)
        jax.block_until_ready(state)
        times.append((time.perf_counter() - start) / 6 * 1e3)
    ms = round(sorted(times[1:])[2], 3)
    ends = {"first_loss": round(float(losses[0]), 4), "last_loss": round(float(losses[-1]), 4)}
    emit(case="jax recurrence model", layers=layers, B=batch, S=length, ms=ms, **ends)


def gpt2(layers=12, batch=8, length=1024):
    import torch.nn.functional as F
    from torch import nn

    width, heads, words = 768, 12, 50304

    class Block(nn.Module):
        def __init__(self, biased):
            super().__init__()
            self.attention_norm = nn.LayerNorm(width)
            self.query_key_value = nn.Linear(width, 3 * width, bias=False)
            self.output = nn.Linear(width, width, bias=False)
            self.perceptron_norm = nn.LayerNorm(width)
            self.up = nn.Linear(width, 4 * width, bias=False)
            self.down = nn.Linear(4 * width, width, bias=False)
            self.bias = nn.Parameter(torch.zeros(heads, 2 * length - 1)) if biased else None

        def forward(self, x, distance, causal):
            query, key, value = (
                part.view(batch, length, heads, width // heads).transpose(1, 2)
                for part in self.query_key_value(self.attention_norm(x)).split(width, dim=2)
            )
            if self.bias is None:
                mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
            else:
                # A dense bias is what PyTorch can differentiate.
                bias = self.bias[:, distance].masked_fill(~causal, float("-inf")).to(query.dtype)
                mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
            x = x + self.output(mixed.transpose(1, 2).reshape(batch, length, width))
            return x + self.down(F.gelu(self.up(self.perceptron_norm(x)), approximate="tanh"))

    class Model(nn.Module):
        def __init__(self, biased):
            super().__init__()
            self.embedding = nn.Embedding(words, width)
            self.positions = nn.Embedding(length, width)
            self.blocks = nn.ModuleList(Block(biased) for _ in range(layers))
            self.norm = nn.LayerNorm(width)
            place = torch.arange(length, device=DEVICE)
            self.register_buffer("distance", place[:, None] - place[None, :] + length - 1, persistent=False)
            self.register_buffer("causal", place[:, None] >= place[None, :], persistent=False)

        def forward(self, inputs, targets):
            x = self.embedding(inputs) + self.positions.weight
            for block in self.blocks:
                x = block(x, self.distance, self.causal)
            logits = F.linear(self.norm(x), self.embedding.weight)
            return F.cross_entropy(logits.view(-1, words), targets.reshape(-1))

    tokens = torch.randint(0, 50257, (batch, length + 1), device=DEVICE)
    for biased in (True, False):
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = Model(biased).to(DEVICE)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
        compiled = torch.compile(model)

        def step():
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cuda", torch.bfloat16):
                loss = compiled(tokens[:, :-1], tokens[:, 1:])
            loss.backward()
            optimizer.step()
            return loss

        from torch.nn.attention import SDPBackend, sdpa_kernel

        kinds = {"default": None} if biased else {"default": None, "cudnn": SDPBackend.CUDNN_ATTENTION}
        for name, backend in kinds.items():
            try:
                if backend is None:
                    ms = median_ms(step, calls=6)
                else:
                    torch._dynamo.reset()
                    with sdpa_kernel(backend):
                        ms = median_ms(step, calls=6)
                emit(case="torch gpt2", layers=layers, B=batch, S=length, bias=biased, attention=name, ms=round(ms, 3))
            except Exception as error:  # a peer that fails is a result too
                emit(case="torch gpt2", bias=biased, attention=name, error=str(error)[:300])
        del model, optimizer, compiled


if __name__ == "__main__":
    {"scans": scans, "jax": jax_scans, "jax-model": jax_model, "gpt2": gpt2, "copy": copy}[sys.argv[1]]()
