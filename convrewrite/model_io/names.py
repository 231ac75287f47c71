"""Text of a model that is not UTF-8: protobuf hands out bytes there, and ONNX Runtime cannot say its names.

Names are what everything else refers to, so a model with others is not valid. What only people read (metadata, doc
strings, the producer) may be anything; it is passed on as the bytes that it is.
"""

from __future__ import annotations

from collections.abc import Iterator

from onnx import GraphProto, ModelProto, NodeProto, StringStringEntryProto, TensorProto, TypeProto, ValueInfoProto


def is_text(entry: StringStringEntryProto) -> bool:
    """Whether key and value of an entry can be read."""
    fields: list[object] = [entry.key, entry.value]
    return all(isinstance(text, str) for text in fields)


def unreadable_text(model: ModelProto) -> str:
    """Which name of a model is not UTF-8, in words; empty where each is."""
    for what, text in _names(model):
        if not isinstance(text, str):
            return what
    return ""


def _names(model: ModelProto) -> Iterator[tuple[str, object]]:
    for opset in model.opset_import:
        yield "the domain of an opset", opset.domain
    yield from _of_graph(model.graph)
    for function in model.functions:
        for name in (function.name, function.domain, *function.input, *function.output, *function.attribute):
            yield "a name in a function", name
        for node in function.node:
            yield from _of_node(node)


def _of_graph(graph: GraphProto) -> Iterator[tuple[str, object]]:
    yield "the name of the graph", graph.name
    for info in (*graph.input, *graph.output, *graph.value_info):
        yield from _of_info(info)
    for tensor in graph.initializer:
        yield from _of_tensor(tensor)
    for sparse in graph.sparse_initializer:
        yield from _of_tensor(sparse.values)
    for annotation in graph.quantization_annotation:
        yield "the name of a quantized tensor", annotation.tensor_name
        for entry in annotation.quant_parameter_tensor_names:
            yield "a quantization parameter", entry.key
            yield "a quantization parameter", entry.value
    for node in graph.node:
        yield from _of_node(node)


def _of_node(node: NodeProto) -> Iterator[tuple[str, object]]:
    yield "the name of a node", node.name
    yield f"the operator of node '{node.name}'", node.op_type
    yield f"the domain of node '{node.name}'", node.domain
    for name in (*node.input, *node.output):
        yield f"an input or output of {node.op_type} '{node.name}'", name
    for attribute in node.attribute:
        yield f"the name of an attribute of {node.op_type} '{node.name}'", attribute.name
        if attribute.HasField("t"):
            yield from _of_tensor(attribute.t)
        for graph in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
            yield from _of_graph(graph)


def _of_info(info: ValueInfoProto) -> Iterator[tuple[str, object]]:
    yield "the name of a tensor", info.name
    yield from ((f"a dimension of tensor '{info.name}'", text) for text in _dimensions(info.type))


def _dimensions(kind: TypeProto) -> Iterator[object]:
    which = kind.WhichOneof("value")
    if which in ("tensor_type", "sparse_tensor_type"):
        yield from (dim.dim_param for dim in getattr(kind, which).shape.dim)
    elif which in ("sequence_type", "optional_type"):
        yield from _dimensions(getattr(kind, which).elem_type)
    elif which == "map_type":
        yield from _dimensions(kind.map_type.value_type)


def _of_tensor(tensor: TensorProto) -> Iterator[tuple[str, object]]:
    yield "the name of a weight", tensor.name
    for entry in tensor.external_data:
        yield f"the place of the data of weight '{tensor.name}'", entry.key
        yield f"the place of the data of weight '{tensor.name}'", entry.value
