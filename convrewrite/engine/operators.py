"""The operators of ONNX, and what each is to whoever walks over a graph: one record per operator, read by all.

A walk gives a rule to a kind of operators, or to one operator by its name, and refuses the others by a named reason:

    RULES   = ruled({"unary": lift_unary, "broadcast": lift_binary, "Concat": lift_concat})
    REFUSED = chosen("recurrent list Einsum")

tests/test_operators.py holds that every walk decides about every operator of the table, so an operator that is added
here either gets the rule of its kind everywhere or fails there by name. Operators of other domains are not here: the
walks that know some name them. Source: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

import onnx_graphsurgeon as gs

STANDARD = (None, "", "ai.onnx")
"""Domains of ONNX's own operators."""


@dataclass(frozen=True)
class Operator:
    """What is known of an operator.

    Attributes:
        kind: operators of one kind mean the same to every walk.
        axis: what the attribute `axis` is where the node does not say; None where there is no such attribute or it
            must be given.
        weight, bias: places among the inputs of the kernel or matrix, and of what is added.
        moves: it gives entries of its first input (Concat: of all), and none that was not there.
        finer: it may give a map whose cells are closer together than those that it reads.
        dilates_from: the operator set from which the kernel of a pool may be dilated.
    """

    name: str
    kind: str
    axis: int | None = None
    weight: int | None = None
    bias: int | None = None
    moves: bool = False
    finer: bool = False
    dilates_from: int = 1


_NAMES = {
    # Each number by itself; further inputs are bounds, ratios and types.
    "unary": """Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Clip Cos Cosh Dropout Elu Erf Exp Floor
        Gelu HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink
        Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu""",
    # The numbers at one place of all inputs, which broadcast; below opset 7 by attributes.
    "broadcast": """Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual
        Max Mean Min Mod Mul Or PRelu Pow Sub Sum Where Xor""",
    # Of the second input the type alone counts: the two need not even broadcast.
    "cast-like": "CastLike",
    # Each number by itself, with one scale for all, one for each entry of an axis, or (opset 21) one for each block.
    "quantizer": "QuantizeLinear DequantizeLinear",
    "dynamic-quantizer": "DynamicQuantizeLinear",
    "convolution": "Conv",
    "integer-convolution": "ConvInteger QLinearConv",
    "transposed-convolution": "ConvTranspose",
    "sampling": "DeformConv GridSample",
    "pool": "AveragePool LpPool MaxPool",
    "global-pool": "GlobalAveragePool GlobalLpPool GlobalMaxPool",
    "unpool": "MaxUnpool",
    "resize": "Resize Upsample",
    "blocks": "DepthToSpace SpaceToDepth",
    "pad": "Pad",
    "region": "AffineGrid CenterCropPad Col2Im MaxRoiPool RoiAlign",
    "matrix": "Gemm MatMul",
    "integer-matrix": "MatMulInteger QLinearMatMul",
    "product": "Det Einsum",
    "recurrent": "CausalConvWithState GRU LSTM RNN",
    "attention": "Attention LinearAttention RotaryEmbedding",
    # `axes` is an attribute, and an input from opset 18 on (of ReduceSum from 13).
    "reduction": """ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
        ReduceSumSquare""",
    "search": "ArgMax ArgMin",
    # Below opset 13 the axis is 1, and all axes from it on are taken together.
    "softmax": "Hardmax LogSoftmax Softmax",
    "batch-norm": "BatchNormalization",
    "map-norm": "GroupNormalization InstanceNormalization",
    "layer-norm": "LayerNormalization RMSNormalization",
    "channel-norm": "LRN",
    "axis-norm": "LpNormalization",
    "axes-norm": "MeanVarianceNormalization",
    "concat": "Concat",
    "split": "Split",
    "gather": "Gather",
    "slice": "Slice",
    "top": "TopK",
    "scan": "CumProd CumSum",
    "triangle": "Trilu",
    "entries": """Compress GatherElements GatherND OneHot ReverseSequence Scatter ScatterElements ScatterND
        TensorScatter""",
    # One list of everything, as long as the numbers say.
    "list": "NonMaxSuppression NonZero Unique",
    "reshape": "Flatten Reshape Squeeze Unsqueeze",
    "transpose": "Transpose",
    "repeat": "Expand Tile",
    # The bits of each number, as several of another type or several as one.
    "bits": "BitCast",
    "gate": "SwiGLU",
    # The extents of what it reads, and none of its numbers.
    "extents": "Shape Size",
    "constant": "Constant ConstantOfShape EyeLike Range",
    # Other numbers whenever it runs.
    "random": "Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike",
    "loss": "NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss",
    "signal": "BlackmanWindow DFT HammingWindow HannWindow MelWeightMatrix STFT",
    "control": "If Loop Scan",
    "sequence": """ConcatFromSequence Optional OptionalGetElement OptionalHasElement SequenceAt SequenceConstruct
        SequenceEmpty SequenceErase SequenceInsert SequenceLength SequenceMap SplitToSequence""",
    "text": "ImageDecoder RegexFullMatch StringConcat StringNormalizer StringSplit TfIdfVectorizer",
}

_AXES = {
    **dict.fromkeys("ArgMax ArgMin Gather GatherElements Scatter ScatterElements Split SplitToSequence".split(), 0),
    **dict.fromkeys("Concat DequantizeLinear DFT Flatten QuantizeLinear".split(), 1),
    **dict.fromkeys("Hardmax LayerNormalization LogSoftmax LpNormalization OneHot".split(), -1),
    **dict.fromkeys("RMSNormalization Softmax TopK".split(), -1),
    "TensorScatter": -2,
}
_WEIGHTS = {
    **dict.fromkeys("Conv ConvTranspose Gemm".split(), (1, 2)),
    **dict.fromkeys("ConvInteger MatMul MatMulInteger".split(), (1, None)),
    "DeformConv": (1, 3),
    "QLinearConv": (3, 8),
    "QLinearMatMul": (3, None),
}
_MOVES = """Compress Concat DepthToSpace Expand Flatten Gather GatherElements GatherND Identity Reshape Slice
    SpaceToDepth Split Squeeze Tile Transpose Unsqueeze"""
_FINER = "ConvTranspose DepthToSpace MaxUnpool Resize Upsample"
_DILATES = {"MaxPool": 10, "LpPool": 18, "AveragePool": 19}


def _operator(name: str, kind: str) -> Operator:
    weight, bias = _WEIGHTS.get(name, (None, None))
    moves, finer = name in _MOVES.split(), name in _FINER.split()
    return Operator(
        name=name,
        kind=kind,
        axis=_AXES.get(name),
        weight=weight,
        bias=bias,
        moves=moves,
        finer=finer,
        dilates_from=_DILATES.get(name, 1),
    )


OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {name: _operator(name, kind) for kind, names in _NAMES.items() for name in names.split()}
)
"""By name."""

R = TypeVar("R")


def named(choice: str) -> tuple[str, ...]:
    """The operators of a kind, or the one operator of that name. Raises KeyError where there is neither."""
    return tuple(_NAMES[choice].split()) if choice in _NAMES else (OPERATORS[choice].name,)


def chosen(choices: str) -> frozenset[str]:
    """All operators of some kinds, and some by their names, with spaces between. Raises KeyError as `named` does."""
    return frozenset(name for choice in choices.split() for name in named(choice))


def ruled(rules: Mapping[str, R]) -> dict[str, R]:
    """Rules by operator, from rules by kinds (spaces between them); that of one operator comes before its kind's."""
    by_choice = {choice: rule for choices, rule in rules.items() for choice in choices.split()}
    ordered = sorted(by_choice, key=lambda choice: choice not in _NAMES)
    return {name: by_choice[choice] for choice in ordered for name in named(choice)}


MOVING = frozenset(operator.name for operator in OPERATORS.values() if operator.moves)


def is_standard(node: gs.Node) -> bool:
    """Whether a node means an operator of ONNX, and none of the same name from another domain."""
    return node.domain in STANDARD


def axis_of(node: gs.Node, opset: int) -> int:
    """The attribute `axis` of a node of ONNX's, or what it is where it is not given: -1 counts from the last axis.

    Raises:
        KeyError: the operator has none.
    """
    operator = OPERATORS[node.op]
    default = 1 if operator.kind == "softmax" and opset < 13 else operator.axis
    if "axis" not in node.attrs and default is None:
        raise KeyError(f"{node.op} has no attribute axis")
    return int(node.attrs.get("axis", default))
