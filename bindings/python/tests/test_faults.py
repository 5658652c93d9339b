"""Bad input and faults: what must happen, row by row (`test_errors.py` has the messages)."""

from __future__ import annotations

import math
import os
import threading
from typing import Any

import pytest
import torch
from oracle import dense
from torch import Tensor

import tilewright
from tilewright.torch import associative_scan, create_block_mask, flex_attention


def _qkv(length: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 4, length, 8, generator=generator).requires_grad_() for _ in range(3))
    return query, key, value


def test_rows_that_see_no_key() -> None:
    q, k, v = _qkv()
    mask = create_block_mask(lambda b, h, i, j: (i != 3) & (i >= j), None, None, 9, 9, device="cpu")
    out, lse = flex_attention(q, k, v, block_mask=mask, return_lse=True)
    assert float(out[:, :, 3].abs().max()) == 0.0 and bool(torch.isneginf(lse[:, :, 3]).all())
    gradients = torch.autograd.grad((out * torch.randn_like(out)).sum(), (q, k, v))
    assert float(gradients[0][:, :, 3].abs().max()) == 0.0
    assert all(bool(torch.isfinite(g).all()) for g in gradients)


def test_a_document_of_length_zero_leaves_its_neighbours_alone() -> None:
    q, k, v = _qkv(12)

    def attend(ids: list[int]) -> Tensor:
        document = torch.tensor(ids)
        mask = create_block_mask(lambda b, h, i, j: document[i] == document[j], None, None, 12, 12, device="cpu")
        return flex_attention(q, k, v, block_mask=mask)

    assert torch.equal(attend([0] * 5 + [2] * 7), attend([0] * 5 + [1] * 7))


def test_scores_that_are_infinite_or_no_number() -> None:
    q, k, v = (x.detach() for x in _qkv())

    def score(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        s = torch.where((i == 2) & (j == 4), math.nan, s)
        s = torch.where((i == 5) & (j == 3), math.inf, s)
        return torch.where(j == 1, -math.inf, s)

    out, golden = flex_attention(q, k, v, score), dense(q, k, v, score)[0]
    assert bool(torch.isnan(out[:, :, 2]).all()) and bool(torch.isnan(out[:, :, 5]).all())
    torch.testing.assert_close(out, golden, equal_nan=True)


def test_gathers_from_an_empty_array_and_from_the_end() -> None:
    q, k, v = _qkv()
    empty = torch.empty(0)
    with pytest.raises(tilewright.OutOfRangeError, match="size 0"):
        flex_attention(q, k, v, lambda s, b, h, i, j: s + empty[i])
    table = torch.randn(9)
    from_end = flex_attention(q, k, v, lambda s, b, h, i, j: s + table[i - 9])
    assert torch.equal(from_end, flex_attention(q, k, v, lambda s, b, h, i, j: s + table[i]))
    with pytest.raises(tilewright.OutOfRangeError, match="-10"):
        flex_attention(q, k, v, lambda s, b, h, i, j: s + table[i - 10])


def test_broadcast_inputs_are_not_copied() -> None:
    row = torch.randn(1, 1, 9, 8)
    wide = row.expand(2, 4, 9, 8)
    packed = wide.contiguous()
    assert torch.equal(flex_attention(wide, wide, wide), flex_attention(packed, packed, packed))


def test_a_lazily_negated_input_is_negated() -> None:
    q, k, v = (x.detach() for x in _qkv())
    lazy = torch.complex(torch.zeros_like(q), q).conj().imag
    assert lazy.is_neg()
    torch.testing.assert_close(flex_attention(lazy, k, v), flex_attention(-q, k, v))


def test_sizes_that_overflow() -> None:
    one, narrow = torch.zeros(1), torch.zeros(1, 1, 4, 8)
    with pytest.raises(tilewright.ShapeError, match=r"query: axis 2: below 2\^31"):
        flex_attention(one.expand(1, 1, 1 << 40, 8), narrow, narrow)
    keys = one.expand(1, 1 << 14, 4, 8)
    with pytest.raises(tilewright.OutOfMemoryError):
        flex_attention(one.expand(1, 1 << 14, 1 << 30, 8), keys, keys)
    assert flex_attention(narrow, narrow, narrow).shape == (1, 1, 4, 8)


def test_an_element_beyond_two_to_the_31() -> None:
    q, k, v = (x.detach() for x in _qkv())
    start = 1 << 31
    # Memory that the system hands out where it is touched only.
    table = torch.empty(start + 9, dtype=torch.uint8)
    table[start:] = torch.arange(9)
    near = torch.arange(9)
    far = flex_attention(q, k, v, lambda s, b, h, i, j: s + table[j.long() + start])
    torch.testing.assert_close(far, flex_attention(q, k, v, lambda s, b, h, i, j: s + near[j]))


def test_a_long_chain_of_operations() -> None:
    q, k, v = (x.detach() for x in _qkv())
    count = 100_000

    def score(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        for _ in range(count):
            s = s + 1.0
        return s

    # Compiled, or refused with an error; in no case the stack's end.
    try:
        out = flex_attention(q, k, v, score)
    except tilewright.LimitError as error:
        assert len(str(error)) < 1_000
    else:
        # A score above 2¹⁶ has 2⁻⁷ between neighbours in f32.
        torch.testing.assert_close(out, flex_attention(q, k, v), rtol=0.0, atol=0.05)


def test_many_threads_compile_one_function() -> None:
    q, k, v = (x.detach() for x in _qkv())
    table = torch.randn(17)
    results: list[Tensor] = []
    start = threading.Barrier(64)

    def run() -> None:
        start.wait()
        results.append(flex_attention(q, k, v, lambda s, b, h, i, j: torch.sin(s * 1.25) + table[i - j + 8]))

    threads = [threading.Thread(target=run) for _ in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 64 and all(torch.equal(results[0], other) for other in results)


def test_other_threads_run_while_a_kernel_does() -> None:
    q, k, v = (torch.randn(1, 8, 1024, 64) for _ in range(3))
    flex_attention(q, k, v)
    counted = 0
    done = threading.Event()

    def kernel() -> None:
        flex_attention(q, k, v)
        done.set()

    thread = threading.Thread(target=kernel)
    thread.start()
    while not done.is_set():
        counted += 1
    thread.join()
    assert counted > 100


def test_a_child_process_works() -> None:
    q, k, v = (x.detach() for x in _qkv())
    expected = flex_attention(q, k, v)
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        os._exit(0 if torch.equal(flex_attention(q, k, v), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_device_that_is_not_there() -> None:
    q, k, v = (torch.randn(1, 1, 4, 4, device="meta") for _ in range(3))
    assert flex_attention(q, k, v).device.type == "meta"
    on_cpu = torch.randn(1, 1, 4, 4)
    with pytest.raises(tilewright.DeviceUnavailableError, match="cpu, meta"):
        flex_attention(on_cpu, k, v)


def test_types_that_are_not_there() -> None:
    q, k, v = _qkv()
    table = torch.randn(9, dtype=torch.complex64)
    with pytest.raises(tilewright.TraceError, match="complex64"):
        flex_attention(q, k, v, lambda s, b, h, i, j: s + table[i])
    narrow = torch.arange(9, dtype=torch.int16)
    wide = narrow.to(torch.int64)
    assert torch.equal(
        flex_attention(q, k, v, lambda s, b, h, i, j: s + narrow[i]),
        flex_attention(q, k, v, lambda s, b, h, i, j: s + wide[i]),
    )


def test_inputs_that_share_memory_are_never_written() -> None:
    x = torch.randn(2, 4, 9, 8)
    before = x.clone()
    flex_attention(x, x, x.transpose(0, 1).transpose(0, 1))
    associative_scan(lambda l, r: l + r, x, dim=2)
    assert torch.equal(x, before)
