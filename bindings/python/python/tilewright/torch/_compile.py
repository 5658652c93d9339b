"""Inside ``torch.compile``: calls are captured by PyTorch's own operators, then replaced by ours.

Dynamo knows how to trace a function that is an argument, and to lift the tensors that it captures, for PyTorch's own
operators only. So a call inside a compiled function becomes such an operator, and a pass over the graph, before
differentiation, replaces each by ``tilewright::call`` (``_replace.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch._C._functorch import maybe_current_level
from torch._dynamo.symbolic_convert import InstructionTranslator
from torch._higher_order_ops.flex_attention import flex_attention as flex_attention_op
from torch._higher_order_ops.wrap import wrap
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch.autograd import forward_ad
from torch.nn.attention import flex_attention as torch_module
from torch.nn.attention.flex_attention import noop_mask

from tilewright import _native
from tilewright.torch import _rows
from tilewright.torch._replace import FUNCTION_ONLY, NATURAL, replace_calls


def uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function for calls that are transformed, which leave the compiled function; ``fullgraph=True`` forbids that, and
    shows the reason."""
    reason = (
        "tilewright inside torch.vmap, torch.func or forward mode inside torch.compile runs uncompiled: PyTorch's operators "
        "for attention and scans know none of these. Transform an uncompiled function, or leave out fullgraph=True."
    )
    disable: Callable[..., Callable[..., Any]] = torch.compiler.disable
    return disable(function, reason=reason)


def _in_transformation() -> bool:
    return maybe_current_level() is not None or forward_ad._current_level >= 0


_constant: Callable[..., Callable[[], bool]] = torch.compiler.assume_constant_result

#: Whether the call that is being compiled is inside ``torch.func`` or forward mode.
is_transformed = _constant(_in_transformation)


def _is_plain_backend() -> bool:
    compiler = InstructionTranslator.current_tx().output.compiler_fn
    return str(getattr(compiler, "_compiler_name", "")).startswith(("eager", "aot_eager"))


#: Whether the backend that compiles the call runs operators as they are, without the pass that replaces them.
is_plain_backend = _constant(_is_plain_backend)


def _identity(score: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
    return score


def flex_attention(
    query: Tensor, key: Tensor, value: Tensor, score_mod: Any, block_mask: Any, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The call as Dynamo sees it. PyTorch's operator gives its statistics in base 2, and stays where another backend than
    ``inductor`` compiles; ours is asked for natural ones."""
    if block_mask is not None and getattr(block_mask, "_sizes", None) is None:
        blocks = block_mask.as_tuple()
    else:
        mask_mod = noop_mask if block_mask is None else block_mask.mask_mod
        empty = query.new_zeros((1, 1, 1), dtype=torch.int32)
        # PyTorch's operator asks for the lists along keys and along queries; nobody will read them.
        lists = (empty, empty.unsqueeze(-1), None, None, empty, empty.unsqueeze(-1), None, None, None, None, None, None)
        blocks = (query.shape[2], key.shape[2], *lists, FUNCTION_ONLY, FUNCTION_ONLY, mask_mod)
    score = _identity if score_mod is None else score_mod
    out, lse, maximum = flex_attention_op(query, key, value, score, blocks, scale, _NATURAL_OPTIONS)
    return out, torch.ops.tilewright.natural(lse), torch.ops.tilewright.natural(maximum)


_OPTIONS: dict[str, Any] = {
    "BACKEND": "AUTO",
    "PRESCALE_QK": False,
    "ROWS_GUARANTEED_SAFE": False,
    "BLOCKS_ARE_CONTIGUOUS": False,
    "WRITE_DQ": True,
    "OUTPUT_LOGSUMEXP": True,
    "OUTPUT_MAX": True,
}
_NATURAL_OPTIONS: dict[str, Any] = {**_OPTIONS, NATURAL: True}


def associative_scan(
    combine: Callable[[Any, Any], Any],
    leaves: list[Tensor],
    structure: Any,
    axis: int,
    reverse: bool,
    init: list[Tensor] | None,
    exclusive: bool,
    segments: Tensor | None,
) -> list[Tensor]:
    """The call as Dynamo sees it: the function, called once on slices, and a node that says what is to become of it.

    PyTorch's own scan operator would refuse functions that are not element-wise, and learned captures.
    """

    def flat(*slices: Tensor) -> tuple[Tensor, ...]:
        left, right = slices[: len(leaves)], slices[len(leaves) :]
        tree = combine(pytree.tree_unflatten(list(left), structure), pytree.tree_unflatten(list(right), structure))
        return tuple(pytree.tree_leaves(tree))

    slices = [leaf.select(axis, position) for position in (0, -1) for leaf in leaves]
    results = wrap(flat, *slices)
    scanned: list[Tensor] = torch.ops.tilewright.scan(
        [*slices, *results], leaves, axis, reverse, init or [], exclusive, segments
    )
    return scanned


class ReplaceCalls(CustomGraphPass):
    """The graph pass. Its ``uuid`` keeps compiled graphs cached."""

    #: Whether calls of PyTorch's own functions are replaced too.
    everywhere = False

    def __call__(self, graph: fx.Graph) -> None:
        """Replaces each call in place."""
        replace_calls(graph, everywhere=self.everywhere)

    def uuid(self) -> str:
        """Changes when the pass does."""
        return f"tilewright-{_native.__version__}-9{'-everywhere' if self.everywhere else ''}"


def install() -> ReplaceCalls:
    """Makes ``torch.compile`` run the pass, which it gives. Idempotent."""
    from torch._inductor import config

    _rows.install()
    installed = config.pre_grad_custom_pass
    if not isinstance(installed, ReplaceCalls):
        installed = ReplaceCalls() if installed is None else _Both(installed)
        config.pre_grad_custom_pass = installed
    return installed


class _Both(ReplaceCalls):
    """The pass that somebody else installed, then ours."""

    def __init__(self, previous: Any) -> None:
        self.previous = previous

    def __call__(self, graph: fx.Graph) -> None:
        self.previous(graph)
        super().__call__(graph)

    def uuid(self) -> str:
        inner = self.previous.uuid() if hasattr(self.previous, "uuid") else repr(self.previous)
        return f"{inner}+{super().uuid()}"


def enable() -> None:
    """Makes ``torch.compile`` use this package wherever a model calls PyTorch's own ``flex_attention`` or
    ``associative_scan``.

    Existing code needs no other change: training on the CPU, learned captures, log-sum-exp and maxima work there too.
    Outside of ``torch.compile``, PyTorch's function stays as it is; import ours instead. So does a function that was
    compiled before.
    """
    install().everywhere = True
    setattr(torch_module, "_apply_kernel_options", _kernel_options)  # noqa: B010
    setattr(torch_module, "_validate_device", _any_device)  # noqa: B010


def _kernel_options(*_arguments: Any) -> dict[str, Any]:
    return dict(_OPTIONS)


def _any_device(*_tensors: Tensor) -> None:
    """In place of the check that refuses training on the CPU."""


__all__ = ["enable", "flex_attention", "install"]
