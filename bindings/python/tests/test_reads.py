"""A program is used again only where its function would leave the same one."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import dense
from torch import Tensor, nn

from tilewright import OutOfRangeError
from tilewright._program import vjp
from tilewright._scan import Order
from tilewright.torch import _program, and_masks, create_block_mask, flex_attention
from tilewright.torch._reads import reads

GLOBAL = 1.0


def _qkv() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 5, 4, generator=generator) for _ in range(3))
    return query, key, value


class Count:
    """How often a function ran."""

    def __init__(self) -> None:
        self.runs = 0


def _agrees(score: Callable[..., Any]) -> None:
    q, k, v = _qkv()
    for _ in range(2):
        torch.testing.assert_close(flex_attention(q, k, v, score), dense(q, k, v, score)[0])


def test_what_can_be_told_is_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = _qkv()
    traced, trace = [], _program._traced

    def counted(function: Callable[[], Any]) -> Any:
        traced.append(function)
        return trace(function)

    monkeypatch.setattr(_program, "_traced", counted)

    def make(table: Tensor) -> Callable[..., Any]:
        return lambda s, b, h, i, j: s + table[h, i - j + 4]

    before = flex_attention(q, k, v, make(torch.zeros(2, 9)))
    known = reads((make(torch.zeros(2, 9)),), (q, k, v))
    again = reads((make(torch.ones(2, 9)),), (q, k, v))
    assert known is not None and again is not None and known.key == again.key
    table = torch.randn(2, 9)
    assert not torch.equal(flex_attention(q, k, v, make(table)), before)
    assert len(traced) == 1
    with torch.no_grad():
        flex_attention(q, k, v, make(table))
        flex_attention(q, k, v, make(table + 1))
    assert len(traced) == 2, "once for the results of a call that is not recorded"
    other = reads((make(torch.ones(2, 10)),), (q, k, v))
    assert other is not None and other.key != known.key


def test_numbers_that_change() -> None:
    global GLOBAL
    for factor in (1.0, 2.0, 0.0, -0.0, 3):
        _agrees(lambda s, b, h, i, j, factor=factor: s * factor + 1 / (abs(factor) + 1))
        _agrees(functools.partial(lambda f, s, b, h, i, j: s * f, factor))
        GLOBAL = factor + 1.0
        _agrees(lambda s, b, h, i, j: s * GLOBAL)


def test_helpers_that_change() -> None:
    for helper in (torch.tanh, torch.sin, lambda x: x * 3, lambda x: x * 4):
        _agrees(lambda s, b, h, i, j, helper=helper: helper(s))


def test_objects_that_change() -> None:
    class Bias(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(2, 9))
            self.factor = 1.0
            self.wide = True

        def offset(self, i: Any, j: Any) -> Any:
            return i - j + 4 if self.wide else i - i

        def forward(self, s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
            return s * self.factor + self.table[h, self.offset(i, j)]

    bias = Bias()
    q, k, v = _qkv()
    assert reads((bias,), (q, k, v)) is not None
    _agrees(bias)
    bias.factor = 2.0
    _agrees(bias)
    bias.wide = False
    _agrees(bias)
    bias.table = nn.Parameter(torch.randn(2, 9))
    _agrees(bias)
    _agrees(lambda s, b, h, i, j: s + bias.table[h, bias.offset(i, j)])


def test_an_object_that_is_handed_on() -> None:
    class Options:
        factor = 1.0

    options = Options()

    def scaled(s: Any, given: Any) -> Any:
        return s * given.factor

    for options.factor in (1.0, 3.0):
        _agrees(lambda s, b, h, i, j: scaled(s, options))


def test_numbers_of_tensors_are_seen() -> None:
    switch = torch.tensor(1.0)

    def score(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        return s * 2 if switch > 0 else s * float(switch)

    for number in (1.0, -1.0, -2.0):
        switch.fill_(number)
        _agrees(score)


def test_tensors_computed_on_the_way() -> None:
    slopes = torch.tensor([0.1, 0.2])
    for _ in range(2):
        _agrees(lambda s, b, h, i, j: s + torch.exp(slopes)[h])
        slopes += 1.0


def test_side_effects_happen_in_each_call() -> None:
    q, k, v = _qkv()
    count = Count()
    seen: list[str] = []

    def counted(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        count.runs += 1
        return s

    def noted(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        seen.append("run")
        return s

    for _ in range(3):
        flex_attention(q, k, v, counted)
        flex_attention(q, k, v, noted)
    assert count.runs == 3 and len(seen) == 3


def test_random_numbers_are_drawn_in_each_call() -> None:
    q, k, v = _qkv()
    generator = random.Random(0)
    results = [flex_attention(q, k, v, lambda s, b, h, i, j: s * generator.random()) for _ in range(3)]
    assert not torch.equal(results[0], results[1]) and not torch.equal(results[1], results[2])


def test_a_capture_that_is_an_operand_sometimes() -> None:
    q, k, v = _qkv()

    def call(query: Tensor, table: Tensor) -> Tensor:
        return flex_attention(query, k, v, lambda s, b, h, i, j: s + table[0, 0, i, 0] * j)

    aliased = call(q, q)
    other = torch.randn(1, 2, 5, 4)
    expected = dense(q, k, v, lambda s, b, h, i, j: s + other[0, 0, i, 0] * j)[0]
    torch.testing.assert_close(call(q, other), expected)
    assert torch.equal(call(q, q.clone()), aliased)


def test_two_names_for_one_tensor() -> None:
    one, two = torch.randn(5, requires_grad=True), torch.randn(5, requires_grad=True)
    q, k, v = _qkv()

    def gradients(first: Tensor, second: Tensor) -> tuple[Tensor, ...]:
        out = flex_attention(q, k, v, lambda s, b, h, i, j: s * first[i] + second[j])
        return torch.autograd.grad(out.square().sum(), (first, second))

    apart = gradients(one, two)
    together = gradients(one, one)
    assert torch.equal(together[0], together[1]) and not torch.equal(apart[0], apart[1])
    assert all(torch.equal(a, b) for a, b in zip(gradients(one, two), apart))


@pytest.mark.parametrize("shared", [True, False])
def test_masks(shared: bool) -> None:
    q, k, v = _qkv()
    width = [1]

    def window(b: Any, h: Any, i: Any, j: Any) -> Any:
        return i - j <= width[0]

    both = and_masks(window, lambda b, h, i, j: i >= j) if shared else window
    for width[0] in (0, 1, 3):
        mask = create_block_mask(both, None, None, 5, 5, device="cpu")
        torch.testing.assert_close(flex_attention(q, k, v, block_mask=mask), dense(q, k, v, None, both)[0])


def test_the_default_type_of_numbers_counts() -> None:
    q, k, v = (x.double() for x in _qkv())

    def score(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        return s + i / 3

    narrow = flex_attention(q, k, v, score)
    torch.set_default_dtype(torch.float64)
    try:
        wide = flex_attention(q, k, v, score)
    finally:
        torch.set_default_dtype(torch.float32)
    assert not torch.equal(narrow, wide)


def test_a_program_is_one_line() -> None:
    """Compilers write an operator's arguments into comments of the code that they generate."""
    odd = 'folder\\a "name"\nof two\r\nlines.py'
    scope: dict[str, Any] = {"table": torch.randn(3), "torch": torch}
    source = """
def score(s, b, h, i, j):
    return torch.where(i > j, s + table[i], s - h)
def mask(b, h, i, j):
    return i >= j
def combine(l, r):
    return l[0] * r[0], r[0] * l[1] + r[1]
"""
    exec(compile(source, odd, "exec"), scope)
    query, key, value = _qkv()
    text, captures = _program.attention(query, key, value, scope["score"], scope["mask"], 0.5)
    leaves = [torch.rand(2, 5), torch.rand(2, 5)]
    order = Order(1)
    scanned, _ = _program.scan(scope["combine"], leaves, tuple, lambda tree: (list(tree), None), order)
    for program in (text, scanned, vjp(text, [True, False], [True])):
        assert len(program.splitlines()) == 1
    with pytest.raises(OutOfRangeError) as caught:
        flex_attention(query, key, value, scope["score"])
    assert f"{odd}:3" in str(caught.value)
    assert len(captures) == 1
