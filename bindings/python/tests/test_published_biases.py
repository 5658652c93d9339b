"""PyTorch's published learned biases, by their rule: the root of the mean square error is at most 1.35 times that of an
unfused evaluation in the same type, and ten times as much in ``float32``; against fused attention with the bias as a mask,
1.2 times.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_published import unfused
from test_published_functions import pairwise
from torch import Tensor, nn

from tilewright.torch import flex_attention

Function = Callable[..., Any]
BATCH, HEADS, SIZE = 2, 4, 16
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FUDGE = {torch.float32: 13.5, torch.bfloat16: 1.35, torch.float16: 1.35}

#: The shapes of what is learned, of which a type is the query's where it is ``None``, and the function of these.
Bias = tuple[Callable[[int], list[tuple[tuple[int, ...], torch.dtype | None]]], Callable[..., Function]]


def _indirect(length: int, bias: Tensor) -> Function:
    offset = torch.randint(0, length, (length,), generator=torch.Generator().manual_seed(1))
    return lambda s, b, h, q, k: s + bias[offset[q]]


def _window(length: int, bias: Tensor) -> Function:
    return lambda s, b, h, q, k: s + bias[torch.clamp(q - k + 8, 0, 16)]


def _extra_axis(length: int, bias: Tensor) -> Function:
    which = torch.tensor(0)
    return lambda s, b, h, q, k: s + bias[b, h, which, q]


BIASES: dict[str, Bias] = {
    "relative_1d": (
        lambda n: [((2 * n,), None)],
        lambda n, bias: lambda s, b, h, q, k: s + bias[torch.abs(q - k)],
    ),
    "absolute_2d": (lambda n: [((n, n), None)], lambda n, bias: lambda s, b, h, q, k: s + bias[q, k]),
    "head_specific": (lambda n: [((HEADS, n, n), None)], lambda n, bias: lambda s, b, h, q, k: s + bias[h, q, k]),
    "batch_head": (
        lambda n: [((BATCH, HEADS, n, n), None)],
        lambda n, bias: lambda s, b, h, q, k: s + bias[b, h, q, k],
    ),
    "multiplicative": (lambda n: [((n,), None)], lambda n, bias: lambda s, b, h, q, k: s * bias[q]),
    "local_window": (lambda n: [((17,), torch.float32)], _window),
    "global_tokens": (lambda n: [((n,), torch.float32)], lambda n, bias: lambda s, b, h, q, k: s + bias[k]),
    "weird": (lambda n: [((BATCH, HEADS, 4, n), None)], _extra_axis),
    "indirect": (lambda n: [((n,), None)], _indirect),
    "symmetric": (lambda n: [((n,), None)], lambda n, bias: lambda s, b, h, q, k: s + bias[q] + bias[k]),
    "flipped_indexed": (lambda n: [((n, n), None)], lambda n, bias: lambda s, b, h, q, k: s + bias[k, q]),
    "head_specific_gate": (
        lambda n: [((HEADS,), torch.float32)],
        lambda n, gate: lambda s, b, h, q, k: s * torch.sigmoid(gate[h]),
    ),
    "distinct": (
        lambda n: [((n,), None), ((n,), torch.float32)],
        lambda n, first, second: lambda s, b, h, q, k: s + first[q] + second[k],
    ),
}


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).square().mean().sqrt())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [37, 256, 277])
@pytest.mark.parametrize("name", BIASES)
def test_bias(name: str, length: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    shapes, make = BIASES[name]
    given = [torch.randn(BATCH, HEADS, length, SIZE, dtype=dtype) for _ in range(3)]
    learned = [torch.randn(shape, dtype=kind or dtype) for shape, kind in shapes(length)]
    cotangent = torch.randn_like(given[0])

    def evaluate(attention: Callable[..., Tensor], kind: torch.dtype | None = None) -> list[Tensor]:
        leaves = [x.detach().to(kind or x.dtype).requires_grad_() for x in (*given, *learned)]
        out = attention(*leaves[:3], make(length, *leaves[3:]))
        return [out.detach(), *torch.autograd.grad(out, leaves, cotangent.to(out.dtype))]

    def whole(q: Tensor, k: Tensor, v: Tensor, score: Function) -> Tensor:
        return unfused(q, k, v, pairwise(score), None)

    exact, plain, found = evaluate(whole, torch.float64), evaluate(whole), evaluate(flex_attention)
    for place, (gold, theirs, ours) in enumerate(zip(exact, plain, found)):
        allowed = FUDGE[dtype] * _error(theirs, gold)
        assert _error(ours, gold) <= allowed, f"result {place}: {_error(ours, gold):.3e}, {allowed:.3e} allowed"


def test_only_the_bias_is_learned() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(BATCH, HEADS, 256, SIZE) for _ in range(3))
    bias = torch.randn(512, requires_grad=True)

    def score(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        return s + bias[torch.abs(i - j)]

    found, golden = flex_attention(q, k, v, score), unfused(q, k, v, score, None)
    compiled = torch.compile(flex_attention, fullgraph=True)(q, k, v, score)
    cotangent = torch.randn_like(found)
    gradients = [torch.autograd.grad(out, bias, cotangent)[0] for out in (found, compiled, golden)]
    torch.testing.assert_close(gradients[0], gradients[2], rtol=1e-4, atol=1e-4)
    assert torch.equal(gradients[0], gradients[1])


#: Biases, with the mask that a fused evaluation is given.
MASKED: dict[str, tuple[tuple[int, ...], Function, Callable[[Tensor], Tensor]]] = {
    "head": ((4,), lambda t: lambda s, b, h, q, k: s + t[h], lambda t: t.view(-1, 1, 1).expand(-1, 256, 256)),
    "relative 1d": (
        (512,),
        lambda t: lambda s, b, h, q, k: s + t[q + k],
        lambda t: t[torch.arange(256)[:, None] + torch.arange(256)],
    ),
    "2d": ((256, 256), lambda t: lambda s, b, h, q, k: s + t[q, k], lambda t: t),
    "2d, one index after the other": ((256, 256), lambda t: lambda s, b, h, q, k: s + t[q][k], lambda t: t),
    "2d transposed": ((256, 256), lambda t: lambda s, b, h, q, k: s + t[k, q], lambda t: t.transpose(-1, -2)),
    "3d transposed": ((4, 256, 256), lambda t: lambda s, b, h, q, k: s + t[h, k, q], lambda t: t.transpose(-1, -2)),
}


@pytest.mark.parametrize("name", MASKED)
def test_beside_fused_attention(name: str) -> None:
    """Of random numbers: theirs are ones, whose gradients are zero, so that roundings of zeros would be compared."""
    torch.manual_seed(0)
    shape, make, mask = MASKED[name]
    heads = shape[0] if shape[0] == 4 else 1
    given = [torch.randn(1, heads, 256, 64, dtype=torch.float16) for _ in range(3)]
    given.append(torch.randn(shape, dtype=torch.float16))
    cotangent = torch.randn_like(given[0])

    def evaluate(attention: Callable[..., Tensor], kind: torch.dtype) -> list[Tensor]:
        leaves = [x.to(kind).requires_grad_() for x in given]
        out = attention(*leaves)
        return [out.detach(), *torch.autograd.grad(out, leaves, cotangent.to(kind))]

    def fused(q: Tensor, k: Tensor, v: Tensor, t: Tensor) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask(t))

    exact, plain = evaluate(fused, torch.float64), evaluate(fused, torch.float16)
    found = evaluate(lambda q, k, v, t: flex_attention(q, k, v, make(t)), torch.float16)
    for gold, theirs, ours in zip(exact, plain, found):
        assert _error(ours, gold) <= 1.2 * _error(theirs, gold)


def test_a_bias_in_a_compiled_model() -> None:
    torch.manual_seed(0)
    project = nn.Linear(16, 16)
    bias = torch.randn(1, 1, 128, 128, requires_grad=True)
    target = torch.randn(1, 128, 16)

    def loss(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = flex_attention(q, k, v, lambda s, b, h, i, j: s + bias[b, h, i, j])
        return torch.nn.functional.mse_loss(project(out.transpose(1, 2).contiguous().view(1, 128, 16)), target)

    q, k, v = (torch.randn(1, 1, 128, 16, requires_grad=True) for _ in range(3))
    leaves = (q, k, v, bias, *project.parameters())
    eager = torch.autograd.grad(loss(q, k, v), leaves)
    compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True)(q, k, v), leaves)
    for a, b in zip(compiled, eager):
        assert b.any()
        torch.testing.assert_close(a, b)


def test_a_bias_that_two_reads_made() -> None:
    def function(x: Tensor, y: Tensor) -> Tensor:
        batch, length = torch.arange(2).view(2, 1, 1), torch.arange(16)
        made = y[batch, length.view(1, 16, 1)] + y[batch, length.view(1, 1, 16)]
        x = x[:, :, None].repeat(1, 1, 16, 1)
        return flex_attention(x, x, x, score_mod=lambda s, b, h, i, j: s + made[b, i, j]).mean()

    torch.manual_seed(0)
    x, y = torch.randn(2, 16, 64, requires_grad=True), torch.randn(2, 16, requires_grad=True)
    eager = torch.autograd.grad(function(x, y), (x, y))
    compiled = torch.autograd.grad(torch.compile(function)(x, y), (x, y))
    for a, b in zip(compiled, eager):
        assert float(a.norm()) > 0
        torch.testing.assert_close(a, b)


def test_a_bias_of_half_type_that_a_layer_makes() -> None:
    batch, heads, length, width = 2, 4, 32, 64
    x = torch.randn(batch, length, width, dtype=torch.bfloat16)
    layer = nn.Linear(width, heads * length, dtype=torch.bfloat16, bias=False)

    def forward(x: Tensor) -> Tensor:
        split = x.view(batch, length, heads, width // heads).permute(0, 2, 1, 3)
        made = layer(x).view(batch, length, heads, length).permute(0, 2, 1, 3)
        return flex_attention(split, split, split, lambda s, b, h, i, j: s + made[b, h, i, j])

    cotangent = torch.randn(batch, heads, length, width // heads, dtype=torch.bfloat16)
    eager, compiled = (
        torch.autograd.grad(function(x), layer.weight, cotangent)[0] for function in (forward, torch.compile(forward))
    )
    assert eager.dtype == compiled.dtype == torch.bfloat16
    torch.testing.assert_close(compiled, eager, rtol=1e-1, atol=1e-1)
