"""Every form of collapse: the nodes that take the rows and columns away, one by one, on maps that are not square."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from helpers import Net, check_lifted

Form = Callable[[Net, str], str]


def small_map(net: Net, channels: int = 3) -> str:
    """A map of 3 x 5 cells from an image of 9 x 12."""
    return str(net.MaxPool(net.Relu(net.conv("x", channels, 3, 3)), kernel_shape=[2, 2], strides=[2, 2]))


def even_map(net: Net, channels: int = 3) -> str:
    """A map of 2 x 4 cells from an image of 8 x 10: means of 2**k cells are exact."""
    return str(net.MaxPool(net.Relu(net.conv("x", channels, 3, 3)), kernel_shape=[2, 2], strides=[4, 2]))


def shape_of_map(net: Net, x: str) -> str:
    """[N, -1] as PyTorch writes it: Shape, Gather, Unsqueeze, Concat."""
    batch = net.Gather(net.Shape(x), net.const(0), axis=0)
    rest = net.Constant(value=numpy_helper.from_array(np.asarray(-1)))
    ones = [net.with_axes("Unsqueeze", part, [0]) for part in (batch, rest)]
    return str(net.Reshape(x, net.Concat(*ones, axis=0)))


def product_of_shape(net: Net, x: str) -> str:
    """[N, C * H * W] with each extent read from the map."""
    sizes = [net.Gather(net.Shape(x), net.const([i]), axis=0) for i in range(4)]
    features = net.Mul(net.Mul(sizes[1], sizes[2]), sizes[3])
    return str(net.Reshape(x, net.Concat(sizes[0], features, axis=0)))


def channels_last_then(rest: Form) -> Form:
    return lambda net, x: rest(net, str(net.Transpose(x, perm=[0, 2, 3, 1])))


def features(net: Net, x: str) -> int:
    return math.prod(net.shape(x)[1:])


FLATTENS: dict[str, Form] = {
    "flatten": lambda n, x: n.Flatten(x),
    "flatten-axis-0": lambda n, x: n.Flatten(x, axis=0),
    "flatten-axis-1": lambda n, x: n.Flatten(x, axis=1),
    "reshape-minus-1": lambda n, x: n.Reshape(x, n.const([-1, features(n, x)])),
    "reshape-1": lambda n, x: n.Reshape(x, n.const([1, -1])),
    "reshape-0": lambda n, x: n.Reshape(x, n.const([0, -1])),
    "reshape-baked": lambda n, x: n.Reshape(x, n.const([1, features(n, x)])),
    "reshape-constant-node": lambda n, x: n.Reshape(
        x, n.Constant(value=numpy_helper.from_array(np.asarray([1, -1], np.int64)))
    ),
    "reshape-cast": lambda n, x: n.Reshape(
        x, n.Cast(n.const(np.asarray([1, features(n, x)]), dtype=np.int32), to=TensorProto.INT64)
    ),
    "reshape-shape-chain": shape_of_map,
    "reshape-shape-product": product_of_shape,
    "reshape-twice": lambda n, x: n.Reshape(n.Reshape(x, n.const([0, 0, -1])), n.const([0, -1])),
    "nhwc-flatten": channels_last_then(lambda n, x: n.Flatten(x)),
    "nhwc-reshape": channels_last_then(lambda n, x: n.Reshape(x, n.const([-1, features(n, x)]))),
    "nhwc-shape-chain": channels_last_then(shape_of_map),
    "nhwc-bias-relu-mul": channels_last_then(
        lambda n, x: n.Flatten(n.Mul(n.Relu(n.Add(x, n.ints(3))), n.ints(1, 1, 1, 3)))
    ),
    "whcn-flatten": lambda n, x: n.Flatten(n.Transpose(x, perm=[0, 3, 2, 1])),
    "relu-behind": lambda n, x: n.Relu(n.Flatten(x)),
    "identity-chain": lambda n, x: n.Identity(n.Flatten(n.Identity(n.Identity(x)))),
    "transposed-matrix": lambda n, x: n.Transpose(n.Transpose(n.Flatten(x), perm=[1, 0]), perm=[1, 0]),
}


@pytest.mark.parametrize("form", FLATTENS)
def test_flatten_of_one_image(form: str) -> None:
    net = Net(1, 2, 9, 12)
    flat = FLATTENS[form](net, small_map(net))
    check_lifted(net.model(net.fc(net.Relu(net.fc(flat, 6)), 4)))


BATCHED = [f for f in FLATTENS if f not in ("flatten-axis-0", "reshape-1", "reshape-baked", "reshape-constant-node")]


@pytest.mark.parametrize("batch", ["batch", 3])
@pytest.mark.parametrize("form", [f for f in BATCHED if f != "reshape-cast"])
def test_flatten_of_a_batch(form: str, batch: int | str) -> None:
    net = Net(batch, 2, 9, 12)
    flat = FLATTENS[form](net, small_map(net))
    made = check_lifted(net.model(net.fc(flat, 4), shapes={}))
    assert made.window.size == (9, 12)
    assert made.model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == ("batch" if batch == "batch" else "")


@pytest.mark.parametrize("opset", range(7, 24))
def test_every_opset(opset: int) -> None:
    net = Net(1, 2, 9, 12, opset=opset)
    flat = shape_of_map(net, net.Transpose(small_map(net), perm=[0, 2, 3, 1]))
    made = check_lifted(net.model(net.fc(net.Relu(net.fc(flat, 6)), 4)))
    assert made.model.opset_import[0].version == opset
    assert made.model.ir_version == net.ir


def test_initializers_are_inputs_in_old_models() -> None:
    net = Net(1, 2, 9, 12, opset=8)
    made = check_lifted(net.model(net.fc(net.Flatten(small_map(net)), 4)))
    assert made.model.ir_version == 3
    listed = {info.name for info in made.model.graph.input}
    assert {tensor.name for tensor in made.model.graph.initializer} <= listed


@pytest.mark.parametrize("axes", [[2, 3], None, [-1, -2]])
@pytest.mark.parametrize("opset", [11, 13])
def test_squeeze(opset: int, axes: list[int] | None) -> None:
    net = Net(1, 2, 9, 12, opset=opset)
    pooled = net.GlobalMaxPool(small_map(net))
    squeezed = net.with_axes("Squeeze", pooled, axes) if axes else net.Squeeze(pooled)
    shape = {squeezed: (1, 3) if axes else (3,)}
    if axes:
        check_lifted(net.model(net.fc(squeezed, 4)))
    check_lifted(net.model(squeezed, shapes=shape))


@pytest.mark.parametrize("pool", ["GlobalAveragePool", "GlobalMaxPool"])
@pytest.mark.parametrize("collapse", ["flatten", "reshape-0", "nhwc-flatten"])
def test_global_pool(pool: str, collapse: str) -> None:
    net = Net(1, 2, 8, 10)
    pooled = net.node(pool, even_map(net))
    check_lifted(net.model(net.fc(FLATTENS[collapse](net, pooled), 4)))


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("op", ["ReduceMean", "ReduceMax", "ReduceSum", "ReduceMin"])
def test_reduction(op: str, keepdims: int, opset: int) -> None:
    net = Net(1, 2, 8, 10, opset=opset)
    pooled = net.reduce(op, net.conv(even_map(net), 3, 1, 1), [2, 3], keepdims)
    check_lifted(net.model(net.fc(net.Flatten(pooled) if keepdims else pooled, 4)))


@pytest.mark.parametrize("op", ["ReduceL1", "ReduceL2", "ReduceSumSquare"])
def test_norm_of_the_map(op: str) -> None:
    net = Net(1, 2, 9, 12)
    pooled = net.reduce(op, net.conv(small_map(net), 3, 1, 1), [-2, -1], 0)
    check_lifted(net.model(net.fc(pooled, 4)), exact=False)


def test_reduction_axis_by_axis() -> None:
    net = Net(1, 2, 8, 10)
    rows = net.reduce("ReduceMean", even_map(net), [2], 0)
    check_lifted(net.model(net.fc(net.reduce("ReduceMax", rows, [2], 0), 4)))


def test_reduction_of_channels_last_map() -> None:
    net = Net(1, 2, 8, 10)
    turned = net.Transpose(even_map(net), perm=[0, 2, 3, 1])
    check_lifted(net.model(net.fc(net.reduce("ReduceMean", turned, [1, 2], 0), 4)))


def test_sum_times_a_constant_is_a_mean() -> None:
    net = Net(1, 2, 8, 10)
    total = net.reduce("ReduceSum", even_map(net), [2, 3], 0)
    scaled = net.Mul(total, net.const(np.float32(2.0)))
    check_lifted(net.model(net.fc(scaled, 4)))


POOLS: dict[str, dict[str, object]] = {
    "whole-map": {"kernel_shape": [4, 8]},
    "whole-map-any-stride": {"kernel_shape": [4, 8], "strides": [3, 7]},
    "kernel-beyond-the-map": {"kernel_shape": [5, 9], "pads": [0, 0, 1, 1]},
    "kernel-beyond-the-map-counted": {"kernel_shape": [5, 9], "pads": [0, 0, 1, 1], "count_include_pad": 1},
    "padded-on-both-sides": {"kernel_shape": [6, 10], "pads": [1, 1, 1, 1]},
    "padded-on-both-sides-counted": {"kernel_shape": [6, 10], "pads": [1, 1, 1, 1], "count_include_pad": 1},
    "same-upper": {"kernel_shape": [7, 15], "strides": [4, 8], "auto_pad": "SAME_UPPER"},
    "valid": {"kernel_shape": [4, 8], "auto_pad": "VALID"},
}


@pytest.mark.parametrize("form", POOLS)
@pytest.mark.parametrize("op", ["AveragePool", "MaxPool"])
def test_pool_over_the_whole_map(op: str, form: str) -> None:
    attrs = {k: v for k, v in POOLS[form].items() if op == "AveragePool" or k != "count_include_pad"}
    net = Net(1, 2, 10, 18)
    pooled = net.node(op, net.MaxPool(net.conv("x", 3, 3, 3), kernel_shape=[2, 2], strides=[2, 2]), **attrs)
    exact = op == "MaxPool" or form in ("whole-map", "whole-map-any-stride", "valid")
    made = check_lifted(net.model(net.fc(net.Flatten(pooled), 4)), exact=exact)
    assert made.window.receptive_field == (10, 18)
    (pool,) = (n for n in made.model.graph.node if n.op_type == op and n.name and "window" in n.output[0])
    assert helper.get_attribute_value(next(a for a in pool.attribute if a.name == "kernel_shape")) == [4, 8]


def test_average_pool_of_seven_on_six_by_six_averages_36_cells() -> None:
    net = Net(1, 2, 8, 8)
    pooled = net.AveragePool(net.conv("x", 3, 3, 3), kernel_shape=[7, 7], pads=[0, 0, 1, 1])
    check_lifted(net.model(net.fc(net.Flatten(pooled), 4)), exact=False)


def test_head_without_fully_connected_layer() -> None:
    net = Net(1, 2, 8, 10)
    scores = net.Relu(net.conv(even_map(net), 5, 1, 1))
    logits = net.Flatten(net.GlobalAveragePool(scores))
    made = check_lifted(net.model(logits))
    assert "Reshape" not in made.operators
    net = Net(1, 2, 8, 10)
    scores = net.Relu(net.conv(even_map(net), 5, 1, 1))
    check_lifted(net.model(net.Softmax(net.Flatten(net.GlobalAveragePool(scores)), axis=1)), exact=False)


def test_map_of_one_cell_needs_no_collapse() -> None:
    net = Net(1, 2, 9, 12)
    scores = net.conv(net.conv("x", 3, 3, 3), 4, 7, 10)
    made = check_lifted(net.model(net.with_axes("Squeeze", scores, [2, 3])))
    assert made.window.stride == (1, 1)


def test_flattened_map_as_the_only_output_of_one_cell() -> None:
    net = Net(1, 2, 9, 12)
    check_lifted(net.model(net.Flatten(net.conv("x", 3, 9, 12))))
