"""Programs: the text of a whole operation, with its regions, that the native module compiles.

A program is polymorphic in lengths: ``$n`` stands for the type of input n. ``vjp:`` in front of a program stands for
its derivative, whose inputs are the program's inputs, its results and their cotangents, and whose results are the
cotangents of those inputs that flags ask for, given the cotangents that further flags say are there:
``vjp:110:100:graph(…)``. Prefixes nest, which is how derivatives of every order come from one operator.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tilewright._errors import TraceError
from tilewright.torch._trace import Region, Traced, dtype_name, lift, type_text, user_line

ScoreMod = Callable[..., Any]
MaskMod = Callable[..., Any]


def score_type(dtype: torch.dtype) -> torch.dtype:
    """The type in which scores are computed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _run(function: Callable[..., Any], arguments: Sequence[Traced], what: str) -> Any:
    try:
        return function(*arguments)
    except TypeError as error:
        if isinstance(error, TraceError) or "positional argument" not in str(error):
            raise
        raise TraceError(f"{what} is called with {len(arguments)} arguments: {error}") from error


def _result(region: Region, value: Any, dtype: torch.dtype, what: str) -> Traced:
    if not isinstance(value, (Traced, Tensor, bool, int, float)):
        raise TraceError(f"{what} returned a {type(value).__name__}, not a value (at {user_line()})")
    traced = lift(region, value, dtype)
    if traced.ndim:
        raise TraceError(
            f"{what} returned an array of shape {list(traced.shape)}, not one value a pair; "
            f"sum or index it (at {user_line()})"
        )
    return traced


def _region_text(region: Region, label: str, parameters: str, results: str) -> str:
    body = "\n    ".join(region.lines)
    return f"{label}({parameters}) -> ({results}) {{\n    {body}\n  }}"


_COORDINATES = ("%b", "%h", "%q", "%k")
_POINTS = "%b: i32[], %h: i32[], %q: i32[], %k: i32[]"


def attention(
    query: Tensor,
    score_mod: ScoreMod | None,
    mask_mod: MaskMod | None,
    scale: float,
    results: str = "%out, %lse, %max",
) -> tuple[str, list[Tensor]]:
    """The program of an attention call, and the tensors that it captures, in the order of its inputs."""
    dtype = score_type(query.dtype)
    captures: list[Tensor] = []

    score = Region(captures)
    raw = Traced(score, "%s", dtype, ())
    new_score = raw
    if score_mod is not None:
        points = [Traced(score, name, torch.int32, ()) for name in _COORDINATES]
        new_score = _result(score, _run(score_mod, [raw, *points], "score_mod"), dtype, "score_mod")

    mask = Region(captures)
    admitted: Traced | None = None
    if mask_mod is not None:
        points = [Traced(mask, name, torch.int32, ()) for name in _COORDINATES]
        admitted = _result(mask, _run(mask_mod, points, "mask_mod"), torch.bool, "mask_mod")

    count = len(captures)
    inside = "".join([f", %c{i}: ${i + 3}" for i in range(count)])
    operands = "".join([f", %c{i}" for i in range(count)])
    regions = _region_text(score, "score", f"%s: {dtype_name(dtype)}[], {_POINTS}{inside}", new_score.name)
    if admitted is not None:
        regions += _region_text(mask, " mask", _POINTS + inside, admitted.name)
    text = (
        f"graph(%query: $0, %key: $1, %value: $2{inside}) -> ({results}) {{\n"
        f"  %out, %lse, %max = flex_attention %query, %key, %value{operands} scale={scale!r} {regions}\n}}"
    )
    return text, captures


def scan(
    combine: Callable[[Any, Any], Any],
    leaves: Sequence[Tensor],
    unflatten: Callable[[Sequence[Any]], Any],
    flatten: Callable[[Any], tuple[list[Any], Any]],
    axis: int,
    reverse: bool,
) -> tuple[str, list[Tensor]]:
    """The program of a scan over ``leaves``, and the tensors that its combine captures."""
    captures: list[Tensor] = []
    region = Region(captures)
    slices = [tuple(leaf.shape[:axis]) + tuple(leaf.shape[axis + 1 :]) for leaf in leaves]
    left = [Traced(region, f"%l{i}", leaf.dtype, s) for i, (leaf, s) in enumerate(zip(leaves, slices))]
    right = [Traced(region, f"%r{i}", leaf.dtype, s) for i, (leaf, s) in enumerate(zip(leaves, slices))]
    tree = unflatten(left)
    results, structure = flatten(combine(tree, unflatten(right)))
    if structure != flatten(tree)[1]:
        raise TraceError("combine_fn returned another tree than its arguments have")
    converted = []
    for i, (leaf, result, shape) in enumerate(zip(leaves, results, slices)):
        if not isinstance(result, (Traced, Tensor)):
            raise TraceError(f"combine_fn returned a {type(result).__name__} for leaf {i}, not a tensor")
        if result.dtype != leaf.dtype or tuple(result.shape) != shape:
            raise TraceError(
                f"combine_fn's leaf {i} has type {result.dtype} and shape {list(result.shape)}, "
                f"its argument has {leaf.dtype} and {list(shape)}"
            )
        converted.append(lift(region, result))
    names = [*(f"%x{i}" for i in range(len(leaves))), *(f"%c{i}" for i in range(len(captures)))]
    parameters = ", ".join(f"{name}: ${i}" for i, name in enumerate(names))
    inside = [
        *(f"{value.name}: {type_text(value.dtype, value.shape)}" for value in (*left, *right)),
        *(f"%c{i}: ${i + len(leaves)}" for i in range(len(captures))),
    ]
    ys = ", ".join(f"%y{i}" for i in range(len(leaves)))
    attributes = f"leaves={len(leaves)} axis={axis} reverse={'true' if reverse else 'false'}"
    body = _region_text(region, "combine", ", ".join(inside), ", ".join([value.name for value in converted]))
    text = f"graph({parameters}) -> ({ys}) {{\n  {ys} = associative_scan {', '.join(names)} {attributes} {body}\n}}"
    return text, captures


def vjp(program: str, wanted: Sequence[bool], present: Sequence[bool]) -> str:
    """The program of the derivative with respect to the wanted inputs, given the present cotangents."""
    return f"vjp:{_flags(wanted)}:{_flags(present)}:{program}"


def _flags(flags: Sequence[bool]) -> str:
    return "".join("1" if flag else "0" for flag in flags)


@functools.lru_cache(maxsize=4096)
def results(program: str) -> tuple[str, ...]:
    """The names of a program's results (not of a derivative's)."""
    header = program[: program.index("{")]
    return tuple(name.strip(" ()") for name in header.rsplit("->", 1)[1].split(","))


def mask(mask_mod: MaskMod) -> tuple[str, list[Tensor]]:
    """The text of a mask region, whose capture ``n`` has type ``$n``, and the tensors that it captures."""
    captures: list[Tensor] = []
    region = Region(captures)
    points = [Traced(region, name, torch.int32, ()) for name in _COORDINATES]
    admitted = _result(region, _run(mask_mod, points, "mask_mod"), torch.bool, "mask_mod")
    parameters = _POINTS + "".join([f", %c{i}: ${i}" for i in range(len(captures))])
    return _region_text(region, "graph", parameters, admitted.name), captures
