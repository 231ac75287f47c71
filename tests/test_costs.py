"""Costs against layers counted by hand, the figures of the lecture, and another program (onnx-tool, where it is)."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from convrewrite import model_io
from convrewrite.engine import costs
from convrewrite.engine.graph import infer_shapes
from convrewrite.models import NAMES, build


def graph_of(
    nodes, inputs, weights=None, outputs=("y",), *, opset=17, kind=TensorProto.FLOAT, made_kind=TensorProto.FLOAT
) -> Any:
    """A graph of those nodes; `inputs` and `weights` are shapes by name."""
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, made_kind, None) for name in outputs],
        [onnx.numpy_helper.from_array(np.zeros(s, np.float32), name) for name, s in (weights or {}).items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return model_io.load(model.SerializeToString()).graph


def conv(x, w, *, op="Conv", inputs=("x", "w"), kernel=None, **attributes) -> costs.LayerCost:
    node = helper.make_node(op, list(inputs), ["y"], kernel_shape=kernel or list(w[2:]), **attributes)
    return costs.count(graph_of([node], {"x": x}, {"w": w})).layers[0]


def test_a_convolution_counted_by_hand():
    layer = conv((1, 3, 10, 12), (8, 3, 3, 5), strides=[1, 2])
    assert layer.output == (1, 8, 8, 4)
    assert layer.macs == 8 * 8 * 4 * (3 * 3 * 5)
    assert layer.flops == 2 * layer.macs
    assert layer.parameters == 8 * 3 * 3 * 5
    assert layer.bytes_moved == 4 * (3 * 10 * 12 + 8 * 3 * 3 * 5 + 8 * 8 * 4)
    assert layer.intensity == layer.flops / layer.bytes_moved


@pytest.mark.parametrize(("k", "r", "m", "n"), [(3, 14, 16, 32), (5, 28, 6, 16), (1, 7, 64, 10), (7, 9, 3, 4)])
def test_flops_of_a_layer_as_the_lecture_has_them(k, r, m, n):
    layer = conv((1, m, r, r), (n, m, k, k), pads=[k // 2] * 4)
    assert layer.flops == 2 * k**2 * r**2 * m * n


def test_batch_groups_and_dilation():
    layer = conv((4, 6, 20, 20), (9, 2, 3, 3), group=3, dilations=[2, 2])
    assert layer.output == (4, 9, 16, 16)
    assert layer.macs == 4 * 9 * 16 * 16 * 2 * 3 * 3


def test_alexnet_conv1_at_227():
    layer = conv((1, 3, 227, 227), (96, 3, 11, 11), strides=[4, 4])
    assert layer.output == (1, 96, 55, 55)
    assert layer.macs == 55 * 55 * 96 * 11 * 11 * 3
    assert layer.parameters == 34_848


@pytest.mark.parametrize(("c", "n", "k", "full", "separated"), [(3, 5, 3, 135, 42), (64, 128, 5, 204_800, 9_792)])
def test_depthwise_separable_weights_as_the_lecture_has_them(c, n, k, full, separated):
    assert conv((1, c, 32, 32), (n, c, k, k)).parameters == full
    nodes = [
        helper.make_node("Conv", ["x", "depth"], ["t"], kernel_shape=[k, k], group=c),
        helper.make_node("Conv", ["t", "point"], ["y"], kernel_shape=[1, 1]),
    ]
    found = costs.count(graph_of(nodes, {"x": (1, c, 32, 32)}, {"depth": (c, 1, k, k), "point": (n, c, 1, 1)}))
    assert found.parameters == sum(layer.parameters for layer in found.layers) == separated
    cells = (32 - k + 1) ** 2
    assert found.macs == cells * separated


def test_a_transposed_convolution():
    layer = conv((1, 8, 5, 6), (8, 4, 3, 3), op="ConvTranspose", strides=[2, 2])
    assert layer.output == (1, 4, 11, 13)
    assert layer.macs == 8 * 5 * 6 * 4 * 3 * 3, "each input cell is spread over a kernel for each output channel"


@pytest.mark.parametrize(
    ("node", "inputs", "weights", "expected"),
    [
        (helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1), {"x": (2, 7)}, {"w": (5, 7), "b": (5,)}, 70),
        (helper.make_node("Gemm", ["x", "w"], ["y"], transA=1), {"x": (7, 2)}, {"w": (7, 5)}, 70),
        (helper.make_node("MatMul", ["x", "w"], ["y"]), {"x": (3, 2, 7)}, {"w": (7, 5)}, 210),
        (helper.make_node("MatMul", ["x", "z"], ["y"]), {"x": (3, 1, 2, 7), "z": (4, 7, 5)}, None, 840),
        (helper.make_node("MatMul", ["x", "w"], ["y"]), {"x": (7,)}, {"w": (7, 5)}, 35),
        (
            helper.make_node("Einsum", ["x", "w"], ["y"], equation="bij, jk -> bik"),
            {"x": (3, 2, 7)},
            {"w": (7, 5)},
            210,
        ),
        (helper.make_node("Einsum", ["x"], ["y"], equation="ij->ji"), {"x": (2, 7)}, None, 0),
        (helper.make_node("Einsum", ["x", "w"], ["y"], equation="...j,jk"), {"x": (3, 2, 7)}, {"w": (7, 5)}, None),
        (
            helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=5),
            {"x": (9, 2, 7)},
            {"w": (1, 20, 7), "r": (1, 20, 5)},
            9 * 2 * 4 * 5 * (7 + 5),
        ),
        (
            helper.make_node("GRU", ["x", "w", "r"], ["y"], hidden_size=5, direction="bidirectional"),
            {"x": (9, 2, 7)},
            {"w": (2, 15, 7), "r": (2, 15, 5)},
            2 * 9 * 2 * 3 * 5 * (7 + 5),
        ),
        (helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[3, 3]), {"x": (1, 2, 9, 9)}, None, 0),
        (helper.make_node("Mul", ["x", "w"], ["y"]), {"x": (1, 2, 9, 9)}, {"w": (2, 1, 1)}, 0),
    ],
    ids=lambda value: getattr(value, "op_type", None),
)
def test_other_operators_counted_by_hand(node, inputs, weights, expected):
    layer = costs.count(graph_of([node], inputs, weights)).layers[0]
    assert layer.macs == expected
    assert layer.parameters == sum(int(np.prod(shape)) for shape in (weights or {}).values())


def test_a_quantized_convolution_has_its_weight_elsewhere():
    names = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"]
    scalars = {n: np.array(1, np.float32 if n.endswith("s") else np.uint8) for n in names if n not in ("x", "w")}
    tensors = [onnx.numpy_helper.from_array(value, name) for name, value in scalars.items()]
    tensors.append(onnx.numpy_helper.from_array(np.zeros((4, 3, 3, 3), np.uint8), "w"))
    made = helper.make_graph(
        [helper.make_node("QLinearConv", names, ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, (1, 3, 8, 8))],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, None)],
        tensors,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    layer = costs.count(model_io.load(model.SerializeToString()).graph).layers[0]
    assert layer.macs == 4 * 6 * 6 * 27
    assert layer.parameters == 3, "scales only: eight-bit weights are no floating-point parameters"
    assert layer.bytes_moved == 3 * 8 * 8 + 4 * 27 + 4 * 6 * 6 + 3 * 4 + 3


def test_types_of_tensors_that_the_file_does_not_list():
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("ArgMax", ["r"], ["y"], axis=1),
    ]
    layers = costs.count(graph_of(nodes, {"x": (1, 4, 5, 5)}, made_kind=TensorProto.INT64))
    assert [layer.bytes_moved for layer in layers.layers] == [100 * 4 + 100 * 2, 100 * 2 * 2, 100 * 2 + 25 * 8]


def test_given_sizes_scale_the_counts():
    node = helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    graph = graph_of([node], {"x": ("N", 3, "H", "W")}, {"w": (8, 3, 3, 3)})
    one = costs.count(graph, {"x": (1, 3, 16, 16)})
    eight = costs.count(graph, {"x": (2, 3, 32, 32)})
    assert eight.macs == 8 * one.macs
    assert eight.parameters == one.parameters
    assert costs.count(graph).layers[0].macs is None
    assert costs.count(graph).unknown == ("y",)
    assert costs.count(graph).macs == 0


def test_a_shared_weight_counts_once_in_the_graph():
    nodes = [helper.make_node("MatMul", ["x", "w"], ["t"]), helper.make_node("MatMul", ["t", "w"], ["y"])]
    found = costs.count(graph_of(nodes, {"x": (1, 6)}, {"w": (6, 6)}))
    assert found.parameters == 36
    assert [layer.parameters for layer in found.layers] == [36, 36]


def test_the_table():
    text = str(costs.count(model_io.load(build("lenet5").SerializeToString()).graph))
    header, first, *_, last = text.splitlines()
    assert header.split()[:3] == ["layer", "op", "output"]
    assert first.split()[:5] == ["c1", "Conv", "1x6x28x28", "117,600", "156"]
    assert last.split()[:3] == ["all", "416,520", "61,706"]


@pytest.mark.parametrize("name", NAMES)
def test_graph_macs_are_the_sum_of_the_layers(name):
    graph = model_io.load(build(name, width=0.25).SerializeToString()).graph
    found = costs.count(graph)
    assert found.unknown == ()
    assert found.macs == costs.graph_macs(graph, infer_shapes(graph, {"image": tuple(graph.inputs[0].shape)})) > 0
    assert all(layer.bytes_moved for layer in found.layers)


@pytest.mark.parametrize("name", NAMES)
def test_against_onnx_tool(name, tmp_path):
    """It counts the addition of a bias as one MAC per output cell, which is taken off."""
    onnx_tool = pytest.importorskip("onnx_tool")
    onnx.save(build(name, width=0.25), tmp_path / "m.onnx")
    other = importlib.import_module(onnx_tool.__name__).Model(str(tmp_path / "m.onnx")).graph
    image = other.input[0]
    other.shape_infer({image: np.zeros(other.tensormap[image].get_shape(), np.float32)})
    other.profile()
    graph = model_io.load(tmp_path / "m.onnx").graph
    found = costs.count(graph)
    for node, layer in zip(graph.nodes, found.layers, strict=True):
        if node.op in ("Conv", "Gemm"):
            bias = int(np.prod(layer.output)) if len(node.inputs) > 2 else 0
            assert layer.macs == other.nodemap[node.name].macs[0] - bias
    # It counts shapes of Reshapes as parameters, and not the ends of a Clip.
    shapes = sum(int(np.prod(n.inputs[1].shape)) for n in graph.nodes if n.op == "Reshape")
    ends = {t.name for n in graph.nodes for t in n.inputs[1:] if n.op == "Clip"}
    assert found.parameters - len(ends) == other.params - shapes
