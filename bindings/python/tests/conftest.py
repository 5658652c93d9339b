"""What holds for all tests."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest
from torch._inductor import config

# JAX would take three quarters of a GPU's memory when it first looks for one.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

# Of the objects that PyTorch makes while it is imported none is garbage. To look at them again and again, as the collector does
# while PyTorch looks at functions, took a third of the time of all tests.
gc.collect()
gc.freeze()
gc.set_threshold(50_000, 20, 100)

# Processes that wait for kernels to compile would be more than there are kernels.
config.compile_threads = 1

#: PyTorch's own operators as they are, not kernels that are generated; PyTorch before 2.10 has no such setting.
PLAIN = {"fallback_by_default": True} if hasattr(config, "fallback_by_default") else {}
#: Kernels for what the processor says that it has, without a trial of each set of instructions, and without headers made ahead.
GENERATED = {"cpp.vec_isa_ok": True, "cpp_cache_precompile_headers": False}


@pytest.fixture(autouse=True)
def few_generated_kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """Beside our operator, PyTorch's compiler runs PyTorch's own, but where a test is marked ``generated``: a C++ compiler would
    take a second or two for each kernel."""
    with config.patch(GENERATED if request.node.get_closest_marker("generated") else PLAIN):
        yield
