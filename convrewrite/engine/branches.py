"""An `If` whose condition follows from shapes alone becomes the branch that it takes at these shapes.

    If (Equal(Gather(Shape(p), 3), 1))            p [N, C, 1, 1]
      then: Squeeze(p, 3)                  ==>    Squeeze(p, 3)
      else: Identity(p)

PyTorch's exporter writes this around `squeeze` and `flatten` of pooled maps. A pass that looks at windows of one size
sees on each of them what the file's own size shows, so the branch taken there is the one that is meant. A condition
that depends on values, or on an extent that stays open (a number of images), stays: that it is the same for the numbers
that one tries would say nothing of the others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from convrewrite.engine.graph import Constants, OpenShape, fixed_extents, infer_shapes, producer, unique_name

Inputs = Mapping[str, Sequence[int]]
Declared = Mapping[str, Sequence[Any]]
"""Shapes of inputs; what is no number stays open."""


def settled(
    graph: gs.Graph, variants: Sequence[Inputs], declared: Declared | None = None
) -> tuple[gs.Graph, tuple[str, ...]]:
    """A copy of the graph without the `If` nodes that are decided, and the outputs that these had.

    Args:
        graph: it is returned as it is where nothing is decided.
        variants: shapes of all inputs, the file's own first. A condition must be the same for all of them at which the
            graph runs.
        declared: shapes of inputs as the result will have them, where those are other than the graph's: a condition
            may rest on their numbers alone.

    Raises:
        onnx.shape_inference.InferenceError: where an operator contradicts the file's own shapes.
    """
    taken: list[str] = []
    work = graph
    while decisions := _decisions(work, variants, declared):
        work = followed(work, decisions)
        taken += decisions
    return work, tuple(taken)


def followed(graph: gs.Graph, decisions: Mapping[str, bool]) -> gs.Graph:
    """A copy of the graph in which each named `If` is the branch that it takes.

    Args:
        graph: it is not changed. decisions: the condition of each, by the name of its first output.
    """
    work = graph.copy()
    for node in [node for node in work.nodes if node.op == "If" and _name(node) in decisions]:
        _take(work, node, node.attrs["then_branch" if decisions[_name(node)] else "else_branch"])
    return work


def _name(node: gs.Node) -> str:
    return str(node.outputs[0].name)


def _decisions(graph: gs.Graph, variants: Sequence[Inputs], declared: Declared | None) -> dict[str, bool]:
    """Which way each `If` goes, by its first output, as far as that follows from the shapes."""
    choices = [node for node in graph.nodes if node.op == "If" and not node.domain]
    if not choices:
        return {}
    fixed = fixed_extents(graph, declared)
    choices = [node for node in choices if _rests_on(graph, node, fixed)]
    known = [Constants(graph, infer_shapes(graph, variants[0]))]
    for inputs in variants[1:]:
        with contextlib.suppress(onnx.shape_inference.InferenceError):
            known.append(Constants(graph, infer_shapes(graph, inputs)))
    ways = {_name(node): {_way(constants.value(node.inputs[0])) for constants in known} for node in choices}
    return {name: bool(*found) for name, found in ways.items() if len(found) == 1 and None not in found}


def _rests_on(graph: gs.Graph, node: gs.Node, fixed: Mapping[str, OpenShape]) -> bool:
    """Whether every extent that the condition of an `If` is computed from is a number, whatever open ones become."""
    constants = Constants(graph)
    todo, seen = [(node.inputs[0], node)], set[tuple[int, int]]()
    while todo:
        tensor, reader = todo.pop()
        made = producer(tensor)
        if made is None or (id(made), id(reader)) in seen:
            continue
        seen.add((id(made), id(reader)))
        if made.op not in ("Shape", "Size"):
            todo += [(read, made) for read in made.inputs]
        elif not all(isinstance(extent, int) for extent in _read(made, reader, fixed, constants)):
            return False
    return True


def _read(made: gs.Node, reader: gs.Node, fixed: Mapping[str, OpenShape], constants: Constants) -> Sequence[int | None]:
    """The extents that a node reads of what a Shape or Size gives; None for one that is open, or not known."""
    extents = fixed.get(made.inputs[0].name)
    if extents is None:
        return [None]
    if made.op == "Shape":
        extents = extents[made.attrs.get("start", 0) : made.attrs.get("end", len(extents))]
    if made.op == "Size" or reader.op != "Gather" or reader.inputs[0] is not made.outputs[0]:
        return extents
    chosen = constants.value(reader.inputs[1])
    if chosen is None:
        return extents
    return [extents[int(place)] for place in chosen.reshape(-1) if -len(extents) <= place < len(extents)]


def _way(condition: np.ndarray[Any, Any] | None) -> bool | None:
    return bool(condition.reshape(-1)[0]) if condition is not None and condition.size == 1 else None


def _take(graph: gs.Graph, node: gs.Node, branch: gs.Graph) -> None:
    """Put the nodes of a branch in the place of its `If`, under names that are free in the graph."""
    outside = graph.tensors()
    taken = set(outside) | {name for sub in graph.subgraphs(recursive=True) for name in sub.tensors()}
    made = {id(tensor) for inner in branch.nodes for tensor in inner.outputs}
    for tensor in branch.tensors().values():
        if id(tensor) in made or (isinstance(tensor, gs.Constant) and not _is_same(tensor, outside.get(tensor.name))):
            tensor.name = unique_name(f"{_name(node)}/{tensor.name}", taken)
    ends = []
    for given, result in zip(branch.outputs, list(node.outputs), strict=True):
        if result.name:
            result.inputs.clear()
            ends.append(gs.Node("Identity", result.name, inputs=[given], outputs=[result]))
    place = next(index for index, other in enumerate(graph.nodes) if other is node)
    node.inputs.clear()
    node.outputs.clear()
    graph.nodes[place : place + 1] = [*branch.nodes, *ends]


def _is_same(constant: gs.Constant, other: gs.Tensor | None) -> bool:
    """Whether two constants of one name are one: a copy of a graph gives its subgraphs theirs."""
    return isinstance(other, gs.Constant) and other._values is constant._values
