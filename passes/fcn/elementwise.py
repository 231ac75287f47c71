"""Element-wise operators on lifted tensors: activations, arithmetic with constants, residual sums, gates.

    original   x [N, C H W]  +  b [C]               ->   x [N, C, H', W']  +  b [C, 1, 1]
    original   x [N, C, H, W] * gate [N, C, 1, 1]   ->   the gate is global, its pool stays a global pool

Operands are aligned as numpy broadcasts them, axis by axis in the original, and then brought to the layout of the
largest operand. A constant must not differ from pixel to pixel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import onnx_graphsurgeon as gs

from convrewrite.engine.axes import Atom, Axis, Layout, atoms, channels, extent, large, only
from convrewrite.engine.operators import ruled
from convrewrite.passes.fcn.joining import join
from convrewrite.passes.fcn.lifter import Lifter
from convrewrite.passes.fcn.naming import mixed
from convrewrite.passes.fcn.views import Fixed, MeetsLargerMap, Parts, Refuse, State, View, relayout


def lift_unary(lifter: Lifter, node: gs.Node, states: Sequence[State]) -> list[State]:
    """One tensor, and constants that are scalars (the bounds of a Clip, the ratio of a Dropout)."""
    data = states[0]
    if isinstance(data, Parts):
        members = [lift_unary(lifter, node, [m, *states[1:]])[0] if isinstance(m, View) else m for m in data.members]
        if all(isinstance(m, View) for m in data.members):
            return [replace(data, members=tuple(m for m in members if isinstance(m, View | Fixed)))]
        data = join(lifter, node, data)
    if not isinstance(data, View) or any(isinstance(s, View | Parts) for s in states[1:]):
        raise Refuse("fcn/no-rule", f"{lifter.label(node)} takes a parameter that depends on the image")
    for tensor in node.inputs[1:]:
        if tensor.name and math.prod(lifter.shape(tensor)) > 1:
            raise Refuse("fcn/no-rule", f"{lifter.label(node)} has a parameter per channel ('{tensor.name}')")
    inputs = [data.tensor, *(lifter.static(tensor) for tensor in node.inputs[1:])]
    views = lifter.emit_like(node, inputs, data)
    return list(views)


def lift_binary(lifter: Lifter, node: gs.Node, states: Sequence[State]) -> list[State]:
    """Two or more operands, of which at least one is a view."""
    operands = [join(lifter, node, s) if isinstance(s, Parts) else s for s in states]
    rank = len(lifter.shape(node.outputs[0]))
    views = [_ranked(s, rank) for s in operands if isinstance(s, View)]
    if pools := mixed(lifter, node, views, operands):
        raise MeetsLargerMap(pools)
    lead = max(views, key=lambda v: (math.prod(a.extent for a in atoms(v.axes)), len(v.base)))
    lead = _grown(lifter, node, lead, views)
    aligned: dict[int, View] = {}
    for place, state in enumerate(operands):
        if isinstance(state, View):
            other = _ranked(state, rank)
            if other.tensor is not lead.tensor:
                lead, aligned[place] = _matched(lifter, node, lead, other)
    steps = {letter: math.lcm(*(v.fields[letter].stride for v in [lead, *aligned.values()])) for letter in lead.fields}
    lead = _at_stride(lifter, node, lead, steps)
    aligned = {place: _at_stride(lifter, node, view, steps) for place, view in aligned.items()}
    inputs: list[gs.Tensor] = []
    fixed = {
        i: _fixed(lifter, node, s, node.inputs[i], lead=lead) for i, s in enumerate(operands) if isinstance(s, Fixed)
    }
    for layout in (*(view.base for view in aligned.values()), *(view.axes for view in fixed.values())):
        lead = _divided(lifter, lead, set(atoms(layout)))
    fields = dict(lead.fields)
    for place, (tensor, state) in enumerate(zip(node.inputs, operands, strict=True)):
        if place in aligned:
            other = lifter.emitter.bring(aligned[place], _without(lead.base, aligned[place].base))
            inputs.append(other.tensor)
            fields = {letter: field.union(other.fields[letter]) for letter, field in fields.items()}
        elif isinstance(state, View):
            inputs.append(lead.tensor)
        elif isinstance(state, Fixed):
            inputs.append(lifter.emitter.bring(fixed[place], _without(lead.base, fixed[place].axes)).tensor)
        else:
            inputs.append(_constant(lifter, node, tensor, lead))
    merged = replace(
        lead,
        fields=fields,
        pools=lead.pools.union(*(v.pools for v in views)),
        cuts=lead.cuts.union(*(v.cuts for v in views)),
    )
    return list(lifter.emit_like(node, inputs, merged))


def lift_cast_like(lifter: Lifter, node: gs.Node, states: Sequence[State]) -> list[State]:
    """CastLike reads no more than the type of its second operand: the two need not even broadcast."""
    data, model = (join(lifter, node, s) if isinstance(s, Parts) else s for s in states)
    kind = model.tensor if isinstance(model, View) else lifter.static(node.inputs[1])
    if isinstance(data, View):
        return list(lifter.emit_like(node, [data.tensor, kind], data))
    source, name = lifter.static(node.inputs[0]), node.outputs[0].name
    return [Fixed(lifter.emitter.emit("CastLike", [source, kind], output=name, own_name=True, node_name=node.name))]


def _ranked(view: View, rank: int) -> View:
    """The view with leading axes of extent 1, as broadcasting adds them."""
    return replace(view, axes=((),) * (rank - len(view.axes)) + view.axes)


def _grown(lifter: Lifter, node: gs.Node, lead: View, views: Sequence[View]) -> View:
    """Check that broadcasting makes no axis of the largest operand longer, but for a channel axis of extent 1."""
    wanted = lifter.shape(node.outputs[0])
    base, axes = lead.base, list(lead.axes)
    for place, (axis, size) in enumerate(zip(lead.axes, wanted, strict=True)):
        if extent(axis) == size:
            continue
        spare = next((a for a in atoms(base) if a.letter == "C" and a.extent == 1), None)
        if large(axis) or extent(axis) != 1 or spare is None or any(a.spatial for a in axis):
            if lead.pools and any(large(view.axes[place]) for view in views):
                raise MeetsLargerMap(lead.pools)
            raise Refuse("fcn/spatial-broadcast", f"{lifter.label(node)} broadcasts a lifted tensor")
        grown = channels(size)
        base = tuple(tuple(grown if a is spare else a for a in b) for b in base)
        axes[place] = (grown,)
        lead = replace(lead, base=base, axes=tuple(axes))
    return lead


def _matched(lifter: Lifter, node: gs.Node, lead: View, other: View) -> tuple[View, View]:
    """Give both operands the same atoms, axis by axis; channel axes are split where they must be."""
    for place in range(len(lead.axes)):
        left, right = _real(lead.axes[place]), _real(other.axes[place])
        if left and right and left != right and only(left, "C") and only(right, "C"):
            lead, other = _refine(lead, other, left, right)
    names: dict[Atom, Axis] = {}
    for place in range(len(lead.axes)):
        left, right = _real(lead.axes[place]), _real(other.axes[place])
        if right and not left:
            if lead.pools and large(right):
                raise MeetsLargerMap(lead.pools)
            raise Refuse("fcn/mixed-axes", f"{lifter.label(node)} broadcasts both operands")
        if right and [(a.letter, a.extent) for a in left] != [(a.letter, a.extent) for a in right]:
            raise Refuse("fcn/mixed-axes", f"{lifter.label(node)} adds axes of different meaning")
        names.update({theirs: (ours,) for ours, theirs in zip(left, right, strict=False)})
    by_letter = {a.letter: a for a in atoms(lead.base) if a.letter != "C"}
    for atom in atoms(other.base):
        twin = by_letter.get(atom.letter)
        if twin is None or atom in names:
            continue
        if twin.extent != atom.extent:
            if other.pools:
                raise MeetsLargerMap(other.pools)
            raise Refuse("fcn/spatial-broadcast", f"{lifter.label(node)} spreads one position over the map")
        names[atom] = (twin,)
    return lead, other.refined(names)


def _refine(lead: View, other: View, left: Axis, right: Axis) -> tuple[View, View]:
    """Split the channel atoms of two axes of equal extent until both have the same factors."""
    lefts, rights = list(left), list(right)
    split_left: dict[Atom, list[Atom]] = {a: [] for a in left}
    split_right: dict[Atom, list[Atom]] = {a: [] for a in right}
    i = j = 0
    rest_left, rest_right = lefts[0].extent, rights[0].extent
    while i < len(lefts) and j < len(rights):
        step = min(rest_left, rest_right)
        if rest_left % step or rest_right % step:
            raise Refuse("fcn/mixed-axes", "two channel axes have factors that do not fit")
        split_left[lefts[i]].append(channels(step))
        split_right[rights[j]].append(channels(step))
        rest_left, rest_right = rest_left // step, rest_right // step
        if rest_left == 1:
            i, rest_left = i + 1, lefts[i + 1].extent if i + 1 < len(lefts) else 0
        if rest_right == 1:
            j, rest_right = j + 1, rights[j + 1].extent if j + 1 < len(rights) else 0
    lead = lead.refined({a: tuple(parts) for a, parts in split_left.items() if len(parts) > 1})
    return lead, other.refined({a: tuple(parts) for a, parts in split_right.items() if len(parts) > 1})


def _at_stride(lifter: Lifter, node: gs.Node, view: View, strides: Mapping[str, int]) -> View:
    steps = {letter: strides[letter] // field.stride for letter, field in view.fields.items()}
    if all(step == 1 for step in steps.values()):
        return view
    if not view.one_position:
        raise Refuse("fcn/stride-mismatch", f"{lifter.label(node)} joins maps of different stride")
    return lifter.emitter.thinned(view, steps, f"{view.tensor.name}/every")


def _real(axis: Axis) -> Axis:
    return tuple(atom for atom in axis if atom.extent != 1)


def _without(base: Layout, smaller: Layout) -> Layout:
    """The base with only those atoms that the smaller operand has: the others broadcast."""
    present = set(atoms(smaller))
    return tuple(tuple(a for a in axis if a in present) for axis in base)


def _constant(lifter: Lifter, node: gs.Node, tensor: gs.Tensor, lead: View) -> gs.Tensor:
    """A constant operand in the layout of the lead; the original's own where that is the same."""
    shape = lifter.shape(tensor)
    if not shape or (math.prod(shape) == 1 and len(shape) <= len(lead.base)):
        return lifter.static(tensor)
    spatial = any(size > 1 and large(axis) for size, axis in zip(reversed(shape), reversed(lead.axes), strict=False))
    if lead.natural and not spatial:
        return lifter.static(tensor)
    values = lifter.value(tensor, node)
    name = f"'{tensor.name}' of {lifter.label(node)}"
    return lifter.emitter.constant(f"{tensor.name}/lifted", relayout(values, lead.axes, lead.base, name))


def _fixed(lifter: Lifter, node: gs.Node, state: Fixed, tensor: gs.Tensor, lead: View) -> View:
    """A tensor without positions, its axes named as those of the lead that it broadcasts against."""
    shape = state.spread or lifter.shape(tensor)
    axes: list[Axis] = []
    for size, axis in zip(shape, lead.axes[len(lead.axes) - len(shape) :], strict=True):
        if size == 1:
            axes.append(())
        elif large(axis) and size == extent(axis) and not any(a.letter == "C" for a in axis):
            text = f"{lifter.label(node)} reads '{tensor.name}' {list(shape)}"
            raise Refuse("fcn/several-images", f"{text}, which has positions of its own and is not the image")
        elif large(axis) or size != extent(axis):
            raise Refuse("fcn/spatial-broadcast", f"{lifter.label(node)} spreads '{tensor.name}' over the positions")
        else:
            axes.append(axis)
    return View(state.tensor, tuple(axes), tuple(axes), {})


def _divided(lifter: Lifter, lead: View, present: set[Atom]) -> View:
    """The lead with every axis taken apart of which another operand has some atoms and lacks others."""
    target: list[Axis] = []
    for axis in lead.base:
        real = _real(axis)
        split = any(a in present for a in real) and not all(a in present for a in real)
        target += [(atom,) for atom in real] if split else [axis]
    return lifter.emitter.bring(lead, tuple(target))


RULES: Mapping[str, Callable[[Lifter, gs.Node, Sequence[State]], list[State]]] = ruled(
    {"unary quantizer": lift_unary, "broadcast": lift_binary, "cast-like": lift_cast_like}
)
