"""A graph as a light protobuf, for the ONNX checker and for shape inference: all of it but the data of large constants.

    graph                                              skeleton
    Conv(x, w)            w: 400 MB                    Conv(x, w)                      w is an input of known type
    Constant -> v         value: 400 MB                Identity("v/value") -> v        so is v/value
    If { reads w; holds u: 40 MB }                     If { reads w; reads u }         and u, which moves out

Nothing else may be lost on the way, since what a copy loses is then held against the user's file: values that are no
tensors keep their types, and attributes that graphsurgeon has no class for stay as they are (`AttributeProto` among
`gs.Node.attrs`). The nodes of the main graph and of the skeleton correspond one to one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TypeProto, ValueInfoProto
from onnx_graphsurgeon.ir.tensor import LazyValues

SMALL = 1024
"""Constants of up to this many entries keep their values where a skeleton of the graph is made."""


def values_of(constant: gs.Constant) -> np.ndarray[Any, Any]:
    """The values of a constant, read without keeping them: lazy ones stay lazy, and in the file."""
    values = constant._values
    return np.asarray(values.load() if isinstance(values, LazyValues) else values)


def held_tensor(node: gs.Node) -> gs.Constant | None:
    """What a Constant node holds, dense or sparse; None for other operators and for the short forms of its value."""
    if node.op != "Constant":
        return None
    found = (node.attrs.get(name) for name in ("value", "sparse_value"))
    return next((value for value in found if isinstance(value, gs.Constant)), None)


def is_tensor(tensor: gs.Tensor) -> bool:
    """Whether a value is a tensor, and no sequence, map or optional (these have a `TypeProto` in place of a dtype)."""
    return not isinstance(tensor.dtype, TypeProto)


def elem_type(dtype: Any) -> int:
    """The ONNX code of a NumPy type; graphsurgeon uses the code itself where NumPy lacks the type."""
    return dtype if isinstance(dtype, int) else int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def described(tensor: gs.Tensor, shape: Sequence[int | str | None] | None) -> ValueInfoProto:
    """Name and type of a value, and for a tensor this shape (None: unknown)."""
    if tensor.dtype is None:
        return ValueInfoProto(name=tensor.name)
    if isinstance(tensor.dtype, TypeProto):
        return onnx.helper.make_value_info(tensor.name, tensor.dtype)
    return onnx.helper.make_tensor_value_info(tensor.name, elem_type(tensor.dtype), shape)


def skeleton(graph: gs.Graph, input_shapes: Mapping[str, Sequence[int | str | None]] | None = None) -> ModelProto:
    """The graph without the data of its large constants, which become graph inputs of known type and shape.

    Args:
        graph: the graph; it is not changed.
        input_shapes: shapes that replace those of the named graph inputs; recorded shapes inside are then dropped.
    """
    shapes = dict(input_shapes or {})
    held = graph.tensors()
    inner = (name for sub in graph.subgraphs(recursive=True) for name in sub.tensors())
    writer = _Writer({*held, *inner, *(tensor.name for tensor in (*graph.inputs, *graph.outputs))})
    for name, tensor in held.items():
        if isinstance(tensor, gs.Constant) and name:
            writer.constant(tensor, name)
    nodes = [writer.node(node) for node in graph.nodes]
    inputs = [described(tensor, shapes.get(tensor.name, tensor.shape)) for tensor in graph.inputs]
    given = {info.name: info for info in inputs}  # which may be outputs at once
    recorded = input_shapes is None
    outputs = [
        given.get(tensor.name) or described(tensor, tensor.shape if recorded else None) for tensor in graph.outputs
    ]
    proto = onnx.helper.make_graph(
        nodes, graph.name or "graph", [*inputs, *writer.inputs], outputs, initializer=writer.initializers
    )
    opsets = list(graph.import_domains or [onnx.helper.make_opsetid("", graph.opset)])
    if not any(opset.domain in ("", "ai.onnx") for opset in opsets):
        opsets.append(onnx.helper.make_opsetid("", graph.opset))
    return onnx.helper.make_model(proto, opset_imports=opsets, ir_version=8)


def node_proto(node: gs.Node) -> NodeProto:
    """One node as a protobuf message."""
    given, made = ([tensor.name for tensor in tensors] for tensors in (node.inputs, node.outputs))
    proto = onnx.helper.make_node(node.op, given, made, node.name, domain=node.domain)
    writer = _Writer(set())
    proto.attribute.extend(writer.attribute(name, value) for name, value in node.attrs.items())
    return proto


def tolerant(model: ModelProto) -> ModelProto:
    """The model with what the ONNX checker asks for and ONNX Runtime does not: names of graphs, shapes of outputs."""
    copy = ModelProto()
    copy.CopyFrom(model)
    copy.graph.name = copy.graph.name or "graph"
    for info in copy.graph.output:
        kind = info.type
        while kind.WhichOneof("value") in ("sequence_type", "optional_type"):
            kind = kind.sequence_type.elem_type if kind.HasField("sequence_type") else kind.optional_type.elem_type
        if kind.HasField("tensor_type"):
            kind.tensor_type.shape.SetInParent()
        elif kind.HasField("map_type") and kind.map_type.value_type.HasField("tensor_type"):
            kind.map_type.value_type.tensor_type.shape.SetInParent()
    return copy


class _Writer:
    """Writes nodes; collects the constants of all graphs as inputs and initializers of the outermost one."""

    def __init__(self, taken: set[str]) -> None:
        self.inputs: list[ValueInfoProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._taken = taken
        self._names: dict[tuple[int, str], str] = {}

    def constant(self, constant: gs.Constant, name: str = "") -> str:
        """The name that a constant goes by; of its own where two subgraphs have different ones of one name."""
        key = id(constant._values), constant.name
        if key not in self._names:
            self._names[key] = name or unique_name(constant.name, self._taken)
            if math.prod(constant.shape) <= SMALL:
                self.initializers.append(onnx.numpy_helper.from_array(values_of(constant), self._names[key]))
            else:
                info = onnx.helper.make_tensor_value_info(
                    self._names[key], elem_type(constant.dtype), list(constant.shape)
                )
                self.inputs.append(info)
        return self._names[key]

    def node(self, node: gs.Node) -> NodeProto:
        """A node, with the names that its constants go by."""
        outputs = [tensor.name for tensor in node.outputs]
        held = held_tensor(node)
        if held is not None and (math.prod(held.shape) > SMALL or "sparse_value" in node.attrs):
            given = self.constant(gs.Constant(f"{outputs[0]}/value", held._values))
            return onnx.helper.make_node("Identity", [given], outputs, node.name)
        inputs = [self.constant(t) if isinstance(t, gs.Constant) and t.name else t.name for t in node.inputs]
        proto = onnx.helper.make_node(node.op, inputs, outputs, node.name, domain=node.domain)
        proto.attribute.extend(self.attribute(name, value) for name, value in node.attrs.items())
        return proto

    def attribute(self, name: str, value: Any) -> AttributeProto:
        """One attribute of a node as a protobuf message."""
        if isinstance(value, AttributeProto):
            return value
        if isinstance(value, gs.Graph):
            return onnx.helper.make_attribute(name, self._subgraph(value))
        if isinstance(value, gs.Constant):
            return onnx.helper.make_attribute(name, onnx.numpy_helper.from_array(values_of(value), value.name))
        if isinstance(value, type):
            value = elem_type(value)
        if isinstance(value, list) and not value:  # its type cannot be told: integers, as in all but rare operators
            return AttributeProto(name=name, type=AttributeProto.INTS)
        return onnx.helper.make_attribute(name, value)

    def _subgraph(self, graph: gs.Graph) -> GraphProto:
        nodes = [self.node(node) for node in graph.nodes]
        for tensor in graph.outputs:
            if isinstance(tensor, gs.Constant):
                given = self.constant(tensor)
                nodes.append(onnx.helper.make_node("Identity", [given], [tensor.name]))
        inputs = [described(tensor, tensor.shape) for tensor in graph.inputs]
        outputs = [described(tensor, tensor.shape) for tensor in graph.outputs]
        return onnx.helper.make_graph(nodes, graph.name or "graph", inputs, outputs)


def unique_name(wanted: str, taken: set[str]) -> str:
    """`wanted`, or `wanted` with the first free number behind it; the result is added to `taken`."""
    name, count = wanted, 1
    while name in taken:
        count += 1
        name = f"{wanted}_{count}"
    taken.add(name)
    return name
