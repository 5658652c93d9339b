"""One compiled graph serves every length: PyTorch's compiler is run again once, when a length changes for the first time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.attention.flex_attention as torch_flex
from torch import Tensor, nn

import tilewright.torch
from tilewright.torch import associative_scan, create_block_mask, flex_attention

LENGTHS = (16, 24, 33, 40, 64, 7)


def _same_for_all_lengths(function: Callable[..., Tensor], make: Callable[[int], tuple[Any, ...]], leaves: list[Tensor]) -> None:
    """That the compiled function gives what the eager one does, and is compiled at most twice."""
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True)
    for count, length in enumerate(LENGTHS):
        arguments = make(length)
        wanted = [x for x in arguments if isinstance(x, Tensor) and x.requires_grad] + leaves
        with torch._dynamo.config.patch(error_on_recompile=count >= 2):
            found = compiled(*arguments)
        golden = function(*arguments)
        torch.testing.assert_close(found, golden)
        cotangent = torch.randn_like(golden)
        for a, b in zip(*(torch.autograd.grad(out, wanted, cotangent) for out in (found, golden))):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def _qkv(length: int) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = (torch.randn(2, 2, length, 8, requires_grad=True) for _ in range(3))
    return query, key, value


def _causal(b: Any, h: Any, q: Any, k: Any) -> Any:
    return q >= k


def test_numbers_that_follow_from_the_length() -> None:
    bias = nn.Parameter(torch.randn(2, 127))

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n = q.shape[2]

        def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            centred = (i - j + n - 1).float() * (1.0 / n)
            return s * centred + bias[h, i - j + 63] + torch.where(i < n // 2, 0.1, n / 100)

        return flex_attention(q, k, v, score)

    _same_for_all_lengths(function, _qkv, [bias])


def test_a_table_as_long_as_the_sequence() -> None:
    def function(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
        return flex_attention(q, k, v, lambda s, b, h, i, j: s + table[h, i] - 0.1 * table[h][j])

    _same_for_all_lengths(function, lambda n: (*_qkv(n), torch.randn(2, n, requires_grad=True)), [])


@pytest.mark.parametrize("inside", [True, False])
def test_masks(inside: bool) -> None:
    def function(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
        if inside:
            mask = create_block_mask(_causal, None, None, q.shape[2], q.shape[2], device="cpu")
        return flex_attention(q, k, v, block_mask=mask)

    def make(length: int) -> tuple[Any, ...]:
        return (*_qkv(length), None if inside else create_block_mask(_causal, None, None, length, length, device="cpu"))

    _same_for_all_lengths(function, make, [])


def test_pytorchs_own_functions() -> None:
    tilewright.torch.enable()
    bias = nn.Parameter(torch.randn(2, 127))

    def function(attention: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        result: Tensor = attention(q, k, v, lambda s, b, h, i, j: s + bias[h, i - j + 63])
        return result

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True)
    for length in LENGTHS:
        q, k, v = _qkv(length)
        found, golden = compiled(torch_flex.flex_attention, q, k, v), function(flex_attention, q, k, v)
        torch.testing.assert_close(found, golden)
        cotangent = torch.randn_like(golden)
        for a, b in zip(*(torch.autograd.grad(out, (q, k, v, bias), cotangent) for out in (found, golden))):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reverse", [False, True])
def test_scans(reverse: bool) -> None:
    def function(a: Tensor, b: Tensor) -> Tensor:
        scanned: Tensor = associative_scan(lambda l, r: (l[0] * r[0], r[0] * l[1] + r[1]), (a, b), 1, reverse)[1]
        return scanned

    _same_for_all_lengths(function, lambda n: tuple(torch.rand(3, n, 2, requires_grad=True) for _ in range(2)), [])


def test_the_function_itself_compiled() -> None:
    attention, make_mask = torch.compile(flex_attention), torch.compile(create_block_mask)
    for length in LENGTHS[:3]:
        q, k, v = _qkv(length)
        mask = make_mask(_causal, None, None, length, length, device="cpu")
        found = attention(q, k, v, lambda s, b, h, i, j: s * 0.5, block_mask=mask)
        golden = flex_attention(q, k, v, lambda s, b, h, i, j: s * 0.5, mask)
        torch.testing.assert_close(found, golden)


def test_export_with_a_length_left_open() -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.randn(2, 127))

        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return flex_attention(q, k, v, lambda s, b, h, i, j: s + self.bias[h, i - j + 63])

    model = Small()
    length = torch.export.Dim("length", min=2, max=64)
    exported = torch.export.export(model, _qkv(16), dynamic_shapes=[{2: length}] * 3).module()
    for n in LENGTHS:
        q, k, v = _qkv(n)
        torch.testing.assert_close(exported(q, k, v), model(q, k, v))
