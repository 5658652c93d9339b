"""Under ``torch.compile(fullgraph=True)``: learned biases in every layer, shared, computed in the graph."""

from __future__ import annotations

import inspect
import multiprocessing
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.attention.flex_attention as torch_flex
from oracle import DEVICES
from torch import Tensor, nn
from torch._higher_order_ops.associative_scan import associative_scan as torch_scan
from torch._higher_order_ops.associative_scan import associative_scan_op
from torch._higher_order_ops.flex_attention import flex_attention as flex_attention_op
from torch.utils.checkpoint import checkpoint

import tilewright.torch
from tilewright.torch import AuxRequest, associative_scan, create_block_mask, flex_attention
from tilewright.torch._compile import ReplaceCalls


class Layer(nn.Module):
    """Attention with a learned relative bias."""

    def __init__(self, attention: Callable[..., Any], width: int, heads: int, length: int) -> None:
        super().__init__()
        self.attention = attention
        self.project = nn.Linear(width, 3 * width)
        self.bias = nn.Parameter(torch.randn(heads, 2 * length - 1) * 0.3)
        self.heads, self.length = heads, length

    def forward(self, x: Tensor, extra: Tensor, mask: Any) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.project(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)

        def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return s + self.bias[h, i - j + self.length - 1] + extra[b, i]

        out: Tensor = self.attention(q, k, v, score_mod=score, block_mask=mask)
        return x + out.transpose(1, 2).reshape(batch, length, width)


class Model(nn.Module):
    """Three layers of equal names and shapes; a bias computed in the graph feeds each."""

    def __init__(self, attention: Callable[..., Any], width: int = 16, heads: int = 2, length: int = 24) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Layer(attention, width, heads, length) for _ in range(3))
        self.layers[2].bias = self.layers[0].bias

    def forward(self, x: Tensor, mask: Any = None) -> Tensor:
        extra = torch.tanh(x.sum(-1))
        for layer in self.layers:
            x = layer(x, extra, mask)
        return x.square().mean()


def _gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    torch.autograd.backward(loss)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _agree(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=2e-4, atol=2e-6, msg=lambda m: f"{name}: {m}")


@pytest.mark.parametrize("masked", [False, True])
def test_whole_model(masked: bool) -> None:
    model = Model(flex_attention)
    x = torch.randn(2, 24, 16, generator=torch.Generator().manual_seed(3))
    mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, 24, 24, device="cpu") if masked else None
    eager = _gradients(model, model(x, mask))
    compiled = torch.compile(model, fullgraph=True)
    loss = compiled(x, mask)
    torch.testing.assert_close(loss, model(x, mask))
    _agree(_gradients(model, loss), eager)


def test_enable_replaces_torchs_own_operator() -> None:
    tilewright.torch.enable()
    model = Model(torch_flex.flex_attention)
    ours = Model(flex_attention)
    x = torch.randn(2, 24, 16, generator=torch.Generator().manual_seed(3))
    mask = torch_flex.create_block_mask(lambda b, h, i, j: i >= j, None, None, 24, 24, device="cpu", BLOCK_SIZE=8)
    loss = torch.compile(model, fullgraph=True)(x, mask)
    expected = ours(x, mask)
    torch.testing.assert_close(loss, expected)
    _agree(_gradients(model, loss), _gradients(ours, expected))


def _left(function: Callable[[Tensor], Tensor], x: Tensor, everywhere: bool) -> tuple[Tensor, list[Any]]:
    """What a function of one tensor gives, and what its graph calls when the pass is done with it."""
    targets: list[Any] = []
    replace = ReplaceCalls()
    replace.everywhere = everywhere

    def compiler(module: torch.fx.GraphModule, _inputs: Any) -> Any:
        replace(module.graph)
        targets.extend(node.target for node in module.graph.nodes)
        module.recompile()
        return module

    return torch.compile(function, backend=compiler, fullgraph=True)(x), targets


@pytest.mark.parametrize("everywhere", [False, True])
def test_torchs_own_attention_stays_until_enabled(everywhere: bool) -> None:
    """Who only imports us, to compare the two say, compares the two."""

    def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return s * 0.5 + i

    def function(x: Tensor) -> Tensor:
        theirs: Tensor = torch_flex.flex_attention(x, x, x, score)
        return theirs + flex_attention(x, x, x, score)

    x = torch.randn(1, 2, 16, 8)
    out, targets = _left(function, x, everywhere)
    torch.testing.assert_close(out, 2 * flex_attention(x, x, x, score))
    assert targets.count(torch.ops.tilewright.call.default) == 1 + everywhere
    assert targets.count(flex_attention_op) == 1 - everywhere


@pytest.mark.skipif(
    "need to be on CUDA" in inspect.getsource(torch_scan), reason="this PyTorch's own scan refuses the CPU"
)
@pytest.mark.parametrize("everywhere", [False, True])
def test_torchs_own_scan_stays_until_enabled(everywhere: bool) -> None:
    def function(x: Tensor) -> Tensor:
        theirs: Tensor = torch_scan(lambda l, r: l + r, x, 2, combine_mode="pointwise")
        ours: Tensor = associative_scan(lambda l, r: l + r, x, 2)
        return theirs + ours

    x = torch.randn(1, 2, 16, 8)
    out, targets = _left(function, x, everywhere)
    torch.testing.assert_close(out, 2 * x.cumsum(2))
    assert targets.count(torch.ops.tilewright.call.default) == 1 + everywhere
    assert targets.count(associative_scan_op) == 1 - everywhere


def test_what_a_score_function_computes_from_captures_alone() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 17, 8, requires_grad=True) for _ in range(3))
    slopes = torch.randn(2, requires_grad=True)

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return s - (torch.exp(slopes) * 2)[h] * torch.abs(i - j)

        return flex_attention(q, k, v, score).square().sum()

    eager = torch.autograd.grad(function(q, k, v), (q, k, v, slopes))
    compiled = torch.autograd.grad(torch.compile(function, fullgraph=True)(q, k, v), (q, k, v, slopes))
    for a, b in zip(compiled, eager):
        torch.testing.assert_close(a, b)


@pytest.mark.generated
def test_statistics_under_compile() -> None:
    q, k, v = (torch.randn(1, 2, 17, 8, requires_grad=True) for _ in range(3))

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, lse = flex_attention(q, k, v, return_lse=True)
        return out.sum() + lse.sin().sum()

    eager = torch.autograd.grad(function(q, k, v), (q, k, v))
    compiled = torch.autograd.grad(torch.compile(function, fullgraph=True)(q, k, v), (q, k, v))
    for a, b in zip(compiled, eager):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_statistics_under_another_backend(backend: str) -> None:
    """There PyTorch's own operator stays, whose statistics are in base 2."""
    q, k, v = (torch.randn(1, 2, 17, 8, requires_grad=True) for _ in range(3))

    def function(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out, aux = flex_attention(q, k, v, lambda s, b, h, i, j: s * 2, return_aux=AuxRequest(lse=True, max_scores=True))
        assert aux.lse is not None and aux.max_scores is not None
        return out, aux.lse, aux.max_scores

    found, golden = torch.compile(function, backend=backend, fullgraph=True)(q, k, v), function(q, k, v)
    for a, b in zip(found, golden):
        torch.testing.assert_close(a, b)
    gradients = (torch.autograd.grad(out.sin().sum() + lse.sin().sum(), (q, k, v)) for out, lse, _ in (found, golden))
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_activation_checkpointing(compiled: bool, reentrant: bool) -> None:
    model = Model(flex_attention)
    x = torch.randn(2, 24, 16, requires_grad=True)
    plain = _gradients(model, model(x))
    if compiled and reentrant:
        pytest.skip("PyTorch's compiler takes checkpoints of the newer kind only")

    def again(x: Tensor) -> Tensor:
        result: Tensor = checkpoint(model, x, use_reentrant=reentrant)
        return result

    run = torch.compile(again, fullgraph=True) if compiled else again
    _agree(_gradients(model, run(x)), plain)


@pytest.mark.parametrize("compiled", [False, True])
def test_autocast(compiled: bool) -> None:
    q, k, v = (torch.randn(1, 2, 17, 8, requires_grad=True) for _ in range(3))
    bias = torch.randn(2, 33, requires_grad=True)

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flex_attention(q, k, v, lambda s, b, h, i, j: s + bias[h, i - j + 16])

    run = torch.compile(function, fullgraph=True) if compiled else function
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run(q, k, v)
    golden = function(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert found.dtype == torch.bfloat16 and torch.equal(found, golden)
    leaves = (q, k, v, bias)
    for a, b in zip(*(torch.autograd.grad(out.float().square().sum(), leaves) for out in (found, golden))):
        assert a.dtype == torch.float32 and torch.equal(a, b)


def test_functional_gradient() -> None:
    q, k, v = (torch.randn(1, 2, 9, 4, dtype=torch.float64) for _ in range(3))
    bias = torch.randn(2, 17, dtype=torch.float64)

    def loss(bias: Tensor) -> Tensor:
        return flex_attention(q, k, v, lambda s, b, h, i, j: s + bias[h, i - j + 8]).square().sum()

    leaf = bias.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(bias), expected)


def test_operator_is_well_registered() -> None:
    from tilewright.torch import _program

    q, k, v = (torch.randn(1, 2, 5, 4, requires_grad=True) for _ in range(3))
    bias = torch.randn(2, 9, requires_grad=True)
    program, captures = _program.attention(q, k, v, lambda s, b, h, i, j: s + bias[h, i - j + 4], None, 0.5)
    torch.library.opcheck(torch.ops.tilewright.call.default, ([q, k, v, *captures], program))


def test_export() -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.randn(2, 9))

        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            return flex_attention(q, k, v, lambda s, b, h, i, j: s + self.bias[h, i - j + 4], return_lse=True)

    q, k, v = (torch.randn(1, 2, 5, 4) for _ in range(3))
    model = Small()
    exported = torch.export.export(model, (q, k, v)).module()
    for a, b in zip(exported(q, k, v), model(q, k, v)):
        torch.testing.assert_close(a, b)


def _train(rank: int, ranks: int, backend: str, device: str, meeting: str, results: Any) -> None:
    if device == "cuda":
        # Where there are fewer GPUs than ranks, they share them.
        torch.cuda.set_device(rank % torch.cuda.device_count())
    torch.distributed.init_process_group(
        backend, init_method=f"file://{meeting}", rank=rank, world_size=ranks, timeout=timedelta(seconds=60)
    )
    model = nn.parallel.DistributedDataParallel(Model(flex_attention).to(device))
    x = torch.randn(4, 24, 16, generator=torch.Generator().manual_seed(5)).chunk(ranks)[rank].to(device)
    torch.autograd.backward(model(x))
    results[rank] = {name: p.grad.tolist() for name, p in model.module.named_parameters()}
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("backend", ["gloo", "nccl"])
@pytest.mark.parametrize("device", DEVICES)
def test_distributed_data_parallel(device: str, backend: str, tmp_path: Path) -> None:
    if device == "cpu" and backend == "nccl":
        pytest.skip("NCCL is for GPUs")
    # NCCL wants a GPU for each rank.
    ranks = min(2, torch.cuda.device_count()) if backend == "nccl" else 2
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        results = manager.dict()
        given = (ranks, backend, device, str(tmp_path / "meeting"), results)
        processes = [context.Process(target=_train, args=(rank, *given)) for rank in range(ranks)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * ranks
        found = [{name: torch.tensor(g, device=device) for name, g in results[rank].items()} for rank in range(ranks)]
    model = Model(flex_attention).to(device)
    x = torch.randn(4, 24, 16, generator=torch.Generator().manual_seed(5)).to(device)
    golden = _gradients(model, model(x))
    for gradients in found:
        _agree(gradients, golden)


# With a gate that is not one, the function would not be associative.
def _recurrence(scan: Callable[..., Any], gate: Tensor, dim: int, reverse: bool) -> Callable[[Tensor, Tensor], Tensor]:
    def combine(l: Any, r: Any) -> Any:
        return l[0] * r[0] * torch.sigmoid(gate), r[0] * torch.sigmoid(gate) * l[1] + r[1]

    def function(a: Tensor, b: Tensor) -> Tensor:
        h, y = scan(combine, (torch.sigmoid(a), b), dim, reverse=reverse)
        loss: Tensor = (y * h.cos()).square().sum()
        return loss

    return function


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_scan_under_compile(dim: int, reverse: bool) -> None:
    torch.manual_seed(0)
    a, b = (torch.randn(5, 20, 4, requires_grad=True) for _ in range(2))
    gate = torch.full((), 40.0, requires_grad=True)
    function = _recurrence(associative_scan, gate, dim, reverse)
    eager = [function(a, b), *torch.autograd.grad(function(a, b), (a, b, gate))]
    compiled = torch.compile(function, fullgraph=True)
    found = [compiled(a, b), *torch.autograd.grad(compiled(a, b), (a, b, gate))]
    for x, y in zip(found, eager):
        torch.testing.assert_close(x, y)


@pytest.mark.skipif(
    "need to be on CUDA" in inspect.getsource(torch_scan), reason="this PyTorch's own scan refuses the CPU"
)
@pytest.mark.parametrize("reverse", [False, True])
def test_enable_replaces_torchs_own_scan(reverse: bool) -> None:
    tilewright.torch.enable()
    torch.manual_seed(0)
    a, b = (torch.randn(3, 20, requires_grad=True) for _ in range(2))
    gate = torch.full((), 40.0)
    ours = _recurrence(associative_scan, gate, 1, reverse)(a, b)
    theirs = torch.compile(_recurrence(torch_scan, gate, 1, reverse), fullgraph=True)(a, b)
    torch.testing.assert_close(theirs, ours)
    for x, y in zip(torch.autograd.grad(theirs, (a, b)), torch.autograd.grad(ours, (a, b))):
        torch.testing.assert_close(x, y)


def test_any_function_scans_under_compile() -> None:
    torch.manual_seed(0)
    xs = (torch.eye(3) + 0.2 * torch.randn(7, 2, 3, 3)).requires_grad_()
    a, b = torch.rand(6, 2, 4).requires_grad_(), torch.randn(6, 2, 3, 4).requires_grad_()

    def function(xs: Tensor, a: Tensor, b: Tensor) -> Tensor:
        products = associative_scan(lambda x, y: y @ x, xs, dim=0)
        states = associative_scan(lambda l, r: (l[0] * r[0], r[0].unsqueeze(1) * l[1] + r[1]), (a, b), dim=0)
        last = associative_scan(lambda l, r: r, xs, dim=1)
        loss: Tensor = products.square().sum() + states[1].square().sum() + (last * xs.cos()).sum()
        return loss

    eager = torch.autograd.grad(function(xs, a, b), (xs, a, b))
    compiled = torch.autograd.grad(torch.compile(function, fullgraph=True)(xs, a, b), (xs, a, b))
    for x, y in zip(compiled, eager):
        torch.testing.assert_close(x, y)


def test_another_backend_is_refused_where_it_would_be_wrong() -> None:
    x = torch.randn(3, 5)
    compiled = torch.compile(lambda x: associative_scan(lambda l, r: l + r, x, dim=1, init=x[:, 0]), backend="eager")
    with pytest.raises(tilewright.ArgumentError, match="inductor"):
        compiled(x)


def test_what_else_a_model_does_stays() -> None:
    """Writes in place whose results nobody uses, and the model's own ``vmap``, beside a mask that PyTorch made."""
    tilewright.torch.enable()

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls: Tensor
            self.register_buffer("calls", torch.zeros(2))

        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self.calls.add_(1)
            self.calls[1] = q.shape[2]
            q = torch.vmap(torch.vmap(lambda row: row / (1 + row.norm())))(q)
            mask = torch_flex.create_block_mask(lambda b, h, i, j: i >= j, None, None, 8, 8, device="cpu", BLOCK_SIZE=4)
            out: Tensor = torch_flex.flex_attention(q, k, v, block_mask=mask)
            whole: Tensor = torch_flex.flex_attention(q, k, v)
            return out + whole

    q, k, v = (torch.randn(1, 2, 8, 4, requires_grad=True) for _ in range(3))
    model = Counting()
    compiled = torch.compile(model, fullgraph=True)
    found = [compiled(q, k, v) for _ in range(3)][-1]
    assert model.calls.tolist() == [3.0, 8.0]
    rows = torch.vmap(torch.vmap(lambda row: row / (1 + row.norm())))(q)
    mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, 8, 8, device="cpu")
    golden = flex_attention(rows, k, v, block_mask=mask) + flex_attention(rows, k, v)
    torch.testing.assert_close(found, golden)
    for a, b in zip(*(torch.autograd.grad(out.square().sum(), (q, k, v)) for out in (found, golden))):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_inference(dtype: torch.dtype) -> None:
    q, k, v = (torch.randn(1, 2, 17, 8, dtype=dtype) for _ in range(3))
    bias = nn.Parameter(torch.randn(2, 33, dtype=dtype))

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flex_attention(q, k, v, lambda s, b, h, i, j: s + bias[h, i - j + 16])

    compiled = torch.compile(function, fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(q, k, v), function(q, k, v))
    # Asked for a gradient after all.
    for a, b in zip(*(torch.autograd.grad(f(q, k, v).sum(), bias) for f in (compiled, function))):
        torch.testing.assert_close(a, b)


def test_a_call_is_given_what_another_gave() -> None:
    q, k, v = (torch.randn(1, 2, 8, 4, requires_grad=True) for _ in range(3))

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        once, lse = flex_attention(q, k, v, return_lse=True)
        return flex_attention(once, k, once, lambda s, b, h, i, j: s + once[b, h, i, 0] * lse[b, h, j])

    found, golden = torch.compile(function, fullgraph=True)(q, k, v), function(q, k, v)
    torch.testing.assert_close(found, golden)
    for a, b in zip(*(torch.autograd.grad(out.square().sum(), (q, k, v)) for out in (found, golden))):
        torch.testing.assert_close(a, b)


class Mixed(nn.Module):
    """Three layers of attention with a learned bias and a recurrence, by functions of PyTorch's or ours."""

    def __init__(self, attention: Callable[..., Any], scan: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Layer(attention, 16, 2, 24) for _ in range(3))
        self.gates = nn.ModuleList(nn.Linear(16, 32) for _ in range(3))
        self.scan = scan

    def forward(self, x: Tensor, mask: Any) -> Tensor:
        extra = torch.tanh(x.sum(-1))
        for layer, gate in zip(self.layers, self.gates):
            x = layer(x, extra, mask)
            decay, value = gate(x).chunk(2, -1)
            x = x + self.scan(lambda l, r: (l[0] * r[0], r[0] * l[1] + r[1]), (torch.sigmoid(decay), value), 1)[1]
        return x.square().mean()


@pytest.mark.skipif(
    "need to be on CUDA" in inspect.getsource(torch_scan), reason="this PyTorch's own scan refuses the CPU"
)
def test_enable_in_a_model_of_attention_and_scans() -> None:
    tilewright.torch.enable()
    x = torch.randn(2, 24, 16, generator=torch.Generator().manual_seed(3))
    theirs, ours = Mixed(torch_flex.flex_attention, torch_scan), Mixed(flex_attention, associative_scan)
    mask = torch_flex.create_block_mask(lambda b, h, i, j: i >= j, None, None, 24, 24, device="cpu", BLOCK_SIZE=8)
    loss, golden = torch.compile(theirs, fullgraph=True)(x, mask), ours(x, mask)
    torch.testing.assert_close(loss, golden)
    expected = _gradients(ours, golden)
    _agree(_gradients(theirs, loss), expected)
    # Every parameter learns, the biases of each layer among them.
    assert len(expected) == len(list(ours.parameters())) and all(bool(g.any()) for g in expected.values())
