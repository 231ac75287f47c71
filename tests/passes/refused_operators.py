"""Models that `fcn` refuses for an operator, or for the axes that it mixes."""

from __future__ import annotations

import functools

import attention_nets
import numpy as np
import onnx
from onnx import TensorProto, helper
from refused_nets import Cases, classes, registers, start

from helpers import Net

CASES: Cases = []
case = functools.partial(registers, CASES)


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
