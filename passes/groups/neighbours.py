"""How each operator hands on the order of its channels, or ends a space of them.

    made   an operator's output lies in the space: so do the inputs that have its channels, and its constants change
    read   an operator's input lies in the space: so does its output, or its columns change

Constants of an operator are noted on the made side alone, so that each is noted once. An operator of STOPPING, or of
another domain, stops the space.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite.engine.operators import OPERATORS, axis_of, chosen, ruled
from convrewrite.passes.groups import weighted
from convrewrite.passes.groups.network import Network, known
from convrewrite.passes.groups.spaces import Made, Range, Read, Search, Space

NUMPY_LIKE = 7
"""From this opset on, operands of different ranks are aligned at their last axes, and at no other."""


def find_space(net: Network, tensor: str, size: int, owner: str) -> Space:
    """The space that starts at a tensor of that many channels.

    Args:
        owner: name of the output of the convolution that is being rewritten; its own weight is no part of the space.
    """
    return Search(net, owner, MADE, READ).run(tensor, size)


# Element by element ---------------------------------------------------------------------------------------------------


def _same_made(s: Search, node: gs.Node, own: Range) -> None:
    s.add(node.inputs[0].name, own)


def _same_read(s: Search, node: gs.Node, position: int, own: Range) -> None:
    if position:
        s.stop("groups/order-fixed", s.net.label(node))
    else:
        s.add(node.outputs[0].name, own)


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


def _elementwise_read(s: Search, node: gs.Node, position: int, own: Range) -> None:
    tensor, given = node.inputs[position], s.net.shape(node.outputs[0])
    if given is None or s.net.channels(tensor) is None:
        s.stop("groups/unknown-shape", s.net.label(node))
    elif s.net.rank(tensor) != len(given) or s.net.channels(tensor) != given[1]:
        s.stop("groups/order-fixed", f"{s.net.label(node)}, which spreads '{tensor.name}'")
    else:
        s.add(node.outputs[0].name, own)


def _vectors_made(s: Search, node: gs.Node, own: Range) -> None:
    if _orderless(s, node) and weighted.constant(s, node, *range(1, 5)):
        for position, tensor in enumerate(node.inputs[1:], 1):
            shape = s.net.shape(tensor) if tensor.name else None
            per_tensor = OPERATORS[node.op].kind == "quantizer" and math.prod(d or 0 for d in shape or ()) == 1
            if shape and not per_tensor:
                s.edit(node, position, 0, own)
        s.add(node.inputs[0].name, own)


def _orderless_made(s: Search, node: gs.Node, own: Range) -> None:
    if _orderless(s, node):
        s.add(node.inputs[0].name, own)


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
    if OPERATORS[node.op].kind == "quantizer":
        scale = s.net.value(node.inputs[1])
        along = axis_of(node, s.net.graph.opset) % rank
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
    if OPERATORS[node.op].kind == "reduction":
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


def _reshape_made(s: Search, node: gs.Node, own: Range) -> None:
    ratio = _ratio(s, node)
    if ratio is not None:
        _scaled(s, node, node.inputs[0], own.scaled(ratio[1], ratio[0]))


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


MADE: Mapping[str, Made] = ruled(
    {
        **weighted.MADE,
        "unary pool global-pool": _same_made,
        "broadcast": _elementwise_made,
        "quantizer batch-norm InstanceNormalization": _vectors_made,
        "pad resize slice transpose reduction": _orderless_made,
        "concat": _concat_made,
        "reshape": _reshape_made,
    }
)
"""Follow a range of an operator's output to its inputs, and note its constants that change with it."""

READ: Mapping[str, Read] = ruled(
    {
        **weighted.READ,
        "unary pool global-pool": _same_read,
        "broadcast": _elementwise_read,
        "quantizer batch-norm InstanceNormalization pad resize slice transpose reduction": _orderless_read,
        "concat": _concat_read,
        "reshape": _reshape_read,
        "extents": _shape_read,
    }
)
"""Follow a range of one of an operator's inputs to its output, or note the columns that read it."""

STOPPING = chosen(
    """cast-like dynamic-quantizer integer-convolution integer-matrix sampling unpool blocks region product recurrent
    attention search softmax GroupNormalization layer-norm channel-norm axis-norm axes-norm split gather top scan
    triangle entries list repeat bits gate constant random loss signal control sequence text"""
)
"""Operators that depend on the order of the channels, or may: "groups/order-fixed"."""
