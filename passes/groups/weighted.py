"""Convolutions and matrices end a space of channels: with the rows of the one that makes them, and columns of readers.

A depthwise convolution hands the order on; the groups of another one are a seam.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_graphsurgeon as gs

from convrewrite.engine.layers import LinearLayer
from convrewrite.passes.groups.spaces import Made, Range, Read, Search


def _conv_made(s: Search, node: gs.Node, own: Range) -> None:
    if not constant(s, node, 1, 2):
        return
    shape = s.net.shape(node.inputs[1])
    group = int(node.attrs.get("group", 1))
    assert shape is not None, "the weight is constant"
    rows, per = int(shape[0] or 0), int(shape[1] or 0)
    _rows(s, node, 0, own)
    if group == 1:
        return
    multiplier = rows // group
    data = own.scaled(rows, group) if per == 1 else None
    if data is not None:
        s.add(node.inputs[0].name, data)
        if multiplier > 1:
            s.keep(s.net.label(node))
    else:
        s.seam(node, True, own, multiplier, others=per)
        s.keep(s.net.label(node))


def _conv_read(s: Search, node: gs.Node, position: int, own: Range) -> None:
    if position or not constant(s, node, 1):
        s.stop("groups/order-fixed", s.net.label(node))
        return
    shape = s.net.shape(node.inputs[1])
    group = int(node.attrs.get("group", 1))
    assert shape is not None, "the weight is constant"
    rows, per = int(shape[0] or 0), int(shape[1] or 0)
    if group == 1:
        s.columns(node, 1, own)
    elif per == 1:
        s.add(node.outputs[0].name, own.scaled(group, rows))
    else:
        s.seam(node, False, own, per, others=rows // group)
        s.columns(node, 1, own, grouped=True)
        s.keep(s.net.label(node))


def _transposed_made(s: Search, node: gs.Node, own: Range) -> None:
    if int(node.attrs.get("group", 1)) > 1:
        s.stop("groups/order-fixed", s.net.label(node))
    elif constant(s, node, 1, 2):
        _rows(s, node, 1, own)


def _transposed_read(s: Search, node: gs.Node, position: int, own: Range) -> None:
    shape = s.net.shape(node.inputs[1])
    group = int(node.attrs.get("group", 1))
    if position or shape is None or not constant(s, node, 1):
        s.stop("groups/order-fixed", s.net.label(node))
        return
    if group > 1:
        s.cut(own, int(shape[0] or 0) // group)
        s.keep(s.net.label(node))
    s.columns(node, 0, own)


def _gemm_made(s: Search, node: gs.Node, own: Range) -> None:
    if not constant(s, node, 1, 2):
        return
    s.edit(node, 1, 0 if LinearLayer.from_node(node, weight=1).rows_are_outputs else 1, own)
    if len(node.inputs) > 2 and node.inputs[2].name:
        shape = s.net.shape(node.inputs[2])
        if shape and shape[-1] != 1:
            s.edit(node, 2, len(shape) - 1, own)


def _gemm_read(s: Search, node: gs.Node, position: int, own: Range) -> None:
    layer = LinearLayer.from_node(node, weight=1)
    if position or layer.axis != -1 or not constant(s, node, 1):
        s.stop("groups/order-fixed", s.net.label(node))
    else:
        s.columns(node, 1 if layer.rows_are_outputs else 0, own)


def _matmul_made(s: Search, node: gs.Node, own: Range) -> None:
    if _flat_matmul(s, node):
        s.edit(node, 1, 1, own)


def _matmul_read(s: Search, node: gs.Node, position: int, own: Range) -> None:
    if position:
        s.stop("groups/order-fixed", s.net.label(node))
    elif _flat_matmul(s, node):
        s.columns(node, 0, own)


def _flat_matmul(s: Search, node: gs.Node) -> bool:
    """Whether a MatMul has vectors on its left and a constant matrix on its right."""
    flat = s.net.rank(node.inputs[0]) == 2 and s.net.is_constant(node.inputs[1]) and s.net.rank(node.inputs[1]) == 2
    if not flat:
        s.stop("groups/order-fixed", s.net.label(node))
    return flat


def _rows(s: Search, node: gs.Node, axis: int, own: Range) -> None:
    s.edit(node, 1, axis, own)
    if len(node.inputs) > 2 and node.inputs[2].name:
        s.edit(node, 2, 0, own)


def constant(s: Search, node: gs.Node, *positions: int) -> bool:
    """Whether these inputs are constant or absent; the space stops where not."""
    for position in positions:
        if position < len(node.inputs) and node.inputs[position].name and not s.net.is_constant(node.inputs[position]):
            s.stop("groups/order-fixed", f"'{node.inputs[position].name}' of {s.net.label(node)} is computed")
            return False
    return True


MADE: Mapping[str, Made] = {
    "Conv": _conv_made,
    "ConvTranspose": _transposed_made,
    "Gemm": _gemm_made,
    "MatMul": _matmul_made,
}
"""Note what makes a range of channels."""

READ: Mapping[str, Read] = {
    "Conv": _conv_read,
    "ConvTranspose": _transposed_read,
    "Gemm": _gemm_read,
    "MatMul": _matmul_read,
}
"""Note what reads a range of channels."""
