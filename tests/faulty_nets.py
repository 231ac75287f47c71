"""A network for planted faults: a map that is not square, biases, a BatchNormalization, a Softmax."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from helpers import verify

Weights = dict[str, np.ndarray]


def weights(gain: float = 1.0) -> Weights:
    rng = np.random.default_rng(11)

    def normal(*shape: int, scale: float) -> np.ndarray:
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    return {
        "w1": normal(8, 3, 3, 3, scale=0.3),
        "b1": normal(8, scale=0.2),
        "gamma": (1 + normal(8, scale=0.1)).astype(np.float32),
        "beta": normal(8, scale=0.1),
        "average": normal(8, scale=0.1),
        "variance": (1 + normal(8, scale=0.1) ** 2).astype(np.float32),
        "w2": normal(8, 8, 3, 3, scale=0.15),
        "b2": normal(8, scale=0.2),
        "w3": gain * normal(10, 8 * 3 * 2, scale=0.15),
        "b3": gain * normal(10, scale=0.2),
    }


def network(
    values: Weights, *, bn: bool = True, rename: bool = False, axis: int = 1, kind: int = TensorProto.FLOAT
) -> onnx.ModelProto:
    """Conv, BN, Relu, MaxPool, Conv, Relu, Flatten, Gemm, Softmax on [1, 3, 10, 8]; the last map is 3 x 2.

    Args:
        bn: False leaves it out (its effect is in the weights). rename: other names for nodes and inner tensors.
        kind: of the input; integers are cast.
    """
    cast = [("Cast", ["image"], ["x0"], {"to": TensorProto.FLOAT})] if kind != TensorProto.FLOAT else []
    nodes = [
        *cast,
        ("Conv", ["x0" if cast else "image", "w1", "b1"], ["c1"], {}),
        *([("BatchNormalization", ["c1", "gamma", "beta", "average", "variance"], ["n1"], {})] if bn else []),
        ("Relu", ["n1" if bn else "c1"], ["r1"], {}),
        ("MaxPool", ["r1"], ["p1"], {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 0, 1, 1]}),
        ("Conv", ["p1", "w2", "b2"], ["c2"], {"pads": [1, 1, 0, 0]}),
        ("Relu", ["c2"], ["r2"], {}),
        ("Flatten", ["r2"], ["f"], {}),
        ("Gemm", ["f", "w3", "b3"], ["scores"], {"transB": 1}),
        ("Softmax", ["scores"], ["prob"], {"axis": axis}),
    ]
    new = {name: f"other/{name}" for _, _, (name,), _ in nodes if name != "prob"} if rename else {}
    protos = [
        helper.make_node(op, [new.get(n, n) for n in i], [new.get(n, n) for n in o], name=f"{rename}{k}", **attrs)
        for k, (op, i, o, attrs) in enumerate(nodes)
    ]
    used = {name for node in protos for name in node.input}
    graph = helper.make_graph(
        protos,
        "g",
        [helper.make_tensor_value_info("image", kind, ["N", 3, 10, 8])],
        [helper.make_tensor_value_info("prob", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(array, name) for name, array in values.items() if name in used],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def check(folder: Path, a: onnx.ModelProto, b: onnx.ModelProto, **options):
    onnx.save(a, folder / "a.onnx")
    onnx.save(b, folder / "b.onnx")
    return verify(folder / "a.onnx", folder / "b.onnx", **options)


def changed(values: Weights, **changes: Callable[[np.ndarray], np.ndarray]) -> Weights:
    return {
        name: np.ascontiguousarray(changes[name](array), np.float32) if name in changes else array
        for name, array in values.items()
    }


def scaled(array: np.ndarray) -> np.ndarray:
    return array * np.float32(1.001)
