"""Arrays of JAX and CuPy on a GPU: read there, with results given back there. Each needs its library, and a GPU."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from oracle import check, dense
from torch import Tensor
from torch.utils.dlpack import from_dlpack

import tilewright as tw

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no NVIDIA GPU")

LENGTH, HEADS = 256, 4


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        pytest.skip(f"{name} is not installed")


class Jax:
    """Arrays that JAX has on the GPU, whatever its default device is."""

    dtype = torch.bfloat16

    def __init__(self) -> None:
        self.jax = _import("jax")
        try:
            self.gpu = self.jax.devices("cuda")[0]
        except RuntimeError as error:
            pytest.skip(f"JAX has no GPU: {error}")

    def make(self, numbers: np.ndarray[Any, Any], dtype: str) -> Any:
        return self.jax.device_put(numbers, self.gpu).astype(dtype)

    def is_there(self, array: Any) -> bool:
        return isinstance(array, self.jax.Array) and array.devices() == {self.gpu}

    def stays(self) -> Any:
        """Raises where JAX would copy between host and GPU by itself."""
        return self.jax.transfer_guard("disallow")

    def late(self, array: Any) -> Any:
        """The array, once much else has been computed, which is not waited for here."""
        slow = self.make(np.ones((4096, 4096), np.float32), "float32")
        for _ in range(20):
            slow = slow @ slow * 1e-4
        return array + (slow[0, 0] * 0).astype(array.dtype)

    def end(self) -> None:
        """Leaves things as they were."""


class CuPy:
    """Arrays of CuPy, which copies nothing to the host unless it is asked to."""

    dtype = torch.float16

    def __init__(self) -> None:
        self.cupy = _import("cupy")
        self.stream = self.cupy.cuda.Stream(non_blocking=True)

    def make(self, numbers: np.ndarray[Any, Any], dtype: str) -> Any:
        return self.cupy.asarray(numbers).astype(dtype)

    def is_there(self, array: Any) -> bool:
        return isinstance(array, self.cupy.ndarray) and array.device.id == 0

    def stays(self) -> Any:
        return contextlib.nullcontext()

    def late(self, array: Any) -> Any:
        slow = self.make(np.ones((4096, 4096), np.float32), "float32")
        self.cupy.cuda.Device().synchronize()
        # The stream stays the thread's, so that the array is lent from it.
        self.stream.use()
        for _ in range(20):
            slow = slow @ slow * 1e-4
        return array + (slow[0, 0] * 0).astype(array.dtype)

    def end(self) -> None:
        self.cupy.cuda.Stream.null.use()


@pytest.fixture(params=[Jax, CuPy], ids=["jax", "cupy"])
def library(request: pytest.FixtureRequest) -> Iterator[Any]:
    library = request.param()
    yield library
    library.end()


@pytest.fixture(params=["single", "half"])
def dtype(request: pytest.FixtureRequest, library: Any) -> torch.dtype:
    return torch.float32 if request.param == "single" else library.dtype


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _rounded(dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Random numbers that the type has."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def _lent(library: Any, tensors: list[Tensor]) -> list[Any]:
    return [library.make(tensor.float().numpy(), _name(tensor.dtype)) for tensor in tensors]


def _back(library: Any, array: Any, dtype: torch.dtype) -> Tensor:
    """A result on the host, after a look at where it is."""
    assert library.is_there(array), f"{type(array)} on the GPU expected"
    tensor = from_dlpack(array)
    assert tensor.is_cuda and tensor.dtype == dtype
    return tensor.cpu()


SHAPES = [*[(2, HEADS, LENGTH, 64)] * 3, (HEADS, 2 * LENGTH - 1)]


def _score(bias: Any) -> Callable[..., Any]:
    return lambda s, b, h, i, j: s + bias[h, i - j + LENGTH - 1]


def _causal(b: Any, h: Any, i: Any, j: Any) -> Any:
    return i >= j


def _attend(query: Any, key: Any, value: Any, bias: Any) -> Any:
    return tw.flex_attention(query, key, value, _score(bias), _causal)


def test_attention(library: Any, dtype: torch.dtype) -> None:
    tensors = _rounded(dtype, *SHAPES)
    query, key, value, bias = _lent(library, tensors)
    with library.stays():
        out = _attend(query, key, value, tw.capture(bias))

    def expected(kind: torch.dtype) -> Tensor:
        q, k, v, table = (x.to(kind) for x in tensors)
        return dense(q, k, v, _score(table), _causal)[0]

    check("out", _back(library, out, dtype), expected(dtype), expected(torch.float64), dtype)


def test_gradients_of_attention(library: Any, dtype: torch.dtype) -> None:
    def loss(*arrays: Any) -> Any:
        return (_attend(*arrays).astype("float32") ** 2).sum()

    tensors = _rounded(dtype, *SHAPES)
    arrays = _lent(library, tensors)
    with library.stays():
        value, gradients = tw.value_and_grad(loss, argnums=(0, 1, 2, 3))(*arrays)

    def expected(kind: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [x.to(kind).requires_grad_() for x in tensors]
        q, k, v, table = leaves
        out = dense(q, k, v, _score(table), _causal)[0]
        total = (out if kind == torch.float64 else out.float()).square().sum()
        return (total.detach(), *torch.autograd.grad(total, leaves))

    golden, plain = expected(torch.float64), expected(dtype)
    torch.testing.assert_close(_back(library, value, torch.float32).double(), golden[0], rtol=1e-3, atol=0)
    for name, ours, theirs, exact in zip(("query", "key", "value", "bias"), gradients, plain[1:], golden[1:]):
        check(name, _back(library, ours, dtype), theirs, exact, dtype)


@pytest.mark.parametrize("reverse", [False, True])
def test_scan_and_its_gradient(library: Any, dtype: torch.dtype, reverse: bool) -> None:
    def combine(left: Any, right: Any) -> Any:
        return left[0] * right[0], right[0] * left[1] + right[1]

    def loss(a: Any, b: Any) -> Any:
        return (tw.associative_scan(combine, (a, b), 1, reverse)[1].astype("float32") ** 2).sum()

    tensors = [torch.sigmoid(x.float()).to(dtype) for x in _rounded(dtype, (8, 700))] + _rounded(dtype, (8, 700))
    arrays = _lent(library, tensors)
    with library.stays():
        _, states = tw.associative_scan(combine, tuple(arrays), 1, reverse)
        _, gradients = tw.value_and_grad(loss, argnums=(0, 1))(*arrays)

    def expected(kind: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [x.to(kind).requires_grad_() for x in tensors]
        decays, entering = (x.flip(1).unbind(1) if reverse else x.unbind(1) for x in leaves)
        stack = [entering[0]]
        for decay, entry in zip(decays[1:], entering[1:]):
            stack.append(decay * stack[-1] + entry)
        out = torch.stack(stack[::-1] if reverse else stack, 1)
        total = (out if kind == torch.float64 else out.float()).square().sum()
        return (out, *torch.autograd.grad(total, leaves))

    golden, plain = expected(torch.float64), expected(dtype)
    for name, ours, theirs, exact in zip(("states", "a", "b"), (states, *gradients), plain, golden):
        check(name, _back(library, ours, dtype), theirs, exact, dtype)


def test_what_the_library_still_computes_is_waited_for(library: Any) -> None:
    query, key, value, bias = _lent(library, _rounded(library.dtype, *SHAPES))
    golden = _back(library, _attend(query, key, value, tw.capture(bias)), library.dtype)
    found = _attend(library.late(query), key, value, tw.capture(bias))
    assert torch.equal(_back(library, found, library.dtype), golden)


def test_a_capture_is_read_anew_by_each_call() -> None:
    """The array itself is read, no copy that was made before. (Arrays of JAX do not change.)"""
    library = CuPy()
    query, key, value, bias = _lent(library, _rounded(library.dtype, *SHAPES))
    captured = tw.capture(bias)
    before = _back(library, _attend(query, key, value, captured), library.dtype)
    bias.fill(0)
    after = _back(library, _attend(query, key, value, captured), library.dtype)
    plain = _back(library, tw.flex_attention(query, key, value, mask_mod=_causal), library.dtype)
    assert torch.equal(after, plain) and not torch.equal(before, plain)
