"""JAX's side of the benchmarks: reads a case a line (JSON), answers with its times in seconds, or why it has none."""

from __future__ import annotations

import json
import sys
import time

import jax
import jax.numpy as jnp


def linear(left, right):
    return left[0] * right[0], right[0] * left[1] + right[1]


def scan(case):
    shape, axis = tuple(case["shape"]), case["axis"]
    key = jax.random.PRNGKey(0)
    a, b = jax.random.uniform(key, shape) * 0.1 + 0.9, jax.random.normal(key, shape)
    if case["scan"] == "sum":
        if case["direction"] != "forward":
            raise NotImplementedError("the sum's gradient is not measured")
        function, xs = jax.jit(lambda b: jax.lax.associative_scan(jnp.add, b, axis=axis)), (b,)
    elif case["direction"] == "forward":
        function, xs = jax.jit(lambda a, b: jax.lax.associative_scan(linear, (a, b), axis=axis)), (a, b)
    else:
        loss = lambda a, b: (jax.lax.associative_scan(linear, (a, b), axis=axis)[1]).sum()  # noqa: E731
        function, xs = jax.jit(jax.grad(loss, argnums=(0, 1))), (a, b)
    jax.block_until_ready(function(*xs))
    times = []
    for _ in range(case["repeats"]):
        start = time.perf_counter()
        jax.block_until_ready(function(*xs))
        times.append(time.perf_counter() - start)
    return times


def main():
    print("ready", flush=True)
    for line in sys.stdin:
        case = json.loads(line)
        try:
            if case["kind"] != "scan":
                raise NotImplementedError("JAX is measured on scans only")
            answer = {"times": scan(case)}
        except Exception as error:  # noqa: BLE001
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:120]}
        print(json.dumps(answer), flush=True)


main()
