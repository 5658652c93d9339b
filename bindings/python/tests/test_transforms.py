"""``torch.func`` over calls: forward mode, vectorisation, and both with reverse mode, against loops and differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad as torch_forward_ad

from tilewright.torch import associative_scan, create_block_mask, flex_attention

# Parts of these have no types in PyTorch.
functional: Any = torch.func
forward_ad: Any = torch_forward_ad
double_reverse: Any = torch.autograd.functional

_STEP = 1e-6


def _random(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(sum(shape)).standard_normal(shape))


def _attend(query: Tensor, bias: Tensor) -> Tensor:
    key, value = _random(2, 2, 6, 4), _random(2, 2, 6, 3)
    mask = create_block_mask(lambda b, h, i, j: i + 1 >= j, None, None, 5, 6, device="cpu")
    return flex_attention(query, key, value, lambda s, b, h, i, j: s + bias[h, i - j + 5], mask)


def _recur(decay: Tensor, value: Tensor) -> Tensor:
    states: Tensor = associative_scan(lambda l, r: (l[0] * r[0], r[0] * l[1] + r[1]), (decay, value), 0)[1]
    return states


def _loss(bias: Tensor) -> Tensor:
    return _attend(_random(2, 2, 5, 4), bias).square().sum()


def test_a_derivative_along_a_direction() -> None:
    query, bias, decay = _random(2, 2, 5, 4), _random(2, 10), _random(7, 3).sigmoid()
    for function, at, along in (
        (_attend, (query, bias), (query.cos(), bias.sin())),
        (_recur, (decay, decay.cos()), (decay.sin(), decay)),
    ):
        moved = [[x + sign * _STEP * t for x, t in zip(at, along)] for sign in (1, -1)]
        golden = (function(*moved[0]) - function(*moved[1])) / (2 * _STEP)
        value, found = functional.jvp(function, at, along)
        assert torch.equal(value, function(*at))
        torch.testing.assert_close(found, golden, rtol=1e-6, atol=1e-8)
    with forward_ad.dual_level():
        dual = _attend(query, forward_ad.make_dual(bias, bias.sin()))
        found = forward_ad.unpack_dual(dual).tangent
    golden = functional.jvp(lambda bias: _attend(query, bias), (bias,), (bias.sin(),))[1]
    assert torch.equal(found, golden)


def test_gradients_in_both_modes_agree_with_differences() -> None:
    query, bias = _random(2, 2, 5, 4).requires_grad_(), _random(2, 10).requires_grad_()
    assert torch.autograd.gradcheck(_attend, (query, bias), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(_attend, (query, bias), check_fwd_over_rev=True)


def test_a_call_for_each_of_several() -> None:
    query, bias = _random(2, 2, 5, 4), _random(2, 3, 10)
    queries = _random(3, 2, 2, 5, 4)
    decay, value = _random(4, 7, 3).sigmoid(), _random(4, 7, 3)

    both = torch.vmap(_attend, in_dims=(0, 1))(queries, bias)
    torch.testing.assert_close(both, torch.stack([_attend(queries[n], bias[:, n]) for n in range(3)]))
    captured = torch.vmap(lambda bias: _attend(query, bias), in_dims=1, out_dims=2)(bias)
    torch.testing.assert_close(captured, torch.stack([_attend(query, bias[:, n]) for n in range(3)], 2))
    scanned = torch.vmap(_recur)(decay, value)
    torch.testing.assert_close(scanned, torch.stack([_recur(*each) for each in zip(decay, value)]))
    twice = torch.vmap(torch.vmap(lambda x: _recur(x, x), in_dims=1, out_dims=1), in_dims=2, out_dims=2)
    torch.testing.assert_close(twice(decay.unsqueeze(-1)).squeeze(-1), _recur(decay, decay))


def test_gradients_for_each_of_several() -> None:
    biases = _random(3, 2, 10)
    found = torch.vmap(functional.grad(_loss))(biases)
    torch.testing.assert_close(found, torch.stack([functional.grad(_loss)(bias) for bias in biases]))


def test_jacobians_and_hessians() -> None:
    bias, query = _random(2, 10), _random(2, 2, 5, 4)

    def totals(bias: Tensor) -> Tensor:
        return _attend(query, bias).sum((0, 1, 3))

    torch.testing.assert_close(functional.jacfwd(totals)(bias), functional.jacrev(totals)(bias))
    golden = double_reverse.hessian(_loss, bias)
    torch.testing.assert_close(functional.hessian(_loss)(bias), golden)


_QUERY = _random(2, 2, 5, 4)


def _traceable(bias: Tensor) -> Tensor:
    """A loss that calls nothing which PyTorch's compiler does not know."""
    return flex_attention(_QUERY, _QUERY, _QUERY, lambda s, b, h, i, j: s + bias[h, i - j + 4]).square().sum()


def _forward_mode(bias: Tensor) -> Tensor:
    with forward_ad.dual_level():
        dual = _traceable(forward_ad.make_dual(bias, bias.sin()))
        tangent: Tensor = forward_ad.unpack_dual(dual).tangent
        return tangent


# Inside a compiled function, PyTorch's operators fail under these, and those of a scan lost the tangent.
_INSIDE: dict[str, Callable[[Tensor], Any]] = {
    "vmap": lambda bias: torch.vmap(_traceable)(torch.stack([bias, 2 * bias])),
    "grad": functional.grad(_traceable),
    "jvp": lambda bias: functional.jvp(_traceable, (bias,), (bias.sin(),))[1],
    "jvp of a scan": lambda bias: functional.jvp(lambda x: _recur(x, x), (bias,), (bias.sin(),))[1],
    "forward mode": _forward_mode,
}


@pytest.mark.parametrize("name", _INSIDE)
def test_a_transformation_inside_a_compiled_function(name: str) -> None:
    function, bias = _INSIDE[name], _random(2, 10).sigmoid()
    with pytest.raises(RuntimeError, match=r"tilewright inside torch\.vmap, torch\.func or forward mode.*uncompiled"):
        torch.compile(function, fullgraph=True)(bias)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(function)(bias), function(bias))


def test_operator_under_a_transformation_is_well_registered() -> None:
    from tilewright._program import jvp, vmap
    from tilewright.torch import _program

    q, k, v = (torch.randn(1, 2, 5, 4) for _ in range(3))
    bias = torch.randn(2, 9)
    program, captures = _program.attention(q, k, v, lambda s, b, h, i, j: s + bias[h, i - j + 4], None, 0.5, ["out", "lse"])
    operator = torch.ops.tilewright.call.default
    checks = ("test_schema", "test_faketensor")
    along = [q, k, v, *captures, q, bias]
    torch.library.opcheck(operator, (along, jvp(program, [True, False, False, True], [True, True])), test_utils=checks)
    batched = [torch.stack([q, q]), k, v, *captures]
    torch.library.opcheck(operator, (batched, vmap(program, [True, False, False, False])), test_utils=checks)
