"""fc-to-conv: every product with a constant matrix becomes a 1x1 convolution, for hardware that only runs these.

Before                                After
    x [.., K] ── MatMul W [K, N] ── y     x ── Reshape [R, K, 1, 1] ── Conv W^T [N, K, 1, 1] ── Reshape ── y
    x [M, K] ── Gemm W, C ── y            x ── Reshape [M, K, 1, 1] ── Conv W^T, bias C ── Reshape ── y
    W [N, K] ── MatMul x [.., K, P] ── y  x ── Reshape [.., K, P, 1] ── Conv W [N, K, 1, 1] ── Reshape ── y

Algebra. Row r of the product is  y[r, n] = sum_k x[r, k] W[k, n],  which is a 1x1 convolution of an image of one pixel
with K channels. All leading axes of x are rows, and rows are a batch. A constant on the left multiplies columns: P
pixels with K channels. `alpha` goes into the weight, `beta` into the bias; an Add of one number per output behind a
MatMul becomes the bias. Between two such layers the Reshapes cancel, also where the model's own changes of shape, or
operators that look at one number at a time, stand between them; where they do not cancel they become one.

Requires a Gemm or MatMul with one constant factor, an initializer or computed from them: a matrix, with any number of
ones before its two axes.
Refuses nothing: what does not fit is left as it is. (A Gemm may add a matrix, a MatMul multiply by a stack of them.)
Source: Lin, Chen and Yan, "Network in Network", ICLR 2014; the ONNX operator pages of Gemm, MatMul and Conv.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite.engine import quantized
from convrewrite.engine.emitting import Emitter
from convrewrite.engine.graph import (
    Constants,
    maker,
    names_taken,
    position,
    producer,
    subgraph_tensors,
    values_of,
)
from convrewrite.engine.layers import LINEAR, LinearLayer
from convrewrite.engine.operators import chosen
from convrewrite.engine.quantized import Stored
from convrewrite.engine.rewrite import Context, Declined, Pass, Plan, Reason, Refusal, Site

Array = np.ndarray[Any, Any]

UNARY = chosen("unary")
"""Operators that look at one number at a time, and change no shape."""

QUANTIZERS = chosen("quantizer")
SHAPES = chosen("reshape")
"""Operators that keep the order of the entries, and change the shape alone."""

CONV = "/fc-to-conv/conv"
"""The end of the name of a convolution that this pass made."""

REASONS = {
    reason.code: reason
    for reason in (
        Reason(
            "fc-to-conv/not-constant",
            "neither factor is constant, or both are",
            "nothing needs to be done: products of two activations are no layers",
        ),
        Reason(
            "fc-to-conv/not-a-matrix",
            "the constant factor is a vector, or a stack of several matrices",
            "write it as one product for each matrix",
        ),
        Reason(
            "fc-to-conv/open-shape",
            "the shape of the result does not follow from the extents that are known",
            "infer the shapes first (onnx.shape_inference), or fix the size of the input",
        ),
        Reason(
            "fc-to-conv/added-matrix",
            "what the Gemm adds is no number for each output",
            "write it as a Gemm without it, and an Add",
        ),
        Reason(
            "fc-to-conv/weight-type",
            "the weights are not floating-point numbers",
            "export the model in float32 or float16",
        ),
    )
}


@dataclass(frozen=True)
class FcToConv(Pass):
    """The pass."""

    name: ClassVar[str] = "fc-to-conv"
    reasons: ClassVar[Mapping[str, Reason]] = REASONS

    def candidates(self, graph: gs.Graph) -> Iterator[gs.Node]:
        """Every Gemm and MatMul node."""
        yield from (node for node in graph.nodes if node.op in LINEAR)

    def plan(self, context: Context, node: gs.Node) -> Sequence[Plan] | Declined | Refusal:
        """Plan the convolution from the matrix and the bias of the layer."""
        label = f"{node.op} '{node.name or node.outputs[0].name}'"
        constants, layer = context.constants, LinearLayer.of(node)
        weight = None if layer is None else quantized.read(node.inputs[layer.weight], constants)
        if layer is None or weight is None:
            return Declined(REASONS["fc-to-conv/not-constant"], label)
        data, result = (context.fixed.get(tensor.name) for tensor in (node.inputs[layer.data], node.outputs[0]))
        rank = None if data is None else len(data)
        layer = LinearLayer.from_node(node, weight=layer.weight, stored=weight.shape, rank=rank)
        if not layer.is_matrix:
            return Declined(REASONS["fc-to-conv/not-a-matrix"], f"{label}, {list(weight.shape)}")
        if weight.dtype.kind != "f":
            return Declined(REASONS["fc-to-conv/weight-type"], f"{label}, {weight.dtype}")
        shapes = _Shapes.of(node.op, layer, data, result)
        if shapes is None:
            return Declined(REASONS["fc-to-conv/open-shape"], label)
        plain = replace(layer, alpha=1.0)
        kernel = quantized.rearranged(weight, lambda stored: plain.matrix(stored)[:, :, None, None], layer.alpha)
        assert kernel is not None, "a transposed matrix has its scales along one axis"
        bias: Array | Stored | None = None
        if layer.bias is not None and layer.beta != 0.0:
            bias = _vector(node.inputs[layer.bias], layer, constants)
            if bias is None:
                return Declined(REASONS["fc-to-conv/added-matrix"], label)
        made = _Layer(node.outputs[0].name, layer, kernel, bias=bias, shapes=shapes)
        text = f"{node.op} [{layer.inputs}, {layer.outputs}] -> Conv {layer.outputs} x {layer.inputs} x 1 x 1"
        site = Site(self.name, node.outputs[0].name, node.op, "rewritten", detail=text, equivalence="reassociated")
        return [Plan((site,), made)]

    def apply(self, graph: gs.Graph, plan: Plan) -> None:
        """Put the convolution between two Reshapes, or join it to the one before."""
        plan.payload.put(graph)


@dataclass(frozen=True)
class _Shapes:
    """What Reshapes are told.

    Attributes:
        pixels: the shape of the images, [images, channels, pixels, 1]; a 0 keeps what is there, -1 is the rest.
        result: that of the result; None where it is computed: that of the data with `ones` before it, and the outputs
            in the place of what is contracted.
        rows: whether each vector is an image of one pixel; else the constant is on the left, and they are columns.
    """

    pixels: tuple[int, ...]
    result: tuple[int, ...] | None
    ones: int
    rows: bool

    @classmethod
    def of(
        cls, op: str, layer: LinearLayer, data: Sequence[Any] | None, result: Sequence[Any] | None
    ) -> _Shapes | None:
        """A layer's record, from the shapes of its data and result; None where these are not known."""
        if data is None and op == "Gemm":
            data = (None, None)
        ones = None if data is None else max(0, len(layer.stored) - max(2, len(data)))
        if layer.output_axis == -1:
            pixels = (-1, layer.inputs, 1, 1)
            known = (-1, layer.outputs) if op == "Gemm" else _numbers_of(result)
            if known is None and ones is None and len(layer.stored) > 2:
                return None
            return cls(pixels, known, ones or 0, True)
        if data is None or ones is None:
            return None
        others = [d if isinstance(d, int) else -1 for place, d in enumerate(data) if place != len(data) + layer.axis]
        *lead, count = others
        ahead = (1,) * ones
        if not lead:
            return cls((1, layer.inputs, -1, 1), (*ahead, layer.outputs, -1), ones, False)
        if others.count(-1) <= 1:
            images = -1 if -1 in lead else math.prod(lead)
            return cls((images, layer.inputs, count, 1), (*ahead, *lead, layer.outputs, count), ones, False)
        if len(lead) == 1 and not ones:
            return cls((0, layer.inputs, -1, 1), (0, layer.outputs, -1), ones, False)
        return None


@dataclass(frozen=True)
class _Layer:
    """The convolution that takes the place of the node that gives `output`."""

    output: str
    layer: LinearLayer
    weight: Array | Stored
    bias: Array | Stored | None
    shapes: _Shapes

    def put(self, graph: gs.Graph) -> None:
        """Make the change in the graph."""
        node = maker(graph, self.output)
        data, result = node.inputs[self.layer.data], node.outputs[0]
        bias, result = self._with_bias(graph, node, result)
        prefix = f"{self.output}/fc-to-conv"
        place = position(graph, node)
        dtype = data.dtype if data.dtype is not None else result.dtype
        emit = Emitter(graph.opset, names_taken(graph), prefix=prefix, dtype=dtype)
        rows = self.shapes.rows
        pixels, channels = data, None
        if node.op == "Gemm" and self.layer.axis == (-2 if rows else -1):
            pixels = emit("Transpose", "rows", [data], perm=[1, 0])
        elif rows:
            pixels, channels = _source(graph, data, move=self.shapes.result is not None)
        if channels != self.layer.inputs:
            pixels = emit("Reshape", "pixels", [pixels, emit.ints("rows-as-images", self.shapes.pixels)])
        inputs = [pixels, emit.kept("weight", self.weight)]
        inputs += [] if bias is None else [emit.kept("bias", bias)]
        made = emit("Conv", "conv" if rows else "conv-of-columns", inputs, kernel_shape=[1, 1])
        node.inputs.clear()
        node.outputs.clear()
        result.inputs.clear()
        del graph.nodes[position(graph, node)]
        if not _taken_on(graph, result, made, self.shapes.result or ()):
            emit("Reshape", "back", [made, self._shape(emit, data)], result=result)
        for offset, fresh in enumerate(emit.nodes):
            graph.nodes.insert(place + offset, fresh)

    def _with_bias(self, graph: gs.Graph, node: gs.Node, result: gs.Tensor) -> tuple[Array | Stored | None, gs.Tensor]:
        """The bias, and what the layer gives: an Add of one number per output behind a MatMul is taken in."""
        found = self.layer.add_behind(node) if self.bias is None and node.op == "MatMul" else None
        if found is None or result.name in _kept(graph):
            return self.bias, result
        add, tensor = found
        constants = Constants(graph)
        value, bias = quantized.read(tensor, constants), _vector(tensor, self.layer, constants)
        if value is None or bias is None or math.prod(value.shape) != self.layer.outputs:
            return None, result
        if len(value.shape) > len(self.shapes.result or result.shape or (0, 0)):
            return None, result
        given = add.outputs[0]
        add.inputs.clear()
        add.outputs.clear()
        del graph.nodes[position(graph, add)]
        return bias, given

    def _shape(self, emit: Emitter, data: gs.Tensor) -> gs.Tensor:
        """The shape of the result: numbers where at most one is open, else computed from what is read."""
        if self.shapes.result is not None:
            return emit.ints("shape", self.shapes.result)
        whole = emit("Shape", "shape-of-rows", [data], dtype=np.int64)
        old = {"starts": [0], "ends": [-1], "axes": [0]} if emit.opset < 10 else {}
        ends = [] if old else [emit.ints("first", [0]), emit.ints("last", [-1])]
        rows = emit("Slice", "rows-of-it", [whole, *ends], dtype=np.int64, **old)
        parts = [rows, emit.ints("columns", [self.layer.outputs])]
        if self.shapes.ones:
            parts.insert(0, emit.ints("ones", [1] * self.shapes.ones))
        return emit("Concat", "shape", parts, dtype=np.int64, axis=0)


def _source(graph: gs.Graph, data: gs.Tensor, *, move: bool) -> tuple[gs.Tensor, int | None]:
    """(the tensor to make rows of, its channels if it is pixels already): earlier changes of shape do not matter.

    Where a convolution of this pass lies ahead, and only changes of shape and operators on single numbers between,
    those operators are moved to its pixels, if they may be (`move`) and nothing else reads what they give.
    """
    kept = _kept(graph)
    between: list[gs.Node] = []
    best, tensor, others = data, data, False
    while (made := producer(tensor)) is not None:
        alone = len(tensor.outputs) == 1 and tensor.name not in kept
        if made.name.endswith(CONV) and _of_single_pixels(made):
            for node in reversed(between):
                node.inputs[0] = tensor
                tensor = node.outputs[0]
                tensor.shape = None
            return tensor, _outputs(made)
        if made.op in SHAPES and not made.domain:
            others |= not alone  # what else reads this shape forbids to change what it is made of
        elif move and alone and not others and len(made.outputs) == 1 and (made.op in UNARY or _rounds_all_alike(made)):
            between.append(made)
        else:
            break
        best = best if between else made.inputs[0]
        tensor = made.inputs[0]
    return best, None


def _of_single_pixels(conv: gs.Node) -> bool:
    """Whether a node is a convolution as this pass writes it, over images of one pixel: a name alone says nothing."""
    node: gs.Node | None = conv
    while node is not None and node.op != "Reshape":
        if node.op == "Conv" and node.attrs != {"kernel_shape": [1, 1]}:
            return False
        if node.op != "Conv" and node.op not in UNARY and not _rounds_all_alike(node):
            return False
        node = producer(node.inputs[0])
    shape = node.inputs[1] if node is not None and len(node.inputs) > 1 else None
    return isinstance(shape, gs.Constant) and values_of(shape).reshape(-1)[1:].tolist()[1:] == [1, 1]


def _taken_on(graph: gs.Graph, result: gs.Tensor, pixels: gs.Tensor, shape: Sequence[int]) -> bool:
    """Whether a Reshape alone reads the result, to a shape in numbers; it then reads the pixels, and comes to the same.

    Its zeros, which keep extents of what it reads, become those extents: of `shape`, where -1 is open.
    """
    readers = list(result.outputs)
    if len(readers) != 1 or readers[0].op != "Reshape" or len(readers[0].inputs) < 2 or result.name in _kept(graph):
        return False
    (reader,) = readers
    value = Constants(graph).value(reader.inputs[1])
    if value is None or reader.inputs[0] is not result or reader.attrs.get("allowzero"):
        return False
    numbers = [int(v) for v in np.ravel(value)]
    for place, number in enumerate(numbers):
        if number == 0:
            if place >= len(shape) or (shape[place] < 0 and -1 in numbers):
                return False
            numbers[place] = shape[place]
    reader.inputs[0] = pixels
    if numbers != [int(v) for v in np.ravel(value)]:
        reader.inputs[1] = gs.Constant(f"{pixels.name}/shape-again", np.array(numbers, np.int64))
    return True


def _kept(graph: gs.Graph) -> set[str]:
    """Tensors that must keep their shape: outputs of the graph, and what subgraphs read."""
    captured = {tensor.name for node in graph.nodes for tensor in subgraph_tensors(node)}
    return captured | {tensor.name for tensor in graph.outputs}


def _vector(tensor: gs.Tensor, layer: LinearLayer, constants: Constants) -> Array | Stored | None:
    """A number for each of the outputs, or one for all; None where the tensor is something else."""
    added = quantized.read(tensor, constants)
    if added is None or not layer.vector(added.shape):
        return None
    factor = layer.beta if layer.bias is not None else 1.0
    return quantized.rearranged(added, lambda values: np.broadcast_to(np.ravel(values), layer.outputs), factor)


def _rounds_all_alike(node: gs.Node) -> bool:
    """Whether it is a QuantizeLinear or DequantizeLinear with one scale."""
    alike = node.op in QUANTIZERS and not node.attrs.get("block_size")
    return alike and all(int(np.prod(t.shape)) == 1 for t in node.inputs[1:] if t.name and t.shape is not None)


def _outputs(conv: gs.Node) -> int:
    """Channels that a convolution of this pass gives; its weight may be stored quantized."""
    made = producer(conv.inputs[1])
    weight = conv.inputs[1] if made is None else made.inputs[0]
    return int(weight.shape[0])


def _numbers_of(shape: Sequence[Any] | None) -> tuple[int, ...] | None:
    """A shape for a Reshape, with -1 for one open extent; None where more are open."""
    if shape is None or sum(not isinstance(d, int) for d in shape) > 1:
        return None
    return tuple(d if isinstance(d, int) else -1 for d in shape)
