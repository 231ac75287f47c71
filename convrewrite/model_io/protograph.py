"""Between the graph of an ONNX file and a graphsurgeon graph, without loss.

graphsurgeon's own importer and exporter drop what they do not know: quantization annotations, metadata and doc
strings of nodes, attributes of rarer types, types that are no tensors, initializers listed as inputs; captured weights
are copied into every subgraph. Here the proto that was read (the *origin*) is kept, and what a pass left alone is
written back from it. Unused initializers are the exception: they are dropped, which is how a replaced weight goes.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, TypeProto, ValueInfoProto
from onnx_graphsurgeon.importers.onnx_importer import OnnxImporter, get_numpy_type, get_onnx_tensor_shape
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues
from onnx_graphsurgeon.logger import G_LOGGER

from convrewrite.engine.skeletons import described, elem_type, is_tensor
from convrewrite.model_io.protofile import LARGE, Memory, Payload, located, mark, marked
from convrewrite.model_io.stored import StoredSparse, StoredValues, is_packed

# graphsurgeon prints its log to standard output, which may carry a model.
G_LOGGER.severity = G_LOGGER.CRITICAL + 1


def tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """The tensors that graphsurgeon turns into constants: initializers and attributes, subgraphs included."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            if attribute.HasField("g"):
                yield from tensors(attribute.g)


def sort_nodes(graph: GraphProto) -> None:
    """Put each node behind those it reads from, and else leave the order as it is.

    Raises:
        ValueError: where nodes wait for one another.
    """
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                sort_nodes(attribute.g)
    maker = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    waits_for = [
        {maker[name] for name in _names_read(node) if name in maker} - {index} for index, node in enumerate(graph.node)
    ]
    if all(not needed or max(needed) < index for index, needed in enumerate(waits_for)):
        return
    readers: dict[int, list[int]] = {}
    for index, needed in enumerate(waits_for):
        for other in needed:
            readers.setdefault(other, []).append(index)
    missing = [len(needed) for needed in waits_for]
    ready = [index for index, count in enumerate(missing) if not count]
    order = []
    while ready:
        order.append(heapq.heappop(ready))
        for reader in readers.get(order[-1], []):
            missing[reader] -= 1
            if not missing[reader]:
                heapq.heappush(ready, reader)
    if len(order) < len(graph.node):
        stuck = next(node for index, node in enumerate(graph.node) if missing[index])
        raise ValueError(f"{stuck.op_type} node '{stuck.name}' is part of a cycle")
    nodes = [NodeProto.FromString(graph.node[index].SerializeToString()) for index in order]
    del graph.node[:]
    graph.node.extend(nodes)


def _names_read(node: NodeProto) -> set[str]:
    """Names of what a node reads, its subgraphs included."""
    names = set(node.input)
    for attribute in node.attribute:
        for graph in [attribute.g, *attribute.graphs] if attribute.HasField("g") else attribute.graphs:
            names.update(output.name for output in graph.output)
            for inner in graph.node:
                names |= _names_read(inner)
    return names


def import_graph(model: onnx.ModelProto, stored: Sequence[Payload]) -> gs.Graph:
    """The graphsurgeon graph of a skeleton; functions that are left stay outside, where no pass rewrites them."""
    graph_proto = GraphProto()
    graph_proto.CopyFrom(model.graph)
    _strip_attributes(graph_proto)
    _strip_doc_strings(graph_proto)
    graph = OnnxImporter.import_graph(
        graph_proto,
        opset=OnnxImporter.get_opset(model),
        import_domains=list(model.opset_import),
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        ir_version=model.ir_version,
    )
    _complete(graph, model.graph)
    for constant in _constants(graph):
        values = constant._values
        if isinstance(values, SparseValues):
            constant.values = StoredSparse(values.tensor)
        elif type(values) is LazyValues:
            index = marked(values.tensor.raw_data)
            constant.values = StoredValues(values.tensor, None if index is None else stored[index])
        constant.data_location = None
    return graph


def _constants(graph: gs.Graph) -> Iterator[gs.Constant]:
    for tensor in [*graph.tensors().values(), *(v for node in graph.nodes for v in node.attrs.values())]:
        if isinstance(tensor, gs.Constant):
            yield tensor
    for subgraph in graph.subgraphs():
        yield from _constants(subgraph)


def _strip_attributes(graph: GraphProto) -> None:
    """Take away the attributes that graphsurgeon cannot read; `_complete` puts them back."""
    for node in graph.node:
        kept = [attribute for attribute in node.attribute if _is_importable(attribute)]
        if len(kept) < len(node.attribute):
            copies = [AttributeProto.FromString(attribute.SerializeToString()) for attribute in kept]
            del node.attribute[:]
            node.attribute.extend(copies)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _strip_attributes(attribute.g)


def _complete(graph: gs.Graph, proto: GraphProto) -> None:
    """Put what graphsurgeon lost or mistook on the graph: attributes of rarer types, types, unknown dimensions.

    Inputs and outputs are what they are declared as: an entry of `value_info` beside them may be stale, as after a
    conversion to float16 that keeps the ends in float32.
    """
    for node, origin in zip(graph.nodes, proto.node, strict=True):
        for attribute in origin.attribute:
            if not _is_importable(attribute):
                held = attribute
                if attribute.type == AttributeProto.SPARSE_TENSOR:
                    held = gs.Constant(origin.output[0], StoredSparse(attribute.sparse_tensor))
                node.attrs[attribute.name] = held
            elif attribute.type == AttributeProto.GRAPH:
                _complete(node.attrs[attribute.name], attribute.g)
    tensors_by_name = {tensor.name: tensor for tensor in (*graph.inputs, *graph.outputs)} | graph.tensors()
    for info in (*proto.value_info, *proto.input, *proto.output):
        tensor = tensors_by_name.get(info.name)
        if isinstance(tensor, gs.Variable):
            dtype, shape = _dtype_of(info), _shape_of(info)
            tensor.dtype = tensor.dtype if dtype is None else dtype
            tensor.shape = tensor.shape if shape is None else shape


def _dtype_of(info: ValueInfoProto) -> Any:
    """The type of a tensor, the whole `TypeProto` of another value; None where the file tells none."""
    kind = info.type.WhichOneof("value")
    if kind is None:
        return None
    if kind != "tensor_type":
        return TypeProto.FromString(info.type.SerializeToString())
    code = info.type.tensor_type.elem_type
    known = get_numpy_type(code)
    return (known if known is not None else code) if code else None


def _shape_of(info: ValueInfoProto) -> list[int | str | None] | None:
    """The shape of a tensor: a dimension that is -1 or has an empty name is as unknown as one that is not there."""
    shape = get_onnx_tensor_shape(info) if info.type.HasField("tensor_type") else None
    if shape is None:
        return None
    return [None if dim == "" or (isinstance(dim, int) and dim < 0) else dim for dim in shape]


def _strip_doc_strings(graph: GraphProto) -> None:
    """Take away doc strings of graphs, which `export_graph` keeps: where they are not UTF-8 nothing can hold them."""
    graph.ClearField("doc_string")
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _strip_doc_strings(attribute.g)


def _is_importable(attribute: AttributeProto) -> bool:
    known = ("FLOAT", "INT", "STRING", "TENSOR", "GRAPH", "FLOATS", "INTS", "STRINGS")
    if attribute.type not in {AttributeProto.AttributeType.Value(name) for name in known}:
        return False
    try:
        for text in [attribute.s, *attribute.strings]:
            text.decode()
    except UnicodeDecodeError:
        return False
    return True


def export_graph(
    graph: gs.Graph, origin: GraphProto, stored: Sequence[Payload], *, all_are_inputs: bool
) -> tuple[GraphProto, list[Payload]]:
    """The proto of a graph with marks in place of large tensors, and the payloads that they stand for.

    Args:
        graph: the graph; it is not changed, and no weight is read.
        origin: the proto that it was imported from, or an empty one.
        stored: what the marks in `origin` stand for.
        all_are_inputs: whether every initializer must be a graph input as well (IR versions below 4).
    """
    exporter = _Exporter(stored)
    return exporter.graph(graph, origin, frozenset(), all_are_inputs=all_are_inputs), exporter.payloads


class _Exporter:
    """Collects the payloads of one export."""

    def __init__(self, stored: Sequence[Payload]) -> None:
        self._stored = stored
        self.payloads: list[Payload] = []

    def graph(
        self, graph: gs.Graph, origin: GraphProto, outer: frozenset[str], *, all_are_inputs: bool = False
    ) -> GraphProto:
        """A graph or subgraph; `outer` are the initializers of the graphs around it."""
        proto = GraphProto()
        proto.CopyFrom(origin)
        for field in ("node", "initializer", "sparse_initializer", "input", "output", "value_info"):
            proto.ClearField(field)
        proto.name = graph.name or "graph"  # the checker refuses the empty name that real files have
        if graph.doc_string:
            proto.doc_string = graph.doc_string

        held = graph.tensors()
        constants = {name: held[name] for name in held if isinstance(held[name], gs.Constant) and name not in outer}
        first = {tensor.name: index for index, tensor in enumerate(origin.initializer)}
        for subgraph in graph.subgraphs(recursive=True):
            for name, tensor in subgraph.tensors().items():
                if isinstance(tensor, gs.Constant) and name in first and name not in outer:
                    constants.setdefault(name, tensor)
        names = sorted(constants, key=lambda name: first.get(name, len(first)))
        for name in names:
            if isinstance(constants[name]._values, SparseValues):
                sparse = proto.sparse_initializer.add()
                sparse.CopyFrom(constants[name]._values.tensor)
                sparse.values.name = name
            else:
                proto.initializer.append(self.tensor(constants[name]))
        self._keep_annotations(proto, origin, held.keys() | constants.keys())

        makers = {name: node for node in origin.node for name in node.output if name}
        around = outer | constants.keys()
        for node in graph.nodes:
            proto.node.append(self.node(node, makers, around))

        listed = {info.name: index for index, info in enumerate(origin.input)}
        infos = {info.name: info for info in [*origin.value_info, *origin.output, *origin.input]}
        inputs = list(graph.inputs)
        inputs += [constants[name] for name in names if name in listed or all_are_inputs]
        inputs.sort(key=lambda tensor: listed.get(tensor.name, len(listed)))
        proto.input.extend(value_info(tensor, infos) for tensor in inputs)
        proto.output.extend(value_info(tensor, infos) for tensor in graph.outputs)
        ends = {tensor.name for tensor in [*inputs, *graph.outputs]}
        made = {tensor.name: tensor for node in graph.nodes for tensor in node.outputs if tensor.name}
        for name, tensor in made.items():
            if name not in ends and tensor.dtype is not None:
                proto.value_info.append(value_info(tensor, infos))
        return proto

    def tensor(self, constant: gs.Constant) -> TensorProto:
        """A constant tensor; a mark stands for its data where that is large."""
        values = constant._values
        if isinstance(values, LazyValues):
            proto: TensorProto = values.tensor
            payload = getattr(values, "payload", None)
        else:
            array = np.asarray(values)
            if constant.export_dtype != array.dtype:
                array = array.astype(onnx.helper.tensor_dtype_to_np_dtype(elem_type(constant.export_dtype)))
            code = elem_type(array.dtype)
            if is_packed(code):
                proto, payload = onnx.numpy_helper.from_array(array), None
            else:
                proto = TensorProto(data_type=code, dims=array.shape)
                payload = located(array) or Payload(Memory(array), 0, array.nbytes)
        if payload is not None:
            proto.raw_data = self._mark(payload) if len(payload) >= LARGE else bytes(payload.view)
        if constant.name or proto.name:
            proto.name = constant.name
        return proto

    def node(self, node: gs.Node, makers: Mapping[str, NodeProto], outer: frozenset[str]) -> NodeProto:
        """A node; where it stands in the origin too, with all that graphsurgeon does not keep."""
        outputs = [tensor.name for tensor in node.outputs]
        origin = next((makers[name] for name in outputs if name in makers), NodeProto())
        if (origin.op_type, origin.domain, list(origin.output)) != (node.op, node.domain or "", outputs):
            origin = NodeProto()
        proto = NodeProto()
        proto.CopyFrom(origin)
        for field in ("input", "output", "attribute"):
            proto.ClearField(field)
        proto.op_type = node.op
        if node.name or origin.name:
            proto.name = node.name
        if node.domain is not None:
            proto.domain = node.domain
        proto.input.extend(tensor.name for tensor in node.inputs)
        proto.output.extend(outputs)
        former = {attribute.name: attribute for attribute in origin.attribute}
        for key, value in node.attrs.items():
            proto.attribute.append(self.attribute(key, value, former.get(key, AttributeProto()), outer))
        return proto

    def attribute(self, key: str, value: Any, origin: AttributeProto, outer: frozenset[str]) -> AttributeProto:
        """One attribute of a node as a protobuf message."""
        if isinstance(value, AttributeProto):
            return value
        if isinstance(value, gs.Tensor):
            sparse = isinstance(value._values, SparseValues)
            value = value._values.tensor if sparse else self.tensor(value)
        elif isinstance(value, gs.Graph):
            value = self.graph(value, origin.g, outer)
        elif isinstance(value, type):
            value = elem_type(value)
        kind = None
        if isinstance(value, (list, tuple)) and not len(value):
            kind = origin.type or AttributeProto.INTS  # an empty list does not tell its type
        proto = onnx.helper.make_attribute(key, value, attr_type=kind)
        if origin.doc_string:
            proto.doc_string = origin.doc_string
        return proto

    def _keep_annotations(self, proto: GraphProto, origin: GraphProto, names: set[str]) -> None:
        """Drop the quantization annotations of tensors that are gone; keep the initializers that the others name."""
        kept = [annotation for annotation in origin.quantization_annotation if annotation.tensor_name in names]
        named = {entry.value for annotation in kept for entry in annotation.quant_parameter_tensor_names}
        if origin.quantization_annotation:
            del proto.quantization_annotation[:]
            proto.quantization_annotation.extend(kept)
        for tensor in origin.initializer:
            if tensor.name in named - names:
                added = proto.initializer.add()
                added.CopyFrom(tensor)
                self._mark_anew(added)

    def _mark_anew(self, tensor: TensorProto) -> None:
        """Give a tensor that was copied from the origin the mark that it has in this export."""
        index = marked(tensor.raw_data)
        if index is not None:
            tensor.raw_data = self._mark(self._stored[index])

    def _mark(self, payload: Payload) -> bytes:
        self.payloads.append(payload)
        return mark(len(self.payloads) - 1)


def value_info(tensor: gs.Tensor, infos: Mapping[str, ValueInfoProto]) -> ValueInfoProto:
    """Name, type and shape of a value: as in the origin where a pass did not change them, or cannot have."""
    shape = None if tensor.shape is None else list(tensor.shape)
    if tensor.name in infos:
        former = infos[tensor.name]
        if not former.type.HasField("tensor_type"):
            return former
        if tensor.dtype is None or (_same_type(tensor, former) and _shape_of(former) == shape):
            return former
    return described(tensor, shape)


def _same_type(tensor: gs.Tensor, info: ValueInfoProto) -> bool:
    return is_tensor(tensor) and elem_type(tensor.dtype) == info.type.tensor_type.elem_type
