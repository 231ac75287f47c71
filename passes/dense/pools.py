"""Pools that cannot be dilated as they are.

MaxPool      x ── Pad, smallest number ── MaxPool without pads         ONNX Runtime refuses pads >= the kernel's extent
AveragePool  x ── Conv, each channel, 1 / k everywhere                 where padding counts, or there is none
             x ── Conv, each channel, 1 everywhere ── Div ── y         where it does not: by the number of cells there
             ones ── the same Conv ────────────────────┘
LpPool       x ── Abs ── Pow p ── Conv of ones ── Pow 1/p ── y
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite.engine.emitting import Emitter
from convrewrite.engine.graph import position
from convrewrite.engine.layers import Sliding
from convrewrite.passes.dense.edits import Edit, ints, node_of

Shape = tuple[int, ...]


def padded(output: str, node: gs.Node, new: Sliding, opset: int) -> Edit:
    """A MaxPool whose pads become an operator of their own."""
    bare = Sliding(
        new.size, new.kernel, new.strides, new.dilations, begin=(0,) * len(new.size), end=(0,) * len(new.size)
    )
    return Padded(output, bare.attributes(node.attrs, pool=True), (*new.begin,), end=(*new.end,), opset=opset)


def averaged(output: str, node: gs.Node, old: Sliding, new: Sliding, shape: Shape, opset: int) -> Edit:
    """An AveragePool or LpPool, written as a convolution that sums."""
    attrs = {
        "kernel_shape": list(new.kernel),
        "strides": list(new.strides),
        "dilations": list(new.dilations),
        "pads": [*new.begin, *new.end],
    }
    power = float(node.attrs.get("p", 2)) if node.op == "LpPool" else 0.0
    counted = bool(node.attrs.get("count_include_pad", 0)) or not any((*new.begin, *new.end))
    return Summed(output, attrs, shape[1], power=power, counted=counted, opset=opset)


@dataclass(frozen=True)
class Padded:
    """An edit that puts a Pad in front of a MaxPool."""

    output: str
    attrs: Mapping[str, Any]
    begin: Shape
    end: Shape
    opset: int

    def apply(self, graph: gs.Graph) -> None:
        """Make this edit in the graph."""
        node = node_of(graph, self.output)
        data = node.inputs[0]
        dtype = np.dtype(np.float32 if data.dtype is None else data.dtype)
        least: Any = -np.inf if dtype.kind == "f" else np.iinfo(dtype).min
        pads = [0, 0, *self.begin, 0, 0, *self.end]
        name = f"{self.output}/dense/pad"
        made = gs.Variable(name, data.dtype)
        if self.opset >= 11:
            inputs = [data, ints(f"{name}/pads", pads), gs.Constant(f"{name}/value", np.array(least, dtype))]
            graph.nodes.append(gs.Node("Pad", name, {}, inputs, outputs=[made]))
        else:
            graph.nodes.append(gs.Node("Pad", name, {"pads": pads, "value": float(least)}, [data], outputs=[made]))
        node.inputs[0] = made
        node.attrs.clear()
        node.attrs.update(self.attrs)


@dataclass(frozen=True)
class Summed:
    """Sums by a depthwise convolution in the place of a pool; `power` 0 is the mean."""

    output: str
    attrs: Mapping[str, Any]
    channels: int
    power: float
    counted: bool
    opset: int

    def apply(self, graph: gs.Graph) -> None:
        """Make this edit in the graph."""
        node = node_of(graph, self.output)
        result, data = node.outputs[0], node.inputs[0]
        dtype = np.dtype(np.float32 if data.dtype is None else data.dtype)
        emit = Emitter.into(graph, f"{self.output}/dense", dtype)
        taps = math.prod(self.attrs["kernel_shape"])
        node.outputs.clear()
        node.inputs.clear()
        del graph.nodes[position(graph, node)]
        if self.power:
            powered = emit("Pow", "pow", [emit("Abs", "abs", [data]), emit.number("p", self.power)])
            summed = self._sums(emit, "sum", powered, self.channels, value=1.0)
            emit("Pow", "root", [summed, emit.number("inverse", 1 / self.power)], result=result)
        elif self.counted:
            self._sums(emit, "mean", data, self.channels, value=1.0 / taps, result=result)
        else:
            summed = self._sums(emit, "sum", data, self.channels, value=1.0)
            emit(
                "Div", "mean", [summed, self._sums(emit, "count", self._ones(emit, data), 1, value=1.0)], result=result
            )

    def _sums(
        self, emit: Emitter, name: str, data: gs.Tensor, channels: int, value: float, result: gs.Tensor | None = None
    ) -> gs.Tensor:
        weight = np.full((channels, 1, *self.attrs["kernel_shape"]), value, emit.dtype)
        inputs = [data, emit.constant(f"{name}/weight", weight)]
        return emit("Conv", name, inputs, result=result, **self.attrs, group=channels)

    def _ones(self, emit: Emitter, data: gs.Tensor) -> gs.Tensor:
        """[1, 1, *spatial] of the map's extents."""
        rank = len(self.attrs["kernel_shape"])
        sizes = emit("Shape", "shape", [data], dtype=np.int64)
        places = emit.ints("spatial", list(range(2, 2 + rank)))
        extents = emit("Gather", "extents", [sizes, places], dtype=np.int64, axis=0)
        whole = emit("Concat", "whole", [emit.ints("one", [1, 1]), extents], dtype=np.int64, axis=0)
        if self.opset >= 9:
            return emit("ConstantOfShape", "ones", [whole], value=gs.Constant("one", np.ones(1, emit.dtype)))
        return emit("Expand", "ones", [emit.constant("1", np.ones((1,) * (rank + 2), emit.dtype)), whole])
