"""Operators that move axes about, cut them or join them: Reshape, Transpose, Expand, Slice, Concat and their kin.

A Reshape deals the atoms of a tensor out to its new axes in order; the images are one of them. Where the file tells it
numbers for its own batch, each axis of the result that could take the images is tried, and the likeliest is written
down: an axis that has nothing else, then one in which the images come first, as in [N * heads, S, D].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite.passes.open_batch.edits import Repeated, Told
from convrewrite.passes.open_batch.states import Count, Counts, Each, Free, Shape, State, Stop, regrouped, told_shape
from convrewrite.passes.open_batch.walk import Rule, Walk

FAR = 2**31 - 1
"""An end of a Slice from which on it means all the rest, however many images there are."""


def reshape(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """The target is numbers, or is computed from the number of images."""
    data = states[0]
    if not isinstance(data, Each):
        raise Stop("counted", f"{walk.label(node)} gives what does not depend on the images a shape that does")
    target = states[1] if len(states) > 1 else Free()
    native, zero_copies = walk.shape(node.outputs[0]), not node.attrs.get("allowzero", 0)
    wide = data.wide(walk.images)
    if isinstance(target, Counts):
        told = [_many(walk, value) for value in target.values]
        return [_as_told(walk, node, data, native, wide=told_shape(told, wide, zero_copies=zero_copies))]
    if isinstance(target, Each):
        raise Stop("no-rule", f"{walk.label(node)} takes a shape that depends on the images")
    if "shape" in node.attrs:
        numbers, written = [int(v) for v in node.attrs["shape"]], True
    else:
        value = walk.number(node.inputs[1])
        if value is None:
            raise Stop("no-rule", f"{walk.label(node)} takes a shape that is not constant")
        numbers, written = [int(v) for v in np.ravel(value)], walk.written.value(node.inputs[1]) is not None
    found = told_shape(numbers, wide, zero_copies=zero_copies)
    plain = None if found is None else regrouped(data, found, native, walk.images)
    if not written:
        return [_as_told(walk, node, data, native, wide=found)]
    best = _likeliest(walk, data, native)
    if best is None:
        raise walk.mixed(node, f"cuts images into parts, or puts parts of several into one: {_words(data, native)}")
    if plain != best:
        values = _retold(walk, node, data, best, numbers=numbers, zero_copies=zero_copies)
        _check_told(walk, node, data, best, wide=told_shape(values, wide, zero_copies=zero_copies))
        output, label = node.outputs[0].name, walk.label(node)
        walk.edits.append(
            Told(output, label, attrs={"shape": values}) if "shape" in node.attrs else Told(output, label, 1, values)
        )
    return [best]


def _check_told(walk: Walk, node: gs.Node, data: Each, best: Each, wide: Shape | None) -> None:
    """Stop where no numbers say where the images go."""
    if wide is None or regrouped(data, wide, best.shape, walk.images) != best:
        raise Stop("baked", f"{walk.label(node)} takes one number of images: {_words(data, best.shape)}")


def _as_told(walk: Walk, node: gs.Node, data: Each, native: Shape, wide: Shape | None) -> Each:
    """The result of a Reshape whose target is left as it is."""
    found = None if wide is None else regrouped(data, wide, native, walk.images)
    if found is None:
        raise Stop("baked", f"{walk.label(node)} takes one number of images: {_words(data, native)}")
    return found


def _words(data: Each, native: Sequence[int]) -> str:
    place = f"the images are axis {data.place} of {list(data.shape)}"
    return f"{place}, and it gives {list(native)}"


def _many(walk: Walk, value: Any) -> int:
    """An entry of a shape with as many images as the atom stands for."""
    extent = walk.images.atom.extent
    return value.factor * int(extent**value.power) if isinstance(value, Count) else int(value)


def _likeliest(walk: Walk, data: Each, native: Shape) -> Each | None:
    """Where the images go, by the order in which axes take them."""
    batch, many = walk.images.native, walk.images.atom.extent
    found: list[tuple[tuple[int, int], Each]] = []
    for place, size in enumerate(native):
        if size % batch:
            continue
        wide = [*native[:place], size // batch * many, *native[place + 1 :]]
        state = regrouped(data, wide, native, walk.images)
        if state is not None and state.place == place:
            last = place == len(native) - 1 and len(native) > 1
            rank = 0 if state.alone else 1 if state.before == 1 and not last else 2 if state.before > 1 else 3
            found.append(((rank, abs(place - data.place)), state))
    return min(found, key=lambda pair: pair[0], default=(None, None))[1]


def _retold(walk: Walk, node: gs.Node, data: Each, best: Each, numbers: Sequence[int], zero_copies: bool) -> list[int]:
    """The numbers of a Reshape with 0 or -1 in the place of the images."""
    at, values = best.place, list(numbers)
    if zero_copies and data.place == at and data.axis == best.axis:
        values[at] = 0
        return values
    if walk.sized and any(v == -1 and i != at for i, v in enumerate(numbers)):
        raise Stop("baked", f"{walk.label(node)} finds an open extent by -1, and has no other left for the images")
    for place, (value, size) in enumerate(zip(numbers, best.shape, strict=True)):
        kept = value > 0 or (value == 0 and place != data.place)
        values[place] = -1 if place == at else value if kept else size
    return values


def flatten(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """Two axes: those ahead of `axis` and those from it on; axis 0 puts a batch of one into the columns."""
    data, native = walk.images_of(node, states), walk.shape(node.outputs[0])
    axis = int(node.attrs.get("axis", 1))
    axis = axis + len(data.shape) if axis < 0 else axis
    if axis == 0 and data.place == 0 and data.alone and walk.images.native == 1:
        walk.edits.append(Told(node.outputs[0].name, walk.label(node), attrs={"axis": 1}))
        return [Each(native, 0)]
    wide = data.wide(walk.images)
    return [_as_told(walk, node, data, native, wide=(math.prod(wide[:axis]), math.prod(wide[axis:])))]


def squeeze(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """Axes of extent 1 go; that of the images is no such axis, though it looks like one in a batch of one."""
    data = walk.images_of(node, states)
    axes = walk.parameter(node, "axes", 1)
    if axes is None and data.alone:
        raise Stop("baked", f"{walk.label(node)} drops every axis of extent 1, that of a single image among them")
    gone = {a % len(data.shape) for a in axes} if axes is not None else {i for i, d in enumerate(data.shape) if d == 1}
    if data.place in gone:
        raise Stop("baked", f"{walk.label(node)} drops the axis of the images")
    return [data.along(walk.shape(node.outputs[0]), data.place - sum(a < data.place for a in gone))]


def unsqueeze(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """Unsqueeze: axes of extent 1 are added."""
    data, native = walk.images_of(node, states), walk.shape(node.outputs[0])
    fresh = {a % len(native) for a in walk.parameter(node, "axes", 1) or []}
    return [data.along(native, [i for i in range(len(native)) if i not in fresh][data.place])]


def transpose(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """Transpose: axes change places."""
    data = walk.images_of(node, states)
    order = [int(a) for a in node.attrs.get("perm") or range(len(data.shape))[::-1]]
    return [data.along(walk.shape(node.outputs[0]), order.index(data.place))]


def expand(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """Axes of extent 1 become longer; the images' own stays."""
    data, target = states[0], states[1]
    native = walk.shape(node.outputs[0])
    if isinstance(data, Counts):
        raise Stop("counted", f"{walk.label(node)} computes with the number of images")
    if isinstance(target, Counts):
        return [_expanded(walk, node, data, target, native=native)]
    if isinstance(target, Each) or not isinstance(data, Each):
        raise Stop("no-rule", f"{walk.label(node)} takes a shape that depends on the images")
    value = walk.number(node.inputs[1])
    if value is None:
        raise Stop("no-rule", f"{walk.label(node)} takes a shape that is not constant")
    told = [int(v) for v in np.ravel(value)]
    place = len(native) - len(data.shape) + data.place
    at = place - (len(native) - len(told))
    if at >= 0 and told[at] != 1:
        if told[at] != data.shape[data.place] or walk.written.value(node.inputs[1]) is None:
            raise Stop("baked", f"{walk.label(node)} takes one number of images: {_words(data, native)}")
        walk.edits.append(
            Told(node.outputs[0].name, walk.label(node), 1, [1 if i == at else v for i, v in enumerate(told)])
        )
    return [data.along(native, place)]


def _expanded(walk: Walk, node: gs.Node, data: State, target: Counts, native: Shape) -> Each:
    """An Expand to a shape in which the number of images stands."""
    offset = len(native) - len(target.values)
    places = [(offset + i, v) for i, v in enumerate(target.values) if getattr(v, "power", 0)]
    if len(places) != 1 or getattr(places[0][1], "power", 0) != 1:
        raise Stop("counted", f"{walk.label(node)} takes a shape with the number of images in more than one place")
    place, count = places[0]
    found = 1, count.factor  # they are all the same
    if isinstance(data, Each):
        own = len(native) - len(data.shape) + data.place
        if own != place or count.factor != data.before * data.after:
            raise walk.mixed(node, "spreads images over a second axis of images")
        return data.along(native, place)
    shape = walk.shape(node.inputs[0])
    behind = len(native) - place
    if behind <= len(shape) and shape[-behind] != 1:
        raise Stop("baked", f"{walk.label(node)}: '{node.inputs[0].name}' has one entry for each image of the batch")
    return Each(native, place, *found)


def tile(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """Axes are repeated; that of the images is not."""
    data = walk.images_of(node, states)
    times = walk.parameter(node, "repeats", 1) or []
    if times[data.place : data.place + 1] != [1]:
        raise Stop("baked", f"{walk.label(node)} repeats the images")
    return [data.along(walk.shape(node.outputs[0]), data.place)]


def cut(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """Slice: any axis but that of the images, of which all are kept."""
    data = walk.images_of(node, states)
    rank = len(data.shape)
    chosen = walk.parameter(node, "axes", 3)
    axes = [a % rank for a in (chosen if chosen is not None else range(rank))]
    if data.place in axes:
        starts = walk.parameter(node, "starts", 1) or []
        ends, steps = walk.parameter(node, "ends", 2) or [], walk.parameter(node, "steps", 4)
        at = axes.index(data.place)
        whole = at >= len(starts) or (starts[at] == 0 and ends[at] >= FAR and (not steps or steps[at] == 1))
        if not whole:
            raise Stop("baked", f"{walk.label(node)} takes images out of the batch, or turns it round")
    return [data.along(walk.shape(node.outputs[0]), data.place)]


def split(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """Split along any axis but that of the images."""
    data = walk.images_of(node, states)
    if int(node.attrs.get("axis", 0)) % len(data.shape) == data.place:
        raise Stop("baked", f"{walk.label(node)} parts the batch into a number of images that is written down")
    return [data.along(walk.shape(t), data.place) if t.name else Free() for t in node.outputs]


def pad(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """Pad along any axis but that of the images."""
    data = walk.images_of(node, states)
    name = "paddings" if "paddings" in node.attrs else "pads"
    pads = walk.parameter(node, name, 1) or []
    chosen = walk.parameter(node, "axes", 3)
    axes = [a % len(data.shape) for a in (chosen if chosen is not None else range(len(data.shape)))]
    if data.place in axes:
        at = axes.index(data.place)
        if pads[at] or pads[at + len(axes)]:
            raise Stop("baked", f"{walk.label(node)} pads the batch")
    return [data.along(walk.shape(node.outputs[0]), data.place)]


def concat(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """Concat along another axis; what does not depend on the images is repeated for each."""
    native = walk.shape(node.outputs[0])
    axis = int(node.attrs.get("axis", 1)) % len(native)
    found = {(s.place, s.axis) for s in states if isinstance(s, Each)}
    if len(found) > 1:
        raise walk.mixed(node, "joins tensors that have the images along different axes")
    ((place, both),) = found
    if axis == place:
        raise walk.mixed(node, f"joins along axis {axis}, which is that of the images")
    beside = [i for i, s in enumerate(states) if not isinstance(s, Each)]
    if beside:
        if both != (1, 1) or any(walk.shape(node.inputs[i])[place] != 1 for i in beside):
            raise Stop("baked", f"{walk.label(node)} puts something of its own beside each image of the batch")
        image = next(i for i, s in enumerate(states) if isinstance(s, Each))
        walk.edits.append(
            Repeated(
                output=node.outputs[0].name,
                text=walk.label(node),
                places=beside,
                image=image,
                at=place,
                axis=place,
                rank=len(native),
            )
        )
    return [Each(native, place, *both)]


RULES: Mapping[str, Rule] = {
    "Reshape": reshape,
    "Flatten": flatten,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Transpose": transpose,
    "Expand": expand,
    "Tile": tile,
    "Slice": cut,
    "Split": split,
    "Pad": pad,
    "Concat": concat,
}
