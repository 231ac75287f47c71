"""How each operator hands on the order of its channels, or ends a space of them.

    made   an operator's output lies in the space: so do the inputs that have its channels, and its constants change
    read   an operator's input lies in the space: so does its output, or its columns change

Constants of an operator are noted on the made side alone, so that each is noted once. An operator that is not here
stops the space.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite.engine.layers import LinearLayer
from convrewrite.passes.groups.network import Network, known
from convrewrite.passes.groups.spaces import Range, Search, Space, on_made, on_read

UNARY = """Abs Acos Asin Atan Cast Ceil Celu Clip Cos Dropout Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity
IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Softplus Softsign Sqrt Tan
Tanh ThresholdedRelu"""
ELEMENTWISE = """Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or PRelu Pow Sub Sum
Where Xor"""
POOLS = "AveragePool GlobalAveragePool GlobalLpPool GlobalMaxPool LpPool MaxPool"
REDUCTIONS = """ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
ReduceSumSquare"""
NUMPY_LIKE = 7
"""From this opset on, operands of different ranks are aligned at their last axes, and at no other."""
RESHAPES = "Flatten Reshape Squeeze Unsqueeze"
ORDERLESS = """Pad Resize Slice Transpose Upsample QuantizeLinear DequantizeLinear BatchNormalization
InstanceNormalization"""


def find_space(net: Network, tensor: str, size: int, owner: str) -> Space:
    """The space that starts at a tensor of that many channels.

    Args:
        owner: name of the output of the convolution that is being rewritten; its own weight is no part of the space.
    """
    return Search(net, owner).run(tensor, size)


# Convolutions and matrices --------------------------------------------------------------------------------------------


@on_made("Conv")
def _conv_made(s: Search, node: gs.Node, own: Range) -> None:
    if not _constant(s, node, 1, 2):
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
        s.seam(node, True, own, multiplier, per)
        s.keep(s.net.label(node))


@on_read("Conv")
def _conv_read(s: Search, node: gs.Node, position: int, own: Range) -> None:
    if position or not _constant(s, node, 1):
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
        s.seam(node, False, own, per, rows // group)
        s.columns(node, 1, own, grouped=True)
        s.keep(s.net.label(node))


@on_made("ConvTranspose")
def _transposed_made(s: Search, node: gs.Node, own: Range) -> None:
    if int(node.attrs.get("group", 1)) > 1:
        s.stop("groups/order-fixed", s.net.label(node))
    elif _constant(s, node, 1, 2):
        _rows(s, node, 1, own)


@on_read("ConvTranspose")
def _transposed_read(s: Search, node: gs.Node, position: int, own: Range) -> None:
    shape = s.net.shape(node.inputs[1])
    group = int(node.attrs.get("group", 1))
    if position or shape is None or not _constant(s, node, 1):
        s.stop("groups/order-fixed", s.net.label(node))
        return
    if group > 1:
        s.cut(own, int(shape[0] or 0) // group)
        s.keep(s.net.label(node))
    s.columns(node, 0, own)


@on_made("Gemm")
def _gemm_made(s: Search, node: gs.Node, own: Range) -> None:
    if not _constant(s, node, 1, 2):
        return
    s.edit(node, 1, 0 if LinearLayer.from_node(node, weight=1).rows_are_outputs else 1, own)
    if len(node.inputs) > 2 and node.inputs[2].name:
        shape = s.net.shape(node.inputs[2])
        if shape and shape[-1] != 1:
            s.edit(node, 2, len(shape) - 1, own)


@on_read("Gemm")
def _gemm_read(s: Search, node: gs.Node, position: int, own: Range) -> None:
    layer = LinearLayer.from_node(node, weight=1)
    if position or layer.axis != -1 or not _constant(s, node, 1):
        s.stop("groups/order-fixed", s.net.label(node))
    else:
        s.columns(node, 1 if layer.rows_are_outputs else 0, own)


@on_made("MatMul")
def _matmul_made(s: Search, node: gs.Node, own: Range) -> None:
    if _flat_matmul(s, node):
        s.edit(node, 1, 1, own)


@on_read("MatMul")
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


def _constant(s: Search, node: gs.Node, *positions: int) -> bool:
    """Whether these inputs are constant or absent; the space stops where not."""
    for position in positions:
        if position < len(node.inputs) and node.inputs[position].name and not s.net.is_constant(node.inputs[position]):
            s.stop("groups/order-fixed", f"'{node.inputs[position].name}' of {s.net.label(node)} is computed")
            return False
    return True


# Element by element ---------------------------------------------------------------------------------------------------


@on_made(f"{UNARY} {POOLS}")
def _same_made(s: Search, node: gs.Node, own: Range) -> None:
    s.add(node.inputs[0].name, own)


@on_read(f"{UNARY} {POOLS}")
def _same_read(s: Search, node: gs.Node, position: int, own: Range) -> None:
    if position:
        s.stop("groups/order-fixed", s.net.label(node))
    else:
        s.add(node.outputs[0].name, own)


@on_made(ELEMENTWISE)
def _elementwise_made(s: Search, node: gs.Node, own: Range) -> None:
    given = s.net.shape(node.outputs[0])
    if s.net.graph.opset < NUMPY_LIKE:
        s.stop("groups/order-fixed", s.net.label(node))
        return
    if given is None or len(given) < 2:
        s.stop("groups/unknown-shape", s.net.label(node))
        return
    for position, tensor in enumerate(node.inputs):
        shape = s.net.shape(tensor)
        axis = None if shape is None else 1 - (len(given) - len(shape))
        if shape is None or axis is None:
            s.stop("groups/unknown-shape", f"'{tensor.name}' of {s.net.label(node)}")
        elif axis < 0 or shape[axis] == 1:
            continue  # the same for every channel
        elif shape[axis] is None or shape[axis] != given[1]:
            s.stop("groups/unknown-shape", f"'{tensor.name}' of {s.net.label(node)}")
        elif s.net.is_constant(tensor):
            s.edit(node, position, axis, own)
        elif axis == 1:
            s.add(tensor.name, own)
        else:
            s.stop("groups/order-fixed", s.net.label(node))


@on_read(ELEMENTWISE)
def _elementwise_read(s: Search, node: gs.Node, position: int, own: Range) -> None:
    tensor, given = node.inputs[position], s.net.shape(node.outputs[0])
    if given is None or s.net.channels(tensor) is None:
        s.stop("groups/unknown-shape", s.net.label(node))
    elif s.net.rank(tensor) != len(given) or s.net.channels(tensor) != given[1]:
        s.stop("groups/order-fixed", f"{s.net.label(node)}, which spreads '{tensor.name}'")
    else:
        s.add(node.outputs[0].name, own)


@on_made("BatchNormalization InstanceNormalization QuantizeLinear DequantizeLinear")
def _vectors_made(s: Search, node: gs.Node, own: Range) -> None:
    if _orderless(s, node) and _constant(s, node, 1, 2, 3, 4):
        for position, tensor in enumerate(node.inputs[1:], 1):
            shape = s.net.shape(tensor) if tensor.name else None
            per_tensor = node.op.endswith("Linear") and math.prod(d or 0 for d in shape or ()) == 1
            if shape and not per_tensor:
                s.edit(node, position, 0, own)
        s.add(node.inputs[0].name, own)


@on_made("Pad Resize Slice Transpose Upsample " + REDUCTIONS)
def _orderless_made(s: Search, node: gs.Node, own: Range) -> None:
    if _orderless(s, node):
        s.add(node.inputs[0].name, own)


@on_read(f"{ORDERLESS} {REDUCTIONS}")
def _orderless_read(s: Search, node: gs.Node, position: int, own: Range) -> None:
    if position:
        s.stop("groups/order-fixed", s.net.label(node))
    elif _orderless(s, node):
        s.add(node.outputs[0].name, own)


def _orderless(s: Search, node: gs.Node) -> bool:
    """Whether the operator treats every channel alike and by itself; the space stops where not."""
    rank = s.net.rank(node.inputs[0])
    fine = rank is not None and rank >= 2 and _leaves_channels(s, node, rank)
    if not fine:
        s.stop("groups/unknown-shape" if rank is None else "groups/order-fixed", s.net.label(node))
    elif node.op in ("Resize", "Upsample", "Pad"):
        s.keep(s.net.label(node))
    return fine


def _leaves_channels(s: Search, node: gs.Node, rank: int) -> bool:
    if node.op == "BatchNormalization":
        return not node.attrs.get("training_mode", 0) and bool(node.attrs.get("spatial", 1))
    if node.op in ("QuantizeLinear", "DequantizeLinear"):
        scale = s.net.value(node.inputs[1])
        along = int(node.attrs.get("axis", 1)) % rank
        return scale is not None and (scale.size == 1 or (along == 1 and scale.ndim == 1))
    if node.op == "Transpose":
        return list(node.attrs.get("perm") or [])[:2] == [0, 1]
    if node.op in ("Resize", "Upsample"):
        same = s.net.channels(node.inputs[0]) is not None
        same = same and s.net.channels(node.inputs[0]) == s.net.channels(node.outputs[0])
        return same and node.attrs.get("coordinate_transformation_mode") != "tf_crop_and_resize"
    if node.op == "Pad":
        return _pads_only_maps(s, node, rank)
    if node.op == "Slice":
        axes = _ints(s, node, "axes", 3) if "starts" not in node.attrs else list(node.attrs.get("axes") or [0, 1])
        return axes is not None and all(axis % rank > 1 for axis in axes)
    if node.op.startswith("Reduce"):
        axes = _ints(s, node, "axes", 1)
        return bool(axes) and all(axis % rank > 1 for axis in axes or ())
    return True


def _pads_only_maps(s: Search, node: gs.Node, rank: int) -> bool:
    pads = list(node.attrs["pads"]) if "pads" in node.attrs else _ints(s, node, "", 1)
    axes = list(range(rank)) if len(node.inputs) < 4 or not node.inputs[3].name else _ints(s, node, "", 3)
    if pads is None or axes is None or len(pads) != 2 * len(axes):
        return False
    moved = [axis % rank for axis, begin, end in zip(axes, pads, pads[len(axes) :], strict=False) if begin or end]
    return all(axis > 1 for axis in moved)


def _ints(s: Search, node: gs.Node, attribute: str, position: int) -> list[int] | None:
    """A list that is an attribute or a constant input, where it is known."""
    if attribute and attribute in node.attrs:
        return [int(n) for n in node.attrs[attribute]]
    value = s.net.value(node.inputs[position]) if position < len(node.inputs) else None
    return None if value is None else [int(n) for n in value.ravel()]


# What joins and reshapes ----------------------------------------------------------------------------------------------


@on_made("Concat")
def _concat_made(s: Search, node: gs.Node, own: Range) -> None:
    for position, (tensor, low, high) in enumerate(_pieces(s, node)):
        try:
            part = own.clipped(low, high)
        except ValueError:
            s.stop("groups/order-fixed", s.net.label(node))
            return
        if part is None:
            continue
        if s.net.is_constant(tensor):
            s.edit(node, position, 1, part.moved(-low))
        else:
            s.add(tensor.name, part.moved(-low))


@on_read("Concat")
def _concat_read(s: Search, node: gs.Node, position: int, own: Range) -> None:
    pieces = _pieces(s, node)
    if pieces:
        s.add(node.outputs[0].name, own.moved(pieces[position][1]))


def _pieces(s: Search, node: gs.Node) -> list[tuple[gs.Tensor, int, int]]:
    """(input, first channel, behind the last one) in what a Concat gives; empty where the space stops."""
    rank = s.net.rank(node.outputs[0])
    if rank is None:
        s.stop("groups/unknown-shape", s.net.label(node))
        return []
    joins = int(node.attrs["axis"]) % rank == 1
    pieces, low = [], 0
    for tensor in node.inputs:
        size = s.net.channels(tensor)
        if size is None:
            s.stop("groups/unknown-shape", s.net.label(node))
            return []
        pieces.append((tensor, low, low + size))
        low += size if joins else 0
    return pieces


@on_made(RESHAPES)
def _reshape_made(s: Search, node: gs.Node, own: Range) -> None:
    ratio = _ratio(s, node)
    if ratio is not None:
        _scaled(s, node, node.inputs[0], own.scaled(ratio[1], ratio[0]))


@on_read(RESHAPES)
def _reshape_read(s: Search, node: gs.Node, position: int, own: Range) -> None:
    ratio = None if position else _ratio(s, node)
    if ratio is not None:
        _scaled(s, node, node.outputs[0], own.scaled(*ratio))
    elif position:
        s.stop("groups/order-fixed", s.net.label(node))


def _scaled(s: Search, node: gs.Node, tensor: gs.Tensor, own: Range | None) -> None:
    if own is None:
        s.stop("groups/order-fixed", s.net.label(node))
    else:
        s.add(tensor.name, own)


def _ratio(s: Search, node: gs.Node) -> tuple[int, int] | None:
    """Channels before and after a reshape that leaves the batch alone; the space stops where it does not."""
    before, after = s.net.shape(node.inputs[0]), s.net.shape(node.outputs[0])
    rest = None if before is None or after is None else (known(before[1:]), known(after[1:]))
    if rest is None or not rest[0] or not rest[1]:
        s.stop("groups/unknown-shape", s.net.label(node))
        return None
    if math.prod(rest[0]) != math.prod(rest[1]):
        s.stop("groups/order-fixed", s.net.label(node))
        return None
    if node.op == "Reshape" and not _counts_itself(s, node):
        s.keep(s.net.label(node))
    return rest[0][0], rest[1][0]


def _counts_itself(s: Search, node: gs.Node) -> bool:
    """Whether a Reshape has as many channels as there are: none are written into its target."""
    target = s.net.at_sample(node.inputs[1])
    return target is not None and len(target) > 1 and int(target[1]) in (0, -1)


@on_read("Shape Size")
def _shape_read(s: Search, node: gs.Node, position: int, own: Range) -> None:
    if not _other_extents(s, node):
        s.keep(s.net.label(node))


def _other_extents(s: Search, node: gs.Node) -> bool:
    """Whether of a shape nothing is read but the batch or the extents of the map, as exporters write x.size(0)."""
    rank = s.net.rank(node.inputs[0])
    if node.op != "Shape" or rank is None or "start" in node.attrs or s.net.is_public(node.outputs[0]):
        return False
    for reader in s.net.readers.get(node.outputs[0].name, ()):
        chosen = s.net.value(reader.inputs[1]) if reader.op == "Gather" else None
        if chosen is None or reader.inputs[0] is not node.outputs[0] or (np.asarray(chosen) % rank == 1).any():
            return False
    return not s.net.is_captured(node.outputs[0])
