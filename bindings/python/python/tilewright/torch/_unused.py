"""Removing what a captured graph computed only for calls that were replaced.

A graph before differentiation still writes in place and steps in and out of ``vmap``, so what nobody uses may yet
matter. Only what a replaced call was given is looked at, and goes where nothing that stays depends on it.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable

from torch import fx

_ENTER, _LEAVE = "_vmap_increment_nesting", "_vmap_decrement_nesting"


def remove_unused(graph: fx.Graph, given: Iterable[fx.Node]) -> None:
    """Erases what was computed only for the nodes ``given`` to calls that are gone."""
    candidates = _before(given)
    for node in graph.nodes:
        if node.target is operator.setitem and node.args[0] in candidates:
            candidates |= _before([node])
    kept = _needed(graph, candidates)
    nodes = list(graph.nodes)
    dead = {node for node in candidates if node not in kept} | _empty_nestings(nodes, candidates - kept)
    for node in reversed(nodes):
        if node in dead:
            graph.erase_node(node)


def _before(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """The nodes, and all that they depend on, but for inputs of the graph and what writes in place."""
    found: set[fx.Node] = set()
    rest = list(nodes)
    while rest:
        node = rest.pop()
        writes = node.op == "call_method" and str(node.target).endswith("_")
        if node not in found and node.op != "placeholder" and not writes:
            found.add(node)
            rest += node.all_input_nodes
    return found


def _needed(graph: fx.Graph, candidates: set[fx.Node]) -> set[fx.Node]:
    """Those of the candidates that the rest of the graph depends on, and what is written into them."""
    inside = {node: _before([node]) for node in candidates if node.target is operator.setitem}
    needed: set[fx.Node] = set()
    rest = [node for node in graph.nodes if node not in candidates]
    while rest:
        for node in rest:
            needed |= _before(node.all_input_nodes)
        rest = [node for node, reached in inside.items() if node not in needed and (reached - {node}) & needed]
        needed.update(rest)
    return needed & candidates


def _empty_nestings(nodes: list[fx.Node], dead: set[fx.Node]) -> set[fx.Node]:
    """Steps into ``vmap`` and out of it between which nothing is left."""
    empty: set[fx.Node] = set()
    open_: list[tuple[fx.Node, int]] = []
    for place, node in enumerate(nodes):
        name = getattr(node.target, "__name__", "")
        if name == _ENTER:
            open_.append((node, place))
        elif name == _LEAVE and open_:
            entered, start = open_.pop()
            harmless = (other in dead or other in empty or _loads(other) for other in nodes[start + 1 : place])
            if all(harmless):
                empty |= {entered, node}
    return empty


def _loads(node: fx.Node) -> bool:
    return getattr(node.target, "__name__", "") == "lazy_load_decompositions"
