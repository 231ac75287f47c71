"""open-batch: a network that was exported for a fixed number of images takes any number of them.

Before                                       After
    image [1, 3, 224, 224]                       image [batch, 3, 224, 224]
      |  trunk                                     |  the same trunk
    map [1, 512, 7, 7]                           map [batch, 512, 7, 7]
      |  Reshape to [1, 25088]                     |  Reshape to [0, 25088]
    [1, 25088] ── Gemm ── scores [1, 1000]       [batch, 25088] ── Gemm ── scores [batch, 1000]

Algebra. The layers of a network treat each image of a batch alike and by itself, so that nothing but numbers that were
written for one batch stands in the way: extents of inputs and outputs, and what a Reshape, Expand or Resize was told.
The batch is the slowest axis, so in a Reshape its place may be told by 0 (as it was), or by -1 (what is left) where it
is merged with others; in an Expand by 1. A Resize is told the batch that there is, and what a Concat puts beside each
image (a class token) is repeated for it. Shapes are then inferred for many images: each output must have that many
times its first extent, and the others as they were.

Requires inputs of a known first extent, which the image's axes follow.
Refuses networks in which some operator or output has no place for more images. What mixes images and keeps every
shape (a Softmax over the batch) is found by the comparison of two batches with each by itself.
Source: the ONNX operator pages of Reshape, Flatten, Expand, Resize and Concat.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from convrewrite.emitting import Emitter
from convrewrite.graph import Constants, infer_shapes, live_nodes, unique_name
from convrewrite.rewrite import Declined, Plan, Reason, Refusal, Site

Shape = tuple[int, ...]

MANY = 61
"""So many batches are tried in shape inference: a prime that no layer has as an extent."""

REASONS = {
    reason.code: reason
    for reason in (
        Reason(
            "open-batch/already-open",
            "the first extent of the input is open already",
            "nothing needs to be done",
        ),
        Reason(
            "open-batch/open-size",
            "extents of the input other than the batch are open, so no shape is known",
            "give --size (of fcn: --window)",
        ),
        Reason(
            "open-batch/no-input",
            "no input has a batch: an axis ahead of those of an image or of features",
            "export the model with a batch axis",
        ),
        Reason(
            "open-batch/baked",
            "an operator takes one number of images and no other",
            "export the model with a symbolic batch, or cut it ahead of that operator",
        ),
        Reason(
            "open-batch/mixed",
            "an output does not grow with the number of images: somewhere they are mixed, or the axis is dropped",
            "export the model so that every output has a batch axis",
        ),
    )
}


@dataclass(frozen=True)
class OpenBatch:
    """The pass.

    Attributes:
        shapes: of the graph's tensors, where extents other than the batch are open.
    """

    name: ClassVar[str] = "open-batch"
    reasons: ClassVar[Mapping[str, Reason]] = REASONS
    shapes: Mapping[str, Shape] | None = field(default=None, compare=False, repr=False)

    def candidates(self, graph: gs.Graph) -> Iterator[gs.Node]:
        """The first node: the graph is opened as a whole."""
        yield from graph.nodes[:1]

    def plan(self, graph: gs.Graph, node: gs.Node) -> Sequence[Plan] | Declined | Refusal:
        """Find what was written for one batch, and try many images in shape inference."""
        inputs = _batched(graph)
        if not inputs:
            listed = ", ".join(f"'{t.name}' {list(t.shape or ())}" for t in graph.inputs)
            open_ = any(len(t.shape or ()) >= 2 and not isinstance(t.shape[0], int) for t in graph.inputs)
            code = "open-batch/already-open" if open_ else "open-batch/no-input"
            return (Declined if open_ else Refusal)(REASONS[code], f"inputs {listed}")
        known = self.shapes or {}
        given = {t.name: [*known.get(t.name, t.shape)] for t in graph.inputs}
        if any(not isinstance(dim, int) for dims in given.values() for dim in dims):
            named = next(t for t in graph.inputs if any(not isinstance(d, int) for d in given[t.name]))
            return Refusal(REASONS["open-batch/open-size"], f"input '{named.name}' {list(named.shape)}")
        try:
            native = infer_shapes(graph, given)
            edits = tuple(_edits(graph, native, inputs))
            trial = graph.copy()
            for edit in edits:
                edit.do(trial)
            wide = {n: [MANY * d[0], *d[1:]] if n in inputs else d for n, d in given.items()}
            many = infer_shapes(trial, wide)
        except onnx.shape_inference.InferenceError as error:
            return Refusal(REASONS["open-batch/baked"], " ".join(str(error).split())[:200])
        reached = _reached(graph, inputs)
        for output in graph.outputs:
            if output.name in reached and not _grows(native.get(output.name), many.get(output.name)):
                found = list(many.get(output.name) or native.get(output.name) or ())
                return Refusal(REASONS["open-batch/mixed"], f"output '{output.name}' is {found} for {MANY} batches")
        text = ", ".join([f"input '{name}'" for name in inputs] + [edit.text for edit in edits])
        anchor = next((t.name for t in node.outputs if t.name), node.name)
        site = Site(self.name, anchor, node.op, "rewritten", detail=f"any batch: {text}", equivalence="exact")
        return [Plan((site,), _Work(inputs, edits, native, many), last=True)]

    def apply(self, graph: gs.Graph, plan: Plan) -> None:
        """Open the inputs and outputs, and change what was written for one batch."""
        plan.payload.do(graph)


def _batched(graph: gs.Graph) -> tuple[str, ...]:
    """The inputs that have a batch: the first one of the largest rank, and those with the same first extent."""
    shaped = [t for t in graph.inputs if len(t.shape or ()) >= 2]
    if not shaped:
        return ()
    image = max(shaped, key=lambda t: len(t.shape))
    batch = image.shape[0]
    return tuple(t.name for t in shaped if t.shape[0] == batch) if isinstance(batch, int) else ()


def _reached(graph: gs.Graph, inputs: Sequence[str]) -> set[str]:
    """Tensors that depend on one of the inputs, by more than its shape."""
    reached = set(inputs)
    for node in live_nodes(graph):
        if node.op not in ("Shape", "Size") and any(t.name in reached for t in node.inputs):
            reached.update(t.name for t in node.outputs if t.name)
    return reached


def _grows(one: Shape | None, many: Shape | None) -> bool:
    """Whether a shape is that of many batches."""
    return one is not None and many is not None and bool(one) and many == (MANY * one[0], *one[1:])


@dataclass(frozen=True)
class _Told:
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
class _Sized:
    """The batch that there is, ahead of the sizes of a Resize."""

    output: str
    text: str
    sizes: Sequence[int]

    def do(self, graph: gs.Graph) -> None:
        """Change the graph."""
        node = _node_of(graph, self.output)
        emit = Emitter(graph, f"{self.output}/any-batch", np.int64)
        node.inputs[3] = _batch_and(emit, node.inputs[0], self.sizes)
        graph.toposort()


@dataclass(frozen=True)
class _Repeated:
    """What a Concat puts beside each image, as often as there are images."""

    output: str
    text: str
    places: Sequence[int]
    image: int
    rank: int

    def do(self, graph: gs.Graph) -> None:
        """Change the graph."""
        node = _node_of(graph, self.output)
        emit = Emitter(graph, f"{self.output}/any-batch", np.int64)
        shape = _batch_and(emit, node.inputs[self.image], [1] * (self.rank - 1))
        for place in self.places:
            tensor = node.inputs[place]
            node.inputs[place] = emit("Expand", f"repeated-{place}", [tensor, shape])
            node.inputs[place].dtype = tensor.dtype  # None where the file does not list it
        graph.toposort()


def _batch_and(emit: Emitter, image: gs.Tensor, others: Sequence[int]) -> gs.Tensor:
    """A shape: the batch that a tensor has, and other extents."""
    whole = emit("Shape", "shape", [image])
    batch = emit("Gather", "batch", [whole, emit.ints("first", [0])])
    return emit("Concat", "sizes", [batch, emit.ints("others", others)], axis=0)


def _node_of(graph: gs.Graph, output: str) -> gs.Node:
    return next(node for node in graph.nodes if node.outputs and node.outputs[0].name == output)


_Edit = _Told | _Sized | _Repeated


def _edits(graph: gs.Graph, native: Mapping[str, Shape], inputs: Sequence[str]) -> Iterator[_Edit]:
    """What was written for one batch."""
    constants, reached = Constants(graph), _reached(graph, inputs)
    for node in live_nodes(graph):
        if not node.inputs or node.domain not in (None, "", "ai.onnx"):
            continue
        olds, new = [native.get(tensor.name) for tensor in node.inputs], native.get(node.outputs[0].name)
        moving = [tensor.name in reached for tensor in node.inputs]
        label, output = f"{node.op} '{node.name or node.outputs[0].name}'", node.outputs[0].name
        if node.op == "Concat" and new and _beside(node, moving, olds):
            places = [place for place, moves in enumerate(moving) if not moves]
            yield _Repeated(output, label, places, moving.index(True), len(new))
        old = olds[0]
        if not moving[0] or not old or not new:
            continue
        if node.op == "Flatten" and int(node.attrs.get("axis", 1)) == 0 and old[0] == 1:
            yield _Told(output, label, attrs={"axis": 1})
        told = constants.value(node.inputs[1]) if node.op in ("Reshape", "Expand") and len(node.inputs) > 1 else None
        if told is not None and np.ndim(told) == 1 and len(told) and int(told[0]) > 0:
            values = [int(v) for v in told]
            if node.op == "Expand" and len(old) == len(new) == len(values) and old[0] == new[0]:
                yield _Told(output, label, 1, [1, *values[1:]])
            elif node.op == "Reshape":
                copied = old[0] == new[0] and not node.attrs.get("allowzero", 0)
                rest = [size if value == -1 else value for value, size in zip(values, new, strict=True)][1:]
                yield _Told(output, label, 1, [0, *values[1:]] if copied else [-1, *rest])
        if node.op == "Resize" and len(node.inputs) > 3 and node.inputs[3].name and "axes" not in node.attrs:
            sizes = constants.value(node.inputs[3])
            if sizes is not None and int(sizes[0]) == old[0]:
                yield _Sized(output, label, [int(v) for v in sizes[1:]])


def _beside(node: gs.Node, moving: Sequence[bool], shapes: Sequence[Shape | None]) -> bool:
    """Whether a Concat puts the same thing beside each image."""
    others = [shape for shape, moves in zip(shapes, moving, strict=True) if not moves]
    ones = all(shape and shape[0] == 1 for shape in others)
    return any(moving) and bool(others) and ones and int(node.attrs["axis"]) % len(others[0] or (0,)) != 0


@dataclass(frozen=True)
class _Work:
    """What the plan found: the inputs to open, the edits, and the shapes of one batch and of many."""

    inputs: tuple[str, ...]
    edits: tuple[_Edit, ...]
    native: Mapping[str, Shape]
    many: Mapping[str, Shape]

    def do(self, graph: gs.Graph) -> None:
        """Change the graph."""
        for edit in self.edits:
            edit.do(graph)
        names = {str(d) for t in (*graph.inputs, *graph.outputs) for d in t.shape or () if not isinstance(d, int)}
        symbol = unique_name("batch", names)
        batch = next(t.shape[0] for t in graph.inputs if t.name in self.inputs)
        for name, tensor in graph.tensors().items():
            one, many, shape = self.native.get(name), self.many.get(name), tensor.shape
            if isinstance(tensor, gs.Constant) or shape is None or one is None:
                continue
            if many is None or len(many) != len(shape):
                tensor.shape = None
                continue
            grown = [d if a == b else symbol if a == batch else None for d, a, b in zip(shape, one, many, strict=True)]
            tensor.shape = grown
