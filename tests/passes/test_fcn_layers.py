"""Every form of a fully connected layer, and where its weights come from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from helpers import Conversion, Net, check_lifted, convert

FEATURES = 45


def trunk(net: Net) -> str:
    """Features of a 3 x 3 x 5 map, flattened."""
    pooled = net.MaxPool(net.Relu(net.conv("x", 3, 3, 3)), kernel_shape=[2, 2], strides=[2, 2])
    return str(net.Flatten(pooled))


def gemm(net: Net, flat: str, *bias: str, outputs: int = 4, **attrs: Any) -> str:
    shape = (outputs, FEATURES) if attrs.get("transB") else (FEATURES, outputs)
    return str(net.Gemm(flat, net.ints(*shape), *bias, **attrs))


def gemm_on_the_left(net: Net, flat: str) -> str:
    """W [K, F] times x^T [F, 1] is [K, 1]: transposed back for the next layer."""
    return str(net.Transpose(net.Gemm(net.ints(4, FEATURES), flat, transB=1), perm=[1, 0]))


def matmul_on_the_left(net: Net, flat: str) -> str:
    product = net.MatMul(net.ints(4, FEATURES), net.Transpose(flat, perm=[1, 0]))
    return str(net.Transpose(net.Add(product, net.ints(4, 1)), perm=[1, 0]))


FORMS: dict[str, Callable[[Net, str], str]] = {
    "gemm": lambda n, x: gemm(n, x, n.ints(4)),
    "gemm-transB": lambda n, x: gemm(n, x, n.ints(4), transB=1),
    "gemm-transA": lambda n, x: n.Gemm(n.Transpose(x, perm=[1, 0]), n.ints(FEATURES, 4), n.ints(4), transA=1),
    "gemm-no-C": lambda n, x: gemm(n, x, transB=1),
    "gemm-empty-C": lambda n, x: gemm(n, x, "", transB=1),
    "gemm-C-rank-2": lambda n, x: gemm(n, x, n.ints(1, 4)),
    "gemm-C-one-number": lambda n, x: gemm(n, x, n.ints(1)),
    "gemm-C-scalar": lambda n, x: gemm(n, x, n.const(np.float32(2))),
    "gemm-alpha-beta": lambda n, x: gemm(n, x, n.ints(4), alpha=2.0, beta=3.0, transB=1),
    "gemm-beta-0": lambda n, x: gemm(n, x, n.ints(4), beta=0.0),
    "gemm-one-output": lambda n, x: gemm(n, x, n.ints(1), outputs=1),
    "gemm-constant-left": gemm_on_the_left,
    "gemm-then-add": lambda n, x: n.Add(gemm(n, x, n.ints(4)), n.ints(4)),
    "matmul": lambda n, x: n.MatMul(x, n.ints(FEATURES, 4)),
    "matmul-add": lambda n, x: n.Add(n.MatMul(x, n.ints(FEATURES, 4)), n.ints(4)),
    "add-matmul": lambda n, x: n.Add(n.ints(1, 4), n.MatMul(x, n.ints(FEATURES, 4))),
    "matmul-sub": lambda n, x: n.Sub(n.ints(4), n.MatMul(x, n.ints(FEATURES, 4))),
    "matmul-constant-left": matmul_on_the_left,
    "matmul-weight-rank-3": lambda n, x: n.Reshape(n.MatMul(x, n.ints(1, FEATURES, 4)), n.const([1, -1])),
    "matmul-vector": lambda n, x: n.with_axes("Unsqueeze", n.MatMul(x, n.ints(FEATURES)), [1]),
    "matmul-of-rank-3": lambda n, x: n.Reshape(
        n.MatMul(n.with_axes("Unsqueeze", x, [1]), n.ints(FEATURES, 4)), n.const([1, 4])
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_form(form: str) -> None:
    net = Net(1, 2, 9, 12)
    scores = FORMS[form](net, trunk(net))
    made = check_lifted(net.model(scores))
    kernels_are_the_map(made)
    assert made.operators.count("Gemm") == made.operators.count("MatMul") == 0


@pytest.mark.parametrize("form", [f for f in FORMS if f not in ("matmul-weight-rank-3", "matmul-of-rank-3")])
def test_form_inside_a_longer_head(form: str) -> None:
    net = Net(1, 2, 9, 12, opset=11)
    hidden = net.Relu(FORMS[form](net, trunk(net)))
    scores = net.Gemm(hidden, net.ints(net.shape(hidden)[1], 6), net.ints(6))
    made = check_lifted(net.model(net.fc(net.Relu(scores), 3)))
    kernels_are_the_map(made)
    assert made.operators.count("Conv") == 4


@pytest.mark.parametrize("form", [f for f in FORMS if "left" not in f and "rank-3" not in f])
def test_form_on_a_batch(form: str) -> None:
    net = Net("batch", 2, 9, 12)
    check_lifted(net.model(FORMS[form](net, trunk(net))))


def kernels_are_the_map(made: Conversion) -> None:
    """The first fully connected layer has the map as its kernel, the later ones 1 x 1."""
    weights = {t.name: tuple(t.dims) for t in made.model.graph.initializer}
    convs = [weights[n.input[1]] for n in made.model.graph.node if n.op_type == "Conv"]
    assert convs[1][1:] == (3, 3, 5)
    assert all(shape[2:] == (1, 1) for shape in convs[2:])


def quantized(net: Net) -> str:
    stored = net.const(net.numbers_of(FEATURES, 4), dtype=np.int8)
    return str(net.DequantizeLinear(stored, net.const(np.float32(0.5)), net.const(np.int8(1), dtype=np.int8)))


SOURCES: dict[str, Callable[[Net], str]] = {
    "initializer": lambda n: n.ints(FEATURES, 4),
    "constant-node": lambda n: n.Constant(value=numpy_helper.from_array(n.numbers_of(FEATURES, 4))),
    "reshape": lambda n: n.Reshape(n.ints(3, 3, 5, 4), n.const([FEATURES, 4])),
    "transpose": lambda n: n.Transpose(n.ints(4, FEATURES), perm=[1, 0]),
    "transpose-of-reshape": lambda n: n.Transpose(n.Reshape(n.ints(4, 3, 15), n.const([4, -1])), perm=[1, 0]),
    "constant-of-shape": lambda n: n.ConstantOfShape(
        n.const([FEATURES, 4]), value=helper.make_tensor("value", TensorProto.FLOAT, [1], [2.0])
    ),
    "cast": lambda n: n.Cast(n.const(n.numbers_of(FEATURES, 4), dtype=np.float64), to=TensorProto.FLOAT),
    "cast-int8": lambda n: n.Cast(n.const(n.numbers_of(FEATURES, 4), dtype=np.int8), to=TensorProto.FLOAT),
    "sum": lambda n: n.Add(n.ints(FEATURES, 4), n.ints(4)),
    "identity": lambda n: n.Identity(n.ints(FEATURES, 4)),
}


@pytest.mark.parametrize("source", SOURCES)
def test_source_of_the_weight(source: str) -> None:
    net = Net(1, 2, 9, 12)
    check_lifted(net.model(net.Gemm(trunk(net), SOURCES[source](net), net.ints(4))))


@pytest.mark.parametrize("opset", [10, 13, 19, 21])
def test_quantized_weight(opset: int) -> None:
    net = Net(1, 2, 9, 12, opset=opset)
    check_lifted(net.model(net.Gemm(trunk(net), quantized(net), net.ints(4))), exact=False)


def test_constant_of_shape_stays_small() -> None:
    net = Net(1, 2, 9, 12)
    value = helper.make_tensor("value", TensorProto.FLOAT, [1], [2.0])
    made = check_lifted(net.model(net.Gemm(trunk(net), net.ConstantOfShape(net.const([FEATURES, 4]), value=value))))
    assert "ConstantOfShape" in made.operators


def test_bias_from_a_constant_node() -> None:
    net = Net(1, 2, 9, 12)
    bias = net.Reshape(net.Constant(value=numpy_helper.from_array(net.numbers_of(2, 2))), net.const([4]))
    check_lifted(net.model(net.Gemm(trunk(net), net.ints(FEATURES, 4), bias)))


def test_shared_weight_is_not_edited() -> None:
    """The same matrix serves two layers, once as it is and once transposed; the original's file keeps it."""
    net = Net(1, 2, 9, 12)
    square = net.ints(FEATURES, FEATURES, name="square")
    hidden = net.Relu(net.Gemm(trunk(net), square))
    check_lifted(net.model(net.Gemm(net.Gemm(hidden, square, transB=1, alpha=1.0), net.ints(FEATURES, 2))))


def test_shared_bias() -> None:
    net = Net(1, 2, 9, 12)
    bias = net.ints(4, name="bias")
    hidden = net.Gemm(trunk(net), net.ints(FEATURES, 4), bias)
    check_lifted(net.model(net.Add(net.MatMul(hidden, net.ints(4, 4)), bias)))


def test_two_layers_on_the_same_features() -> None:
    net = Net(1, 2, 9, 12)
    flat = trunk(net)
    left, right = net.fc(flat, 3), net.fc(flat, 5)
    check_lifted(net.model(net.fc(net.Concat(net.Relu(left), right, axis=1), 4), left))


def test_layer_per_position_ahead_of_the_head() -> None:
    """A MatMul on channels-last maps contracts channels alone: a 1x1 convolution inside the trunk."""
    net = Net(1, 2, 9, 12)
    turned = net.Transpose(net.conv("x", 3, 3, 3), perm=[0, 2, 3, 1])
    mixed = net.Relu(net.Add(net.MatMul(turned, net.ints(3, 5)), net.ints(5)))
    check_lifted(net.model(net.fc(net.Flatten(mixed), 4)))


@pytest.mark.parametrize("per_channel", [False, True])
def test_matmul_by_a_scaled_identity_is_a_multiplication(per_channel: bool) -> None:
    net = Net(1, 2, 9, 12)
    map_ = net.conv("x", 3, 3, 3)
    eye = np.eye(10, dtype=np.float32) * 2
    stack = np.stack([eye, eye * 2, eye * -1])[None] if per_channel else eye
    made = check_lifted(net.model(net.fc(net.Flatten(net.MatMul(map_, net.const(stack))), 4)))
    assert "Mul" in made.operators


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_other_float_types(dtype: type) -> None:
    net = Net(1, 2, 9, 12, dtype=dtype)
    turned = net.Transpose("x", perm=[0, 2, 3, 1])
    flat = net.Flatten(net.Relu(net.Add(turned, net.ints(2, bound=1))))
    hidden = net.Relu(net.Gemm(flat, net.ints(216, 3, bound=1), net.ints(3, bound=1)))
    net.Identity(hidden, outputs=["scores"])
    made_of(net, dtype)


def made_of(net: Net, dtype: type) -> None:
    """ONNX Runtime has no float64 Conv on the CPU, so only the types are checked there."""
    result, model = convert(net.model("scores"))
    assert result.changed, str(result)
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    wanted = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    assert model.graph.output[0].type.tensor_type.elem_type == wanted
    assert all(kinds[name] == wanted for n in model.graph.node if n.op_type == "Conv" for name in n.input[1:])
