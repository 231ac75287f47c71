"""Head operators: what stands between the collapse and the outputs, and the forms that outputs take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from helpers import Net, check_lifted, convert

Head = Callable[[Net, str], str]


def hidden(net: Net, features: int = 6) -> str:
    """Features [N, F] behind a fully connected layer on a 3 x 5 map."""
    pooled = net.MaxPool(net.Relu(net.conv("x", 3, 3, 3)), kernel_shape=[2, 2], strides=[2, 2])
    return net.fc(net.Flatten(pooled), features)


def scalar(net: Net, value: float) -> str:
    return net.const(np.float32(value))


EXACT: dict[str, Head] = {
    "relu": lambda n, x: n.Relu(x),
    "identity": lambda n, x: n.Identity(n.Identity(x)),
    "neg-abs": lambda n, x: n.Abs(n.Neg(x)),
    "sign": lambda n, x: n.Sign(x),
    "cast-and-back": lambda n, x: n.Cast(n.Cast(x, to=TensorProto.INT32), to=TensorProto.FLOAT),
    "clip": lambda n, x: n.Clip(x, scalar(n, -3), scalar(n, 6)),
    "clip-open": lambda n, x: n.Clip(x, "", scalar(n, 6)),
    "add": lambda n, x: n.Add(x, n.ints(6)),
    "add-rank-2": lambda n, x: n.Add(n.ints(1, 6), x),
    "sub": lambda n, x: n.Sub(n.ints(6), x),
    "mul": lambda n, x: n.Mul(x, n.ints(1, 6)),
    "mul-scalar": lambda n, x: n.Mul(scalar(n, 3), x),
    "mul-one-number": lambda n, x: n.Mul(x, n.const(np.float32([3]))),
    "mul-one-number-rank-2": lambda n, x: n.Mul(x, n.const(np.float32([[3]]))),
    "max-of-three": lambda n, x: n.Max(x, n.ints(6), n.Neg(x)),
    "sum": lambda n, x: n.Sum(x, n.ints(6), x),
    "residual": lambda n, x: n.Add(x, n.Relu(n.fc(n.Relu(x), 6))),
    "square": lambda n, x: n.Mul(n.Sign(x), n.Sign(x)),
    "where": lambda n, x: n.Where(n.Greater(x, scalar(n, 0)), x, n.ints(6)),
    "equal": lambda n, x: n.Cast(n.Equal(x, n.ints(6)), to=TensorProto.FLOAT),
    "prelu": lambda n, x: n.PRelu(x, n.ints(6)),
    "prelu-scalar": lambda n, x: n.PRelu(x, n.const(np.float32([2]))),
    "concat": lambda n, x: n.Concat(x, n.fc(n.Relu(x), 2), axis=1),
    "concat-negative-axis": lambda n, x: n.Concat(n.Neg(x), x, axis=-1),
    "split-and-add": lambda n, x: n.Add(*n.Split(x, n.const([3, 3]), axis=1, outputs=2)),
    "slice": lambda n, x: n.Slice(x, n.const([1]), n.const([5]), n.const([1])),
    "slice-stepped": lambda n, x: n.Slice(x, n.const([5]), n.const([-100]), n.const([-1]), n.const([-2])),
    "gather": lambda n, x: n.Gather(x, n.const([4, 0, 0]), axis=1),
    "gather-negative": lambda n, x: n.Gather(x, n.const([-1, 2]), axis=-1),
    "gather-one": lambda n, x: n.with_axes("Unsqueeze", n.Gather(x, n.const(2), axis=1), [1]),
    "unsqueeze-squeeze": lambda n, x: n.with_axes("Squeeze", n.with_axes("Unsqueeze", x, [2]), [2]),
    "grouped-features": lambda n, x: n.Flatten(
        n.reduce("ReduceMax", n.Reshape(x, n.const([-1, 2, 3])), [2], keepdims=0)
    ),
    "maxout": lambda n, x: n.reduce("ReduceMax", n.Reshape(x, n.const([-1, 3, 2])), [1], keepdims=0),
    "transposed-groups": lambda n, x: n.Flatten(n.Transpose(n.Reshape(x, n.const([-1, 2, 3])), perm=[0, 2, 1])),
    "best-score": lambda n, x: n.reduce("ReduceMax", x, [1], keepdims=1),
    "two-scalings": lambda n, x: n.Mul(n.Add(n.Mul(x, n.ints(6)), n.ints(6)), n.ints(1, 6)),
    "tile-once": lambda n, x: n.Tile(x, n.const([1, 1])),
    "conv-head": lambda n, x: n.Flatten(n.conv(n.Reshape(x, n.const([-1, 6, 1, 1])), 4, 1, 1)),
}


@pytest.mark.parametrize("head", EXACT)
def test_exact_operator(head: str) -> None:
    net = Net("batch", 2, 9, 12)
    check_lifted(net.model(EXACT[head](net, hidden(net))))


@pytest.mark.parametrize("head", EXACT)
def test_exact_operator_inside_the_head(head: str) -> None:
    net = Net(1, 2, 9, 12)
    middle = EXACT[head](net, net.Relu(hidden(net)))
    check_lifted(net.model(net.fc(middle, 3)))


def batch_norm(net: Net, x: str) -> str:
    size = net.shape(x)[1]
    variance = net.const(net.rng.uniform(0.5, 2, size))
    return str(net.BatchNormalization(x, net.ints(size), net.ints(size), net.ints(size), variance))


FLOATS: dict[str, Head] = {
    "softmax": lambda n, x: n.Softmax(x, axis=1),
    "softmax-last": lambda n, x: n.Softmax(x, axis=-1),
    "softmax-default": lambda n, x: n.Softmax(x),
    "log-softmax": lambda n, x: n.LogSoftmax(x, axis=1),
    "hardmax": lambda n, x: n.Hardmax(x, axis=-1),
    "sigmoid": lambda n, x: n.Sigmoid(x),
    "tanh-then-layer": lambda n, x: n.fc(n.Tanh(x), 4),
    "softmax-then-layer": lambda n, x: n.fc(n.Softmax(x, axis=1), 4),
    "elu-leaky": lambda n, x: n.Elu(n.LeakyRelu(x, alpha=0.1)),
    "batch-norm": batch_norm,
    "batch-norm-between": lambda n, x: n.LogSoftmax(n.fc(n.Relu(batch_norm(n, x)), 4), axis=1),
    "div": lambda n, x: n.Div(x, n.const(np.float32([1, 2, 3, 4, 5, 6]))),
    "l2-normalised": lambda n, x: n.Div(x, n.with_axes("ReduceL2", x, [1], since=18, keepdims=1)),
    "mean-of-classes": lambda n, x: n.Sub(x, n.with_axes("ReduceMean", x, [1], since=18, keepdims=1)),
    "pow": lambda n, x: n.Pow(x, n.const(np.float32(2))),
}


FROM_OPSET_11 = ("softmax-last", "hardmax")  # they count the axis from the end


@pytest.mark.parametrize(
    ("head", "opset"), [(h, o) for h in FLOATS for o in (7, 11, 12, 13, 18) if o >= 11 or h not in FROM_OPSET_11]
)
def test_rounding_operator(head: str, opset: int) -> None:
    net = Net("batch", 2, 9, 12, opset=opset)
    check_lifted(net.model(FLOATS[head](net, hidden(net))), exact=False)


@pytest.mark.parametrize("opset", [7, 11, 12, 13])
def test_softmax_normalises_over_the_classes_alone(opset: int) -> None:
    net = Net(1, 2, 9, 12, opset=opset)
    made = check_lifted(net.model(net.Softmax(hidden(net), axis=1)), exact=False)
    if opset < 13:
        assert made.operators[-3:] == ["Transpose", "Softmax", "Transpose"]
    else:
        assert made.operators[-2:] == ["Conv", "Softmax"]


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
def test_best_class(op: str, keepdims: int) -> None:
    net = Net("batch", 2, 9, 12)
    made = check_lifted(net.model(net.node(op, hidden(net), axis=1, keepdims=keepdims)))
    output = made.model.graph.output[0].type.tensor_type
    assert output.elem_type == TensorProto.INT64
    assert output.shape.dim[1].dim_value == 1


def test_best_class_and_scores() -> None:
    net = Net("batch", 2, 9, 12)
    scores = hidden(net)
    check_lifted(net.model(net.ArgMax(scores, axis=-1, keepdims=0), scores, net.Relu(scores)))


@pytest.mark.parametrize("opset", [7, 9, 11, 13])
def test_dropout_with_a_mask(opset: int) -> None:
    net = Net(1, 2, 9, 12, opset=opset)
    attrs: dict[str, Any] = {"ratio": 0.5} if opset < 12 else {}
    dropped, _ = net.Dropout(net.Relu(hidden(net)), outputs=2, **attrs)
    check_lifted(net.model(net.fc(dropped, 4)))


def test_dropout_whose_mask_is_read() -> None:
    net = Net(1, 2, 9, 12)
    dropped, mask = net.Dropout(hidden(net), outputs=2)
    check_lifted(net.model(net.Add(dropped, net.Cast(mask, to=TensorProto.FLOAT))))
    check_lifted(net.model(dropped, mask))


# Outputs ------------------------------------------------------------------------------------------------------------


def test_output_without_batch_axis() -> None:
    net = Net(1, 2, 9, 12)
    scores = net.with_axes("Squeeze", hidden(net), [0])
    made = check_lifted(net.model(scores))
    assert [d.dim_value for d in made.model.graph.output[0].type.tensor_type.shape.dim][:2] == [1, 6]


def test_output_without_class_axis() -> None:
    net = Net("batch", 2, 9, 12)
    one = net.with_axes("Squeeze", hidden(net, 1), [1])
    made = check_lifted(net.model(one))
    assert made.model.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"


@pytest.mark.parametrize("shape", [[1, 1], [1], [], [1, 1, 1, 1]])
def test_output_of_one_number(shape: list[int]) -> None:
    net = Net(1, 2, 9, 12)
    check_lifted(net.model(net.Reshape(hidden(net, 1), net.const(shape))))


def test_output_turned_around() -> None:
    net = Net("batch", 2, 9, 12)
    check_lifted(net.model(net.Transpose(hidden(net), perm=[1, 0])))


def test_outputs_that_are_one_tensor() -> None:
    net = Net(1, 2, 9, 12)
    scores = hidden(net)
    check_lifted(net.model(net.Identity(scores), scores, net.Reshape(scores, net.const([6, 1])), net.Identity(scores)))


def test_output_read_inside() -> None:
    net = Net(1, 2, 9, 12)
    first = hidden(net)
    check_lifted(net.model(first, net.fc(net.Relu(first), 4)))


@pytest.mark.parametrize("opset", [9, 11, 13])
def test_reshape_as_output_and_inside(opset: int) -> None:
    net = Net(1, 2, 9, 12, opset=opset)
    pooled = net.GlobalMaxPool(net.conv("x", 3, 3, 3))
    flat = net.Reshape(pooled, net.const([1, 3]))
    check_lifted(net.model(flat, pooled, net.fc(flat, 4), net.Softmax(flat, axis=1)), exact=False)


def test_map_as_an_output_beside_the_classes() -> None:
    net = Net(1, 2, 9, 12)
    map_ = net.MaxPool(net.conv("x", 3, 3, 3), kernel_shape=[2, 2], strides=[2, 2])
    made = check_lifted(net.model(map_, net.fc(net.Flatten(map_), 4), net.Transpose(map_, perm=[0, 2, 3, 1])))
    assert made.window.outputs[map_].size == (3, 5)
    assert made.window.outputs[map_].stride == (2, 2)


def test_flattened_map_as_an_output_beside_the_classes() -> None:
    net = Net(1, 2, 9, 12)
    flat = net.Flatten(net.Transpose(net.conv("x", 3, 3, 3), perm=[0, 2, 3, 1]))
    check_lifted(net.model(flat, net.fc(flat, 4)))


@pytest.mark.parametrize("opset", [9, 11, 13])
@pytest.mark.parametrize("axis", [None, 1])
def test_outputs_of_different_stride(opset: int, axis: int | None) -> None:
    """A head on the fine map and one on the coarse map: the finer grid of windows is thinned out."""
    net = Net(1, 2, 9, 12, opset=opset)
    fine = net.conv("x", 3, 3, 3)
    coarse = net.MaxPool(fine, kernel_shape=[2, 2], strides=[2, 3])
    first, second = net.fc(net.Flatten(fine), 4), net.fc(net.Flatten(coarse), 3)
    outputs = [first, second, fine]
    if axis is not None:
        outputs += [net.ArgMax(first, axis=axis, keepdims=0), net.Softmax(first, axis=axis)]
    made = check_lifted(net.model(*outputs), exact=axis is None)
    assert made.window.stride == (2, 3)
    assert made.window.outputs[fine].stride == (1, 1)
    assert made.window.outputs[first].stride == (2, 3)


def test_heads_of_different_scale_are_joined() -> None:
    net = Net(1, 2, 9, 12)
    fine = net.conv("x", 3, 3, 3)
    coarse = net.conv(net.Relu(fine), 4, 3, 3, strides=[2, 3])
    joined = net.Concat(net.GlobalMaxPool(fine), net.GlobalMaxPool(coarse), axis=1)
    check_lifted(net.model(net.fc(net.Flatten(joined), 4)))
    summed = net.Add(net.fc(net.Flatten(fine), 4), net.fc(net.Flatten(coarse), 4))
    check_lifted(net.model(summed))
    flats = net.Concat(net.Flatten(fine), net.Flatten(coarse), axis=1)
    check_lifted(net.model(net.fc(net.Relu(flats), 4)))


def test_output_that_does_not_depend_on_the_image() -> None:
    net = Net(1, 2, 9, 12)
    net.input("v", 1, 3)
    made = check_lifted(net.model(hidden(net), net.Relu("v"), net.Identity(net.ints(2, 2, name="fixed"))))
    assert len(made.window.outputs) == 1


# Vectors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, "batch"])
@pytest.mark.parametrize("order", [0, 1])
def test_vector_joins_the_flattened_map(order: int, batch: int | str) -> None:
    net = Net(batch, 2, 9, 12)
    net.input("v", batch, 5)
    flat = net.Flatten(net.Relu(net.conv("x", 3, 3, 3)))
    joined = net.Concat(*([flat, "v"] if order == 0 else ["v", flat]), axis=1)
    check_lifted(net.model(net.fc(net.Relu(net.Gemm(joined, net.ints(215, 4), net.ints(4))), 3)))


JOINED: dict[str, Head] = {
    "layer": lambda n, x: n.Gemm(x, n.ints(11, 4), n.ints(4)),
    "relu-layer": lambda n, x: n.Gemm(n.Relu(x), n.ints(11, 4), n.ints(4)),
    "output": lambda n, x: x,
    "scaled": lambda n, x: n.Gemm(n.Mul(x, n.ints(11)), n.ints(11, 4)),
    "slice": lambda n, x: n.Identity(n.Gather(x, n.const([0, 10, 3]), axis=1)),
    "joined-again": lambda n, x: n.Gemm(n.Concat(x, n.Neg(x), axis=1), n.ints(22, 4)),
    "reshape": lambda n, x: n.Reshape(x, n.const([-1, 11, 1, 1])),
    "transpose": lambda n, x: n.Transpose(x, perm=[1, 0]),
}


@pytest.mark.parametrize("form", JOINED)
def test_vector_joins_the_features(form: str) -> None:
    net = Net("batch", 2, 9, 12)
    net.input("v", "batch", 5)
    joined = net.Concat(hidden(net), net.Relu("v"), axis=1)
    check_lifted(net.model(JOINED[form](net, joined)))


def test_batch_norm_on_joined_features() -> None:
    net = Net("batch", 2, 9, 12)
    net.input("v", "batch", 5)
    check_lifted(net.model(net.fc(batch_norm(net, net.Concat(hidden(net), "v", axis=1)), 4)), exact=False)
    net = Net(1, 2, 9, 12)
    flats = [net.Flatten(net.conv("x", 2, 3, 3)), net.Flatten(net.conv("x", 3, 5, 5))]
    features = net.Relu(net.Concat(*flats, axis=1))
    check_lifted(net.model(net.fc(features, 4)))


@pytest.mark.parametrize("shape", [(1, 6), ("batch", 6), ("batch", 1), (6,)])
def test_vector_is_added(shape: tuple[int | str, ...]) -> None:
    net = Net("batch", 2, 9, 12)
    net.input("v", *shape)
    check_lifted(net.model(net.fc(net.Add(hidden(net), "v"), 4)))


def test_constant_vector_joins_the_features() -> None:
    net = Net(1, 2, 9, 12)
    check_lifted(net.model(net.fc(net.Concat(hidden(net), net.ints(1, 3), axis=1), 4)))


# Names --------------------------------------------------------------------------------------------------------------


def test_names_that_look_like_those_of_new_tensors() -> None:
    net = Net(1, 2, 9, 12)
    flat = net.Flatten(net.conv("x", 3, 3, 3), outputs=["model/flat"])
    first = net.Gemm(flat, net.ints(210, 4), net.ints(4), outputs=["model/flat/conv"], name="")
    second = net.Gemm(net.Relu(first, outputs=["scores/weight"]), net.ints(4, 3), outputs=["scores"], name="")
    third = net.Identity(second, outputs=["scores/windows"])
    made = check_lifted(net.model(second, third, flat, first))
    assert [o.name for o in made.model.graph.output] == ["scores", "scores/windows", "model/flat", "model/flat/conv"]


def test_nodes_without_names() -> None:
    net = Net(1, 2, 9, 12)
    model = net.model(net.fc(net.Relu(hidden(net)), 4))
    for node in model.graph.node:
        node.name = ""
    check_lifted(model)


def test_subgraph_beside_the_image() -> None:
    """A branch over a vector: copied as it is."""
    net = Net(1, 2, 9, 12)
    net.input("v", 1, 6)
    weight = net.ints(6, name="captured")
    kind = helper.make_tensor_value_info("then", TensorProto.FLOAT, None)
    then = helper.make_graph([helper.make_node("Mul", ["v", weight], ["then"])], "then", [], [kind])
    other_kind = helper.make_tensor_value_info("else", TensorProto.FLOAT, None)
    other = helper.make_graph([helper.make_node("Neg", ["v"], ["else"])], "else", [], [other_kind])
    chosen = net.If(net.const(np.asarray(True), dtype=bool), then_branch=then, else_branch=other)
    result, _ = convert(net.model(net.Add(hidden(net), chosen)))
    assert result.changed
