"""Multiply-accumulates and parameters of layers, counted from static shapes.

A MAC is one multiplication with its addition: a Conv of weight [O, I/g, *kernel] has O * I/g * prod(kernel) of them per
output cell and sample, a Gemm M * N * K, a MatMul the product of its broadcast output shape and the contracted
extent. Pools, activations and normalisations count nothing, as in the literature.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx_graphsurgeon as gs

Shape = tuple[int, ...]


def macs(node: gs.Node, shapes: Mapping[str, Shape]) -> int:
    """MACs of one node; 0 for operators without multiplications by weights, or where a shape is unknown."""

    def shape(tensors: list[gs.Tensor], index: int) -> Shape | None:
        if index >= len(tensors):
            return None
        known = shapes.get(tensors[index].name)
        return known if known is not None else _static(tensors[index])

    output = shape(node.outputs, 0)
    data, weight = shape(node.inputs, 0), shape(node.inputs, 1)
    if output is None or data is None or weight is None:
        return 0
    if node.op in ("Conv", "ConvInteger"):
        return math.prod(output) * math.prod(weight[1:])
    if node.op == "ConvTranspose":
        return math.prod(data) * math.prod(weight[1:])
    if node.op == "Gemm":
        return math.prod(output) * (data[0] if node.attrs.get("transA", 0) else data[1])
    if node.op in ("MatMul", "MatMulInteger") and data:
        return math.prod(output) * data[-1]
    return 0


def _static(tensor: gs.Tensor) -> Shape | None:
    shape = tensor.shape
    return tuple(shape) if shape is not None and all(isinstance(dim, int) for dim in shape) else None


def graph_macs(graph: gs.Graph, shapes: Mapping[str, Shape]) -> int:
    """MACs of all nodes of a graph at the given shapes."""
    return sum(macs(node, shapes) for node in graph.nodes)


def parameters(graph: gs.Graph) -> int:
    """Entries of all floating-point constants that some node or output uses."""
    used: dict[str, gs.Constant] = {}
    for node in graph.nodes:
        for tensor in node.inputs:
            if isinstance(tensor, gs.Constant):
                used[tensor.name] = tensor
        value = node.attrs.get("value")
        if node.op == "Constant" and isinstance(value, gs.Constant):
            used[node.outputs[0].name] = value
    return sum(math.prod(c.shape) for c in used.values() if str(c.dtype).startswith(("float", "bfloat")))
