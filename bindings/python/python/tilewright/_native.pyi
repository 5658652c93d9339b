from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, TypeVar, final, overload

from tilewright._arrays import SupportsDLPack

T = TypeVar("T", bound=SupportsDLPack)

__version__: str

@final
class Array:
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def ndim(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...

@overload
def call(
    program: str, inputs: Sequence[T], empty: Callable[..., T], threads: int, stream: int = 0
) -> list[T]: ...
@overload
def call(program: str, inputs: Sequence[SupportsDLPack], empty: None, threads: int) -> list[Array]: ...
def synchronize(number: int) -> None: ...
def explain(program: str, inputs: Sequence[SupportsDLPack]) -> str: ...
def heat_map(path: str | PathLike[str], title: str, x: str, y: str, matrix: SupportsDLPack) -> None: ...
def block_kinds(
    program: str,
    captures: Sequence[SupportsDLPack],
    slices: tuple[int, int],
    lengths: tuple[int, int],
    block: tuple[int, int],
) -> bytes: ...
