"""How the models of the project are run and changed in their tests."""

from __future__ import annotations

import importlib
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

SMALL: dict[str, dict[str, Any]] = {
    "lenet5": {},
    "alexnet": {"width": 0.125, "size": 131},
    "zfnet": {"width": 0.125, "size": 96},
    "vgg16": {"width": 0.125, "size": 64},
    "vgg19": {"width": 0.125, "size": 64},
    "googlenet": {"width": 0.25, "size": 64},
    "resnet18": {"width": 0.25, "size": 64},
    "resnet50": {"width": 0.125, "size": 64},
    "densenet121": {"width": 0.25, "size": 64},
    "mobilenet_v1": {"width": 0.25, "size": 64},
    "mobilenet_v2": {"width": 0.25, "size": 64},
    "shufflenet": {"width": 0.3, "size": 64},
    "efficientnet_b0": {"width": 0.25, "size": 64},
    "audio_cnn": {"width": 0.125, "size": 2000},
    "video_cnn": {"width": 0.0625, "size": 32},
    "segnet": {"width": 0.25, "size": 48},
}
"""Options that make each builder fast."""


def run(model: onnx.ModelProto, *images: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
    """The model's output for each image, by ONNX Runtime on the CPU."""
    runtime: Any = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [session.run(None, {"image": image})[0] for image in images]


def random_images(model: onnx.ModelProto, count: int, seed: int = 0) -> list[npt.NDArray[np.float32]]:
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape, dtype=np.float32) for _ in range(count)]


def without(model: onnx.ModelProto, op: str) -> onnx.ModelProto:
    """A copy in which every ``op`` node is an Identity on its first input."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        if node.op_type == op:
            node.op_type = "Identity"
            del node.input[1:], node.attribute[:]
    return copy


def parameters(model: onnx.ModelProto) -> int:
    """Trained numbers, from shapes alone: all initializers but the running statistics."""
    statistics = {n for node in model.graph.node if node.op_type == "BatchNormalization" for n in node.input[3:]}
    stored = [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT and t.dims]
    return sum(prod(tensor.dims) for tensor in stored if tensor.name not in statistics)


def conv(incoming: int, channels: int, kernel: int, groups: int = 1) -> int:
    return channels * (incoming // groups) * kernel * kernel + channels


def fc(incoming: int, features: int) -> int:
    return features * incoming + features
