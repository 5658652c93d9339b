"""``flex_attention``: PyTorch's signature and meaning, any captured tensor learned, on the CPU too."""

from __future__ import annotations

import math
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxOutput, AuxRequest
from torch.nn.attention.flex_attention import BlockMask as TorchBlockMask

from tilewright._errors import ArgumentError, ShapeError
from tilewright._program import check_attention
from tilewright.torch import _compile, _program
from tilewright.torch._block_mask import resolve
from tilewright.torch._operator import call
from tilewright.torch._order import like
from tilewright.torch._program import ScoreMod
from tilewright.torch._values import parse_kind

__all__ = ["AuxOutput", "AuxRequest", "flex_attention"]


@overload
def flex_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: ScoreMod | None = None,
    block_mask: TorchBlockMask | None = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: Literal[False] = False,
    kernel_options: Any = None,
    *,
    return_aux: None = None,
) -> Tensor: ...


@overload
def flex_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: ScoreMod | None = None,
    block_mask: TorchBlockMask | None = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    return_lse: Literal[True],
    kernel_options: Any = None,
    return_aux: None = None,
) -> tuple[Tensor, Tensor]: ...


@overload
def flex_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: ScoreMod | None = None,
    block_mask: TorchBlockMask | None = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    kernel_options: Any = None,
    *,
    return_aux: AuxRequest,
) -> tuple[Tensor, AuxOutput]: ...


def flex_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: ScoreMod | None = None,
    block_mask: TorchBlockMask | None = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    kernel_options: Any = None,
    *,
    return_aux: AuxRequest | None = None,
) -> Any:
    """Attention with a score function and a mask, as ``torch.nn.attention.flex_attention.flex_attention``.

    Args:
        query: ``[B, Hq, L, E]``, ``float32``, ``bfloat16``, ``float16`` or ``float64``; any strides.
        key: ``[B, Hkv, S, E]``; its batch may be 1.
        value: ``[B, Hkv, S, Ev]``.
        score_mod: ``(score, b, h, q_idx, kv_idx) -> score``. Tensors that it reads, however it gets hold of them, are
            captured; those that require a gradient get one, exact and the same in each run.
        block_mask: from :func:`create_block_mask`, or PyTorch's own.
        scale: factor of the dot products; ``1 / sqrt(E)`` where ``None``.
        enable_gqa: whether ``Hq`` may be a multiple of ``Hkv``.
        return_lse: whether to return the log-sum-exp ``[B, Hq, L]`` as well (PyTorch's older argument).
        kernel_options: accepted and ignored: there is nothing to tune.
        return_aux: which of log-sum-exp and row maximum to return as well.

    Returns:
        The output ``[B, Hq, L, Ev]``, whose axes lie in memory in the order of the query's; a pair with the log-sum-exp or an
        ``AuxOutput`` where these are asked for.

    Raises:
        ShapeError, DTypeError, TraceError: subclasses of ``TilewrightError`` that name argument, axis and both sizes.

    >>> import torch
    >>> q, k, v = (torch.randn(1, 2, 8, 4) for _ in range(3))
    >>> bias = torch.zeros(2, 15, requires_grad=True)
    >>> out = flex_attention(q, k, v, lambda s, b, h, i, j: s + bias[h, i - j + 7])
    >>> out.square().sum().backward()
    >>> bias.grad.shape
    torch.Size([2, 15])
    """
    if torch.compiler.is_dynamo_compiling() and _compile.is_transformed():
        return _uncompiled(
            query, key, value, score_mod, block_mask, scale, enable_gqa, return_lse, return_aux=return_aux
        )
    if return_lse and return_aux is not None:
        raise ArgumentError("return_lse: give return_aux=AuxRequest(lse=True) alone")
    if block_mask is not None and not isinstance(block_mask, TorchBlockMask):
        raise ArgumentError(
            f"block_mask: a BlockMask expected, {type(block_mask).__name__} found; make one of a mask function: "
            "create_block_mask(mask_mod, B, H, Q_LEN, KV_LEN)"
        )
    converts = _converts(query)
    kinds = ["f32"] * 3 if converts else [parse_kind(x.dtype) for x in (query, key, value)]
    check_attention(query, key, value, kinds, enable_gqa)
    scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else float(scale)
    with_lse = return_lse or (return_aux is not None and return_aux.lse)
    with_max = return_aux is not None and return_aux.max_scores
    if converts:
        query, key, value = _autocast(query, key, value)
    if block_mask is not None:
        _check_mask(query, key, block_mask)
    lse: Tensor | None
    maximum: Tensor | None
    if torch.compiler.is_dynamo_compiling():
        out, lse, maximum = _compile.flex_attention(query, key, value, score_mod, block_mask, scale)
    else:
        mask_mod = None if block_mask is None else resolve(block_mask)
        wanted = _program.attention_results(
            query.dtype, lse=with_lse, maximum=with_max, derivative=torch.is_grad_enabled()
        )
        program, captures = _program.attention(query, key, value, score_mod, mask_mod, scale, wanted)
        out, *statistics = call([query, key, value, *captures], like(program, [query]))
        lse = statistics[0] if with_lse else None
        maximum = statistics[-1] if with_max else None
    if return_aux is not None:
        # As for PyTorch, no gradient goes by way of the maximum.
        maximum = maximum.detach() if with_max and maximum is not None else None
        return out, AuxOutput(lse=lse if with_lse else None, max_scores=maximum)
    return (out, lse) if return_lse else out


_uncompiled = _compile.uncompiled(flex_attention)


def _converts(query: Tensor) -> bool:
    """Whether autocast is on; PyTorch raises where a device knows nothing of it."""
    return (query.is_cpu and torch.is_autocast_enabled("cpu")) or (query.is_cuda and torch.is_autocast_enabled("cuda"))


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    if tensors[0].dtype == torch.float64:
        return tensors
    dtype = torch.get_autocast_dtype(tensors[0].device.type)
    return tuple(tensor.to(dtype) for tensor in tensors)


def _check_mask(query: Tensor, key: Tensor, block_mask: TorchBlockMask) -> None:
    batch, heads, queries, keys = block_mask.shape[-4:]
    for what, axis, found, expected in (
        ("query", 2, query.shape[2], queries),
        ("key", 2, key.shape[2], keys),
    ):
        if found > expected:
            raise ShapeError(
                f"block_mask: {what} length {found} expected, {expected} found (axis {axis} of {what}); "
                "create the mask for these lengths"
            )
    for what, axis, found, expected in (("batch", 0, query.shape[0], batch), ("heads", 1, query.shape[1], heads)):
        if expected not in (1, found):
            raise ShapeError(f"block_mask: {what} (axis {axis}): 1 or {found} as query expected, {expected} found")
