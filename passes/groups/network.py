"""What the pass asks of the graph around a convolution: who reads what, how many channels it has, what is constant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
import onnx_graphsurgeon as gs

from convrewrite.engine.axes import SAMPLE
from convrewrite.engine.graph import Constants, Shape, infer_shapes, skeleton, subgraph_tensors

Dims = tuple[int | None, ...]


class Network:
    """One graph, asked about its tensors; it is not changed, and must not be while this is used.

    Attributes:
        tensors: by name. readers: nodes by the name of a tensor that they read, each once.
    """

    def __init__(self, graph: gs.Graph) -> None:
        self.graph = graph
        self.tensors: dict[str, gs.Tensor] = graph.tensors()
        self.readers: dict[str, list[gs.Node]] = {}
        for node in graph.nodes:
            for name in dict.fromkeys(t.name for t in node.inputs if t.name):
                self.readers.setdefault(name, []).append(node)
        self._nodes = {self.anchor(node): node for node in graph.nodes}
        self._public = {t.name for t in (*graph.inputs, *graph.outputs)}
        self._captured = {t.name for node in graph.nodes for t in subgraph_tensors(node)}
        self._constants = Constants(graph)
        self._constant: dict[str, bool] = {}
        self.dims = _dims(graph)
        self._sample: dict[str, Shape] = {}
        if any(
            t.name and None in self.dims.get(t.name, (None, None))[1:] for node in graph.nodes for t in node.outputs
        ):
            self._sample = _at_sample(graph)
            self.dims |= _filled(self.dims, self._sample)

    def anchor(self, node: gs.Node) -> str:
        """The output by which a node is named."""
        return str(next((t.name for t in node.outputs if t.name), node.name))

    def node(self, anchor: str) -> gs.Node:
        """The node that has this anchor."""
        return self._nodes[anchor]

    def label(self, node: gs.Node) -> str:
        """The name that messages use for a node."""
        return f"{node.op} '{node.name or self.anchor(node)}'"

    def is_public(self, tensor: gs.Tensor) -> bool:
        """Whether it is an input or an output of the graph."""
        return tensor.name in self._public

    def is_captured(self, tensor: gs.Tensor) -> bool:
        """Whether a subgraph reads the tensor."""
        return tensor.name in self._captured

    def is_constant(self, tensor: gs.Tensor) -> bool:
        """Whether the value of the tensor is known."""
        if isinstance(tensor, gs.Constant):
            return True
        if tensor.name not in self._constant:
            self._constant[tensor.name] = self.value(tensor) is not None
        return self._constant[tensor.name]

    def value(self, tensor: gs.Tensor | None) -> np.ndarray[Any, Any] | None:
        """The value of the tensor, where it is known."""
        return self._constants.value(tensor)

    def at_sample(self, tensor: gs.Tensor) -> np.ndarray[Any, Any] | None:
        """Its value at one size of the batch, where nothing else is open; shapes count as known there."""
        value = self.value(tensor)
        return Constants(self.graph, self._sample).value(tensor) if value is None and self._sample else value

    def shape(self, tensor: gs.Tensor) -> Dims | None:
        """Its extents, None for those that are not known; None where not even their number is."""
        if isinstance(tensor, gs.Constant):
            return tuple(int(n) for n in tensor.shape)
        if tensor.name not in self.dims and self.is_constant(tensor):
            value = self.value(tensor)
            return None if value is None else tuple(value.shape)
        return self.dims.get(tensor.name)

    def channels(self, tensor: gs.Tensor) -> int | None:
        """The extent of axis 1, where it is known."""
        shape = self.shape(tensor)
        return shape[1] if shape is not None and len(shape) > 1 else None

    def rank(self, tensor: gs.Tensor) -> int | None:
        """The number of axes, where it is known."""
        shape = self.shape(tensor)
        return None if shape is None else len(shape)


def _dims(graph: gs.Graph) -> dict[str, Dims]:
    """What shape inference says, whatever the model's own size: unknown extents are None."""
    try:
        model = onnx.shape_inference.infer_shapes(skeleton(graph), check_type=False, strict_mode=False, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError):
        return {}
    found: dict[str, Dims] = {}
    for info in (*model.graph.value_info, *model.graph.output, *model.graph.input):
        kind = info.type.tensor_type
        if kind.HasField("shape"):
            found[info.name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim)
    return found


def _at_sample(graph: gs.Graph) -> dict[str, Shape]:
    """Shapes where the batch is SAMPLE; none where more than the batch is open. It folds what computes a shape."""
    given: dict[str, list[int]] = {}
    for tensor in graph.inputs:
        shape = [d if isinstance(d, int | np.integer) else None for d in tensor.shape or ()]
        if tensor.shape is None or None in shape[1:]:
            return {}
        given[tensor.name] = [SAMPLE if d is None else int(d) for d in shape]
    try:
        return infer_shapes(graph, given)
    except (onnx.shape_inference.InferenceError, RuntimeError):
        return {}


def _filled(dims: dict[str, Dims], sample: dict[str, Shape]) -> dict[str, Dims]:
    """What the shapes at SAMPLE add: all extents that are not made of it."""
    found: dict[str, Dims] = {}
    for name, shape in sample.items():
        own = dims.get(name)
        if own is None or (None in own and len(own) == len(shape)):
            known_before = own or (None,) * len(shape)
            found[name] = tuple(
                n if n is not None or d % SAMPLE == 0 else d for n, d in zip(known_before, shape, strict=True)
            )
    return found


def known(dims: Sequence[int | None]) -> tuple[int, ...] | None:
    """The extents, if all of them are known; else None."""
    return None if any(d is None for d in dims) else tuple(int(d) for d in dims if d is not None)
