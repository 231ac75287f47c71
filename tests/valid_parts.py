"""The classifier that `valid_nets` has in many forms, and the parts that these are made of.

It is [1, 3, 14, 12] -> [1, 5]: a convolution whose kernels are outer products (`separable` replaces it without an
error), Relu, MaxPool, and a fully connected head.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]


OUTPUTS, HIDDEN, CLASSES = 64, 64 * 4 * 3, 5


def weights(dtype: Any = np.float32) -> dict[str, Array]:
    """Kernels `w` [64, 3, 3, 3] of outer products, head `f` [5, 768]: both beyond 1,024 entries."""
    numbers = np.random.default_rng(0)
    column, row = numbers.standard_normal((2, OUTPUTS, 3, 3))
    kernels = np.einsum(
        "oci,ocj->ocij", column[:, :1] * numbers.standard_normal((OUTPUTS, 3, 1)), row[:, :1].repeat(3, 1)
    )
    return {
        "w": (kernels / 4).astype(dtype),
        "b": numbers.standard_normal(OUTPUTS).astype(dtype),
        "f": (numbers.standard_normal((CLASSES, HIDDEN)) / 30).astype(dtype),
        "c": numbers.standard_normal(CLASSES).astype(dtype),
    }


def body(image: str = "x", result: str = "y", **names: str) -> list[onnx.NodeProto]:
    """The nodes of the classifier; `names` of its weights, where they are others."""
    w, b, f, c = (names.get(name, name) for name in "wbfc")
    return [
        helper.make_node("Conv", [image, w, b], ["a"], "conv"),
        helper.make_node("Relu", ["a"], ["r"], "relu"),
        helper.make_node("MaxPool", ["r"], ["m"], "pool", kernel_shape=[3, 3], strides=[3, 3]),
        helper.make_node("Flatten", ["m"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", f, c], [result], "head", transB=1),
    ]


def info(name: str, *shape: int | str | None, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    """A declared tensor."""
    return helper.make_tensor_value_info(name, kind, list(shape))


def tensors(values: dict[str, Array]) -> list[onnx.TensorProto]:
    """Initializers."""
    return [numpy_helper.from_array(value, name) for name, value in values.items()]


def made(
    nodes: list[onnx.NodeProto],
    initializers: list[onnx.TensorProto],
    *,
    inputs: list[onnx.ValueInfoProto] | None = None,
    outputs: list[onnx.ValueInfoProto] | None = None,
    opset: int = 17,
    ir: int = 9,
    domains: dict[str, int] | None = None,
    functions: list[onnx.FunctionProto] | None = None,
) -> onnx.ModelProto:
    """A model around these nodes."""
    graph = helper.make_graph(
        nodes, "net", inputs or [info("x", 1, 3, 14, 12)], outputs or [info("y", 1, CLASSES)], initializers
    )
    opsets = [helper.make_opsetid(name, version) for name, version in {"": opset, **(domains or {})}.items()]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir, functions=functions or [])


def plain() -> onnx.ModelProto:
    """Nothing special."""
    return made(body(), tensors(weights()))


def choice(
    condition: str,
    result: str,
    then: list[onnx.NodeProto],
    other: list[onnx.NodeProto],
    held: list[onnx.TensorProto] | None = None,
) -> onnx.NodeProto:
    """An If; `held` are initializers of its other branch."""
    branches = [
        helper.make_graph(nodes, "branch", [], [onnx.ValueInfoProto(name=nodes[-1].output[0])], own)
        for nodes, own in ((then, []), (other, held or []))
    ]
    return helper.make_node("If", [condition], [result], then_branch=branches[0], else_branch=branches[1])
