"""Arrays of other libraries on a GPU, lent by DLPack: tensors of PyTorch stand for them, handed over as nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

import tilewright
from tilewright.torch import flex_attention

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no NVIDIA GPU")


def _qkv() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 4, 256, 64, generator=generator).cuda().bfloat16() for _ in range(3))
    return query, key, value


def _biased(bias: Tensor) -> Callable[..., Any]:
    return lambda s, b, h, i, j: s + bias[h, i - j + 255]


class _Lent:
    """A CUDA tensor as a library that nobody knows would hand it over: by DLPack alone."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.shape, self.ndim, self.dtype = tuple(tensor.shape), tensor.dim(), str(tensor.dtype)
        self.streams: list[Any] = []

    def __dlpack__(self, *, stream: Any = None, **options: Any) -> Any:
        self.streams.append(stream)
        return self.tensor.__dlpack__(stream=stream, **options)

    def __dlpack_device__(self) -> tuple[Any, int]:
        return self.tensor.__dlpack_device__()


def _attend(query: Any, key: Any, value: Any, bias: Any) -> Any:
    return tilewright.flex_attention(query, key, value, lambda s, b, h, i, j: s + bias[h, i - j + 255])


def _relative() -> Tensor:
    return (torch.randn(4, 511, generator=torch.Generator().manual_seed(1)) * 0.1).cuda()


def test_arrays_of_another_library() -> None:
    q, k, v = _qkv()
    bias = _relative()
    golden = flex_attention(q, k, v, _biased(bias))
    lent = [_Lent(x) for x in (q, k, v, bias)]
    ours = _attend(lent[0], lent[1], lent[2], tilewright.capture(lent[3]))
    assert tuple(map(int, ours.__dlpack_device__())) == (2, 0)
    # One stream, which is neither the default one nor none.
    assert len({x.streams[0] for x in lent}) == 1 and lent[0].streams[0] > 2
    assert torch.equal(from_dlpack(ours), golden)
    # Tensors of PyTorch go the same way through this face, and come back as such.
    found = _attend(q, k, v, tilewright.capture(bias))
    assert isinstance(found, Tensor) and torch.equal(found, golden)


def test_gradients_of_another_librarys_arrays() -> None:
    q, k, v = _qkv()
    bias = _relative().requires_grad_()
    q.requires_grad_()
    out = flex_attention(q, k, v, _biased(bias))
    golden = torch.autograd.grad(out.float().sum(), (q, bias))

    def loss(*arrays: Any) -> Any:
        return _attend(*arrays).astype("float32").sum()

    lent = [_Lent(x.detach()) for x in (q, k, v, bias)]
    value, (of_query, of_bias) = tilewright.value_and_grad(loss, argnums=(0, 3))(*lent)
    torch.testing.assert_close(from_dlpack(value), out.float().sum(), rtol=1e-3, atol=1.0)
    torch.testing.assert_close(from_dlpack(of_query), golden[0], rtol=2e-2, atol=2e-3)
    torch.testing.assert_close(from_dlpack(of_bias), golden[1], rtol=2e-2, atol=2e-2)


def test_what_another_librarys_stream_still_writes_is_waited_for() -> None:
    q, k, v = _qkv()
    bias = tilewright.capture(_Lent(_relative()))
    golden = from_dlpack(_attend(_Lent(q), _Lent(k), _Lent(v), bias)).clone()
    make: Callable[[], torch.cuda.Stream] = torch.cuda.Stream
    stream = make()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        slow = torch.randn(4096, 4096, device="cuda")
        for _ in range(20):
            slow = slow @ slow * 1e-3
        late = q + 0 * slow[0, 0].nan_to_num(0, 0, 0).bfloat16()
        found = _attend(_Lent(late), _Lent(k), _Lent(v), bias)
    assert torch.equal(from_dlpack(found), golden)


def test_lent_results_are_not_written_over_while_they_are_read() -> None:
    q, k, v = _qkv()
    bias = tilewright.capture(_Lent(_relative()))
    golden = from_dlpack(_attend(_Lent(q), _Lent(k), _Lent(v), bias)).clone()
    for _ in range(10):
        view = from_dlpack(_attend(_Lent(q), _Lent(k), _Lent(v), bias))
        copies = [view.clone() for _ in range(20)]
        del view
        # It may now be given the memory that the copies were made of.
        _attend(_Lent(-q), _Lent(k), _Lent(v), bias)
        assert all(torch.equal(copy, golden) for copy in copies)


def test_faults_of_another_librarys_arrays_are_raised_at_once() -> None:
    q, k, v = (_Lent(x) for x in _qkv())
    table = tilewright.capture(_Lent(torch.zeros(100, device="cuda")))
    with pytest.raises(tilewright.OutOfRangeError, match=r"axis 0.*size 100"):
        tilewright.flex_attention(q, k, v, lambda s, b, h, i, j: s + table[i])
    on_cpu = tilewright.capture(torch.zeros(256))
    with pytest.raises(tilewright.ArgumentError, match="capture 0: on cuda:0 as query expected, on cpu found"):
        tilewright.flex_attention(q, k, v, lambda s, b, h, i, j: s + on_cpu[i])
    tilewright.flex_attention(q, k, v)
