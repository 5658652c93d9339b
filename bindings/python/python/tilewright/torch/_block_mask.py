"""Block masks: PyTorch's, made without ever holding a query × key array.

A mask is a function; the compiler finds the blocks that it leaves in each call, by interval evaluation. A
:class:`BlockMask` that this package makes keeps the function and its sizes, and makes PyTorch's lists of blocks only
when somebody looks at them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask as TorchBlockMask
from torch.nn.attention.flex_attention import and_masks, noop_mask, or_masks

from tilewright import _native
from tilewright._errors import ArgumentError
from tilewright.torch import _program

__all__ = ["BlockMask", "and_masks", "create_block_mask", "noop_mask", "or_masks", "resolve"]

MaskMod = Callable[..., Any]

_LISTS = (
    "kv_num_blocks",
    "kv_indices",
    "full_kv_num_blocks",
    "full_kv_indices",
    "q_num_blocks",
    "q_indices",
    "full_q_num_blocks",
    "full_q_indices",
)


class BlockMask(TorchBlockMask):
    """PyTorch's ``BlockMask``, whose lists of blocks are made when they are first asked for."""

    _sizes: tuple[int, int] | None = None
    _device: torch.device | str = "cpu"

    @classmethod
    def from_mask_mod(
        cls,
        mask_mod: MaskMod,
        B: int,
        H: int,
        seq_lengths: tuple[int, int],
        BLOCK_SIZE: tuple[int, int],
        device: torch.device | str = "cpu",
    ) -> BlockMask:
        """The block mask of a function: nothing is computed yet."""
        mask = cls.__new__(cls)
        mask.mask_mod = mask_mod
        mask.seq_lengths = seq_lengths
        mask.BLOCK_SIZE = BLOCK_SIZE
        mask._sizes = (B, H)
        mask._device = device
        mask.dq_write_order = None
        mask.dq_write_order_full = None
        mask.dq_kv_order = None
        mask.dq_kv_order_spt = None
        return mask

    def __getattr__(self, name: str) -> Any:
        if name not in _LISTS or self._sizes is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        full = TorchBlockMask.from_kv_blocks(
            *_ordered(self._blocks() == 1),
            *_ordered(self._blocks() == 2),
            BLOCK_SIZE=self.BLOCK_SIZE,
            mask_mod=self.mask_mod,
            seq_lengths=self.seq_lengths,
        )
        for attribute in _LISTS:
            setattr(self, attribute, getattr(full, attribute))
        return getattr(self, name)

    def _blocks(self) -> Tensor:
        """One byte a block: 0 empty, 1 partial, 2 full."""
        assert self._sizes is not None
        return block_kinds(self.mask_mod, *self._sizes, *self.seq_lengths, self.BLOCK_SIZE).to(self._device)

    @property
    def shape(self) -> tuple[int, ...]:
        """Batch, heads, query length, key length."""
        if self._sizes is not None:
            return (*self._sizes, *self.seq_lengths)
        return super().shape

    def is_function_only(self) -> bool:
        """Whether the blocks follow from ``mask_mod`` alone."""
        return self._sizes is not None


def _ordered(dense: Tensor) -> tuple[Tensor, Tensor]:
    counts = dense.sum(dim=-1)
    order = torch.argsort(dense.to(torch.int8), dim=-1, descending=True, stable=True)
    return counts.to(torch.int32), order.to(torch.int32).contiguous()


def block_kinds(mask_mod: MaskMod, B: int, H: int, queries: int, keys: int, block: tuple[int, int]) -> Tensor:
    """``[B, H, query blocks, key blocks]`` bytes: 0 empty, 1 partial, 2 full."""
    program, captures = _program.mask(mask_mod)
    captures = [capture.cpu() for capture in captures]
    shape = (B, H, -(-queries // block[0]), -(-keys // block[1]))
    kinds = _native.block_kinds(program, captures, (B, H), (queries, keys), block)
    return torch.frombuffer(bytearray(kinds), dtype=torch.uint8).view(shape) if kinds else torch.empty(shape, dtype=torch.uint8)


def create_block_mask(
    mask_mod: MaskMod,
    B: int | None,
    H: int | None,
    Q_LEN: int,
    KV_LEN: int,
    device: torch.device | str | None = None,
    BLOCK_SIZE: int | tuple[int, int] = 128,
    _compile: bool = False,
    separate_full_blocks: bool = True,
    compute_dq_write_order: bool = False,
    dq_kv_order: bool = True,
) -> BlockMask:
    """A block mask from ``mask_mod(b, h, q_idx, kv_idx) -> bool``: PyTorch's function, with its arguments.

    Nothing of size ``Q_LEN × KV_LEN`` is made. ``B`` and ``H`` may be ``None`` for a mask that is the same in each batch
    element or head.

    >>> import torch
    >>> mask = create_block_mask(lambda b, h, q, k: q >= k, None, None, 512, 512, device="cpu")
    >>> mask.sparsity()
    37.5
    """
    block = (BLOCK_SIZE, BLOCK_SIZE) if isinstance(BLOCK_SIZE, int) else tuple(BLOCK_SIZE)
    if len(block) != 2 or min(block) < 1:
        raise ArgumentError(f"BLOCK_SIZE: one or two positive sizes expected, {BLOCK_SIZE} found")
    if not callable(mask_mod):
        raise ArgumentError(f"mask_mod: a function expected, {type(mask_mod).__name__} found")
    where = _default_device() if device is None else device
    return BlockMask.from_mask_mod(mask_mod, B or 1, H or 1, (Q_LEN, KV_LEN), (block[0], block[1]), where)


def _default_device() -> torch.device:
    """PyTorch's rule: the machine's accelerator."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def resolve(mask: TorchBlockMask) -> MaskMod | None:
    """The mask function that says what ``mask`` says: PyTorch's own block lists become a table that it reads."""
    if isinstance(mask, BlockMask) and mask.is_function_only():
        return None if mask.mask_mod is noop_mask else mask.mask_mod
    inner = None if mask.mask_mod is noop_mask else mask.mask_mod
    return from_table(_table(mask), mask.BLOCK_SIZE, inner)


def _table(mask: TorchBlockMask) -> Tensor:
    known = getattr(mask, "_tilewright_table", None)
    if isinstance(known, Tensor):
        return known
    table = block_table(
        mask.seq_lengths[1],
        mask.kv_num_blocks,
        mask.kv_indices,
        mask.full_kv_num_blocks,
        mask.full_kv_indices,
        mask.BLOCK_SIZE[1],
    )
    setattr(mask, "_tilewright_table", table)  # noqa: B010
    return table


def block_table(
    keys: int, counts: Tensor, indices: Tensor, full_counts: Tensor | None, full_indices: Tensor | None, key_block: int
) -> Tensor:
    """One byte a block from PyTorch's lists: 0 empty, 1 partial, 2 full."""
    columns = -(-keys // key_block)
    table = _listed(counts, indices, columns)
    if full_counts is not None and full_indices is not None:
        table = torch.maximum(table, 2 * _listed(full_counts, full_indices, columns))
    return table.to(torch.uint8)


def _listed(counts: Tensor, indices: Tensor, columns: int) -> Tensor:
    listed = torch.ones_like(indices).cumsum(-1) <= counts[..., None]
    positions = indices.masked_fill(~listed, columns).long()
    dense = indices.new_zeros((*indices.shape[:-1], columns + 1))
    return dense.scatter(-1, positions, 1)[..., :columns]


def from_table(table: Tensor, block: tuple[int, int], inner: MaskMod | None) -> MaskMod:
    """The mask function that reads a table of blocks, and asks ``inner`` within partial ones."""
    batch, heads = table.shape[:2]

    def admitted(b: Any, h: Any, q: Any, k: Any) -> Any:
        kind = table[b if batch > 1 else 0, h if heads > 1 else 0, q // block[0], k // block[1]]
        if inner is None:
            return kind > 0
        return (kind == 2) | ((kind == 1) & inner(b, h, q, k))

    return admitted
