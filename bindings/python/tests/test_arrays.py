"""The front without PyTorch: arrays of any library in and out, gradients, pictures."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.utils.dlpack import from_dlpack as torch_from_dlpack

import tilewright as tw

Array = npt.NDArray[Any]


def _dense(query: Array, key: Array, value: Array, bias: Array, causal: bool) -> Array:
    """Attention with a relative bias, in ``float64``."""
    query, key, value, bias = (x.astype(np.float64) for x in (query, key, value, bias))
    scores = query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1])
    i, j = np.arange(query.shape[2])[:, None], np.arange(key.shape[2])
    scores = scores + bias[:, i - j + key.shape[2] - 1]
    if causal:
        scores = np.where(i >= j, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    out: Array = weights / weights.sum(-1, keepdims=True) @ value
    return out


def _inputs(dtype: Any = np.float32) -> tuple[Array, Array, Array, Array]:
    random = np.random.default_rng(0)
    query, key, value = (random.standard_normal((2, 3, 19, 8)).astype(dtype) for _ in range(3))
    return query, key, value, random.standard_normal((3, 37)).astype(dtype)


def _attend(query: Any, key: Any, value: Any, bias: Any) -> Any:
    return tw.flex_attention(
        query, key, value, lambda s, b, h, i, j: s + bias[h, i - j + 18], lambda b, h, i, j: i >= j
    )


@pytest.mark.parametrize("dtype,tolerance", [(np.float64, 1e-12), (np.float32, 1e-5), (np.float16, 2e-3)])
def test_attention_of_numpy_arrays(dtype: Any, tolerance: float) -> None:
    query, key, value, bias = _inputs(dtype)
    out = _attend(query, key, value, tw.capture(bias))
    assert isinstance(out, np.ndarray) and out.dtype == dtype
    np.testing.assert_allclose(out, _dense(query, key, value, bias, True), atol=tolerance, rtol=tolerance)


def test_strided_and_read_only_arrays_are_read_where_they_are() -> None:
    query, key, value, bias = _inputs()
    strided = np.asfortranarray(query)
    flipped = np.flip(key, 2).copy()[:, :, ::-1]
    value.setflags(write=False)
    bias.setflags(write=False)
    out = _attend(strided, flipped, value, tw.capture(bias))
    np.testing.assert_array_equal(out, _attend(query, key, value.copy(), tw.capture(bias.copy())))


def test_a_capture_is_not_copied() -> None:
    query, key, value, bias = _inputs()
    attend = tw.compile(lambda q: _attend(q, tw.capture(key), tw.capture(value), tw.capture(bias)))
    first = attend(query)
    bias *= 2
    np.testing.assert_allclose(attend(query), _dense(query, key, value, bias, True), atol=1e-5)
    assert not np.allclose(first, attend(query))


def test_a_capture_indexed_by_numbers_is_a_part_of_it() -> None:
    query, key, value, _ = _inputs()
    table = tw.capture(np.array([[0.5, 2.0], [3.0, 4.0]], dtype=np.float32))
    part = tw.flex_attention(query, key, value, lambda s, b, h, i, j: s * table[0][1] + table[1][i % 2])
    numbers = tw.flex_attention(query, key, value, lambda s, b, h, i, j: s * 2.0 + tw.where(i % 2 == 0, 3.0, 4.0))
    np.testing.assert_allclose(part, numbers, rtol=1e-6)


def test_gradients_against_differences() -> None:
    arguments = _inputs(np.float64)
    weight = np.random.default_rng(1).standard_normal((2, 3, 19, 8))
    held = tw.capture(weight)

    def loss(query: Any, key: Any, value: Any, bias: Any) -> Any:
        return (_attend(query, key, value, bias) * held).sum()

    value, gradients = tw.value_and_grad(loss, argnums=(0, 1, 2, 3))(*arguments)

    def golden(query: Array, key: Array, value: Array, bias: Array) -> float:
        return float((_dense(query, key, value, bias, True) * weight).sum())

    np.testing.assert_allclose(value, golden(*arguments), rtol=1e-12)
    random = np.random.default_rng(2)
    for place, (argument, gradient) in enumerate(zip(arguments, gradients)):
        direction = random.standard_normal(argument.shape)
        step = 1e-6
        ends = []
        for sign in (1, -1):
            moved = [*arguments]
            moved[place] = argument + sign * step * direction
            ends.append(golden(*moved))
        np.testing.assert_allclose((gradient * direction).sum(), (ends[0] - ends[1]) / (2 * step), rtol=1e-6)


def test_second_derivative_and_trees() -> None:
    x = np.array(0.7)
    third = tw.grad(tw.grad(tw.grad(lambda x: tw.sin(x) * x)))
    np.testing.assert_allclose(third(x), -3 * np.sin(0.7) - 0.7 * np.cos(0.7), rtol=1e-12)
    parameters = {"a": np.array([1.0, 2.0]), "b": [np.array(3.0)]}
    result, gradient = tw.value_and_grad(lambda p, y: ((p["a"] * p["b"][0] - y) ** 2).sum())(parameters, np.array([1.0, 1.0]))
    np.testing.assert_allclose(result, 29.0)
    np.testing.assert_allclose(gradient["a"], [12.0, 30.0])
    np.testing.assert_allclose(gradient["b"][0], 24.0)


def test_numpys_own_functions_are_recorded() -> None:
    query, key, value, _ = _inputs()
    ours = tw.flex_attention(query, key, value, lambda s, b, h, i, j: tw.where(i >= j, 3 * tw.tanh(s / 3), -np.inf))
    numpys = tw.flex_attention(query, key, value, lambda s, b, h, i, j: np.where(i >= j, 3 * np.tanh(s / 3), -np.inf))
    np.testing.assert_array_equal(ours, numpys)


@pytest.mark.parametrize("reverse", [False, True])
def test_scan(reverse: bool) -> None:
    random = np.random.default_rng(0)
    a, b = random.uniform(0.5, 1.0, (3, 50)), random.standard_normal((3, 50))
    h, y = tw.associative_scan(lambda l, r: (l[0] * r[0], r[0] * l[1] + r[1]), (a, b), axis=1, reverse=reverse)
    order = range(49, -1, -1) if reverse else range(50)
    state = np.zeros(3)
    for t in order:
        state = a[:, t] * state + b[:, t]
        np.testing.assert_allclose(y[:, t], state, rtol=1e-10)
    assert h.shape == a.shape


def test_arrays_of_other_libraries() -> None:
    query, key, value, bias = _inputs()
    golden = _attend(query, key, value, tw.capture(bias))
    q, k, v, table = (torch.from_numpy(x) for x in (query, key, value, bias))
    out = _attend(q, k, v, tw.capture(table))
    assert isinstance(out, torch.Tensor)
    np.testing.assert_array_equal(out.numpy(), golden)


class _Old:
    """An array of a library from before DLPack 1: its ``__dlpack__`` takes no version."""

    def __init__(self, array: Array) -> None:
        self.array = array
        self.shape, self.ndim, self.dtype = array.shape, array.ndim, array.dtype

    def __dlpack__(self) -> Any:
        return self.array.__dlpack__()

    def __dlpack_device__(self) -> tuple[Any, int]:
        return self.array.__dlpack_device__()


def test_a_library_without_a_namespace_gets_our_arrays() -> None:
    query, key, value, bias = _inputs()
    out = _attend(_Old(query), _Old(key), _Old(value), tw.capture(_Old(bias)))
    assert out.shape == (2, 3, 19, 8) and out.dtype == "float32"
    golden = _attend(query, key, value, tw.capture(bias))
    for view in (np.from_dlpack(out), torch_from_dlpack(out).numpy()):
        np.testing.assert_array_equal(view, golden)


def test_results_outlive_what_made_them() -> None:
    import gc

    views = []
    for seed in range(20):
        x = np.full((1, 1, 64, 16), float(seed), np.float32)
        views.append((seed, tw.flex_attention(x, x, x)))
    gc.collect()
    assert all(np.all(view == seed) for seed, view in views)


def test_explain_and_pictures(tmp_path: Path) -> None:
    query, key, value, bias = _inputs()
    text = tw.value_and_grad(lambda q, k, v, t: _attend(q, k, v, t).sum(), argnums=3).explain(query, key, value, bias)
    assert "attention f32 B2 H3 Q19 K19 D8 V8" in text and "attention gradient" in text
    picture = tw.mask_picture(lambda b, h, q, k: (q >= k) & (q - k < 20), 64, 64, block=16)
    assert picture.splitlines() == ["▒···", "▒▒··", "▒▒▒·", "·▒▒▒"]
    path = tmp_path / "scores.png"
    tw.visualize(path, 30, 40, lambda s, b, h, q, k: s - 0.1 * abs(q - k), lambda b, h, q, k: q >= k)
    assert path.read_bytes().startswith(b"\x89PNG")
    tw.heat_map(path, "title", "x", "y", np.arange(6).reshape(2, 3))
    with pytest.raises(tw.ArgumentError, match="2 axes"):
        tw.heat_map(path, "title", "x", "y", np.arange(6))


def test_masked_pairs_of_a_picture_depend_on_the_head() -> None:
    windows = tw.capture(np.array([4, 40], dtype=np.int32))
    narrow, wide = (
        tw.mask_picture(lambda b, h, q, k: abs(q - k) < windows[h], 64, 64, block=16, head=head) for head in (0, 1)
    )
    assert narrow.count("·") > wide.count("·")


def test_errors() -> None:
    query, key, value, bias = _inputs()
    with pytest.raises(tw.TraceError, match=r"tilewright\.capture") as caught:
        tw.flex_attention(query, key, value, lambda s, b, h, i, j: s + bias[h, i - j + 18])
    assert "test_arrays.py" in str(caught.value)
    with pytest.raises(tw.TraceError, match=r"tilewright\.where"):
        tw.flex_attention(query, key, value, lambda s, b, h, i, j: s if i > j else -s)
    with pytest.raises(tw.TraceError, match="cumsum"):
        tw.flex_attention(query, key, value, lambda s, b, h, i, j: np.cumsum(s))
    with pytest.raises(tw.ShapeError, match=r"key.*axis 1.*3.*2"):
        tw.flex_attention(query, key[:, :2], value[:, :2])
    with pytest.raises(tw.DTypeError, match=r"key.*float32.*float64"):
        tw.flex_attention(query, key.astype(np.float64), value)
    with pytest.raises(tw.DTypeError, match="complex"):
        tw.flex_attention(query.astype(np.complex64), key, value)
    with pytest.raises(tw.ArgumentError, match="query.*list"):
        numbers: Any = [1.0]
        tw.flex_attention(numbers, key, value)
    with pytest.raises(tw.ArgumentError, match="one float"):
        tw.grad(lambda x: x * 2)(np.ones(3))
    with pytest.raises(tw.ArgumentError, match="argnums"):
        tw.grad(lambda x: x.sum(), argnums=-1)
    with pytest.raises(tw.ArgumentError, match="more than one array"):
        tw.grad(tw.grad(lambda x, y: x * y, argnums=(0, 1)))(np.array(1.0), np.array(2.0))
    with pytest.raises(tw.TraceError, match="compiled function called inside"):
        inner = tw.compile(lambda x: x + 1)
        tw.compile(lambda x: inner(x))(np.ones(3))
    with pytest.raises(tw.OutOfRangeError, match=r"axis 0.*size 3"):
        table = tw.capture(np.ones(3, np.float32))
        tw.flex_attention(query, key, value, lambda s, b, h, i, j: s + table[i])


class _Elsewhere(_Old):
    """An array that says that it lies on another device, and remembers how it was asked for its memory."""

    def __init__(self, array: Array, device: tuple[int, int]) -> None:
        super().__init__(array)
        self.device = device
        self.asked: list[dict[str, Any]] = []

    def __dlpack__(self, **options: Any) -> Any:
        self.asked.append(options)
        return self.array.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device


CUDA, PINNED, METAL = 2, 3, 8


def test_arrays_on_several_devices() -> None:
    query, key, value, bias = _inputs()
    for kind, name in ((CUDA, "cuda:1"), (METAL, "device 8 of DLPack:1")):
        there = _Elsewhere(key, (kind, 1))
        with pytest.raises(tw.ArgumentError, match=f"key: on cpu as query expected, on {name} found"):
            tw.flex_attention(query, there, value)
        with pytest.raises(tw.ArgumentError, match=f"argument 1: on cpu as argument 0 expected, on {name} found"):
            tw.compile(lambda x, y: x + y)(query, there)
        with pytest.raises(tw.ArgumentError, match=f"xs leaf 1: on cpu as xs leaf 0 expected, on {name} found"):
            tw.associative_scan(lambda l, r: l, (query, there), 0)
        with pytest.raises(tw.ArgumentError, match=rf"capture 0: on cpu as query .* on {name} .*\[3, 37\]"):
            _attend(query, key, value, tw.capture(_Elsewhere(bias, (kind, 1))))
        assert not there.asked


def test_memory_that_a_gpu_can_reach_is_the_hosts() -> None:
    query, key, value, bias = _inputs()
    pinned = _Elsewhere(query, (PINNED, 0))
    out = _attend(pinned, key, value, tw.capture(bias))
    np.testing.assert_array_equal(np.from_dlpack(out), _attend(query, key, value, tw.capture(bias)))
    # No stream has to do with it.
    assert pinned.asked == [{"max_version": (1, 0)}]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has an NVIDIA GPU")
def test_a_gpu_that_is_not_there() -> None:
    query, key, value, _ = _inputs()
    there = [_Elsewhere(x, (CUDA, 0)) for x in (query, key, value)]
    with pytest.raises(tw.DeviceUnavailableError, match="found, .* required") as caught:
        tw.flex_attention(there[0], there[1], there[2])
    assert isinstance(caught.value, RuntimeError)
    # The GPU is opened for its stream before any memory is asked for.
    assert not any(x.asked for x in there)
    assert tw.flex_attention(query, key, value).shape == query.shape


def test_our_arrays_are_lent_where_they_are() -> None:
    query, key, value, _ = _inputs()
    ours: Any = tw.flex_attention(_Old(query), _Old(key), _Old(value))
    assert ours.__dlpack_device__() == (1, 0)
    for options in ({"dl_device": (CUDA, 0)}, {"copy": True}):
        with pytest.raises(BufferError, match="where it is"):
            ours.__dlpack__(**options)
    assert ours.__dlpack__(dl_device=(1, 0), copy=False, max_version=(1, 0)) is not None


def test_what_a_library_raises_comes_through() -> None:
    class OnGpu(_Old):
        def __dlpack__(self) -> Any:
            raise BufferError("on a GPU")

    query, key, value, _ = _inputs()
    with pytest.raises(BufferError, match="on a GPU"):
        tw.flex_attention(OnGpu(query), OnGpu(key), OnGpu(value))


def test_threads_do_not_change_the_bits() -> None:
    random = np.random.default_rng(0)
    query, key, value = (random.standard_normal((1, 4, 200, 16)).astype(np.float32) for _ in range(3))
    runs = [
        tw.compile(lambda q, k, v: tw.flex_attention(q, k, v), threads=threads)(query, key, value) for threads in (1, 2, 5)
    ]
    for a, b in itertools.pairwise(runs):
        np.testing.assert_array_equal(a, b)
