"""Each function that can be traced means what PyTorch's does, and has its derivative; each index, what PyTorch's is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from oracle import dense
from torch import Tensor, nn
from torch.nn import functional

import tilewright
from tilewright.torch import create_block_mask, flex_attention

LENGTH = 12
Function = Callable[..., Any]

#: Of a score s, a query position i and a key position j, elementwise.
SCORES: dict[str, Function] = {
    "arithmetic": lambda s, i, j: (2 - s) / (3 + i) * s - j + 0.5,
    "floor_division": lambda s, i, j: s + i // 3 - j % 5 + (i - j) // 4 + (i - j) % 3,
    "truncated": lambda s, i, j: s + torch.div(i - j, 3, rounding_mode="trunc") + torch.fmod(i - j, 4),
    "division_floor": lambda s, i, j: s + torch.div(i - j, 3, rounding_mode="floor") + torch.floor_divide(i, 2),
    "remainder_of_floats": lambda s, i, j: torch.remainder(s, 0.7) + torch.fmod(s, 0.9) + s % 0.3,
    "powers": lambda s, i, j: s**3 + torch.pow(s.abs() + 1, 1.5) + torch.square(s) + s.abs() ** 0.5 + 2.0 ** (s / 4),
    "powers_of_positions": lambda s, i, j: s + (i - j) ** 2 * 0.1 + torch.pow(2.0, -(j + 1)) + torch.exp2(-(i / 4)),
    "reciprocals": lambda s, i, j: torch.reciprocal(s.abs() + 1) + torch.rsqrt(s.abs() + 1) + 1 / (1 + torch.sqrt(s.abs() + 1)),
    "exponentials": lambda s, i, j: torch.exp(s) + torch.expm1(s) + torch.exp2(s) + s.exp(),
    "logarithms": lambda s, i, j: torch.log(s.abs() + 1) + torch.log1p(s.abs()) + torch.log2(s.abs() + 2) + torch.log10(s.abs() + 3),
    "trigonometric": lambda s, i, j: torch.sin(s) * torch.cos(s) + torch.tan(s / 4) + torch.atan2(s, 2 + s.abs()),
    "hyperbolic": lambda s, i, j: torch.tanh(s) + torch.sinh(s) + torch.cosh(s),
    "error_function": lambda s, i, j: torch.erf(s) + torch.erfc(s) * s,
    "sigmoids": lambda s, i, j: torch.sigmoid(s) + functional.logsigmoid(s) + functional.softplus(s) + functional.silu(s),
    "rectifiers": lambda s, i, j: functional.relu(s) + functional.leaky_relu(s, 0.2) + functional.elu(s) + functional.gelu(s),
    "gelu_by_tanh": lambda s, i, j: functional.gelu(s, approximate="tanh"),
    "logaddexp": lambda s, i, j: torch.logaddexp(s, s * 0.5 + 1),
    "bounds": lambda s, i, j: torch.clamp(s, -0.5, 0.7) + s.clamp(min=0.1) + torch.clamp_max(s, 0.3) + s.clip(-1, 1),
    "extrema": lambda s, i, j: torch.maximum(s, -s) + torch.minimum(s, i * 0.1) + torch.max(s, j * 0.1) + torch.fmin(s, 1 - s),
    "roundings": lambda s, i, j: s + torch.floor(s) + torch.ceil(s * 2) + torch.trunc(s * 3) + torch.round(s * 4),
    "signs": lambda s, i, j: s * torch.sign(s - 0.1) + torch.sgn(s) + torch.abs(i - j) - torch.neg(s),
    "choices": lambda s, i, j: torch.where(i > j, s, torch.where(i == j, s * 2, -1.0)).masked_fill(j == 3, 0.25),
    "infinities": lambda s, i, j: torch.where((i < j) & (j != 0), -math.inf, s),
    "tests_of_floats": lambda s, i, j: torch.where(torch.isfinite(s) & ~torch.isnan(s) & ~torch.isinf(s), s, 0.0),
    "logic": lambda s, i, j: torch.where(torch.logical_or(torch.logical_and(i > j, j > 1), torch.logical_xor(i < 5, j < 7)), s, -s),
    "comparisons": lambda s, i, j: s * (i.ge(j) + i.lt(4) * 2 + j.eq(2) * 3 + torch.ne(i, 5) + torch.le(j, i) + torch.gt(i, 1)),
    "conversions": lambda s, i, j: s * i.float() + j.to(s.dtype) + i.to(torch.float64).type_as(s) + (s > 0).long() + s.int(),
    "like": lambda s, i, j: s * torch.ones_like(s) + torch.zeros_like(s) + torch.full_like(s, fill_value=0.5) + s.new_full((), 2.0),
    "bits": lambda s, i, j: s + (((i & 5) | (j ^ 3)) + (~i & 7)) * 0.1,
    "shifts": lambda s, i, j: s + ((i << 3) - (j >> 1) + ((i - j) >> 2) + torch.bitwise_left_shift(j, 2)) * 0.01,
    "shifts_by_positions": lambda s, i, j: s + ((1 << (i % 4)) + (1000 >> j) + (j << (i % 3))) * 0.001,
    "numbers_of_numpy": lambda s, i, j: s * np.float32(1.5) + np.int64(2) * s + torch.where(i > j, np.float64(0.5), s),
    "numbers_in_tensors": lambda s, i, j: s * torch.tensor(1.5) + torch.tensor(2),
    "membership": lambda s, i, j: torch.where(torch.isin(i, torch.tensor([0, 3, 7])), s, s * 0.5),
    "without_gradient": lambda s, i, j: s * s.detach(),
}


def _qkv(heads: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, LENGTH, 4, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)
    )
    return query, key, value


def _agree(ours: Tensor, golden: Tensor, leaves: list[Tensor]) -> None:
    torch.testing.assert_close(ours, golden)
    cotangent = torch.randn(golden.shape, generator=torch.Generator().manual_seed(1), dtype=golden.dtype)
    found, expected = (torch.autograd.grad(out, leaves, cotangent) for out in (ours, golden))
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", SCORES)
def test_function(name: str) -> None:
    function = SCORES[name]
    qkv = _qkv()
    ours = flex_attention(*qkv, lambda s, b, h, i, j: function(s, i, j))
    _agree(ours, dense(*qkv, lambda s, b, h, i, j: function(s, i, j))[0], list(qkv))


INDICES: dict[str, tuple[tuple[int, ...], Function, Function]] = {
    "after_a_slice": ((2, LENGTH), lambda t, h, i, j: t[:, i][h], lambda t, h, i, j: t[h, i]),
    "between_slices": ((2, LENGTH, 3), lambda t, h, i, j: t[:, j, :][h].sum(), lambda t, h, i, j: t[h, j].sum(-1)),
    "part_of_a_row": ((LENGTH, 8), lambda t, h, i, j: t[i, 2:6:2].sum(), lambda t, h, i, j: t[i][..., 2:6:2].sum(-1)),
    "ellipsis": ((2, LENGTH, LENGTH), lambda t, h, i, j: t[..., j][h, i], lambda t, h, i, j: t[h, i, j]),
    "number_between": ((2, 3, LENGTH), lambda t, h, i, j: t[h, 1, i], lambda t, h, i, j: t[h, 1, i]),
    "number_first": ((3, LENGTH), lambda t, h, i, j: t[-1][j], lambda t, h, i, j: t[-1, j]),
    "new_axes": ((LENGTH, 3), lambda t, h, i, j: (t[i][None] * t[j, None, :]).sum(), lambda t, h, i, j: (t[i] * t[j]).sum(-1)),
    "chain": ((2, 1, LENGTH, LENGTH), lambda t, h, i, j: t[h][0][i][j], lambda t, h, i, j: t[h, 0, i, j]),
    "product_of_rows": ((LENGTH, 3), lambda t, h, i, j: torch.dot(t[i], t[j]), lambda t, h, i, j: (t[i] * t[j]).sum(-1)),
    "embedding": ((2 * LENGTH, 2), lambda t, h, i, j: functional.embedding(i - j + LENGTH, t)[h], lambda t, h, i, j: t[i - j + LENGTH, h]),
    "rows_at_an_array_of_indices": (
        (LENGTH, 3),
        lambda t, h, i, j: (t[:, torch.tensor([2, 0])][i] * torch.tensor([1.0, 2.0], dtype=t.dtype)).sum(),
        lambda t, h, i, j: t[i][..., 2] + 2 * t[i][..., 0],
    ),
}


@pytest.mark.parametrize("name", INDICES)
def test_index(name: str) -> None:
    shape, traced, broadcast = INDICES[name]
    qkv = _qkv()
    table = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).requires_grad_()
    ours = flex_attention(*qkv, lambda s, b, h, i, j: s + traced(table, h, i, j))
    _agree(ours, dense(*qkv, lambda s, b, h, i, j: s + broadcast(table, h, i, j))[0], [*qkv, table])


def test_an_array_of_indices_stands_where_pytorch_puts_it() -> None:
    qkv = _qkv()
    table, weights = torch.randn(LENGTH, 5, 3, dtype=torch.float64), torch.randn(4, 2, 3, dtype=torch.float64)
    # Of two rows of a table [5, 3], at [4, 2] places along its first or last axis.
    places = torch.tensor([[0, 1], [2, 0], [1, 1], [2, 2]])
    front = flex_attention(*qkv, lambda s, b, h, i, j: s + (table[i][places] * weights).sum())
    middle = flex_attention(*qkv, lambda s, b, h, i, j: s + (table[i][:, places] * weights.permute(2, 0, 1).new_ones(5, 4, 2)).sum())
    expected = torch.einsum("iabc,abc->i", table[:, places], weights)[:, None]
    torch.testing.assert_close(front, dense(*qkv, lambda s, b, h, i, j: s + expected)[0])
    expected = table[:, :, places].sum((1, 2, 3))[:, None]
    torch.testing.assert_close(middle, dense(*qkv, lambda s, b, h, i, j: s + expected)[0])


def test_a_network_in_a_score_function_learns() -> None:
    torch.manual_seed(0)
    qkv = _qkv()
    network = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 2)).double()

    def score(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        return s + network(torch.stack([(i - j).double() / LENGTH, torch.cos(i + j)]))[h]

    positions = torch.arange(LENGTH)
    points = torch.stack(
        [(positions[:, None] - positions).double() / LENGTH, torch.cos((positions[:, None] + positions).float()).double()], -1
    )
    golden = dense(*qkv, lambda s, b, h, i, j: s + network(points).permute(2, 0, 1))[0]
    _agree(flex_attention(*qkv, score), golden, [*qkv, *network.parameters()])


def test_masks_of_bits() -> None:
    """A mask packed in bits, as it is stored where a table of booleans would be too large."""
    qkv = _qkv()
    allowed = torch.rand(LENGTH, LENGTH, generator=torch.Generator().manual_seed(3)) < 0.5
    packed = (allowed.view(LENGTH, 3, 4) * (1 << torch.arange(4))).sum(-1)

    def mask(b: Any, h: Any, i: Any, j: Any) -> Any:
        return ((packed[i, j // 4] >> (j % 4)) & 1) != 0

    ours = flex_attention(*qkv, block_mask=create_block_mask(mask, None, None, LENGTH, LENGTH, device="cpu"))
    torch.testing.assert_close(ours, dense(*qkv, None, lambda b, h, i, j: allowed)[0])


@pytest.mark.parametrize("recorded", [False, True])
def test_no_gradient_by_way_of_what_is_computed_without(recorded: bool) -> None:
    """Whether the function was traced first for a call that is recorded, or for one that is not."""
    q, k, v = _qkv()
    gain, bias = (torch.randn(2, LENGTH, dtype=torch.float64).requires_grad_() for _ in range(2))

    def score(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        with torch.no_grad():
            shift = torch.sin(bias[h, i]) + s * 0.5
        return s * gain[h, j] + shift

    with torch.set_grad_enabled(recorded):
        flex_attention(q, k, v, score)
    ours, golden = flex_attention(q, k, v, score), dense(q, k, v, score)[0]
    torch.testing.assert_close(ours, golden)
    found, wanted = (
        torch.autograd.grad(out.sin().sum(), (q, k, gain, bias), allow_unused=True) for out in (ours, golden)
    )
    for x, y in zip(found[:3], wanted[:3]):
        torch.testing.assert_close(x, y)
    assert wanted[3] is None and (found[3] is None or not found[3].any())


REFUSED: dict[str, tuple[Function, str]] = {
    "shift_of_floats": (lambda s, i, j: s + (s << 1), "a shift of whole numbers expected, f64 found"),
    "negative_shift": (lambda s, i, j: s + (i << -1), "a shift by -1"),
    "float_index": (lambda s, i, j: s + torch.zeros(3)[s], "an index of type f64"),
    "too_many_indices": (lambda s, i, j: s + torch.zeros(3)[i, j], "1 axes is indexed with 2"),
    "boolean_index": (lambda s, i, j: s + torch.zeros(LENGTH)[i > j], "an index of type bool"),
    "backwards": (lambda s, i, j: s + torch.zeros(LENGTH, 4)[i][::-1].sum(), "a slice with a negative step"),
    "unknown": (lambda s, i, j: torch.lgamma(s), "torch.lgamma cannot be traced"),
    "unknown_method": (lambda s, i, j: s.lgamma(), "no attribute 'lgamma'"),
    "in_place": (lambda s, i, j: s.mul_(2), r"no attribute 'mul_'\n.*\n.*x = x \+ y"),
    "another_device": (lambda s, i, j: s.to("meta"), "moved from device cpu to meta"),
    "no_such_axis": (lambda s, i, j: s + torch.sum(s, 3), "axis 3 of an array with 0 axes"),
    "shapes": (lambda s, i, j: (torch.zeros(LENGTH, 3)[i] + torch.zeros(4)).sum(), r"shapes \[3\] and \[4\] do not broadcast"),
    "a_string": (lambda s, i, j: s + "1", "a str where an array or a number is expected"),
    "length": (lambda s, i, j: s * len(s), r"len\(\) cannot ask"),
    "range": (lambda s, i, j: sum(range(i)) * s, r"range\(\)"),
    "item": (lambda s, i, j: s * i.item(), r"\.item\(\) cannot ask"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    function, message = REFUSED[name]
    with pytest.raises(tilewright.TraceError, match=message) as caught:
        flex_attention(*_qkv(), lambda s, b, h, i, j: function(s, i, j))
    text = str(caught.value)
    assert __file__ in text and text.count("-->") == 1 and text.count("help:") == 1 and len(text) < 1000
