"""Channels that are the same number everywhere, whatever the model's input: what a dead output channel becomes.

    conv (row of zeros, bias b) ── Relu ── BatchNormalization ── ...        b,  max(b, 0),  s max(b, 0) + t,  ...

A convolution's output channel whose kernels are all zero is its bias. What treats each value by itself makes another
constant of it, which is computed by the operator's own definition; pools and means of a constant are that constant. A
convolution that reads nothing but constants gives one too, but not where it sees zeros of its padding. Everything else
counts as unknown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite.engine.graph import Constants
from convrewrite.engine.layers import LinearLayer
from convrewrite.engine.operators import OPERATORS, chosen
from convrewrite.passes.groups.detection import Array
from convrewrite.passes.groups.network import Network
from convrewrite.passes.groups.spaces import Space

VALUE_BY_VALUE = chosen("unary broadcast quantizer")
UNMOVED = chosen("MaxPool GlobalMaxPool GlobalAveragePool ReduceMean ReduceMax ReduceMin transpose slice")


@dataclass(frozen=True)
class Steady:
    """For each channel of a tensor, whether it is constant and which number it is (0 where it is not)."""

    known: Array
    values: Array


def steady_channels(net: Network, space: Space) -> dict[str, Steady]:
    """What is known of the channels of the tensors of a space."""
    found: dict[str, Steady] = {}
    for node in net.graph.nodes:
        name = net.anchor(node)
        if name in space.members:
            made = _of(net, node, found)
            if made is not None and made.known.any():
                found[name] = made
    return found


def sees_zeros(node: gs.Node, kernel: tuple[int, ...]) -> bool:
    """Whether a convolution may read cells of its padding."""
    auto_pad = node.attrs.get("auto_pad") or "NOTSET"
    if auto_pad == "VALID":
        return False
    if auto_pad != "NOTSET":
        return any(extent > 1 for extent in kernel)
    return any(node.attrs.get("pads") or ())


def _of(net: Network, node: gs.Node, found: dict[str, Steady]) -> Steady | None:
    first = found.get(node.inputs[0].name) if node.inputs else None
    if node.op == "Conv":
        return _convolution(net, node, first)
    if node.op in ("Gemm", "MatMul"):
        return _matrix(net, node)
    if node.op in VALUE_BY_VALUE:
        return _evaluated(net, node, found)
    if node.op == "BatchNormalization":
        return _normalized(net, node, first)
    if node.op in UNMOVED:
        return first
    if node.op == "AveragePool":
        counted = node.attrs.get("count_include_pad", 0) and sees_zeros(node, tuple(node.attrs["kernel_shape"]))
        return None if counted else first
    if node.op == "Concat":
        return _joined(net, node, found)
    if OPERATORS[node.op].kind == "reshape" and first is not None:
        before, after = len(first.known), net.channels(node.outputs[0])
        if after and after % before == 0:
            return Steady(np.repeat(first.known, after // before), np.repeat(first.values, after // before))
    return None


def _convolution(net: Network, node: gs.Node, data: Steady | None) -> Steady | None:
    weight, bias = _operand(net, node, 1), _operand(net, node, 2)
    if weight is None or (bias is None and _given(node, 2)):
        return None
    kernels = weight.reshape(*weight.shape[:2], -1)
    offset = np.zeros(len(kernels), weight.dtype) if bias is None else bias
    known = np.asarray(~kernels.any((1, 2)))
    values = np.where(known, offset, 0).astype(weight.dtype)
    group = int(node.attrs.get("group", 1))
    if data is None or (group > 1 and weight.shape[1] > 1) or len(data.known) != weight.shape[1] * group:
        return Steady(known, values)
    # Each row reads all channels, or the one of its group; it is constant if those of them that it uses are.
    own = np.arange(group).repeat(len(kernels) // group)
    given, numbers = (of[None] if group == 1 else of[own, None] for of in (data.known, data.values))
    fixed = given & ((numbers == 0) | (not sees_zeros(node, weight.shape[2:])))
    steady = np.asarray(~(kernels.any(2) & ~fixed).any(1))
    response = (kernels.sum(2, dtype=np.float64) * numbers).sum(1) + offset
    return Steady(known | steady, np.where(steady, response, values).astype(weight.dtype))


def _matrix(net: Network, node: gs.Node) -> Steady | None:
    weight, bias = _operand(net, node, 1), _operand(net, node, 2)
    if weight is None or weight.ndim != 2 or (bias is None and _given(node, 2)):
        return None
    layer = LinearLayer.from_node(node, weight=1, stored=weight.shape)
    rows = weight if layer.rows_are_outputs else weight.T
    known = np.asarray(~rows.any(1))
    offset = np.zeros((), weight.dtype) if bias is None else bias * np.asarray(layer.beta, bias.dtype)
    if offset.size not in (1, len(rows)):
        return None
    return Steady(known, np.where(known, offset.ravel(), 0).astype(weight.dtype))


def _evaluated(net: Network, node: gs.Node, found: dict[str, Steady]) -> Steady | None:
    """What the operator gives for one cell in which every channel has its number."""
    rank, count = net.rank(node.outputs[0]), net.channels(node.outputs[0])
    if rank is None or count is None:
        return None
    known = np.ones(count, bool)
    operands: list[gs.Tensor] = []
    for tensor in node.inputs:
        value = net.value(tensor)
        if not tensor.name:
            operands.append(tensor)
        elif value is not None:
            operands.append(gs.Constant(f"operand.{len(operands)}", np.asarray(value)))
        elif tensor.name in found and len(found[tensor.name].known) == count:
            steady = found[tensor.name]
            known &= steady.known
            cell = steady.values.reshape(1, count, *[1] * (rank - 2))
            operands.append(gs.Constant(f"operand.{len(operands)}", np.ascontiguousarray(cell)))
        else:
            return None
    result = gs.Variable("result")
    alone = gs.Node(node.op, "alone", dict(node.attrs), operands, outputs=[result])
    with np.errstate(all="ignore"):
        value = Constants(gs.Graph([alone], opset=net.graph.opset)).value(result)
    if value is None or value.size != count:
        return None
    flat: Array = value.reshape(-1)
    finite: Array = known & np.isfinite(flat.astype(np.float64))
    return Steady(finite, np.where(finite, flat, 0).astype(flat.dtype))


def _normalized(net: Network, node: gs.Node, data: Steady | None) -> Steady | None:
    """Batch normalisation by hand: below opset 14 the reference evaluator takes the statistics of what it is given."""
    vectors = [_operand(net, node, position) for position in range(1, 5)]
    if data is None or any(vector is None for vector in vectors):
        return None
    scale, offset, mean, variance = (np.asarray(vector, np.float64) for vector in vectors)
    values = scale * (data.values - mean) / np.sqrt(variance + node.attrs.get("epsilon", 1e-5)) + offset
    known: Array = data.known & np.isfinite(values)
    return Steady(known, np.where(known, values, 0).astype(data.values.dtype))


def _joined(net: Network, node: gs.Node, found: dict[str, Steady]) -> Steady | None:
    rank = net.rank(node.outputs[0])
    if rank is None or int(node.attrs["axis"]) % rank != 1:
        return None
    parts: list[Steady] = []
    for tensor in node.inputs:
        count = net.channels(tensor)
        if count is None:
            return None
        parts.append(found.get(tensor.name) or Steady(np.zeros(count, bool), np.zeros(count, np.float32)))
    return Steady(np.concatenate([p.known for p in parts]), np.concatenate([p.values for p in parts]))


def _given(node: gs.Node, position: int) -> bool:
    return len(node.inputs) > position and bool(node.inputs[position].name)


def _operand(net: Network, node: gs.Node, position: int) -> np.ndarray[Any, Any] | None:
    return net.value(node.inputs[position]) if _given(node, position) else None
