"""Calls as programs: a user's functions, traced, or found among those that were traced before."""

from __future__ import annotations

import re
import threading
import types
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from tilewright import _program
from tilewright._errors import ForkError, TilewrightError, TraceError
from tilewright._scan import Order
from tilewright._scan import scan as write_scan
from tilewright._trace.calling import run
from tilewright._trace.region import Library, Region, Value
from tilewright._trace.types import score_kind
from tilewright.torch._order import shape_in
from tilewright.torch._reads import Reads, reads, watched
from tilewright.torch._values import DTYPES, LIBRARY, WIDENED, kind_of

ScoreMod: TypeAlias = Callable[..., Any]
MaskMod: TypeAlias = Callable[..., Any]

#: A program's text, and the tensors that it captures, in the order of its inputs behind the call's own.
Program: TypeAlias = "tuple[str, list[Tensor]]"

Result = TypeVar("Result")

#: Programs by what their functions read: the text, ``None`` where it has to be traced anew; which of the tensors read
#: are captured; and the code whose identity is in the key. Dropped as a whole where there are too many.
_known: dict[Hashable, tuple[str | None, list[int], list[types.CodeType]]] = {}
_KEPT = 4096
_lock = threading.Lock()


def _traced(trace: Callable[[], Result]) -> Result:
    """What ``trace`` gives, whether the call is recorded or not: only the user's own functions turn gradients off."""
    with torch.enable_grad():
        try:
            return trace()
        except RuntimeError as error:
            # PyTorch, when a function reads a captured tensor there, says only that something could not be initialised.
            if isinstance(error, TilewrightError) or not torch.cuda._is_in_bad_fork():
                raise
            advice = "start processes that use the device by `spawn`, or compute on the CPU in this one"
            raise ForkError(f"error[fork]: CUDA was used before this process was forked\n   = help: {advice}") from error


def _remembered(read: Reads | None, call: tuple[Hashable, ...], trace: Callable[[], Program]) -> Program:
    """What ``trace`` gives, or gave when everything that its functions ``read`` was the same."""
    if read is None:
        return _traced(trace)
    key = (call, torch.get_default_dtype(), *read.key)
    found = _known.get(key)
    if found is None:
        (text, captures), as_known = _traced(lambda: watched(trace, read))
        places = {id(tensor): place for place, tensor in enumerate(read.tensors)}
        known = as_known and all(id(tensor) in places for tensor in captures)
        captured = [places[id(tensor)] for tensor in captures] if known else []
        with _lock:
            if len(_known) >= _KEPT:
                _known.clear()
            _known[key] = (text if known else None, captured, read.codes)
        return text, captures
    if found[0] is None:
        return _traced(trace)
    tensors = read.tensors
    return found[0], [tensors[place] for place in found[1]]


def _as_inputs(program: Program) -> Program:
    """With captures of types that the compiler lacks converted."""
    text, captures = program
    return text, [tensor.to(WIDENED[tensor.dtype]) if tensor.dtype in WIDENED else tensor for tensor in captures]


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: ScoreMod | None,
    mask_mod: MaskMod | None,
    scale: float,
    results: Sequence[str] | None = None,
    library: Library = LIBRARY,
) -> Program:
    """The program of an attention call, with some or all of its results."""
    operands = (query, key, value)

    def trace() -> Program:
        graph = Region(library)
        q, k, v = [graph.input(tensor, name) for tensor, name in zip(operands, ("query", "key", "value"))]
        named = _program.attention(q, k, v, score_mod, mask_mod, scale)
        return _program.text_of(graph, [named[name] for name in results or named]), graph.inputs[3:]

    call = (tuple(results or ()), query.dtype, scale)
    return _as_inputs(_remembered(reads((score_mod, mask_mod), operands), call, trace))


def scan(
    combine: Callable[[Any, Any], Any],
    leaves: Sequence[Tensor],
    unflatten: Callable[[Sequence[Any]], Any],
    flatten: Callable[[Any], tuple[list[Any], Any]],
    order: Order,
    init: Sequence[Tensor] | None = None,
    segments: Tensor | None = None,
    library: Library = LIBRARY,
) -> Program:
    """The program of a scan over ``leaves``; its inputs are they, then ``init`` and ``segments`` where they are given."""
    operands = [*leaves, *(init or ()), *([] if segments is None else [segments])]

    def flat(left: list[Value], right: list[Value]) -> list[Any]:
        tree = unflatten(left)
        results, structure = flatten(run(combine, (tree, unflatten(right)), "combine_fn", left[0]))
        if structure != flatten(tree)[1]:
            raise TraceError("combine_fn returned another tree than its arguments have")
        return results

    def trace() -> Program:
        graph = Region(library)
        names = [f"xs_leaf_{i}" for i in range(len(leaves))] + [f"init_leaf_{i}" for i in range(len(init or ()))]
        values = [graph.input(operand, name) for operand, name in zip(operands, (*names, "segments"))]
        elements, rest = values[: len(leaves)], values[len(leaves) :]
        flags = None if segments is None else rest.pop()
        results = write_scan(elements, flat, order, None if init is None else rest, flags)
        return _program.text_of(graph, results), graph.inputs[len(operands) :]

    shapes = [(operand.dtype, operand.shape) for operand in operands]
    structure = flatten(unflatten(range(len(leaves))))[1]
    call = (order, init is None, segments is None, structure, *shapes)
    return _as_inputs(_remembered(reads((combine,), operands), call, trace))


def mask(mask_mod: MaskMod) -> Program:
    """The text of a mask region, whose capture ``n`` has type ``$n``."""
    return _as_inputs(_program.mask_text(LIBRARY, mask_mod))


_RESULTS = re.compile(r"-> \(([^)]*)\) \{")


def result_shapes(program: str, inputs: Sequence[Tensor]) -> list[tuple[torch.dtype, tuple[int, ...]]]:
    """The types and shapes of what a call's program, or a transformation of one, gives for such inputs."""
    orders, program = _program.orders_of(program)
    if orders:
        results = result_shapes(program, inputs)
        every = (*orders, *[""] * (len(results) - len(orders)))
        return [(dtype, shape_in(order, shape)) for (dtype, shape), order in zip(results, every)]
    if program.startswith("vjp:"):
        wanted = program.split(":", 3)[1]
        return [(x.dtype, tuple(x.shape)) for x, flag in zip(inputs, wanted) if flag == "1"]
    if program.startswith("jvp:"):
        _, given, wanted, inner = program.split(":", 3)
        results = result_shapes(inner, inputs[: len(given)])
        return [result for result, flag in zip(results, wanted) if flag == "1"]
    if program.startswith("vmap:"):
        _, batched, _, inner = program.split(":", 3)
        parts = [x.new_empty(x.shape[1:]) if flag == "1" else x for x, flag in zip(inputs, batched)]
        extent = inputs[batched.index("1")].shape[0]
        return [(dtype, (extent, *shape)) for dtype, shape in result_shapes(inner, parts)]
    header = _RESULTS.search(program)
    assert header is not None
    return [_result_shape(name.strip(" %"), inputs) for name in header[1].split(",")]


def _result_shape(name: str, inputs: Sequence[Tensor]) -> tuple[torch.dtype, tuple[int, ...]]:
    name = name.partition("_")[0]
    if name.startswith("y"):
        leaf = inputs[int(name[1:])]
        return leaf.dtype, tuple(leaf.shape)
    query, value = inputs[0], inputs[2]
    rows = tuple(query.shape[:3])
    kind = kind_of(query) if name == "out" else score_kind(kind_of(query))
    return DTYPES[kind], (*rows, value.shape[3]) if name in ("out", "unrounded") else rows


def attention_results(dtype: torch.dtype, *, lse: bool, maximum: bool, derivative: bool) -> list[str]:
    """The results that a call asks for; the derivative reads log-sum-exp and, for half types, the unrounded output."""
    names = ["out"]
    if lse or derivative:
        names.append("lse")
    if derivative and dtype.itemsize == 2:
        names.append("unrounded")
    if maximum:
        names.append("max")
    return names
