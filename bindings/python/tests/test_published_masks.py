"""PyTorch's published cases of block masks, row statistics, lengths, strides and scores that are no numbers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_published import run
from torch import Tensor

from tilewright.torch import (
    AuxRequest,
    BlockMask,
    and_masks,
    create_block_mask,
    flex_attention,
    noop_mask,
    or_masks,
)

Function = Callable[..., Any]


@pytest.fixture(autouse=True)
def forget_what_was_compiled() -> None:
    """One function is compiled in many tests, and PyTorch keeps eight forms of it at most."""
    torch._dynamo.reset()


def causal(b: Any, h: Any, q: Any, k: Any) -> Any:
    """A query sees the keys up to itself."""
    return q >= k


def later(b: Any, h: Any, q: Any, k: Any) -> Any:
    """A query sees the keys after itself."""
    return q < k


def inputs(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value."""
    q, k, v = (torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3))
    return q, k, v


def moved(offset: Tensor) -> Function:
    """Causal with an offset of blocks for each batch element."""
    return lambda b, h, q, k: (q + offset[b] * 128) >= k


def test_sparsity_and_shapes() -> None:
    mask = create_block_mask(moved(torch.zeros(8)), 4, 2, 2048, 2048, device="cpu")
    assert mask.shape == (4, 2, 2048, 2048) and mask.numel() == 4 * 2 * 2048 * 2048
    assert mask[0].shape == (1, 2, 2048, 2048) and mask[0, 0].shape == (1, 1, 2048, 2048)
    assert mask.sparsity() == mask[0].sparsity() == mask[1, 0].sparsity() == 46.875
    mask = create_block_mask(moved(torch.arange(8)), 8, 1, 2048, 2048, device="cpu")
    assert mask.sparsity() == 29.1015625 and "sparsity=29.10" in str(mask)
    assert mask.sparsity() < mask[0].sparsity() and mask[0].sparsity() > mask[1].sparsity()


@pytest.mark.parametrize("block", [32, 64, 128, 256, (32, 64), (64, 32)], ids=str)
def test_block_sizes(block: int | tuple[int, int]) -> None:
    mask = create_block_mask(noop_mask, 4, 2, 2048, 2048, BLOCK_SIZE=block, device="cpu")
    assert (block, block) == mask.BLOCK_SIZE or block == mask.BLOCK_SIZE
    assert mask.shape == (4, 2, 2048, 2048)


def test_parts_of_a_mask() -> None:
    mask = create_block_mask(moved(torch.zeros(8)), 4, 2, 512, 512, device="cpu")
    one = torch.tensor([1], dtype=torch.int32)
    for place, shape in (
        ((slice(None),), (4, 2, 4)),
        ((0,), (1, 2, 4)),
        ((0, 1), (1, 1, 4)),
        ((-1, -2), (1, 1, 4)),
        ((slice(0, 2), slice(1, 2)), (2, 1, 4)),
        ((slice(0, 2), slice(1, 2), one), (2, 1, 1)),
    ):
        part = mask[place]
        assert part.kv_num_blocks.shape == shape and part.kv_indices.shape == (*shape, 4)
    rows = mask[:, :, one]
    assert rows.full_kv_num_blocks is not None and mask.full_kv_num_blocks is not None
    assert torch.equal(rows.kv_num_blocks, mask.kv_num_blocks[:, :, one])
    assert torch.equal(rows.full_kv_num_blocks, mask.full_kv_num_blocks[:, :, one])


def test_combined_masks() -> None:
    def near(b: Any, h: Any, q: Any, k: Any) -> Any:
        return (q - k) <= 512

    made = functools.partial(create_block_mask, B=1, H=1, Q_LEN=2048, KV_LEN=2048, device="cpu")
    assert int(made(and_masks(causal, near)).kv_num_blocks.sum()) == 28
    assert int(made(and_masks(causal, later)).kv_num_blocks.sum()) == 0
    assert made(or_masks(causal, later)).sparsity() == made(noop_mask).sparsity()


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_masks_from_lists(full: bool, transposed: bool) -> None:
    counts = torch.tensor([[[1 if full else 2]]], dtype=torch.int32)
    indices = torch.tensor([[[[1, -1] if full else [0, 1]]]], dtype=torch.int32)
    whole_counts = torch.tensor([[[1]]], dtype=torch.int32) if full else None
    whole_indices = torch.tensor([[[[0, -1]]]], dtype=torch.int32) if full else None
    mask = BlockMask.from_kv_blocks(counts, indices, whole_counts, whole_indices, compute_q_blocks=transposed)
    assert mask.BLOCK_SIZE == (128, 128) and mask.shape == (1, 1, 128, 256)
    assert torch.equal(mask.kv_num_blocks, counts) and torch.equal(mask.kv_indices, indices)
    assert (mask.full_kv_num_blocks is not None) == full and (mask.q_num_blocks is not None) == transposed
    if transposed:
        assert mask.q_num_blocks is not None and mask.q_num_blocks.flatten().tolist() == [0 if full else 1, 1]
    # Lists of queries are PyTorch's kernels': gradients do without.
    q, k, v = torch.randn(1, 1, 128, 64, requires_grad=True), *inputs(1, 1, 256, 64)[1:]
    found, golden = flex_attention(q, k, v, block_mask=mask), flex_attention(q, k, v)
    torch.testing.assert_close(found, golden)
    for a, b in zip(*(torch.autograd.grad(out.sum(), (q, k, v)) for out in (found, golden))):
        torch.testing.assert_close(a, b)


def test_a_mask_that_is_listed_by_hand() -> None:
    rows = torch.arange(16)
    listed = BlockMask.from_kv_blocks(
        (rows + 1)[None, None], rows.expand(16, 16)[None, None], BLOCK_SIZE=128, mask_mod=causal
    )
    made = create_block_mask(causal, 1, 1, 2048, 2048, device="cpu")
    assert torch.equal(made.to_dense(), listed.to_dense())
    copied = BlockMask(
        made.seq_lengths, made.kv_num_blocks, made.kv_indices, made.full_kv_num_blocks, made.full_kv_indices,
        made.q_num_blocks, made.q_indices, made.full_q_num_blocks, made.full_q_indices, made.BLOCK_SIZE, made.mask_mod,
    )  # fmt: skip
    q, k, v = inputs(1, 1, 2048, 16)
    golden = flex_attention(q, k, v, block_mask=made)
    for mask in (listed, copied):
        torch.testing.assert_close(flex_attention(q, k, v, block_mask=mask), golden)


def test_a_mask_for_other_lengths() -> None:
    for made, asked in ((1024, 2048), (1023, 1024)):
        mask = create_block_mask(causal, None, None, made, made, device="cpu")
        attentions: list[Function] = [flex_attention, torch.compile(flex_attention)]
        for attention in attentions:
            with pytest.raises(ValueError, match="block_mask"):
                attention(*inputs(1, 8, asked, 64), block_mask=mask)


class CausalOrNear:
    """A mask that is an object."""

    def __init__(self, window: int) -> None:
        self.window = window

    def __call__(self, b: Any, h: Any, q: Any, k: Any) -> Any:
        return (q >= k) | ((k - q) < self.window)


def _with_offset(b: Any, h: Any, q: Any, k: Any, offset: Any) -> Any:
    return (q + offset) >= k


MASKS: dict[str, Function] = {
    "partial": functools.partial(_with_offset, offset=31),
    "partial of a tensor": functools.partial(_with_offset, offset=torch.tensor(31)),
    "object": CausalOrNear(64),
}


@pytest.mark.parametrize("name", MASKS)
def test_functions_that_are_objects(name: str) -> None:
    mask = create_block_mask(MASKS[name], 1, 2, 64, 64, device="cpu")
    q, k, v = inputs(1, 2, 64, 64)
    found = torch.compile(flex_attention)(q, k, v, block_mask=mask)
    assert torch.equal(found, flex_attention(q, k, v, block_mask=mask))
    run(None, MASKS[name], torch.float32, (1, 2, 64, 64))


@pytest.mark.parametrize("length", [2047, 1023])
def test_lengths_that_no_block_divides(length: int) -> None:
    block = torch.arange(length) // 128
    run(None, causal, torch.float32, (1, 2, length, 64))
    run(None, lambda b, h, q, k: block[q] == block[k], torch.bfloat16, (1, 2, length, 64))


@pytest.mark.parametrize("sizes", [(64, 32), (32, 64), (17, 17), (24, 24), (94, 94), (121, 121), (128, 128), (8, 8)], ids=str)
def test_head_sizes(sizes: tuple[int, int]) -> None:
    def distance(s: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
        return s + (q - k)

    run(distance, None, torch.float32, (1, 2, 1024, sizes[0]), value_size=sizes[1])


def test_many_batch_elements() -> None:
    q, k, v = inputs(22720, 3, 4, 8)
    out = flex_attention(q, k, v)
    torch.testing.assert_close(out, torch.nn.functional.scaled_dot_product_attention(q, k, v))
    for x in torch.autograd.grad(out.sum(), (q, k, v)):
        assert x.shape == q.shape and bool(x.isfinite().all())


@pytest.mark.parametrize("compiled", [False, True])
def test_rows_that_see_nothing(compiled: bool) -> None:
    half = 128
    mask = create_block_mask(lambda b, h, q, k: q < half, 2, 1, 256, 256, device="cpu")
    q, k, v = inputs(2, 2, 256, 64)
    attention: Function = torch.compile(flex_attention) if compiled else flex_attention
    out, lse = attention(q, k, v, block_mask=mask, return_lse=True)
    assert not out[:, :, half:].any() and bool((lse[:, :, half:] == -math.inf).all())
    (gradient,) = torch.autograd.grad(out.sum() + lse.sum(), q)
    assert not gradient[:, :, half:].any() and bool(gradient.isfinite().all())


def _poisoned(length: int) -> tuple[int, Function]:
    table = torch.randn(2, 1, length, length)
    table[1:] = math.nan
    return length, lambda s, b, h, q, k: s + table[b, h, q, k]


POISONED: dict[str, tuple[int, Function]] = {
    "beyond the batch": _poisoned(1025),
    "forward": (257, lambda s, b, h, q, k: 1 / s),
    "backward": (257, lambda s, b, h, q, k: torch.where(s > 0, torch.log(s), s)),
}


@pytest.mark.parametrize("name", POISONED)
def test_scores_that_are_no_numbers_where_nobody_looks(name: str) -> None:
    torch.manual_seed(0)
    length, score = POISONED[name]
    q, k, v = inputs(1, 1, length, 16)
    out = flex_attention(q, k, v, score, create_block_mask(causal, 1, 1, length, length, device="cpu"))
    gradients = torch.autograd.grad(out.sum(), (q, k, v))
    for x in (out, *gradients):
        assert bool(x.isfinite().all())


def test_two_parts_of_causal_attention_by_their_sums() -> None:
    torch.manual_seed(0)
    length, window = 196, 64
    q, k, v = inputs(2, 2, length, 64)
    masks: list[Function] = [
        lambda b, h, q, k: (q >= k) & (q - k <= window),
        lambda b, h, q, k: (q >= k) & (q - k > window),
    ]
    made = [create_block_mask(mask, None, None, length, length, device="cpu") for mask in masks]
    parts = [flex_attention(q, k, v, block_mask=mask, return_aux=AuxRequest(lse=True)) for mask in made]
    sums = []
    for _, aux in parts:
        assert aux.lse is not None
        sums.append(aux.lse)
    greatest = torch.maximum(*sums)
    weights = [torch.exp(lse - greatest)[..., None] for lse in sums]
    found = (parts[0][0] * weights[0] + parts[1][0] * weights[1]) / (weights[0] + weights[1])
    golden = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(found, golden, atol=3e-3, rtol=2e-3)
    cotangent = torch.randn_like(golden)
    for a, b in zip(*(torch.autograd.grad(out, (q, k, v), cotangent) for out in (found, golden))):
        torch.testing.assert_close(a, b, atol=3e-3, rtol=2e-3)


@pytest.mark.parametrize("compiled", [False, True])
def test_statistics(compiled: bool) -> None:
    q, k, v = inputs(2, 2, 243, 16)
    attention: Function = torch.compile(flex_attention, fullgraph=True) if compiled else flex_attention
    only = attention(q, k, v)
    for lse in (False, True):
        for maximum in (False, True):
            out, aux = attention(q, k, v, return_aux=AuxRequest(lse=lse, max_scores=maximum))
            torch.testing.assert_close(out, only, atol=1e-6, rtol=1e-6)
            assert (aux.lse is not None, aux.max_scores is not None) == (lse, maximum)
            for found in (aux.lse, aux.max_scores):
                assert found is None or (found.shape == (2, 2, 243) and found.dtype == torch.float32)
            assert aux.max_scores is None or not aux.max_scores.requires_grad


SCORES: dict[str, Function] = {
    "identity": lambda s, b, h, q, k: s,
    "causal": lambda s, b, h, q, k: torch.where(q >= k, s, float("-inf")),
    "times_two": lambda s, b, h, q, k: s * 2,
    "squared": lambda s, b, h, q, k: s * s,
    "trig": lambda s, b, h, q, k: torch.sin(torch.cos(s)) + torch.tan(b),
    "trig2": lambda s, b, h, q, k: torch.cos(s) * torch.sin(s) + torch.tan(b),
}


@pytest.mark.parametrize("name", SCORES)
def test_gradcheck(name: str) -> None:
    q, k, v = inputs(1, 2, 7, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda q, k, v: flex_attention(q, k, v, SCORES[name]), (q, k, v))
    assert torch.autograd.gradcheck(lambda q, k, v: flex_attention(q, k, v, SCORES[name], return_lse=True)[1], (q, k, v))


def _as_strided(size: tuple[int, ...], strides: tuple[int, ...], offset: int) -> Tensor:
    reach = sum(stride * (extent - 1) for stride, extent in zip(strides, size)) + offset + 1
    return torch.randn(reach).as_strided(size, strides, offset)


STRIDES: dict[str, tuple[tuple[int, ...], int]] = {
    "packed": ((2 * 32 * 16, 32 * 16, 16, 1), 997),
    "heads within positions": ((2 * 32 * 16, 16, 2 * 16, 1), 499),
    "batch within positions": ((16, 2 * 32 * 16, 2 * 16, 1), 293),
    "one key for all heads": ((2 * 32 * 16, 0, 16, 1), 0),
    "size before position": ((2 * 32 * 16, 32 * 16, 1, 32), 0),
}


@pytest.mark.parametrize("query", STRIDES)
@pytest.mark.parametrize("key", STRIDES)
def test_strides(query: str, key: str) -> None:
    torch.manual_seed(0)
    shape = (2, 2, 32, 16)
    q, k, v = (_as_strided(shape, *STRIDES[name]).requires_grad_() for name in (query, key, query))
    cotangent = _as_strided(shape, *STRIDES[key])

    def alibi(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        return s + (j - i) * torch.exp2(-((h + 1) * 8.0 / 8))

    packed = [x.detach().contiguous().requires_grad_() for x in (q, k, v)]
    found, golden = flex_attention(q, k, v, alibi), flex_attention(packed[0], packed[1], packed[2], alibi)
    torch.testing.assert_close(found, golden)
    gradients = torch.autograd.grad(found, (q, k, v), cotangent), torch.autograd.grad(golden, packed, cotangent)
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b)
