"""Small networks as eight exporters of their time write them, node for node: the corpus that every clone has.

Each has something that breaks a naive converter, and each runs in ONNX Runtime. `--corpus DIR` puts real files in their
place. Weights are seeded and scaled so that signals survive; those of Caffe2's networks come from ConstantOfShape
nodes, with which no output ever varies, as in the light models of the ONNX project.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from nets import Net


@dataclass(frozen=True)
class Exported:
    """How one network is built, and what is known of it.

    Attributes:
        build: adds the nodes and gives the names of the outputs.
        shape: of the image. opset, ir: of the file.
        claim: what `fcn` claims of it ("windows" or "native-size"), or the reason why it refuses.
        trunk: whether the original's own trunk runs at other sizes than the native one.
    """

    build: Callable[[Net], list[str]]
    shape: tuple[int | str, ...]
    opset: int
    claim: str
    ir: int | None = None
    trunk: bool = True

    def model(self) -> onnx.ModelProto:
        """The network."""
        net = Net(*self.shape, opset=self.opset, ir=self.ir)
        return net.model(*self.build(net))


def weights(net: Net, *shape: int) -> str:
    """An initializer of seeded weights; the last axes of a kernel, or a matrix' first, are summed over."""
    fan = shape[0] if len(shape) == 2 else math.prod(shape[1:])
    return net.const(net.rng.standard_normal(shape) * math.sqrt(2 / fan))


def vector(net: Net, *shape: int) -> str:
    """A small bias."""
    return net.const(0.1 * net.rng.standard_normal(shape))


def conv(
    net: Net, x: str, outputs: int, inputs: int, kernel: int, *, bias: bool = True, group: int = 1, **how: object
) -> str:
    """A Conv as PyTorch writes it: every attribute is there, and group only where it is not one."""
    attributes = {"dilations": [1, 1], "kernel_shape": [kernel, kernel], "strides": [1, 1], "group": group, **how}
    if "auto_pad" not in attributes:
        attributes.setdefault("pads", [0, 0, 0, 0])
    terms = [vector(net, outputs)] if bias else []
    return str(net.Conv(x, weights(net, outputs, inputs // group, kernel, kernel), *terms, **attributes))


def torch_gemm(net: Net, x: str, outputs: int, inputs: int) -> str:
    """A Gemm as PyTorch writes it: the matrix is [outputs, inputs]."""
    matrix = net.const(net.rng.standard_normal((outputs, inputs)) * math.sqrt(2 / inputs))
    return str(net.Gemm(x, matrix, vector(net, outputs), alpha=1.0, beta=1.0, transB=1))


def dense(net: Net, x: str, outputs: int, inputs: int) -> str:
    """A layer as TensorFlow's exporter writes it: MatMul and Add."""
    return str(net.Add(net.MatMul(x, weights(net, inputs, outputs)), vector(net, outputs)))


def norm(net: Net, x: str, channels: int, **how: object) -> str:
    """A BatchNormalization with statistics that were learned."""
    spread = [net.const(net.rng.uniform(0.8, 1.2, channels)) for _ in range(2)]
    shift = [vector(net, channels) for _ in range(2)]
    return str(net.BatchNormalization(x, spread[0], shift[0], shift[1], spread[1], epsilon=1e-5, momentum=0.9, **how))


def constant(net: Net, values: object) -> str:
    """A Constant node of int64."""
    return str(net.Constant(value=numpy_helper.from_array(np.asarray(values, np.int64))))


def pool(net: Net, x: str, kernel: int, stride: int, **how: object) -> str:
    """A MaxPool."""
    return str(net.MaxPool(x, kernel_shape=[kernel, kernel], strides=[stride, stride], **how))


def tf2onnx_reshaped(net: Net) -> list[str]:
    """The image has its channels last and is reshaped at once, with its size written down."""
    x = net.Reshape("x", net.const([-1, 1, 16, 16]))
    x = pool(net, net.LeakyRelu(conv(net, x, 6, 1, 5), alpha=0.1), 2, 2)
    x = pool(net, net.LeakyRelu(conv(net, x, 8, 6, 3, pads=[1, 1, 1, 1]), alpha=0.1), 2, 2)
    x = net.Reshape(net.Transpose(x, perm=[0, 2, 3, 1]), net.const([-1, 72]))
    x = net.LeakyRelu(dense(net, x, 24, 72), alpha=0.1)
    return [net.Softmax(dense(net, x, 10, 24))]


def pytorch_lenet(net: Net) -> list[str]:
    """Not padded; the shape of the Reshape is a Constant node, and Softmax flattens below operator set 13."""
    x = net.Relu(pool(net, conv(net, "x", 6, 1, 5), 2, 2, pads=[0, 0, 0, 0], ceil_mode=0))
    x = net.Relu(pool(net, conv(net, x, 8, 6, 5), 2, 2, pads=[0, 0, 0, 0], ceil_mode=0))
    x = net.Reshape(x, constant(net, [-1, 128]))
    x = net.Relu(torch_gemm(net, x, 24, 128))
    x = net.Relu(torch_gemm(net, x, 16, 24))
    return [net.Softmax(torch_gemm(net, x, 10, 16), axis=1)]


def pytorch_residual(net: Net) -> list[str]:
    """Residual blocks; a Pad of nothing, a pool over the whole map, and the batch read from the shape."""
    x = net.Relu(norm(net, conv(net, "x", 8, 3, 3, bias=False, pads=[1, 1, 1, 1]), 8))
    y = net.Relu(norm(net, conv(net, x, 8, 8, 3, bias=False, pads=[1, 1, 1, 1]), 8))
    y = norm(net, conv(net, y, 8, 8, 3, bias=False, pads=[1, 1, 1, 1]), 8)
    x = net.Relu(net.Add(y, x))
    x = net.Relu(norm(net, conv(net, x, 16, 8, 3, bias=False, pads=[1, 1, 1, 1], strides=[2, 2]), 16))
    x = net.Pad(x, mode="constant", pads=[0] * 8, value=0.0)
    x = net.AveragePool(x, kernel_shape=[8, 8], pads=[0, 0, 0, 0], strides=[1, 1], ceil_mode=0)
    batch = net.Unsqueeze(net.Gather(net.Shape(x), constant(net, 0), axis=0), axes=[0])
    return [torch_gemm(net, net.Reshape(x, net.Concat(batch, net.const([-1]), axis=0)), 10, 16)]


def pytorch_detector(net: Net) -> list[str]:
    """Depthwise separable, two scales, and two outputs that list the positions of both maps; nodes have no names."""
    x = net.Relu(conv(net, "x", 8, 3, 3, pads=[1, 1, 1, 1], strides=[2, 2]))
    scores, boxes = [], []
    for channels, (rows, columns) in ((16, (6, 8)), (24, (3, 4))):
        inputs = 8 if channels == 16 else 16
        x = net.Relu(conv(net, x, inputs, inputs, 3, group=inputs, pads=[1, 1, 1, 1], strides=[2, 2]))
        x = net.Relu(conv(net, x, channels, inputs, 1))
        for found, values in ((scores, 2), (boxes, 4)):
            head = net.Transpose(conv(net, x, 3 * values, channels, 3, pads=[1, 1, 1, 1]), perm=[0, 2, 3, 1])
            found.append(net.Reshape(head, net.const([1, 3 * rows * columns, values])))
    for node in net.nodes:
        node.name = ""
    return [net.Softmax(net.Concat(*scores, axis=1), axis=2), net.Concat(*boxes, axis=1)]


def tf2onnx_bias_channels_last(net: Net) -> list[str]:
    """The bias is added where channels are last; the shape of the Reshape is an int32 that is cast."""
    x = net.Conv(
        net.Transpose("x", perm=[0, 3, 1, 2]),
        weights(net, 8, 1, 8, 8),
        dilations=[1, 1],
        strides=[8, 8],
        kernel_shape=[8, 8],
        pads=[0, 0, 0, 0],
    )
    x = net.Relu(net.Add(net.Transpose(x, perm=[0, 2, 3, 1]), vector(net, 8)))
    x = net.Reshape(x, net.Cast(net.const([-1, 16], dtype=np.int32), to=TensorProto.INT64))
    x = net.Relu(dense(net, net.Relu(dense(net, x, 8, 16)), 16, 8))
    return [net.Identity(dense(net, x, 2, 16))]


def pytorch_shape_chain(net: Net) -> list[str]:
    """Padded and strided, with even kernels; the shape is put together from Constant nodes."""
    x = net.Relu(conv(net, "x", 8, 3, 4, pads=[1, 1, 1, 1], strides=[2, 2]))
    x = net.Relu(conv(net, x, 8, 8, 3, pads=[1, 1, 1, 1]))
    x = net.Relu(conv(net, x, 8, 8, 4, pads=[1, 1, 1, 1], strides=[2, 2]))
    batch = net.Gather(net.Shape(x), constant(net, 0), axis=0)
    parts = [net.Unsqueeze(part, axes=[0]) for part in (batch, constant(net, -1))]
    x = net.Relu(torch_gemm(net, net.Reshape(x, net.Concat(*parts, axis=0)), 20, 512))
    for node in net.nodes:
        node.name = ""
    return [torch_gemm(net, x, 10, 20)]


def keras2onnx_valid(net: Net) -> list[str]:
    """auto_pad VALID, a symbolic batch, channels last at both ends, Flatten."""
    x = net.Transpose("x", perm=[0, 3, 1, 2])
    x = net.Relu(conv(net, x, 8, 1, 4, auto_pad="VALID"))
    x = net.Relu(conv(net, x, 4, 8, 4, auto_pad="VALID"))
    x = pool(net, x, 2, 2, auto_pad="VALID", ceil_mode=0)
    x = net.Flatten(net.Transpose(x, perm=[0, 2, 3, 1]), axis=1)
    return [dense(net, net.Relu(dense(net, x, 16, 196)), 10, 16)]


def pytorch_rows_first(net: Net) -> list[str]:
    """A permute ahead of the view: the matrix is ordered by rows, columns, channels, in a Gemm."""
    x = net.Relu(conv(net, "x", 6, 1, 3))
    x = pool(net, net.Relu(conv(net, x, 6, 6, 3)), 2, 2, pads=[0, 0, 0, 0])
    x = pool(net, net.Relu(conv(net, x, 8, 6, 3)), 2, 2, pads=[0, 0, 0, 0])
    x = net.Reshape(net.Transpose(x, perm=[0, 2, 3, 1]), constant(net, [-1, 72]))
    return [net.Relu(torch_gemm(net, net.Relu(torch_gemm(net, x, 16, 72)), 10, 16))]


def tf2onnx_flat(net: Net) -> list[str]:
    """The input is one row of numbers; pads differ from side to side."""
    x = net.Reshape("x", net.const([1, 1, 20, 16]))
    x = pool(net, net.Relu(conv(net, x, 8, 1, 8, pads=[3, 3, 4, 4])), 2, 2)
    x = net.Relu(conv(net, x, 8, 8, 6, pads=[2, 2, 3, 3]))
    x = net.AveragePool(x, kernel_shape=[2, 2], strides=[2, 2])
    x = net.Reshape(net.Transpose(x, perm=[0, 2, 3, 1]), net.const([-1, 160]))
    return [net.Softmax(dense(net, net.Relu(dense(net, x, 16, 160)), 10, 16))]


def cntk_matmul(net: Net) -> list[str]:
    """The matrix has the axes of the map and a node reshapes it; SAME_UPPER; biases are added; [1, F] is baked in."""
    matrix = net.Reshape(net.const(0.1 * net.rng.standard_normal((8, 4, 4, 10))), net.const([128, 10]))
    x = net.Add(conv(net, "x", 6, 1, 5, bias=False, auto_pad="SAME_UPPER"), vector(net, 6, 1, 1))
    x = pool(net, net.Relu(x), 2, 2, pads=[0, 0, 0, 0], auto_pad="NOTSET")
    x = net.Add(conv(net, x, 8, 6, 5, bias=False, auto_pad="SAME_UPPER"), vector(net, 8, 1, 1))
    x = pool(net, net.Relu(x), 3, 3, pads=[0, 0, 0, 0], auto_pad="NOTSET")
    return [net.Add(net.MatMul(net.Reshape(x, net.const([1, 128])), matrix), vector(net, 1, 10))]


def cntk_gemm(net: Net) -> list[str]:
    """The same after an optimizer: a Gemm that is not transposed, whose bias has two axes."""
    x = net.Relu(conv(net, "x", 6, 1, 5, auto_pad="SAME_UPPER"))
    x = pool(net, x, 2, 2, pads=[0, 0, 0, 0], auto_pad="NOTSET")
    x = net.Relu(conv(net, x, 8, 6, 5, auto_pad="SAME_UPPER"))
    x = net.Reshape(pool(net, x, 3, 3, pads=[0, 0, 0, 0], auto_pad="NOTSET"), net.const([1, 128]))
    return [net.Gemm(x, weights(net, 128, 10), vector(net, 1, 10), alpha=1.0, beta=1.0, transA=0, transB=0)]


def made(net: Net, *shape: int) -> str:
    """A weight that ConstantOfShape makes, in the place of one that was stored."""
    half = numpy_helper.from_array(np.array([0.5], np.float32))
    return str(net.ConstantOfShape(net.const(list(shape)), value=half))


def caffe2_conv(net: Net, x: str, outputs: int, inputs: int, kernel: int, *, bias: bool = True, **how: object) -> str:
    """A Conv whose weights are made by nodes."""
    terms = [made(net, outputs)] if bias else []
    group = how.get("group", 1)
    assert isinstance(group, int)
    weight = made(net, outputs, inputs // group, kernel, kernel)
    return str(net.Conv(x, weight, *terms, kernel_shape=[kernel, kernel], **{"strides": [1, 1], **how}))


def caffe2_alexnet(net: Net) -> list[str]:
    """Convolutions in two groups, LRN, Dropout with a mask, a last pool with pads at its ends alone."""
    x = net.LRN(
        net.Relu(caffe2_conv(net, "x", 8, 3, 7, strides=[2, 2], pads=[0, 0, 0, 0])),
        size=5,
        alpha=1e-4,
        beta=0.75,
        bias=1.0,
    )
    x = pool(net, x, 3, 2, pads=[0, 0, 1, 1])
    x = net.Relu(caffe2_conv(net, x, 16, 8, 5, group=2, pads=[2, 2, 2, 2]))
    x = net.Relu(caffe2_conv(net, x, 16, 16, 3, group=2, pads=[1, 1, 1, 1]))
    x = pool(net, x, 3, 2, pads=[0, 0, 1, 1])
    inputs = math.prod(net.shape(x)[1:])
    x = net.Reshape(x, net.const([1, inputs]))
    for outputs in (24, 16):
        x = net.Relu(net.Gemm(x, made(net, outputs, inputs), made(net, outputs), transB=1))
        x, _ = net.Dropout(x, outputs=2, ratio=0.5)
        inputs = outputs
    return [net.Softmax(net.Gemm(x, made(net, 10, inputs), made(net, 10), transB=1))]


def caffe2_norm(net: Net, x: str, channels: int) -> str:
    return str(net.BatchNormalization(x, *(made(net, channels) for _ in range(4))))


def caffe2_shufflenet(net: Net) -> list[str]:
    """Channel shuffles whose sizes are written down, and a pool over the whole map."""
    x = pool(
        net,
        net.Relu(caffe2_norm(net, caffe2_conv(net, "x", 8, 3, 3, bias=False, strides=[2, 2], pads=[1] * 4), 8)),
        3,
        2,
        pads=[1] * 4,
    )
    for _ in range(2):
        y = net.Relu(caffe2_norm(net, caffe2_conv(net, x, 8, 8, 1, bias=False, group=4, pads=[0] * 4), 8))
        y = net.Transpose(net.Reshape(y, net.const([1, 4, 2, 8, 8])), perm=[0, 2, 1, 3, 4])
        y = net.Reshape(y, net.const([1, 8, 8, 8]))
        y = caffe2_norm(net, caffe2_conv(net, y, 8, 8, 3, bias=False, group=8, pads=[1] * 4), 8)
        y = caffe2_norm(net, caffe2_conv(net, y, 8, 8, 1, bias=False, group=4, pads=[0] * 4), 8)
        x = net.Relu(net.Sum(y, x))
    x = net.AveragePool(x, kernel_shape=[8, 8], strides=[1, 1])
    x = net.Gemm(net.Reshape(x, net.const([1, 8])), made(net, 10, 8), made(net, 10), transB=1)
    return [net.Softmax(x)]


def pytorch_norm_of_a_vector(net: Net) -> list[str]:
    """Not padded; BatchNormalization once on a map and once on the vector ahead of LogSoftmax."""
    x = net.Relu(conv(net, net.Relu(conv(net, "x", 6, 1, 3)), 8, 6, 3))
    x = net.Flatten(norm(net, net.Relu(conv(net, x, 8, 8, 3)), 8, training_mode=0), axis=1)
    x = torch_gemm(net, net.Relu(torch_gemm(net, x, 16, 800)), 10, 16)
    return [net.LogSoftmax(norm(net, x, 10, training_mode=0), axis=1)]


NETWORKS = {
    "tf2onnx-reshaped": Exported(tf2onnx_reshaped, ("unk__25", 16, 16, 1), 15, "native-size", trunk=False),
    "pytorch-lenet": Exported(pytorch_lenet, (1, 1, 28, 28), 11, "windows"),
    "pytorch-residual": Exported(pytorch_residual, (1, 3, 16, 16), 10, "native-size"),
    "pytorch-detector": Exported(pytorch_detector, (1, 3, 24, 32), 9, "fcn/position-in-output"),
    "tf2onnx-bias-channels-last": Exported(tf2onnx_bias_channels_last, ("unk__11", 8, 16, 1), 8, "windows"),
    "pytorch-shape-chain": Exported(pytorch_shape_chain, (1, 3, 32, 32), 9, "native-size", ir=3),
    "keras2onnx-valid": Exported(keras2onnx_valid, ("N", 20, 20, 1), 12, "windows"),
    "pytorch-rows-first": Exported(pytorch_rows_first, (1, 1, 20, 20), 9, "windows", ir=7),
    "tf2onnx-flat": Exported(tf2onnx_flat, (1, 320), 15, "fcn/flat-input"),
    "cntk-matmul": Exported(cntk_matmul, (1, 1, 28, 28), 7, "native-size", ir=3),
    "cntk-gemm": Exported(cntk_gemm, (1, 1, 28, 28), 8, "native-size", ir=3),
    "caffe2-alexnet": Exported(caffe2_alexnet, (1, 3, 64, 64), 9, "native-size", ir=3),
    "caffe2-shufflenet": Exported(caffe2_shufflenet, (1, 3, 32, 32), 9, "native-size", ir=3, trunk=False),
    "pytorch-norm-of-a-vector": Exported(pytorch_norm_of_a_vector, (1, 1, 16, 16), 16, "windows"),
}
"""By exporter and by what is special."""


def files(config: pytest.Config) -> list[Path]:
    """The models of --corpus; a folder that was named must hold some."""
    named: Path | None = config.getoption("--corpus")
    if named is None:
        return []
    found = sorted(named.glob("*.onnx"))
    if not found:
        raise pytest.UsageError(f"--corpus {named}: no .onnx files there")
    return found
