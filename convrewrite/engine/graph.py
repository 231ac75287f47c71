"""Questions that passes ask of a graph: its native shapes, its constants, its image input.

Nothing here changes a graph. Weights stay lazy: a constant is read only when its value is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
import onnx_graphsurgeon as gs

from convrewrite.engine.folding import Constants
from convrewrite.engine.operators import chosen
from convrewrite.engine.skeletons import SMALL, skeleton, unique_name, values_of
from convrewrite.engine.tensors import Shape, all_finite, producer, subgraph_tensors, subgraphs
from convrewrite.errors import UsageError

__all__ = [
    "Constants",
    "OpenShape",
    "Shape",
    "add_types",
    "all_finite",
    "computed_from_constants",
    "control_nodes",
    "fixed_extents",
    "has_fixed_inputs",
    "infer_shapes",
    "live_nodes",
    "maker",
    "names_taken",
    "position",
    "producer",
    "skeleton",
    "sort_nodes",
    "subgraph_tensors",
    "subgraphs",
    "unique_name",
    "values_of",
]


OpenShape = tuple[int | None, ...]
"""Extents, None where they follow an open axis of an input, or are not known."""

SAME_SHAPE = frozenset({"GroupNormalization"})
"""Operators that keep the shape of their input, and for which onnx has no shape inference."""

ROUNDS = 8
"""Times that a whole graph goes through shape inference; what then is left is inferred node by node."""


_NEVER_CONSTANT = chosen("random extents")


def computed_from_constants(tensor: gs.Tensor, most: int = 64) -> bool:
    """Whether a tensor is a constant, or nodes compute it from constants alone; False beyond `most` nodes.

    Nothing is computed, and the walk is short: weights come from a few nodes, activations from many.
    """
    todo, seen = [tensor], set[int]()
    while todo:
        current = todo.pop()
        if isinstance(current, gs.Constant) or not current.name:
            continue
        node = producer(current)
        if node is None or node.op in _NEVER_CONSTANT or subgraphs(node):
            return False
        if id(node) not in seen:
            seen.add(id(node))
            todo.extend(node.inputs)
        if len(seen) > most:
            return False
    return True


def has_fixed_inputs(graph: gs.Graph) -> bool:
    """Whether all extents of the graph's inputs are numbers: what was assumed for open ones must not be baked in."""
    return all(t.shape is not None and all(isinstance(d, int | np.integer) for d in t.shape) for t in graph.inputs)


def live_nodes(graph: gs.Graph) -> list[gs.Node]:
    """The nodes that the graph's outputs need, in order."""
    read = {tensor.name for tensor in graph.outputs}
    live: list[gs.Node] = []
    for node in reversed(graph.nodes):
        if any(tensor.name in read for tensor in node.outputs):
            read.update(tensor.name for tensor in (*node.inputs, *subgraph_tensors(node)) if tensor.name)
            live.append(node)
    return live[::-1]


def position(graph: gs.Graph, node: gs.Node) -> int:
    """Where a node stands in the graph's list. (`list.index` compares whole nodes, which is slow.)"""
    return list(map(id, graph.nodes)).index(id(node))


def maker(graph: gs.Graph, name: str) -> gs.Node:
    """The node that gives a tensor of that name; the names are read once for all sites of a pass."""
    held: dict[str, gs.Tensor] = graph.__dict__.get("tensors_seen", {})
    if name not in held or not held[name].inputs:
        held = graph.__dict__["tensors_seen"] = dict(graph.tensors())
    return held[name].inputs[0]


def names_taken(graph: gs.Graph) -> set[str]:
    """The names of a graph's tensors, for a pass that adds all its own here: read once for all its sites."""
    held: set[str] | None = graph.__dict__.get("names_taken")
    if held is None:
        held = graph.__dict__["names_taken"] = set(graph.tensors())
    return held


def control_nodes(graph: gs.Graph) -> list[gs.Node]:
    """The nodes that have subgraphs; no pass makes any, so they are looked for once."""
    held: list[gs.Node] | None = graph.__dict__.get("control_nodes")
    if held is None:
        held = graph.__dict__["control_nodes"] = [node for node in graph.nodes if subgraphs(node)]
    return held


def sort_nodes(graph: gs.Graph) -> gs.Graph:
    """Put the nodes of a graph in the order in which they can run; returns the graph.

    The order is that of `gs.Graph.toposort`, which recurses from node to node and fails on deep graphs.

    Raises:
        UsageError: a node needs its own result.
    """
    local = {t.name for node in graph.nodes for t in node.outputs if t.name}
    for node in control_nodes(graph):
        for inner in subgraphs(node):
            sort_nodes(inner)

    def ahead(node: gs.Node) -> list[gs.Node]:
        read = [*node.inputs, *(t for inner in subgraphs(node) for t in inner._foreign_tensors().values())]
        return list({id(made): made for t in read if t.name in local for made in t.inputs}.values())

    levels: dict[int, int] = {}
    order: list[gs.Node] = []
    for start in graph.nodes:
        todo, entered = [(start, ahead(start))], {id(start)}
        while todo:
            node, needed = todo[-1]
            if id(node) in levels:
                todo.pop()
                continue
            waiting = next((other for other in needed if id(other) not in levels), None)
            if waiting is None:
                levels[id(node)] = 1 + max((levels[id(other)] for other in needed), default=-1)
                order.append(node)
                todo.pop()
            elif id(waiting) in entered:
                raise UsageError(f"the graph has a cycle through {waiting.op} '{waiting.name}'")
            else:
                entered.add(id(waiting))
                todo.append((waiting, ahead(waiting)))
    graph.nodes = sorted(order, key=lambda node: levels[id(node)])
    return graph


def add_types(graph: gs.Graph) -> set[str]:
    """Tell the tensors of which the file lists no type the one that follows; returns their names."""
    bare = {n: t for n, t in graph.tensors().items() if isinstance(t, gs.Variable) and n and t.dtype is None}
    if not bare:
        return set()
    inferred = onnx.shape_inference.infer_shapes(skeleton(graph), check_type=False, strict_mode=False).graph
    for info in (*inferred.value_info, *inferred.output):
        if info.name in bare and info.type.tensor_type.elem_type:
            bare[info.name].dtype = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
    return set(bare)


def infer_shapes(
    graph: gs.Graph, input_shapes: Mapping[str, Sequence[int]], *, strict: bool = True
) -> dict[str, Shape]:
    """Shapes of all tensors that follow from the given input shapes; tensors of unknown shape are left out.

    Args:
        graph: it is not changed. input_shapes: by name of the input.
        strict: raise where an operator contradicts its input shapes; else what follows from it is not known.

    Raises:
        onnx.shape_inference.InferenceError: see `strict`.
    """
    model = skeleton(graph, input_shapes)
    _with_same_shapes(model)
    shapes = _inferred(model, strict=strict)
    for name, tensor in graph.tensors().items():
        if isinstance(tensor, gs.Constant):
            shapes[name] = tuple(tensor.shape)
    for _ in range(ROUNDS):
        if not _fold_shape_inputs(graph, model, shapes):
            return shapes
        shapes.update(_inferred(model, strict=strict))
    _one_by_one(graph, model, shapes, strict=strict)
    return shapes


def _with_same_shapes(model: onnx.ModelProto) -> None:
    """Put an Identity in the place of operators that keep a shape, and for which onnx has no shape inference."""
    for node in model.graph.node:
        if node.op_type in SAME_SHAPE and not node.domain:
            node.CopyFrom(onnx.helper.make_node("Identity", node.input[:1], node.output[:1], node.name))


def fixed_extents(graph: gs.Graph, inputs: Mapping[str, Sequence[Any]] | None = None) -> dict[str, OpenShape]:
    """Which extents are the same whatever the open axes of the inputs are given; {} where the graph contradicts itself.

    What is decided at one size holds for all only where it rests on such extents. They are found by shape inference
    with the open axes left open, never by trying some sizes: floor(224 / 32) is floor(225 / 32), too.

    Args:
        graph: it is not changed. Shapes that the file lists for tensors other than the inputs are not believed.
        inputs: shapes that replace those of the named inputs; all that is no positive number is open.
    """
    given = {t.name: t.shape for t in graph.inputs if t.shape is not None} | dict(inputs or {})
    symbols = {
        name: [dim if isinstance(dim, str) or (isinstance(dim, int) and dim > 0) else None for dim in dims]
        for name, dims in given.items()
    }
    model = skeleton(graph, symbols)
    for info in model.graph.output:
        info.type.tensor_type.ClearField("shape")
    _with_same_shapes(model)
    try:
        inferred = onnx.shape_inference.infer_shapes(model, check_type=False, strict_mode=False, data_prop=True).graph
    except onnx.shape_inference.InferenceError:
        return {}
    shapes: dict[str, OpenShape] = {}
    for info in (*inferred.value_info, *inferred.output, *inferred.input):
        kind = info.type.tensor_type
        if kind.HasField("shape"):
            shapes[info.name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim)
    return shapes


def _inferred(model: onnx.ModelProto, *, strict: bool) -> dict[str, Shape]:
    found = ((info.name, _fixed(info)) for info in _infos(model, strict=strict))
    return {name: shape for name, shape in found if shape is not None}


def _infos(model: onnx.ModelProto, *, strict: bool) -> list[onnx.ValueInfoProto]:
    inferred = onnx.shape_inference.infer_shapes(model, check_type=False, strict_mode=strict, data_prop=True).graph
    return [*inferred.value_info, *inferred.output, *inferred.input]


def _fixed(info: onnx.ValueInfoProto) -> Shape | None:
    """The shape that is known of a tensor in every axis."""
    kind = info.type.tensor_type
    if not kind.HasField("shape") or not all(dim.HasField("dim_value") for dim in kind.shape.dim):
        return None
    return tuple(dim.dim_value for dim in kind.shape.dim)


def _fold_shape_inputs(graph: gs.Graph, model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> bool:
    """Give shape inference the values that its own data propagation missed; False where there were none."""
    constants = Constants(graph, shapes)
    known = {tensor.name for tensor in model.graph.initializer}
    progress = False
    for node, proto in zip(graph.nodes, model.graph.node, strict=True):
        for index, value in _missed(node, proto, constants, shapes):
            folded = f"{node.inputs[index].name}/folded"
            if folded not in known:
                model.graph.initializer.append(onnx.numpy_helper.from_array(value, folded))
                known.add(folded)
            proto.input[index] = folded
            progress = True
    return progress


def _missed(
    node: gs.Node, proto: onnx.NodeProto, constants: Constants, shapes: Mapping[str, Shape]
) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
    """Operands of a node without shapes that fold, by index; a large one of known shape has nothing to tell."""
    if all(output.name in shapes for output in node.outputs if output.name):
        return
    for index, tensor in enumerate(node.inputs):
        if not index or not tensor.name or tensor.name != proto.input[index] or isinstance(tensor, gs.Constant):
            continue
        value = constants.value(tensor) if math.prod(shapes.get(tensor.name, ())) <= SMALL else None
        if value is not None:
            yield index, value


def _one_by_one(graph: gs.Graph, model: onnx.ModelProto, shapes: dict[str, Shape], *, strict: bool) -> None:
    """Go on node by node: a long chain of shapes, each computed from the one before, would take a round for each."""
    constants, infos = Constants(graph, shapes), {info.name: info for info in _infos(model, strict=strict)}
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node, proto in zip(graph.nodes, model.graph.node, strict=True):
        if all(output.name in shapes for output in node.outputs if output.name):
            continue
        single, values = onnx.NodeProto(), dict(_missed(node, proto, constants, shapes))
        single.CopyFrom(proto)
        for index in values:
            single.input[index] = f"{node.inputs[index].name}/folded"
        folded = [onnx.numpy_helper.from_array(value, single.input[index]) for index, value in values.items()]
        inputs = [infos[name] for name in dict.fromkeys(single.input) if name in infos and name not in stored]
        initializers = folded + [stored[name] for name in dict.fromkeys(single.input) if name in stored]
        outputs = [onnx.ValueInfoProto(name=name) for name in single.output if name]
        alone = onnx.helper.make_graph([single], "one", inputs, outputs, initializer=initializers)
        one = onnx.helper.make_model(alone, opset_imports=model.opset_import, ir_version=8)
        for info in _infos(one, strict=strict):
            shape = _fixed(info)
            if shape is not None and info.name not in shapes and info.name in proto.output:
                infos[info.name], shapes[info.name] = info, shape
                constants.learn(info.name, shape)
