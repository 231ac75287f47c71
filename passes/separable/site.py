"""A layer as the pass sees it, and convolutions as one: the kernel with a BatchNormalization behind it folded in.

    Conv (W, b) ── BatchNormalization (s, t, m, v)     ==>     Conv (k W, k (b - m) + t),     k = s / sqrt(v + epsilon)

The fold is made where the BatchNormalization follows directly and nothing else reads what the Conv gives. Source: the
ONNX operator pages of Conv and BatchNormalization.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite.engine import convsite
from convrewrite.engine.convsite import described, swapped
from convrewrite.engine.graph import Constants, control_nodes, subgraph_tensors
from convrewrite.engine.layers import LinearLayer
from convrewrite.engine.rewrite import Refusal
from convrewrite.passes.separable.factors import Array


@dataclass(frozen=True)
class LayerSite:
    """A convolution, a transposed one or a linear layer that may be factored.

    Attributes:
        anchor: name of the node's output. node: its own name, else the anchor.
        target: name of the tensor that the chain must give: the anchor, or what the folded BatchNormalization gives,
            or the Add of a bias behind a MatMul.
        weight: [O, I/g, *kernel] with the fold, float64; of a linear layer [O, I], with its alpha. bias: [O] with the
            fold, float64; None where there is none.
        scale: [O], the fold's factor per channel; None without a fold.
        group, dtype: of the stored weight. attrs, op: of the node.
        layer: how a linear layer stores its weight; None for a convolution.
        fits: whether a number can be added to each output, which fitting to responses takes.
        size: extents of the map that it reads, where they are known.
    """

    anchor: str
    node: str
    target: str
    weight: Array
    bias: Array | None
    scale: Array | None
    group: int
    dtype: np.dtype[Any]
    attrs: Mapping[str, Any]
    op: str = "Conv"
    layer: LinearLayer | None = None
    fits: bool = True
    size: tuple[int, ...] | None = None

    @property
    def kernel(self) -> tuple[int, ...]:
        """The extents of the kernel."""
        return tuple(self.weight.shape[2:])

    @property
    def channels(self) -> tuple[int, int]:
        """The numbers of output and input channels of the whole layer."""
        return self.weight.shape[0], self.weight.shape[1] * self.group

    @property
    def data(self) -> int:
        """The index of the input that the layer slides over."""
        return 0 if self.layer is None else self.layer.data

    @property
    def transposed(self) -> bool:
        """Whether the layer is a ConvTranspose."""
        return self.op == "ConvTranspose"

    def stored(self, weight: Array) -> Array:
        """A weight [O, I/g, *kernel] as the node stores it, in its own type."""
        if self.layer is not None:
            weight = self.layer.laid_out(weight if self.layer.alpha == 1.0 else weight / self.layer.alpha)
        elif self.transposed:
            weight = swapped(weight, self.group)
        return weight.astype(self.dtype)

    def __str__(self) -> str:
        return described(self.op, self.channels, self.kernel, self.group)


def read_site(graph: gs.Graph, node: gs.Node) -> LayerSite | Refusal:
    """Read a Conv or ConvTranspose, or say why it cannot be factored."""
    site = convsite.read_site(graph, node, "separable")
    if isinstance(site, Refusal):
        return site
    wide = site.kernels.astype(np.float64)
    shift = None if site.bias is None else site.bias.astype(np.float64)
    target, scale = site.anchor, None
    folded = _normalization(graph, node, Constants(graph))
    if folded is not None:
        target, scale, offset, mean = folded
        wide = wide * scale.reshape(-1, *[1] * (wide.ndim - 1))
        shift = scale * ((0.0 if shift is None else shift) - mean) + offset
    dtype = site.weight.dtype
    return LayerSite(
        anchor=site.anchor,
        node=site.node,
        target=target,
        weight=wide,
        bias=shift,
        scale=scale,
        group=site.group,
        dtype=dtype,
        attrs=site.attrs,
        op=site.op,
    )


def _normalization(graph: gs.Graph, node: gs.Node, constants: Constants) -> tuple[str, Array, Array, Array] | None:
    """(output, factor, offset, mean) of the BatchNormalization that can be folded into a Conv, if there is one."""
    given = node.outputs[0]
    readers = list(given.outputs)
    captured = any(given.name == t.name for t in graph.outputs) or _read_by_subgraphs(graph, given.name)
    if len(readers) != 1 or captured or readers[0].op != "BatchNormalization":
        return None
    norm = readers[0]
    if (
        norm.attrs.get("training_mode", 0)
        or not norm.attrs.get("spatial", 1)
        or norm.inputs[0] is not given
        or not norm.outputs[0].name
    ):
        return None
    if any(t.outputs or any(t is o for o in graph.outputs) for t in norm.outputs[1:] if t.name):
        return None
    values = [constants.value(tensor) for tensor in norm.inputs[1:5]]
    if any(value is None or not np.isfinite(value).all() for value in values):
        return None
    weight, offset, mean, variance = (np.asarray(value, np.float64) for value in values)
    if (variance < 0).any():
        return None
    return norm.outputs[0].name, weight / np.sqrt(variance + norm.attrs.get("epsilon", 1e-5)), offset, mean


def _read_by_subgraphs(graph: gs.Graph, name: str) -> bool:
    return any(name == tensor.name for node in control_nodes(graph) for tensor in subgraph_tensors(node))
