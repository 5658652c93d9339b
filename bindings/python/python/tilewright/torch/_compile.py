"""Inside ``torch.compile``: attention calls are captured by PyTorch's own operator, then replaced by ours.

Dynamo knows how to trace a score function and to lift the tensors that it captures, for one operator only: PyTorch's
``flex_attention``. So a call inside a compiled function becomes that operator, and a pass over the graph, before
differentiation, replaces each by ``tilewright::call``. The score function's graph is run on traced values, as a user's
function is outside of ``torch.compile``: one converter serves both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._higher_order_ops.flex_attention import flex_attention as torch_operator
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch.nn.attention import flex_attention as torch_module
from torch.nn.attention.flex_attention import noop_mask

from tilewright.torch import _operator as _operator  # registers the operator
from tilewright.torch import _program
from tilewright.torch._block_mask import block_table, from_table

LOG2 = 0.6931471805599453


def _identity(score: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
    return score


def flex_attention(
    query: Tensor, key: Tensor, value: Tensor, score_mod: Any, block_mask: Any, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The call as Dynamo sees it. PyTorch's operator gives its statistics in base 2."""
    if block_mask is None:
        mask_mod, is_function = noop_mask, True
    else:
        mask_mod, is_function = block_mask.mask_mod, getattr(block_mask, "_sizes", None) is not None
    if is_function:
        empty = query.new_zeros((1, 1, 1), dtype=torch.int32)
        # PyTorch's operator asks for the lists along keys and along queries; nobody will read them.
        lists = (empty, empty.unsqueeze(-1), None, None, empty, empty.unsqueeze(-1), None, None, None, None, None, None)
        blocks = (query.shape[2], key.shape[2], *lists, FUNCTION_ONLY, FUNCTION_ONLY, mask_mod)
    else:
        blocks = block_mask.as_tuple()
    out, lse, maximum = torch_operator(query, key, value, score_mod or _identity, blocks, scale, _OPTIONS)
    return out, lse * LOG2, maximum * LOG2


#: Stands for the block size where the mask's function says all.
FUNCTION_ONLY = 1 << 30

_OPTIONS: dict[str, Any] = {
    "BACKEND": "AUTO",
    "PRESCALE_QK": False,
    "ROWS_GUARANTEED_SAFE": False,
    "BLOCKS_ARE_CONTIGUOUS": False,
    "WRITE_DQ": True,
    "OUTPUT_LOGSUMEXP": True,
    "OUTPUT_MAX": True,
}


class ReplaceAttention(CustomGraphPass):
    """The graph pass. Its ``uuid`` keeps compiled graphs cached."""

    def __call__(self, graph: fx.Graph) -> None:
        """Replaces each attention call in place."""
        for node in list(graph.nodes):
            if node.op == "call_function" and node.target is torch_operator:
                _replace(graph, node)
        graph.eliminate_dead_code()

    def uuid(self) -> str:
        """Changes when the pass does."""
        return "tilewright-attention-1"


def _module(graph: fx.Graph, node: fx.Node) -> fx.GraphModule:
    owner = graph.owning_module
    assert owner is not None and node.op == "get_attr"
    module: Any = owner
    for part in str(node.target).split("."):
        module = getattr(module, part)
    assert isinstance(module, fx.GraphModule)
    return module


def _function(graph: fx.Graph, node: fx.Node, lifted: tuple[Any, ...]) -> Callable[..., Any]:
    module = _module(graph, node)

    def run(*points: Any) -> Any:
        return fx.Interpreter(module).run(*points, *lifted)

    return run


def _example(node: Any) -> Any:
    return node.meta["example_value"] if isinstance(node, fx.Node) else node


def _replace(graph: fx.Graph, node: fx.Node) -> None:
    arguments: tuple[Any, ...] = node.args
    query, key, value, score, blocks, scale, _options, score_captures, mask_captures = arguments
    nodes: dict[int, fx.Node] = {}

    def lift(captured: Any) -> tuple[Any, ...]:
        examples = []
        for item in captured:
            example = _example(item)
            if isinstance(item, fx.Node) and isinstance(example, Tensor):
                nodes[id(example)] = item
            examples.append(example)
        return tuple(examples)

    score_function = _function(graph, score, lift(score_captures))
    mask_node = blocks[-1]
    mask_function: Callable[..., Any] | None = None
    if not _is_noop(_module(graph, mask_node)):
        mask_function = _function(graph, mask_node, lift(mask_captures))
    with graph.inserting_before(node):
        if _example(blocks[-2]) != FUNCTION_ONLY:
            table = graph.call_function(block_table, (blocks[1], *blocks[2:6], blocks[-2]))
            example = block_table(*(_example(item) for item in table.args))
            table.meta["example_value"] = example
            nodes[id(example)] = table
            mask_function = from_table(example, (_example(blocks[-3]), _example(blocks[-2])), mask_function)
        q, k, v = (_example(operand) for operand in (query, key, value))
        program, captures = _program.attention(q, k, v, score_function, mask_function, float(_example(scale)))
        inputs = [query, key, value, *(nodes[id(capture)] for capture in captures)]
        call = graph.call_function(torch.ops.tilewright.call.default, (inputs, program))
        out, lse, maximum = node.meta["example_value"]
        unrounded = [out.to(lse.dtype)] * (out.dtype.itemsize == 2)
        call.meta["example_value"] = [out, lse, maximum, *unrounded]
        out = graph.call_function(_pick, (call, 0))
        statistics = [graph.call_function(_in_base_two, (graph.call_function(_pick, (call, i)),)) for i in (1, 2)]
    for user in list(node.users):
        index: Any = user.args[1]
        user.replace_all_uses_with(out if index == 0 else statistics[int(index) - 1])
        graph.erase_node(user)
    graph.erase_node(node)


def _pick(items: list[Tensor], index: int) -> Tensor:
    return items[index]


def _in_base_two(statistic: Tensor) -> Tensor:
    return statistic / LOG2


def _is_noop(module: fx.GraphModule) -> bool:
    calls = [node for node in module.graph.nodes if node.op not in ("placeholder", "output")]
    return len(calls) == 1 and calls[0].op == "call_method" and calls[0].target == "new_ones"


def install() -> None:
    """Makes ``torch.compile`` run the pass. Idempotent."""
    from torch._inductor import config

    if not isinstance(config.pre_grad_custom_pass, ReplaceAttention):
        previous = config.pre_grad_custom_pass
        config.pre_grad_custom_pass = ReplaceAttention() if previous is None else _Both(previous)


class _Both(ReplaceAttention):
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
    """Makes ``torch.compile`` use this package wherever a model calls PyTorch's own ``flex_attention``.

    Existing code needs no other change: training on the CPU, learned captures, log-sum-exp and maxima work there too.
    Outside of ``torch.compile``, PyTorch's function stays as it is; import ours instead.
    """
    install()
    setattr(torch_module, "_apply_kernel_options", _kernel_options)  # noqa: B010
    setattr(torch_module, "_validate_device", _any_device)  # noqa: B010


def _kernel_options(*_arguments: Any) -> dict[str, Any]:
    return dict(_OPTIONS)


def _any_device(*_tensors: Tensor) -> None:
    """In place of the check that refuses training on the CPU."""


__all__ = ["enable", "flex_attention", "install"]
