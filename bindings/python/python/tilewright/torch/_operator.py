"""The one PyTorch operator, ``tilewright::call``: it runs a program on tensors.

Its derivatives are the same operator with the program's derivatives, so gradients of every order, ``torch.compile``,
``torch.func``, checkpointing and export come from one registration.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch._C._functorch import maybe_current_level

from tilewright import _native
from tilewright._errors import DeviceUnavailableError
from tilewright._program import check_devices, jvp, orders_of, vjp, vmap
from tilewright.torch import _program
from tilewright.torch._order import is_attention, like, seen

_NAME = "tilewright::call"

torch.library.define(_NAME, "(Tensor[] inputs, str program) -> Tensor[]")


def _call_cpu(inputs: list[Tensor], program: str) -> list[Tensor]:
    return seen(program, _native.call(program, inputs, torch.empty, torch.get_num_threads()))


@functools.lru_cache
def _empty_on(device: torch.device) -> Callable[..., Tensor]:
    return functools.partial(torch.empty, device=device)


def _call_cuda(inputs: list[Tensor], program: str) -> list[Tensor]:
    """On PyTorch's current stream; nothing is waited for. Tensors without axes may be on the CPU, as for PyTorch's own
    operators."""
    device = next(x.device for x in inputs if x.is_cuda)
    inputs = [x.to(device, non_blocking=True) if x.is_cpu and not x.dim() else x for x in inputs]
    assert device.index is not None
    stream = torch._C._cuda_getCurrentRawStream(device.index)
    return seen(program, _native.call(program, inputs, _empty_on(device), 0, stream))


def examples(inputs: list[Tensor], program: str) -> list[Tensor]:
    """Tensors like those that a program gives, without their numbers."""
    shapes = _program.result_shapes(program, inputs)
    return seen(program, [inputs[0].new_empty(shape, dtype=dtype) for dtype, shape in shapes])


def _save(ctx: Any, tensors: Sequence[Tensor], program: str, results: Sequence[Tensor]) -> None:
    _, ctx.program = orders_of(program)
    ctx.count = len(tensors)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *results)


def _gradients(ctx: Any, needed: Sequence[bool], cotangents: Sequence[Tensor | None]) -> list[Tensor | None]:
    saved = list(ctx.saved_tensors)
    wanted = [bool(needs) and x.is_floating_point() for needs, x in zip(needed, saved)]
    present = [g is not None and g.is_floating_point() for g in cotangents]
    given = [g for g, flag in zip(cotangents, present) if flag and g is not None]
    gradients: list[Tensor | None] = [None] * ctx.count
    if any(wanted) and given:
        program = vjp(ctx.program, wanted, present)
        if is_attention(ctx.program):
            program = like(program, [x for x, flag in zip(saved[:3], wanted) if flag])
        results = iter(call([*saved, *given], program))
        gradients = [next(results).to(x.device) if flag else None for flag, x in zip(wanted, saved)]
    return gradients


def _setup_context(ctx: Any, inputs: tuple[list[Tensor], str], output: list[Tensor]) -> None:
    _save(ctx, inputs[0], inputs[1], output)


def _backward(ctx: Any, cotangents: Sequence[Tensor | None]) -> tuple[list[Tensor | None], None]:
    return _gradients(ctx, ctx.needs_input_grad[0], cotangents), None


torch.library.impl(_NAME, "CPU", func=_call_cpu)
torch.library.impl(_NAME, "CUDA", func=_call_cuda)
torch.library.register_fake(_NAME, examples)
torch.library.register_autograd(_NAME, _backward, setup_context=_setup_context)

_operator: Callable[[list[Tensor], str], list[Tensor]] = torch.ops.tilewright.call.default


class _Call(torch.autograd.Function):
    """The operator's derivative again, for eager calls: quicker than the registered one."""

    @staticmethod
    def forward(ctx: Any, program: str, *tensors: Tensor) -> tuple[Tensor, ...]:
        results = tuple(_run(list(tensors), program))
        _save(ctx, tensors, program, results)
        return results

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, *_gradients(ctx, ctx.needs_input_grad[1:], cotangents)


class _TransformedCall(torch.autograd.Function):
    """The same in the form that ``torch.func`` knows, which takes no function of lists, and costs more."""

    @staticmethod
    def forward(program: str, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(_run(list(tensors), program))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _save(ctx, inputs[1:], inputs[0], output)
        ctx.save_for_forward(*inputs[1:])
        ctx.floats = [x.is_floating_point() for x in output]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        return _Call.backward(ctx, *cotangents)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        inputs, along = ctx.saved_tensors[: ctx.count], tangents[1:]
        given = [t is not None and x.is_floating_point() for x, t in zip(inputs, along)]
        moved = [t for t, flag in zip(along, given) if flag and t is not None]
        results = iter(call([*inputs, *moved], jvp(ctx.program, given, ctx.floats)))
        return tuple([next(results) if flag else None for flag in ctx.floats])

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *arguments: Any
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        program, *tensors = arguments
        batched = [axis is not None for axis in in_dims[1:]]
        inputs = [x if axis is None else x.movedim(axis, 0) for x, axis in zip(tensors, in_dims[1:])]
        results = tuple(call(inputs, vmap(program, batched)))
        return results, (0,) * len(results)


_PLAIN = (Tensor, torch.nn.Parameter)


def _run(inputs: list[Tensor], program: str) -> list[Tensor]:
    """The operator; past the dispatcher where there is nothing for it to do."""
    if not torch._C._len_torch_dispatch_stack() and maybe_current_level() is None:
        if all([x.is_cpu and type(x) in _PLAIN and not x.is_neg() for x in inputs]):
            return _call_cpu(inputs, program)
        if inputs[0].is_cuda and all([type(x) in _PLAIN and not x.is_neg() for x in inputs]):
            _check_devices(inputs, program)
            return _call_cuda(inputs, program)
    _check_devices(inputs, program)
    return _operator(inputs, program)


def _check_devices(inputs: list[Tensor], program: str) -> None:
    first = inputs[0].device
    if first.type not in ("cpu", "cuda", "meta"):
        raise DeviceUnavailableError(f"tensors on {first}: the CPU or an NVIDIA GPU expected")
    movable = first.type == "cuda"
    check_devices(program, inputs, [first if movable and x.is_cpu and not x.dim() else x.device for x in inputs])


def call(inputs: list[Tensor], program: str) -> list[Tensor]:
    """Runs a program on tensors and gives its results, differentiable."""
    results: tuple[Tensor, ...]
    if maybe_current_level() is not None or forward_ad._current_level >= 0:
        results = _TransformedCall.apply(orders_of(program)[1], *inputs)
        return list(results)
    if torch.is_grad_enabled() and any([x.requires_grad for x in inputs]):
        results = _Call.apply(program, *inputs)
        return list(results)
    return _run(inputs, program)
