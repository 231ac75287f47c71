"""One model for each operator of the table: an image goes in, the operator is all that is done to it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto

from convrewrite.engine.operators import OPERATORS
from nets import Net

SHAPE = (4, 6, 6)
"""Of the image: its batch is one, unless told otherwise."""

FLOAT = TensorProto.FLOAT
BOOLEAN = frozenset("And Not Or Xor".split())
BITS = frozenset("BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor".split())
GIVES_BOOLEANS = BOOLEAN | frozenset("Equal Greater GreaterOrEqual IsInf IsNaN Less LessOrEqual".split())
ATTRIBUTES = {"Mod": {"fmod": 1}, "BitShift": {"direction": "LEFT"}, "Cast": {"to": FLOAT}}

NO_IMAGE = frozenset("constant sequence text control signal".split())
"""Kinds of operators that read no image: no numbers, lists of tensors, words, graphs or spectra."""

WITHOUT = frozenset("AffineGrid Col2Im CausalConvWithState LinearAttention RotaryEmbedding TensorScatter".split())
"""Operators that read no map of this shape."""

Piece = Callable[[Net, str, str], str]
PIECES: dict[str, Piece] = {}
"""By kind or name: add the operator behind a tensor, and return a tensor of floats."""


def opset_of(op: str, least: int = 13) -> int:
    """The first operator set from `least` on, or the last one, in which ONNX has the operator."""
    versions = [s for s in onnx.defs.get_all_schemas_with_history() if s.name == op and s.domain == ""]
    last = max(versions, key=lambda schema: schema.since_version)
    if last.deprecated:
        return int(last.since_version) - 1
    return max(least, min(s.since_version for s in versions if not s.deprecated))


def apply(net: Net, op: str, x: str) -> str:
    """The operator behind a tensor, with constants for whatever else it reads."""
    return (PIECES.get(op) or PIECES[OPERATORS[op].kind])(net, op, x)


def alone(op: str, batch: int = 1) -> onnx.ModelProto:
    """The image, the operator, and what it gives."""
    net = Net(batch, *SHAPE, opset=opset_of(op))
    return net.model(net.node("Identity", apply(net, op, "x"), outputs=["y"]))


def feeds(model: onnx.ModelProto, seed: int = 0, batch: int = 1) -> dict[str, np.ndarray]:
    """An image of numbers for which every operator is defined."""
    rng = np.random.default_rng(seed)
    dims = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    return {"x": rng.uniform(0.05, 0.95, (batch, *dims[1:])).astype(np.float32)}


def piece(*keys: str) -> Callable[[Piece], Piece]:
    def keep(function: Piece) -> Piece:
        PIECES.update(dict.fromkeys(keys, function))
        return function

    return keep


def cast(net: Net, x: str, kind: int = FLOAT) -> str:
    return str(net.Cast(x, to=kind))


def per_channel(net: Net, x: str, dtype: type = np.float32) -> str:
    """A constant with a positive number for each channel, along the second axis of a map or vector."""
    shape = net.shape(x)
    return net.const(np.arange(1, shape[1] + 1).reshape(1, -1, *[1] * (len(shape) - 2)), dtype=dtype)


@piece("unary", "broadcast")
def entrywise(net: Net, op: str, x: str) -> str:
    operands = [x] if OPERATORS[op].kind == "unary" else [x, per_channel(net, x)]
    if op == "Where":
        operands = [net.Greater(x, net.const(0.5)), *operands]
    if op == "Acosh":
        operands = [net.Add(x, net.const(1.0))]
    if op in BOOLEAN:
        operands = [net.Greater(operand, net.const(0.5)) for operand in operands]
    if op in BITS:
        kind = TensorProto.UINT32 if op == "BitShift" else TensorProto.INT32
        operands = [cast(net, operand, kind) for operand in operands]
    made = net.node(op, *operands, **ATTRIBUTES.get(op, {}))
    return cast(net, made) if op in GIVES_BOOLEANS | BITS else str(made)


@piece("cast-like")
def cast_like(net: Net, op: str, x: str) -> str:
    return str(net.CastLike(x, net.const(1.0)))


@piece("quantizer")
def quantized(net: Net, op: str, x: str) -> str:
    scale, zero = net.const(0.01), net.const(3, dtype=np.uint8)
    return str(net.DequantizeLinear(net.QuantizeLinear(x, scale, zero), scale, zero))


@piece("dynamic-quantizer")
def dynamically(net: Net, op: str, x: str) -> str:
    return str(net.DequantizeLinear(*net.node(op, x, outputs=3)))


@piece("convolution")
def convolution(net: Net, op: str, x: str) -> str:
    return net.conv(x, 4, 2, 2)


@piece("ConvInteger")
def integers(net: Net, op: str, x: str) -> str:
    weight = net.const(np.ones((4, 4, 2, 2)), dtype=np.uint8)
    return cast(net, net.ConvInteger(cast(net, x, TensorProto.UINT8), weight))


@piece("QLinearConv", "QLinearMatMul")
def with_scales(net: Net, op: str, x: str) -> str:
    scale, zero = net.const(0.01), net.const(3, dtype=np.uint8)
    x = x if op == "QLinearConv" else net.Flatten(x)
    shape = (4, 4, 2, 2) if op == "QLinearConv" else (net.shape(x)[1], 4)
    weight = net.const(np.ones(shape), dtype=np.uint8)
    data = net.QuantizeLinear(x, scale, zero)
    return str(net.DequantizeLinear(net.node(op, data, scale, zero, weight, scale, zero, scale, zero), scale, zero))


@piece("transposed-convolution")
def transposed(net: Net, op: str, x: str) -> str:
    return str(net.ConvTranspose(x, net.ints(4, 4, 2, 2), strides=[2, 2]))


@piece("DeformConv")
def deformed(net: Net, op: str, x: str) -> str:
    return str(net.DeformConv(x, net.ints(4, 4, 1, 1), net.const(np.zeros((net.shape(x)[0], 2, 6, 6)))))


@piece("GridSample")
def sampled(net: Net, op: str, x: str) -> str:
    return str(net.GridSample(x, net.const(net.rng.uniform(-1, 1, (net.shape(x)[0], 3, 3, 2)))))


@piece("pool")
def pooled(net: Net, op: str, x: str) -> str:
    return str(net.node(op, x, kernel_shape=[2, 2]))


@piece("global-pool", "LRN", "axis-norm", "axes-norm", "Det", "softmax", "NonZero")
def plain(net: Net, op: str, x: str) -> str:
    attrs = {"LRN": {"size": 3}, "LpNormalization": {"axis": 1}, "MeanVarianceNormalization": {"axes": [1]}}
    axis = {"axis": 1} if OPERATORS[op].kind == "softmax" else {}
    made = net.node(op, x, **attrs.get(op, axis))
    return cast(net, made) if op == "NonZero" else str(made)


@piece("unpool")
def unpooled(net: Net, op: str, x: str) -> str:
    window = {"kernel_shape": [2, 2], "strides": [2, 2]}
    return str(net.MaxUnpool(*net.node("MaxPool", x, outputs=2, **window), **window))


@piece("resize")
def resized(net: Net, op: str, x: str) -> str:
    scales = net.const([1.0, 1.0, 2.0, 2.0], dtype=np.float32)
    return str(net.Upsample(x, scales) if op == "Upsample" else net.Resize(x, "", scales))


@piece("blocks")
def blocks(net: Net, op: str, x: str) -> str:
    return str(net.node(op, x, blocksize=2))


@piece("pad")
def padded(net: Net, op: str, x: str) -> str:
    return str(net.Pad(x, net.const([0, 0, 1, 1, 0, 0, 1, 1])))


@piece("RoiAlign", "MaxRoiPool", "CenterCropPad")
def region(net: Net, op: str, x: str) -> str:
    if op == "CenterCropPad":
        return str(net.CenterCropPad(x, net.const([4, 4]), axes=[2, 3]))
    if op == "MaxRoiPool":
        return str(net.MaxRoiPool(x, net.const([[0.0, 0.0, 0.0, 3.0, 3.0]], dtype=np.float32), pooled_shape=[2, 2]))
    return str(net.RoiAlign(x, net.const([[0.0, 0.0, 3.0, 3.0]], dtype=np.float32), net.const([0])))


@piece("matrix", "MatMulInteger")
def multiplied(net: Net, op: str, x: str) -> str:
    flat = net.Flatten(x)
    count = net.shape(flat)[1]
    if op == "MatMulInteger":
        ones = net.const(np.ones((count, 3)), dtype=np.uint8)
        return cast(net, net.MatMulInteger(cast(net, flat, TensorProto.UINT8), ones))
    return str(net.node(op, flat, net.ints(count, 3)))


@piece("Einsum")
def summed(net: Net, op: str, x: str) -> str:
    return str(net.Einsum(x, net.ints(4, 4), equation="nchw,cd->ndhw"))


@piece("recurrent")
def recurrent(net: Net, op: str, x: str) -> str:
    batch, gates = net.shape(x)[0], {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    steps = net.Transpose(net.Reshape(x, net.const([batch, 4, 36])), perm=[1, 0, 2])
    return str(net.node(op, steps, net.ints(1, gates * 2, 36), net.ints(1, gates * 2, 2), hidden_size=2))


@piece("attention")
def attention(net: Net, op: str, x: str) -> str:
    return str(net.node(op, x, x, x))


@piece("reduction")
def reduced(net: Net, op: str, x: str) -> str:
    return net.reduce(op, x, [2, 3])


@piece("search")
def searched(net: Net, op: str, x: str) -> str:
    return cast(net, net.node(op, x, axis=1))


@piece("batch-norm", "map-norm", "layer-norm")
def normalised(net: Net, op: str, x: str) -> str:
    if OPERATORS[op].kind == "layer-norm":
        made = net.node(op, net.Transpose(x, perm=[0, 2, 3, 1]), net.const(np.arange(1.0, 5.0)))
        return str(net.Transpose(made, perm=[0, 3, 1, 2]))
    vectors = [net.const(np.arange(1.0, 5.0)) for _ in range(4 if op == "BatchNormalization" else 2)]
    return str(net.node(op, x, *vectors, **({"num_groups": 2} if op == "GroupNormalization" else {})))


@piece("concat")
def joined(net: Net, op: str, x: str) -> str:
    return str(net.Concat(x, net.Relu(x), axis=1))


@piece("split")
def split(net: Net, op: str, x: str) -> str:
    return str(net.Sub(*net.node(op, x, net.const([2, 2]), outputs=2, axis=1)))


@piece("gather")
def gathered(net: Net, op: str, x: str) -> str:
    return str(net.Gather(x, net.const([3, 0, 1]), axis=1))


@piece("slice")
def sliced(net: Net, op: str, x: str) -> str:
    return str(net.Slice(x, net.const([1]), net.const([3]), net.const([1])))


@piece("top")
def top(net: Net, op: str, x: str) -> str:
    return str(net.node(op, x, net.const([2]), outputs=2, axis=1)[0])


@piece("scan")
def scanned(net: Net, op: str, x: str) -> str:
    return str(net.node(op, x, net.const(1)))


@piece("triangle")
def triangle(net: Net, op: str, x: str) -> str:
    return str(net.Trilu(x))


@piece("entries")
def entries(net: Net, op: str, x: str) -> str:
    batch = net.shape(x)[0]
    zeros = net.const(np.zeros((batch, 1, 6, 6)), dtype=np.int64)
    if op == "Compress":
        return str(net.Compress(x, net.const([1, 0, 1, 0], dtype=bool), axis=1))
    if op == "GatherElements":
        return str(net.GatherElements(x, zeros, axis=1))
    if op in ("Scatter", "ScatterElements"):
        return str(net.node(op, x, zeros, net.const(np.ones((batch, 1, 6, 6))), axis=1))
    if op == "GatherND":
        return str(net.GatherND(x, net.const(np.zeros((batch, 1)), dtype=np.int64), batch_dims=1))
    if op == "ScatterND":
        return str(net.ScatterND(x, net.const([[0]]), net.const(np.ones((1, *SHAPE)))))
    if op == "OneHot":
        return str(net.OneHot(cast(net, x, TensorProto.INT64), net.const(3), net.const([0.0, 1.0], dtype=np.float32)))
    return str(net.ReverseSequence(x, net.const([2] * batch), batch_axis=0, time_axis=1))


@piece("NonMaxSuppression")
def boxes(net: Net, op: str, x: str) -> str:
    corners, scores = net.Reshape(x, net.const([net.shape(x)[0], 36, 4])), net.const(np.ones((net.shape(x)[0], 1, 36)))
    return cast(net, net.NonMaxSuppression(corners, scores, net.const([3])))


@piece("Unique")
def unique(net: Net, op: str, x: str) -> str:
    return str(net.Unique(x))


@piece("reshape")
def reshaped(net: Net, op: str, x: str) -> str:
    if op == "Flatten":
        return str(net.Flatten(x))
    if op == "Reshape":
        return str(net.Reshape(x, net.const([0, 2, 2, 6, 6])))
    if op == "Squeeze":
        return str(net.Squeeze(net.reduce("ReduceMean", x, [1]), net.const([1])))
    return str(net.Unsqueeze(x, net.const([1])))


@piece("transpose")
def turned(net: Net, op: str, x: str) -> str:
    return str(net.Transpose(x, perm=[0, 2, 3, 1]))


@piece("repeat")
def repeated(net: Net, op: str, x: str) -> str:
    one = net.reduce("ReduceMean", x, [1])
    return str(net.node(op, one, net.const([1, 3, 1, 1])))


@piece("bits")
def bits(net: Net, op: str, x: str) -> str:
    return cast(net, net.BitCast(x, to=TensorProto.INT32))


@piece("gate")
def gated(net: Net, op: str, x: str) -> str:
    return str(net.node(op, x, x))


@piece("extents")
def extents(net: Net, op: str, x: str) -> str:
    return cast(net, net.node(op, x))


@piece("random")
def drawn(net: Net, op: str, x: str) -> str:
    if op in ("RandomNormal", "RandomUniform"):
        return str(net.Mul(x, net.node(op, shape=[1, 4, 6, 6])))
    flat = net.Flatten(x) if op == "Multinomial" else x
    return cast(net, net.node(op, flat))


@piece("loss")
def loss(net: Net, op: str, x: str) -> str:
    return str(net.node(op, x, net.const(np.zeros((net.shape(x)[0], 6, 6)), dtype=np.int64)))


ALL = sorted(op.name for op in OPERATORS.values() if op.kind not in NO_IMAGE and op.name not in WITHOUT)
"""The operators that have such a model."""
