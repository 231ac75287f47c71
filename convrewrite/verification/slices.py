"""A temporary variant of a model whose batch is open, so that a large fixed batch is verified in slices.

    image [17370, 1, 28, 28] -> Conv -> Reshape [17370, -1] -> Gemm
    image [slice, 1, 28, 28] -> Conv -> Reshape     [0, -1] -> Gemm

That is done only where the structure shows that no image sees another: every operator on the way keeps the batch as its
first axis, by a rule of this module. What has no rule is not sliced; samples are never asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite.engine.graph import Constants, Shape, subgraphs
from convrewrite.engine.operators import axis_of, chosen, is_standard
from convrewrite.model_io import Model

BATCH = "slice"
"""The name of the opened axis."""

RANDOM = chosen("random")
QUANTIZERS = chosen("quantizer")
NAMED_AXES = chosen("Squeeze Unsqueeze reduction")
ALONE = chosen("unary quantizer Conv ConvTranspose pool global-pool batch-norm map-norm channel-norm blocks")
"""Operators that treat every image of their first operand alone; the others are constants."""

TOGETHER = chosen("broadcast")
"""Operators that go entry by entry, and broadcast."""

ALONG = chosen("search concat Flatten softmax layer-norm axis-norm split gather top")
"""Operators with an axis: along it, from it on, or up to it."""


def opened(model: Model, shapes: Mapping[str, Shape], batch: int) -> Model | None:
    """The model with its batch open; None where the structure does not show that its images are independent.

    Args:
        model: it is not changed. shapes: of all its tensors, at `batch` images.
    """
    graph = model.graph.copy()
    inputs = {t.name for t in graph.inputs if len(t.shape or ()) > 1 and shapes.get(t.name, (0,))[0] == batch}
    walk = _Walk(graph, shapes, batch, set(inputs))
    if not inputs or not all(walk.keeps(node) for node in graph.nodes):
        return None
    if any(t.name not in walk.batched for t in graph.outputs):
        return None
    for tensor in (*graph.inputs, *graph.outputs):
        if tensor.name in walk.batched and tensor.shape is not None:
            tensor.shape = [BATCH, *tensor.shape[1:]]
    ends = {id(t) for t in (*graph.inputs, *graph.outputs)}
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Variable) and id(tensor) not in ends:
            tensor.shape = None
    for place, (node, numbers) in enumerate(walk.reshapes):
        node.inputs[1] = gs.Constant(f"{node.outputs[0].name}/{BATCH}.{place}", np.array(numbers, np.int64))
    return replace(model, graph=graph)


class _Walk:
    """Follows the batch from node to node."""

    def __init__(self, graph: gs.Graph, shapes: Mapping[str, Shape], batch: int, batched: set[str]) -> None:
        self.graph, self.shapes, self.batch, self.batched = graph, shapes, batch, batched
        self.constants = Constants(graph)
        self.reshapes: list[tuple[gs.Node, list[int]]] = []

    def keeps(self, node: gs.Node) -> bool:
        """Whether a node keeps the batch first, and its images apart; what it gives is then known to have one."""
        read = [t for t in node.inputs if t.name in self.batched]
        if not read:
            return not subgraphs(node) and node.op not in RANDOM
        given = [t for t in node.outputs if t.name]
        first = all(self.shapes.get(t.name, (0,))[:1] == (self.batch,) for t in given)
        if not is_standard(node) or not first or not self._apart(node, read):
            return False
        self.batched.update(t.name for t in given)
        return True

    def _apart(self, node: gs.Node, read: list[gs.Tensor]) -> bool:
        data, rest, rank = node.inputs[0], node.inputs[1:], len(self.shapes.get(read[0].name, ()))
        opset = self.graph.opset
        alone = read == [data] and len(read) == 1
        if node.op in ALONE:  # the indices of a MaxPool count over the whole batch
            whole = node.op == "MaxPool" and len(node.outputs) > 1
            per_image = node.op in QUANTIZERS and self._per_image(rest[0], axis_of(node, opset) % rank)
            trains = node.attrs.get("training_mode") or (node.op == "Dropout" and len(rest) > 1)
            return alone and not (whole or per_image or trains)
        if node.op in TOGETHER:
            out = len(self.shapes[node.outputs[0].name])
            return all(self._broadcasts(tensor, out) for tensor in node.inputs)
        if node.op in ALONG:
            axis = axis_of(node, opset)
            whole = len(read) == len(node.inputs) if node.op == "Concat" else alone
            return whole and (axis == 1 if node.op == "Flatten" else axis % rank != 0)
        rules: dict[str, Callable[[gs.Node], bool]] = {
            "Gemm": self._product,
            "MatMul": self._product,
            "Pad": self._pad,
            "Reshape": self._reshape,
            "Slice": self._slice,
            "Transpose": lambda node: list(node.attrs.get("perm", ()))[:1] == [0],
        }
        if node.op in rules:
            return alone and rules[node.op](node)
        if node.op in NAMED_AXES:
            return alone and self._axes(node, rank)
        return False

    def _per_image(self, scales: gs.Tensor, axis: int) -> bool:
        """Whether the scales of a quantization run along the batch, or may."""
        shape = self.shapes.get(scales.name)
        return shape is None or len(shape) > 1 or (len(shape) == 1 and shape[0] > 1 and axis == 0)

    def _broadcasts(self, tensor: gs.Tensor, rank: int) -> bool:
        """Whether an operand has the batch where the result has it, or one entry for all images."""
        shape = self.shapes.get(tensor.name)
        if shape is None:
            return False
        if tensor.name in self.batched:
            return len(shape) == rank
        return len(shape) < rank or shape[0] == 1

    def _product(self, node: gs.Node) -> bool:
        """Rows, or stacks of rows, times a matrix."""
        left, right = (self.shapes.get(t.name, ()) for t in node.inputs[:2])
        if node.op == "Gemm":
            added = self.shapes.get(node.inputs[2].name, ()) if len(node.inputs) > 2 and node.inputs[2].name else ()
            return not node.attrs.get("transA") and (len(added) < 2 or added[0] == 1)
        return len(left) >= 2 and (len(right) == 2 or (2 < len(right) <= len(left) and right[0] == 1))

    def _pad(self, node: gs.Node) -> bool:
        pads = node.attrs.get("pads")
        if pads is None and len(node.inputs) > 1:
            pads = self.constants.value(node.inputs[1])
        rank = len(self.shapes[node.inputs[0].name])
        return pads is not None and len(pads) == 2 * rank and pads[0] == pads[rank] == 0

    def _reshape(self, node: gs.Node) -> bool:
        """The first axis stays, so the images do; the numbers of the shape may name the batch."""
        if self.graph.opset < 5 or len(node.inputs) < 2:
            return False
        value = self.constants.value(node.inputs[1])
        if value is None or not value.size or node.attrs.get("allowzero"):
            return False
        numbers = [int(number) for number in np.ravel(value)]
        if numbers[0] == self.batch:
            self.reshapes.append((node, [0, *numbers[1:]]))
        return numbers[0] in (0, -1, self.batch)

    def _slice(self, node: gs.Node) -> bool:
        axes = node.attrs.get("axes")
        if self.graph.opset >= 10:
            axes = self.constants.value(node.inputs[3]) if len(node.inputs) > 3 else None
        rank = len(self.shapes[node.inputs[0].name])
        return axes is not None and all(int(axis) % rank != 0 for axis in np.ravel(axes))

    def _axes(self, node: gs.Node, rank: int) -> bool:
        """Axes that are named, none of them the first."""
        axes = node.attrs.get("axes")
        if axes is None and len(node.inputs) > 1 and node.inputs[1].name:
            axes = self.constants.value(node.inputs[1])
        if axes is None:
            return False
        rank += len(axes) if node.op == "Unsqueeze" else 0
        return len(axes) > 0 and all(int(axis) % rank != 0 for axis in np.ravel(axes))
