"""Extents that contradict each other, which shape inference lets pass and ONNX Runtime finds only when it runs.

Conv, ConvTranspose    channels of the data against weight and groups; entries of the bias
BatchNormalization     entries of scale, bias, mean and variance against the channels
Gemm                   the bias against the columns of the product
inputs                 more bytes than any machine has
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from onnx import GraphProto, NodeProto

from convrewrite.engine.operators import OPERATORS
from convrewrite.model_io.attributes import CONVOLUTIONS
from convrewrite.text import counted

LARGEST = 1 << 47
"""Entries of an input: what no address space holds."""

Known = Mapping[str, Sequence[int | None]]


def contradiction(graph: GraphProto) -> str:
    """Which node or input of a graph contradicts itself; empty where none does.

    Args:
        graph: with the shapes that inference found.
    """
    constants = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    shapes: dict[str, Sequence[int | None]] = {}
    for info in (*graph.input, *graph.value_info):
        if info.type.tensor_type.HasField("shape"):
            dims = info.type.tensor_type.shape.dim
            shapes[info.name] = [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]
    for info in graph.input:
        known = [extent for extent in shapes.get(info.name, ()) if extent is not None and extent > 0]
        if info.name not in constants and math.prod(known) >= LARGEST:
            return f"input '{info.name}' has {math.prod(known):.1e} entries, more than any machine holds"
    shapes |= constants
    for node in graph.node:
        fault = _fault(node, shapes) if node.domain in ("", "ai.onnx") else ""
        if fault:
            return f"{node.op_type} '{node.name or next(iter(node.output), '')}' {fault}"
    return ""


def _fault(node: NodeProto, shapes: Known) -> str:
    if node.op_type in CONVOLUTIONS:
        return _convolution(node, shapes)
    if node.op_type == "BatchNormalization":
        data = _shape(node, 0, shapes)
        channels = None if data is None else data[1] if len(data) > 1 else 1
        vectors = [_shape(node, place, shapes) for place in range(1, 5)]
        known = [vector[0] for vector in vectors if vector is not None and len(vector) == 1 and vector[0] is not None]
        known += [channels] if channels else []
        return f"has {' and '.join(map(str, sorted(set(known))))} channels at once" if len(set(known)) > 1 else ""
    if node.op_type == "Gemm":
        return _gemm(node, shapes)
    return ""


def _convolution(node: NodeProto, shapes: Known) -> str:
    place = CONVOLUTIONS[node.op_type]
    data, weight = _shape(node, 0, shapes), _shape(node, place, shapes)
    if weight is None or len(weight) < 3 or weight[0] is None or weight[1] is None:
        return ""
    group = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
    if group < 1 or weight[0] % group:
        return f"has {counted(group, 'group')}, which do not divide the first extent of its weight {list(weight)}"
    transposed = node.op_type == "ConvTranspose"
    taken, given = (weight[0], weight[1] * group) if transposed else (weight[1] * group, weight[0])
    if data is not None and len(data) > 2 and data[1] is not None and data[1] > 0 and data[1] != taken:
        return f"takes {counted(taken, 'channel')}, and reads {data[1]}"
    bias = _shape(node, OPERATORS[node.op_type].bias or len(node.input), shapes)
    if bias is not None and list(bias) != [given] and None not in bias:
        return f"has a bias of shape {list(bias)} for {counted(given, 'channel')}"
    return ""


def _gemm(node: NodeProto, shapes: Known) -> str:
    matrix, bias = _shape(node, 1, shapes), _shape(node, 2, shapes)
    if matrix is None or bias is None or len(matrix) != 2 or not bias:
        return ""
    turned = next((attribute.i for attribute in node.attribute if attribute.name == "transB"), 0)
    columns = matrix[0 if turned else 1]
    if columns is not None and bias[-1] not in (None, 1, columns):
        return f"has a bias of shape {list(bias)} for {counted(columns, 'column')}"
    return ""


def _shape(node: NodeProto, place: int, shapes: Known) -> Sequence[int | None] | None:
    return shapes.get(node.input[place]) if len(node.input) > place and node.input[place] else None
