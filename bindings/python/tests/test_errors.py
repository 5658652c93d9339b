"""Bad input: each error has a class of its own, names the argument, the axis and both sizes, and the user's line."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

import tilewright
from tilewright.torch import associative_scan, create_block_mask, flex_attention


def _qkv(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    query, key, value = (torch.randn(2, 4, 9, 8).to(dtype) for _ in range(3))
    return query, key, value


def test_sizes_that_disagree() -> None:
    q, k, v = _qkv()
    with pytest.raises(tilewright.ShapeError, match=r"key.*axis 3.*8.*7"):
        flex_attention(q, k[..., :7], v)
    with pytest.raises(ValueError, match=r"query.*4 axes"):
        flex_attention(q[0], k, v)
    with pytest.raises(tilewright.ShapeError, match=r"key.*3.*"):
        flex_attention(q, k[:, :3], v[:, :3], enable_gqa=True)
    with pytest.raises(tilewright.ShapeError, match=r"key: axis 1: .*4 heads expected, 0 found"):
        flex_attention(q, k[:, :0], v[:, :0], enable_gqa=True)
    with pytest.raises(tilewright.ShapeError, match=r"key.*axis 0.*2.*3"):
        flex_attention(q, torch.cat([k, k[:1]]), torch.cat([v, v[:1]]))
    with pytest.raises(tilewright.ShapeError, match=r"value.*axis 2.*9.*5"):
        flex_attention(q, k, v[:, :, :5])


def test_types_that_disagree() -> None:
    q, k, v = _qkv()
    with pytest.raises(tilewright.DTypeError, match=r"key.*float32.*float64"):
        flex_attention(q, k.double(), v)
    with pytest.raises(TypeError, match=r"query.*float type.*int"):
        flex_attention(q.int(), k.int(), v.int())
    with pytest.raises(tilewright.DTypeError, match=r"value.*bfloat16.*float16"):
        flex_attention(q.bfloat16(), k.bfloat16(), v.half())


def test_if_on_a_traced_value() -> None:
    q, k, v = _qkv()

    def score(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        if i > j:
            return s
        return s * 2

    line = inspect.getsourcelines(score)[1] + 1
    with pytest.raises(tilewright.TraceError) as caught:
        flex_attention(q, k, v, score)
    message = str(caught.value)
    assert "torch.where" in message and f"{__file__}:{line}" in message and len(message) < 1000


def test_if_on_a_traced_value_of_a_combine_function() -> None:
    def greatest(left: Any, right: Any) -> Any:
        return left if left > right else right

    line = inspect.getsourcelines(greatest)[1] + 1
    x = torch.tensor([1.0, 4.0, 2.0])
    with pytest.raises(tilewright.TraceError) as caught:
        associative_scan(greatest, x, 0)
    message = str(caught.value)
    assert "torch.where" in message and f"{__file__}:{line}" in message and len(message) < 1000
    chosen = associative_scan(lambda left, right: torch.where(left > right, left, right), x, 0)
    assert chosen.tolist() == [1.0, 4.0, 4.0]


def test_untraceable_function_and_wrong_arity() -> None:
    q, k, v = _qkv()
    with pytest.raises(tilewright.TraceError, match="cumsum"):
        flex_attention(q, k, v, lambda s, b, h, i, j: torch.cumsum(s, 0))
    with pytest.raises(tilewright.TraceError, match=r"score_mod is called with 5 arguments.*\n.*test_errors\.py:\d"):
        flex_attention(q, k, v, lambda s, b, h: s)
    with pytest.raises(tilewright.TraceError, match=r"combine_fn is called with 2 arguments.*\n.*test_errors\.py:\d"):
        one_argument: Any = lambda l: l  # noqa: E731
        associative_scan(one_argument, q, dim=2)
    with pytest.raises(tilewright.TraceError, match="one value a pair"):
        table = torch.randn(4, 3)
        flex_attention(q, k, v, lambda s, b, h, i, j: s + table[h])


def test_the_users_own_exception_comes_through() -> None:
    q, k, v = _qkv()

    def score(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        flex_attention(q, k, v, score)
    assert flex_attention(q, k, v).shape == q.shape


def test_index_out_of_range() -> None:
    q, k, v = _qkv()
    table = torch.randn(4)
    with pytest.raises(tilewright.OutOfRangeError, match=r"axis 0.*size 4") as caught:
        flex_attention(q, k, v, lambda s, b, h, i, j: s + table[i])
    assert isinstance(caught.value, IndexError) and "test_errors.py" in str(caught.value)
    mask = create_block_mask(lambda b, h, i, j: i < 4, None, None, 9, 9, device="cpu")
    assert flex_attention(q, k, v, lambda s, b, h, i, j: s + table[i], mask).shape == q.shape
    wide = flex_attention(q, k, v, lambda s, b, h, i, j: s + table[-1])
    assert torch.equal(wide, flex_attention(q, k, v, lambda s, b, h, i, j: s + table[3]))


def test_inputs_are_never_written() -> None:
    q, k, v = (x.requires_grad_() for x in _qkv())
    before = [x.detach().clone() for x in (q, k, v)]
    torch.autograd.backward(flex_attention(q, q, q).sum())
    torch.autograd.backward(flex_attention(q, k, v).sum())
    assert all(torch.equal(a, b.detach()) for a, b in zip(before, (q, k, v)))


def test_scans_refuse() -> None:
    x = torch.randn(3, 5)
    with pytest.raises(tilewright.ArgumentError, match="dim"):
        associative_scan(lambda l, r: l + r, x, dim=2)
    with pytest.raises(tilewright.ArgumentError, match="empty tree"):
        associative_scan(lambda l, r: l, (), dim=0)
    with pytest.raises(tilewright.ShapeError, match="leaf 1"):
        associative_scan(lambda l, r: l, (x, x[:, :4]), dim=1)
    with pytest.raises(tilewright.TraceError, match="another tree"):
        associative_scan(lambda l, r: l[0], (x, x), dim=1)
    with pytest.raises(tilewright.TraceError, match="leaf 0"):
        associative_scan(lambda l, r: (l + r).double(), x, dim=1)
