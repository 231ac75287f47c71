"""Blocks that pool the whole image and weigh the map with what they make of it: they stay global.

    ECA     mean [N, C] -> a convolution along the channels -> gate [N, C, 1, 1] -> Expand -> times the map
    SK      mean over the columns, then over the rows       -> softmax over the branches   -> times the branches
    CBAM    mean and maximum -> one MLP for both            -> gate                        -> times the map

Such a block has no windows: a gate weighs the map that several windows share. What is behind its pool is the same at
every position (`views.Fixed`), so that any operator may stand there, and is copied as it is. Where a gate is written
out over the map, by an Expand or Resize to the native size, it is left to broadcasting.
Sources: arXiv 1910.03151 (ECA), 1807.06521 (CBAM), 1903.06586 (SK).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_graphsurgeon as gs

from convrewrite.engine.axes import atoms, large
from convrewrite.engine.graph import maker
from convrewrite.engine.operators import chosen
from convrewrite.passes.fcn.lifter import Lifter
from convrewrite.passes.fcn.naming import meets_the_map
from convrewrite.passes.fcn.shapes import lift_reshape, lift_transpose
from convrewrite.passes.fcn.views import Fixed, Refuse, State, Static, Strip, View

UNARY = chosen("unary")
BINARY = chosen("broadcast")
REDUCTIONS = chosen("reduction")
RESIZING = chosen("resize")
MOVES = frozenset({"Squeeze", "Unsqueeze", "Transpose"})


def lift_gate(lifter: Lifter, node: gs.Node, states: Sequence[State]) -> list[State] | None:
    """The results of a node that reads a gate written out over the map, or half of a pool; None where none does."""
    if any(isinstance(state, Strip) for state in states):
        return [_of_strip(lifter, node, states)]
    if (
        states
        and isinstance(states[0], Fixed)
        and states[0].pools
        and ((node.op == "Expand" and _over_the_map(lifter, node)) or _from_one_cell(lifter, node))
    ):
        return [_left_to_broadcasting(lifter, node, states[0])]
    return None


def _from_one_cell(lifter: Lifter, node: gs.Node) -> bool:
    """Whether a Resize or Upsample repeats the one cell of each channel, as every way to interpolate then does."""
    if node.op not in RESIZING or node.attrs.get("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        return False
    old, new = lifter.shape(node.inputs[0]), lifter.shape(node.outputs[0])
    return len(old) > 2 and tuple(old[:2]) == tuple(new[:2]) and all(size == 1 for size in old[2:])


def _over_the_map(lifter: Lifter, node: gs.Node) -> bool:
    """Whether an Expand repeats along an axis where the image has rows or columns, and not channels alone."""
    old, new = lifter.shape(node.inputs[0]), lifter.shape(node.outputs[0])
    old = (1,) * (len(new) - len(old)) + tuple(old)
    letters = lifter.axes if len(lifter.axes) == len(new) else "NC"
    spatial = [letter not in "NC" for letter in letters] + [True] * (len(new) - len(letters))
    return any(was != size and there for was, size, there in zip(old, new, spatial, strict=False))


def _left_to_broadcasting(lifter: Lifter, node: gs.Node, gate: Fixed) -> State:
    """Expand of a gate: the native shape of what is there is kept, and what reads it broadcasts."""
    own, wanted = gate.spread or lifter.shape(node.inputs[0]), lifter.shape(node.outputs[0])
    return Fixed(gate.tensor, gate.pools, None if tuple(own) == tuple(wanted) else tuple(own))


def spread_through(lifter: Lifter, node: gs.Node, states: Sequence[State]) -> tuple[int, ...] | None:
    """The shape of a fixed node's result before it is repeated over the map, where one of its operands is.

    Raises:
        Refuse: the node reads more than an entry of it at a time.
    """
    spread = [s.spread for s in states if isinstance(s, Fixed) and s.spread is not None]
    if not spread:
        return None
    others = [lifter.shape(t) for t, s in zip(node.inputs, states, strict=False) if t.name and not _is_spread(s)]
    if node.op not in UNARY and (node.op not in BINARY or any(math.prod(shape) > 1 for shape in others)):
        raise Refuse("fcn/no-rule", f"{lifter.label(node)} reads '{node.inputs[0].name}', which is spread over the map")
    if len(set(spread)) > 1:
        raise Refuse("fcn/no-rule", f"{lifter.label(node)} reads two tensors that are spread over the map")
    return spread[0]


def check_outputs(lifter: Lifter) -> None:
    """Refuse an output that is written out over the map, or that pools one axis alone."""
    for tensor in lifter.graph.outputs:
        state = lifter.state(tensor)
        if _is_spread(state):
            raise Refuse("fcn/no-rule", f"output '{tensor.name}' repeats one value at every position of the map")
        if isinstance(state, Strip):
            raise Refuse("fcn/no-rule", f"output '{tensor.name}' has one axis of the map of two")


def _is_spread(state: State) -> bool:
    return isinstance(state, Fixed) and state.spread is not None


def _of_strip(lifter: Lifter, node: gs.Node, states: Sequence[State]) -> State:
    """What is made of a map that was pooled along one axis: the rest of the pool, or nothing that is known here."""
    strip = next(state for state in states if isinstance(state, Strip))
    first = states[0]
    others = [state for state in states[1:] if not isinstance(state, Static)]
    if isinstance(first, Strip) and not others:
        if node.op in UNARY:
            return Strip(lifter.emit_like(node, [first.view.tensor, *_rest(lifter, node)], first.view)[0], first.anchor)
        if node.op in MOVES:
            rule = lift_transpose if node.op == "Transpose" else lift_reshape
            (moved,) = rule(lifter, node, [first.view])
            return Strip(moved, first.anchor) if isinstance(moved, View) else moved
        if node.op in REDUCTIONS:
            return _rest_of_pool(lifter, node, first)
    pool = maker(lifter.graph, strip.anchor)
    raise meets_the_map(lifter, node, pool)


def _rest(lifter: Lifter, node: gs.Node) -> list[gs.Tensor]:
    return [lifter.static(tensor) for tensor in node.inputs[1:]]


def _rest_of_pool(lifter: Lifter, node: gs.Node, strip: Strip) -> State:
    """The reduction over the axis that is left: of the two together, a pool over the whole map."""
    view = lifter.as_it_is(node, strip.view)
    given = lifter.parameter(node, "axes", 1)
    rank = len(view.axes)
    axes = {int(a) % rank for a in given} if given is not None and given.size else set(range(rank))
    removed = atoms(axis for place, axis in enumerate(view.axes) if place in axes)
    if lifter.mixes_samples(removed):
        raise Refuse("fcn/mixed-axes", f"{lifter.label(node)} reduces over the batch")
    nothing = given is None and node.attrs.get("noop_with_empty_axes", 0)
    if nothing or set(large(atoms(view.axes))) - set(removed):
        pool = maker(lifter.graph, strip.anchor)
        raise meets_the_map(lifter, node, pool)
    name = node.outputs[0].name
    inputs = [view.tensor, *_rest(lifter, node)]
    tensor = lifter.emitter.emit(node.op, inputs, node.attrs, output=name, own_name=True, node_name=node.name)
    lifter.rewrote(node, "stays over the whole map", "exact")
    return Fixed(tensor, frozenset({strip.anchor, name}))
