"""Every score function, mask and scan of the acceptance list under ``torch.compile(fullgraph=True)``.

The eager calls are compared with a dense evaluation (`test_attention.py`, `test_scan.py`); what is compiled runs the same
program, so results and gradients are the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from cases import MASKS, SCORES, Case, Sizes
from oracle import DEVICES
from test_scan import CASES, CAPTURING
from torch import Tensor

from tilewright.torch import associative_scan, create_block_mask, flex_attention

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def _inputs(sizes: Sizes, dtype: torch.dtype) -> list[Tensor]:
    query = sizes.normal(sizes.batch, sizes.heads, sizes.queries, sizes.head_size, dtype=dtype)
    key = sizes.normal(sizes.batch, sizes.key_heads, sizes.keys, sizes.head_size, dtype=dtype)
    value = sizes.normal(sizes.batch, sizes.key_heads, sizes.keys, sizes.value_size, dtype=dtype)
    return [query, key, value]


def _same(function: Callable[..., Any], arguments: Any, leaves: list[Tensor]) -> None:
    torch._dynamo.reset()
    eager = function(*arguments)
    compiled = torch.compile(function, fullgraph=True)(*arguments)
    results, found = ([x for x in pytree.tree_leaves(tree)] for tree in (eager, compiled))
    assert len(results) == len(found) and all(torch.equal(a, b) for a, b in zip(found, results))
    if not leaves:
        return
    learned = [(a, b) for a, b in zip(found, results) if a.requires_grad]
    cotangents = [torch.randn_like(a) for a, _ in learned]
    mine, theirs = (
        torch.autograd.grad([pair[side] for pair in learned], leaves, cotangents, allow_unused=True) for side in (0, 1)
    )
    for a, b in zip(mine, theirs):
        # An unused capture has no gradient, or one of zeros.
        if a is None or b is None:
            assert all(x is None or not x.any() for x in (a, b))
        else:
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", SCORES, ids=lambda case: case.name)
@pytest.mark.parametrize("device", DEVICES)
def test_score(device: str, case: Case, dtype: torch.dtype) -> None:
    sizes = Sizes(device=device)
    score, captured = case.make(sizes, dtype)
    inputs = _inputs(sizes, dtype)
    _same(lambda q, k, v: flex_attention(q, k, v, score, return_lse=True), inputs, [*inputs, *captured])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("device", DEVICES)
def test_mask(device: str, name: str, dtype: torch.dtype) -> None:
    sizes = Sizes(device=device)
    relative = next(case for case in SCORES if case.name == "relative_signed")
    score, captured = relative.make(sizes, dtype)
    inputs = _inputs(sizes, dtype)
    mask = create_block_mask(MASKS[name](sizes), sizes.batch, sizes.heads, sizes.queries, sizes.keys, device=device)
    _same(lambda q, k, v: flex_attention(q, k, v, score, mask, return_lse=True), inputs, [*inputs, *captured])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_computed_in_graph(dtype: torch.dtype) -> None:
    sizes = Sizes()
    inputs = [*_inputs(sizes, dtype), sizes.normal(sizes.batch, sizes.queries, dtype=dtype)]

    def function(q: Tensor, k: Tensor, v: Tensor, y: Tensor) -> Tensor:
        table = y[:, :, None] + y[:, None, :]
        return flex_attention(q, k, v, lambda s, b, h, i, j: s + table[b, i, j])

    torch._dynamo.reset()
    found = torch.compile(function, fullgraph=True)(*inputs)
    golden = function(*inputs)
    assert torch.equal(found, golden)
    # The sums over the table are Inductor's, in an order of its own.
    cotangent = torch.randn_like(golden)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    for a, b in zip(*(torch.autograd.grad(x, inputs, cotangent) for x in (found, golden))):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [*CASES, *CAPTURING])
def test_scan(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    captured: list[Tensor] = []
    if name in CASES:
        combine, make = CASES[name]
    else:
        combine, make, captured = CAPTURING[name](dtype)
    xs = pytree.tree_map(
        lambda x: x.to(dtype).requires_grad_() if x.is_floating_point() else x, make(37)
    )
    leaves = [x for x in pytree.tree_leaves(xs) if x.requires_grad]
    _same(lambda xs: associative_scan(combine, xs, 1), (xs,), [*leaves, *captured])
