"""How results lie in memory: as those of PyTorch's operator, eager, compiled and by the fake kernel, and made there."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.attention.flex_attention as torch_flex
from oracle import DEVICES
from torch import Tensor
from torch._higher_order_ops.flex_attention import flex_attention as flex_attention_op

from tilewright import _native
from tilewright.torch import _program, flex_attention
from tilewright.torch._order import like

ORDERS = [(*order, 3) for order in itertools.permutations(range(3))]
BATCH, HEADS, LENGTH, SIZE = 2, 3, 5, 8


def _lying(
    order: tuple[int, ...], shape: tuple[int, ...], dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Tensor:
    """A random leaf whose axes lie in this order."""
    whole = torch.randn([shape[axis] for axis in order]).to(device, dtype)
    return whole.permute([order.index(axis) for axis in range(len(order))]).detach().requires_grad_()


def _inputs(
    orders: tuple[tuple[int, ...], ...], dtype: torch.dtype = torch.float32, device: str = "cpu", value_size: int = 6
) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = ((BATCH, HEADS, LENGTH, SIZE), (BATCH, HEADS, 7, SIZE), (BATCH, HEADS, 7, value_size))
    return [_lying(order, shape, dtype, device) for order, shape in zip(orders, shapes)]


def _torchs(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """PyTorch's operator, below the wrapper that refuses to train on the CPU."""
    blocks = torch_flex._create_empty_block_mask(query, key).as_tuple()
    out, _, _ = flex_attention_op(query, key, value, lambda s, b, h, q, k: s * 2, blocks, 0.5, {})
    return out


def _ours(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return flex_attention(query, key, value, lambda s, b, h, q, k: s * 2, scale=0.5)


def _strides(out: Tensor, inputs: list[Tensor]) -> list[tuple[int, ...]]:
    return [x.stride() for x in (out, *torch.autograd.grad(out.square().sum(), inputs, retain_graph=True))]


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_strides_are_those_of_torchs_operator(device: str, order: tuple[int, ...]) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        inputs = _inputs((order, ORDERS[2], ORDERS[5]), dtype, device, 6 if device == "cpu" else SIZE)
        q, k, v = inputs
        out = _ours(q, k, v)
        assert _strides(out, inputs) == _strides(_torchs(q, k, v), inputs)
        packed = [x.detach().contiguous().requires_grad_() for x in inputs]
        golden = _ours(*packed)
        assert torch.equal(out, golden)
        found, wanted = (torch.autograd.grad(x.square().sum(), y) for x, y in ((out, inputs), (golden, packed)))
        assert all(torch.equal(a, b) for a, b in zip(found, wanted))


def test_rows_are_whole_where_the_querys_are_not() -> None:
    q, k, v = (torch.randn(2, 3, 8, 5).mT for _ in range(3))
    assert _ours(q, k, v).stride() == _torchs(q, k, v).stride()
    q, k, v = (torch.randn(1, 3, 5, 8).expand(2, -1, -1, -1) for _ in range(3))
    assert _ours(q, k, v).stride() == _torchs(q, k, v).stride()


def test_what_a_projection_gave_goes_into_one_without_a_copy() -> None:
    x = torch.randn(BATCH, LENGTH, 3 * HEADS * SIZE, requires_grad=True)
    q, k, v = x.view(BATCH, LENGTH, 3, HEADS, SIZE).permute(2, 0, 3, 1, 4)
    out = _ours(q, k, v)
    assert out.transpose(1, 2).view(BATCH, LENGTH, HEADS * SIZE)._base is out._base
    (gradient,) = torch.autograd.grad(out.sum(), q, retain_graph=True)
    gradient.transpose(1, 2).view(BATCH, LENGTH, HEADS * SIZE)
    program, captures = _program.attention(q, k, v, lambda s, b, h, i, j: s * 2, None, 0.5, ["out"])
    text = _native.explain(like(program, [q]), [q, k, v, *captures])
    assert text.splitlines()[-1].startswith("attention f32"), text
    assert text.count("\n") == _native.explain(program, [q, k, v, *captures]).count("\n"), text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_and_fake_results_lie_so_too(dtype: torch.dtype) -> None:
    inputs = _inputs((ORDERS[1], ORDERS[2], ORDERS[4]), dtype)
    q, k, v = inputs
    eager, compiled = _ours(q, k, v), torch.compile(_ours, fullgraph=True)(q, k, v)
    assert torch.equal(eager, compiled) and eager.stride() == compiled.stride()
    for a, b in zip(*(torch.autograd.grad(out.square().sum(), inputs) for out in (eager, compiled))):
        assert torch.equal(a, b) and a.stride() == b.stride()
    names = _program.attention_results(dtype, lse=False, maximum=False, derivative=True)
    program, captures = _program.attention(q, k, v, lambda s, b, h, i, j: s * 2, None, 0.5, names)
    arguments: Any = ([q, k, v, *captures], like(program, [q]))
    torch.library.opcheck(torch.ops.tilewright.call.default, arguments)


def test_second_derivatives_of_inputs_that_lie_otherwise() -> None:
    torch.manual_seed(0)
    inputs = [_lying(order, (1, 2, 3, 2), torch.float64) for order in (ORDERS[1], ORDERS[2], ORDERS[4])]
    assert torch.autograd.gradcheck(_ours, inputs) and torch.autograd.gradgradcheck(_ours, inputs)
