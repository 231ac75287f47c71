"""A grouped convolution without groups, for backends that have none: as branches, or as one dense convolution.

    x ── Conv, 2 groups ── y      branches   x ── Split ─┬─ Conv ─┬─ Concat ── y
                                                         └─ Conv ─┘
                                  dense      x ── Conv ── y,    W = [ W1  0 ]
                                                                    [ 0  W2 ]

Both are exact: every output channel adds the same products, and zeros beside them. On ONNX Runtime both are usually
slower than the grouped convolution: branches split and join the tensors, and dense multiplies the zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite.engine.convsite import ConvSite
from convrewrite.engine.graph import position
from convrewrite.passes.groups.detection import Array
from convrewrite.passes.groups.weights import Workshop, node_of

KINDS = ("branches", "dense")
"""What `expand` may be."""


@dataclass(frozen=True)
class Expansion:
    """What is to be expanded: the convolution that gives `anchor`, into one of KINDS."""

    anchor: str
    kind: str


def expanded_size(site: ConvSite, kind: str) -> tuple[int, int]:
    """The multiply-accumulates and the parameters of the expansion."""
    more = site.group - 1 if kind == "dense" else 0
    return site.macs + more * site.macs, site.params + more * int(site.weight.size)


def expand(graph: gs.Graph, expansion: Expansion) -> None:
    """Put the expansion in the place of the convolution."""
    node = node_of(graph, expansion.anchor)
    if expansion.kind == "dense":
        _dense(graph, node)
    else:
        _branches(graph, node)


def _dense(graph: gs.Graph, node: gs.Node) -> None:
    group = int(node.attrs.pop("group"))
    label = node.name or node.outputs[0].name
    shop = Workshop(graph)
    old = node.inputs[1]

    def change(values: Array, zero: Array) -> Array:
        rows, per = values.shape[:2]
        dense = np.empty((rows, per * group, *values.shape[2:]), values.dtype)
        dense[:] = zero
        for g in range(group):
            own = slice(g * rows // group, (g + 1) * rows // group)
            dense[own, g * per : (g + 1) * per] = values[own]
        return dense

    count = int(shop.constants.value(old).shape[0])  # type: ignore[union-attr]
    node.inputs[1] = shop.rebuilt(old, f"{label}/groups/dense", change, 0, index=np.arange(count))


def _branches(graph: gs.Graph, node: gs.Node) -> None:
    group = int(node.attrs["group"])
    label = node.name or node.outputs[0].name
    shop = Workshop(graph)
    weight = shop.constants.value(node.inputs[1])
    assert weight is not None, "the plan has made sure that the weight is constant"
    transposed = node.op == "ConvTranspose"
    inputs = weight.shape[0] if transposed else weight.shape[1] * group
    has_bias = len(node.inputs) > 2 and bool(node.inputs[2].name)
    attrs = {key: value for key, value in node.attrs.items() if key != "group"}
    target, dtype = node.outputs[0], node.outputs[0].dtype or weight.dtype
    split, pieces = split_node(
        shop, graph.opset, node.inputs[0], [inputs // group] * group, label=f"{label}/groups", dtype=dtype
    )
    convs, results = [], []
    for g in range(group):
        name = f"{label}/groups/{g}"
        own = np.arange(g * weight.shape[0] // group, (g + 1) * weight.shape[0] // group)
        operands = [pieces[g], shop.taken_along(node.inputs[1], f"{name}/weight", 0, own)]
        if has_bias:
            count = weight.shape[1] if transposed else len(own)
            rows = np.arange(g * count, (g + 1) * count)
            operands.append(shop.taken_along(node.inputs[2], f"{name}/bias", 0, rows))
        results.append(gs.Variable(shop.name(name), dtype))
        convs.append(gs.Node(node.op, name, dict(attrs), operands, outputs=[results[-1]]))
    where = position(graph, node)
    node.inputs.clear()
    node.outputs.clear()
    join = gs.Node("Concat", f"{label}/groups/concat", {"axis": 1}, results, outputs=[target])
    graph.nodes[where : where + 1] = [split, *convs, join]


def split_node(
    shop: Workshop, opset: int, tensor: gs.Tensor, sizes: list[int], label: str, dtype: Any
) -> tuple[gs.Node, list[gs.Tensor]]:
    """Make a Split over channels and its outputs."""
    pieces = [gs.Variable(shop.name(f"{label}/split.{g}"), dtype) for g in range(len(sizes))]
    if opset < 13:
        return gs.Node("Split", f"{label}/split", {"axis": 1, "split": sizes}, [tensor], outputs=pieces), pieces
    lengths = shop.constant(f"{label}/split/sizes", np.array(sizes, np.int64))
    return gs.Node("Split", f"{label}/split", {"axis": 1}, [tensor, lengths], outputs=pieces), pieces
