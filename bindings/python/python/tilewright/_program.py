"""Programs: the text of whole operations, with their regions, that the native module compiles.

A program is polymorphic in lengths: ``$n`` stands for the type of input n. It is one line, since compilers write an
operator's arguments into comments of the code that they generate. Prefixes stand for transformations, and nest:

``vjp:110:100:graph(…)``
    the cotangents of the inputs that the first flags ask for; its inputs are the program's inputs, its results, and
    those cotangents of the results that the second flags say are there.
``grad:110:0:graph(…)``
    the program's results, then the gradients of its result 0, one number, with respect to the flagged inputs.
``jvp:110:100:graph(…)``
    the tangents of the results that the second flags ask for; its inputs are the program's inputs, and the tangents of
    those that the first flags say have one.
``vmap:110::graph(…)``
    the results at each position of a leading axis, which the flagged inputs have and all of the results get.
``ordered:0213,::graph(…)``
    the results, of which the first have their axes in these orders. Outermost only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from tilewright._errors import ArgumentError, DTypeError, ShapeError, TraceError
from tilewright._trace import arrays
from tilewright._trace.calling import run
from tilewright._trace.elementwise import binary, broadcast, cast, compare, filled, unary
from tilewright._trace.indexing import index
from tilewright._trace.region import Library, Region, Value, refuse, user_line
from tilewright._trace.types import is_float, score_kind

_COORDINATES = ("%b", "%h", "%q", "%k")


def text_of(graph: Region, results: Sequence[Value]) -> str:
    """The text of a whole program with these results."""
    parameters = ", ".join([f"%{name}: ${i}" for i, name in enumerate(graph.input_names)])
    names = ", ".join([value.name for value in results])
    return f"graph({parameters}) -> ({names}) {{ {graph.body()} }}"


def check_devices(program: str, inputs: Sequence[Any], devices: Sequence[Hashable]) -> None:
    """Raises where the inputs of a program do not all lie on the device of the first one."""
    for place, device in enumerate(devices):
        if device != devices[0]:
            first, other = _input_name(program, 0), _input_name(program, place)
            raise ArgumentError(
                f"{other}: on {devices[0]} as {first} expected, on {device} found (its shape is {list(inputs[place].shape)})"
            )


def _input_name(program: str, place: int) -> str:
    names = re.findall(r"%(\w+): \$", program)
    # What a derivative is given beyond the program's inputs has no name.
    return names[place].replace("_", " ") if place < len(names) else f"input {place}"


def vjp(program: str, wanted: Sequence[bool], present: Sequence[bool]) -> str:
    """The program of the derivative with respect to the wanted inputs, given the present cotangents."""
    return f"vjp:{_flags(wanted)}:{_flags(present)}:{program}"


def grad(program: str, wanted: Sequence[bool], result: int) -> str:
    """The program of the results, and of one result's gradients with respect to the wanted inputs."""
    return f"grad:{_flags(wanted)}:{result}:{program}"


def jvp(program: str, given: Sequence[bool], wanted: Sequence[bool]) -> str:
    """The program of the wanted results' tangents, given the tangents of some inputs."""
    return f"jvp:{_flags(given)}:{_flags(wanted)}:{program}"


def vmap(program: str, batched: Sequence[bool]) -> str:
    """The program over a leading axis of the flagged inputs."""
    return f"vmap:{_flags(batched)}::{program}"


_ORDERED = "ordered:"


def ordered(program: str, orders: Sequence[str]) -> str:
    """The program with its first results' axes in the orders that are given by their digits; ``""`` leaves one as it is."""
    return f"{_ORDERED}{','.join(orders)}::{program}" if any(orders) else program


def orders_of(program: str) -> tuple[tuple[str, ...], str]:
    """The orders of a program's first results, and the program that has them as they are."""
    if not program.startswith(_ORDERED):
        return (), program
    orders, _, inner = program[len(_ORDERED) :].split(":", 2)
    return tuple(orders.split(",")), inner


def _flags(flags: Sequence[bool]) -> str:
    return "".join(["1" if flag else "0" for flag in flags])


def attention_results(kind: str) -> list[str]:
    """What attention on inputs of a type gives: for half types also the output as the derivative reads it."""
    return ["out", "lse", "max", *(["unrounded"] if kind in ("f16", "bf16") else [])]


def attention(
    query: Value,
    key: Value,
    value: Value,
    score_mod: Callable[..., Any] | None,
    mask_mod: Callable[..., Any] | None,
    scale: float,
) -> dict[str, Value]:
    """Writes an attention call to the graph of its operands, and gives its results by name."""
    graph = query.region
    if graph.parent is not None:
        raise refuse("attention inside a score function, mask or combine", "call it in the function around")
    kind = score_kind(query.kind)
    captures: list[Value] = []

    score = Region(graph.library, graph, captures)
    raw = score.parameter("%s", kind)
    scored: Value = raw
    if score_mod is not None:
        scored = _one_value(score, run(score_mod, [raw, *_points(score)], "score_mod", raw), kind, "score_mod")
    mask = Region(graph.library, graph, captures)
    admitted: Value | None = None
    if mask_mod is not None:
        admitted = _one_value(mask, _run_mask(mask, mask_mod), "bool", "mask_mod")

    coordinates = [f"{name}: i32[]" for name in _COORDINATES]
    inside = capture_parameters(captures)
    regions = region_text("score", [f"%s: {kind}[]", *coordinates, *inside], score, [scored])
    if admitted is not None:
        regions += region_text(" mask", [*coordinates, *inside], mask, [admitted])
    rows = query._shape[:3]
    whole = (*rows, value._shape[3])
    types = {"out": (query.kind, whole), "lse": (kind, rows), "max": (kind, rows), "unrounded": (kind, whole)}
    names = attention_results(query.kind)
    return dict(
        zip(
            names,
            graph.emit_several(
                [(name, *types[name]) for name in names],
                "flex_attention",
                [query, key, value, *captures],
                f"scale={float(scale)!r} {regions}",
            ),
        )
    )


def score_matrix(
    library: Library,
    queries: int,
    keys: int,
    score_mod: Callable[..., Any] | None,
    mask_mod: Callable[..., Any] | None,
    batch: int,
    head: int,
) -> tuple[str, list[Any]]:
    """The program of what the functions make of a score of zero, ``f64 [queries, keys]``, and the arrays that it
    captures. Attention on one-hot values gives each pair's share, whose logarithm is the score less the log-sum-exp, so
    that the functions need no other definition than the one that runs."""
    graph = Region(library)
    shape = (batch + 1, head + 1)
    query, key = (filled(graph, 0.0, "f64", (*shape, length, 1)) for length in (queries, keys))
    rows, columns = (graph.emit("iota", [], "i64", (keys, keys), f"axis={axis}") for axis in (0, 1))
    one_hot = broadcast(cast(compare("eq", rows, columns), "f64"), (*shape, keys, keys))
    results = attention(query, key, one_hot, score_mod, mask_mod, 1.0)
    scores = binary("add", unary("log", results["out"]), arrays.unsqueeze(results["lse"], -1))
    return text_of(graph, [index(scores, (batch, head))]), graph.inputs


def mask_text(library: Library, mask_mod: Callable[..., Any]) -> tuple[str, list[Any]]:
    """The text of a mask region, whose capture ``n`` has type ``$n``, and the arrays that it captures."""
    graph = Region(library)
    mask = Region(library, graph)
    admitted = _one_value(mask, _run_mask(mask, mask_mod), "bool", "mask_mod")
    coordinates = [f"{name}: i32[]" for name in _COORDINATES]
    return region_text("graph", [*coordinates, *capture_parameters(mask.captures)], mask, [admitted]), graph.inputs


def check_attention(query: Any, key: Any, value: Any, kinds: Sequence[str | None], grouped: bool) -> None:
    """Raises where query, key and value (whose element types are ``kinds``) do not fit each other."""
    first, second, third = kinds
    if not (query.ndim == key.ndim == value.ndim == 4 and first == second == third and first is not None and is_float(first)):
        _refuse_attention((("query", query), ("key", key), ("value", value)), kinds)
    heads, key_heads = query.shape[1], key.shape[1]
    if not grouped and heads != key_heads:
        raise ShapeError(
            f"key: axis 1: {heads} heads as query expected, {key_heads} found; set enable_gqa=True for grouped heads"
        )
    if key_heads == 0 or heads % key_heads != 0:
        raise ShapeError(f"key: axis 1: a divisor of query's {heads} heads expected, {key_heads} found")


def _refuse_attention(named: Sequence[tuple[str, Any]], kinds: Sequence[str | None]) -> None:
    """Raises for the first operand whose rank or element type does not fit."""
    for name, array in named:
        if array.ndim != 4:
            raise ShapeError(f"{name}: 4 axes [batch, heads, length, size] expected, {list(array.shape)} found")
    for (name, array), kind in zip(named, kinds):
        if kind is None or not is_float(kind):
            raise DTypeError(f"{name}: a float type expected, {array.dtype} found")
        if kind != kinds[0]:
            raise DTypeError(f"{name}: {named[0][1].dtype} as query expected, {array.dtype} found")


def _run_mask(region: Region, mask_mod: Callable[..., Any]) -> Any:
    points = _points(region)
    return run(mask_mod, points, "mask_mod", points[0])


def _points(region: Region) -> list[Value]:
    return [region.parameter(name, "i32") for name in _COORDINATES]


def capture_parameters(captures: Sequence[Value]) -> list[str]:
    """A region's parameters for what it captures."""
    return [f"%c{i}: {value.written_type()}" for i, value in enumerate(captures)]


def region_text(label: str, parameters: Sequence[str], region: Region, results: Sequence[Value]) -> str:
    """The text of a region inside an operation."""
    names = ", ".join([value.name for value in results])
    return f"{label}({', '.join(parameters)}) -> ({names}) {{ {region.body()} }}"


def _one_value(region: Region, result: Any, kind: str, what: str) -> Value:
    if not isinstance(result, (Value, bool, int, float)) and not region.library.is_array(result):
        raise TraceError(f"{what} returned a {type(result).__name__}, not a value (at {user_line()})")
    value = region.lift(result, kind)
    if value.ndim:
        raise TraceError(
            f"{what} returned an array of shape {list(value._shape)}, not one value a pair; "
            f"sum or index it (at {user_line()})"
        )
    return value
