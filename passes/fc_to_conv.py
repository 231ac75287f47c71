"""fc-to-conv: every product with a constant matrix becomes a 1x1 convolution, for hardware that only runs these.

Before                                After
    x [.., K] ── MatMul W [K, N] ── y     x ── Reshape [R, K, 1, 1] ── Conv W^T [N, K, 1, 1] ── Reshape ── y
    x [M, K] ── Gemm W, C ── y            x ── Reshape [M, K, 1, 1] ── Conv W^T, bias C ── Reshape ── y

Algebra. Row r of the product is  y[r, n] = sum_k x[r, k] W[k, n],  which is a 1x1 convolution of an image of one pixel
with K channels. All leading axes of x are rows, and rows are a batch. `alpha` goes into the weight, `beta` into the
bias; an Add of one number per column behind a MatMul becomes the bias. Between two such layers the Reshapes cancel,
also where operators that look at one number at a time stand between them.

Requires a Gemm or MatMul whose second factor is constant, an initializer or computed from them, with two axes.
Refuses nothing: what does not fit is left as it is. (A Gemm may add a matrix, a MatMul multiply by a stack of them.)
Source: Lin, Chen and Yan, "Network in Network", ICLR 2014; the ONNX operator pages of Gemm, MatMul and Conv.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite import quantized
from convrewrite.graph import Constants, producer
from convrewrite.quantized import Stored
from convrewrite.rewrite import Declined, Plan, Reason, Refusal, Site

Array = np.ndarray[Any, Any]

UNARY = frozenset(
    """Abs Celu Clip Elu Erf Exp Gelu HardSigmoid HardSwish Identity LeakyRelu Log Mish Neg Relu Selu Sigmoid Softplus
    Softsign Sqrt Swish Tanh ThresholdedRelu Dropout""".split()
)
"""Operators that look at one number at a time, and change no shape."""

BACK = "/fc-to-conv/back"
"""The end of the name of the Reshape that brings a result to its own shape."""

REASONS = {
    reason.code: reason
    for reason in (
        Reason(
            "fc-to-conv/not-constant",
            "neither factor is constant, or it is the first one",
            "nothing needs to be done: products of two activations are no layers",
        ),
        Reason(
            "fc-to-conv/not-a-matrix",
            "the constant factor has more or less than two axes",
            "write it as one product for each matrix",
        ),
        Reason(
            "fc-to-conv/added-matrix",
            "what the Gemm adds is no number for each column",
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
class FcToConv:
    """The pass; it has no options."""

    name: ClassVar[str] = "fc-to-conv"
    reasons: ClassVar[Mapping[str, Reason]] = REASONS

    def candidates(self, graph: gs.Graph) -> Iterator[gs.Node]:
        """Every Gemm and MatMul."""
        yield from [node for node in graph.nodes if node.op in ("Gemm", "MatMul")]

    def plan(self, graph: gs.Graph, node: gs.Node) -> Sequence[Plan] | Declined | Refusal:
        """Read the matrix and the bias."""
        label = f"{node.op} '{node.name or node.outputs[0].name}'"
        constants = Constants(graph)
        weight = quantized.read(node.inputs[1], constants)
        if weight is None or constants.value(node.inputs[0]) is not None:
            return Declined(REASONS["fc-to-conv/not-constant"], label)
        if len(weight.shape) != 2:
            return Declined(REASONS["fc-to-conv/not-a-matrix"], f"{label}, {list(weight.shape)}")
        if weight.dtype.kind != "f":
            return Declined(REASONS["fc-to-conv/weight-type"], f"{label}, {weight.dtype}")
        rows_are_outputs = node.op == "Gemm" and bool(node.attrs.get("transB", 0))
        out, inputs = weight.shape if rows_are_outputs else weight.shape[::-1]

        def kernels(matrix: Array) -> Array:
            return (matrix if rows_are_outputs else matrix.T)[:, :, None, None]

        bias: Array | Stored | None = None
        alpha, beta = ((node.attrs.get(name, 1.0) if node.op == "Gemm" else 1.0) for name in ("alpha", "beta"))
        if node.op == "Gemm" and len(node.inputs) > 2 and node.inputs[2].name:
            bias = _vector(node.inputs[2], out, beta, constants)
            if bias is None:
                return Declined(REASONS["fc-to-conv/added-matrix"], label)
        kernel = quantized.rearranged(weight, kernels, alpha)
        assert kernel is not None, "a transposed matrix has its scales along one axis"
        layer = _Layer(node.outputs[0].name, kernel, bias, int(out), int(inputs))
        text = f"{node.op} [{inputs}, {out}] -> Conv {out} x {inputs} x 1 x 1"
        site = Site(self.name, node.outputs[0].name, node.op, "rewritten", detail=text, equivalence="reassociated")
        return [Plan((site,), layer)]

    def apply(self, graph: gs.Graph, plan: Plan) -> None:
        """Put the convolution between two Reshapes, or join it to the one before."""
        plan.payload.put(graph)


@dataclass(frozen=True)
class _Layer:
    """The convolution that takes the place of the node that gives `output`."""

    output: str
    weight: Array | Stored
    bias: Array | Stored | None
    out: int
    inputs: int

    def put(self, graph: gs.Graph) -> None:
        """Change the graph."""
        node = next(n for n in graph.nodes if n.outputs and n.outputs[0].name == self.output)
        data, result = node.inputs[0], node.outputs[0]
        bias, result = self._with_bias(graph, node, result)
        prefix = f"{self.output}/fc-to-conv"
        place = graph.nodes.index(node)
        dtype = data.dtype if data.dtype is not None else result.dtype
        nodes: list[gs.Node] = []

        def emit(op: str, name: str, inputs: Sequence[gs.Tensor], **attrs: Any) -> gs.Variable:
            made = gs.Variable(f"{prefix}/{name}", np.int64 if op in ("Shape", "Slice", "Concat") else dtype)
            nodes.append(gs.Node(op, f"{prefix}/{name}", attrs, list(inputs), [made]))
            return made

        if node.op == "Gemm" and node.attrs.get("transA", 0):
            data = emit("Transpose", "rows", [data], perm=[1, 0])
        known = node.op == "Gemm" or _numbers_of(result) is not None
        pixels = self._ahead(data) if known else None
        if pixels is None:
            rows = gs.Constant(f"{prefix}/rows-as-images", np.array([-1, self.inputs, 1, 1], np.int64))
            pixels = emit("Reshape", "pixels", [data, rows])
        inputs = [pixels, quantized.emit(nodes, f"{prefix}/weight", self.weight)]
        inputs += [] if bias is None else [quantized.emit(nodes, f"{prefix}/bias", bias)]
        made = emit("Conv", "conv", inputs, kernel_shape=[1, 1])
        shape = self._shape(emit, data, result, node.op == "Gemm", prefix, graph.opset)
        node.inputs.clear()
        node.outputs.clear()
        result.inputs.clear()
        nodes.append(gs.Node("Reshape", f"{self.output}{BACK}", {}, [made, shape], [result]))
        graph.nodes.remove(node)
        for offset, fresh in enumerate(nodes):
            graph.nodes.insert(place + offset, fresh)

    def _with_bias(self, graph: gs.Graph, node: gs.Node, result: gs.Tensor) -> tuple[Array | Stored | None, gs.Tensor]:
        """The bias, and what the layer gives: an Add of one number per column behind a MatMul is taken in."""
        readers = list(result.outputs)
        if self.bias is not None or node.op != "MatMul" or len(readers) != 1 or readers[0].op != "Add":
            return self.bias, result
        add = readers[0]
        other = next((t for t in add.inputs if t is not result), result)
        constants = Constants(graph)
        value, bias = constants.value(other), _vector(other, self.out, 1.0, constants)
        inner = not any(result is t for t in graph.outputs)
        if value is None or bias is None or value.size != self.out or not inner:
            return None, result
        if value.ndim > len(result.shape or (0, 0)):
            return None, result
        given = add.outputs[0]
        add.inputs.clear()
        add.outputs.clear()
        graph.nodes.remove(add)
        return bias, given

    def _ahead(self, data: gs.Tensor) -> gs.Tensor | None:
        """The pixels of the layer before, where only a Reshape and operators on single numbers lie between."""
        between: list[gs.Node] = []
        tensor = data
        while True:
            made = producer(tensor)
            if made is None or len(tensor.outputs) != 1 or len(made.outputs) != 1:
                return None
            if made.op in UNARY or _rounds_all_alike(made):
                between.append(made)
                tensor = made.inputs[0]
                continue
            if not made.name.endswith(BACK):
                return None
            pixels = made.inputs[0]
            break
        if _outputs(pixels.inputs[0]) != self.inputs:
            return None
        for node in reversed(between):
            node.inputs[0] = pixels
            pixels = node.outputs[0]
            pixels.shape = None
        return pixels

    def _shape(self, emit: Any, data: gs.Tensor, result: gs.Tensor, flat: bool, prefix: str, opset: int) -> gs.Tensor:
        """The shape of the result: numbers where at most one is open, else computed from what is read."""
        numbers = [-1, self.out] if flat else _numbers_of(result)
        if numbers is not None:
            return gs.Constant(f"{prefix}/shape", np.array(numbers, np.int64))
        whole = emit("Shape", "shape-of-rows", [data])
        ends = [gs.Constant(f"{prefix}/{n}", np.array([v], np.int64)) for n, v in (("first", 0), ("last", -1))]
        old = {"starts": [0], "ends": [-1], "axes": [0]} if opset < 10 else {}
        rows = emit("Slice", "rows-of-it", [whole] if old else [whole, *ends], **old)
        columns = gs.Constant(f"{prefix}/columns", np.array([self.out], np.int64))
        shape: gs.Tensor = emit("Concat", "shape", [rows, columns], axis=0)
        return shape


def _vector(tensor: gs.Tensor, out: int, factor: float, constants: Constants) -> Array | Stored | None:
    """A number for each of the columns, or one for all; None where the tensor is something else."""
    added = quantized.read(tensor, constants)
    if added is None:
        return None
    size = int(np.prod(added.shape))
    if size != 1 and not (size == out and added.shape[-1:] == (out,)):
        return None
    return quantized.rearranged(added, lambda values: np.broadcast_to(np.ravel(values), out), factor)


def _rounds_all_alike(node: gs.Node) -> bool:
    """Whether it is a QuantizeLinear or DequantizeLinear with one scale."""
    alike = node.op in ("QuantizeLinear", "DequantizeLinear") and not node.attrs.get("block_size")
    return alike and all(int(np.prod(t.shape)) == 1 for t in node.inputs[1:] if t.name and t.shape is not None)


def _outputs(conv: gs.Node) -> int:
    """Channels that a convolution of this pass gives; its weight may be stored quantized."""
    made = producer(conv.inputs[1])
    weight = conv.inputs[1] if made is None else made.inputs[0]
    return int(weight.shape[0])


def _numbers_of(tensor: gs.Tensor) -> list[int] | None:
    """The shape of a tensor for a Reshape, with -1 for one open extent; None where more are open."""
    known = tensor.shape
    if known is None or sum(not isinstance(d, int) for d in known) > 1:
        return None
    return [d if isinstance(d, int) else -1 for d in known]
