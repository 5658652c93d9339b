"""PyTorch's published score functions that read captured tensors, by the rule of `test_published.py`.

Each is compared with what PyTorch's eager function computes, which evaluates it pair by pair under ``vmap``, and compiled
it gives the eager call's results to the last bit. There are 320 positions, five blocks of queries and two and a half of keys,
since the golden evaluation holds the indices of every pair as well.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_compiled_cases import Call, attention_call, check_compiled
from test_published import FUDGE, run, unfused
from torch import Tensor, nn

from tilewright.torch import flex_attention

Function = Callable[..., Any]
BATCH, HEADS, LENGTH, SIZE = 2, 2, 320, 64


def pairwise(function: Function) -> Function:
    """The function of single numbers as one of broadcast arrays."""
    for axis in (3, 2, 1, 0):
        places = [0 if place == axis else None for place in range(4)]
        function = torch.vmap(function, in_dims=(0, *places))
    return lambda s, b, h, q, k: function(s, b.flatten(), h.flatten(), q.flatten(), k.flatten())


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A random tensor."""
    return torch.randn(shape, dtype=dtype)


def _documents(length: int, dtype: torch.dtype) -> Function:
    document = (torch.arange(length) // 128).int()
    return lambda s, b, h, q, k: torch.where((q >= k) & (document[q] == document[k]), s, -float("inf"))


def _row_of_a_batch(length: int, dtype: torch.dtype) -> Function:
    bias = normal(BATCH, length)
    return lambda s, b, h, q, k: s + bias[b][q]


def _row_of_a_slice(length: int, dtype: torch.dtype) -> Function:
    bias = normal(4, BATCH, HEADS, length)
    return lambda s, b, h, q, k: s + bias[0][b, h][q]


def _captured_index(length: int, dtype: torch.dtype) -> Function:
    bias, which = normal(BATCH, HEADS, 4, length), torch.tensor(0)
    return lambda s, b, h, q, k: s + bias[b][h][which, q]


def _odd_keys(length: int, dtype: torch.dtype) -> Function:
    return lambda s, b, h, q, k: torch.where(k % 2 == 0, s, float("-inf"))


def _composition(length: int, dtype: torch.dtype) -> Function:
    def distance(s: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
        return s + (q - k)

    def later(s: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
        return torch.where(q <= k, s, float("-inf"))

    return lambda s, b, h, q, k: later(distance(s, b, h, q, k), b, h, q, k)


def _every_axis(length: int, dtype: torch.dtype) -> Function:
    of_head, of_batch, of_token = normal(HEADS), normal(BATCH), normal(length)
    return lambda s, b, h, q, k: s + of_token[q] + of_batch[b] + of_head[h]


def _halves(length: int, dtype: torch.dtype) -> Function:
    second = torch.arange(length) >= length // 2
    return lambda s, b, h, q, k: torch.where(second[q] == second[k], s, float("-inf"))


def _matrix(length: int, dtype: torch.dtype) -> Function:
    bias = normal(length, length, dtype=dtype)
    return lambda s, b, h, q, k: s + bias[q, k]


def _matrix_of_batch(length: int, dtype: torch.dtype) -> Function:
    bias = normal(BATCH, length, length, dtype=dtype)
    return lambda s, b, h, q, k: s + bias[b, q, k]


def _matrix_of_slice(length: int, dtype: torch.dtype) -> Function:
    bias = normal(BATCH, HEADS, length, length, dtype=dtype)
    return lambda s, b, h, q, k: s + bias[b, h, q, k]


def _relative(length: int, dtype: torch.dtype) -> Function:
    bias = normal(2 * length, dtype=dtype)
    return lambda s, b, h, q, k: s + bias[(q - k) + length]


def _prefix(length: int, dtype: torch.dtype) -> Function:
    both_ways = torch.randint(0, length, (BATCH,), dtype=torch.int32)

    def score(s: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
        within = (q <= both_ways[b]) & (k <= both_ways[b])
        return torch.where(within | (q >= k), s, -float("inf"))

    return score


def _neighbourhood(length: int, dtype: torch.dtype) -> Function:
    width, window = length // 32, 3

    def place(index: Any) -> Any:
        # Their row is a true quotient.
        return index / width, index % width

    def score(s: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
        (row, column), (key_row, key_column) = place(q), place(k)
        near = ((row - key_row).abs() <= window) | ((column - key_column).abs() <= window)
        return torch.where(near, s, float("-inf"))

    return score


def _floor_division(length: int, dtype: torch.dtype) -> Function:
    return lambda s, b, h, q, k: s - q // (1 + k)


def _silu(length: int, dtype: torch.dtype) -> Function:
    return lambda s, b, h, q, k: torch.nn.functional.silu(s)


def _padded(length: int, dtype: torch.dtype) -> Function:
    limit = torch.arange(BATCH, dtype=torch.int32) + 1

    def score(s: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
        return torch.where(s <= limit[b], torch.where(q >= k, s, float("-inf")), -float("inf"))

    return score


def _whole_number(length: int, dtype: torch.dtype) -> Function:
    scale = torch.ones((), dtype=torch.int32)
    return lambda s, b, h, q, k: s + scale


def _one_element(length: int, dtype: torch.dtype) -> Function:
    scale = torch.ones(1, dtype=dtype, requires_grad=True)
    return lambda s, b, h, q, k: s + scale[0]


def _logarithm(length: int, dtype: torch.dtype) -> Function:
    mass = torch.ones(1, dtype=dtype)
    return lambda s, b, h, q, k: s + torch.log(mass[0])


def _sum_of_a_row(length: int, dtype: torch.dtype) -> Function:
    scale = normal(BATCH, 8)
    return lambda s, b, h, q, k: s + scale[b].sum(dim=-1)


def _places_within_documents(length: int, dtype: torch.dtype) -> Function:
    starts = torch.tensor([0, length // 2, length // 2 + length // 4, length], dtype=torch.int32)
    document = torch.bucketize(torch.arange(length), starts[1:-1], right=True).int()

    def score(s: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
        query, key = q - starts[document[q]], k - starts[document[k]]
        return torch.where(query >= key, s, float("-inf"))

    return score


def _euclidean(length: int, dtype: torch.dtype) -> Function:
    means, scales = normal(length, 3), torch.logspace(0.001, 0.1, HEADS)

    def score(s: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
        # One point is its own neighbour, where the root has no derivative; theirs is not asked for one.
        distance = (means[q] - means[k]).pow(2).sum(-1).sqrt()
        return torch.exp(-distance / scales[h]) * s

    return score


def _bf16_offsets(length: int, dtype: torch.dtype) -> Function:
    of_query, of_key = normal(length, dtype=torch.bfloat16), normal(length, dtype=torch.bfloat16)
    return lambda s, b, h, q, k: s + of_query[q] + of_key[k]


def _bf16_factor(length: int, dtype: torch.dtype) -> Function:
    factor = normal(length, dtype=torch.bfloat16)
    return lambda s, b, h, q, k: s * factor[q]


def _zeros_like_an_index(length: int, dtype: torch.dtype) -> Function:
    table = torch.ones(BATCH, 1, length, length, dtype=torch.bool).tril()

    def score(s: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
        none = h.new_zeros(h.shape)
        return s + table[b, none, q, k]

    return score


class ContinuousBias(nn.Module):
    """A bias that a small network makes of relative places in an image, gated by learned numbers of query and key."""

    def __init__(self, length: int, outside: int, heads: int) -> None:
        super().__init__()
        side = int((length - outside) ** 0.5)
        self.network = nn.Sequential(nn.Linear(2, 32), nn.GELU(), nn.Linear(32, heads, bias=False))
        self.gate = nn.Parameter(torch.zeros(heads))
        self.first: Tensor
        self.register_buffer("first", torch.tensor(outside))
        line = torch.arange(-(side - 1), side) / max(side - 1, 1)
        offsets = torch.cartesian_prod(line, line)
        self.offsets = torch.sign(offsets) * torch.log1p(offsets.abs())
        places = torch.cartesian_prod(torch.arange(side), torch.arange(side))
        moved = places[:, None] - places[None] + side - 1
        self.place = torch.zeros(length, length, dtype=torch.long)
        self.place[outside:, outside:] = moved[..., 0] * (2 * side - 1) + moved[..., 1]

    def score(self, factors: Tensor) -> Function:
        """The score function, which captures what this computes."""
        table, place, gate = self.network(self.offsets), self.place, torch.sigmoid(self.gate)
        of_query, of_key = factors.unbind(2)

        def score(s: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
            biased = (q >= self.first) & (k >= self.first)
            weight = gate[h] * (of_query[b, h, q] + of_key[b, h, k])
            return s + biased.to(s.dtype) * weight * table[place[q, k], h]

        return score


def _continuous_bias(length: int, dtype: torch.dtype) -> Function:
    return ContinuousBias(length, length - 256, HEADS).score(normal(BATCH, HEADS, 2, length))


CASES: dict[str, Callable[[int, torch.dtype], Function]] = {
    "doc_mask_sparse": _documents,
    "index_multiple": _row_of_a_batch,
    "index_weird1": _row_of_a_slice,
    "index_weird2": _captured_index,
    "skip_odd_keys": _odd_keys,
    "function_composition": _composition,
    "captured_buffers_all_dims": _every_axis,
    "seq_masking": _halves,
    "load_from_bias_seq_only": _matrix,
    "load_from_bias_seq_batch": _matrix_of_batch,
    "load_from_bias_head_seq_batch": _matrix_of_slice,
    "load_rel_bias": _relative,
    "dependent_causal_bidirectional": _prefix,
    "natten_2d": _neighbourhood,
    "subgraph_respect_decomposition": _floor_division,
    "silu_on_score": _silu,
    "padded_dense_causal": _padded,
    "captured_scale": _whole_number,
    "captured_scalar_grad": _one_element,
    "upcast_appropriately": _logarithm,
    "captured_reduction": _sum_of_a_row,
    "njt_causal": _places_within_documents,
    "reduction_unrolled": _euclidean,
    "causal_block_non_divisible_with_captured_buffer": _bf16_offsets,
    "non_divisible_with_captured_buffer": _bf16_factor,
    "new_empty_mask_mod": _zeros_like_an_index,
    "custom_score_mod_layout_freeze": _continuous_bias,
}

#: Lengths that no block divides.
LENGTHS = {"causal_block_non_divisible_with_captured_buffer": 317, "non_divisible_with_captured_buffer": 323}


@pytest.mark.parametrize("dtype", FUDGE, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_against_pairwise_evaluation(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    length = LENGTHS.get(name, LENGTH)
    score = CASES[name](length, dtype)
    run(score, None, dtype, (BATCH, HEADS, length, SIZE), golden=pairwise(score))


def test_compiled() -> None:
    torch.manual_seed(0)
    calls: dict[str, Call] = {}
    for name, make in CASES.items():
        inputs = [normal(BATCH, HEADS, 288, 16).requires_grad_() for _ in range(3)]
        calls[name] = attention_call(inputs, make(288, torch.float32), None, [])
    check_compiled(calls)


def test_a_function_that_changes_with_what_it_captures() -> None:
    scale, add = torch.ones((), dtype=torch.int32), True

    def score(s: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
        return s + scale if add else s * scale

    shape = (BATCH, HEADS, 128, SIZE)
    run(score, None, torch.float32, shape)
    q, k, v = (normal(*shape) for _ in range(3))
    scale += 1
    for add in (True, False, True):
        found, golden = flex_attention(q, k, v, score), unfused(q, k, v, score, None)
        torch.testing.assert_close(found, golden)


def distance(s: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
    """The score and the distance of query and key."""
    return s + (q - k)


def _causal(s: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
    return torch.where(q >= k, s, -float("inf"))


def test_scores_of_two_calls_and_three() -> None:
    q, *others = (normal(1, 8, 1024, 64) for _ in range(7))
    keys, values = others[:3], others[3:]
    later = functools.partial(flex_attention, score_mod=distance)

    def function(attention: Callable[..., Tensor], first: Callable[..., Tensor]) -> Tensor:
        second = attention(first(q, keys[0], values[0]), keys[1], values[1], _causal)
        return attention(second, keys[2], values[2], distance)

    golden = function(
        lambda q, k, v, score: unfused(q, k, v, score, None), lambda q, k, v: unfused(q, k, v, distance, None)
    )
    found = function(flex_attention, later)
    compiled = torch.compile(lambda: function(flex_attention, later), fullgraph=True)()
    torch.testing.assert_close(found, golden, rtol=2e-1, atol=2e-1)
    torch.testing.assert_close(compiled, golden, rtol=2e-1, atol=2e-1)
    assert float((compiled - golden).abs().mean()) < 1e-2

