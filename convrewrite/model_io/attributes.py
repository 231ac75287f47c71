"""Attributes of convolutions that no runtime can run, and that neither the ONNX checker nor shape inference finds.

    group          at least 1, and a divisor of the weight's first extent
    kernel_shape   the extents of the weight behind its first two; of a pool, no more than a map can have
    auto_pad       one of four words

A group of 0 is divided by in more than one place: ONNX Runtime itself dies of it (ConvTranspose, by SIGFPE), so this is
looked at before anything else is. Extents, lengths and signs of the other attributes are found by shape inference.
Source: the ONNX operator pages of Conv, ConvTranspose, ConvInteger, QLinearConv, DeformConv and the pools.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import AttributeProto, GraphProto, NodeProto

from convrewrite.engine.operators import OPERATORS, chosen
from convrewrite.text import by, counted

CONVOLUTIONS = {
    name: OPERATORS[name].weight or 0
    for name in chosen("convolution integer-convolution transposed-convolution DeformConv")
}
"""Operators with a kernel, and which input it is."""

PADDED = chosen("convolution integer-convolution transposed-convolution pool")
LARGEST = 2**31
"""Cells along one axis of a kernel; ONNX Runtime's arithmetic wraps around beyond it."""

AUTO_PADS = frozenset((b"NOTSET", b"SAME_UPPER", b"SAME_LOWER", b"VALID"))

Extents = Mapping[str, Sequence[int]]


def impossible_attribute(graph: GraphProto, outer: Extents | None = None) -> str:
    """What no runtime can run, in words that name the node; empty where there is nothing.

    Args:
        graph: of the file, its subgraphs included. outer: extents of the initializers of the graphs around it.
    """
    weights = {**(outer or {}), **{tensor.name: tensor.dims for tensor in graph.initializer}}
    for node in graph.node:
        if node.domain in ("", "ai.onnx"):
            fault = _fault(node, weights)
            if fault:
                return f"{node.op_type} '{node.name or next(iter(node.output), '')}' {fault}"
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                fault = impossible_attribute(inner, weights)
                if fault:
                    return fault
    return ""


def _fault(node: NodeProto, weights: Extents) -> str:
    attributes = {attribute.name: attribute for attribute in node.attribute}
    auto_pad = attributes.get("auto_pad")
    if node.op_type in PADDED and auto_pad is not None and auto_pad.s not in AUTO_PADS:
        return f"has auto_pad {auto_pad.s.decode(errors='replace')[:40]!r}, which is no way to pad"
    kernel = list(attributes.get("kernel_shape", AttributeProto()).ints)
    if node.op_type in PADDED and max(kernel, default=0) >= LARGEST:
        return f"has kernel_shape {kernel}, more cells than a map can have"
    if node.op_type not in CONVOLUTIONS:
        return ""
    group = attributes["group"].i if "group" in attributes else 1
    if group < 1:
        return f"has group {group}: a convolution has one group or more"
    place = CONVOLUTIONS[node.op_type]
    weight = weights.get(node.input[place]) if len(node.input) > place else None
    if weight is None or len(weight) < 3:
        return ""
    if weight[0] % group:
        return f"has {counted(group, 'group')}, which do not divide the first extent of its weight {by(weight)}"
    if kernel and kernel != list(weight[2:]):
        return f"has kernel_shape {kernel}, and a weight of {by(weight)}"
    return ""
