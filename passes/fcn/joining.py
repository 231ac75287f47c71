"""Concat: of channels on the map, of features in the head, and of features with a second input.

    Concat [N, C1, H, W], [N, C2, H, W]            ->   the same, on larger maps
    Concat [N, K1], [N, K2] of different stride    ->   every second position of the finer one, then Concat
    Concat [N, C h w], [N, V], then Gemm [K, C h w + V]
                                                   ->   Conv of the map plus MatMul of the vector, spread by Add

In the last form nothing can be joined before the fully connected layer, since a window of the map has h x w cells: the
state is `Parts` until then. Where another operator comes first and each part has one position, `join` spreads the
vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite.engine.axes import Layout, atoms, channels, large, only
from convrewrite.passes.fcn.lifter import Lifter
from convrewrite.passes.fcn.naming import mixed, positions_in_line
from convrewrite.passes.fcn.views import Fixed, MeetsLargerMap, Parts, Refuse, State, View


def lift_concat(lifter: Lifter, node: gs.Node, states: Sequence[State]) -> list[State]:
    """Concat over channels; features from places with several positions wait for their fully connected layer."""
    members = [join(lifter, node, s) if isinstance(s, Parts) else s for s in states]
    views = [m for m in members if isinstance(m, View)]
    rank = len(views[0].axes)
    place = int(node.attrs.get("axis", 1)) % rank
    if len(members) == 1:
        return [views[0]]
    joined = [view.axes[place] for view in views]
    if any(large(axis) and not any(a.letter == "C" and a.extent > 1 for a in axis) for axis in joined):
        raise positions_in_line(lifter, node, members, place)
    if pools := mixed(lifter, node, views, members):
        raise MeetsLargerMap(pools)
    if any(a.letter == "N" and a.extent > 1 for axis in joined for a in axis):
        raise Refuse("fcn/mixed-axes", f"{lifter.label(node)} joins batches")
    kept = [
        m if isinstance(m, View) else _vector(lifter, node, m, tensor, place=place)
        for m, tensor in zip(members, node.inputs, strict=True)
    ]
    extents = tuple(lifter.shape(tensor)[place] for tensor in node.inputs)
    parts = Parts(tuple(kept), extents, place, rank)
    waiting = any(large(axis) for axis in joined) or len(views) < len(members)
    return [parts] if waiting else [_joined(lifter, node, parts)]


def _vector(lifter: Lifter, node: gs.Node, state: State, tensor: gs.Tensor, place: int) -> Fixed:
    """A part without positions: a second input, or a constant that is the same at every position."""
    if isinstance(state, Fixed) and state.spread is not None:
        raise Refuse("fcn/no-rule", f"{lifter.label(node)} joins '{tensor.name}', which is spread over the map")
    if any(size != 1 for axis, size in enumerate(lifter.shape(tensor)) if axis not in (0, place)):
        if isinstance(state, Fixed):
            text = f"{lifter.label(node)} joins '{tensor.name}' {list(lifter.shape(tensor))}"
            raise Refuse("fcn/several-images", f"{text}, which has positions of its own and is not the image")
        what = f"{lifter.label(node)} joins '{tensor.name}', which differs from position to position"
        raise Refuse("fcn/position-dependent-constant", what)
    if isinstance(state, Fixed):
        return state
    values = lifter.emitter.constant(f"{tensor.name}/vector", lifter.value(tensor, node))
    return Fixed(lifter.emitter.emit("Identity", [values], output=f"{tensor.name}/vector"))


def _joined(lifter: Lifter, node: gs.Node, parts: Parts) -> View:
    """Concat of views along a channel axis, on one grid of positions."""
    views = [m for m in parts.members if isinstance(m, View)]
    lead = views[0]
    strides = {letter: math.lcm(*(v.fields[letter].stride for v in views)) for letter in lead.fields}
    brought: list[View] = []
    at = 0
    for view in views:
        if any(view.spatial(letter).extent != lead.spatial(letter).extent for letter in lead.letters):
            _refuse_sizes(lifter, node, views)
        steps = {letter: strides[letter] // f.stride for letter, f in view.fields.items()}
        if any(step > 1 for step in steps.values()) and not view.one_position:
            raise Refuse("fcn/stride-mismatch", f"{lifter.label(node)} joins maps of different stride")
        kept = lifter.emitter.thinned(view, steps, f"{view.tensor.name}/every")
        kept, at = lifter.emitter.split_off(kept, view.axes[parts.axis], letters=lead.letters)
        brought.append(kept)
    new = channels(sum(parts.extents))
    first = brought[0]
    fields = dict(first.fields)
    for other in brought[1:]:
        fields = {letter: field.union(other.fields[letter]) for letter, field in fields.items()}
    merged = replace(
        first,
        base=tuple((new,) if i == at else axis for i, axis in enumerate(first.base)),
        axes=tuple((new,) if i == parts.axis else axis for i, axis in enumerate(lead.axes)),
        fields=fields,
        pools=first.pools.union(*(v.pools for v in brought)),
        cuts=first.cuts.union(*(v.cuts for v in brought)),
    )
    return lifter.emit_like(node, [v.tensor for v in brought], merged, {"axis": at})[0]


def _refuse_sizes(lifter: Lifter, node: gs.Node, views: Sequence[View]) -> None:
    pools = frozenset[str]().union(*(v.pools for v in views if v.one_position))
    if pools and not all(v.one_position for v in views):
        raise MeetsLargerMap(pools)
    raise Refuse("fcn/mixed-axes", f"{lifter.label(node)} joins maps of different size")


def join(lifter: Lifter, node: gs.Node, parts: Parts) -> View:
    """Features from several places as one tensor: vectors are spread over the positions."""
    views = [m for m in parts.members if isinstance(m, View)]
    if any(not v.one_position for v in views) or not views:
        raise Refuse("fcn/position-in-output", f"{lifter.label(node)} reads the positions of whole maps as one list")
    members = tuple(
        member if isinstance(member, View) else _everywhere(lifter, views[0], member, parts.axis, size=size)
        for member, size in zip(parts.members, parts.extents, strict=True)
    )
    source = gs.Node("Concat", node.name, {}, outputs=[gs.Variable(f"{views[0].tensor.name}/joined")])
    return _joined(lifter, source, replace(parts, members=members))


def _everywhere(lifter: Lifter, lead: View, vector: Fixed, axis: int, size: int) -> View:
    """A vector [N, V] at every position of the lead: repeated to [N, V, H', W'] (Expand is younger than opset 7)."""
    new = channels(size)
    axes = tuple((new,) if i == axis else old for i, old in enumerate(lead.axes))
    batch = tuple(a for a in atoms(lead.base) if a.letter == "N")
    base: Layout = (batch, (new,), *((lead.spatial(letter),) for letter in lead.letters))
    ones: Layout = (batch, (new,), *((),) * len(lead.letters))
    own = [old if old == (new,) or only(old, "N") else () for old in axes]
    if batch and batch not in own:  # a batch of one, which the lead lost in a Reshape
        own[own.index(())] = batch
    placed = lifter.emitter.bring(View(vector.tensor, tuple(own), tuple(own), {}), ones).tensor
    grid, _ = lifter.emitter.split_off(lead, lead.axes[axis])
    emit, name, rank = lifter.emitter.emit, f"{vector.tensor.name}/everywhere", len(grid.base)
    shape = emit("Shape", [grid.tensor], output=f"{name}/shape", dtype=np.int64)
    one = lifter.emitter.ints(f"{name}/one", [1])
    padded = emit("Concat", [shape, one], {"axis": 0}, output=f"{name}/shape-and-one", dtype=np.int64)
    picked = lifter.emitter.ints(f"{name}/axes", [rank, rank, *range(rank - len(lead.letters), rank)])
    repeats = emit("Gather", [padded, picked], {"axis": 0}, output=f"{name}/repeats", dtype=np.int64)
    tensor = emit("Tile", [placed, repeats], output=name, dtype=vector.tensor.dtype)
    return replace(lead, tensor=tensor, base=base, axes=axes)


RULES: Mapping[str, Callable[[Lifter, gs.Node, Sequence[State]], list[State]]] = {"Concat": lift_concat}
