"""``compile``, ``grad`` and ``value_and_grad``: functions of arrays, traced once for arrays of given types and run since.

A function is called with traced values in place of its arrays and leaves one program. Differentiation is the compiler's:
the gradients are further results of the same program, which nothing is computed twice for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from tilewright import _native, _program
from tilewright._arrays import LIBRARY, SupportsDLPack, kind_of, run
from tilewright._errors import ArgumentError
from tilewright._trace.region import Region, Value, refuse
from tilewright._trace.types import is_float
from tilewright._tree import flatten, unflatten


@dataclass(frozen=True)
class _Traced:
    """What a function was traced to."""

    program: str
    captures: list[Any]
    #: The tree of the function's results, and how many leaves it has.
    structure: Any
    results: int
    #: The inputs that each derivative is taken for.
    wanted: list[list[int]]


class Compiled:
    """A function of arrays that runs as one program: made by :func:`compile`, :func:`grad` or :func:`value_and_grad`."""

    def __init__(
        self,
        function: Callable[..., Any],
        derivatives: Sequence[tuple[int, ...]] = (),
        value: bool = True,
        single: bool = False,
        threads: int = 0,
        names: Sequence[str] = (),
    ) -> None:
        self._function = function
        self._derivatives = tuple(derivatives)
        self._value = value
        self._single = single
        self._threads = threads
        #: What errors call the arguments.
        self._names = names
        self._programs: dict[Hashable, _Traced] = {}
        # A function may call itself while it is traced, on arrays of other shapes.
        self._lock = threading.RLock()

    def __call__(self, *arguments: Any) -> Any:
        """Runs the function on arrays, or trees of them, of any library; the results are of the first array's."""
        leaves, structure, traced = self._traced(arguments)
        results = run(traced.program, [*leaves, *traced.captures], self._threads, leaves[0])
        count = len(traced.wanted[-1]) if traced.wanted else 0
        value = unflatten(traced.structure, results[: traced.results])
        if not self._derivatives:
            return value
        whole: list[Any] = [None] * len(leaves)
        for place, gradient in zip(traced.wanted[-1], results[len(results) - count :]):
            whole[place] = gradient
        trees = unflatten(structure, whole)
        gradients = tuple(trees[number] for number in self._derivatives[-1])
        gradient_tree = gradients[0] if self._single else gradients
        return (value, gradient_tree) if self._value else gradient_tree

    def explain(self, *arguments: Any) -> str:
        """What the program for such arrays consists of: passes, kernels, memory, how captured gradients are reduced."""
        leaves, _, traced = self._traced(arguments)
        return _native.explain(traced.program, [*leaves, *traced.captures])

    def differentiated(self, argnums: tuple[int, ...], value: bool, single: bool) -> Compiled:
        """The gradient of what this gives: of its one gradient, where it is one itself."""
        return Compiled(self._function, (*self._derivatives, argnums), value, single, self._threads, self._names)

    def _traced(self, arguments: tuple[Any, ...]) -> tuple[list[SupportsDLPack], Any, _Traced]:
        leaves, structure = flatten(arguments)
        if any(isinstance(leaf, Value) for leaf in leaves):
            raise refuse("a compiled function called inside a traced one", "call the function that it was made of")
        if not leaves:
            raise ArgumentError("arguments: at least one array expected")
        for leaf in leaves:
            if not LIBRARY.is_array(leaf):
                raise ArgumentError(f"arguments: arrays expected, a {type(leaf).__name__} found")
        types = tuple((kind_of(leaf), tuple(leaf.shape)) for leaf in leaves)
        key = (structure, types)
        with self._lock:
            if key not in self._programs:
                self._programs[key] = self._trace(leaves, structure)
            return leaves, structure, self._programs[key]

    def _trace(self, leaves: Sequence[Any], structure: Any) -> _Traced:
        # Which argument each leaf belongs to.
        numbers = flatten(tuple(unflatten(part, [n] * len(leaves)) for n, part in enumerate(structure[2])))[0]
        graph = Region(LIBRARY)
        values = [graph.input(leaf, self._name(numbers, place)) for place, leaf in enumerate(leaves)]
        results, result_structure = flatten(self._function(*unflatten(structure, values)))
        lifted = [graph.lift(result) for result in results]
        program = _program.text_of(graph, lifted)
        inputs = len(graph.inputs)
        wanted: list[list[int]] = []
        differentiated, count = 0, len(lifted)
        for argnums in self._derivatives:
            if wanted and len(wanted[-1]) != 1:
                raise ArgumentError("grad: a gradient of more than one array cannot be differentiated again")
            places = [i for i, number in enumerate(numbers) if number in argnums and is_float(values[i].kind)]
            program = _program.grad(program, [i in places for i in range(inputs)], differentiated)
            wanted.append(places)
            differentiated, count = count, count + len(places)
        return _Traced(program, graph.inputs[len(leaves) :], result_structure, len(lifted), wanted)

    def _name(self, numbers: Sequence[int], place: int) -> str:
        number = numbers[place]
        name = self._names[number] if self._names else f"argument_{number}"
        return name if numbers.count(number) == 1 else f"{name}_leaf_{place - numbers.index(number)}"


def compile(function: Callable[..., Any], *, threads: int = 0) -> Compiled:
    """Makes a function of arrays one program.

    ``function`` is run once for each set of element types and shapes, on traced values, and should do nothing but
    compute. ``threads`` is how many run a program, 0 for one a core; the result has the same bits for any number.

    >>> import numpy as np
    >>> scaled = compile(lambda x, y: (x @ y) * 2)
    >>> scaled(np.ones((2, 3), np.float32), np.ones((3, 1), np.float32)).tolist()
    [[6.0], [6.0]]
    """
    return Compiled(function, threads=threads)


def grad(function: Callable[..., Any], argnums: int | tuple[int, ...] = 0) -> Compiled:
    """The gradient of a function whose (first) result is one number, with respect to some of its arguments.

    >>> import numpy as np
    >>> grad(lambda x: (x * x).sum())(np.array([1.0, 2.0])).tolist()
    [2.0, 4.0]
    >>> float(grad(grad(lambda x: x * x * x))(np.array(2.0)))
    12.0
    """
    return _differentiated(function, argnums, False)


def value_and_grad(function: Callable[..., Any], argnums: int | tuple[int, ...] = 0) -> Compiled:
    """What a function gives, and its gradient as :func:`grad` gives it, by one program."""
    return _differentiated(function, argnums, True)


def _differentiated(function: Callable[..., Any], argnums: int | tuple[int, ...], value: bool) -> Compiled:
    single = isinstance(argnums, int)
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    if not numbers or min(numbers) < 0:
        raise ArgumentError(f"argnums: positions of arguments expected, {argnums} found")
    compiled = function if isinstance(function, Compiled) else compile(function)
    return compiled.differentiated(numbers, value, single)
