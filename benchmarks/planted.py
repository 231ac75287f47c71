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
