"""Operators on numbers that are stored as integers, with a scale that is the same for all images.

A scale that is computed from the images themselves (DynamicQuantizeLinear) makes them see each other, and is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_graphsurgeon as gs

from convrewrite.engine.operators import chosen, ruled
from convrewrite.passes.open_batch.pointwise import same_place
from convrewrite.passes.open_batch.states import Each, State, Stop
from convrewrite.passes.open_batch.walk import Rule, Walk

DATA = {"QLinearAdd": (0, 3), "QLinearMul": (0, 3), "QLinearLeakyRelu": (0,), "QLinearSigmoid": (0,)}
"""Places of the data of what computes number by number; the other inputs are scales and zero points."""


def quantize(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """QuantizeLinear, DequantizeLinear: one scale, or one for each entry of an axis that has no images."""
    state = walk.images_of(node, states)
    scale = walk.shape(node.inputs[1])
    axis = int(node.attrs.get("axis", 1)) % max(1, len(state.shape))
    if any(size != 1 for size in scale) and (axis == state.place or len(scale) > 1):
        raise Stop("baked", f"{walk.label(node)} has its own scale for each image of the batch")
    return [state]


def pointwise(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """Quantized sums, products and activations."""
    _check_scales(walk, node, DATA[node.op], states)
    return [same_place(walk, node, DATA[node.op], states)]


def softmax(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """QLinearSoftmax: along one axis, or below opset 13 over all axes from it on."""
    state = walk.images_of(node, states)
    axis = int(node.attrs.get("axis", -1)) % len(state.shape)
    if state.place >= axis:
        raise walk.mixed(node, f"runs over the images, along axis {state.place} of {list(state.shape)}")
    return [state]


def concat(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """QLinearConcat: scale and zero point of the result, then each part with its own."""
    places = range(2, len(states), 3)
    _check_scales(walk, node, places, states)
    native = walk.shape(node.outputs[0])
    parts = [states[place] for place in places]
    found = {(state.place, state.axis) for state in parts if isinstance(state, Each)}
    if len(found) > 1 or not all(isinstance(state, Each) for state in parts):
        raise Stop("baked", f"{walk.label(node)} puts something of its own beside each image of the batch")
    ((place, axis),) = found
    if int(node.attrs["axis"]) % len(native) == place:
        raise walk.mixed(node, f"joins along axis {place}, which is that of the images")
    return [Each(native, place, *axis)]


def gemm(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """QGemm: the images are rows of the first factor."""
    state = walk.images_of(node, states)
    if state.place or node.attrs.get("transA", 0):
        raise walk.mixed(node, "sums over the images")
    if any(size != 1 for size in walk.shape(node.inputs[1])):
        raise Stop("baked", f"{walk.label(node)} has its own scale for each image of the batch")
    return [state.along(walk.shape(node.outputs[0]), 0)]


def together(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """DynamicQuantizeLinear takes one scale from all images, so it mixes them."""
    raise walk.mixed(node, "takes one scale from all images")


def _check_scales(walk: Walk, node: gs.Node, data: Sequence[int], states: Sequence[State]) -> None:
    if any(isinstance(state, Each) for index, state in enumerate(states) if index not in data):
        raise Stop("no-rule", f"{walk.label(node)} takes a scale that depends on the images")


RULES: Mapping[str, Rule] = {
    **ruled({"quantizer": quantize, "dynamic-quantizer": together}),
    **{f"com.microsoft::{op}": quantize for op in chosen("quantizer")},
    **{f"com.microsoft::{op}": pointwise for op in DATA},
    "com.microsoft::QLinearSoftmax": softmax,
    "com.microsoft::QLinearConcat": concat,
    "com.microsoft::QGemm": gemm,
}
