"""Channels change places, or are left out, in all constants of a space at once.

    conv A ── x ── BatchNormalization ── Relu ── conv B        the rows of A, its bias, the four vectors of the
    order of x:  0 1 2 3  ->  2 0 3 1                          normalization and the columns of B, each in the new order

Nothing is computed for it at run time: the same numbers stand in another order, so every output channel of the layers
around is the same sum, with its terms in another order.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite.passes.groups.detection import spread
from convrewrite.passes.groups.network import Network
from convrewrite.passes.groups.spaces import Edit, Range, Space
from convrewrite.passes.groups.weights import Array, Workshop, node_of, origin, remember


@dataclass(frozen=True)
class Take:
    """Entries chosen along an axis of a constant input of the node that gives `anchor`.

    Attributes:
        index: for each entry, in order, which of the old ones it is. grouped: counted over the inputs of all groups of
            a grouped convolution.
    """

    anchor: str
    input: int
    axis: int
    index: Array
    grouped: bool = False


def takes(net: Network, changes: Sequence[tuple[Space, Array]]) -> tuple[Take, ...]:
    """What changes where the channels of spaces are chosen anew: index[j] becomes channel j."""
    found: dict[tuple[str, int, int, bool], list[tuple[Range, Array]]] = {}
    for space, index in changes:
        for edit in space.edits:
            found.setdefault((edit.anchor, edit.input, edit.axis, edit.grouped), []).append((edit.range, index))
    nodes = {net.anchor(node): node for node in net.graph.nodes}
    made = []
    for (anchor, position, axis, grouped), ranges in found.items():
        length = _length(net, nodes[anchor], Edit(anchor, position, axis, range=ranges[0][0], grouped=grouped))
        made.append(Take(anchor, position, axis, index=along(length, ranges), grouped=grouped))
    return tuple(sorted(made, key=lambda take: not take.grouped))  # before rows of the same weight move


def _length(net: Network, node: gs.Node, edit: Edit) -> int:
    shape = net.shape(node.inputs[edit.input])
    size = 0 if shape is None else shape[edit.axis] or 0
    return size * int(node.attrs.get("group", 1)) if edit.grouped else size


def along(length: int, ranges: Sequence[tuple[Range, Array]]) -> Array:
    """The new entries of one axis: what lies in no range stays where it is."""
    pieces, position = [], 0
    for own, index in sorted(ranges, key=lambda pair: pair[0].at):
        pieces.append(np.arange(position, own.at))
        channels = index[(index >= own.start) & (index < own.start + own.size)]
        pieces.append((own.offset + channels[:, None] * own.repeat + np.arange(own.repeat)).ravel())
        position = own.end
    pieces.append(np.arange(position, length))
    return np.concatenate(pieces)


def perform(graph: gs.Graph, changes: Sequence[Take]) -> None:
    """Put fresh constants in the place of those that change."""
    shop = Workshop(graph)
    for change in changes:
        node = node_of(graph, change.anchor)
        old = node.inputs[change.input]
        name = f"{node.name or change.anchor}/groups/{_ROLES.get((node.op, change.input), f'input.{change.input}')}"
        weight = node.op in ("Conv", "ConvTranspose") and change.input == 1
        before = _channels(shop, node) if weight else (0, 0)
        group = int(node.attrs.get("group", 1))
        if change.grouped:
            within = functools.partial(_in_groups, index=change.index, group=group)
            new = shop.rebuilt(old, name, within, 0, index=np.arange(before[0]))
        else:
            new = shop.taken_along(old, name, change.axis, change.index)
        node.inputs[change.input] = new
        if weight:
            rows = change.axis == (1 if node.op == "ConvTranspose" else 0)
            where = origin(old, before)
            if where.whole is None and node.op == "Conv" and len(change.index) < before[0 if rows else 1]:
                values = shop.constants.value(old)
                assert values is not None, "the plan has made sure that the weight is constant"
                where = replace(where, whole=where.placed(spread(values, group)))
            remember(new, where.chosen(rows=change.index) if rows else where.chosen(columns=change.index))
            if group > 1 and rows and _channels(shop, node)[0] != before[0]:
                node.attrs["group"] = group * len(change.index) // before[0]  # depthwise: one group per channel


_ROLES = {("Conv", 1): "weight", ("Conv", 2): "bias"}


def _channels(shop: Workshop, node: gs.Node) -> tuple[int, int]:
    """(out, in) of a convolution."""
    tensor = node.inputs[1]
    values = tensor if isinstance(tensor, gs.Constant) else shop.constants.value(tensor)
    assert values is not None, "the plan has made sure that the weight is constant"
    group = int(node.attrs.get("group", 1))
    a, b = int(values.shape[0]), int(values.shape[1])
    return (b * group, a) if node.op == "ConvTranspose" else (a, b * group)


def _in_groups(values: Array, zero: Array, index: Array, group: int) -> Array:
    """Columns chosen for each group of rows among its own; rows stay where they are, though the groups may move."""
    rows, per = values.shape[0] // group, values.shape[1]
    made = values.copy()
    for place in range(group):
        own = index[place * per : (place + 1) * per]
        source = int(own[0]) // per
        block = slice(source * rows, (source + 1) * rows)
        made[block] = values[block][:, own - source * per]
    return made
