"""The part of a graph that a plan changes, as two small models: as it was, and as it would be.

    graph   ... ── Conv ── Relu ── Conv ── ...          before   x ── Conv ── y
                    ^ a plan for this one       ==>      after    x ── Conv k x 1 ── Conv 1 x k ── y

Nodes that differ, and all nodes on a path between two of them, make up the region. Its inputs have the shapes that they
have in the model, so that what is timed is the layer at its real size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite.engine.graph import sort_nodes
from convrewrite.engine.rewrite import Pass, Plan
from convrewrite.errors import UsageError
from convrewrite.model_io import Model
from convrewrite.text import parameter

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Region:
    """Two models with the same inputs, and a name for the pair that does not depend on its weights or its names."""

    before: Model
    after: Model
    key: str


def region(graph: gs.Graph, pass_: Pass, plan: Plan, shapes: Shapes, ir_version: int) -> Region:
    """Cut out what a plan changes.

    Raises:
        UsageError: the shape of what the region reads is not known.
    """
    changed = graph.copy()
    pass_.apply(changed, plan)
    old, new = _differing(graph, changed), _differing(changed, graph)
    read = sorted({t.name for nodes in (old, new) for t in _read(nodes)} - _made(old) - _made(new))
    if unknown := [name for name in read if name not in shapes]:
        raise UsageError(
            f"the shape of '{unknown[0]}' is not known, so nothing can be timed",
            remedy=f"give {parameter('size')} with the size that it is used at",
        )
    models = [
        _model(whole, nodes, read, shapes, ir_version=ir_version) for whole, nodes in ((graph, old), (changed, new))
    ]
    text = "\n".join(_structure(model.graph) for model in models)
    return Region(models[0], models[1], hashlib.sha256(text.encode()).hexdigest()[:32])


def structure_key(graphs: Iterable[gs.Graph], shapes: Shapes) -> str:
    """A name for several whole graphs at their input shapes, by operators and shapes alone."""
    texts = [f"{[shapes.get(t.name) for t in graph.inputs]}\n{_structure(graph)}" for graph in graphs]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:32]


def _differing(graph: gs.Graph, other: gs.Graph) -> list[gs.Node]:
    """Nodes of a graph that the other one lacks, and all that lie between them."""
    known = {_signature(node) for node in other.nodes}
    own = [node for node in graph.nodes if _signature(node) not in known]
    after = _closure(own, lambda node: [r for t in node.outputs for r in t.outputs])
    before = _closure(own, lambda node: [t.inputs[0] for t in node.inputs if t.inputs])
    return [node for node in graph.nodes if id(node) in after and id(node) in before]


def _closure(start: Sequence[gs.Node], step: Any) -> set[int]:
    found: dict[int, gs.Node] = {}
    todo = list(start)
    while todo:
        node = todo.pop()
        if id(node) not in found:
            found[id(node)] = node
            todo.extend(step(node))
    return set(found)


def _signature(node: gs.Node) -> tuple[Any, ...]:
    names = tuple(t.name for t in node.inputs), tuple(t.name for t in node.outputs)
    return node.op, node.domain, *names, repr(sorted((key, str(value)) for key, value in node.attrs.items()))


def _read(nodes: Sequence[gs.Node]) -> list[gs.Tensor]:
    return [t for node in nodes for t in node.inputs if t.name and not isinstance(t, gs.Constant)]


def _made(nodes: Sequence[gs.Node]) -> set[str]:
    return {t.name for node in nodes for t in node.outputs if t.name}


def _model(graph: gs.Graph, nodes: list[gs.Node], read: list[str], shapes: Shapes, ir_version: int) -> Model:
    """The nodes as a model of their own; its outputs are what is read outside of it."""
    own, kept = _made(nodes), {id(node) for node in nodes}
    outside = [t.name for node in graph.nodes if id(node) not in kept for t in node.inputs]
    ends = [name for name in dict.fromkeys([*(t.name for t in graph.outputs), *outside]) if name in own]
    types = [t.dtype for node in nodes for t in node.inputs if isinstance(t, gs.Constant) and _is_float(t)]
    default = types[0] if types else np.dtype(np.float32)
    copy = graph.copy()
    chosen = [copied for node, copied in zip(graph.nodes, copy.nodes, strict=True) if id(node) in kept]
    tensors = copy.tensors()
    inputs = [tensors.get(name) or gs.Variable(name) for name in read]
    for tensor in inputs:
        tensor.inputs.clear()
        tensor.dtype, tensor.shape = tensor.dtype or default, list(shapes[tensor.name])
    outputs = [tensors[name] for name in ends]
    for tensor in outputs:
        tensor.dtype, tensor.shape = tensor.dtype or default, None
    small = gs.Graph(chosen, inputs, outputs, name="region", opset=graph.opset, import_domains=graph.import_domains)
    return Model(sort_nodes(small.cleanup(remove_unused_graph_inputs=False)), ir_version)


def _is_float(constant: gs.Constant) -> bool:
    return str(constant.dtype).startswith("float")


def _structure(graph: gs.Graph) -> str:
    """Operators, attributes and shapes, with tensors numbered as they come."""
    numbers: dict[str, int] = {}

    def word(tensor: gs.Tensor) -> str:
        if isinstance(tensor, gs.Constant):
            return f"{tensor.dtype}{list(tensor.shape)}"
        return str(numbers.setdefault(tensor.name, len(numbers)))

    lines = [f"{word(t)} {t.dtype} {t.shape}" for t in graph.inputs]
    for node in graph.nodes:
        attrs = sorted((key, str(value)) for key, value in node.attrs.items())
        lines.append(f"{node.op} {attrs} {[word(t) for t in node.inputs]} {[word(t) for t in node.outputs]}")
    return "\n".join(lines)
