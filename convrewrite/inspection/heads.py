"""The head of a classifier: the nodes behind the last map, whose results stand for the image as a whole.

image ── Conv ── Relu ── MaxPool [1, 16, 5, 5] ── Flatten ── Gemm ── Relu ── Gemm ── Softmax ── probabilities
                         the last map             the head
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_graphsurgeon as gs

from convrewrite.engine.fields import Reach, Shape

SHOWN = 16
"""Operators that are listed."""

MAPS = 3
"""Maps that are listed."""


def head(graph: gs.Graph, shapes: Mapping[str, Shape], reaches: Mapping[str, Reach]) -> dict[str, Any] | None:
    """The maps that the head reads, with their shapes, and its operators in order; None where there is no head.

    A node belongs to it if neither it nor anything behind it gives a map again: a squeeze-and-excite block does not.
    """
    single: set[int] = set()
    for node in reversed(graph.nodes):
        found = reaches.get(node.outputs[0].name) if node.outputs else None
        behind = [reader for tensor in node.outputs for reader in tensor.outputs]
        if found is not None and _is_single(found, shapes.get(node.outputs[0].name)):
            single |= {id(node)} if all(id(reader) in single for reader in behind) else set()
    nodes = [node for node in graph.nodes if id(node) in single]
    if not nodes:
        return None
    read = {t.name: t for node in nodes for t in node.inputs if t.name in reaches and not _made_by(t, single)}
    maps = {name: list(shapes[name]) for name in read if name in shapes}
    return {"maps": maps, "operators": [node.op for node in nodes]}


def _made_by(tensor: gs.Tensor, nodes: set[int]) -> bool:
    return any(id(node) in nodes for node in tensor.inputs)


def _is_single(reach: Reach, shape: Shape | None) -> bool:
    """Whether a tensor has one cell for the whole image."""
    if shape is None:
        return False
    if not reach.axes:  # no figure for its field: a vector, or a map of one cell
        return len(shape) <= 2 or all(extent == 1 for extent in shape[2:])
    return all(along.dim is None or shape[along.dim] == 1 for along in reach.axes)


def told(found: Mapping[str, Any]) -> str:
    """The head as one line of text."""
    named = [f"{name} {'x'.join(map(str, shape))}" for name, shape in found["maps"].items()]
    maps = " and ".join([*named[:MAPS], *([f"{len(named) - MAPS} more"] if len(named) > MAPS else [])])
    operators = found["operators"]
    more = f" ... ({len(operators)} nodes)" if len(operators) > SHOWN else ""
    return f"{maps} -> {', '.join(operators[:SHOWN])}{more}"
