"""Small models that are right, one for each thing that the commands know: what the mutations start from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from cli_models import attention, convolutional, padded, plain, symbolic

from convrewrite import pipeline
from convrewrite.options import FcnOptions
from nets import Net


def pooled() -> onnx.ModelProto:
    """Grouped and dilated convolutions, BatchNormalization, pools, a residual sum, two outputs."""
    net = Net(1, 4, 16, 12)
    trunk = net.Relu(net.conv("x", 8, 3, 3, group=2, pads=[1, 1, 1, 1]))
    ones = [net.const(np.ones(8, np.float32)) for _ in range(4)]
    trunk = net.Add(trunk, net.BatchNormalization(net.conv(trunk, 8, 3, 3, pads=[2, 2, 2, 2], dilations=[2, 2]), *ones))
    trunk = net.MaxPool(trunk, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
    trunk = net.AveragePool(trunk, kernel_shape=[3, 3], auto_pad="SAME_UPPER")
    flat = net.Flatten(net.GlobalAveragePool(trunk))
    return net.model(net.Softmax(net.fc(flat, 5), axis=1), net.fc(flat, 2))


def transposed() -> onnx.ModelProto:
    """An encoder and decoder: ConvTranspose, Resize, Concat, Slice, Pad."""
    net = Net(1, 3, 16, 16)
    low = net.MaxPool(net.conv("x", 4, 3, 3, pads=[1, 1, 1, 1]), kernel_shape=[2, 2], strides=[2, 2])
    up = net.ConvTranspose(low, net.ints(4, 4, 2, 2), strides=[2, 2])
    near = net.Resize(low, "", net.const(np.array([1, 1, 2, 2], np.float32)), mode="nearest")
    part = net.Slice(net.Concat(up, near, axis=1), net.const([1]), net.const([7]), net.const([1]))
    return net.model(net.conv(net.Pad(part, net.const([0, 0, 1, 1, 0, 0, 1, 1])), 2, 3, 3))


def channels_last() -> onnx.ModelProto:
    """TensorFlow's way: NHWC, Transpose, MatMul and Add, a Reshape whose shape is computed."""
    net = Net("n", 12, 10, 3)
    trunk = net.conv(net.Transpose("x", perm=[0, 3, 1, 2]), 6, 3, 3, strides=[2, 2])
    rows = net.Transpose(net.Relu(trunk), perm=[0, 2, 3, 1])
    batch = net.Slice(net.Shape(rows), net.const([0]), net.const([1]))
    flat = net.Reshape(rows, net.Concat(batch, net.const([-1]), axis=0))
    return net.model(net.Add(net.MatMul(flat, net.ints(5 * 4 * 6, 7)), net.ints(7)))


def quantized() -> onnx.ModelProto:
    """QDQ around a convolution and its weight."""
    net = Net(1, 3, 8, 8)
    scale, zero = net.const(np.float32(0.1)), net.const(np.int8(0), dtype=np.int8)
    data = net.DequantizeLinear(net.QuantizeLinear("x", scale, zero), scale, zero)
    weight = net.DequantizeLinear(net.const(np.ones((4, 3, 3, 3), np.int8), dtype=np.int8), scale, zero)
    trunk = net.Relu(net.Conv(data, weight, kernel_shape=[3, 3]))
    return net.model(net.fc(net.Flatten(net.GlobalAveragePool(trunk)), 3))


def sound() -> onnx.ModelProto:
    """One spatial axis."""
    net = Net(1, 2, 40)
    trunk = net.Relu(net.conv(net.conv("x", 4, 5, strides=[2]), 6, 3))
    return net.model(net.fc(net.Flatten(trunk), 3))


def deep() -> onnx.ModelProto:
    """Kernels of low rank and channels in blocks, for the passes that look for these."""
    net = Net(1, 8, 14, 14)
    rng = np.random.default_rng(1)
    low = np.einsum("oc,h,w->ochw", rng.normal(size=(16, 8)), rng.normal(size=5), rng.normal(size=5))
    blocks = np.kron(np.eye(2), np.ones((8, 8)))[:, :, None, None] * rng.normal(size=(16, 16, 3, 3))
    trunk = net.Conv(net.Relu(net.Conv("x", net.const(low), pads=[2, 2, 2, 2])), net.const(blocks))
    return net.model(net.fc(net.Flatten(net.Relu(trunk)), 4))


BUILDERS: dict[str, Callable[[], onnx.ModelProto]] = {
    "attention": attention,
    "channels_last": channels_last,
    "convolutional": convolutional,
    "deep": deep,
    "old": lambda: plain(opset=9),
    "padded": padded,
    "plain": plain,
    "pooled": pooled,
    "quantized": quantized,
    "sound": sound,
    "symbolic": symbolic,
    "transposed": transposed,
}


def write(folder: Path) -> None:
    """The models, and two that `fcn` made of one: with cells, and with pixels."""
    for name, build in BUILDERS.items():
        (folder / f"{name}.onnx").write_bytes(build().SerializeToString())
    source, options = str(folder / "plain.onnx"), FcnOptions(verify=False)
    pipeline.fcn(source, str(folder / "cells.onnx"), options).check()
    pixels = FcnOptions(verify=False, upsample="bilinear")
    pipeline.fcn(source, str(folder / "pixels.onnx"), pixels).check()
