"""What programs written for PyTorch's flex attention do with it, with nothing changed but the import."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import pytest
import torch
import torch.nn.attention.flex_attention as torchs_module
from oracle import dense
from torch import Tensor
from torch._higher_order_ops.associative_scan import associative_scan as torchs_scan

import tilewright
import tilewright.torch
from tilewright.torch import BlockMask, create_block_mask, create_mask, flex_attention

LENGTH = 512


def causal(b: Any, h: Any, q: Any, k: Any) -> Any:
    """A query sees the keys up to itself."""
    return q >= k


@pytest.mark.parametrize("name", ["flex_attention", "create_block_mask", "create_mask", "and_masks", "or_masks", "associative_scan"])
def test_signatures_are_pytorchs(name: str) -> None:
    """The same arguments with the same defaults; what PyTorch lacks is behind them, by keyword."""
    theirs = inspect.signature(torchs_scan if name == "associative_scan" else getattr(torchs_module, name))
    ours = list(inspect.signature(getattr(tilewright.torch, name)).parameters.values())
    wanted = [(p.name, p.kind, p.default) for p in theirs.parameters.values()]
    assert [(p.name, p.kind, p.default) for p in ours[: len(wanted)]] == wanted
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in ours[len(wanted) :])


def test_every_public_name_is_there() -> None:
    for name in (*torchs_module.__all__, "_DEFAULT_SPARSE_BLOCK_SIZE", "_mask_mod_signature", "_score_mod_signature"):
        assert hasattr(tilewright.torch, name), name
    assert torch.equal(create_mask(causal, 1, 1, 5, 5, device="cpu")[0, 0], torch.ones(5, 5).tril().bool())


@pytest.mark.parametrize("compiled", [False, True])
def test_decoding_with_a_part_of_a_mask(compiled: bool) -> None:
    """A row of a mask's blocks is cut out, and its function is given the position of the one query."""
    whole = create_block_mask(causal, 1, 1, LENGTH, LENGTH, device="cpu")
    query, key, value = (torch.randn(1, 4, LENGTH, 16) for _ in range(3))
    golden = flex_attention(query, key, value, block_mask=whole)
    attention = torch.compile(flex_attention, dynamic=False) if compiled else flex_attention

    def moved(offset: Tensor) -> Any:
        return lambda b, h, q, k: causal(b, h, q + offset, k)

    for place in (0, 5, 200, 511):
        position = torch.tensor([place])
        part = whole[:, :, position // whole.BLOCK_SIZE[0]]
        part.mask_mod = moved(position[0])
        part.seq_lengths = (1, LENGTH)
        out = attention(query[:, :, place : place + 1], key, value, block_mask=part)
        torch.testing.assert_close(out, golden[:, :, place : place + 1])
    with pytest.raises(RuntimeError, match="sliced BlockMask"):
        flex_attention(query[:, :, :128], key, value, block_mask=whole[:, :, :1])


def test_padded_batches_and_grouped_heads() -> None:
    attended = torch.ones(2, 100, dtype=torch.long)
    attended[1, 60:] = 0

    def mask_mod(b: Any, h: Any, q: Any, k: Any) -> Any:
        return (q >= k) & (attended[b, q] > 0) & (attended[b, q] == attended[b, k])

    mask = create_block_mask(mask_mod=mask_mod, B=2, H=None, Q_LEN=100, KV_LEN=100, device="cpu", _compile=False)
    query, key, value = torch.randn(2, 4, 100, 16), torch.randn(2, 2, 100, 16), torch.randn(2, 2, 100, 16)
    out, lse = flex_attention(
        query, key, value, block_mask=mask, enable_gqa=True, scale=0.3, kernel_options=None, return_lse=True
    )
    golden = dense(query, key, value, None, mask_mod, 0.3)
    torch.testing.assert_close(out, golden[0])
    torch.testing.assert_close(lse, golden[1])
    assert not out[1, :, 60:].any()


def test_masks_are_kept_by_their_functions() -> None:
    @functools.lru_cache
    def cached(mask_mod: Any, length: int) -> BlockMask:
        return create_block_mask(mask_mod, None, None, length, length, device="cpu")

    mask = cached(causal, LENGTH)
    assert cached(causal, LENGTH) is mask and mask.sparsity() == 37.5 and "sparsity=37.50%" in str(mask)
    assert mask.to("cpu").shape == mask.shape


def test_a_score_function_may_print(capsys: pytest.CaptureFixture[str]) -> None:
    def score(s: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
        print("score", s.shape, s.dtype, q.device)
        return s

    query, key, value = (torch.randn(1, 1, 4, 4) for _ in range(3))
    flex_attention(query, key, value, score_mod=score)
    assert capsys.readouterr().out == "score torch.Size([]) torch.float32 cpu\n"


def test_a_function_in_place_of_a_mask() -> None:
    query, key, value = (torch.randn(1, 1, 4, 4) for _ in range(3))
    function: Any = causal
    with pytest.raises(tilewright.ArgumentError, match=r"a BlockMask expected, function found.*create_block_mask"):
        flex_attention(query, key, value, block_mask=function)
