"""Arrays of JAX, read where they are and given back. The test needs JAX: `pip install jax`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright import _native

jax = pytest.importorskip("jax", reason="JAX is not installed (pip install jax)")
jnp = jax.numpy
# Arrays that are made are in the host's memory, also where there is a GPU.
jax.config.update("jax_default_device", jax.devices("cpu")[0])


def _inputs(dtype: Any = np.float32) -> tuple[Any, ...]:
    random = np.random.default_rng(0)
    return tuple(jnp.asarray(random.standard_normal(shape), dtype) for shape in (*[(2, 3, 19, 8)] * 3, (3, 37)))


def _dense(query: Any, key: Any, value: Any, bias: Any) -> Any:
    i = jnp.arange(19)
    scores = query @ jnp.swapaxes(key, -1, -2) / np.sqrt(8) + bias[:, i[:, None] - i + 18]
    return jax.nn.softmax(jnp.where(i[:, None] >= i, scores, -jnp.inf), -1) @ value


def _attend(query: Any, key: Any, value: Any, bias: Any) -> Any:
    return tw.flex_attention(
        query, key, value, lambda s, b, h, i, j: s + bias[h, i - j + 18], lambda b, h, i, j: i >= j
    )


def _address(array: Any) -> int:
    address: int = array.unsafe_buffer_pointer()
    return address


@pytest.mark.parametrize("name,tolerance", [("float32", 1e-5), ("float16", 4e-3), ("bfloat16", 3e-2)])
def test_attention(name: str, tolerance: float) -> None:
    query, key, value, bias = _inputs(name)
    before = [_address(x) for x in (query, key, value, bias)]
    out = _attend(query, key, value, tw.capture(bias))
    assert isinstance(out, jax.Array) and out.dtype == name
    wide = [x.astype(jnp.float32) for x in (query, key, value, bias)]
    np.testing.assert_allclose(out.astype(jnp.float32), _dense(*wide), atol=tolerance, rtol=tolerance)
    assert before == [_address(x) for x in (query, key, value, bias)]


def test_gradients() -> None:
    arguments = _inputs()

    def loss_of(attend: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments: (attend(*arguments) ** 2).sum()

    value, gradients = tw.value_and_grad(loss_of(_attend), argnums=(0, 1, 2, 3))(*arguments)
    expected, golden = jax.value_and_grad(loss_of(_dense), argnums=(0, 1, 2, 3))(*arguments)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for ours, theirs in zip(gradients, golden):
        assert isinstance(ours, jax.Array)
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("reverse", [False, True])
def test_scan(reverse: bool) -> None:
    def combine(l: Any, r: Any) -> Any:
        return l[0] * r[0], r[0] * l[1] + r[1]

    xs = (jax.nn.sigmoid(_inputs()[0][0]), _inputs()[1][0])
    ours = tw.associative_scan(combine, xs, 1, reverse)
    theirs = jax.lax.associative_scan(combine, xs, reverse=reverse, axis=1)
    for a, b in zip(ours, theirs):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_jax_takes_our_arrays_over() -> None:
    (ours,) = _native.call("graph(%x0: $0) -> (%1) {\n    %1 = neg %x0\n}", [np.arange(6.0).reshape(2, 3)], None, 1)
    with jax.enable_x64(True):
        taken = jnp.from_dlpack(ours)
        assert taken.dtype == jnp.float64
    np.testing.assert_array_equal(taken, -np.arange(6.0).reshape(2, 3))


def test_a_function_of_jax_and_a_bare_array_are_refused() -> None:
    query, key, value, bias = _inputs()
    for refused in (lambda s, b, h, i, j: jnp.tanh(s), lambda s, b, h, i, j: s + bias[h, i - j + 18]):
        with pytest.raises(tw.TraceError, match="use operators and tilewright's functions.*arrays that were captured") as caught:
            tw.flex_attention(query, key, value, refused)
        assert __file__ in str(caught.value) and len(str(caught.value)) < 1000
    ours = tw.flex_attention(query, key, value, lambda s, b, h, i, j: np.tanh(s))
    theirs = tw.flex_attention(query, key, value, lambda s, b, h, i, j: tw.tanh(s))
    np.testing.assert_array_equal(ours, theirs)
