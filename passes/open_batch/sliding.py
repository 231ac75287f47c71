"""Operators on maps [N, C, spatial ..]: convolutions, pools, normalisations per channel, Resize.

They take the first axis for that of the images. Where images lie along another (a batch that was folded into the
channels, or that is used as time), kernels and scales run over them, and the network is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite.engine.operators import ruled
from convrewrite.passes.open_batch.edits import Sized
from convrewrite.passes.open_batch.states import Counts, Each, State, Stop
from convrewrite.passes.open_batch.walk import Rule, Walk


def first_axis(walk: Walk, node: gs.Node, state: State, *, alone: bool = True) -> Each:
    """The data of an operator that takes its first axis for the images."""
    if not isinstance(state, Each):
        raise Stop("no-rule", f"{walk.label(node)} takes a parameter that depends on the images")
    if state.place or (alone and not state.alone):
        raise walk.mixed(node, f"runs over the images, which lie along axis {state.place} of {list(state.shape)}")
    return state


def conv(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """Conv and its kin: constant kernels on the first input. What was folded into the images stays there."""
    state = first_axis(walk, node, walk.images_of(node, states), alone=False)
    return [state.along(walk.shape(node.outputs[0]), 0)]


def deformed(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """DeformConv, GridSample: further inputs of each image's own."""
    every = [first_axis(walk, node, state) for state in states if isinstance(state, Each)]
    own = [1] if node.op == "GridSample" else [2, *([4] if len(states) > 4 and node.inputs[4].name else [])]
    if not isinstance(states[0], Each) or any(not isinstance(states[i], Each) for i in own):
        raise Stop("baked", f"{walk.label(node)} has an input with its own entry for each image of the batch")
    if len(every) != 1 + len(own):
        raise Stop("no-rule", f"{walk.label(node)} takes a parameter that depends on the images")
    return [every[0].along(walk.shape(node.outputs[0]), 0)]


def pool(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """Pools over the axes behind the second. The places that a MaxPool also gives count all images: no rule."""
    state = walk.images_of(node, states)
    if state.place > 1 or (state.place == 1 and node.attrs.get("channels_last", 0)):
        raise walk.mixed(node, f"runs over the images, along axis {state.place} of {list(state.shape)}")
    return [state.along(walk.shape(node.outputs[0]), state.place)]


def per_channel(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """InstanceNormalization, GroupNormalization: over the channels or the map of one image."""
    return [first_axis(walk, node, walk.images_of(node, states), alone=False)]


def over_channels(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """LRN over neighbours along the second axis."""
    state = walk.images_of(node, states)
    if state.place == 1:
        raise walk.mixed(node, f"runs over the images, along axis 1 of {list(state.shape)}")
    return [state]


def batch_norm(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """BatchNormalization, unless it takes its statistics from the batch."""
    opset, outputs = walk.graph.opset, [t for t in node.outputs if t.name]
    training = bool(node.attrs.get("training_mode", 0)) or (opset < 14 and len(outputs) > 1)
    if training or (opset < 7 and not node.attrs.get("is_test", 0)):
        raise walk.mixed(node, "takes its mean and variance from the whole batch (training mode)")
    state = walk.images_of(node, states)
    if state.place == 1 or (state.place and not node.attrs.get("spatial", 1)):
        raise walk.mixed(node, f"scales by the axis of the images, axis {state.place} of {list(state.shape)}")
    return [state]


def blocks(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """SpaceToDepth and DepthToSpace."""
    state = first_axis(walk, node, walk.images_of(node, states), alone=False)
    return [state.along(walk.shape(node.outputs[0]), 0)]


def resize(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """Resize, Upsample: the axis of the images keeps its extent."""
    if not isinstance(states[0], Each) or any(isinstance(state, Each) for state in states[1:]):
        raise Stop("no-rule", f"{walk.label(node)} takes a size that depends on the images")
    state, out = states[0], walk.shape(node.outputs[0])
    if node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        raise Stop("no-rule", f"{walk.label(node)} cuts regions out")
    chosen = [int(a) % len(out) for a in node.attrs.get("axes", range(len(out)))]
    if state.place not in chosen:
        return [state.along(out, state.place)]
    if node.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Stop("no-rule", f"{walk.label(node)} chooses one scale for all axes, that of the images among them")
    given = {"Upsample": 1}.get(node.op, 1 if walk.graph.opset < 11 else 2)
    at = chosen.index(state.place)
    scales = walk.parameter_numbers(node, "scales", given)
    if scales is not None and len(scales):
        if float(scales[at]) != 1.0:
            raise walk.mixed(node, "interpolates between images")
        return [state.along(out, state.place)]
    _check_sizes(walk, node, states, state, at=at)
    return [state.along(out, state.place)]


def _check_sizes(walk: Walk, node: gs.Node, states: Sequence[State], state: Each, at: int) -> None:
    """The sizes of a Resize keep the number of images, or are told it."""
    told = states[3] if len(states) > 3 else None
    if isinstance(told, Counts):
        wanted = (state.before * state.after, 1)
        found = told.values[at]
        if (getattr(found, "factor", 0), getattr(found, "power", 0)) != wanted:
            raise walk.mixed(node, "interpolates between images")
        return
    sizes = walk.written.value(node.inputs[3]) if len(node.inputs) > 3 else None
    plain = state.place == at == 0 and state.alone and "axes" not in node.attrs
    if sizes is None or not plain or int(sizes[0]) != state.shape[0]:
        raise Stop("baked", f"{walk.label(node)} is told one number of images")
    walk.edits.append(Sized(node.outputs[0].name, walk.label(node), [int(v) for v in np.ravel(sizes)[1:]]))


RULES: Mapping[str, Rule] = {
    **ruled(
        {
            "convolution integer-convolution transposed-convolution": conv,
            "sampling": deformed,
            "pool global-pool": pool,
            "map-norm": per_channel,
            "channel-norm": over_channels,
            "batch-norm": batch_norm,
            "blocks": blocks,
            "resize": resize,
        }
    ),
    "com.microsoft::FusedConv": conv,
    **{f"com.microsoft::QLinear{name}": pool for name in ("AveragePool", "GlobalAveragePool")},
}
