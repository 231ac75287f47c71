"""dense: strides are removed and what follows is dilated, so that cells lie closer together.

Before                                        After
    image                                         image, cells at stride 1
      |  Conv 5x5, stride 2         t = 2           |  Conv 5x5                       t' = 1
      |  MaxPool 2x2, stride 2      t = 4           |  MaxPool 2x2, dilation 2        t' = 1
      |  Conv 3x3, pads 1           t = 4           |  Conv 3x3, dilation 4, pads 4   t' = 1
    one cell every 4 pixels                       one cell every pixel

Algebra. Let a tensor have the total stride t, in pixels along one axis of the image. In the new graph it has the stride
t' = gcd(t, S), and its cell f i is the old cell i, where f = t / t'. An operator with kernel k, stride s, dilation d
and pads p that reads a tensor of factor f reads the same cells as before with

    dilation d f      pads p f      stride t'(out) / t'(in)

since cell i of its old output read the cells i s - p + j d, and cell i f(out) of the new one reads f times these. So
new[::f] = old for every size of the image, padding included: behind a map of n cells, whose new map has n' of them with
f (n - 1) < n' <= f n, lies only padding in both. Where nothing sees padding, every other new cell is the old one for an
image that begins some pixels later, which is a window between the old ones.

    Conv, MaxPool           dilated; a MaxPool whose pads reach its kernel gets them as a Pad of the smallest number
    AveragePool, LpPool     dilated, or sums by a depthwise Conv where the opset has no dilated ones
    global pools, Reduce    see every f-th cell, which are the cells that they saw
    Slice with steps, Pad   starts, steps and pads follow
    cell by cell            as it is

Requires a fully convolutional model (such as fcn writes) of opset 7 or later; opset 10 where a MaxPool is dilated.
Refuses operators that lower the stride (ConvTranspose, Resize, DepthToSpace) or see the map as a whole while it is
denser than it was, shapes with baked extents, and branches whose maps would differ in extent.
Sources: Long, Shelhamer and Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015; Yu and
Koltun, "Multi-Scale Context Aggregation by Dilated Convolutions", ICLR 2016; the ONNX operator pages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from convrewrite.engine.rewrite import Context, Declined, Density, Pass, Plan, Reason, Refusal, option
from convrewrite.passes.dense.grids import Refuse, Walk
from convrewrite.passes.dense.reasons import REASONS


@dataclass(frozen=True)
class Dense(Pass):
    """The pass.

    Attributes:
        stride: pixels between the cells of the outputs, per spatial axis; None for one pixel on each.
    """

    name: ClassVar[str] = "dense"
    reasons: ClassVar[Mapping[str, Reason]] = REASONS
    step_of: ClassVar[tuple[str, str] | None] = ("fcn", "stride")
    stride: tuple[int, ...] | None = option(None)

    def candidates(self, graph: gs.Graph) -> Iterator[gs.Node]:
        """The first node that reads the image: the whole graph changes at once."""
        images = {t.name for t in graph.inputs if len(t.shape or ()) in (3, 4, 5)}
        yield from [node for node in graph.nodes if any(t.name in images for t in node.inputs)][:1]

    def plan(self, context: Context, node: gs.Node) -> Sequence[Plan] | Declined | Refusal:
        """Find what every operator becomes, without changing any.

        The context's shapes are those for some image in which no axis of the last map has one cell only.
        """
        label = f"{node.op} '{node.name or node.outputs[0].name}'"
        if not context.shapes:
            return Refusal(REASONS["dense/dynamic-shape"], label)
        try:
            walk = Walk.over(context.graph, context.shapes, self.stride)
        except Refuse as refused:
            return Refusal(REASONS[refused.code], refused.detail)
        if not walk.edits:
            return Declined(REASONS["dense/dense-already"], label)
        return [Plan(walk.sites(self.name), walk.edits, evidence=[Density(walk.strides, walk.factors)], last=True)]

    def apply(self, graph: gs.Graph, plan: Plan) -> None:
        """Make the planned edits."""
        for edit in plan.payload:
            edit.apply(graph)
