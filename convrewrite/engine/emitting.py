"""Nodes that a rewrite adds: named alike, appended to the graph, each giving one tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

END = int(np.iinfo(np.int64).max)
"""The end of a Slice that goes on to the last cell."""


class Emitter:
    """Appends nodes whose names begin alike; what they give has the type `dtype` where nothing else is said."""

    def __init__(self, graph: gs.Graph, prefix: str, dtype: Any) -> None:
        self.graph, self.prefix, self.dtype = graph, prefix, dtype

    def __call__(
        self,
        op: str,
        name: str,
        inputs: Sequence[gs.Tensor],
        *,
        result: gs.Tensor | None = None,
        dtype: Any = None,
        **attrs: Any,
    ) -> gs.Tensor:
        """Append a node; it gives `result`, or a new tensor of its own name."""
        name = f"{self.prefix}/{name}" if name else self.prefix
        made = gs.Variable(name, dtype or self.dtype) if result is None else result
        self.graph.nodes.append(gs.Node(op, name, attrs, list(inputs), outputs=[made]))
        return made

    def ints(self, name: str, values: Sequence[int]) -> gs.Constant:
        """Whole numbers, one axis."""
        return gs.Constant(f"{self.prefix}/{name}", np.array(values, np.int64))

    def number(self, name: str, value: float) -> gs.Constant:
        """A number of the type of the tensors."""
        return gs.Constant(f"{self.prefix}/{name}", np.array(value, self.dtype))

    def every(self, name: str, data: gs.Tensor, steps: Mapping[int, int]) -> gs.Tensor:
        """Each n-th cell along some dimensions of [N, C, *spatial]; a pool of one cell where Slice has no steps."""
        axes = sorted(steps)
        if self.graph.opset < 10:
            rank = max(axes) - 1
            strides = [steps.get(2 + axis, 1) for axis in range(rank)]
            return self("MaxPool", name, [data], kernel_shape=[1] * rank, strides=strides)
        parts = {"starts": [0] * len(axes), "ends": [END] * len(axes), "axes": axes, "steps": [steps[a] for a in axes]}
        inputs = [data, *(self.ints(f"{name}/{part}" if name else part, values) for part, values in parts.items())]
        return self("Slice", name, inputs)
