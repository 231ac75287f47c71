"""Every reason that `fcn` can give, provoked by a model, with the node or tensor that its detail must name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attention_nets
import numpy as np
import onnx
import pytest
import valid_nets
from onnx import TensorProto, helper, numpy_helper

from convrewrite.errors import UsageError
from convrewrite.passes.fcn import Fcn
from convrewrite.passes.fcn.reasons import REASONS
from helpers import Net, convert

Case = Callable[[], onnx.ModelProto]
CASES: list[tuple[str, str, Case]] = []


def case(code: str, named: str) -> Callable[[Case], Case]:
    """Register a model that must be left alone: the reason's code, and what its detail must name."""

    def register(build: Case) -> Case:
        CASES.append((f"fcn/{code}", named, build))
        return build

    return register


def start(*shape: int | str, **options: Any) -> tuple[Net, str]:
    net = Net(*(shape or (1, 2, 9, 12)), **options)
    return net, str(net.conv("x", 3, 3, 3, name="first"))


def classes(net: Net, map_: str, features: int = 210) -> onnx.ModelProto:
    return net.model(net.Gemm(net.Flatten(map_), net.ints(features, 4), net.ints(4), name="fc"))


@case("whole-map-statistic", "scores")
def third_moment() -> onnx.ModelProto:
    net, map_ = start()
    away = net.Sub(map_, net.GlobalAveragePool(map_))
    moment = net.GlobalAveragePool(net.Mul(net.Mul(away, away), away))
    return net.model(net.Gemm(net.Flatten(moment), net.ints(3, 4), net.ints(4), outputs=["scores"]))


@case("already-convolutional", "x")
def segmentation() -> onnx.ModelProto:
    net, map_ = start()
    return net.model(net.Relu(map_))


@case("already-convolutional", "x")
def convolutional_classifier() -> onnx.ModelProto:
    net = Net(1, 2, 9, 12)
    return net.model(net.conv("x", 4, 9, 12))


@case("not-a-tensor", "'p'")
def scores_by_name() -> onnx.ModelProto:
    return valid_nets.zipmap()


@case("not-a-tensor", "'y' and 'p'")
def a_list_of_tensors() -> onnx.ModelProto:
    return valid_nets.sequence_output()


@case("flat-input", "x")
def image_as_a_vector() -> onnx.ModelProto:
    net = Net(1, 216)
    map_ = net.conv(net.Reshape("x", net.const([1, 2, 9, 12])), 3, 3, 3)
    return classes(net, map_)


@case("flat-input", "x")
def multilayer_perceptron() -> onnx.ModelProto:
    net = Net(1, 16)
    return net.model(net.fc(net.Relu(net.fc("x", 5)), 4))


@case("no-image-input", "no input")
def two_vectors() -> onnx.ModelProto:
    net = Net(1, 16)
    net.input("v", 1, 16)
    return net.model(net.fc(net.Add("x", "v"), 4))


@case("no-image-input", "no output")
def image_that_no_output_needs() -> onnx.ModelProto:
    net = Net(1, 2, 9, 12)
    net.Flatten("x")
    net.input("v", 1, 5)
    return net.model(net.fc("v", 3))


@case("several-images", "right")
def stereo() -> onnx.ModelProto:
    net, left = start()
    net.input("right", 1, 2, 9, 12)
    maps = (left, net.conv("right", 3, 3, 3))
    return net.model(net.fc(net.Add(*(net.Flatten(net.GlobalAveragePool(map_)) for map_ in maps)), 4))


@case("several-images", "right")
def stereo_of_two_sizes() -> onnx.ModelProto:
    net, left = start()
    net.input("right", 1, 2, 10, 13)
    maps = (left, net.conv("right", 3, 4, 4))
    return classes(net, net.Add(*maps))


@case("several-images", "noise")
def signal_of_its_own_length() -> onnx.ModelProto:
    net = Net(1, 2, 20)
    net.input("noise", 1, 3, 18)
    joined = net.Concat(net.conv("x", 3, 3), "noise", axis=1)
    return net.model(net.fc(net.Flatten(net.GlobalAveragePool(joined)), 4))


@case("window-needed", "x")
def symbolic_size() -> onnx.ModelProto:
    net, map_ = start(1, 2, "h", "w")
    return net.model(net.fc(net.Flatten(net.GlobalAveragePool(map_)), 4))


@case("dynamic-shape", "shapes do not follow")
def other_symbol() -> onnx.ModelProto:
    net, map_ = start()
    net.input("v", 1, "n")
    scores = net.Gemm(net.Concat(net.Flatten(map_), "v", axis=1), net.ints(215, 4), name="fc")
    return net.model(scores, shapes={scores: [1, 4]})


@case("no-rule", "found")
def shape_that_depends_on_values() -> onnx.ModelProto:
    net, map_ = start()
    found = net.NonZero(map_, name="found")
    return net.model(net.fc(net.Flatten(map_), 4), net.Relu(net.Cast(found, to=1)))


@case("position-dependent-constant", "mean-image")
def mean_image() -> onnx.ModelProto:
    net = Net(1, 2, 9, 12)
    centred = net.Sub("x", net.ints(2, 9, 12, name="mean-image"))
    return classes(net, net.conv(centred, 3, 3, 3))


@case("position-dependent-constant", "position")
def position_embedding_behind_the_flatten() -> onnx.ModelProto:
    net, map_ = start()
    return net.model(net.fc(net.Add(net.Flatten(map_), net.ints(1, 210, name="position")), 4))


@case("position-dependent-constant", "grid")
def coordinates_as_channels() -> onnx.ModelProto:
    net = Net(1, 2, 9, 12)
    joined = net.Concat("x", net.ints(1, 2, 9, 12, name="grid"), axis=1)
    return classes(net, net.conv(joined, 3, 3, 3))


@case("position-dependent-constant", "slope")
def slope_per_pixel() -> onnx.ModelProto:
    net, map_ = start()
    return classes(net, net.PRelu(map_, net.ints(3, 7, 10, name="slope")))


@case("position-dependent-constant", "variance")
def batch_norm_per_feature() -> onnx.ModelProto:
    net, map_ = start()
    same = net.const(np.ones(210))
    normed = net.BatchNormalization(net.Flatten(map_), same, same, same, net.const(np.arange(1, 211.0), "variance"))
    return net.model(net.fc(normed, 4))


@case("position-dependent-constant", "fc")
def bias_per_sample() -> onnx.ModelProto:
    net, map_ = start(3, 2, 9, 12)
    return net.model(net.Gemm(net.Flatten(map_), net.ints(210, 4), net.ints(3, 4), name="fc"))


@case("position-in-output", "list")
def flattened_map() -> onnx.ModelProto:
    net = Net(1, 2, 9, 12)
    return net.model(net.Flatten(net.conv("x", 3, 3, 3), outputs=["list"]))


@case("position-in-output", "boxes")
def detector() -> onnx.ModelProto:
    net, map_ = start()
    scores = net.Reshape(net.Transpose(map_, perm=[0, 2, 3, 1]), net.const([1, -1, 3]))
    small = net.conv(map_, 3, 3, 3)
    more = net.Reshape(net.Transpose(small, perm=[0, 2, 3, 1]), net.const([1, -1, 3]))
    return net.model(net.Concat(scores, more, axis=1, name="boxes"))


@case("mixed-axes", "cut")
def reshape_through_the_rows() -> onnx.ModelProto:
    net, map_ = start()
    return net.model(net.fc(net.Flatten(net.Relu(net.Reshape(map_, net.const([1, 3, 10, 7]), name="cut"))), 4))


@case("mixed-axes", "over-batch")
def softmax_over_the_batch() -> onnx.ModelProto:
    net, map_ = start(3, 2, 9, 12)
    return net.model(net.Softmax(net.fc(net.Flatten(map_), 4), axis=0, name="over-batch"))


@case("mixed-axes", "where")
def argmax_over_positions() -> onnx.ModelProto:
    net, map_ = start()
    return net.model(net.ArgMax(net.Reshape(map_, net.const([1, 3, 70])), axis=2, name="where"))


@case("mixed-axes", "pixel")
def gather_of_one_pixel() -> onnx.ModelProto:
    net, map_ = start()
    return net.model(net.fc(net.Flatten(net.Gather(map_, net.const(3), axis=2, name="pixel")), 4))


@case("mixed-axes", "mean")
def mean_over_the_batch() -> onnx.ModelProto:
    net, map_ = start(3, 2, 9, 12)
    return net.model(net.ReduceMean(net.fc(net.Flatten(map_), 4), axes=[0], keepdims=0, name="mean"))


@case("no-rule", "sorted")
def running_sum() -> onnx.ModelProto:
    net, map_ = start()
    return net.model(net.CumSum(net.fc(net.Flatten(map_), 4), net.const(1), name="sorted"))


@case("no-rule", "step")
def recurrent() -> onnx.ModelProto:
    net, map_ = start()
    sequence = net.Reshape(net.fc(net.Flatten(map_), 3), net.const([1, 1, 3]))
    _, last = net.RNN(sequence, net.ints(1, 4, 3), net.ints(1, 4, 4), outputs=2, hidden_size=4, name="step")
    return net.model(last)


@case("no-rule", "pool")
def positions_of_maxima() -> onnx.ModelProto:
    net, map_ = start()
    pooled, where = net.MaxPool(map_, kernel_shape=[2, 2], strides=[2, 2], outputs=2, name="pool")
    return net.model(net.fc(net.Flatten(net.Add(pooled, net.Cast(where, to=1))), 4))


@case("no-rule", "branch")
def image_inside_a_subgraph() -> onnx.ModelProto:
    net, map_ = start()
    scores = net.fc(net.Flatten(map_), 4)
    branches = {}
    for key, op in (("then_branch", "Relu"), ("else_branch", "Neg")):
        out = helper.make_tensor_value_info(key, 1, None)
        branches[key] = helper.make_graph([helper.make_node(op, [scores], [key])], key, [], [out])
    model = net.model(net.If(net.const(np.asarray(True), dtype=bool), name="branch", **branches))
    model.graph.node[-1].input[0] = "choice"
    model.graph.input.append(helper.make_tensor_value_info("choice", TensorProto.BOOL, []))
    return model


@case("no-rule", "other")
def matrix_of_the_image_with_itself() -> onnx.ModelProto:
    net, map_ = start()
    scores = net.fc(net.Flatten(map_), 4)
    return net.model(net.MatMul(net.Transpose(scores, perm=[1, 0]), scores, name="other"))


@case("no-rule", "trained")
def batch_norm_in_training() -> onnx.ModelProto:
    net, map_ = start(opset=15)
    ones = [net.ints(3) for _ in range(4)]
    normed = net.node("BatchNormalization", map_, *ones, outputs=3, training_mode=1, name="trained")[0]
    return classes(net, normed)


@case("custom-operator", "special")
def operator_of_another_domain() -> onnx.ModelProto:
    net, map_ = start()
    special = helper.make_node("Special", [map_], ["y"], name="special", domain="com.example")
    net.nodes.append(special)
    net.nodes.append(helper.make_node("Reshape", ["y", net.const([1, 210])], ["flat"]))
    net.nodes.append(helper.make_node("Gemm", ["flat", net.ints(210, 4)], ["scores"]))
    scores = helper.make_tensor_value_info("scores", 1, [1, 4])
    model = net._proto([scores])
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    return model


@case("integer-operator", "fc")
def head_of_integers() -> onnx.ModelProto:
    """As quantize_dynamic of ONNX Runtime writes a fully connected layer."""
    net, map_ = start()
    stored, scale, zero = net.DynamicQuantizeLinear(net.Flatten(map_), outputs=3, name="fc_quantize")
    product = net.MatMulInteger(stored, net.const(np.ones((210, 4)), dtype=np.int8), zero, name="fc_product")
    return net.model(net.Mul(net.Cast(product, to=1), scale))


@case("integer-operator", "first")
def convolution_of_integers() -> onnx.ModelProto:
    net = Net(1, 2, 9, 12)
    unit, zero = net.const(np.float32(1)), net.const(np.array(0), dtype=np.uint8)
    weight, zero_w = net.const(np.ones((3, 2, 3, 3)), dtype=np.int8), net.const(np.array(0), dtype=np.int8)
    stored = net.QuantizeLinear("x", unit, zero)
    map_ = net.QLinearConv(stored, unit, zero, weight, unit, zero_w, unit, zero, name="first")
    return classes(net, net.DequantizeLinear(map_, unit, zero))


@case("weight-not-constant", "fc")
def weight_as_an_input() -> onnx.ModelProto:
    net, map_ = start()
    net.input("weight", 210, 4)
    return net.model(net.Gemm(net.Flatten(map_), "weight", name="fc"))


@case("weight-not-constant", "weight")
def random_weight() -> onnx.ModelProto:
    net, map_ = start()
    weight = net.RandomNormal(shape=[210, 4], outputs=["weight"])
    return net.model(net.Gemm(net.Flatten(map_), weight, name="fc"))


@case("weight-not-constant", "fc")
def bias_as_an_input() -> onnx.ModelProto:
    net, map_ = start()
    net.input("bias", 4)
    return net.model(net.Gemm(net.Flatten(map_), net.ints(210, 4), "bias", name="fc"))


@case("not-finite", "weight")
def weight_of_nan() -> onnx.ModelProto:
    net, map_ = start()
    values = np.ones((210, 4))
    values[7, 2] = np.nan
    return net.model(net.Gemm(net.Flatten(map_), net.const(values, "weight"), name="fc"))


@case("not-finite", "fc")
def bias_of_infinity() -> onnx.ModelProto:
    net, map_ = start()
    return net.model(net.Gemm(net.Flatten(map_), net.ints(210, 4), net.const(np.full(4, np.inf)), name="fc"))


@case("uncontracted-channels", "tokens")
def layer_over_positions_per_channel() -> onnx.ModelProto:
    """A mixer: the matrix runs over the positions and leaves the channels aside."""
    net, map_ = start()
    mixed = net.MatMul(net.Reshape(map_, net.const([1, 3, 70])), net.ints(70, 6), name="tokens")
    return net.model(net.fc(net.Flatten(mixed), 4))


@case("uncontracted-channels", "stack")
def stack_of_matrices() -> onnx.ModelProto:
    net, map_ = start()
    product = net.MatMul(net.Flatten(map_), net.ints(3, 210, 4), name="stack")
    return net.model(product)


@case("class-token", "in line with the positions")
def vision_transformer() -> onnx.ModelProto:
    return attention_nets.network("dynamo", (15, 19), None, attention_nets.vit)


@case("self-attention", "every other one")
def non_local_block() -> onnx.ModelProto:
    return attention_nets.network("dynamo", (15, 19), attention_nets.non_local)


@case("attention-pooling", "ReduceMax")
def largest_of_weighted_positions() -> onnx.ModelProto:
    return attention_nets.network("dynamo", (15, 19), None, attention_nets.largest_of_weighted)


@case("pools-one-axis", "took over one axis")
def strip_pooling() -> onnx.ModelProto:
    return attention_nets.network("dynamo", (15, 19), attention_nets.strip_pooling)


@case("spatial-broadcast", "spread")
def fully_connected_layer_in_the_trunk() -> onnx.ModelProto:
    """A bias field: one value per image, from a fully connected layer, added to every position."""
    net, map_ = start()
    field = net.Reshape(net.fc(net.Flatten(map_), 3), net.const([1, 3, 1, 1]))
    return classes(net, net.Add(map_, field, name="spread"))


@case("spatial-broadcast", "expanded")
def expanded_features() -> onnx.ModelProto:
    net, map_ = start()
    scores = net.Reshape(net.fc(net.Flatten(map_), 4), net.const([1, 4, 1]))
    expanded = net.Expand(scores, net.const([1, 4, 5]), name="expanded")
    return net.model(net.fc(net.Flatten(expanded), 3))


@case("stride-mismatch", "joined")
def maps_of_different_stride() -> onnx.ModelProto:
    """Both maps are 4 x 4, but one moves by one pixel a cell and the other by two."""
    net = Net(1, 2, 9, 9)
    fine, coarse = net.conv("x", 3, 6, 6), net.conv("x", 3, 3, 3, strides=[2, 2])
    return classes(net, net.Add(fine, coarse, name="joined"), 48)


@case("stride-mismatch", "joined")
def maps_of_different_stride_concatenated() -> onnx.ModelProto:
    net = Net(1, 2, 9, 9)
    fine, coarse = net.conv("x", 3, 6, 6), net.conv("x", 3, 3, 3, strides=[2, 2])
    return classes(net, net.Concat(fine, coarse, axis=1, name="joined"), 96)


@case("opset-too-old", "opset 6")
def opset_six() -> onnx.ModelProto:
    net, map_ = start(opset=6)
    return net.model(net.Gemm(net.Flatten(map_), net.ints(210, 4), net.ints(1, 4)))


@pytest.mark.parametrize(("code", "named", "build"), CASES, ids=[f"{c[4:]}-{b.__name__}" for c, _, b in CASES])
def test_reason(code: str, named: str, build: Case) -> None:
    result, _ = convert(build())
    assert not result.changed
    (site,) = result.sites
    assert (site.reason, site.outcome) == (code, "declined" if "already" in code else "refused"), site.detail
    assert named in site.detail
    assert site.remedy == REASONS[code].remedy
    assert "\n" not in site.detail


def test_every_reason_is_provoked() -> None:
    assert {code for code, _, _ in CASES} == set(REASONS)


def test_reasons_read_well() -> None:
    for code, reason in REASONS.items():
        assert reason.code == code
        assert reason.meaning
        assert reason.remedy
        assert not reason.remedy.endswith(".")


def test_fixed_map_of_a_matrix_from_a_constant_node() -> None:
    """A constant that varies over the positions is found wherever it comes from."""
    net, map_ = start()
    scale = net.Constant(value=numpy_helper.from_array(net.numbers_of(7, 10)), outputs=["scale"])
    result, _ = convert(classes(net, net.Mul(map_, scale)))
    assert [(s.reason, "scale" in s.detail) for s in result.sites] == [("fcn/position-dependent-constant", True)]


@pytest.mark.parametrize("options", [{"size": (5, 5)}, {"size": (9,)}, {"size": (9, 12, 3)}])
def test_size_that_does_not_fit(options: dict[str, Any]) -> None:
    net, map_ = start()
    with pytest.raises(UsageError, match="size="):
        convert(classes(net, map_), Fcn(**options))


def test_window_of_another_rank() -> None:
    net, map_ = start(1, 2, "h", "w")
    with pytest.raises(UsageError, match="window="):
        convert(net.model(net.fc(net.Flatten(net.GlobalAveragePool(map_)), 4)), Fcn(window=(9,)))
