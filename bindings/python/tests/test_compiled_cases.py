"""Every score function, mask and scan of the acceptance list under ``torch.compile(fullgraph=True)``.

The eager calls are compared with a dense evaluation (`test_attention.py`, `test_scan.py`); what is compiled runs the same
program, so results and gradients are the same to the last bit. All of a kind and a type stand in one graph: a graph of its own
for each would take PyTorch a second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from cases import MASKS, SCORES, Sizes
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


#: A call: what it does, what it is given, and what it learns.
Call = tuple[Callable[[Any], Any], Any, list[Tensor]]


def check_compiled(calls: dict[str, Call]) -> None:
    """Compiles all calls as one graph, and compares each with itself run eagerly."""

    def function(given: dict[str, Any]) -> dict[str, Any]:
        return {name: call(given[name]) for name, (call, _, _) in calls.items()}

    # The function is another one each time, but of one text, of which few are kept.
    torch._dynamo.reset()
    given = {name: arguments for name, (_, arguments, _) in calls.items()}
    compiled, eager = torch.compile(function, fullgraph=True)(given), function(given)
    for name in calls:
        found, golden = (pytree.tree_leaves(results[name]) for results in (compiled, eager))
        assert len(golden) == len(found) and all(torch.equal(a, b) for a, b in zip(found, golden)), name
    leaves = [x for _, _, own in calls.values() for x in own]
    learned = [(a, b) for a, b in zip(pytree.tree_leaves(compiled), pytree.tree_leaves(eager)) if b.requires_grad]
    cotangents = [torch.randn_like(a) for a, _ in learned]
    mine, theirs = (
        iter(torch.autograd.grad([pair[side] for pair in learned], leaves, cotangents, allow_unused=True)) for side in (0, 1)
    )
    for name, (_, _, own) in calls.items():
        for place, _ in enumerate(own):
            a, b = next(mine), next(theirs)
            # An unused capture has no gradient, or one of zeros.
            same = torch.equal(a, b) if a is not None and b is not None else all(x is None or not x.any() for x in (a, b))
            assert same, f"{name}: gradient {place}"


def attention_call(inputs: list[Tensor], score: Any, mask: Any, captured: list[Tensor]) -> Call:
    """A call of attention, with its log-sum-exp."""

    def call(given: list[Tensor]) -> tuple[Tensor, Tensor]:
        query, key, value = given
        return flex_attention(query, key, value, score, mask, return_lse=True)

    return call, inputs, [*inputs, *captured]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_scores(device: str, dtype: torch.dtype) -> None:
    calls: dict[str, Call] = {}
    for case in SCORES:
        sizes = Sizes(device=device)
        score, captured = case.make(sizes, dtype)
        calls[case.name] = attention_call(_inputs(sizes, dtype), score, None, captured)
    check_compiled(calls)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_masks(device: str, dtype: torch.dtype) -> None:
    relative = next(case for case in SCORES if case.name == "relative_signed")
    calls: dict[str, Call] = {}
    for name, make in MASKS.items():
        sizes = Sizes(device=device)
        score, captured = relative.make(sizes, dtype)
        inputs = _inputs(sizes, dtype)
        mask = create_block_mask(make(sizes), sizes.batch, sizes.heads, sizes.queries, sizes.keys, device=device)
        calls[name] = attention_call(inputs, score, mask, captured)
    check_compiled(calls)


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


def _scan(combine: Callable[..., Any], xs: Any, captured: list[Tensor]) -> Call:
    leaves = [x for x in pytree.tree_leaves(xs) if x.requires_grad]
    return lambda xs: associative_scan(combine, xs, 1), xs, [*leaves, *captured]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scans(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    cases: dict[str, tuple[Callable[..., Any], Callable[[int], Any], list[Tensor]]]
    cases = {name: (combine, make, []) for name, (combine, make) in CASES.items()}
    cases |= {name: make(dtype) for name, make in CAPTURING.items()}
    calls: dict[str, Call] = {}
    for name, (combine, make, captured) in cases.items():
        xs = pytree.tree_map(lambda x: x.to(dtype).requires_grad_() if x.is_floating_point() else x, make(37))
        calls[name] = _scan(combine, xs, captured)
    check_compiled(calls)
