"""What holds for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from torch._inductor import config

# JAX would take three quarters of a GPU's memory when it first looks for one.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

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
