"""Models that `fcn` leaves alone for their inputs, their outputs, or a constant that has no meaning at another size."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import valid_nets
from refused_nets import Cases, classes, registers, start

from helpers import Net

CASES: Cases = []
case = functools.partial(registers, CASES)


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
