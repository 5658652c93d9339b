"""Bad input and faults: what must happen, with the row of the list of faults behind each test that is for one.

Rows 1–3, 10–12 and 16–18 are in `test_errors.py`; 4, 5, 8, 13 and 15 in `test_attention.py`, `test_lengths.py` and
`test_arrays.py`; what needs a GPU (11, 22, 26) in `test_cuda.py` and `test_cuda_arrays.py`. From Python these cannot occur:

- 21: a panic inside the engine while it holds a lock, since no argument makes it panic (Rust's tests throw one). What can
  occur is an exception of the user's own function while a lock of this package is held, which is tested here.
- 22 and 23 on the CPU: the engine there keeps no file, which is tested here. For a GPU's kernels `crates/cuda` tests that
  damaged files are told of and made again, and that what others may write to is told of and not used.
- 24, a driver that is too old or a GPU that is not supported: `crates/cuda` refuses them; a machine has one or the other.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracle import dense
from torch import Tensor

import tilewright
from tilewright import _native
from tilewright.torch import associative_scan, create_block_mask, flex_attention


def _qkv(length: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 4, length, 8, generator=generator).requires_grad_() for _ in range(3))
    return query, key, value


def test_rows_that_see_no_key() -> None:
    q, k, v = _qkv()
    mask = create_block_mask(lambda b, h, i, j: (i != 3) & (i >= j), None, None, 9, 9, device="cpu")
    out, lse = flex_attention(q, k, v, block_mask=mask, return_lse=True)
    assert float(out[:, :, 3].abs().max()) == 0.0 and bool(torch.isneginf(lse[:, :, 3]).all())
    gradients = torch.autograd.grad((out * torch.randn_like(out)).sum(), (q, k, v))
    assert float(gradients[0][:, :, 3].abs().max()) == 0.0
    assert all(bool(torch.isfinite(g).all()) for g in gradients)


def test_a_document_of_length_zero_leaves_its_neighbours_alone() -> None:
    q, k, v = _qkv(12)

    def attend(ids: list[int]) -> Tensor:
        document = torch.tensor(ids)
        mask = create_block_mask(lambda b, h, i, j: document[i] == document[j], None, None, 12, 12, device="cpu")
        return flex_attention(q, k, v, block_mask=mask)

    assert torch.equal(attend([0] * 5 + [2] * 7), attend([0] * 5 + [1] * 7))


def test_scores_that_are_infinite_or_no_number() -> None:
    q, k, v = (x.detach() for x in _qkv())

    def score(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        s = torch.where((i == 2) & (j == 4), math.nan, s)
        s = torch.where((i == 5) & (j == 3), math.inf, s)
        return torch.where(j == 1, -math.inf, s)

    out, golden = flex_attention(q, k, v, score), dense(q, k, v, score)[0]
    assert bool(torch.isnan(out[:, :, 2]).all()) and bool(torch.isnan(out[:, :, 5]).all())
    torch.testing.assert_close(out, golden, equal_nan=True)


def test_gathers_from_an_empty_array_and_from_the_end() -> None:
    q, k, v = _qkv()
    empty = torch.empty(0)
    with pytest.raises(tilewright.OutOfRangeError, match="size 0"):
        flex_attention(q, k, v, lambda s, b, h, i, j: s + empty[i])
    table = torch.randn(9)
    from_end = flex_attention(q, k, v, lambda s, b, h, i, j: s + table[i - 9])
    assert torch.equal(from_end, flex_attention(q, k, v, lambda s, b, h, i, j: s + table[i]))
    with pytest.raises(tilewright.OutOfRangeError, match="-10"):
        flex_attention(q, k, v, lambda s, b, h, i, j: s + table[i - 10])


def test_broadcast_inputs_are_not_copied() -> None:
    row = torch.randn(1, 1, 9, 8)
    wide = row.expand(2, 4, 9, 8)
    packed = wide.contiguous()
    assert torch.equal(flex_attention(wide, wide, wide), flex_attention(packed, packed, packed))


def test_a_lazily_negated_input_is_negated() -> None:
    q, k, v = (x.detach() for x in _qkv())
    lazy = torch.complex(torch.zeros_like(q), q).conj().imag
    assert lazy.is_neg()
    torch.testing.assert_close(flex_attention(lazy, k, v), flex_attention(-q, k, v))


def test_sizes_that_overflow() -> None:
    one, narrow = torch.zeros(1), torch.zeros(1, 1, 4, 8)
    with pytest.raises(tilewright.ShapeError, match=r"query: axis 2: below 2\^31"):
        flex_attention(one.expand(1, 1, 1 << 40, 8), narrow, narrow)
    keys = one.expand(1, 1 << 14, 4, 8)
    with pytest.raises(tilewright.OutOfMemoryError):
        flex_attention(one.expand(1, 1 << 14, 1 << 30, 8), keys, keys)
    assert flex_attention(narrow, narrow, narrow).shape == (1, 1, 4, 8)


def test_an_element_beyond_two_to_the_31() -> None:
    q, k, v = (x.detach() for x in _qkv())
    start = 1 << 31
    # Memory that the system hands out where it is touched only.
    table = torch.empty(start + 9, dtype=torch.uint8)
    table[start:] = torch.arange(9)
    near = torch.arange(9)
    far = flex_attention(q, k, v, lambda s, b, h, i, j: s + table[j.long() + start])
    torch.testing.assert_close(far, flex_attention(q, k, v, lambda s, b, h, i, j: s + near[j]))


def test_a_long_chain_of_operations() -> None:
    q, k, v = (x.detach() for x in _qkv())
    count = 100_000

    def score(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        for _ in range(count):
            s = s + 1.0
        return s

    # Compiled, or refused with an error; in no case the stack's end.
    try:
        out = flex_attention(q, k, v, score)
    except tilewright.LimitError as error:
        assert len(str(error)) < 1_000
    else:
        # A score above 2¹⁶ has 2⁻⁷ between neighbours in f32.
        torch.testing.assert_close(out, flex_attention(q, k, v), rtol=0.0, atol=0.05)


def test_many_threads_compile_one_function() -> None:
    q, k, v = (x.detach() for x in _qkv())
    table = torch.randn(17)
    results: list[Tensor] = []
    start = threading.Barrier(64)

    def run() -> None:
        start.wait()
        results.append(flex_attention(q, k, v, lambda s, b, h, i, j: torch.sin(s * 1.25) + table[i - j + 8]))

    threads = [threading.Thread(target=run) for _ in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 64 and all(torch.equal(results[0], other) for other in results)


def test_an_exception_while_a_lock_is_held() -> None:
    """Row 21: tracing holds the lock of a compiled function."""
    failing = True

    def function(x: Any) -> Any:
        if failing:
            raise KeyError("mine")
        return x + 1

    compiled = tilewright.compile(function)
    x = np.ones(3)
    for _ in range(2):
        with pytest.raises(KeyError, match="mine"):
            compiled(x)
    failing = False
    results: list[Any] = []
    other = threading.Thread(target=lambda: results.append(compiled(x)), daemon=True)
    other.start()
    other.join(60)
    assert [result.tolist() for result in results] == [[2.0, 2.0, 2.0]]


def test_a_compiled_function_that_calls_itself() -> None:
    """Row 21: by the same thread, while it holds the lock."""
    factorial: Any = tilewright.compile(lambda x: x * factorial(np.ones(x.shape[0] - 1)).sum() if x.shape[0] > 1 else x)
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(factorial(np.ones(3))), daemon=True)
    thread.start()
    thread.join(60)
    assert [result.tolist() for result in results] == [[2.0, 2.0, 2.0]]


def test_nothing_is_kept_on_disk(tmp_path: Path) -> None:
    """Rows 22 and 23: on the CPU there is no file to damage, and a folder that cannot be written is not missed."""
    program = "import numpy as np, tilewright as tw; x = np.ones((1, 2, 8, 4)); print(tw.flex_attention(x, x, x).sum())"
    folder = tmp_path / "cache"
    folder.mkdir()
    for cache in (folder, Path("/dev/null/none")):
        environment = {**os.environ, "TILEWRIGHT_CACHE": str(cache), "XDG_CACHE_HOME": str(cache), "HOME": str(cache)}
        run = subprocess.run([sys.executable, "-B", "-c", program], env=environment, capture_output=True, text=True, check=False)
        assert (run.stdout, run.stderr, run.returncode) == ("64.0\n", "", 0)
    assert not list(folder.iterdir())


def test_without_pytorch_and_without_a_gpu() -> None:
    """Row 24: the package imports and computes where there is neither."""
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np, tilewright as tw\n"
        "x = np.ones((1, 2, 8, 4)); print(tw.flex_attention(x, x, x).sum())"
    )
    environment = {**os.environ, "LD_LIBRARY_PATH": "", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert (run.stdout, run.stderr, run.returncode) == ("64.0\n", "", 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has an NVIDIA GPU")
def test_a_gpu_that_the_machine_has_not() -> None:
    """Row 24: what was found, and what is required."""
    with pytest.raises(tilewright.DeviceUnavailableError, match=r"CUDA is unavailable: .* found, .* required"):
        _native.synchronize(0)


@pytest.mark.parametrize("what", ["results", "room of the engine's own"])
def test_memory_runs_out(what: str) -> None:
    """Row 25: the bytes asked for, an exception that Python users expect, and a call with less."""
    own = what != "results"
    function = tilewright.compile((lambda x: (x.reshape(-1, 1) @ x.reshape(1, -1)).sum()) if own else (lambda x: x + x))
    # More than a process can address: some systems promise all that it can, and have not got it.
    one, extent = np.ones(1, np.float32), 1 << (23 if own else 45)
    wanted = extent * extent * 4 if own else extent * 4
    with pytest.raises(tilewright.OutOfMemoryError, match=r"out of memory: \d+ bytes asked for on ") as caught:
        function(np.broadcast_to(one, (extent,)))
    assert isinstance(caught.value, MemoryError)
    asked = int(str(caught.value).split("memory: ")[1].split()[0])
    assert wanted <= asked <= wanted * 1.01
    assert float(function(np.broadcast_to(one, (3,))).sum()) == (9.0 if own else 6.0)


def test_other_threads_run_while_a_kernel_does() -> None:
    q, k, v = (torch.randn(1, 8, 1024, 64) for _ in range(3))
    flex_attention(q, k, v)
    counted = 0
    done = threading.Event()

    def kernel() -> None:
        flex_attention(q, k, v)
        done.set()

    thread = threading.Thread(target=kernel)
    thread.start()
    while not done.is_set():
        counted += 1
    thread.join()
    assert counted > 100


def test_a_child_process_works() -> None:
    """In a process of its own: other tests have libraries loaded whose threads hold locks that a child never sees released."""
    program = (
        "import os, torch\n"
        "from tilewright.torch import flex_attention\n"
        "q, k, v = torch.randn(3, 2, 4, 9, 8)\n"
        "expected = flex_attention(q, k, v)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    torch.set_num_threads(1)\n"
        "    os._exit(0 if torch.equal(flex_attention(q, k, v), expected) else 1)\n"
        "print(os.waitpid(child, 0)[1])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert (run.stdout, run.returncode) == ("0\n", 0), run.stderr


def test_what_pytorch_says_of_a_fork_is_made_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a fork of a process that used CUDA, a captured tensor there cannot be read."""

    def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        raise RuntimeError("CUDA error: initialization error")

    q, k, v = (x.detach() for x in _qkv())
    with pytest.raises(RuntimeError, match="initialization") as plain:
        flex_attention(q, k, v, score)
    assert not isinstance(plain.value, tilewright.ForkError)
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    with pytest.raises(tilewright.ForkError, match="start processes that use the device by `spawn`"):
        flex_attention(q, k, v, score)


def test_a_device_that_is_not_there() -> None:
    q, k, v = (torch.randn(1, 1, 4, 4, device="meta") for _ in range(3))
    assert flex_attention(q, k, v).device.type == "meta"
    on_cpu = torch.randn(1, 1, 4, 4)
    with pytest.raises(tilewright.ArgumentError, match=r"key: on cpu as query expected, on meta found"):
        flex_attention(on_cpu, k, v)
    with pytest.raises(tilewright.ArgumentError, match=r"capture 0: on meta as query expected, on cpu .*\[1, 1, 4, 4\]"):
        flex_attention(q, k, v, lambda s, b, h, i, j: s + on_cpu[0, 0, 0, j])
    with pytest.raises(tilewright.ArgumentError, match=r"init leaf 0: on cpu as xs leaf 0 expected, on meta found"):
        associative_scan(lambda l, r: l + r, on_cpu, 3, init=q[..., 0])


def test_types_that_are_not_there() -> None:
    q, k, v = _qkv()
    table = torch.randn(9, dtype=torch.complex64)
    with pytest.raises(tilewright.TraceError, match="complex64"):
        flex_attention(q, k, v, lambda s, b, h, i, j: s + table[i])
    narrow = torch.arange(9, dtype=torch.int16)
    wide = narrow.to(torch.int64)
    assert torch.equal(
        flex_attention(q, k, v, lambda s, b, h, i, j: s + narrow[i]),
        flex_attention(q, k, v, lambda s, b, h, i, j: s + wide[i]),
    )


def test_inputs_that_share_memory_are_never_written() -> None:
    x = torch.randn(2, 4, 9, 8)
    before = x.clone()
    flex_attention(x, x, x.transpose(0, 1).transpose(0, 1))
    associative_scan(lambda l, r: l + r, x, dim=2)
    assert torch.equal(x, before)
