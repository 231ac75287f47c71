"""What is changed in a graph for any number of images, found by the walk and made by the pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite.engine.emitting import Emitter
from convrewrite.engine.graph import sort_nodes, unique_name


@dataclass(frozen=True)
class Told:
    """Another constant, or attribute, in the place of the one that a node has."""

    output: str
    text: str
    place: int = 0
    values: Sequence[int] = ()
    attrs: Mapping[str, Any] = field(default_factory=dict)

    def do(self, graph: gs.Graph) -> None:
        """Change the graph; a constant may be shared, so a fresh one is made."""
        node = _node_of(graph, self.output)
        node.attrs.update(self.attrs)
        if self.place:
            name = unique_name(f"{self.output}/any-batch", set(graph.tensors()))
            node.inputs[self.place] = gs.Constant(name, np.array(self.values, np.int64))


@dataclass(frozen=True)
class Sized:
    """The number of images that there is, ahead of the sizes of a Resize."""

    output: str
    text: str
    sizes: Sequence[int]

    def do(self, graph: gs.Graph) -> None:
        """Make the change in the graph."""
        node = _node_of(graph, self.output)
        emit = Emitter.into(graph, f"{self.output}/any-batch", np.int64)
        node.inputs[3] = _images_among(emit, node.inputs[0], 0, 0, others=[1, *self.sizes])
        sort_nodes(graph)


@dataclass(frozen=True)
class Repeated:
    """What stands beside the images, as often as there are images: a class token, the first state of an LSTM.

    Attributes:
        places: of the inputs that are repeated. image: of the input that has the images. at: its axis of them.
        axis: of the images in what is repeated. rank: of that.
    """

    output: str
    text: str
    places: Sequence[int]
    image: int
    at: int
    axis: int
    rank: int

    def do(self, graph: gs.Graph) -> None:
        """Make the change in the graph."""
        node = _node_of(graph, self.output)
        emit = Emitter.into(graph, f"{self.output}/any-batch", np.int64)
        shape = _images_among(emit, node.inputs[self.image], self.at, self.axis, others=[1] * self.rank)
        for place in self.places:
            tensor = node.inputs[place]
            node.inputs[place] = emit("Expand", f"repeated-{place}", [tensor, shape])
            node.inputs[place].dtype = tensor.dtype  # None where the file does not list it
        sort_nodes(graph)


Edit = Told | Sized | Repeated


def _images_among(emit: Emitter, image: gs.Tensor, at: int, axis: int, others: Sequence[int]) -> gs.Tensor:
    """A shape: `others`, with the extent of axis `at` of a tensor at the place `axis`."""
    whole = emit("Shape", "shape", [image])
    images = emit("Gather", "batch", [whole, emit.ints("place", [at])])
    parts = [images]
    if axis:
        parts.insert(0, emit.ints("ahead", others[:axis]))
    if others[axis + 1 :]:
        parts.append(emit.ints("others", others[axis + 1 :]))
    return emit("Concat", "sizes", parts, axis=0)


def _node_of(graph: gs.Graph, output: str) -> gs.Node:
    """The node that gives a tensor."""
    return next(node for node in graph.nodes if any(tensor.name == output for tensor in node.outputs))
