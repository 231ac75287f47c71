"""What is changed, as records: each finds its node by the name of its first output and cannot fail."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite.engine.emitting import Emitter


class Edit(Protocol):
    """One change to a graph."""

    def apply(self, graph: gs.Graph) -> None:
        """Make this edit in the graph."""
        ...


def node_of(graph: gs.Graph, output: str) -> gs.Node:
    """The node that computes a tensor."""
    return next(node for node in graph.nodes if node.outputs and node.outputs[0].name == output)


def ints(name: str, values: Any) -> gs.Constant:
    """An int64 constant with one axis."""
    return gs.Constant(name, np.array(values, np.int64))


@dataclass(frozen=True)
class Attributes:
    """An edit that changes the attributes of one node."""

    output: str
    attrs: Mapping[str, Any]

    def apply(self, graph: gs.Graph) -> None:
        """Make this edit in the graph."""
        node = node_of(graph, self.output)
        node.attrs.clear()
        node.attrs.update(self.attrs)


@dataclass(frozen=True)
class Sliced:
    """Other numbers in the place of an attribute, or of the input that has them in later operator sets."""

    output: str
    attribute: str
    place: int
    values: tuple[int, ...]

    def apply(self, graph: gs.Graph) -> None:
        """Make this edit in the graph; a step that is not written is 1."""
        node = node_of(graph, self.output)
        if self.attribute in node.attrs:
            node.attrs[self.attribute] = list(self.values)
        elif self.place < len(node.inputs):
            node.inputs[self.place] = ints(f"{self.output}/dense/{self.attribute}", self.values)


@dataclass(frozen=True)
class Sampled:
    """Every n-th cell along some dimensions of what a node reads first."""

    output: str
    steps: Mapping[int, int]

    def apply(self, graph: gs.Graph) -> None:
        """Make this edit in the graph."""
        node = node_of(graph, self.output)
        data = node.inputs[0]
        node.inputs[0] = Emitter.into(graph, f"{self.output}/dense", data.dtype).every("every", data, self.steps)


@dataclass(frozen=True)
class Forget:
    """The shape of an inner tensor that was known and is another one now."""

    tensor: str

    def apply(self, graph: gs.Graph) -> None:
        """Make this edit in the graph."""
        outputs = {t.name for t in graph.outputs}
        for node in graph.nodes:
            for tensor in node.outputs:
                if tensor.name == self.tensor and tensor.name not in outputs:
                    tensor.shape = None


@dataclass(frozen=True)
class Extents:
    """An edit that changes the declared extents of an output, by dimension."""

    output: str
    extents: Mapping[int, int | str]

    def apply(self, graph: gs.Graph) -> None:
        """Make this edit in the graph."""
        for tensor in graph.outputs:
            if tensor.name == self.output and tensor.shape is not None:
                tensor.shape = [self.extents.get(dim, extent) for dim, extent in enumerate(tensor.shape)]
