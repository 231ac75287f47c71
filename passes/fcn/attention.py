"""Attention over the positions of the map: a softmax over all of them, and the sum of the map with those weights.

    original   sum_p  softmax(a)_p x_p                           p runs over the positions of the whole map
    head       AveragePool(exp(a - m) x) / AveragePool(exp(a - m))    p runs over one window; m is the largest a
    block      MatMul(x, softmax(a)) as it is                    p runs over the whole image, whatever its size

In a head the sum is the classifier's, so each window has its own: the softmax falls into two pools at stride 1, of
which the constant m cancels (where no position of a window comes within 87 of the largest `a` of the image, exp is 0
there and the quotient no number). Where the sum goes back into the map it is a global context block: it stays global,
like squeeze-and-excite. Sources: arXiv 1904.11492 (GC), 1803.10963 (attentive statistics pooling).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite.engine.axes import Atom, Layout, atoms, channels, large, only
from convrewrite.engine.graph import unique_name
from convrewrite.engine.operators import chosen
from convrewrite.passes.fcn.elementwise import lift_binary
from convrewrite.passes.fcn.lifter import Lifter
from convrewrite.passes.fcn.shapes import lift_reshape, lift_transpose
from convrewrite.passes.fcn.views import Fixed, Refuse, State, Static, View, Weights

MOVES = chosen("reshape transpose")
SAME = frozenset({"Identity", "Dropout"})
POOLS = chosen("global-pool reduction")
SUMS = frozenset({"ReduceSum", "ReduceMean", "GlobalAveragePool"})


def lift_attention(
    lifter: Lifter, node: gs.Node, states: Sequence[State]
) -> tuple[Sequence[State], list[State] | None]:
    """The results of a node that makes or reads weights of positions; None where it is one like any other.

    Returns:
        (operands, results): with None for the results, the operands as the node's own rule takes them.

    Raises:
        Refuse: the weights of a window meet what takes them for a map. It names the softmax, which may stay global.
    """
    weights = [state for state in states if isinstance(state, Weights)]
    if not weights:
        data = states[0]
        if node.op == "Softmax" and isinstance(data, View) and _over_all_positions(lifter, node, data):
            return states, [_softmax(lifter, node, data)]
        return states, None
    first = weights[0]
    results: list[State] | None = None
    others = [state for state in states if state is not first]
    if first is states[0] and not first.product and node.op in MOVES | SAME:
        results = [_moved(lifter, node, first)]
    elif len(weights) == 1 and node.op == "Mul" and not first.product and isinstance(others[0], View):
        results = [_times(lifter, node, states, first)]
    elif node.op in SUMS and all(isinstance(state, Static) for state in others):
        results = _summed(lifter, node, first)
    elif len(weights) == 1 and node.op == "MatMul" and not first.product and isinstance(others[0], View):
        results = _contracted(lifter, node, states, first)
    if results is not None:
        return states, results
    if node.op in POOLS and _takes_positions(lifter, node, first.view):
        raise Refuse("fcn/attention-pooling", f"{lifter.label(node)} pools the weights of '{first.anchor}'")
    return [_as_map(state, f"{lifter.label(node)} reads") for state in states], None


def _takes_positions(lifter: Lifter, node: gs.Node, view: View) -> bool:
    """Whether a pool runs over positions: what is one value for all of them needs the weights of a window."""
    given = None if node.op.startswith("Global") else lifter.parameter(node, "axes", 1)
    if given is None or not np.size(given):
        return True
    return bool(large(atoms(view.axes[int(place)] for place in np.atleast_1d(given))))


def _as_map(state: State, who: str) -> State:
    """Weights as the map that they are; those of a window are not normalised, so they are none."""
    if not isinstance(state, Weights):
        return state
    if state.mass is not None:
        detail = f"{who} the weights of '{state.anchor}'"
        raise Refuse("fcn/attention-pooling", detail, frozenset({state.anchor}))
    return state.view


def settle_outputs(lifter: Lifter) -> None:
    """Outputs that are weights of positions are maps."""
    for tensor in lifter.graph.outputs:
        if isinstance(lifter.state(tensor), Weights):
            lifter.states[tensor.name] = _as_map(lifter.state(tensor), f"output '{tensor.name}' has")


# The softmax --------------------------------------------------------------------------------------------------------


def _over_all_positions(lifter: Lifter, node: gs.Node, view: View) -> bool:
    """Whether a Softmax runs over all positions of the map and nothing else."""
    old = lifter.graph.opset < 13
    place = int(node.attrs.get("axis", 1 if old else -1)) % len(view.axes)
    axis = atoms(view.axes[place:]) if old else view.axes[place]
    real = {atom for atom in axis if atom.extent > 1}
    return bool(real) and not view.pools and real == set(large(atoms(view.base)))


def _apart(lifter: Lifter, view: View) -> tuple[View, int]:
    """The view as [N, C, *spatial], with the number of axes ahead of the spatial ones."""
    batch = tuple(a for a in atoms(view.base) if a.letter == "N")
    channel = tuple(a for a in atoms(view.base) if a.letter == "C")
    layout: Layout = (batch, channel, *((view.spatial(letter),) for letter in view.letters))
    return lifter.emitter.bring(view, layout), 2


def _softmax(lifter: Lifter, node: gs.Node, view: View) -> State:
    anchor = node.outputs[0].name
    map_, ahead = _apart(lifter, view)
    spatial = list(range(ahead, len(map_.base)))
    if anchor in lifter.global_pools:
        lifter.check_windows(node, over_space=True)
        return Weights(_normalised(lifter, anchor, map_), None, anchor)
    if lifter.float_type(node) != np.float32:
        detail = f"{lifter.label(node)} weighs positions in another type than float32, whose range windows need"
        raise Refuse("fcn/attention-pooling", detail, frozenset({anchor}))
    emit, kind = lifter.emitter.emit, map_.tensor.dtype
    inputs: list[gs.Tensor] = [map_.tensor]
    attrs: dict[str, Any] = {"keepdims": 1}
    if lifter.graph.opset >= 18:
        inputs.append(lifter.emitter.ints(f"{anchor}/axes", spatial))
    else:
        attrs["axes"] = spatial
    peak = emit("ReduceMax", inputs, attrs, output=f"{anchor}/largest", dtype=kind)
    below = emit("Sub", [map_.tensor, peak], output=f"{anchor}/below", dtype=kind)
    weights = replace(map_, tensor=emit("Exp", [below], output=f"{anchor}/weights", dtype=kind))
    return Weights(weights, weights, anchor)


def _normalised(lifter: Lifter, anchor: str, map_: View) -> View:
    """The softmax over all positions of the image, as a map again."""
    emit, kind = lifter.emitter.emit, map_.tensor.dtype
    line: Layout = (map_.base[0], map_.base[1], atoms(map_.base[2:]))
    flat = lifter.emitter.bring(map_, line)
    soft = emit("Softmax", [flat.tensor], {"axis": 2}, output=f"{anchor}/line", dtype=kind)
    if flat.tensor is not map_.tensor:
        shape = emit("Shape", [map_.tensor], output=f"{anchor}/extents", dtype=np.int64)
        soft = emit("Reshape", [soft, shape], output=f"{anchor}/map", dtype=kind)
    return replace(map_, tensor=soft)


# Weights on their way -----------------------------------------------------------------------------------------------


def _moved(lifter: Lifter, node: gs.Node, weights: Weights) -> State:
    view = weights.view
    if node.op in MOVES:
        (moved,) = (lift_transpose if node.op == "Transpose" else lift_reshape)(lifter, node, [view])
        assert isinstance(moved, View)
        view = moved
    return replace(weights, view=view, mass=None if weights.mass is None else view)


def _times(lifter: Lifter, node: gs.Node, states: Sequence[State], weights: Weights) -> State:
    """A map times the weights."""
    views = [state.view if isinstance(state, Weights) else state for state in states]
    (product,) = lift_binary(lifter, node, views)
    assert isinstance(product, View)
    return replace(weights, view=product, product=True)


def _summed(lifter: Lifter, node: gs.Node, weights: Weights) -> list[State] | None:
    """The sum over all positions, or their mean; None where it runs over something else."""
    view, rank = weights.view, len(weights.view.axes)
    if node.op == "GlobalAveragePool":
        places, keepdims = list(range(2, rank)), True
    else:
        given = lifter.parameter(node, "axes", 1)
        if given is None or not np.size(given):
            return None
        places, keepdims = sorted({int(a) % rank for a in np.atleast_1d(given)}), bool(node.attrs.get("keepdims", 1))
    removed = {a for place in places for a in view.axes[place] if a.extent > 1}
    if not weights.product or removed != set(large(atoms(view.base))):
        return None
    if weights.mass is None:
        whole = lifter.as_it_is(node, view)
        return [_kept_global(lifter, node, [whole.tensor, *(lifter.static(t) for t in node.inputs[1:])], weights)]
    result = _quotient(lifter, node, view, weights.mass, anchor=weights.anchor)
    if node.op != "ReduceSum":
        count = math.prod(a.extent for a in removed)
        share = lifter.emitter.constant(f"{node.outputs[0].name}/share", np.asarray(1 / count, np.float32))
        tensor = lifter.emitter.emit("Mul", [result.tensor, share], output=f"{node.outputs[0].name}/mean")
        result = replace(result, tensor=tensor)
    axes = tuple(() if i in places else axis for i, axis in enumerate(result.axes) if keepdims or i not in places)
    return [replace(result, axes=axes)]


def _kept_global(lifter: Lifter, node: gs.Node, inputs: Sequence[gs.Tensor], weights: Weights) -> State:
    """The sum over the whole image, as the original has it."""
    name = node.outputs[0].name
    tensor = lifter.emitter.emit(node.op, inputs, node.attrs, output=name, own_name=True, node_name=node.name)
    lifter.rewrote(node, "stays over the whole map", "exact")
    return Fixed(tensor, frozenset({weights.anchor}))


def _contracted(lifter: Lifter, node: gs.Node, states: Sequence[State], weights: Weights) -> list[State] | None:
    """A matrix product over all positions, of a map and weights; None where it runs over something else."""
    left, right = (state.view if isinstance(state, Weights) else state for state in states)
    assert isinstance(left, View)
    assert isinstance(right, View)
    if min(len(left.axes), len(right.axes)) < 2:
        return None
    for view, place in ((left, -1), (right, -2)):
        if {a for a in view.axes[place] if a.extent > 1} != set(large(atoms(view.base))):
            return None
    if [(a.letter, a.extent) for a in left.axes[-1]] != [(a.letter, a.extent) for a in right.axes[-2]]:
        return None
    if weights.mass is None:
        both = [lifter.as_it_is(node, view) for view in (left, right)]
        return [_kept_global(lifter, node, [view.tensor for view in both], weights)]
    rows, columns = left.axes[-2], right.axes[-1]
    if not (only(rows, "C") and only(columns, "C")):
        return None
    one = replace(left, axes=(*left.axes[:-1], (), left.axes[-1]))
    two = replace(right, axes=(*right.axes[:-2], (), columns, right.axes[-2]))
    mass = one if isinstance(states[0], Weights) else two
    product = _outer(lifter, node, one, two)
    result = _quotient(lifter, node, product, mass, anchor=weights.anchor)
    return [replace(result, axes=result.axes[:-1])]


def _outer(lifter: Lifter, node: gs.Node, one: View, two: View) -> View:
    """[.., i, 1, p] times [.., 1, j, p]: every row of one with every column of the other, position by position."""
    shape = np.broadcast_shapes(*(tuple(math.prod(a.extent for a in axis) for axis in v.axes) for v in (one, two)))
    if all(any(a.extent > 1 for a in axis) for axis in (one.axes[-3], two.axes[-2])):
        one, two = _with_spare(lifter, one), _with_spare(lifter, two)
    return _binary(lifter, "Mul", f"{node.outputs[0].name}/weighed", (one, two), shape=shape)


def _with_spare(lifter: Lifter, view: View) -> View:
    """The view with one more channel axis in its base, of one entry, which broadcasting may make longer."""
    flat, _ = _apart(lifter, view)
    batch, *others = flat.base
    return lifter.emitter.bring(flat, (batch, (channels(1),), *others))


def _binary(lifter: Lifter, op: str, name: str, views: tuple[View, View], shape: Sequence[int]) -> View:
    """A node of our own between two views, lifted like one of the original's."""
    tensors = [gs.Variable(unique_name(f"{name}/operand", lifter.taken)) for _ in views]
    output = gs.Variable(unique_name(name, lifter.taken), views[0].tensor.dtype)
    lifter.native = {**lifter.native, output.name: tuple(shape)}
    (result,) = lift_binary(lifter, gs.Node(op, output.name, {}, tensors, outputs=[output]), list(views))
    assert isinstance(result, View)
    return result


# Sums over a window -------------------------------------------------------------------------------------------------


def _quotient(lifter: Lifter, node: gs.Node, product: View, mass: View, anchor: str) -> View:
    """The sum of the products over a window, by the sum of the weights; its positions are windows from there on."""
    name = node.outputs[0].name
    lifter.check_windows(node, op="AveragePool")
    lifter.spans = True
    over, under = (_mean(lifter, view, f"{name}/{label}") for view, label in ((product, "sum"), (mass, "mass")))
    shape = tuple(math.prod(a.extent for a in axis) for axis in over.axes)
    result = _binary(lifter, "Div", f"{name}/attended", (over, under), shape=shape)
    size = " x ".join(str(product.spatial(letter).extent) for letter in product.letters)
    told = "where a window's largest logit is within 87 of the image's"
    lifter.rewrote(node, f"attention over the map -> two AveragePools {size}, stride 1; {told}", "reassociated")
    return replace(result, pools=result.pools | {anchor})


def _mean(lifter: Lifter, view: View, name: str) -> View:
    """The mean over the native map at every position of the image; each letter has one position in `axes`."""
    flat, ahead = _apart(lifter, view)
    kernel = [axis[0].extent for axis in flat.base[ahead:]]
    attrs = {"kernel_shape": kernel, "strides": [1] * len(kernel)}
    tensor = lifter.emitter.emit("AveragePool", [flat.tensor], attrs, output=name, dtype=flat.tensor.dtype)
    ones = {axis[0]: (Atom(axis[0].letter, 1),) for axis in flat.base[ahead:]}

    def shrunk(layout: Layout) -> Layout:
        return tuple(atoms(ones.get(atom, (atom,)) for atom in axis) for axis in layout)

    fields = {letter: field.slide(flat.spatial(letter).extent) for letter, field in flat.fields.items()}
    return replace(flat, tensor=tensor, base=shrunk(flat.base), axes=shrunk(view.axes), fields=fields)
