"""Matrix products and recurrent layers: images may be rows, columns or stacked matrices, and never what is summed over.

[N, K] x W [K, M]                 rows
[N, h, S, D] x [N, h, D, S]       stacked matrices of each image: both factors have the images along the same axis
[K, N] x ..  summed over N        refused
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import onnx_graphsurgeon as gs

from convrewrite.engine.operators import ruled
from convrewrite.passes.open_batch.edits import Repeated
from convrewrite.passes.open_batch.sliding import first_axis
from convrewrite.passes.open_batch.states import Each, Free, State, Stop
from convrewrite.passes.open_batch.walk import Rule, Walk

FACTORS = {"QLinearMatMul": (0, 3)}
"""Where the factors of a product stand, if not first; the other inputs are scales and zero points."""

SCALES = {"QLinearMatMul": ((1, 2), (4, 5)), "MatMulInteger": ((2,), (3,))}
"""Where scales and zero points of the first and of the second factor stand."""


def matmul(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """MatMul and its integer forms: images are rows, columns or stacked matrices of one factor, or stacked in both."""
    places = FACTORS.get(node.op, (0, 1))
    if any(isinstance(state, Each) for index, state in enumerate(states) if index not in places):
        raise Stop("no-rule", f"{walk.label(node)} takes a scale that depends on the images")
    out, ranks = walk.shape(node.outputs[0]), [len(walk.shape(node.inputs[place])) for place in places]
    found: list[tuple[int, tuple[int, int]]] = []
    for index, place in enumerate(places):
        state = states[place]
        if not isinstance(state, Each):
            continue
        summed = max(0, ranks[1] - 2) if index else ranks[0] - 1
        if state.place == summed:
            raise walk.mixed(node, f"sums over the images, along axis {summed} of {list(state.shape)}")
        of_vector = ranks[1 - index] == 1 and state.place < summed + (not index)
        found.append((len(out) - ranks[index] + state.place + of_vector, state.axis))
        if state.place == ranks[index] - (1 if index else 2):
            _check_scales(walk, node, SCALES.get(node.op, ((), ()))[index])
    if len(set(found)) > 1:
        raise walk.mixed(node, "multiplies each image with every other: its factors have them along different axes")
    place, axis = found[0]
    stacked = min(ranks) > 1 and len(out) - place > 2
    if len(found) == 2 and not stacked:
        raise walk.mixed(node, "multiplies each image with every other")
    for index in places if stacked else ():
        dims, behind = walk.shape(node.inputs[index]), len(out) - place
        if not isinstance(states[index], Each) and behind <= len(dims) and dims[-behind] != 1:
            raise Stop("baked", f"{walk.label(node)} has its own matrix for each image of the batch")
    return [Each(tuple(out), place, *axis)]


def _check_scales(walk: Walk, node: gs.Node, places: Sequence[int]) -> None:
    """Stop where a factor has a scale or zero point for each of its rows or columns, which are images."""
    for place in places:
        if place < len(node.inputs) and node.inputs[place].name and math.prod(walk.shape(node.inputs[place])) != 1:
            raise Stop("baked", f"{walk.label(node)} has its own scale for each image of the batch")


def gemm(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """Gemm: images are rows of the first factor or columns of the second."""
    found: list[Each] = []
    out = walk.shape(node.outputs[0])
    for index, (flag, row) in enumerate((("transA", 0), ("transB", 1))):
        state = states[index]
        if isinstance(state, Each):
            if state.place != (1 - row if node.attrs.get(flag, 0) else row):
                raise walk.mixed(node, "sums over the images")
            found.append(state.along(out, row))
    if len(found) != 1:
        raise walk.mixed(node, "multiplies images with each other, or with nothing")
    if len(states) > 2 and node.inputs[2].name:
        added = states[2]
        offset = len(out) - len(walk.shape(node.inputs[2]))
        if isinstance(added, Each):
            if (added.place + offset, added.axis) != (found[0].place, found[0].axis):
                raise walk.mixed(node, "pairs each image with every other")
        else:
            dims = (1,) * offset + walk.shape(node.inputs[2])
            if dims[found[0].place] != 1:
                raise Stop("baked", f"{walk.label(node)} adds another row for each image of the batch")
    return found


def einsum(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """Einsum: the letter of the images stands in the result, and every factor that has images has them under it."""
    text = node.attrs["equation"]
    equation = (text.decode() if isinstance(text, bytes) else str(text)).replace(" ", "")
    terms, arrow, result = equation.partition("->")
    inputs = terms.split(",")
    if not arrow or "." in equation or len(inputs) != len(states):
        raise Stop("no-rule", f"{walk.label(node)} has an equation without a result, or with an ellipsis")
    found = {(term[s.place], s.axis) for term, s in zip(inputs, states, strict=True) if isinstance(s, Each)}
    if len(found) != 1:
        raise walk.mixed(node, "multiplies each image with every other")
    ((letter, axis),) = found
    if letter not in result:
        raise walk.mixed(node, "sums over the images")
    alone = all(term.count(letter) == isinstance(s, Each) for term, s in zip(inputs, states, strict=True))
    if not alone or result.count(letter) != 1:
        raise Stop("baked", f"{walk.label(node)} has a factor with its own entry for each image of the batch")
    return [Each(walk.shape(node.outputs[0]), result.index(letter), *axis)]


def recurrent(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """LSTM, GRU, RNN: [steps, images, features], or [images, steps, features] where `layout` is 1."""
    data, first = states[0], int(node.attrs.get("layout", 0))
    place = 0 if first else 1
    if not isinstance(data, Each) or any(isinstance(state, Each) for state in states[1:4]):
        raise Stop("no-rule", f"{walk.label(node)} takes weights that depend on the images")
    if data.place != place or not data.alone:
        raise walk.mixed(
            node, f"takes the images, which lie along axis {data.place} of {list(data.shape)}, for its steps"
        )
    repeated: list[int] = []
    for index in range(4, len(states)):
        state, tensor = states[index], node.inputs[index]
        if index == 7 or not tensor.name:
            if isinstance(state, Each):
                raise Stop("no-rule", f"{walk.label(node)} takes weights that depend on the images")
            continue
        axis = 0 if index == 4 else place
        if isinstance(state, Each):
            if state.place != axis or not state.alone:
                raise walk.mixed(node, f"takes its input '{tensor.name}' with the images along another axis")
        elif index == 4 or walk.shape(tensor)[place] != 1:
            raise Stop("baked", f"{walk.label(node)}: '{tensor.name}' has one entry for each image of the batch")
        else:
            repeated.append(index)
    if repeated:
        walk.edits.append(
            Repeated(
                output=_first_output(node),
                text=walk.label(node),
                places=repeated,
                image=0,
                at=place,
                axis=place,
                rank=3,
            )
        )
    axes = (0, 0, 0) if first else (2, 1, 1)
    return [
        Each(walk.shape(tensor), axis) if tensor.name else Free()
        for tensor, axis in zip(node.outputs, axes, strict=False)
    ]


def _first_output(node: gs.Node) -> str:
    return next(str(tensor.name) for tensor in node.outputs if tensor.name)


def attention(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """Attention of ONNX: queries, keys and values of each image; one mask for all images, or each its own."""
    for index, state in enumerate(states):
        if index == 3 and isinstance(state, Free) and node.inputs[3].name:
            mask = walk.shape(node.inputs[3])
            if len(mask) > 3 and mask[0] != 1:
                raise Stop("baked", f"{walk.label(node)} has its own mask for each image of the batch")
        elif index == 3 and isinstance(state, Each) and len(state.shape) != 4:
            raise walk.mixed(node, "takes the images of its mask for positions")
        elif node.inputs[index].name:
            if not isinstance(state, Each):
                raise Stop("no-rule", f"{walk.label(node)}: '{node.inputs[index].name}' does not depend on the images")
            first_axis(walk, node, state)
    return [Each(walk.shape(tensor), 0) if tensor.name else Free() for tensor in node.outputs]


def biased(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """ONNX Runtime's MatMul with an Add, or Gemm with an activation."""
    if any(node.attrs.get(name, 0) for name in ("transBatchA", "transBatchB")) or (
        node.op == "FusedMatMul" and (node.attrs.get("transA", 0) or node.attrs.get("transB", 0))
    ):
        raise Stop("no-rule", f"{walk.label(node)} transposes its factors")
    return matmul(walk, node, states)


RULES: Mapping[str, Rule] = {
    **ruled({"MatMul integer-matrix": matmul, "Gemm": gemm, "Einsum": einsum, "LSTM GRU RNN": recurrent}),
    "Attention": attention,
    "com.microsoft::FusedMatMul": biased,
    "com.microsoft::FusedGemm": gemm,
}
