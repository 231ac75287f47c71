"""Operators that run along some axes: reductions, normalisations, sums so far, the largest, the sorted.

[N, C, H, W]  ReduceMean over (2, 3)  [N, C, 1, 1]      legal: the axis of the images is none of them
[N, C, H, W]  Softmax over 0                            refused: each image is divided by what the others give
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_graphsurgeon as gs

from convrewrite.engine.operators import axis_of, ruled
from convrewrite.passes.open_batch.pointwise import same_place
from convrewrite.passes.open_batch.states import Each, State, Stop
from convrewrite.passes.open_batch.walk import Rule, Walk


def reduce(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """A reduction over axes that are given; all of them where none is."""
    state = walk.images_of(node, states)
    rank = len(state.shape)
    given = walk.parameter(node, "axes", 1)
    if not given and node.attrs.get("noop_with_empty_axes", 0):
        return [state]
    axes = {axis % rank for axis in given} if given else set(range(rank))
    return [_without(walk, node, state, axes)]


def _without(walk: Walk, node: gs.Node, state: Each, axes: set[int]) -> Each:
    """What is left where some axes are reduced."""
    if state.place in axes:
        raise walk.mixed(node, f"runs over the images, along axis {state.place} of {list(state.shape)}")
    gone = 0 if node.attrs.get("keepdims", 1) else sum(axis < state.place for axis in axes)
    return state.along(walk.shape(node.outputs[0]), state.place - gone)


def largest(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """ArgMax and ArgMin along one axis."""
    state = walk.images_of(node, states)
    return [_without(walk, node, state, {axis_of(node, walk.graph.opset) % len(state.shape)})]


def softmax(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """Softmax, LogSoftmax, Hardmax: along one axis; below opset 13 over all axes from it on."""
    state = walk.images_of(node, states)
    flat = walk.graph.opset < 13
    axis = axis_of(node, walk.graph.opset) % len(state.shape)
    if state.place == axis or (flat and state.place > axis):
        raise walk.mixed(node, f"runs over the images, along axis {state.place} of {list(state.shape)}")
    return [state]


def one_axis(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """An operator that runs along one axis and gives tensors of the same rank."""
    state = walk.images_of(node, states)
    axis = axis_of(node, walk.graph.opset) % len(state.shape)
    if axis == state.place:
        raise walk.mixed(node, f"runs over the images, along axis {axis} of {list(state.shape)}")
    return [state.along(walk.shape(tensor), state.place) if tensor.name else state for tensor in node.outputs]


def sum_so_far(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """CumSum and CumProd, whose axis is an input."""
    state = walk.images_of(node, states)
    axis = (walk.parameter(node, "axis", 1) or [0])[0] % len(state.shape)
    if axis == state.place:
        raise walk.mixed(node, f"runs over the images, along axis {axis} of {list(state.shape)}")
    return [state]


def layer_norm(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """LayerNormalization, RMSNormalization: over the axes from a given one on; scale and bias lie along these."""
    state = walk.images_of(node, states)
    axis = int(node.attrs.get("axis", -1)) % len(state.shape)
    if state.place >= axis:
        raise walk.mixed(node, f"runs over the images, along axis {state.place} of {list(state.shape)}")
    same_place(walk, node, range(len(states)), states)
    return [state.along(walk.shape(tensor), state.place) if tensor.name else state for tensor in node.outputs]


def skip_layer_norm(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """ONNX Runtime's sum of two tensors with a LayerNormalization over the last axis behind it."""
    state = same_place(walk, node, range(len(states)), states)
    if state.place == len(state.shape) - 1:
        raise walk.mixed(node, "runs over the images, along the last axis")
    return [state]


def mean_variance(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """MeanVarianceNormalization: the axes include the first where none are given."""
    state = walk.images_of(node, states)
    axes = {int(a) % len(state.shape) for a in node.attrs.get("axes", [0, 2, 3])}
    if state.place in axes:
        raise walk.mixed(node, f"runs over the images, along axis {state.place} of {list(state.shape)}")
    return [state]


def triangle(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """Trilu: by the places along the last two axes."""
    state = walk.images_of(node, states)
    if state.place >= len(state.shape) - 2:
        raise Stop("mixed", f"{walk.label(node)} treats images by their place in the batch")
    return [state]


def together(how: str) -> Rule:
    """An operator that makes one thing of all images."""

    def rule(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
        raise walk.mixed(node, how)

    return rule


RULES: Mapping[str, Rule] = {
    **ruled(
        {
            "list": together("makes one list of all images"),
            "reduction": reduce,
            "search": largest,
            "softmax": softmax,
            "top axis-norm": one_axis,
            "scan": sum_so_far,
            "layer-norm": layer_norm,
            "axes-norm": mean_variance,
            "triangle": triangle,
        }
    ),
    "SimplifiedLayerNormalization": layer_norm,
    **dict.fromkeys(
        ("com.microsoft::SkipLayerNormalization", "com.microsoft::SkipSimplifiedLayerNormalization"), skip_layer_norm
    ),
}
