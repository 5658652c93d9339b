"""The score functions and masks of the acceptance list, as a user of PyTorch writes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Any]


@dataclass
class Case:
    """A score function with what it captures; ``dense`` where broadcasting would not mean the same."""

    name: str
    make: Callable[[Sizes, torch.dtype], tuple[Function, list[Tensor]]]
    dense: Callable[[Sizes, list[Tensor]], Function] | None = None


@dataclass
class Sizes:
    """Sizes of an attention call."""

    batch: int = 2
    heads: int = 4
    key_heads: int = 4
    queries: int = 37
    keys: int = 37
    head_size: int = 16
    value_size: int = 16
    device: str = "cpu"
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def normal(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """A random tensor that requires a gradient."""
        return (torch.randn(shape, generator=self.generator) * 0.5).to(self.device, dtype).requires_grad_()

    def integers(self, high: int, *shape: int) -> Tensor:
        """Random whole numbers below ``high``."""
        return torch.randint(0, high, shape, generator=self.generator).to(self.device)


def _plain(function: Function) -> Callable[[Sizes, torch.dtype], tuple[Function, list[Tensor]]]:
    return lambda sizes, dtype: (function, [])


def _one(
    shape: Callable[[Sizes], tuple[int, ...]], function: Callable[[Sizes, Tensor], Function]
) -> Callable[[Sizes, torch.dtype], tuple[Function, list[Tensor]]]:
    def make(sizes: Sizes, dtype: torch.dtype) -> tuple[Function, list[Tensor]]:
        table = sizes.normal(*shape(sizes), dtype=dtype)
        return function(sizes, table), [table]

    return make


def _length(sizes: Sizes) -> int:
    return max(sizes.queries, sizes.keys)


def _alibi(sizes: Sizes, dtype: torch.dtype) -> tuple[Function, list[Tensor]]:
    slopes = torch.exp2(-torch.arange(1, sizes.heads + 1) * 8.0 / sizes.heads).to(sizes.device, dtype)
    return lambda s, b, h, q, k: s + slopes[h] * (k - q), []


def _bucketed(sizes: Sizes, dtype: torch.dtype) -> tuple[Function, list[Tensor]]:
    table = sizes.normal(sizes.heads, 32, dtype=dtype)
    bucket = sizes.integers(32, sizes.queries, sizes.keys)
    return lambda s, b, h, q, k: s + table[h, bucket[q, k]], [table]


def _bucketed_computed(sizes: Sizes, dtype: torch.dtype) -> tuple[Function, list[Tensor]]:
    table = sizes.normal(sizes.heads, 32, dtype=dtype)

    def score(s: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
        distance = torch.abs(q - k)
        far = 8 + (torch.log2(distance.clamp(min=1).float() / 8) * 4).to(torch.int32)
        return s + table[h, torch.where(distance < 8, distance, far.clamp(8, 31))]

    return score, [table]


def _indirect(sizes: Sizes, dtype: torch.dtype) -> tuple[Function, list[Tensor]]:
    table = sizes.normal(_length(sizes), dtype=dtype)
    offset = sizes.integers(_length(sizes), sizes.queries)
    return lambda s, b, h, q, k: s + table[offset[q]], [table]


def _graph_distance(sizes: Sizes, dtype: torch.dtype) -> tuple[Function, list[Tensor]]:
    weight = sizes.normal(sizes.heads, 9, dtype=dtype)
    distance = sizes.integers(9, sizes.batch, sizes.queries, sizes.keys)
    return lambda s, b, h, q, k: s + weight[h, distance[b, q, k]], [weight]


def _distinct(sizes: Sizes, dtype: torch.dtype) -> tuple[Function, list[Tensor]]:
    rows, columns = sizes.normal(sizes.queries, dtype=dtype), sizes.normal(sizes.keys, dtype=dtype)
    return lambda s, b, h, q, k: s + rows[q] + columns[k], [rows, columns]


def _scalar(sizes: Sizes, dtype: torch.dtype) -> tuple[Function, list[Tensor]]:
    t = sizes.normal(dtype=dtype)
    return lambda s, b, h, q, k: s * t + t, [t]


def _extra_axis(sizes: Sizes, dtype: torch.dtype) -> tuple[Function, list[Tensor]]:
    table = sizes.normal(sizes.batch, sizes.heads, 4, sizes.queries, dtype=dtype)
    which = torch.tensor(2)
    return lambda s, b, h, q, k: s + table[b, h, which, q], [table]


def _radial(sizes: Sizes, dtype: torch.dtype) -> tuple[Function, list[Tensor]]:
    places = sizes.normal(sizes.batch, _length(sizes), 3, dtype=dtype)
    weight = sizes.normal(sizes.heads, dtype=dtype)
    return lambda s, b, h, q, k: s + (places[b, q, :] * places[b, k, :]).sum(-1) * weight[h], [places, weight]


def _unused(sizes: Sizes, dtype: torch.dtype) -> tuple[Function, list[Tensor]]:
    table = sizes.normal(sizes.queries, dtype=dtype)

    def score(s: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
        table[q]
        return s

    return score, [table]


def _composed(sizes: Sizes, dtype: torch.dtype) -> tuple[Function, list[Tensor]]:
    relative = sizes.normal(sizes.heads, 2 * _length(sizes), dtype=dtype)
    gate = sizes.normal(sizes.heads, dtype=dtype)
    n = _length(sizes)

    def score(s: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
        s = s + relative[h, q - k + n - 1]
        return 5.0 * torch.tanh(s / 5.0) * torch.sigmoid(gate[h])

    return score, [relative, gate]


def _chained_dense(sizes: Sizes, captured: list[Tensor]) -> Function:
    return lambda s, b, h, q, k: s + captured[0][q, k]


SCORES: list[Case] = [
    Case("identity", _plain(lambda s, b, h, q, k: s)),
    Case("double", _plain(lambda s, b, h, q, k: s * 2)),
    Case("squared", _plain(lambda s, b, h, q, k: s * s)),
    Case("causal", _plain(lambda s, b, h, q, k: torch.where(q >= k, s, float("-inf")))),
    Case("inverse_causal", _plain(lambda s, b, h, q, k: torch.where(q <= k, s, float("-inf")))),
    Case("relative", _plain(lambda s, b, h, q, k: s + (q - k))),
    Case("relative_causal", _plain(lambda s, b, h, q, k: torch.where(q >= k, s + (q - k), float("-inf")))),
    Case("alibi", _alibi),
    Case("softcap", _plain(lambda s, b, h, q, k: 3.0 * torch.tanh(s / 3.0))),
    Case("trig", _plain(lambda s, b, h, q, k: torch.sin(torch.cos(s)) + torch.tan(b))),
    Case("silu", _plain(lambda s, b, h, q, k: torch.nn.functional.silu(s))),
    Case("head_offset", _one(lambda z: (z.heads,), lambda z, t: lambda s, b, h, q, k: s * t[h])),
    Case(
        "relative_1d", _one(lambda z: (2 * _length(z),), lambda z, t: lambda s, b, h, q, k: s + t[torch.abs(q - k)])
    ),
    Case(
        "relative_signed",
        _one(
            lambda z: (z.heads, 2 * _length(z) - 1),
            lambda z, t: lambda s, b, h, q, k: s + t[h, q - k + _length(z) - 1],
        ),
    ),
    Case("absolute_2d", _one(lambda z: (z.queries, z.keys), lambda z, t: lambda s, b, h, q, k: s + t[q, k])),
    Case("flipped_2d", _one(lambda z: (z.keys, z.queries), lambda z, t: lambda s, b, h, q, k: s + t[k, q])),
    Case(
        "chained_2d",
        _one(lambda z: (z.queries, z.keys), lambda z, t: lambda s, b, h, q, k: s + t[q][k]),
        dense=_chained_dense,
    ),
    Case("head_bias", _one(lambda z: (z.heads, z.queries, z.keys), lambda z, t: lambda s, b, h, q, k: s + t[h, q, k])),
    Case(
        "batch_head_bias",
        _one(lambda z: (z.batch, z.heads, z.queries, z.keys), lambda z, t: lambda s, b, h, q, k: s + t[b, h, q, k]),
    ),
    Case(
        "pair_bias",
        _one(
            lambda z: (-(-z.batch // 2), z.heads, z.queries, z.keys),
            lambda z, t: lambda s, b, h, q, k: s + t[b // 2, h, q, k],
        ),
    ),
    Case("multiplicative_query", _one(lambda z: (z.queries,), lambda z, t: lambda s, b, h, q, k: s * t[q])),
    Case(
        "local_window_table",
        _one(lambda z: (17,), lambda z, t: lambda s, b, h, q, k: s + t[torch.clamp(q - k + 8, 0, 16)]),
    ),
    Case("bucketed", _bucketed),
    Case("bucketed_computed", _bucketed_computed),
    Case("global_tokens", _one(lambda z: (z.keys,), lambda z, t: lambda s, b, h, q, k: s + t[k])),
    Case("indirect", _indirect),
    Case("graph_distance", _graph_distance),
    Case("symmetric", _one(lambda z: (_length(z),), lambda z, t: lambda s, b, h, q, k: s + t[q] + t[k])),
    Case("sum_index", _one(lambda z: (2 * _length(z),), lambda z, t: lambda s, b, h, q, k: s + t[q + k])),
    Case("head_gate", _one(lambda z: (z.heads,), lambda z, t: lambda s, b, h, q, k: s * torch.sigmoid(t[h]))),
    Case("distinct", _distinct),
    Case("scalar", _scalar),
    Case("one_element", _one(lambda z: (1,), lambda z, t: lambda s, b, h, q, k: s + t[0])),
    Case("extra_axis", _extra_axis),
    Case("radial", _radial),
    Case("unused", _unused),
    Case("composed", _composed),
]


def _document(sizes: Sizes) -> Function:
    ids = torch.arange(_length(sizes), device=sizes.device) // 11
    return lambda b, h, q, k: (ids[q] == ids[k]) & (q >= k)


def _prefix(sizes: Sizes) -> Function:
    prefix = torch.tensor([5, 12, 0, 3], device=sizes.device)[: sizes.batch]
    return lambda b, h, q, k: (k < prefix[b]) | (q >= k)


def _padding(sizes: Sizes) -> Function:
    lengths = torch.tensor([sizes.keys, max(sizes.keys // 3, 1), 1, 2], device=sizes.device)[: sizes.batch]
    return lambda b, h, q, k: k < lengths[b]


def _neighbourhood(sizes: Sizes) -> Function:
    width = 7

    def mask(b: Any, h: Any, q: Any, k: Any) -> Any:
        rows = torch.abs(q // width - k // width) <= 1
        return rows & (torch.abs(q % width - k % width) <= 2)

    return mask


def _per_head(sizes: Sizes) -> Function:
    window = torch.tensor([3, 9, 100, 1], device=sizes.device)[: sizes.heads]
    return lambda b, h, q, k: torch.abs(q - k) <= window[h]


def _table(sizes: Sizes) -> Function:
    table = (torch.rand(sizes.queries, sizes.keys, generator=sizes.generator) < 0.4).to(sizes.device)
    return lambda b, h, q, k: table[q, k]


MASKS: dict[str, Callable[[Sizes], Function]] = {
    "causal": lambda sizes: lambda b, h, q, k: q >= k,
    "sliding_window": lambda sizes: lambda b, h, q, k: (q >= k) & (q - k <= 9),
    "prefix": _prefix,
    "document": _document,
    "padding": _padding,
    "neighbourhood": _neighbourhood,
    "every_second_key": lambda sizes: lambda b, h, q, k: k % 2 == 0,
    "either": lambda sizes: lambda b, h, q, k: (q >= k) | (k < 4),
    "negated": lambda sizes: lambda b, h, q, k: ~(q >= k),
    "per_head": _per_head,
    "no_key": lambda sizes: lambda b, h, q, k: (k > q + 5) & (q % 3 != 0),
    "table": _table,
}
