"""open-batch: a network that was exported for a fixed number of images takes any number of them.

Before                                       After
    image [1, 3, 224, 224]                       image [batch, 3, 224, 224]
      |  trunk                                     |  the same trunk
    map [1, 512, 7, 7]                           map [batch, 512, 7, 7]
      |  Reshape to [1, 25088]                     |  Reshape to [0, 25088]
    [1, 25088] ── Gemm ── scores [1, 1000]       [batch, 25088] ── Gemm ── scores [batch, 1000]

Algebra. Each image of a batch is a function of its own where no operator lets one see another. This is decided by the
axes, operator by operator: every tensor either does not depend on the images, or has them along one axis (with other
things outside and inside of them, as the heads of an attention), and every operator that reads images has a rule that
says where they go. A sum over that axis, a maximum, a Softmax or a CumSum along it, a Gather from it, one scale for all
images, the number of images among the pixels: refused, whatever random inputs would show.

Then nothing but numbers that were written for one batch stands in the way: extents of inputs and outputs, and what a
Reshape, Expand or Resize was told. In a Reshape the place of the images is told by 0 (as it was), or by -1 (what is
left) where it is merged with others; in an Expand by 1. A Resize is told the batch that there is, and what a Concat
puts beside each image (a class token), or an LSTM begins with, is repeated for it.

Requires inputs of a known first extent, which the image's axes follow.
Refuses networks in which images see each other, an operator has no rule, or some operator or output has no place for
more images. Batches of two, three and seven images are then compared with each image by itself all the same.
Source: the ONNX operator pages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx
import onnx_graphsurgeon as gs

from convrewrite.engine.branches import followed
from convrewrite.engine.graph import Shape, infer_shapes, subgraph_tensors, unique_name
from convrewrite.engine.operators import chosen
from convrewrite.engine.rewrite import Context, Declined, Pass, Plan, Reason, Refusal, Site
from convrewrite.passes.open_batch import along, indexing, moving, pointwise, products, sliding, stored
from convrewrite.passes.open_batch.counting import COUNTING, TAKES_COUNTS
from convrewrite.passes.open_batch.edits import Edit
from convrewrite.passes.open_batch.states import Each, Stop
from convrewrite.passes.open_batch.walk import Decided, Rule, Walk, images_for
from convrewrite.text import parameter

RULES: Mapping[str, Rule] = {
    **pointwise.RULES,
    **along.RULES,
    **sliding.RULES,
    **products.RULES,
    **moving.RULES,
    **indexing.RULES,
    **stored.RULES,
}
"""Where the images go, by operator."""

REFUSED = chosen(
    """unpool region Det CausalConvWithState LinearAttention RotaryEmbedding ReverseSequence ScatterND TensorScatter
    bits gate constant random loss signal control sequence text"""
)
"""Operators of ONNX without a rule: where they read images, the reason is "open-batch/no-rule"."""

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
            f"give {parameter('size')} (of fcn: {parameter('window')})",
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
            "open-batch/no-shape",
            "the shape of what an operator gives is not known, so that it cannot be said where the images lie in it",
            "cut the model ahead of that operator, or export it with operators of onnx alone",
        ),
        Reason(
            "open-batch/mixed",
            "images of one batch see each other, or an output does not have them along its first axis",
            "run it one batch at a time, or cut it ahead of that operator",
        ),
        Reason(
            "open-batch/counted",
            "the number of images is used for more than the shape of a tensor",
            "export the model with constants in its place, or cut it ahead of that operator",
        ),
        Reason(
            "open-batch/no-rule",
            "it is not known of an operator that it treats each image by itself",
            "cut the model ahead of that operator, or export it with others",
        ),
    )
}


@dataclass(frozen=True)
class OpenBatch(Pass):
    """The pass."""

    name: ClassVar[str] = "open-batch"
    reasons: ClassVar[Mapping[str, Reason]] = REASONS

    def candidates(self, graph: gs.Graph) -> Iterator[gs.Node]:
        """The first node that reads images: the graph is opened as a whole."""
        names = _batched(graph) or tuple(tensor.name for tensor in graph.inputs)
        readers = (n for n in graph.nodes if any(t.name in names for t in (*n.inputs, *subgraph_tensors(n))))
        yield from [next(readers, None) or graph.nodes[0]] if graph.nodes else []

    def plan(self, context: Context, node: gs.Node) -> Sequence[Plan] | Declined | Refusal:
        """Find where the images lie, and what was written for one batch."""
        graph, inputs = context.graph, _batched(context.graph)
        if not inputs:
            listed = ", ".join(f"'{t.name}' {list(t.shape or ())}" for t in graph.inputs)
            open_ = any(len(t.shape or ()) >= 2 and not isinstance(t.shape[0], int) for t in graph.inputs)
            code = "open-batch/already-open" if open_ else "open-batch/no-input"
            return (Declined if open_ else Refusal)(REASONS[code], f"inputs {listed}")
        given = {t.name: [*context.shapes.get(t.name, t.shape)] for t in graph.inputs}
        if any(not isinstance(dim, int) for dims in given.values() for dim in dims):
            named = next(t for t in graph.inputs if any(not isinstance(d, int) for d in given[t.name]))
            return Refusal(REASONS["open-batch/open-size"], f"input '{named.name}' {list(named.shape)}")
        try:
            work = _work(graph, given, inputs)
        except Stop as stop:
            return Refusal(REASONS[stop.code], stop.detail)
        text = ", ".join([f"input '{name}'" for name in inputs] + [edit.text for edit in work.edits])
        site = Site(self.name, inputs[0], node.op, "rewritten", detail=f"any batch: {text}", equivalence="exact")
        return [Plan((site, *map(_branch_site, work.taken)), work, last=True)]

    def apply(self, graph: gs.Graph, plan: Plan) -> None:
        """Open the inputs and outputs, and change what was written for one batch."""
        plan.payload.do(graph)


def _work(graph: gs.Graph, given: Mapping[str, Sequence[int]], inputs: tuple[str, ...]) -> _Work:
    """Walk over the graph, and try the edits in shape inference for many images.

    Raises:
        Stop: the batch cannot be opened.
    """
    flat, taken = graph, list[str]()
    while True:
        walk = _walk(flat, given, inputs)
        try:
            walk.run(RULES, COUNTING, TAKES_COUNTS)
            break
        except Decided as decided:
            flat = followed(flat, {decided.output: decided.way})
            taken.append(decided.output)
    images, native = walk.images, walk.native
    trial = flat.copy()
    for edit in walk.edits:
        edit.do(trial)
    try:
        many = infer_shapes(trial, {n: [images.atom.extent, *d[1:]] if n in inputs else d for n, d in given.items()})
    except onnx.shape_inference.InferenceError as error:
        raise Stop("baked", _place(error)) from None
    for name, state in walk.states.items():
        if isinstance(state, Each) and many.get(name, state.wide(images)) != state.wide(images):
            raise Stop("baked", f"the shape of '{name}' does not grow with the number of images as its operators say")
    return _Work(inputs, tuple(walk.edits), native, many=many, flat=flat, taken=tuple(taken))


def _walk(graph: gs.Graph, given: Mapping[str, Sequence[int]], inputs: tuple[str, ...]) -> Walk:
    """A walk over a graph that has not begun.

    Raises:
        Stop: the graph contradicts its own shapes.
    """
    try:
        native = infer_shapes(graph, given)
    except onnx.shape_inference.InferenceError as error:
        raise Stop("baked", f"{_place(error)}, as the file has it already") from None
    sized = any(not isinstance(dim, int) for tensor in graph.inputs for dim in tensor.shape)
    return Walk(graph, native, inputs, images_for(given[inputs[0]][0], native), sized=sized)


def _branch_site(output: str) -> Site:
    """An `If` that takes the same branch however many images there are."""
    return Site(
        "open-batch",
        output,
        "If",
        "rewritten",
        detail="the branch that it takes for any number of images",
        equivalence="exact",
    )


def _place(error: onnx.shape_inference.InferenceError) -> str:
    """Which operator shape inference has something against; its own words would say no more to most readers."""
    found = re.search(r"op_type: ?(\w+)(?:, node name: ?([^)]*))?\)", str(error))
    where = "some operator" if found is None else f"{found[1]} '{found[2] or '?'}'"
    return f"shape inference finds no shape behind {where}"


def _batched(graph: gs.Graph) -> tuple[str, ...]:
    """The inputs that have a batch: the first one of the largest rank, and those with the same first extent."""
    shaped = [t for t in graph.inputs if len(t.shape or ()) >= 2]
    if not shaped:
        return ()
    image = max(shaped, key=lambda t: len(t.shape))
    batch = image.shape[0]
    return tuple(t.name for t in shaped if t.shape[0] == batch) if isinstance(batch, int) else ()


@dataclass(frozen=True)
class _Work:
    """What the plan found: the inputs to open, the edits, and the shapes of one batch and of many.

    Attributes:
        flat: the graph without the `If` nodes whose outputs are `taken`; it is not changed.
    """

    inputs: tuple[str, ...]
    edits: tuple[Edit, ...]
    native: Mapping[str, Shape]
    many: Mapping[str, Shape]
    flat: gs.Graph
    taken: tuple[str, ...]

    def do(self, graph: gs.Graph) -> None:
        """Make the change in the graph."""
        if self.taken:
            own = self.flat.copy()
            graph.nodes, graph.inputs, graph.outputs = own.nodes, own.inputs, own.outputs
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
