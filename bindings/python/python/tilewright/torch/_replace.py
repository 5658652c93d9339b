"""Graphs that Dynamo captured, rewritten: PyTorch's operators for attention and scans become calls of ours.

A captured call holds its functions as graphs of their own, whose last inputs are the tensors that they read. Such a graph
is run on traced values as a user's function is outside of ``torch.compile``, so that one converter serves both.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, fx
from torch._higher_order_ops.associative_scan import associative_scan_op
from torch._higher_order_ops.flex_attention import flex_attention as flex_attention_op
from torch.fx.node import map_arg

from tilewright._errors import ArgumentError
from tilewright._scan import Order
from tilewright._trace.region import Value
from tilewright.torch import _operator, _program
from tilewright.torch._block_mask import block_table, from_table
from tilewright.torch._order import like
from tilewright.torch._unused import remove_unused
from tilewright.torch._values import LIBRARY

#: The option that says that a call is ours, and wants its statistics as they are.
NATURAL = "TILEWRIGHT_NATURAL"

#: Stands for the block size where a mask's function says all.
FUNCTION_ONLY = 1 << 30


def replace_calls(graph: fx.Graph, *, everywhere: bool) -> None:
    """Replaces in place what calls of ours left; ``everywhere``, what calls of PyTorch's own functions left as well."""
    given: list[fx.Node] = []
    for node in list(graph.nodes):
        replace = _REPLACE.get(node.target) if node.op == "call_function" else None
        if replace is not None and (everywhere or not _is_torchs(node)):
            given += node.all_input_nodes
            replace(graph, node)
    if given:
        remove_unused(graph, given)


def _is_torchs(node: fx.Node) -> bool:
    """Whether a call of PyTorch's own function left a node. Of its operators, ours leave attention only, with a mark."""
    if node.target is flex_attention_op:
        options: Any = node.args[6]
        return not options.get(NATURAL)
    return node.target is associative_scan_op


_SYMBOLS = (torch.SymInt, torch.SymFloat)


class _Captures:
    """The tensors that functions read, by the nodes that make them; while functions are traced, examples stand for them.

    A number that is known only when the graph runs, such as a length, becomes a tensor without axes.
    """

    def __init__(self, graph: fx.Graph, device: torch.device) -> None:
        self.graph = graph
        self._device = device
        self.library = dataclasses.replace(LIBRARY, number=self._number)
        self._nodes: dict[int, fx.Node] = {}
        self._kept: list[Any] = []
        self._tensors: dict[fx.Node, Tensor] = {}

    def add(self, example: Any, node: fx.Node) -> None:
        """Notes what makes a tensor or a number."""
        self._nodes[id(example)] = node
        self._kept.append(example)

    def _number(self, value: Any) -> Any:
        node = self._nodes.get(id(value)) if isinstance(value, _SYMBOLS) else None
        if node is None:
            return LIBRARY.number(value)
        if node not in self._tensors:
            dtype = torch.int64 if isinstance(value, torch.SymInt) else torch.float64
            options: dict[str, Any] = {"dtype": dtype, "device": self._device}
            made = self.graph.call_function(torch.full, ((), node), options)
            made.meta["example_value"] = self._tensors[node] = torch.zeros((), dtype=dtype)
            self.add(self._tensors[node], made)
        return self._tensors[node]

    def example(self, node: Any) -> Any:
        """What stands for a node's value; a number is itself."""
        example = _example(node)
        if isinstance(node, fx.Node) and isinstance(example, (Tensor, *_SYMBOLS)):
            self.add(example, node)
        return example

    def node(self, value: Any) -> Any:
        """The node that makes a tensor or a symbol; a number is itself."""
        return self._nodes[id(value)] if isinstance(value, (Tensor, *_SYMBOLS)) else value


class _Body(fx.Interpreter):
    """Runs a captured function. What it computes from captured tensors alone becomes nodes of the graph around."""

    def __init__(self, module: fx.GraphModule, captures: _Captures) -> None:
        super().__init__(module)
        self._captures = captures

    def run_node(self, n: fx.Node) -> Any:
        """As ever, and notes what makes a tensor or a symbol."""
        result = super().run_node(n)
        # An extent that is a symbol belongs to no node where it was taken of a traced value's shape.
        inputs = [self.env[node] for node in n.all_input_nodes]
        shapes = [x for x in inputs if isinstance(x, tuple) and any(isinstance(extent, _SYMBOLS) for extent in x)]
        if isinstance(result, (Tensor, *_SYMBOLS)) and n.op in ("call_function", "call_method") and not shapes:
            arguments = map_arg((n.args, n.kwargs), lambda inner: self._captures.node(self.env[inner]))
            args, kwargs = cast("tuple[tuple[Any, ...], dict[str, Any]]", arguments)
            node = self._captures.graph.create_node(n.op, n.target, args, kwargs)
            node.meta["example_value"] = result
            self._captures.add(result, node)
        return result


def _example(node: Any) -> Any:
    return node.meta["example_value"] if isinstance(node, fx.Node) else node


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("example_value"), Tensor)


def _module(graph: fx.Graph, node: fx.Node) -> fx.GraphModule:
    module: Any = graph.owning_module
    assert node.op == "get_attr"
    for part in str(node.target).split("."):
        module = getattr(module, part)
    assert isinstance(module, fx.GraphModule)
    return module


def _function(graph: fx.Graph, body: fx.Node, lifted: Iterable[fx.Node], captures: _Captures) -> Callable[..., Any]:
    """The function that a node holds, which reads ``lifted`` behind its own arguments."""
    module = _module(graph, body)
    examples = [captures.example(node) for node in lifted]
    return lambda *points: _Body(module, captures).run(*points, *examples)


def _call(graph: fx.Graph, inputs: list[fx.Node], program: str) -> fx.Node:
    call = graph.call_function(torch.ops.tilewright.call.default, (inputs, program))
    call.meta["example_value"] = _operator.examples([_example(node) for node in inputs], program)
    return call


def _replace_attention(graph: fx.Graph, node: fx.Node) -> None:
    arguments: tuple[Any, ...] = node.args
    query, key, value, score, blocks, scale, options, score_captures, mask_captures = arguments
    captures = _Captures(graph, _example(query).device)
    score_function = _function(graph, score, score_captures, captures)
    mask_function: Callable[..., Any] | None = None
    if not _is_noop(_module(graph, blocks[-1])):
        mask_function = _function(graph, blocks[-1], mask_captures, captures)
    with graph.inserting_before(node):
        if _example(blocks[-2]) != FUNCTION_ONLY:
            table = _computed(graph, block_table, blocks[1], *blocks[2:6], blocks[-2])
            sizes = (_example(blocks[-3]), _example(blocks[-2]))
            mask_function = from_table(captures.example(table), sizes, mask_function)
        operands = (_example(query), _example(key), _example(value))
        learned = any(_example(item).requires_grad for item in node.all_input_nodes if _is_tensor(item))
        results = _program.attention_results(
            operands[0].dtype, lse=True, maximum=True, derivative=learned and torch.is_grad_enabled()
        )
        program, read = _program.attention(
            *operands, score_function, mask_function, float(_example(scale)), results, captures.library
        )
        inputs = [query, key, value, *map(captures.node, read)]
        call = _call(graph, inputs, like(program, operands[:1]))
        out = _result(graph, call, 0)
        places = [results.index(name) for name in ("lse", "max")]
        statistics = [_result(graph, call, place) for place in places]
        if not options.get(NATURAL):
            statistics = [_computed(graph, _in_base_two, statistic) for statistic in statistics]
    _substitute(graph, node, [out, *statistics])


def _substitute(graph: fx.Graph, node: fx.Node, results: list[fx.Node]) -> None:
    """Puts results in place of the items that are taken of a node's."""
    for user in list(node.users):
        index: Any = user.args[1]
        user.replace_all_uses_with(results[int(index)])
        graph.erase_node(user)
    graph.erase_node(node)


def _result(graph: fx.Graph, call: fx.Node, index: int) -> fx.Node:
    return _computed(graph, _pick, call, index)


def _computed(graph: fx.Graph, function: Callable[..., Any], *arguments: Any) -> fx.Node:
    """A new node, with an example of its value, which another call may be given."""
    node = graph.call_function(function, arguments)
    node.meta["example_value"] = function(*map(_example, arguments))
    return node


def _pick(items: list[Tensor], index: int) -> Tensor:
    return items[index]


def _in_base_two(statistic: Tensor) -> Tensor:
    return statistic / math.log(2.0)


_NATURAL = "tilewright::natural"

torch.library.define(_NATURAL, "(Tensor statistic) -> Tensor")


def _natural(statistic: Tensor) -> Tensor:
    return statistic * math.log(2.0)


torch.library.impl(_NATURAL, "CompositeImplicitAutograd", func=_natural)


def _replace_natural(graph: fx.Graph, node: fx.Node) -> None:
    """A statistic of a call of ours is natural already; where PyTorch's operator stays, this converts it."""
    node.replace_all_uses_with(cast(fx.Node, node.args[0]))
    graph.erase_node(node)


def _is_noop(module: fx.GraphModule) -> bool:
    calls = [node for node in module.graph.nodes if node.op not in ("placeholder", "output")]
    return len(calls) == 1 and calls[0].op == "call_method" and calls[0].target == "new_ones"


_SCAN = "tilewright::scan"

torch.library.define(
    _SCAN,
    "(Tensor[] slices, Tensor[] leaves, int axis, bool reverse, Tensor[] init, bool exclusive, Tensor? segments) -> Tensor[]",
)


def _scan_fake(slices: list[Tensor], leaves: list[Tensor], *_options: Any) -> list[Tensor]:
    return [leaf.new_empty(leaf.shape) for leaf in leaves]


def _scan_alone(*_arguments: Any) -> list[Tensor]:
    raise ArgumentError("associative_scan: under torch.compile, the backend 'inductor' is needed")


torch.library.impl(_SCAN, "CPU", func=_scan_alone)
torch.library.impl(_SCAN, "CUDA", func=_scan_alone)
torch.library.register_fake(_SCAN, _scan_fake)


def _replace_scan(graph: fx.Graph, node: fx.Node) -> None:
    """Replaces a scan that ``_compile.associative_scan`` left: what its function gave for the slices, as nodes."""
    slices, leaves, axis, reverse, init, exclusive, segments = cast("_ScanArguments", node.args)
    count = len(leaves)
    points, results = slices[: 2 * count], slices[2 * count :]
    captures = _Captures(graph, _example(leaves[0]).device)

    def function(left: list[Value], right: list[Value]) -> list[Any]:
        values: dict[fx.Node, Any] = dict(zip(points, (*left, *right)))

        def value(result: fx.Node) -> Any:
            if result not in values and result.target is operator.getitem:
                whole: Any = result.args[0]
                if whole not in values:
                    body, *lifted = whole.args
                    inputs = [values[item] if item in values else captures.example(item) for item in lifted]
                    values[whole] = _Body(_module(graph, body), captures).run(*inputs)
                values[result] = values[whole][result.args[1]]
            return values[result] if result in values else captures.example(result)

        return [value(result) for result in results]

    with graph.inserting_before(node):
        scanned = _scan(graph, leaves, function, captures, Order(axis, reverse, exclusive), init, segments)
    _substitute(graph, node, scanned)


#: What ``tilewright::scan`` is given, as nodes.
_ScanArguments: TypeAlias = (
    "tuple[list[fx.Node], list[fx.Node], int, bool, list[fx.Node], bool, fx.Node | None]"
)


def _scan(
    graph: fx.Graph,
    leaves: list[fx.Node],
    combine: Callable[[list[Value], list[Value]], list[Any]],
    captures: _Captures,
    order: Order,
    init: list[fx.Node] | None = None,
    segments: fx.Node | None = None,
) -> list[fx.Node]:
    operands = [*leaves, *(init or ()), *([] if segments is None else [segments])]
    start = [_example(leaf) for leaf in init] if init else None
    program, read = _program.scan(
        combine,
        [_example(leaf) for leaf in leaves],
        list,
        lambda flat: (list(flat), len(leaves)),
        order,
        start,
        None if segments is None else _example(segments),
        captures.library,
    )
    call = _call(graph, [*operands, *map(captures.node, read)], program)
    return [_result(graph, call, place) for place in range(len(leaves))]


def _replace_torchs_scan(graph: fx.Graph, node: fx.Node) -> None:
    """Replaces PyTorch's operator, which runs forward along the first axis: its wrapper moves and flips the leaves."""
    combine, leaves, captured = cast("tuple[fx.Node, list[fx.Node], list[fx.Node]]", node.args)
    peeled = [_peel(leaf) for leaf in leaves]
    sources = [source for source, _ in peeled]
    axis, reverse = peeled[0][1]
    if any(way != (axis, reverse) for _, way in peeled):
        sources, axis, reverse = list(leaves), 0, False
    captures = _Captures(graph, _example(leaves[0]).device)
    function = _function(graph, combine, captured, captures)
    with graph.inserting_before(node):
        order = Order(axis, reverse)
        scanned = _scan(graph, sources, lambda left, right: list(function(*left, *right)), captures, order)
        moved = [_computed(graph, torch.movedim, result, axis, 0) for result in scanned]
    if reverse:
        moved = [_unflipped(graph, node, i, result) for i, result in enumerate(moved)]
    _substitute(graph, node, moved)


def _peel(leaf: Any) -> tuple[Any, tuple[int, bool]]:
    """What a leaf was made of by ``flip(movedim(x, axis, 0), [0])``, either of which may be absent; the axis, and whether
    it was flipped."""
    reverse = _is_flip(leaf)
    if reverse:
        leaf = leaf.args[0]
    if leaf.target is torch.movedim and leaf.args[2] == 0:
        return leaf.args[0], (leaf.args[1] % _example(leaf).dim(), reverse)
    return leaf, (0, reverse)


def _is_flip(node: fx.Node) -> bool:
    return node.target in (torch.flip, "flip") and node.args[1:] in (([0],), ((0,),), (0,))


def _unflipped(graph: fx.Graph, node: fx.Node, index: int, result: fx.Node) -> fx.Node:
    """The result in the order that the operator's would be in. Whoever flips it back is given it as it is."""
    for user in list(node.users):
        if user.args[1] != index:
            continue
        for flip in list(user.users):
            if _is_flip(flip):
                flip.replace_all_uses_with(result)
                graph.erase_node(flip)
    with graph.inserting_before(node):
        return _computed(graph, torch.flip, result, [0])


_REPLACE: dict[Any, Callable[[fx.Graph, fx.Node], None]] = {
    flex_attention_op: _replace_attention,
    associative_scan_op: _replace_torchs_scan,
    torch.ops.tilewright.natural: _replace_natural,
    torch.ops.tilewright.natural.default: _replace_natural,
    torch.ops.tilewright.scan: _replace_scan,
    torch.ops.tilewright.scan.default: _replace_scan,
}
