"""What one node would take, estimated before it is computed: the bytes of its results, and its work.

    ConstantOfShape(3000000000)  ->  12 GB, whatever its 8 bytes in the file say

The bytes follow from onnx's own shape inference over the one node, which is told the values of small operands. The work
is counted from shapes alone, in units of about ten nanoseconds of the reference evaluator, so that the same tensors are
folded on a slow machine as on a fast one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference

from convrewrite.engine.tensors import Shape

Array = np.ndarray[Any, Any]

NUMPY = frozenset(
    "Abs Add And ArgMax ArgMin BatchNormalization BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Clip "
    "Compress Concat Constant ConstantOfShape Cos CumSum DepthToSpace DequantizeLinear Div Dropout Equal Exp Expand "
    "EyeLike Flatten Floor Gather Greater GreaterOrEqual Identity IsInf IsNaN Less LessOrEqual Log LogSoftmax Max Mean "
    "Min Mod Mul Neg NonZero Not OneHot Or Pad Pow QuantizeLinear Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum "
    "ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Round ScatterND "
    "Shape Sigmoid Sign Sin Size Slice Softmax SpaceToDepth Split Sqrt Squeeze Sub Sum Tanh Tile Transpose Trilu "
    "Unsqueeze Where Xor".split()
)
"""Operators that the reference evaluator computes with a few calls of numpy."""

PER_ENTRY, PER_ENTRY_SLOWLY = 2.0, 200.0
"""Units per entry of such an operator, and of one that loops in Python."""

PER_PRODUCT = 0.125
"""Units per multiply-accumulate of a matrix product or a convolution."""

SLOW_START = 1e5
"""Units that a convolution takes at least."""

PRODUCTS = frozenset("MatMul Gemm MatMulInteger QLinearMatMul Conv ConvInteger QLinearConv".split())
"""Operators whose work is their multiply-accumulates."""


@dataclass(frozen=True)
class Operand:
    """An operand that is known: its shape and onnx type, and its values where they are few.

    A `sequence` has the shape of all its entries in a row.
    """

    shape: Shape
    elem_type: int
    values: Array | None = None
    sequence: bool = False

    @property
    def entries(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Estimate:
    """What a node takes: bytes of all its results, and units of work."""

    bytes: float
    work: float


def estimate(node: onnx.NodeProto, operands: Sequence[Operand | None], opset: int) -> Estimate | None:
    """What a node takes with these operands (None where one is left out); None where that does not follow."""
    inputs, initializers = [], []
    for name, operand in zip(node.input, operands, strict=True):
        if operand is None or not name:
            continue
        if operand.sequence:
            inputs.append(onnx.helper.make_tensor_sequence_value_info(name, operand.elem_type, None))
            continue
        inputs.append(onnx.helper.make_tensor_value_info(name, operand.elem_type, operand.shape))
        if operand.values is not None:
            initializers.append(onnx.numpy_helper.from_array(operand.values, name))
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    graph = onnx.helper.make_graph([node], "one", inputs, outputs, initializer=initializers)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)
    known = onnx.shape_inference.infer_shapes(model, data_prop=True).graph.output
    given = [operand for operand in operands if operand is not None]
    entries, size = sum(operand.entries for operand in given), 0.0
    for info in known:
        kind = info.type.tensor_type
        dims = kind.shape.dim
        if any(operand.sequence for operand in given) or info.type.HasField("sequence_type"):
            size += 8.0 * entries
            continue  # a sequence holds what it is made of
        if not kind.HasField("shape") or kind.elem_type in (0, onnx.TensorProto.STRING):
            return None
        elif all(dim.HasField("dim_value") for dim in dims):
            count = math.prod(dim.dim_value for dim in dims)
            entries += count
            size += float(count) * item_size(kind.elem_type)
        elif node.op_type in ("NonZero", "Compress", "Unique"):  # no more than there is, with a number per axis
            size += 8.0 * max(1, len(given[0].shape)) * given[0].entries
        else:
            return None
    return Estimate(size, _work(node, given, entries))


def item_size(elem_type: int) -> int:
    """Bytes of one number of an onnx type in memory; 8 where it is not known."""
    try:
        return int(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(elem_type)).itemsize)
    except (KeyError, ValueError):
        return 8


def _work(node: onnx.NodeProto, given: Sequence[Operand], entries: float) -> float:
    """Units of work; `entries` are those of all operands and results."""
    if node.op_type in NUMPY:
        return PER_ENTRY * entries
    integers: dict[str, list[int]] = {a.name: [*a.ints] or [a.i] for a in node.attribute if a.type in (a.INT, a.INTS)}
    taps = math.prod(abs(n) + 1 for n in integers.get("dilations", ()) if n > 1)
    if node.op_type in PRODUCTS and len(given) > 1:
        one, other = (given[0], given[3]) if node.op_type.startswith("QLinear") and len(given) > 3 else given[:2]
        results = max(1.0, entries - sum(operand.entries for operand in given))
        if "Conv" in node.op_type:
            return SLOW_START + PER_PRODUCT * results * math.prod(other.shape[1:]) * taps
        return PER_PRODUCT * math.sqrt(one.entries * other.entries * results)  # (MK) (KN) (MN) = (MNK)^2
    if node.op_type == "Einsum":
        return PER_PRODUCT * 8 * _einsum(node, given)
    kernel = math.prod(integers.get("kernel_shape", ())) or 1
    weights = math.prod(given[1].shape[2:]) if "Conv" in node.op_type and len(given) > 1 else 1
    lengths = math.prod(abs(n) for n in (*integers.get("hidden_size", ()), *integers.get("max_length", ()))) or 1
    return PER_ENTRY_SLOWLY * entries * kernel * weights * taps * lengths


def _einsum(node: onnx.NodeProto, given: Sequence[Operand]) -> float:
    """Entries that an Einsum runs over: every letter once. Letters that an ellipsis hides count per operand."""
    equation = next((a.s.decode(errors="replace") for a in node.attribute if a.name == "equation"), "")
    terms = equation.replace(" ", "").split("->")[0].split(",")
    extents: dict[str, int] = {}
    hidden = 1.0
    for term, operand in zip(terms, given, strict=False):
        if "." in term:
            hidden *= operand.entries
            continue
        extents |= {
            letter: max(extent, extents.get(letter, 1)) for letter, extent in zip(term, operand.shape, strict=False)
        }
    return hidden * float(math.prod(extents.values()))
