"""Nodes that a rewrite adds: names are unique, constants are fresh, and each node gives one new tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite.engine.graph import unique_name
from convrewrite.engine.quantized import Stored

Array = np.ndarray[Any, Any]

END = int(np.iinfo(np.int64).max)
"""The end of a Slice that goes on to the last cell."""


@dataclass
class Emitter:
    """Appends nodes to a list.

    Attributes:
        opset: of the graph. taken: names in use. nodes: the list, that of a graph or one of its own.
        prefix: what names begin with. dtype: of what a call gives where nothing else is said.
    """

    opset: int
    taken: set[str]
    nodes: list[gs.Node] = field(default_factory=list)
    prefix: str = ""
    dtype: Any = None

    @classmethod
    def into(cls, graph: gs.Graph, prefix: str, dtype: Any) -> Emitter:
        """One that appends to a graph."""
        return cls(graph.opset, set(graph.tensors()), graph.nodes, prefix=prefix, dtype=dtype)

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
        if result is None:
            dtype = self.dtype if dtype is None else dtype
            return self.emit(op, inputs, attrs, output=self._full(name), dtype=dtype)
        self.nodes.append(gs.Node(op, self._full(name), attrs, list(inputs), outputs=[result]))
        return result

    def emit(
        self,
        op: str,
        inputs: Sequence[gs.Tensor],
        attrs: Mapping[str, Any] | None = None,
        *,
        output: str,
        own_name: bool = False,
        dtype: Any = None,
        node_name: str = "",
    ) -> gs.Variable:
        """Append a node and return its output.

        Args:
            output: name for the output; with `own_name` it is taken as it is (a tensor that keeps its meaning).
            node_name: name for the node; the output's where left out.
        """
        variable = gs.Variable(output if own_name else unique_name(output, self.taken), dtype)
        self.nodes.append(gs.Node(op, node_name or variable.name, dict(attrs or {}), list(inputs), outputs=[variable]))
        return variable

    def constant(self, name: str, values: Array) -> gs.Constant:
        """Make a new constant under a unique name."""
        return self._fresh(self._full(name), values)

    def ints(self, name: str, values: Sequence[int]) -> gs.Constant:
        """Add an int64 constant with one axis."""
        return self.constant(name, np.array(values, np.int64))

    def number(self, name: str, value: float) -> gs.Constant:
        """Add a scalar constant of the tensors' own type."""
        return gs.Constant(unique_name(self._full(name), self.taken), np.array(value, self.dtype))

    def kept(self, name: str, value: Array | Stored) -> gs.Tensor:
        """A fresh constant; what is stored quantized stays so, and the DequantizeLinear that reads it is appended."""
        if not isinstance(value, Stored):
            return self.constant(name, value)
        result = gs.Variable(unique_name(self._full(name), self.taken))
        self.nodes.append(value.node(result, self._fresh))
        return result

    def every(self, name: str, data: gs.Tensor, steps: Mapping[int, int]) -> gs.Variable:
        """Each n-th cell along some dimensions of [N, C, *spatial]; a pool of one cell where Slice has no steps."""
        axes, output = sorted(steps), self._full(name)
        if self.opset < 10:
            rank = max(axes) - 1
            attrs = {"kernel_shape": [1] * rank, "strides": [steps.get(2 + axis, 1) for axis in range(rank)]}
            return self.emit("MaxPool", [data], attrs, output=output, dtype=data.dtype)
        parts = {"starts": [0] * len(axes), "ends": [END] * len(axes), "axes": axes, "steps": [steps[a] for a in axes]}
        inputs = [data, *(self._fresh(f"{output}/{part}", np.array(n, np.int64)) for part, n in parts.items())]
        return self.emit("Slice", inputs, output=output, dtype=data.dtype)

    def _full(self, name: str) -> str:
        return "/".join(filter(None, (self.prefix, name)))

    def _fresh(self, name: str, values: Array) -> gs.Constant:
        return gs.Constant(unique_name(name, self.taken), np.ascontiguousarray(values))
