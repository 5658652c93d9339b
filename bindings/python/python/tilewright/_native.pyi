from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

__version__: str

def call_torch(program: str, inputs: Sequence[Tensor], empty: Callable[..., Tensor], threads: int) -> list[Tensor]: ...
def block_kinds(
    program: str, captures: Sequence[Tensor], result: Tensor, lengths: tuple[int, int], block: tuple[int, int]
) -> None: ...

_: Any
