"""The one PyTorch operator, ``tilewright::call``: it runs a program on tensors.

Its derivative is the same operator with the program's derivative, so gradients of every order, ``torch.compile``,
``torch.func``, checkpointing and export come from one registration.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tilewright import _native
from tilewright.torch import _program

_library = torch.library.Library("tilewright", "DEF")
_library.define("call(Tensor[] inputs, str program) -> Tensor[]")


def _call_cpu(inputs: list[Tensor], program: str) -> list[Tensor]:
    return _native.call_torch(program, inputs, torch.empty, torch.get_num_threads())


_library.impl("call", _call_cpu, "CPU")


@torch.library.register_fake("tilewright::call", lib=_library)
def _call_fake(inputs: list[Tensor], program: str) -> list[Tensor]:
    if program.startswith("vjp:"):
        wanted = program.split(":", 3)[1]
        return [x.new_empty(x.shape) for x, flag in zip(inputs, wanted) if flag == "1"]
    if _program.is_attention(program):
        query, value = inputs[0], inputs[2]
        rows = query.shape[:3]
        score = _program.score_type(query.dtype)
        return [
            query.new_empty((*rows, value.shape[3])),
            query.new_empty(rows, dtype=score),
            query.new_empty(rows, dtype=score),
        ]
    return [inputs[i].new_empty(inputs[i].shape) for i in range(_program.result_count(program))]


def _setup_context(ctx: Any, inputs: tuple[list[Tensor], str], output: list[Tensor]) -> None:
    tensors, program = inputs
    ctx.program = program
    ctx.count = len(tensors)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx: Any, cotangents: Sequence[Tensor | None]) -> tuple[list[Tensor | None], None]:
    saved = list(ctx.saved_tensors)
    tensors = saved[: ctx.count]
    needed = ctx.needs_input_grad[0]
    wanted = [bool(needs) and x.is_floating_point() for needs, x in zip(needed, tensors)]
    present = [g is not None and g.is_floating_point() for g in cotangents]
    given = [g for g, flag in zip(cotangents, present) if flag and g is not None]
    gradients: list[Tensor | None] = [None] * ctx.count
    if any(wanted) and given:
        results = call([*saved, *given], _program.vjp(ctx.program, wanted, present))
        for i, result in zip((i for i, flag in enumerate(wanted) if flag), results):
            gradients[i] = result
    return gradients, None


torch.library.register_autograd("tilewright::call", _backward, setup_context=_setup_context, lib=_library)

_operator: Callable[[list[Tensor], str], list[Tensor]] = torch.ops.tilewright.call.default


def call(inputs: Sequence[Tensor], program: str) -> list[Tensor]:
    """Runs a program on tensors and gives its results, differentiable."""
    return _operator(list(inputs), program)
