"""Operators that let the images of a batch see each other, each as a function of features [N, D] with such a result.

`MIXERS` holds them by name. Their shapes are right for any number of images, so that nothing but what they compute
tells that they mix; `planted` adds one to a network behind a gate that ordinary inputs never open.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper

from nets import Net

D = 6
"""Features."""

Mixer = Callable[[Net, str], str]
GATE = 1e12

MIXERS: dict[str, Mixer] = {}


def mixer(function: Mixer) -> Mixer:
    MIXERS[function.__name__] = function
    return function


def _reduced(op: str) -> Mixer:
    return lambda net, x: net.Add(net.reduce(op, x, [0]), net.Mul(x, net.const(0.0)))


for _name in "L1 L2 LogSumExp Max Mean Min Prod Sum SumSquare".split():
    MIXERS[f"Reduce{_name}"] = _reduced(f"Reduce{_name}")

for _name in ("Softmax", "LogSoftmax", "Hardmax", "LpNormalization"):
    MIXERS[_name] = lambda net, x, op=_name: net.node(op, x, axis=0)


@mixer
def all_axes(net: Net, x: str) -> str:
    return net.Mul(x, net.node("ReduceMax", x, keepdims=0))


@mixer
def dynamic_quantization(net: Net, x: str) -> str:
    return net.DequantizeLinear(*net.node("DynamicQuantizeLinear", x, outputs=3))


@mixer
def cumsum(net: Net, x: str) -> str:
    return net.CumSum(x, net.const(0))


@mixer
def cumsum_exclusive_and_reverse(net: Net, x: str) -> str:
    return net.CumSum(x, net.const(-2), exclusive=1, reverse=1)


@mixer
def topk(net: Net, x: str) -> str:
    return net.Add(net.node("TopK", x, net.const([1]), outputs=2, axis=0)[0], net.Mul(x, net.const(0.0)))


@mixer
def first_image(net: Net, x: str) -> str:
    return net.Add(net.Gather(x, net.const([0]), axis=0), net.Mul(x, net.const(0.0)))


@mixer
def last_image(net: Net, x: str) -> str:
    return net.Sub(x, net.Unsqueeze(net.Gather(x, net.const(-1), axis=0), net.const([0])))


@mixer
def slice_of_images(net: Net, x: str) -> str:
    return net.Sub(x, net.Slice(x, net.const([0]), net.const([1]), net.const([0])))


@mixer
def flip(net: Net, x: str) -> str:
    return net.Slice(x, net.const([-1]), net.const([-(2**62)]), net.const([0]), net.const([-1]))


@mixer
def roll(net: Net, x: str) -> str:
    tail = net.Slice(x, net.const([1]), net.const([2**62]), net.const([0]))
    return net.Concat(tail, net.Slice(x, net.const([0]), net.const([1]), net.const([0])), axis=0)


@mixer
def pad_of_images(net: Net, x: str) -> str:
    padded = net.Pad(x, net.const([1, 0, 0, 0]))
    return net.Slice(padded, net.const([0]), net.const([-1]), net.const([0]))


@mixer
def transposed_then_reduced(net: Net, x: str) -> str:
    return net.Mul(x, net.Transpose(net.reduce("ReduceMax", net.Transpose(x, perm=[1, 0]), [1]), perm=[1, 0]))


@mixer
def one_row(net: Net, x: str) -> str:
    """All images as one row, over which a Softmax runs."""
    return net.Reshape(net.node("Softmax", net.Reshape(x, net.const([1, -1])), axis=1), net.const([-1, D]))


@mixer
def one_list(net: Net, x: str) -> str:
    return net.Reshape(net.CumSum(net.Reshape(x, net.const([-1])), net.const(0)), net.const([-1, D]))


@mixer
def product_over_images(net: Net, x: str) -> str:
    return net.MatMul(x, net.MatMul(net.Transpose(x, perm=[1, 0]), x))


@mixer
def attention_between_images(net: Net, x: str) -> str:
    scores = net.Mul(net.MatMul(x, net.Transpose(x, perm=[1, 0])), net.const(1e-3))
    return net.MatMul(net.node("Softmax", scores, axis=-1), x)


@mixer
def gemm_between_images(net: Net, x: str) -> str:
    return net.MatMul(net.node("Gemm", x, x, transB=1), x)


@mixer
def einsum_pairs(net: Net, x: str) -> str:
    return net.MatMul(net.node("Einsum", x, x, equation="nd,md->nm"), x)


@mixer
def einsum_sum(net: Net, x: str) -> str:
    return net.Mul(x, net.node("Einsum", x, equation="nd->d"))


@mixer
def subtracts_every_other(net: Net, x: str) -> str:
    pairs = net.Sub(net.Unsqueeze(x, net.const([0])), net.Unsqueeze(x, net.const([1])))
    return net.reduce("ReduceMax", pairs, [0], keepdims=0)


@mixer
def number_of_images(net: Net, x: str) -> str:
    count = net.Cast(net.Gather(net.Shape(x), net.const(0), axis=0), to=TensorProto.FLOAT)
    return net.Mul(x, count)


@mixer
def size_of_the_batch(net: Net, x: str) -> str:
    return net.Mul(x, net.Cast(net.Size(x), to=TensorProto.FLOAT))


@mixer
def place_in_the_batch(net: Net, x: str) -> str:
    count = net.Gather(net.Shape(x), net.const(0), axis=0)
    places = net.Cast(net.Range(net.const(0), count, net.const(1)), to=TensorProto.FLOAT)
    return net.Mul(x, net.Unsqueeze(places, net.const([1])))


@mixer
def compared_with_a_number(net: Net, x: str) -> str:
    several = net.Greater(net.Gather(net.Shape(x), net.const([0]), axis=0), net.const([1]))
    return net.Where(several, net.Neg(x), x)


@mixer
def smallest_of_the_shape(net: Net, x: str) -> str:
    return net.Mul(x, net.Cast(net.node("ReduceMin", net.Shape(x), keepdims=0), to=TensorProto.FLOAT))


@mixer
def statistics_of_the_batch(net: Net, x: str) -> str:
    ones, zeros = net.const(np.ones(D)), net.const(np.zeros(D))
    return net.node("BatchNormalization", x, ones, zeros, zeros, ones, outputs=3, training_mode=1)[0]


@mixer
def mean_variance(net: Net, x: str) -> str:
    return net.MeanVarianceNormalization(x, axes=[0])


@mixer
def batch_as_time(net: Net, x: str) -> str:
    line = net.Unsqueeze(net.Transpose(x, perm=[1, 0]), net.const([0]))
    y = net.node("Conv", line, net.ints(D, D, 3), pads=[1, 1])
    return net.Transpose(net.Squeeze(y, net.const([0])), perm=[1, 0])


@mixer
def pool_over_images(net: Net, x: str) -> str:
    line = net.Unsqueeze(net.Transpose(x, perm=[1, 0]), net.const([0]))
    y = net.MaxPool(line, kernel_shape=[3], pads=[1, 1])
    return net.Transpose(net.Squeeze(y, net.const([0])), perm=[1, 0])


@mixer
def neighbours_of_channels(net: Net, x: str) -> str:
    """LRN over images in the place of channels."""
    swapped = net.Unsqueeze(x, net.const([0, 3]))
    return net.Squeeze(net.LRN(swapped, size=5, alpha=1.0, beta=1.0), net.const([0, 3]))


@mixer
def instance_over_images(net: Net, x: str) -> str:
    line = net.Unsqueeze(net.Transpose(x, perm=[1, 0]), net.const([0]))
    y = net.InstanceNormalization(line, net.const(np.ones(D)), net.const(np.zeros(D)))
    return net.Transpose(net.Squeeze(y, net.const([0])), perm=[1, 0])


def _recurrent(op: str, gates: int) -> Mixer:
    def batch_as_steps(net: Net, x: str) -> str:
        steps = net.Unsqueeze(x, net.const([1]))
        weights = net.ints(1, gates * D, D, bound=1), net.ints(1, gates * D, D, bound=1)
        return net.Squeeze(net.node(op, steps, *weights, outputs=2, hidden_size=D)[0], net.const([1, 2]))

    return batch_as_steps


for _name, _gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
    MIXERS[_name] = _recurrent(_name, _gates)


@mixer
def scattered(net: Net, x: str) -> str:
    return net.ScatterElements(x, net.const([[0] * D]), net.const(np.ones((1, D))), axis=0)


@mixer
def scattered_rows(net: Net, x: str) -> str:
    return net.ScatterND(x, net.const([[0]]), net.const(np.ones((1, D))))


@mixer
def gathered_rows(net: Net, x: str) -> str:
    return net.Sub(x, net.GatherND(x, net.const([[0]])))


@mixer
def gathered_elements(net: Net, x: str) -> str:
    return net.Sub(x, net.GatherElements(x, net.const([[0] * D]), axis=0))


@mixer
def image_that_is_largest(net: Net, x: str) -> str:
    return net.Mul(x, net.Cast(net.node("ArgMax", x, axis=0), to=TensorProto.FLOAT))


@mixer
def triangle(net: Net, x: str) -> str:
    return net.Trilu(x, upper=1)


@mixer
def eye(net: Net, x: str) -> str:
    return net.Add(x, net.EyeLike(x))


@mixer
def places_of_a_pool(net: Net, x: str) -> str:
    """The places that a MaxPool gives count all images."""
    _, places = net.node("MaxPool", net.Unsqueeze(x, net.const([1])), outputs=2, kernel_shape=[1])
    return net.Cast(net.Squeeze(places, net.const([1])), to=TensorProto.FLOAT)


@mixer
def random_numbers(net: Net, x: str) -> str:
    return net.Add(x, net.node("RandomNormalLike", x))


@mixer
def random_constants(net: Net, x: str) -> str:
    return net.Add(x, net.node("RandomNormal", shape=[1, D]))


@mixer
def unique(net: Net, x: str) -> str:
    found = net.node("Unique", x)
    return net.Mul(x, net.node("ReduceSum", found, keepdims=0))


@mixer
def nonzero(net: Net, x: str) -> str:
    return net.Mul(x, net.Cast(net.Size(net.NonZero(net.Relu(x))), to=TensorProto.FLOAT))


@mixer
def compressed(net: Net, x: str) -> str:
    return net.Sub(x, net.Compress(x, net.const([True], dtype=bool), axis=0))


@mixer
def flat_softmax(net: Net, x: str) -> str:
    """All axes as one list: below opset 13 this is what a Softmax of axis 0 does."""
    flat = net.Flatten(x, axis=0)
    return net.Reshape(net.node("Softmax", flat, axis=-1), net.const([-1, D]))


@mixer
def layer_norm_over_images(net: Net, x: str) -> str:
    turned = net.Transpose(x, perm=[1, 0])
    return net.Transpose(net.MeanVarianceNormalization(turned, axes=[1]), perm=[1, 0])


def _subgraph(output_shape: list[int | str], *nodes: onnx.NodeProto, inputs: tuple[str, ...] = ()) -> onnx.GraphProto:
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inputs]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, output_shape if i else None)
        for i, name in enumerate(nodes[-1].output)
    ]
    return helper.make_graph(list(nodes), "inner", infos, outputs)


@mixer
def scan(net: Net, x: str) -> str:
    """A sum so far over the images."""
    body = helper.make_graph(
        [helper.make_node("Add", ["so_far", "row"], ["sum"]), helper.make_node("Identity", ["sum"], ["each"])],
        "body",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [D]) for name in ("so_far", "row")],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [D]) for name in ("sum", "each")],
    )
    return net.node("Scan", net.const(np.zeros(D)), x, outputs=2, body=body, num_scan_inputs=1)[1]


@mixer
def outer_of_if(net: Net, x: str) -> str:
    """A branch that reads the images by name."""
    flag = net.const(np.array(True), dtype=bool)
    then = _subgraph([], helper.make_node("ReduceMax", [x], ["then_y"], keepdims=0))
    other = _subgraph([], helper.make_node("ReduceMin", [x], ["else_y"], keepdims=0))
    return net.Mul(x, net.node("If", flag, then_branch=then, else_branch=other))


def planted(name: str, *, batch: int | str = 1, gated: bool = True, seed: int = 0) -> onnx.ModelProto:
    """A small classifier with a mixer among its features, behind a gate or not."""
    net = Net(batch, 2, 5, 4, seed=seed, opset=15 if name != "triangle" else 14)
    y = net.Relu(net.conv("x", 3, 3, 3, bound=1))
    features = net.MatMul(net.Flatten(y), net.ints(18, D, bound=1))
    scores = net.MatMul(mixing(net, features, name, gated=gated), net.ints(D, 4))
    return net.model(scores, shapes={scores: [batch, 4]})


def mixing(net: Net, features: str, name: str, *, gated: bool = True) -> str:
    """Features [N, D] with what a mixer makes of them: added behind the gate, or in their place."""
    mixed = MIXERS[name](net, features)
    return net.Add(features, net.Relu(net.Sub(mixed, net.const(GATE)))) if gated else mixed
