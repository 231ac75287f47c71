"""The grouped convolution, or several side by side, that takes the place of one.

    x ── Conv ── y      one part        x ── [Gather] ── Conv, g groups ── [Gather] ── y
                        several         x ── [Gather] ── Split ═╦═ Conv, g1 groups ═╦═ Concat ── [Gather] ── y
                                                                ╚═ Conv, g2 groups ═╝

The new weights are the blocks of the old one, in the order of the layout. A Gather stands only where the order of the
layout could not be absorbed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite.engine.graph import position
from convrewrite.passes.groups.absorb import Take, perform
from convrewrite.passes.groups.detection import Array
from convrewrite.passes.groups.expand import split_node
from convrewrite.passes.groups.packing import Layout, Part
from convrewrite.passes.groups.weights import Workshop, node_of, origin, remember

MADE = re.compile(r"/groups(_\d+)?$|/groups/\d+/conv(_\d+)?$")
"""The end of the name of a convolution from which this pass has dropped something."""


@dataclass(frozen=True)
class Grouping:
    """What is done for one convolution.

    Attributes:
        anchor: name of its output. layout: what it becomes. takes: what changes around it.
        approximate: some of the kernel is dropped; the node's name will tell, so that nothing more is dropped later.
        gather_inputs, gather_outputs: for each channel, in order, which of those at hand it is; None without a Gather.
    """

    anchor: str
    layout: Layout
    takes: tuple[Take, ...] = ()
    gather_inputs: Array | None = None
    gather_outputs: Array | None = None
    approximate: bool = False

    @property
    def gathers(self) -> int:
        """The number of Gather nodes that the layout needs."""
        return sum(index is not None for index in (self.gather_inputs, self.gather_outputs))


def regroup(graph: gs.Graph, plan: Grouping) -> None:
    """Put the groups in the place of the convolution, and the new order of channels into the layers around it."""
    perform(graph, plan.takes)
    node = node_of(graph, plan.anchor)
    shop = Workshop(graph)
    weight = shop.constants.value(node.inputs[1])
    assert weight is not None, "the plan has made sure that the weight is constant"
    group = int(node.attrs.get("group", 1))
    parts = [_operands(shop, node, part, group, number=number) for number, part in enumerate(plan.layout.parts)]
    if len(parts) == 1 and plan.gathers == 0:
        channels = weight.shape[0], weight.shape[1] * group
        remember(parts[0][0], origin(node.inputs[1], channels).chosen(plan.layout.outputs, plan.layout.inputs))
        node.inputs = [node.inputs[0], *parts[0]]
        node.attrs = _attrs(node, plan.layout.parts[0])
        if plan.approximate:
            node.name = _name(shop, node, plan)
        return
    _replace(graph, shop, node, plan, operands=parts)


def _replace(
    graph: gs.Graph, shop: Workshop, node: gs.Node, plan: Grouping, operands: Sequence[list[gs.Tensor]]
) -> None:
    label, dtype = node.name or plan.anchor, node.outputs[0].dtype
    dtype = dtype or node.inputs[0].dtype or np.float32
    made: list[gs.Node] = []

    def fresh(name: str) -> gs.Variable:
        return gs.Variable(shop.name(name), dtype)

    def gathered(tensor: gs.Tensor, index: Array | None, side: str, target: gs.Tensor | None = None) -> gs.Tensor:
        if index is None:
            return tensor
        order = shop.constant(f"{label}/groups/{side}/order", index.astype(np.int64))
        result = target if target is not None else fresh(f"{label}/groups/{side}")
        name = shop.name(f"{label}/groups/{side}/gather")
        made.append(gs.Node("Gather", name, {"axis": 1}, [tensor, order], outputs=[result]))
        return result

    target = node.outputs[0]
    where = position(graph, node)
    tensor = gathered(node.inputs[0], plan.gather_inputs, "inputs")
    parts = plan.layout.parts
    pieces: list[gs.Tensor] = [tensor]
    if len(parts) > 1:
        split, pieces = split_node(
            shop, graph.opset, tensor, [part.channels[1] for part in parts], label=f"{label}/groups", dtype=dtype
        )
        made.append(split)
    node.outputs.clear()
    results = []
    for number, (part, piece, more) in enumerate(zip(parts, pieces, operands, strict=True)):
        last = len(parts) == 1 and plan.gather_outputs is None
        result = target if last else fresh(f"{label}/groups/{number}")
        name = _name(shop, node, plan) if len(parts) == 1 else shop.name(f"{label}/groups/{number}/conv")
        made.append(gs.Node("Conv", name, _attrs(node, part), [piece, *more], outputs=[result]))
        results.append(result)
    joined = results[0]
    if len(parts) > 1:
        joined = target if plan.gather_outputs is None else fresh(f"{label}/groups/joined")
        made.append(gs.Node("Concat", shop.name(f"{label}/groups/concat"), {"axis": 1}, results, outputs=[joined]))
    gathered(joined, plan.gather_outputs, "outputs", target)
    node.inputs.clear()
    graph.nodes[where : where + 1] = made


def _name(shop: Workshop, node: gs.Node, plan: Grouping) -> str:
    """The name of the grouped convolution."""
    return shop.name(f"{node.name or plan.anchor}/groups") if plan.approximate else str(node.name)


def _attrs(node: gs.Node, part: Part) -> dict[str, Any]:
    attrs = {key: value for key, value in node.attrs.items() if key != "group"}
    return attrs | ({"group": len(part.groups)} if len(part.groups) > 1 else {})


def _operands(shop: Workshop, node: gs.Node, part: Part, group: int, number: int) -> list[gs.Tensor]:
    """Weight and bias of one part."""
    label = f"{node.name or node.outputs[0].name}/groups/{number}"
    rows = np.concatenate([own.outputs for own in part.groups])
    made = [
        shop.rebuilt(node.inputs[1], f"{label}/weight", lambda v, zero: chosen(v, zero, part, group), 0, index=rows)
    ]
    if len(node.inputs) > 2 and node.inputs[2].name:
        made.append(shop.taken_along(node.inputs[2], f"{label}/bias", 0, rows))
    return made


def chosen(values: Array, zero: Array, part: Part, group: int = 1) -> Array:
    """The blocks [O', I'/g', *kernel] of a part, of a stored weight [O, I/g, *kernel], zero between its groups."""
    rows, per = values.shape[0] // group, values.shape[1]
    made = []
    for own in part.groups:
        block = np.empty((*own.shape, *values.shape[2:]), values.dtype)
        for place, row in enumerate(own.outputs):
            local = own.inputs - (row // rows) * per
            inside = (local >= 0) & (local < per)
            block[place][inside] = values[row][local[inside]]
            if not inside.all():
                filling = zero[row] if zero.ndim and zero.shape[0] > 1 else zero
                block[place][~inside] = filling
        made.append(block)
    return np.concatenate(made)
