"""A dense evaluation of attention: what the drop-in is compared with."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor


def dense(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: Any = None,
    mask_mod: Any = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, log-sum-exp and maximum, with every score written out, in the type of the inputs."""
    batch, heads, queries, size = query.shape
    keys = key.shape[2]
    repeat = heads // key.shape[1]
    key, value = (x.repeat_interleave(repeat, dim=1).expand(batch, -1, -1, -1) for x in (key, value))
    scale = 1 / math.sqrt(size) if scale is None else scale
    score = (query @ key.transpose(-1, -2)) * scale
    b = torch.arange(batch, dtype=torch.int32, device=query.device).view(-1, 1, 1, 1)
    h = torch.arange(heads, dtype=torch.int32, device=query.device).view(1, -1, 1, 1)
    q = torch.arange(queries, dtype=torch.int32, device=query.device).view(1, 1, -1, 1)
    k = torch.arange(keys, dtype=torch.int32, device=query.device).view(1, 1, 1, -1)
    if score_mod is not None:
        score = score_mod(score, b, h, q, k).to(query.dtype).expand(batch, heads, queries, keys)
    if mask_mod is not None:
        score = torch.where(mask_mod(b, h, q, k), score, -math.inf)
    maximum = score.amax(-1)
    safe = torch.where(maximum == -math.inf, 0.0, maximum).unsqueeze(-1)
    weight = torch.where(score == -math.inf, 0.0, torch.exp(score - safe))
    total = weight.sum(-1)
    empty = total == 0
    lse = torch.where(empty, -math.inf, torch.log(torch.where(empty, 1.0, total)) + safe.squeeze(-1))
    share = weight / torch.where(empty, 1.0, total).unsqueeze(-1)
    return share @ value, lse, maximum


def error(found: Tensor, golden: Tensor) -> float:
    """Root mean square of the difference; NaN never passes as small."""
    found, golden = found.detach().double(), golden.detach().double()
    same = found == golden
    difference = torch.where(same, 0.0, found - golden)
    return float(difference.square().mean().sqrt()) if difference.numel() else 0.0


#: How much larger than a plain evaluation's our error may be, by type.
FACTOR = {torch.float64: 4.0, torch.float32: 4.0, torch.bfloat16: 1.35, torch.float16: 1.35}

#: Below this an error counts as none: rounding of a result that is exact in the plain evaluation.
FLOOR = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 0.0, torch.float16: 0.0}


def check(name: str, found: Tensor, plain: Tensor, golden: Tensor, dtype: torch.dtype) -> None:
    """The golden rule: our error is at most a factor of the error of a plain evaluation in the same type."""
    assert found.shape == golden.shape, f"{name}: shape {found.shape}, {golden.shape} expected"
    ours, theirs = error(found, golden), error(plain, golden)
    allowed = max(FACTOR[dtype] * theirs, FLOOR[dtype] * (1 + float(golden.detach().double().nan_to_num().abs().max() if golden.numel() else 0)))
    assert ours <= allowed, f"{name}: error {ours:.3e}, at most {allowed:.3e} allowed (plain: {theirs:.3e})"


#: What the tests of programs run on; without a GPU, the reason for skipping is shown.
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no NVIDIA GPU")),
]
