"""The arithmetic of layers, against ONNX Runtime over a grid, and the readings of Gemm and MatMul."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper

from convrewrite.engine.layers import ConvLayer, LinearLayer, PoolLayer, Sliding, Spreading, TransposedLayer
from helpers import Net, session

GEOMETRIES = [
    {"strides": [s, s + 1], "dilations": [d, 1], "pads": list(pads)}
    for s, d, pads in itertools.product((1, 2, 3), (1, 2), ((0, 0, 0, 0), (1, 0, 1, 0), (0, 1, 2, 1), (1, 1, 0, 0)))
]
AUTO_PADS = [
    {"strides": [s, s + 1], "auto_pad": pad}
    for s, pad in itertools.product((1, 2, 3), ("SAME_UPPER", "SAME_LOWER", "VALID"))
]
SIZES = [(9, 12), (8, 13), (10, 11), (7, 7)]


def ones_seen(op: str, attrs: dict[str, Any], size: tuple[int, int]) -> np.ndarray[Any, Any]:
    """What ONNX Runtime gives for a map of ones."""
    attrs = {"kernel_shape": [3, 4], **attrs}
    inputs = ["x"]
    weights = []
    if op == "Conv":
        inputs.append("w")
        weights = [helper.make_tensor("w", TensorProto.FLOAT, [1, 1, 3, 4], [1.0] * 12)]
    graph = helper.make_graph(
        [helper.make_node(op, inputs, ["y"], **attrs)],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, *size])],
        [helper.make_empty_tensor_value_info("y")],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    (result,) = session(model).run(None, {"x": np.ones((1, 1, *size), np.float32)})
    return np.asarray(result)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("attrs", [*GEOMETRIES, *AUTO_PADS], ids=str)
def test_output_size_and_padding_of_a_conv(attrs: dict[str, Any], size: tuple[int, int]) -> None:
    sliding = Sliding.read(attrs, (3, 4), size)
    seen = ones_seen("Conv", attrs, size)
    assert sliding.output == seen.shape[2:]
    # A window of ones that covers a padded cell sums to less than the whole kernel.
    assert (seen.min() < 12) == any(sliding.sees_padding(axis) for axis in (0, 1))
    trimmed = sliding.trimmed()
    assert trimmed.output == sliding.output
    assert trimmed.begin == sliding.begin
    explicit = trimmed.attributes(attrs, pool=False)
    np.testing.assert_array_equal(ones_seen("Conv", explicit, size), seen)


@pytest.mark.parametrize("ceil_mode", [0, 1])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("attrs", [a for a in GEOMETRIES if max(a["pads"]) < 2], ids=str)
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_output_size_of_a_pool(op: str, attrs: dict[str, Any], size: tuple[int, int], ceil_mode: int) -> None:
    attrs = {**attrs, "ceil_mode": ceil_mode}
    sliding = Sliding.read(attrs, (3, 4), size)
    seen = ones_seen(op, attrs, size)
    assert sliding.output == seen.shape[2:]
    trimmed = sliding.trimmed()
    assert trimmed.output == sliding.output
    explicit = trimmed.attributes(attrs, pool=True)
    np.testing.assert_array_equal(ones_seen(op, explicit, size), seen)


def test_same_pads_go_to_the_end_or_to_the_beginning() -> None:
    upper = Sliding.read({"auto_pad": "SAME_UPPER", "strides": [2, 2]}, (3, 3), (8, 9))
    lower = Sliding.read({"auto_pad": "SAME_LOWER", "strides": [2, 2]}, (3, 3), (8, 9))
    assert (upper.begin, upper.end) == ((0, 1), (1, 1))
    assert (lower.begin, lower.end) == ((1, 1), (0, 1))


def test_trailing_pads_that_no_window_sees() -> None:
    sliding = Sliding((9, 12), (3, 2), (3, 2), (1, 1), (0, 0), (2, 1))
    assert not sliding.sees_padding(0)
    assert not sliding.sees_padding(1)
    assert sliding.trimmed().end == (0, 0)


def test_ceil_mode_without_effect_is_cleared() -> None:
    assert not Sliding((8, 6), (2, 2), (2, 2), (1, 1), (0, 0), (0, 0), ceil_mode=True).trimmed().ceil_mode
    partial = Sliding((8, 7), (2, 2), (2, 2), (1, 1), (0, 0), (0, 0), ceil_mode=True)
    assert partial.trimmed().ceil_mode
    assert partial.sees_padding(1)
    assert not partial.sees_padding(0)


def test_covers_map() -> None:
    sliding = Sliding((6, 6), (7, 5), (1, 1), (1, 1), (0, 0), (1, 0))
    assert sliding.covers_map(0)
    assert not sliding.covers_map(1)
    assert not Sliding((6, 6), (3, 3), (1, 1), (3, 3), (0, 0), (1, 1)).covers_map(0)


@pytest.mark.parametrize(
    ("attrs", "counted"),
    [({}, 36), ({"count_include_pad": 1}, 49), ({"count_include_pad": 1, "ceil_mode": 1}, 49)],
)
def test_average_over_the_whole_map(attrs: dict[str, int], counted: int) -> None:
    """AveragePool 7 with pads 0,0,1,1 on a 6 x 6 map averages 36 cells, or 49 where the pads count."""
    node = gs.Node("AveragePool", attrs={"kernel_shape": [7, 7], "pads": [0, 0, 1, 1], **attrs})
    layer, factor = PoolLayer.from_node(node, (6, 6)).over_whole_map([0, 1])
    assert layer.sliding.kernel == (6, 6)
    assert (layer.sliding.begin, layer.sliding.end) == ((0, 0), (0, 0))
    assert factor == 36 / counted


def test_conv_layer() -> None:
    node = gs.Node("Conv", attrs={"group": 2, "strides": [2, 1]})
    layer = ConvLayer.from_node(node, (6, 2, 3, 5), (9, 12))
    assert (layer.out_channels, layer.sliding.kernel, layer.sliding.output) == (6, (3, 5), (4, 8))


@pytest.mark.parametrize(
    "attrs",
    [
        {},
        {"strides": [2, 1], "pads": [1, 0, 2, 1]},
        {"strides": [2, 3], "dilations": [1, 2], "output_padding": [1, 2]},
        {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"strides": [2, 2], "output_shape": [18, 25]},
    ],
    ids=str,
)
def test_transposed_layer(attrs: dict[str, Any]) -> None:
    """ONNX Runtime is the oracle of the output's extents."""
    net = Net(1, 6, 9, 12)
    want = net.shape(net.ConvTranspose("x", net.ints(6, 2, 3, 5), group=2, **attrs))
    layer = TransposedLayer.from_node(gs.Node("ConvTranspose", attrs={"group": 2, **attrs}), (6, 2, 3, 5), (9, 12))
    assert (layer.out_channels, *layer.spreading.output) == want[1:]


SAME = [
    (k, s, d, more)
    for k, s, d, more in itertools.product((1, 2, 3, 4), (1, 2, 3, 4), (1, 2), (0, 1, 2))
    if more < s or not more
]


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize(("kernel", "stride", "dilation", "more"), SAME)
def test_an_auto_pad_of_a_transposed_layer(kernel: int, stride: int, dilation: int, more: int, auto_pad: str) -> None:
    """A kernel that reaches less far than its stride leaves less than extent x stride: nothing is added."""
    net = Net(1, 2, 5, 4)
    attrs: dict[str, Any] = {"strides": [stride, 1], "dilations": [dilation, 1], "auto_pad": auto_pad}
    attrs |= {"output_padding": [more, 0]} if more else {}
    want = net.shape(net.ConvTranspose("x", net.ints(2, 3, kernel, 1), **attrs))
    assert Spreading.read(attrs, (kernel, 1), (5, 4)).output == want[2:]


X = np.arange(6.0).reshape(2, 3)
W = np.arange(12.0).reshape(3, 4) - 5


@pytest.mark.parametrize("trans_weight", [0, 1])
@pytest.mark.parametrize("trans_data", [0, 1])
@pytest.mark.parametrize("weight", [0, 1])
def test_gemm_is_the_product_that_the_layer_describes(weight: int, trans_data: int, trans_weight: int) -> None:
    """y[k] = sum_f W[k, f] x[f] for every way to write it."""
    names = (
        {"transA": trans_weight, "transB": trans_data}
        if weight == 0
        else {"transA": trans_data, "transB": trans_weight}
    )
    node = gs.Node("Gemm", attrs={**names, "alpha": 2.0}, inputs=[gs.Variable(n) for n in "ABC"])
    layer = LinearLayer.from_node(node, weight=weight)
    # X: samples x features, W: features x outputs, each stored so that the Gemm contracts the features.
    data = X if (weight == 1) != bool(trans_data) else X.T
    stored = W if (weight == 1) != bool(trans_weight) else W.T
    assert data.shape[layer.axis] == 3
    np.testing.assert_array_equal(layer.matrix(stored), 2 * W.T)
    assert (layer.data, layer.bias, layer.beta) == (1 - weight, 2, 1.0)


@pytest.mark.parametrize("weight", [0, 1])
def test_matmul(weight: int) -> None:
    node = gs.Node("MatMul", inputs=[gs.Variable("A"), gs.Variable("B")])
    layer = LinearLayer.from_node(node, weight=weight)
    np.testing.assert_array_equal(layer.matrix(W if weight == 1 else W.T), W.T)
    assert (layer.axis, layer.bias) == (-1 if weight == 1 else -2, None)


@pytest.mark.parametrize("ones", [0, 1, 3])
@pytest.mark.parametrize("weight", [0, 1])
def test_a_matrix_with_ones_before_it(weight: int, ones: int) -> None:
    stored = (W if weight == 1 else W.T).reshape(*[1] * ones, *(W.shape if weight == 1 else W.T.shape))
    inputs = [gs.Variable("x", shape=[2, 2, 2]), gs.Constant("w", stored)][:: 1 if weight == 1 else -1]
    layer = LinearLayer.of(gs.Node("MatMul", inputs=inputs))
    assert layer is not None
    assert (layer.is_matrix, layer.inputs, layer.outputs, layer.weight) == (True, 3, 4, weight)
    np.testing.assert_array_equal(layer.matrix(stored), W.T)
    np.testing.assert_array_equal(layer.laid_out(layer.matrix(stored)), stored)
    assert layer.laid_out(layer.matrix(stored), ones=False).ndim == 2
    assert layer.output_axis == (-1 if weight == 1 else -2)
    shown = [(), (1,), (4,), (1, 4), (4, 1), (2, 4), (3,)]
    fits = [layer.vector(shape) for shape in shown]
    assert fits == (
        [True, True, True, True, False, False, False] if weight == 1 else [True, True, *[False] * 2, True, *[False] * 2]
    )


@pytest.mark.parametrize(("shape", "matrix"), [((3,), False), ((2, 3, 4), False), ((1, 3, 4), True), ((3, 4), True)])
def test_what_is_a_matrix(shape: tuple[int, ...], matrix: bool) -> None:
    node = gs.Node("MatMul", inputs=[gs.Variable("x"), gs.Constant("w", np.ones(shape))])
    layer = LinearLayer.of(node)
    assert layer is not None
    assert layer.is_matrix == matrix


def test_what_is_no_layer() -> None:
    """Both factors constant, or none; another domain; another operator."""
    x, w = gs.Variable("x"), gs.Constant("w", W)
    assert LinearLayer.of(gs.Node("MatMul", inputs=[x, gs.Variable("y")])) is None
    assert LinearLayer.of(gs.Node("MatMul", inputs=[w, gs.Constant("v", W.T)])) is None
    assert LinearLayer.of(gs.Node("MatMul", inputs=[x, w], domain="com.example")) is None
    assert LinearLayer.of(gs.Node("Conv", inputs=[x, w])) is None


def test_a_vector_on_the_right_of_a_matrix() -> None:
    """A product with one axis has its outputs there."""
    node = gs.Node("MatMul", inputs=[gs.Constant("w", W.T), gs.Variable("x", shape=[3])])
    layer = LinearLayer.of(node)
    assert layer is not None
    assert (layer.axis, layer.output_axis, layer.rows([3])) == (-1, -1, 1)


@pytest.mark.parametrize("constant_first", [True, False])
def test_the_add_behind_a_matmul(constant_first: bool) -> None:
    y, z = gs.Variable("y"), gs.Variable("z")
    node = gs.Node("MatMul", inputs=[gs.Variable("x"), gs.Constant("w", W)], outputs=[y])
    bias = gs.Constant("b", np.ones(4))
    add = gs.Node("Add", inputs=[bias, y] if constant_first else [y, bias], outputs=[z])
    layer = LinearLayer.of(node)
    assert layer is not None
    assert layer.add_behind(node) == (add, bias)
    gs.Node("Relu", inputs=[y], outputs=[gs.Variable("r")])
    assert layer.add_behind(node) is None, "another reader"


def test_gemm_without_bias() -> None:
    node = gs.Node("Gemm", inputs=[gs.Variable("A"), gs.Variable("B"), gs.Variable.empty()])
    assert LinearLayer.from_node(node, weight=1).bias is None
