"""Every score function and mask of the acceptance list against a dense evaluation in ``float64``."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from cases import MASKS, SCORES, Case, Sizes
from oracle import DEVICES, check, dense
from torch import Tensor

from tilewright.torch import AuxRequest, create_block_mask, flex_attention

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def _inputs(sizes: Sizes, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    return (
        sizes.normal(sizes.batch, sizes.heads, sizes.queries, sizes.head_size, dtype=dtype),
        sizes.normal(sizes.batch, sizes.key_heads, sizes.keys, sizes.head_size, dtype=dtype),
        sizes.normal(sizes.batch, sizes.key_heads, sizes.keys, sizes.value_size, dtype=dtype),
    )


def _evaluate(
    case: Case | None, mask: Any, sizes: Sizes, inputs: tuple[Tensor, Tensor, Tensor], captured: list[Tensor], dtype: torch.dtype
) -> list[Tensor | None]:
    """Output, log-sum-exp and gradients by the dense evaluation in ``dtype``."""
    query, key, value = (x.detach().to(dtype).requires_grad_() for x in inputs)
    fresh = [x.detach().to(dtype).requires_grad_() for x in captured]
    score = None
    if case is not None:
        sizes = Sizes(**{**vars(sizes), "generator": torch.Generator().manual_seed(1)})
        function, made = case.make(sizes, dtype)
        with torch.no_grad():
            for old, new in zip(made, fresh):
                old.copy_(new)
        fresh = made
        score = case.dense(sizes, made) if case.dense else function
    out, lse, _ = dense(query, key, value, score, mask)
    return _with_gradients(out, lse, [query, key, value, *fresh])


def _with_gradients(out: Tensor, lse: Tensor, leaves: list[Tensor]) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(2)
    g = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out)
    gl = torch.randn(lse.shape, generator=generator, dtype=torch.float64).to(lse)
    finite = torch.where(torch.isinf(lse), 0.0, lse)
    loss = (out * g).sum() + (finite * gl).sum()
    return [out, lse, *torch.autograd.grad(loss, leaves, allow_unused=True)]


def _compare(case: Case | None, make_mask: Any, sizes: Sizes, dtype: torch.dtype) -> None:
    inputs = _inputs(sizes, dtype)
    mask = make_mask(sizes) if make_mask is not None else None
    score: Any = None
    captured: list[Tensor] = []
    if case is not None:
        traced = Sizes(**{**vars(sizes), "generator": torch.Generator().manual_seed(1)})
        score, captured = case.make(traced, dtype)
    block_mask = None
    if mask is not None:
        block_mask = create_block_mask(mask, sizes.batch, sizes.heads, sizes.queries, sizes.keys, device=sizes.device)
    gqa = sizes.heads != sizes.key_heads
    out, lse = flex_attention(*inputs, score, block_mask, enable_gqa=gqa, return_lse=True)
    ours = _with_gradients(out, lse, [*inputs, *captured])
    golden = _evaluate(case, mask, sizes, inputs, captured, torch.float64)
    plain = _evaluate(case, mask, sizes, inputs, captured, dtype)
    names = ["out", "lse", "query", "key", "value", *(f"capture {i}" for i in range(len(captured)))]
    for name, a, p, g in zip(names, ours, plain, golden):
        if g is None or p is None:
            assert a is None or float(a.abs().max()) == 0.0
            continue
        assert a is not None, f"{name} has no gradient"
        check(name, a, p, g, dtype)


def _skip_where_missing(device: str, dtype: torch.dtype) -> None:
    if device == "cuda" and dtype == torch.float64:
        pytest.skip("attention in float64 is not to be had on GPUs")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", SCORES, ids=lambda case: case.name)
def test_score(case: Case, dtype: torch.dtype, device: str) -> None:
    _skip_where_missing(device, dtype)
    _compare(case, None, Sizes(device=device), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mask", MASKS)
def test_mask(mask: str, dtype: torch.dtype, device: str) -> None:
    _skip_where_missing(device, dtype)
    relative = next(case for case in SCORES if case.name == "relative_signed")
    _compare(relative, MASKS[mask], Sizes(device=device), dtype)


SHAPES = [
    Sizes(batch=1, heads=1, key_heads=1, queries=1, keys=1),
    Sizes(queries=17, keys=37),
    Sizes(queries=129, keys=128, batch=1),
    Sizes(queries=3, keys=277, batch=1),
    Sizes(heads=4, key_heads=2),
    Sizes(heads=4, key_heads=1, value_size=24),
    Sizes(head_size=8, value_size=40),
    Sizes(head_size=128, value_size=64, batch=1),
    Sizes(head_size=256, value_size=8, batch=1, heads=1, key_heads=1, queries=127, keys=127),
    Sizes(queries=256, keys=256, batch=1, heads=2, key_heads=1),
    Sizes(queries=1025, keys=1025, batch=1, heads=1, key_heads=1),
]


@pytest.mark.parametrize("sizes", SHAPES, ids=lambda z: f"{z.batch}x{z.heads}/{z.key_heads}x{z.queries}x{z.keys}x{z.head_size}x{z.value_size}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_shape(sizes: Sizes, dtype: torch.dtype, device: str) -> None:
    relative = next(case for case in SCORES if case.name == "relative_signed")
    sizes = dataclasses.replace(sizes, device=device, generator=torch.Generator().manual_seed(0))
    _compare(relative, MASKS["causal"], sizes, dtype)


def test_strided_inputs_are_read_where_they_are() -> None:
    packed = torch.randn(2, 37, 3, 4, 16)
    query, key, value = (packed[:, :, i].transpose(1, 2) for i in range(3))
    out = flex_attention(query, key, value)
    torch.testing.assert_close(out, dense(query, key, value)[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_row_maximum(dtype: torch.dtype) -> None:
    sizes = Sizes()
    inputs = _inputs(sizes, dtype)

    def score(s: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
        return torch.where(q == 3, float("-inf"), s - 0.1 * (q - k).abs())

    _, aux = flex_attention(*inputs, score, return_aux=AuxRequest(max_scores=True))
    assert aux.lse is None and aux.max_scores is not None
    query, key, value = (x.detach().double() for x in inputs)
    golden = dense(query, key, value, score)[2]
    assert bool(torch.isneginf(aux.max_scores[:, :, 3]).all())
    torch.testing.assert_close(aux.max_scores.double(), golden, rtol=1e-5, atol=1e-5)


def test_results_repeat_bit_for_bit() -> None:
    sizes = Sizes(queries=200, keys=200)
    inputs = _inputs(sizes, torch.float32)
    bias = sizes.normal(4, 399, dtype=torch.float32)
    runs = []
    for threads in (1, 2, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        out = flex_attention(*inputs, score_mod=lambda s, b, h, q, k: s + bias[h, q - k + 199])
        runs.append([out, *torch.autograd.grad(out.square().sum(), [*inputs, bias])])
        torch.set_num_threads(before)
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other))


def test_second_derivatives() -> None:
    sizes = Sizes(batch=1, heads=2, key_heads=2, queries=5, keys=6, head_size=3, value_size=2)
    inputs = _inputs(sizes, torch.float64)
    bias = sizes.normal(2, 10, dtype=torch.float64)

    def function(q: Tensor, k: Tensor, v: Tensor, t: Tensor) -> Tensor:
        return flex_attention(q, k, v, lambda s, b, h, i, j: torch.tanh(s + t[h, i - j + 5]))

    assert torch.autograd.gradcheck(function, (*inputs, bias))
    assert torch.autograd.gradgradcheck(function, (*inputs, bias))


def test_computed_in_graph() -> None:
    sizes = Sizes()
    inputs = _inputs(sizes, torch.float32)
    y = sizes.normal(2, 37, dtype=torch.float32)
    table = y[:, :, None] + y[:, None, :]
    out = flex_attention(*inputs, score_mod=lambda s, b, h, q, k: s + table[b, q, k])
    (ours,) = torch.autograd.grad(out.square().sum(), y)
    y64 = y.detach().double().requires_grad_()
    t64 = y64[:, :, None] + y64[:, None, :]
    query, key, value = (x.detach().double() for x in inputs)
    golden = dense(query, key, value, lambda s, b, h, q, k: s + t64[b, q, k])[0]
    (expected,) = torch.autograd.grad(golden.square().sum(), y64)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-3, atol=1e-4)


def test_masked_nan_is_never_seen() -> None:
    sizes = Sizes()
    query, key, value = _inputs(sizes, torch.float32)
    with torch.no_grad():
        key[:, :, 20:] = float("nan")
        value[:, :, 20:] = float("nan")
    mask = create_block_mask(lambda b, h, q, k: k < 20, None, None, 37, 37, device="cpu", BLOCK_SIZE=16)
    out = flex_attention(query, key, value, block_mask=mask)
    gradients = torch.autograd.grad(out.square().sum(), (query, key, value))
    assert not any(bool(torch.isnan(x).any()) for x in (out, *gradients))
    assert all(float(x[:, :, 20:].abs().max()) == 0.0 for x in gradients[1:])


def test_foreign_and_listed_block_masks() -> None:
    from torch.nn.attention.flex_attention import BlockMask
    from torch.nn.attention.flex_attention import create_block_mask as torch_create

    sizes = Sizes(queries=100, keys=100)
    inputs = _inputs(sizes, torch.float32)

    def causal(b: Any, h: Any, q: Any, k: Any) -> Any:
        return q >= k

    foreign = torch_create(causal, None, None, 100, 100, device="cpu", BLOCK_SIZE=32)
    golden = dense(*inputs, None, causal)[0]
    torch.testing.assert_close(flex_attention(*inputs, block_mask=foreign), golden)

    counts = torch.ones(1, 1, 4, dtype=torch.int32)
    indices = torch.arange(4, dtype=torch.int32).view(1, 1, 4, 1).expand(1, 1, 4, 4).contiguous()
    listed = BlockMask.from_kv_blocks(counts, indices, BLOCK_SIZE=32, seq_lengths=(100, 100))
    golden = dense(*inputs, None, lambda b, h, q, k: q // 32 == k // 32)[0]
    torch.testing.assert_close(flex_attention(*inputs, block_mask=listed), golden)


def test_block_masks_look_like_torch_ones() -> None:
    from torch.nn.attention.flex_attention import create_block_mask as torch_create

    ids = torch.arange(300) // 70

    def document(b: Any, h: Any, q: Any, k: Any) -> Any:
        return (ids[q] == ids[k]) & (q >= k)

    for block in (32, (64, 128)):
        ours = create_block_mask(document, 2, 3, 300, 300, device="cpu", BLOCK_SIZE=block)
        theirs = torch_create(document, 2, 3, 300, 300, device="cpu", BLOCK_SIZE=block)
        assert ours.shape == theirs.shape
        assert ours.sparsity() == theirs.sparsity()
        assert torch.equal(ours.to_dense(), theirs.to_dense())
        assert ours.to_string() == theirs.to_string()
        assert torch.equal(ours.kv_num_blocks, theirs.kv_num_blocks)
        assert ours.full_kv_num_blocks is not None and theirs.full_kv_num_blocks is not None
        assert torch.equal(ours.full_kv_num_blocks, theirs.full_kv_num_blocks)
        assert torch.equal(ours[0, 1].to_dense(), theirs[0, 1].to_dense())


@pytest.mark.parametrize("queries,keys", list(itertools.product((0, 5), (0, 5))))
def test_empty_lengths(queries: int, keys: int) -> None:
    sizes = Sizes(queries=queries, keys=keys)
    inputs = _inputs(sizes, torch.float32)
    out, aux = flex_attention(*inputs, return_aux=AuxRequest(lse=True, max_scores=True))
    assert out.shape == (2, 4, queries, 16)
    if keys == 0:
        assert aux.lse is not None
        assert float(out.abs().sum()) == 0.0 and bool(torch.isneginf(aux.lse).all())
    gradients = torch.autograd.grad(out.sum(), inputs)
    if queries == 0 or keys == 0:
        assert all(float(g.abs().sum()) == 0.0 for g in gradients)
