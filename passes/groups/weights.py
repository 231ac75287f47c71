"""New constants made from old ones: rows and columns chosen, in the type in which they are stored.

    W ── Conv                      W' ── Conv                           W' = change(W)
    q ── DequantizeLinear ── Conv  q' ── DequantizeLinear ── Conv       q' = change(q), scale and zero point alike

An initializer may be shared, so it is never edited: every change makes a fresh one. A weight that is stored quantized
stays so where the change does not mix what has scales of its own; any other computed constant is folded first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite.engine.graph import Constants, position, producer, unique_name, values_of

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Origin:
    """The channel of the original convolution that each channel of a convolution comes from, in order.

    Attributes:
        rows, columns: of the outputs and of the inputs of all groups. full: (out, in) of the original.
        whole: its dense weight, kept where channels were left out: what a constant channel adds is in a bias now.
    """

    rows: Array
    columns: Array
    full: tuple[int, int]
    whole: Array | None = None

    def chosen(self, rows: Array | None = None, columns: Array | None = None) -> Origin:
        """The weights with these channels chosen."""
        taken = [own if index is None else own[index] for own, index in ((self.rows, rows), (self.columns, columns))]
        return replace(self, rows=taken[0], columns=taken[1])

    def placed(self, dense: Array) -> Array:
        """A dense weight of the channels that there are, as the original convolution would hold it."""
        whole = np.zeros((*self.full, *dense.shape[2:]), dense.dtype) if self.whole is None else self.whole.copy()
        whole[np.ix_(self.rows, self.columns)] = dense
        return whole


Change = Callable[[Array, Array], Array]
"""Of values, given what stands for zero in them (it broadcasts against them)."""


class Ordered(np.ndarray[Any, Any]):
    """Values of a weight whose channels are not where the original had them; a copy of a graph keeps them.

    Attributes:
        origin: which channels of which convolution they are.
    """

    origin: Origin


def node_of(graph: gs.Graph, anchor: str) -> gs.Node:
    """The node that computes the tensor of this name."""
    return next(node for node in graph.nodes if any(t.name == anchor for t in node.outputs))


class Workshop:
    """Makes constants for one graph, each under a name of its own."""

    def __init__(self, graph: gs.Graph) -> None:
        self.graph = graph
        self.taken = set(graph.tensors()) | {node.name for node in graph.nodes}
        self.constants = Constants(graph)

    def constant(self, name: str, values: Array) -> gs.Constant:
        """Make a new constant under a unique name."""
        return gs.Constant(self.name(name), np.ascontiguousarray(values))

    def name(self, wanted: str) -> str:
        """A unique name for a new tensor."""
        return unique_name(wanted, self.taken)

    def rebuilt(
        self, tensor: gs.Tensor, name: str, change: Change, axis: int, index: Array, whole: bool = False
    ) -> gs.Tensor:
        """The tensor with its values changed.

        Args:
            tensor: constant, or computed from constants. change: of its values.
            axis, index: an axis whose entries the change chooses, and which. whole: it does nothing else.
        """
        node = producer(tensor)
        if node is not None and node.op == "DequantizeLinear" and self._keeps(node, axis, whole):
            parts = [values_of(t) if t.name else None for t in node.inputs]
            along = parts[1] is not None and parts[1].size > 1 and _axis(node) == axis
            zero = np.zeros((), parts[0].dtype) if len(parts) < 3 or parts[2] is None else parts[2]  # type: ignore[union-attr]
            if along and zero.size > 1:
                shape = [1] * parts[0].ndim  # type: ignore[union-attr]
                shape[axis] = zero.size
                zero = zero.reshape(shape)
            made = [self.constant(f"{name}/stored", change(parts[0], zero))]  # type: ignore[arg-type]
            for part, kind in zip(parts[1:], ("scale", "zero"), strict=False):
                if part is None:
                    made.append(gs.Variable.empty())
                else:
                    made.append(self.constant(f"{name}/{kind}", part[index] if along else part))
            given = gs.Variable(self.name(name), tensor.dtype)
            where = position(self.graph, node)
            self.graph.nodes.insert(
                where, gs.Node(node.op, self.name(f"{name}/node"), dict(node.attrs), made, outputs=[given])
            )
            return given
        values = self.constants.value(tensor)
        assert values is not None, f"{tensor.name} is not constant: the plan has made sure that it is"
        return self.constant(name, change(values, np.zeros((), values.dtype)))

    def taken_along(self, tensor: gs.Tensor, name: str, axis: int, index: Array) -> gs.Tensor:
        """The tensor with entries chosen along one axis."""
        return self.rebuilt(tensor, name, lambda values, _: np.take(values, index, axis), axis, index=index, whole=True)

    def _keeps(self, node: gs.Node, axis: int, whole: bool) -> bool:
        """Whether a DequantizeLinear of constants has scales that the change leaves with what they belong to."""
        if not all(isinstance(t, gs.Constant) or not t.name for t in node.inputs) or node.attrs.get("block_size"):
            return False
        return whole or int(np.prod(node.inputs[1].shape)) == 1 or _axis(node) == axis


def _axis(node: gs.Node) -> int:
    """The axis of the scales of a DequantizeLinear."""
    return int(node.attrs.get("axis", 1)) % max(len(node.inputs[0].shape), 1)


def origin(tensor: gs.Tensor, channels: tuple[int, int]) -> Origin:
    """Where the channels of a weight come from, given how many (out, in) the convolution has."""
    carrier = _carrier(tensor)
    values = None if carrier is None else carrier._values
    if isinstance(values, Ordered):
        return values.origin
    return Origin(np.arange(channels[0]), np.arange(channels[1]), channels)


def remember(tensor: gs.Tensor, where: Origin) -> None:
    """Note where the channels of a fresh weight come from."""
    carrier = _carrier(tensor)
    if carrier is not None:
        made = carrier._values.view(Ordered)
        made.origin = where
        carrier._values = made


def _carrier(tensor: gs.Tensor) -> gs.Constant | None:
    """The constant that holds a weight, stored quantized or not."""
    node = producer(tensor)
    stored = node.inputs[0] if node is not None and node.op == "DequantizeLinear" else tensor
    return stored if isinstance(stored, gs.Constant) else None
