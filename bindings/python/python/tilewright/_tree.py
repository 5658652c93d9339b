"""Trees of arrays: tuples, lists and dictionaries, nested."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

#: The shape of a tree: ``None`` for a leaf, else what it is and its children.
Structure = Any


def flatten(tree: Any) -> tuple[list[Any], Structure]:
    """The leaves in order, and the structure."""
    leaves: list[Any] = []
    return leaves, _flatten(tree, leaves)


def _flatten(tree: Any, leaves: list[Any]) -> Structure:
    if isinstance(tree, dict):
        return dict, tuple(tree), tuple(_flatten(child, leaves) for child in tree.values())
    if isinstance(tree, (tuple, list)):
        return type(tree), None, tuple(_flatten(child, leaves) for child in tree)
    leaves.append(tree)
    return None


def unflatten(structure: Structure, leaves: Sequence[Any]) -> Any:
    """The tree of a structure with these leaves."""
    return _unflatten(structure, iter(leaves))


def _unflatten(structure: Structure, leaves: Iterator[Any]) -> Any:
    if structure is None:
        return next(leaves)
    kind, names, children = structure
    made = [_unflatten(child, leaves) for child in children]
    if kind is dict:
        return dict(zip(names, made))
    return kind(*made) if hasattr(kind, "_fields") else kind(made)
