"""Operators that only move axes about: they change a view and emit nothing. Slice cuts the map or the channels.

Reshape [N, C, H, W] -> [N, g, C/g, H, W], Transpose(0, 2, 1, 3, 4), Reshape back    (a shuffle with baked sizes)
->  the axes (C1 C2) become (C2 C1); the next operator brings them into place at any size
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite.engine.axes import Atom, atoms, channels, large, letters, regroup
from convrewrite.engine.operators import ruled
from convrewrite.passes.fcn.joining import join
from convrewrite.passes.fcn.lifter import Lifter
from convrewrite.passes.fcn.views import MeetsLargerMap, Parts, Refuse, State, View

END = np.iinfo(np.int64).max


def lift_reshape(lifter: Lifter, node: gs.Node, states: Sequence[State]) -> list[State]:
    """Reshape, Flatten, Squeeze and Unsqueeze: atoms are dealt out to the new axes in order."""
    data = states[0]
    target = lifter.shape(node.outputs[0])
    if isinstance(data, Parts):
        if tuple(target) == tuple(lifter.shape(node.inputs[0])):
            return [data]
        data = join(lifter, node, data)
    if not isinstance(data, View):
        raise Refuse("fcn/no-rule", f"{lifter.label(node)} takes a shape that depends on the image")
    grouped = regroup(data.axes, target)
    if grouped is None:
        names = " ".join(f"({a})" for a in letters(data.axes))
        raise Refuse("fcn/mixed-axes", f"{lifter.label(node)} cuts {names} into {list(target)}")
    axes, splits = grouped
    return [replace(data.refined(splits), axes=axes)]


def lift_transpose(lifter: Lifter, node: gs.Node, states: Sequence[State]) -> list[State]:
    """Transpose: the axes of the original change places."""
    view = join(lifter, node, states[0]) if isinstance(states[0], Parts) else states[0]
    if not isinstance(view, View):
        raise Refuse("fcn/no-rule", f"{lifter.label(node)} does not read the image")
    permutation = node.attrs.get("perm") or list(range(len(view.axes)))[::-1]
    return [replace(view, axes=tuple(view.axes[int(i)] for i in permutation))]


def lift_expand(lifter: Lifter, node: gs.Node, states: Sequence[State]) -> list[State]:
    """Expand and Tile to the same shape do nothing; one number of a cell is spread over its channels."""
    old, new = lifter.shape(node.inputs[0]), lifter.shape(node.outputs[0])
    if tuple(new) == tuple(old):
        return [states[0]]
    view = states[0]
    grown = [place for place, (was, size) in enumerate(zip(old, new, strict=False)) if was != size]
    if not isinstance(view, View) or len(old) != len(new) or len(grown) != 1 or old[grown[0]] != 1:
        raise Refuse("fcn/spatial-broadcast", f"{lifter.label(node)} spreads a lifted tensor")
    spare = next((a for a in atoms(view.base) if a.letter == "C" and a.extent == 1), None)
    alone = all(a.letter == "C" for a in view.axes[grown[0]])
    if spare is None or not alone or any(a.extent > 1 for a in atoms(view.base) if a.letter == "C"):
        if view.pools:
            raise MeetsLargerMap(view.pools)
        raise Refuse("fcn/spatial-broadcast", f"{lifter.label(node)} spreads a lifted tensor")
    batch = tuple(a for a in atoms(view.base) if a.letter == "N")
    place, all_ = grown[0], channels(new[grown[0]])
    view = lifter.emitter.bring(view, (batch, (spare,), *((view.spatial(letter),) for letter in view.letters)))
    shape = lifter.emitter.ints(f"{node.outputs[0].name}/shape", [1, all_.extent, *[1] * len(view.letters)])
    tensor = lifter.emitter.emit(
        "Expand", [view.tensor, shape], output=f"{node.outputs[0].name}/spread", dtype=view.tensor.dtype
    )
    axes = tuple((all_,) if i == place else tuple(a for a in axis if a != spare) for i, axis in enumerate(view.axes))
    return [replace(view, tensor=tensor, base=(batch, (all_,), *view.base[2:]), axes=axes)]


def lift_slice(lifter: Lifter, node: gs.Node, states: Sequence[State]) -> list[State]:
    """Slice of channels, or of the map: an end inside the map is counted from its far border."""
    if not isinstance(states[0], View):
        raise Refuse("fcn/no-rule", f"{lifter.label(node)} cuts joined features")
    view = states[0]
    starts, ends = lifter.parameter(node, "starts", 1), lifter.parameter(node, "ends", 2)
    if starts is None or ends is None:
        raise Refuse("fcn/no-rule", f"{lifter.label(node)} has no constant bounds")
    chosen = lifter.parameter(node, "axes", 3)
    places = [int(a) % len(view.axes) for a in (range(len(starts)) if chosen is None else chosen)]
    given = lifter.parameter(node, "steps", 4)
    steps = [1] * len(places) if given is None else [int(s) for s in given]
    old, new = lifter.shape(node.inputs[0]), lifter.shape(node.outputs[0])
    active = [i for i, place in enumerate(places) if old[place] != new[place] or steps[i] != 1]
    view = lifter.as_it_is(node, view) if any(large(view.axes[places[i]]) for i in active) else _apart(lifter, view)
    base, axes, fields = list(view.base), list(view.axes), dict(view.fields)
    bounds: list[tuple[int, int, int, int]] = []
    for i in active:
        place = places[i]
        axis = view.axes[place]
        at = view.base.index(axis) if axis in view.base else -1
        if at < 0 or any(a.letter == "N" for a in axis) or (large(axis) and (len(axis) > 1 or steps[i] < 1)):
            raise Refuse("fcn/mixed-axes", f"{lifter.label(node)} cuts a product of axes, the batch, or backwards")
        start, end = int(starts[i]), int(ends[i])
        if large(axis):
            letter = axis[0].letter
            lifter.breaks.append(f"Slice cuts the map ('{node.name or node.outputs[0].name}')")
            first = start if start >= 0 else old[place] + start
            end = END if end >= old[place] else (end - old[place] if end >= 0 else end)
            fields[letter] = fields[letter].slide(1, steps[i], 1, -first)
            start = first
            atom: Atom = Atom(letter, new[place])
        else:
            atom = channels(new[place])
        base[at] = axes[place] = (atom,)
        bounds.append((start, end, at, steps[i]))
    if not bounds:
        return [view]
    result = replace(view, base=tuple(base), axes=tuple(axes), fields=fields)
    columns = [list(column) for column in zip(*bounds, strict=True)]
    return list(lifter.emit_like(node, *_slice_inputs(lifter, node, view, result, columns=columns)))


def _apart(lifter: Lifter, view: View) -> View:
    """Every axis of the original alone in the base, so that channels can be cut."""
    present = {a for axis in view.axes for a in axis}
    missing = tuple((a,) for axis in view.base for a in axis if a not in present)
    return lifter.emitter.bring(view, (*view.axes, *missing))


def _slice_inputs(
    lifter: Lifter, node: gs.Node, view: View, result: View, columns: Sequence[list[int]]
) -> tuple[list[gs.Tensor], View, dict[str, Any]]:
    starts, ends, axes, steps = columns
    if lifter.graph.opset < 10:
        return [view.tensor], result, {"starts": starts, "ends": ends, "axes": axes}
    name = node.outputs[0].name
    named = {"starts": starts, "ends": ends, "axes": axes, "steps": steps}
    vectors = [lifter.emitter.ints(f"{name}/{key}", values) for key, values in named.items()]
    return [view.tensor, *vectors], result, {}


RULES: Mapping[str, Callable[[Lifter, gs.Node, Sequence[State]], list[State]]] = ruled(
    {"reshape": lift_reshape, "transpose": lift_transpose, "repeat": lift_expand, "slice": lift_slice}
)
