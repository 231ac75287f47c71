"""Operators that compute each number by itself, or from those at the same place: images stay where they are.

Two tensors that both have images must have them along the same axis. What has none must not tell images apart, so its
extent along their axis is 1: a constant with one entry per image of the file's batch is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_graphsurgeon as gs

from convrewrite.engine.operators import ruled
from convrewrite.passes.open_batch.states import Each, State, Stop
from convrewrite.passes.open_batch.walk import Rule, Walk

CONTRIB_UNARY = frozenset("FastGelu Gelu QuickGelu BiasGelu".split())


def same_place(walk: Walk, node: gs.Node, places: Sequence[int], states: Sequence[State]) -> Each:
    """Where the images lie in what is computed place by place from some of the inputs.

    Raises:
        Stop: they lie along different axes, or something else tells them apart.
    """
    shape = walk.shape(node.outputs[0])
    found: tuple[int, Each] | None = None
    for index in places:
        state = states[index]
        if isinstance(state, Each):
            place = len(shape) - len(state.shape) + state.place
            if found is not None and (found[0], found[1].axis) != (place, state.axis):
                raise walk.mixed(node, "pairs each image with every other: its inputs have them along different axes")
            found = place, state
    if found is None:
        raise Stop("no-rule", f"{walk.label(node)} takes a parameter that depends on the images")
    place, state = found
    for index in places:
        if isinstance(states[index], Each) or not node.inputs[index].name:
            continue
        _check_alike(walk, node, node.inputs[index], len(shape) - place)
    return state.along(shape, place)


def _check_alike(walk: Walk, node: gs.Node, tensor: gs.Tensor, behind: int) -> None:
    """Stop where a tensor without images has more than one entry along their axis, which is `behind` from the end."""
    dims = walk.shape(tensor)
    rank, first = len(dims), int(node.attrs.get("axis", -1)) if "broadcast" in node.attrs else -1
    if first >= 0:  # below opset 7 the second input begins at a given axis
        behind -= len(walk.shape(node.inputs[0])) - first - rank
    if 0 < behind <= rank and dims[rank - behind] != 1:
        raise Stop(
            "baked", f"{walk.label(node)}: '{tensor.name}' {list(dims)} has its own entry for each image of the batch"
        )


def unary(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """Elementwise operators of one input: the images stay where they are."""
    return [walk.images_of(node, states)]


def broadcast(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """Elementwise operators whose inputs are all data."""
    return [same_place(walk, node, range(len(states)), states)]


def cast_like(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """CastLike: only the type of the second input counts."""
    return [states[0]]


def dropout(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """Nothing happens, but in training: then numbers are drawn."""
    training = len(node.inputs) > 2 and bool(node.inputs[2].name)
    value = walk.number(node.inputs[2]) if training else None
    if (training and (value is None or bool(value))) or (walk.graph.opset < 7 and not node.attrs.get("is_test", 0)):
        raise Stop("no-rule", f"{walk.label(node)} draws random numbers, others for every number of images")
    state = walk.images_of(node, states)
    return [state] * len(node.outputs)


RULES: Mapping[str, Rule] = {
    **ruled({"unary": unary, "broadcast Clip": broadcast, "cast-like": cast_like, "Dropout": dropout}),
    **{f"com.microsoft::{op}": broadcast for op in CONTRIB_UNARY},
}
