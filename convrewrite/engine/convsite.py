"""A convolution with constant weights, as the passes that rewrite kernels see it, and which error counts as none.

Conv (W [O, I/g, *kernel], b [O]), group g        ConvTranspose (W [I, O/g, *kernel], b [O]), group g
one MAC per entry of W and cell of its output     one MAC per entry of W and cell of its input
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from convrewrite.engine.graph import Constants, Shape
from convrewrite.engine.rewrite import Reason, Refusal
from convrewrite.text import parameter

Array = np.ndarray[Any, Any]

FLOATS = ("float16", "float32", "float64")
"""Types of weights that are rewritten."""

_EPS = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-23}
"""Spacing of the numbers next to 1, by the name of the type; numpy's finfo does not know bfloat16."""

_EXACT_FLOAT64 = 1e-13
"""Singular values are not known better."""


def rounding(dtype: npt.DTypeLike) -> float:
    """The relative error of a kernel, || W - W~ || / || W ||, up to which a rewrite of it counts as exact.

    8 spacings of the numbers next to 1: storing two factors in that type, and adding up in another order, costs as
    much. It is what a tolerance of 0 means in every pass (docs/adr/0022).
    """
    eps = _EPS.get(np.dtype(dtype).name)
    return _EXACT_FLOAT64 if eps is None else 8 * eps


def swapped(weight: Array, group: int) -> Array:
    """[O, I / g, *kernel] as a ConvTranspose stores it, [I, O / g, *kernel]; and back, which is the same."""
    first, second, *kernel = weight.shape
    apart = weight.reshape(group, first // group, second, *kernel).swapaxes(1, 2)
    return np.ascontiguousarray(apart).reshape(group * second, first // group, *kernel)


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
        """The numbers of output and input channels of the whole convolution."""
        rows, per = self.weight.shape[:2]
        return (per * self.group, rows) if self.op == "ConvTranspose" else (rows, per * self.group)

    @property
    def kernel(self) -> Shape:
        """The extents of the kernel."""
        return tuple(self.weight.shape[2:])

    @property
    def kernels(self) -> Array:
        """The weight as a Conv stores it, [O, I/g, *kernel]."""
        return swapped(self.weight, self.group) if self.op == "ConvTranspose" else self.weight

    @property
    def taps(self) -> int:
        """The number of entries of one kernel."""
        return math.prod(self.kernel)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one input."""
        return int(self.weight.size) * self.cells

    @property
    def params(self) -> int:
        """The number of entries of weight and bias."""
        return int(self.weight.size) + (0 if self.bias is None else len(self.bias))

    @property
    def label(self) -> str:
        """The name that messages use."""
        return f"{self.op} '{self.node}'"

    def __str__(self) -> str:
        return described(self.op, self.channels, self.kernel, self.group)


def described(op: str, channels: tuple[int, int], kernel: Shape, group: int) -> str:
    """How reports describe a layer: "Conv 64 x 32 x 3x3, 2 groups"."""
    shape = " x ".join(map(str, [*channels, *(["x".join(map(str, kernel))] if kernel else [])]))
    return f"{op} {shape}{f', {group} groups' if group > 1 else ''}"


def read_site(
    graph: gs.Graph, node: gs.Node, owner: str, shapes: Mapping[str, Shape] | None = None
) -> ConvSite | Refusal:
    """Read a Conv or ConvTranspose, or say why it is left alone.

    Args:
        owner: name of the pass, which has the reasons of `weight_reasons`. shapes: of tensors, as far as known.
    """
    anchor = node.outputs[0].name
    label = f"{node.op} '{node.name or anchor}'"
    not_constant, of_type, of_rank, not_finite = weight_reasons(owner)
    constants = Constants(graph)
    has_bias = len(node.inputs) > 2 and bool(node.inputs[2].name)
    weight = constants.value(node.inputs[1])
    bias = constants.value(node.inputs[2]) if has_bias else None
    if weight is None or (has_bias and bias is None):
        which = node.inputs[1 if weight is None else 2].name
        return Refusal(not_constant, f"'{which}' of {label}")
    if weight.dtype.name not in FLOATS:
        return Refusal(of_type, f"{label} has weights of type {weight.dtype}")
    if not 3 <= weight.ndim <= 5:
        return Refusal(of_rank, f"{label} has weights {list(weight.shape)}")
    if not np.isfinite(weight).all() or (bias is not None and not np.isfinite(bias).all()):
        return Refusal(not_finite, label)
    known = (shapes or {}).get(node.inputs[0].name if node.op == "ConvTranspose" else anchor)
    cells = 1 if known is None or len(known) != weight.ndim else known[0] * math.prod(known[2:])
    group, attrs = int(node.attrs.get("group", 1)), dict(node.attrs)
    return ConvSite(
        anchor=anchor,
        node=node.name or anchor,
        op=node.op,
        data=node.inputs[0].name,
        weight=weight,
        bias=bias,
        group=group,
        attrs=attrs,
        cells=cells,
    )


def weight_reasons(owner: str) -> tuple[Reason, Reason, Reason, Reason]:
    """The reasons for which a pass leaves the weights of a layer alone; `owner` is its name."""
    return (
        Reason(
            f"{owner}/weight-not-constant",
            "the weight is computed from an input of the model, or is one",
            "make it an initializer",
        ),
        Reason(
            f"{owner}/weight-type",
            "the weight is not of a floating-point type that is rewritten: float16, float32 or float64",
            "convert the model to float32 or float16",
        ),
        Reason(
            f"{owner}/unknown-rank",
            "the weight does not have 1, 2 or 3 spatial axes",
            f"leave the layer out with {parameter('skip')}",
        ),
        Reason(
            f"{owner}/nan-weight",
            "the weights hold NaN or Inf",
            "repair the model: its training has diverged, or its file is damaged",
            whole=True,
        ),
    )
