"""CUDA tensors: PyTorch's current stream and memory, no waiting, captured as a graph, faults, autocast."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import dense
from torch import Tensor, nn

import tilewright
import tilewright.torch
from tilewright.torch import associative_scan, create_block_mask, flex_attention, synchronize

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no NVIDIA GPU")


def _qkv(length: int = 256, grad: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, 4, length, 64, generator=generator).cuda().bfloat16().requires_grad_(grad) for _ in range(3)
    )
    return query, key, value


def _stream() -> torch.cuda.Stream:
    make: Callable[[], torch.cuda.Stream] = torch.cuda.Stream
    return make()


def _biased(bias: Tensor, length: int) -> Callable[..., Any]:
    return lambda s, b, h, i, j: s + bias[h, i - j + length - 1]


def test_another_stream() -> None:
    q, k, v = _qkv(grad=False)
    golden = flex_attention(q, k, v)
    stream = _stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # Work before and after on the same stream; were the call on another, it would read what is not there yet.
        slow = torch.randn(4096, 4096, device="cuda")
        for _ in range(20):
            slow = slow @ slow * 1e-3
        late = q + 0 * slow[0, 0].nan_to_num(0, 0, 0).bfloat16()
        found = flex_attention(late, k, v) * 2
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(found, golden * 2)


def test_nothing_is_waited_for() -> None:
    q, k, v = _qkv()
    bias = torch.zeros(4, 511, device="cuda", requires_grad=True)

    def step() -> tuple[Tensor, ...]:
        mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, 256, 256)
        out = flex_attention(q, k, v, _biased(bias, 256), mask)
        return torch.autograd.grad(out.sum(), (q, k, v, bias))

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_captured_as_a_graph() -> None:
    q, k, v = _qkv()
    bias = (torch.randn(4, 511) * 0.1).cuda().requires_grad_()
    cotangent = torch.randn_like(q)

    def step() -> list[Tensor]:
        out = flex_attention(q, k, v, _biased(bias, 256))
        return [out.detach(), *torch.autograd.grad(out, (q, k, v, bias), cotangent)]

    stream = _stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        q.mul_(0.5)
        bias.add_(0.3)
    graph.replay()
    torch.cuda.synchronize()
    for a, b in zip(captured, step()):
        assert torch.equal(a, b)


def test_scan_captured_as_a_graph() -> None:
    a, b = (torch.rand(64, 1000, device="cuda") for _ in range(2))

    def step() -> Tensor:
        scanned: Tensor = associative_scan(lambda l, r: (l[0] * r[0], r[0] * l[1] + r[1]), (a, b), 1)[1]
        return scanned

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    b.add_(1)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured, step())


def test_results_repeat_bit_for_bit() -> None:
    q, k, v = _qkv(1000)
    bias = torch.randn(4, 1999, device="cuda", requires_grad=True)
    runs = []
    for _ in range(3):
        out = flex_attention(q, k, v, _biased(bias, 1000))
        runs.append([out, *torch.autograd.grad(out.float().square().sum(), (q, k, v, bias))])
    assert all(torch.equal(a, b) for other in runs[1:] for a, b in zip(runs[0], other))


def test_a_read_out_of_range_is_raised_when_waited_for() -> None:
    q, k, v = _qkv(grad=False)
    table = torch.zeros(100, device="cuda")
    flex_attention(q, k, v, lambda s, b, h, i, j: s + table[i])
    with pytest.raises(tilewright.OutOfRangeError, match=r"axis 0.*size 100"):
        synchronize()
    synchronize()
    torch.testing.assert_close(flex_attention(q, k, v), dense(q.float(), k.float(), v.float())[0].bfloat16(), rtol=2e-2, atol=2e-2)


def test_a_fork_is_told_so_and_computes_on_the_cpu() -> None:
    """In a process of its own, which no other test's libraries have filled with threads: these would be missing in the fork."""
    program = """
import os
import torch, tilewright
from tilewright.torch import flex_attention
q, k, v = torch.randn(3, 2, 4, 256, 64, device="cuda").bfloat16()
bias = torch.zeros(4, 511, device="cuda")
flex_attention(q, k, v)
on_cpu = torch.randn(1, 1, 4, 4)
child = os.fork()
if child == 0:
    told = 0
    try:
        torch.set_num_threads(1)
        # A program that ran before, and one that is new.
        for score in (None, lambda s, b, h, i, j: s + bias[h, i - j + 255]):
            try:
                flex_attention(q, k, v, score)
            except tilewright.ForkError as error:
                told += "spawn" in str(error)
        told += bool(flex_attention(on_cpu, on_cpu, on_cpu).isfinite().all())
    finally:
        os._exit(told)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
flex_attention(q, k, v)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert (run.stdout, run.returncode) == ("3\n", 0), run.stderr


def test_numbers_on_the_cpu() -> None:
    q, k, v = _qkv()
    factor = torch.tensor(0.5, requires_grad=True)
    out = flex_attention(q, k, v, lambda s, b, h, i, j: s * factor)
    assert torch.equal(out, flex_attention(q, k, v, lambda s, b, h, i, j: s * 0.5))
    (gradient,) = torch.autograd.grad(out.sum(), factor)
    assert gradient.device.type == "cpu" and bool(torch.isfinite(gradient))
    table = torch.zeros(256)
    with pytest.raises(tilewright.ArgumentError, match="capture 0: on cuda:0 as query expected, on cpu found"):
        flex_attention(q, k, v, lambda s, b, h, i, j: s + table[i])


def test_damaged_kernels_on_disk_are_compiled_again(tmp_path: Path) -> None:
    """Row 22: what the cache holds is found out to be damaged, and healed; a folder that cannot be written costs time."""
    program = (
        "import torch; from tilewright.torch import flex_attention\n"
        "x = torch.ones(1, 2, 64, 16, device='cuda'); print(float(flex_attention(x, x, x, lambda s, *_: s * 1.5).sum()))"
    )

    def run(folder: Path) -> str:
        environment = {**os.environ, "TILEWRIGHT_CACHE": str(folder)}
        return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True).stdout

    golden = run(tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    whole = {path: path.read_bytes() for path in files}
    for damage in (lambda data: data[: len(data) // 2], lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: b""):
        for path, data in whole.items():
            path.write_bytes(damage(data))
        assert run(tmp_path) == golden
        assert {path: path.read_bytes() for path in files} == whole
    assert run(Path("/dev/null/none")) == golden


def test_autocast() -> None:
    q, k, v = (x.detach().float() for x in _qkv())
    with torch.autocast("cuda", dtype=torch.bfloat16):
        out = flex_attention(q, k, v)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, flex_attention(q.bfloat16(), k.bfloat16(), v.bfloat16()))


@pytest.mark.parametrize("own", [True, False], ids=["ours", "enabled"])
def test_a_compiled_model_learns(own: bool) -> None:
    """Three layers with learned biases, under ``torch.compile(fullgraph=True)``, and through ``enable()``."""
    from torch.nn.attention.flex_attention import flex_attention as torchs

    tilewright.torch.enable()
    attention: Callable[..., Any] = flex_attention if own else torchs
    torch.manual_seed(0)
    biases = nn.ParameterList(torch.randn(4, 511, device="cuda") * 0.1 for _ in range(3))
    q, k, v = _qkv()

    def model(attention: Callable[..., Any], q: Tensor) -> Tensor:
        for bias in biases:
            q = q + attention(q, k, v, _biased(bias, 256))
        return q.float().square().mean()

    leaves = [q, *biases]
    loss = torch.compile(model, fullgraph=True)(attention, q)
    golden = model(flex_attention, q)
    torch.testing.assert_close(loss, golden, rtol=1e-3, atol=1e-3)
    for a, b in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(golden, leaves)):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-4)


def test_block_masks() -> None:
    from torch.nn.attention.flex_attention import create_block_mask as torchs

    ids = (torch.arange(256) // 70).cuda()

    def document(b: Any, h: Any, i: Any, j: Any) -> Any:
        return (ids[i] == ids[j]) & (i >= j)

    ours = create_block_mask(document, 2, 4, 256, 256, device="cuda")
    theirs = torchs(document, 2, 4, 256, 256, device="cuda")
    assert ours.kv_num_blocks.is_cuda and torch.equal(ours.kv_num_blocks, theirs.kv_num_blocks)
    q, k, v = _qkv(grad=False)
    assert torch.equal(flex_attention(q, k, v, block_mask=ours), flex_attention(q, k, v, block_mask=theirs))
