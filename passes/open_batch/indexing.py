"""Operators that look things up by numbers: Gather, Scatter and their kin, OneHot, embeddings.

Gather table [V, D] by ids [N, L]  ->  [N, L, D]        each image looks up by itself
Gather x [N, C] by a constant, along 0                  refused: it takes images out of the batch
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_graphsurgeon as gs

from convrewrite.passes.open_batch.states import Each, State, Stop
from convrewrite.passes.open_batch.walk import Rule, Walk


def gather(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """Gather: the axis gives way to those of the indices."""
    data, indices = states
    native, shape = walk.shape(node.outputs[0]), walk.shape(node.inputs[0])
    axis = int(node.attrs.get("axis", 0)) % max(1, len(shape))
    if isinstance(data, Each) and isinstance(indices, Each):
        raise walk.mixed(node, "lets each image choose among the entries of every other")
    if isinstance(indices, Each):
        return [indices.along(native, axis + indices.place)]
    assert isinstance(data, Each)
    if axis == data.place:
        raise Stop("baked", f"{walk.label(node)} takes images out of the batch by their place in it")
    more = len(walk.shape(node.inputs[1])) - 1 if data.place > axis else 0
    return [data.along(native, data.place + more)]


def entrywise(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """GatherElements, ScatterElements: all tensors have the images along the same axis, and the lookup another."""
    every = [state for state in states if isinstance(state, Each)]
    if len(every) != len(states):
        raise Stop("baked", f"{walk.label(node)} has an input with its own entry for each image of the batch")
    axis = int(node.attrs.get("axis", 0)) % len(every[0].shape)
    if len({(state.place, state.axis) for state in every}) > 1 or axis == every[0].place:
        raise walk.mixed(node, "looks up along the images")
    return [every[0].along(walk.shape(node.outputs[0]), every[0].place)]


def gather_nd(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """GatherND: the images are among the batch axes of both inputs, or only one has any, and keeps them."""
    data, indices = states
    batch = int(node.attrs.get("batch_dims", 0))
    if isinstance(data, Each) and not isinstance(indices, Each):
        shape = walk.shape(node.inputs[1])
        if data.place < batch + shape[-1]:
            raise Stop("baked", f"{walk.label(node)} takes images out of the batch by their place in it")
        return [data.along(walk.shape(node.outputs[0]), len(shape) - 1 + data.place - batch - shape[-1])]
    if not isinstance(indices, Each) or indices.place == len(indices.shape) - 1:
        raise walk.mixed(node, "takes entries of the batch by their place in it")
    if isinstance(data, Each):
        if (data.place, data.axis) != (indices.place, indices.axis) or data.place >= batch:
            raise walk.mixed(node, "lets each image choose among the entries of every other")
    elif indices.place < batch:
        raise Stop("baked", f"{walk.label(node)} has a table with its own part for each image of the batch")
    return [indices.along(walk.shape(node.outputs[0]), indices.place)]


def one_hot(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """OneHot: a fresh axis."""
    indices = walk.images_of(node, states)
    native = walk.shape(node.outputs[0])
    axis = int(node.attrs.get("axis", -1)) % len(native)
    return [indices.along(native, indices.place + (axis <= indices.place))]


def gathered_rows(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """Compress: entries along an axis that are chosen by a constant."""
    data = walk.images_of(node, states)
    if "axis" not in node.attrs or int(node.attrs["axis"]) % len(data.shape) == data.place:
        raise Stop("baked", f"{walk.label(node)} takes images out of the batch by their place in it")
    return [data.along(walk.shape(node.outputs[0]), data.place)]


RULES: Mapping[str, Rule] = {
    "Gather": gather,
    **dict.fromkeys(("GatherElements", "ScatterElements", "Scatter"), entrywise),
    "GatherND": gather_nd,
    "OneHot": one_hot,
    "Compress": gathered_rows,
}
