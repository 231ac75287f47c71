"""A convolution as the pass sees it: its weight, its groups, and what it costs.

Conv (W [O, I/g, *kernel], b [O]), group g        ConvTranspose (W [I, O/g, *kernel], b [O]), group g
one MAC per entry of W and cell of its output     one MAC per entry of W and cell of its input
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite.engine.graph import Constants
from convrewrite.engine.rewrite import Refusal
from convrewrite.passes.groups.detection import Array
from convrewrite.passes.groups.reasons import REASONS

FLOATS = ("float16", "float32", "float64")

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ConvSite:
    """A Conv or ConvTranspose with constant weights.

    Attributes:
        anchor: name of its output. node: its own name, else the anchor. data: name of the tensor that it reads.
        weight: as stored, but folded to numbers. bias: [O] or None. cells: of one batch, 1 where that is not known.
    """

    anchor: str
    node: str
    op: str
    data: str
    weight: Array
    bias: Array | None
    group: int
    attrs: Mapping[str, Any]
    cells: int

    @property
    def channels(self) -> tuple[int, int]:
        """(out, in) of the whole convolution."""
        rows, per = self.weight.shape[:2]
        return (per * self.group, rows) if self.op == "ConvTranspose" else (rows, per * self.group)

    @property
    def kernel(self) -> Shape:
        """Extents."""
        return tuple(self.weight.shape[2:])

    @property
    def taps(self) -> int:
        """Entries of one kernel."""
        return math.prod(self.kernel)

    @property
    def macs(self) -> int:
        """Multiply-accumulates on one input."""
        return int(self.weight.size) * self.cells

    @property
    def params(self) -> int:
        """Entries of weight and bias."""
        return int(self.weight.size) + (0 if self.bias is None else len(self.bias))

    @property
    def label(self) -> str:
        """How messages call it."""
        return f"{self.op} '{self.node}'"

    def __str__(self) -> str:
        out, inputs = self.channels
        grouped = f", {self.group} groups" if self.group > 1 else ""
        return f"{self.op} {out} x {inputs} x {'x'.join(map(str, self.kernel))}{grouped}"


def read_site(graph: gs.Graph, node: gs.Node, shapes: Mapping[str, Shape]) -> ConvSite | Refusal:
    """Read a convolution, or say why it is left alone."""
    anchor = node.outputs[0].name
    label = f"{node.op} '{node.name or anchor}'"
    constants = Constants(graph)
    has_bias = len(node.inputs) > 2 and bool(node.inputs[2].name)
    weight = constants.value(node.inputs[1])
    bias = constants.value(node.inputs[2]) if has_bias else None
    if weight is None or (has_bias and bias is None):
        which = node.inputs[1 if weight is None else 2].name
        return Refusal(REASONS["groups/weight-not-constant"], f"'{which}' of {label}")
    if weight.dtype.name not in FLOATS:
        return Refusal(REASONS["groups/weight-type"], f"{label} has weights of type {weight.dtype}")
    if not 3 <= weight.ndim <= 5:
        return Refusal(REASONS["groups/unknown-rank"], f"{label} has weights {list(weight.shape)}")
    if not np.isfinite(weight).all() or (bias is not None and not np.isfinite(bias).all()):
        return Refusal(REASONS["groups/nan-weight"], label)
    known = shapes.get(node.inputs[0].name if node.op == "ConvTranspose" else anchor)
    cells = 1 if known is None or len(known) != weight.ndim else known[0] * math.prod(known[2:])
    group = int(node.attrs.get("group", 1))
    return ConvSite(
        anchor=anchor,
        node=node.name or anchor,
        op=node.op,
        data=node.inputs[0].name,
        weight=weight,
        bias=bias,
        group=group,
        attrs=dict(node.attrs),
        cells=cells,
    )
