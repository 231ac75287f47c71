"""Heads node for node as the exporters write them, each in an operator set and IR version of its time.

What PyTorch (both exporters), TensorFlow and Keras (tf2onnx), and Paddle write was read off files that they exported;
CNTK's and Caffe2's is that of the corpus. Every cell is compared with ONNX Runtime on the original's crop.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from convrewrite import pipeline
from convrewrite.options import FcnOptions
from helpers import Net, check_lifted


def trunk(net: Net) -> str:
    """A map of 4 x 2 x 4 cells from an image of 8 x 10."""
    return str(net.MaxPool(net.Relu(net.conv("x", 4, 3, 3)), kernel_shape=[2, 2], strides=[4, 2]))


def tensor(net: Net, values: object) -> str:
    """A Constant node."""
    return str(net.Constant(value=numpy_helper.from_array(np.asarray(values, np.int64))))


def torchscript(net: Net) -> str:
    """x.view(x.size(0), -1), then a Linear."""
    map_ = trunk(net)
    batch = net.Gather(net.Shape(map_), tensor(net, 0), axis=0)
    shape = net.Concat(*(net.with_axes("Unsqueeze", part, [0]) for part in (batch, tensor(net, -1))), axis=0)
    hidden = net.Relu(net.Gemm(net.Reshape(map_, shape), net.ints(6, 32), net.ints(6), alpha=1.0, beta=1.0, transB=1))
    return str(net.Gemm(net.Identity(hidden), net.ints(3, 6), net.ints(3), alpha=1.0, beta=1.0, transB=1))


def torchscript_without_bias(net: Net) -> str:
    """x.view(-1, F) and a Linear without bias: the matrix is transposed by a node."""
    flat = net.Reshape(trunk(net), tensor(net, [-1, 32]))
    return str(net.MatMul(flat, net.Transpose(net.ints(3, 32), perm=[1, 0])))


def dynamo(net: Net) -> str:
    """torch.flatten with a symbolic batch: Shape with a range, and a Reshape that allows for zero."""
    map_ = trunk(net)
    shape = net.Concat(net.Shape(map_, start=0, end=1), net.const([32]), axis=0)
    hidden = net.Gemm(net.Reshape(map_, shape, allowzero=1), net.ints(6, 32), net.ints(6), transB=1)
    return str(net.Gemm(net.Relu(hidden), net.ints(3, 6), net.ints(3), transB=1))


def dynamo_fixed(net: Net) -> str:
    """The same with a fixed batch: one constant shape."""
    flat = net.Reshape(trunk(net), net.const([1, 32]), allowzero=1)
    return str(net.Gemm(flat, net.ints(3, 32), net.ints(3), alpha=1.0, beta=1.0, transA=0, transB=1))


def dynamo_mean(net: Net) -> str:
    """Adaptive pooling to one cell: a mean over the last two axes, counted from the end."""
    mean = net.ReduceMean(trunk(net), net.const([-1, -2]), keepdims=1, noop_with_empty_axes=0)
    return str(net.Gemm(net.Reshape(mean, net.const([1, 4]), allowzero=1), net.ints(3, 4), net.ints(3), transB=1))


def channels_last_trunk(net: Net) -> str:
    """[N, H, W, C]: the image is turned for the convolution, and its map is turned back."""
    inside = net.Transpose("x", perm=[0, 3, 1, 2])
    map_ = net.MaxPool(net.Relu(net.conv(inside, 4, 3, 3)), kernel_shape=[2, 2], strides=[4, 2])
    return str(net.Transpose(map_, perm=[0, 2, 3, 1]))


def keras_flatten(net: Net) -> str:
    """Flatten with a symbolic batch by tf2onnx: the shape goes through int32."""
    map_ = channels_last_trunk(net)
    whole = net.Cast(net.Shape(map_), to=TensorProto.INT32)
    batch = net.Slice(whole, net.const([0]), net.const([1]), net.const([0]))
    shape = net.Concat(batch, net.const([32], dtype=np.int32), axis=0)
    flat = net.Reshape(map_, net.Cast(shape, to=TensorProto.INT64))
    hidden = net.Relu(net.Add(net.MatMul(flat, net.ints(32, 6)), net.ints(6)))
    return str(net.Add(net.MatMul(hidden, net.ints(6, 3)), net.ints(3)))


def keras_reshape(net: Net) -> str:
    flat = net.Reshape(channels_last_trunk(net), net.const([-1, 32]))
    return str(net.Add(net.MatMul(flat, net.ints(32, 3)), net.ints(3)))


def keras_mean(net: Net) -> str:
    """GlobalAveragePooling2D: a pool ahead of the Transpose, squeezed."""
    inside = net.Transpose("x", perm=[0, 3, 1, 2])
    map_ = net.MaxPool(net.Relu(net.conv(inside, 4, 3, 3)), kernel_shape=[2, 2], strides=[4, 2])
    return str(net.MatMul(net.Squeeze(net.GlobalAveragePool(map_), net.const([2, 3])), net.ints(4, 3)))


def keras_line(net: Net) -> str:
    """Conv1D and its pool: each of two axes, one of which has one entry, between Unsqueeze and Squeeze."""
    plane = net.Transpose(net.Unsqueeze("x", net.const([1])), perm=[0, 3, 1, 2])
    line = net.Squeeze(net.conv(plane, 4, 1, 3, strides=[1, 1], dilations=[1, 1]), net.const([2]))
    pooled = net.MaxPool(net.Unsqueeze(net.Relu(line), net.const([2])), kernel_shape=[1, 2], strides=[1, 2])
    line = net.Squeeze(net.conv(pooled, 4, 1, 2, dilations=[1, 2], pads=[0, 0, 0, 0]), net.const([2]))
    flat = net.Reshape(net.Transpose(line, perm=[0, 2, 1]), net.const([-1, 16]))
    return str(net.Add(net.MatMul(flat, net.ints(16, 3)), net.ints(3)))


def paddle(net: Net) -> str:
    """reshape(x, [shape(x)[0], -1]): Identity nodes in between, and the bias by an Add."""
    map_ = trunk(net)
    batch = net.Slice(net.Identity(net.Shape(map_)), net.const([0]), net.const([1]), net.const([0]))
    batch = net.Identity(net.Squeeze(batch, net.const([0])))
    one = net.Unsqueeze(net.Reshape(batch, net.const([1])), net.const([0]))
    shape = net.Concat(net.Squeeze(one, net.const([0])), net.const([-1]), axis=0)
    flat = net.Reshape(map_, net.Identity(net.Identity(shape)))
    hidden = net.Relu(net.Add(net.MatMul(flat, net.ints(32, 6)), net.ints(6)))
    return str(net.Identity(net.Add(net.MatMul(hidden, net.ints(6, 3)), net.ints(3))))


def paddle_mul(net: Net) -> str:
    """The older `mul`: the matrix product of what is reshaped to two axes, and reshaped again."""
    flat = net.Reshape(trunk(net), net.const([-1, 32]))
    product = net.Reshape(net.MatMul(flat, net.ints(32, 3)), net.const([-1, 3]))
    return str(net.Add(product, net.ints(3)))


def chainer(net: Net) -> str:
    """A link Linear on a map flattens it by a Reshape that copies the batch."""
    hidden = net.Relu(net.Gemm(net.Reshape(trunk(net), net.const([1, 32])), net.ints(6, 32), net.ints(6), transB=1))
    return str(net.Gemm(net.Dropout(hidden), net.ints(3, 6), net.ints(3), alpha=1.0, beta=1.0, transA=0, transB=1))


def caffe2(net: Net) -> str:
    """FC: the map is flattened by a shape initializer, and the bias is one axis."""
    flat = net.Reshape(trunk(net), net.const([1, 32], name="OC2_DUMMY_0"))
    return str(net.Gemm(net.Dropout(flat), net.ints(3, 32), net.ints(3), transB=1))


def cntk(net: Net) -> str:
    """Times: the matrix has the axes of the map, and both are reshaped."""
    flat = net.Reshape(trunk(net), net.const([1, 32]))
    matrix = net.Reshape(net.ints(4, 2, 4, 3), net.const([32, 3]))
    return str(net.Add(net.MatMul(flat, matrix), net.ints(1, 3)))


def matlab(net: Net) -> str:
    """Means per channel are taken off the image; a fully connected layer is a convolution of the whole map."""
    centred = net.Sub("x", net.ints(1, 2, 1, 1))
    map_ = net.MaxPool(net.Relu(net.conv(centred, 4, 3, 3)), kernel_shape=[2, 2], strides=[4, 2])
    hidden = net.Relu(net.conv(map_, 6, 2, 4))
    return str(net.Flatten(net.conv(hidden, 3, 1, 1)))


def matlab_gemm(net: Net) -> str:
    flat = net.Flatten(trunk(net))
    return str(net.Gemm(flat, net.ints(3, 32), net.ints(3), transB=1))


EXPORTERS: dict[str, tuple[Callable[[Net], str], tuple[int, ...], int | None, int | str]] = {
    "torchscript": (torchscript, (9, 11, 13, 17), None, "batch"),
    "torchscript-without-bias": (torchscript_without_bias, (9, 17), None, "batch"),
    "dynamo": (dynamo, (18, 20, 23), 10, "batch"),
    "dynamo-fixed": (dynamo_fixed, (18, 23), 10, 1),
    "dynamo-mean": (dynamo_mean, (18, 23), 10, 1),
    "keras-flatten": (keras_flatten, (13, 15, 18), None, "batch"),
    "keras-reshape": (keras_reshape, (7, 10, 15), None, "batch"),
    "keras-mean": (keras_mean, (13, 17), None, "batch"),
    "keras-line": (keras_line, (13, 18), None, "batch"),
    "paddle": (paddle, (13, 16), 7, "batch"),
    "paddle-mul": (paddle_mul, (9, 11), 7, "batch"),
    "chainer": (chainer, (7, 9), 4, 1),
    "caffe2": (caffe2, (7, 8, 9), 3, 1),
    "cntk": (cntk, (7, 8), 3, 1),
    "matlab": (matlab, (7, 9, 14), 3, 1),
    "matlab-gemm": (matlab_gemm, (7, 9, 14), 3, 1),
}
"""The head, opsets, IR version where it is not the opset's lowest, batch."""

CASES = [(name, opset) for name, (_, opsets, _, _) in EXPORTERS.items() for opset in opsets]


def exported(name: str, opset: int) -> onnx.ModelProto:
    build, _, ir, batch = EXPORTERS[name]
    last = (batch, 14, 2) if name == "keras-line" else (batch, 8, 10, 2)
    shape = last if name.startswith("keras") else (batch, 2, 8, 10)
    net = Net(*shape, opset=opset, ir=ir)
    return net.model(build(net))


@pytest.mark.parametrize(("name", "opset"), CASES)
def test_every_cell_is_the_original_on_its_crop(name: str, opset: int) -> None:
    check_lifted(exported(name, opset))


@pytest.mark.parametrize(("name", "opset"), [case for case in CASES if case[1] in EXPORTERS[case[0]][1][-1:]])
def test_denser_for_many_images_to_pixels(tmp_path: Path, name: str, opset: int) -> None:
    """The newest of each through every option, verified in ONNX Runtime with nothing skipped."""
    onnx.save(exported(name, opset), tmp_path / "m.onnx")
    how = FcnOptions(stride=1, upsample="bilinear", dynamic_batch=True, opset=11 if opset < 11 else None)
    made = pipeline.fcn(str(tmp_path / "m.onnx"), str(tmp_path / "o.onnx"), how).check()
    assert made.verification is not None
    assert {case.status for case in made.verification.cases} == {"passed"}
    names = [case.name for case in made.verification.cases]
    assert any(name.startswith("every pixel") for name in names)
    assert ("two batches at once" in names) == (EXPORTERS[name][3] == 1)


def test_a_gate_right_ahead_of_the_head_belongs_to_the_trunk(tmp_path: Path) -> None:
    """Squeeze and excite as Keras writes it: the gate is the whole image's, the head's mean is of a window.

    The product of map and gate has another layout in the new graph; the trunk still has to end behind it.
    """
    net = Net("batch", 8, 10, 2)
    map_ = net.Transpose(channels_last_trunk(net), perm=[0, 3, 1, 2])
    pooled = net.Squeeze(net.GlobalAveragePool(map_), net.const([2, 3]))
    gate = net.Sigmoid(net.MatMul(net.Relu(net.MatMul(pooled, net.ints(4, 2))), net.ints(2, 4)))
    gated = net.Mul(net.Transpose(map_, perm=[0, 2, 3, 1]), net.Reshape(gate, net.const([-1, 1, 1, 4])))
    mean = net.reduce("ReduceMean", gated, [1, 2], keepdims=0)
    onnx.save(net.model(net.MatMul(mean, net.ints(4, 3))), tmp_path / "m.onnx")
    made = pipeline.fcn(str(tmp_path / "m.onnx"), str(tmp_path / "o.onnx"), FcnOptions()).check()
    assert made.window is not None
    assert made.window.equivalence == "native-size"
    assert made.verification is not None
    cases = {case.name: case.status for case in made.verification.cases}
    assert "passed" in {status for name, status in cases.items() if name.startswith("original's trunk and head")}
    assert set(cases.values()) == {"passed"}
