"""Running a user's function on traced values, and what is said where it cannot be run."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import Any

from tilewright._errors import TilewrightError, TraceError
from tilewright._trace.region import Value, is_users


def run(function: Callable[..., Any], arguments: Sequence[Any], what: str, example: Value) -> Any:
    """What ``function``, called ``what``, gives for the arguments; ``example`` is any of the values among them."""
    try:
        return function(*arguments)
    except TilewrightError:
        raise
    except Exception as error:
        stack = error.__traceback__
        if isinstance(error, TypeError) and (stack is None or stack.tb_next is None):
            raise TraceError(
                f"{what} is called with {len(arguments)} arguments: {error}\n  --> {_definition(function)}\n"
                "   = help: take as many as PyTorch's function of this name gives"
            ) from error
        if type(example).__name__ not in str(error):
            raise
        reason = str(error).splitlines()[0][:300]
        raise TraceError(
            f"a function that knows nothing of traced values is given one: {reason}\n  --> {_place(stack)}\n"
            f"   = help: use operators and {example.region.library.module}'s functions, such as "
            f"{example.region.library.module}.where for a condition, and arrays that were captured"
        ) from error


def _definition(function: Any) -> str:
    code = getattr(function, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if isinstance(code, types.CodeType) else repr(function)


def _place(stack: types.TracebackType | None) -> str:
    """The innermost line of the user's own code that led to an error."""
    place = ""
    while stack is not None:
        if is_users(stack.tb_frame):
            place = f"{stack.tb_frame.f_code.co_filename}:{stack.tb_lineno}"
        stack = stack.tb_next
    return place
