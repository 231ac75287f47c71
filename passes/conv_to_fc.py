"""conv-to-fc: a convolution that sees its whole map at once becomes a matrix product.

Before                                          After
    x [N, I, h, w] ── Conv W [O, I, h, w] ── y      x ── Flatten [N, I h w] ── Gemm W [O, I h w], b ── Reshape ── y
    x [N, I, 1, 1] ── Conv W [O, I, 1, 1] ── y      y [N, O, 1, 1]

Algebra. Where the kernel fits once,  y[o] = sum_iuv W[o, i, u, v] x[i, u, v] + b[o],  which is one row of a matrix for
each o, over the entries of the map in their own order. With `dilations` the kernel skips cells, and does not fit.
Reshapes that follow each other become one. This undoes `fc-to-conv`, and the head that `fcn` made at a fixed size.

Requires a Conv of one group with a constant weight, without pads, whose map has the extents of the kernel, whatever the
open axes of the input are: a map that follows one of them (along time, or a batch that is used as time) is left alone.
Where `size` makes a map fit, the input is fixed at that size in the file that is written, too.
Refuses nothing: what does not fit is left as it is.
Source: Long, Shelhamer and Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015, section 3.1,
read backwards; the ONNX operator pages of Conv and Gemm.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite.engine import quantized
from convrewrite.engine.emitting import Emitter
from convrewrite.engine.graph import Constants, maker, names_taken, position, producer
from convrewrite.engine.layers import Sliding
from convrewrite.engine.quantized import Stored
from convrewrite.engine.rewrite import Context, Declined, FixedSize, Pass, Plan, Reason, Refusal, Site
from convrewrite.text import Call, by, parameter

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]

REASONS = {
    reason.code: reason
    for reason in (
        Reason(
            "conv-to-fc/slides",
            "the kernel fits at more than one place of its map, or skips cells of it",
            "nothing needs to be done: only a convolution over its whole map is a matrix product",
        ),
        Reason(
            "conv-to-fc/open-map",
            "the extents of the map are not known, or follow an open axis of the input",
            f"fix the size of the input, or give {parameter('size')}, which does (a batch is fixed in the file alone)",
        ),
        Reason(
            "conv-to-fc/grouped",
            "each output channel sees some of the input channels only",
            f"expand the groups first: {Call('groups', given={'expand': 'dense'})}",
        ),
        Reason(
            "conv-to-fc/not-constant",
            "the weight is computed or fed at run time, or is no floating-point one",
            "fold constants first, or make the weight an initializer",
        ),
        Reason(
            "conv-to-fc/opset",
            "the model's opset is older than 7, the first whose Gemm ONNX Runtime has",
            "convert the model with onnx.version_converter first",
        ),
    )
}


@dataclass(frozen=True)
class ConvToFc(Pass):
    """The pass."""

    name: ClassVar[str] = "conv-to-fc"
    reasons: ClassVar[Mapping[str, Reason]] = REASONS

    def candidates(self, graph: gs.Graph) -> Iterator[gs.Node]:
        """Every Conv node."""
        yield from (node for node in graph.nodes if node.op == "Conv")

    def plan(self, context: Context, node: gs.Node) -> Sequence[Plan] | Declined | Refusal:
        """Whether the kernel fits once; then its matrix."""
        label = f"Conv '{node.name or node.outputs[0].name}'"
        opset, constants = context.graph.opset, context.constants
        if opset < 7:
            return Declined(REASONS["conv-to-fc/opset"], f"{label}, opset {opset}")
        weight = quantized.read(node.inputs[1], constants)
        has_bias = len(node.inputs) > 2 and bool(node.inputs[2].name)
        bias = quantized.read(node.inputs[2], constants) if has_bias else None
        if weight is None or weight.dtype.kind != "f" or (has_bias and bias is None):
            return Declined(REASONS["conv-to-fc/not-constant"], label)
        if int(node.attrs.get("group", 1)) > 1:
            return Declined(REASONS["conv-to-fc/grouped"], label)
        extents, fixes = _extents(context, node, weight)
        looked_at = extents or context.shapes.get(node.inputs[0].name, ())[2:]
        if looked_at and not _fits_once(node, weight, looked_at):
            kernel = list(weight.shape[2:])
            return Declined(REASONS["conv-to-fc/slides"], f"{label}, map {list(looked_at)}, kernel {kernel}")
        if extents is None:
            return Declined(REASONS["conv-to-fc/open-map"], label)
        matrix = quantized.rearranged(weight, lambda values: values.reshape(len(values), -1))
        if matrix is None:
            return Declined(REASONS["conv-to-fc/not-constant"], label)
        out, inputs = matrix.shape
        text = f"Conv {by(weight.shape, ' x ')} -> Gemm [{out}, {inputs}]"
        text += f", the input fixed at {parameter('size')}" if fixes else ""
        site = Site(self.name, node.outputs[0].name, "Conv", "rewritten", detail=text, equivalence="reassociated")
        layer = _Layer(node.outputs[0].name, matrix, bias, len(extents))
        return [Plan((site,), layer, evidence=[FixedSize()] if fixes else ())]

    def apply(self, graph: gs.Graph, plan: Plan) -> None:
        """Put the product between two changes of shape, or join it to what changes the shape already."""
        plan.payload.put(graph)


def _extents(context: Context, node: gs.Node, weight: Array | Stored) -> tuple[Shape | None, bool]:
    """Extents of the map that every input gives; and whether that takes an input of the size that was given."""
    data = node.inputs[0]
    stored = _numbers(context.graph, producer(data)) or ()
    numbers = tuple(d if d > 0 else None for d in stored) if len(stored) == len(weight.shape) else ()
    known = ((False, context.fixed.get(data.name)), (False, numbers), (True, context.sized.get(data.name)))
    for fixes, found in known:
        extents = tuple(dim for dim in (found or ())[2:] if dim is not None)
        if len(extents) == len(weight.shape) - 2:
            return extents, fixes
    return None, False


def _fits_once(node: gs.Node, weight: Array | Stored, extents: Shape) -> bool:
    """Whether the kernel covers a map of those extents, and no more."""
    slide = Sliding.read(node.attrs, weight.shape[2:], extents)
    once = slide.output == (1,) * len(extents) and slide.kernel == extents
    return once and not any((*slide.begin, *slide.end)) and slide.reach == slide.kernel


def _numbers(graph: gs.Graph, node: gs.Node | None) -> list[int] | None:
    """The shape that a Reshape gives, where it is constant."""
    if node is None or node.op != "Reshape" or len(node.inputs) < 2:
        return None
    value = Constants(graph).value(node.inputs[1])
    return None if value is None else [int(v) for v in np.ravel(value)]


@dataclass(frozen=True)
class _Layer:
    """The product that takes the place of the node that gives `output`."""

    output: str
    matrix: Array | Stored
    bias: Array | Stored | None
    rank: int

    def put(self, graph: gs.Graph) -> None:
        """Make the change in the graph."""
        node = maker(graph, self.output)
        data, result = node.inputs[0], node.outputs[0]
        prefix, place = f"{self.output}/conv-to-fc", position(graph, node)
        out, inputs = self.matrix.shape
        dtype = data.dtype if data.dtype is not None else result.dtype
        emit = Emitter(graph.opset, names_taken(graph), prefix=prefix, dtype=dtype)
        source, made = data, producer(data)
        if made is not None and made.op == "Reshape" and _numbers(graph, made) is not None:
            source = made.inputs[0]  # what it made of its input does not matter any more: the order of entries stays
        rows = emit("Reshape", "rows", [source, emit.ints("flat", [-1, inputs])])
        bias = np.zeros(out, self.matrix.dtype) if self.bias is None else self.bias
        factors = [rows, emit.kept("weight", self.matrix), emit.kept("bias", bias)]
        output, called = f"{prefix}/product", f"{prefix}/gemm"
        product = emit.emit("Gemm", factors, {"transB": 1}, output=output, dtype=dtype, node_name=called)
        after = list(result.outputs)
        node.inputs.clear()
        node.outputs.clear()
        del graph.nodes[position(graph, node)]
        inner = len(after) == 1 and not any(result is t for t in graph.outputs)
        if inner and self._takes_any_shape(graph, after[0], result):
            after[0].inputs[0] = product
        else:
            emit("Reshape", "map", [product, emit.ints("shape", [-1, out, *[1] * self.rank])], result=result)
        for offset, fresh in enumerate(emit.nodes):
            graph.nodes.insert(place + offset, fresh)

    def _takes_any_shape(self, graph: gs.Graph, reader: gs.Node, result: gs.Tensor) -> bool:
        """Whether what reads the map changes its shape to one that does not depend on it."""
        if reader.op != "Reshape" or reader.inputs[0] is not result:
            return False
        shape = _numbers(graph, reader)
        return shape is None or 0 not in shape
