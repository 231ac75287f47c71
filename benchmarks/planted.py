"""Models with planted low rank: what `separable` finds in them is known, so what is measured is the form alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]


def spatial(rng: np.random.Generator, out: int, inputs: int, kernel: Sequence[int], rank: int) -> Array:
    """[out, inputs, kh, kw] of that spatial rank."""
    column = rng.standard_normal((rank, inputs, kernel[0]))
    row = rng.standard_normal((out, rank, kernel[1]))
    return _scaled(np.einsum("rih,orw->oihw", column, row, optimize=True))


def decoupled(rng: np.random.Generator, out: int, inputs: int, kernel: Sequence[int], rank: int) -> Array:
    """[out, inputs, kh, kw] that is `rank` depthwise convolutions with a pointwise one behind each."""
    return _scaled(
        np.einsum(
            "roi,rihw->oihw", rng.standard_normal((rank, out, inputs)), rng.standard_normal((rank, inputs, *kernel))
        )
    )


def depthwise(rng: np.random.Generator, channels: int, kernel: Sequence[int]) -> Array:
    """[channels, 1, kh, kw], every channel of rank one."""
    column, row = rng.standard_normal((channels, kernel[0])), rng.standard_normal((channels, kernel[1]))
    return _scaled(np.einsum("ch,cw->chw", column, row)[:, None])


def _scaled(weight: Array) -> Array:
    """With the variance that keeps activations as they are."""
    fan_in = weight[0].size
    return (weight * np.sqrt(2.0 / fan_in) / weight.std()).astype(np.float32)


def layer(weight: Array, size: int, group: int = 1) -> onnx.ModelProto:
    """One convolution with "same" padding on a size x size map."""
    channels = weight.shape[1] * group
    pads = [extent // 2 for extent in weight.shape[2:]] * 2
    node = helper.make_node("Conv", ["x", "W"], ["y"], name="conv", pads=pads, group=group)
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "layer",
        [info("x", TensorProto.FLOAT, [1, channels, size, size])],
        [info("y", TensorProto.FLOAT, [1, weight.shape[0], size, size])],
        [numpy_helper.from_array(weight, "W")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def trunk(model: onnx.ModelProto, end: str) -> onnx.ModelProto:
    """The part of a model up to one tensor."""
    known = onnx.shape_inference.infer_shapes(model)
    return onnx.utils.Extractor(known).extract_model([model.graph.input[0].name], [end])


def with_spatial_rank(model: onnx.ModelProto, share: float, block: int = 16, seed: int = 0) -> onnx.ModelProto:
    """A model whose k x k convolutions have a share of the spatial rank at which factoring breaks even.

    Ranks are multiples of `block`; convolutions of fewer than `block` input channels stay as they are.
    """
    rng = np.random.default_rng(seed)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        tensor = weights.get(node.input[1]) if node.op_type == "Conv" else None
        if tensor is None or tensor.dims[2] < 2 or tensor.dims[1] < block:
            continue
        out, inputs, *kernel = tensor.dims
        even = kernel[0] * kernel[1] * out * inputs / (kernel[0] * inputs + kernel[1] * out)
        rank = max(block, round(share * even / block) * block)
        tensor.CopyFrom(numpy_helper.from_array(spatial(rng, out, inputs, kernel, rank), tensor.name))
    return model


class BlockNet:
    """A net whose 3x3 convolutions are block-diagonal under permutations that agree with each other.

    Every tensor between two convolutions has its channels in some random order; a convolution's blocks join the
    channels that belong to the same block in both of its tensors. A dense 1x1 convolution stands at either end.
    """

    def __init__(self, channels: int, group: int, size: int, seed: int = 0) -> None:
        self.channels, self.group, self.size = channels, group, size
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.labels: dict[str, Array] = {}

    def constant(self, values: Array) -> str:
        """An initializer."""
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))
        return name

    def node(self, op: str, *inputs: str, **attrs: Any) -> str:
        """A node; the name of its output."""
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attrs))
        return name

    def shuffled(self) -> Array:
        """Which block each channel of a new tensor belongs to."""
        return self.rng.permutation(np.repeat(np.arange(self.group), self.channels // self.group))

    def dense(self, x: str, inputs: int, out: int) -> str:
        """A 1x1 convolution over all channels."""
        weight = self.rng.standard_normal((out, inputs, 1, 1)) / np.sqrt(inputs)
        name = self.node("Conv", x, self.constant(weight))
        self.labels[name] = self.shuffled()
        return name

    def conv(self, x: str, like: str = "") -> str:
        """A block-diagonal 3x3 convolution with a bias; its output is in the order of the tensor `like`."""
        labels = self.labels[like] if like else self.shuffled()
        weight = self.rng.standard_normal((self.channels, self.channels, 3, 3))
        weight *= (labels[:, None] == self.labels[x][None, :])[:, :, None, None]
        weight /= np.sqrt(9 * self.channels / self.group)
        name = self.node(
            "Conv", x, self.constant(weight), self.constant(0.1 * self.rng.standard_normal(self.channels)), pads=[1] * 4
        )
        self.labels[name] = labels
        return name

    def relu(self, x: str) -> str:
        """Element by element."""
        name = self.node("Relu", x)
        self.labels[name] = self.labels[x]
        return name

    def model(self, y: str) -> onnx.ModelProto:
        """The finished net: image [1, 3, size, size] in, 8 maps out."""
        out = self.node("Conv", y, self.constant(self.rng.standard_normal((8, self.channels, 1, 1)) / self.channels))
        info = helper.make_tensor_value_info
        shapes = [1, 3, self.size, self.size], [1, 8, self.size, self.size]
        ends = info("image", TensorProto.FLOAT, shapes[0]), info(out, TensorProto.FLOAT, shapes[1])
        graph = helper.make_graph(self.nodes, "blocks", [ends[0]], [ends[1]], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def sequential(channels: int, group: int, size: int, depth: int = 3) -> onnx.ModelProto:
    """Convolutions one after the other."""
    net = BlockNet(channels, group, size)
    x = net.dense("image", 3, channels)
    for _ in range(depth):
        x = net.relu(net.conv(x))
    return net.model(x)


def residual(channels: int, group: int, size: int, depth: int = 2) -> onnx.ModelProto:
    """Blocks of two convolutions with a shortcut around them."""
    net = BlockNet(channels, group, size)
    x = net.dense("image", 3, channels)
    for _ in range(depth):
        y = net.conv(net.relu(net.conv(x)), like=x)
        added = net.node("Add", x, y)
        net.labels[added] = net.labels[x]
        x = net.relu(added)
    return net.model(x)


def inception(channels: int, group: int, size: int) -> onnx.ModelProto:
    """Two branches that are joined, and a dense 1x1 convolution over both."""
    net = BlockNet(channels, group, size)
    x = net.dense("image", 3, channels)
    one = net.relu(net.conv(x))
    two = net.relu(net.conv(net.relu(net.conv(x))))
    joined = net.node("Concat", one, two, axis=1)
    return net.model(net.relu(net.dense(joined, 2 * channels, channels)))
