"""Statistics of a window: variance and standard deviation pooling, all of one window or all of the whole map.

    m = ReduceMean(x)                                mean, variance = moments of each window of x, by merged halves
    ReduceMean((x - m)^2) over the map         ->    variance + (mean - m)^2
    then n / (n - 1), + epsilon, Clip, Sqrt          the same, at every cell

Algebra. The difference x - m has no map of its own: at each pixel there are as many of them as windows that hold it. It
is kept as it is (`Centred`) until a reduction asks for the mean of its square, and then, for any m that is one number
per window and channel,

    mean of (x - m)^2 over a window = variance of the window + (mean of the window - m)^2

The last term is left out where m is that very mean. The moments of a window of a + b cells come from those of its first
a and its last b cells (Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
variances", 1979):

    d = mean_b - mean_a      e = d b / (a + b)
    mean = mean_a + e        variance = (a variance_a + b variance_b) / (a + b) + e (d - e)

with each mean kept as its distance from the first cell of its run, so that rounding follows what the cells differ in
and not their level.

Runs of 1, 2, 4, 8 ... cells are made by doubling and joined to n: about 2 log2(n) merges of shifted maps per axis,
rows after columns. No term is negative, so nothing cancels, whatever the level of the data. The moments shifted by a
constant c, mean of (x - c)^2 - (m - c)^2, would: with c the mean of the whole map, the variance of a quiet window far
from c is a small difference of large numbers, it can be negative, and a cell would depend on pixels outside of its
window.

Where something else reads the difference (a normalisation, a third power), the mean stays that of the whole map. Then
every statistic about that mean does, and what is joined with it: a mixture would be a statistic of nothing. A head of
such statistics has no windows, and is refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite.engine.axes import Layout, atoms, large, shape
from convrewrite.engine.emitting import END
from convrewrite.engine.layers import PoolLayer
from convrewrite.engine.operators import chosen
from convrewrite.passes.fcn.lifter import Lifter
from convrewrite.passes.fcn.sliding import letters_of, reduced, reduced_axes, resized, size_of
from convrewrite.passes.fcn.views import Centred, Fixed, MeetsLargerMap, Parts, Refuse, State, Static, View, behind
from convrewrite.text import by

SHAPES = chosen("reshape transpose") | {"Identity", "Cast"}
AVERAGES = frozenset("ReduceMean ReduceSum GlobalAveragePool AveragePool".split())
NORMS = frozenset("ReduceSumSquare ReduceL1 ReduceL2".split())


def lift_statistic(lifter: Lifter, node: gs.Node, states: Sequence[State]) -> list[State] | None:
    """Lift what makes or reads a difference from a window's mean; None where the node does neither.

    Raises:
        MeetsLargerMap: the difference is read by something that has no windowed form.
    """
    if not any(isinstance(state, Centred) for state in states):
        difference = _difference(lifter, node, states) if node.op == "Sub" else None
        return None if difference is None else [difference]
    known = [state for state in states if isinstance(state, Centred)]
    pools = frozenset[str]().union(*(state.centre.pools for state in known))
    pools |= frozenset[str]().union(*(s.pools for s in states if isinstance(s, View) and s.one_position))
    result = _of_difference(lifter, node, states, known[0]) if len(set(map(id, known))) == 1 else None
    if result is None:
        raise MeetsLargerMap(pools)
    return [result]


def _difference(lifter: Lifter, node: gs.Node, states: Sequence[State]) -> Centred | None:
    """A map less one number per window and channel, on the same grid."""
    for place in (0, 1):
        data, centre = states[place], states[1 - place]
        if not isinstance(data, View) or not isinstance(centre, View):
            return None
        if shape(data.axes) != lifter.shape(node.outputs[0]) or set(data.letters) != set(centre.letters):
            continue
        letters = frozenset(a for a in data.letters if data.spatial(a).extent > 1 and centre.spatial(a).extent == 1)
        if letters and centre.pools and _aligned(data, centre, letters) and _same_grid(data, centre):
            plain = _is_mean(node.inputs[1 - place], node.inputs[place]) and math.prod(shape(centre.axes)) * math.prod(
                data.spatial(a).extent for a in letters
            ) == math.prod(shape(data.axes))
            return Centred(data, centre, letters, plain=plain)
    return None


def _aligned(data: View, centre: View, letters: frozenset[str]) -> bool:
    """Whether the centre broadcasts over those letters, and perhaps over channels, and over nothing else."""
    if len(centre.axes) > len(data.axes):
        return False
    given: Layout = ((),) * (len(data.axes) - len(centre.axes)) + centre.axes
    for axis, other in zip(data.axes, given, strict=True):
        left = [(a.letter, a.extent) for a in axis if a.extent > 1 and a.letter not in letters]
        right = [(a.letter, a.extent) for a in other if a.extent > 1]
        over_channels = not right and all(letter == "C" for letter, _ in left)
        same = left == right and all(a in axis for a in other if a.letter == "C" and a.extent > 1)
        if not over_channels and not same:
            return False
    own = [a for a in atoms(centre.base) if a.extent > 1 and a.letter == "C"]
    return all(a in atoms(data.base) for a in own) and {a.letter for a in atoms(centre.base)} >= {
        a.letter for a in atoms(data.base) if a.letter == "N"
    }


def _same_grid(data: View, centre: View) -> bool:
    return all(field.stride == centre.fields[letter].stride for letter, field in data.fields.items())


def _is_mean(centre: gs.Tensor, data: gs.Tensor) -> bool:
    """Whether a tensor is the plain mean of another, in whatever shape."""
    while centre.inputs and centre.inputs[0].op in SHAPES - {"Cast"}:
        centre = centre.inputs[0].inputs[0]
    node = centre.inputs[0] if centre.inputs else None
    return node is not None and node.op in ("ReduceMean", "GlobalAveragePool") and node.inputs[0] is data


def _of_difference(lifter: Lifter, node: gs.Node, states: Sequence[State], known: Centred) -> State | None:
    """What a node makes of a difference or of its square; None where that has no windowed form."""
    if node.op == "Identity" or (node.op in ("Abs", "Neg") and not known.square):
        return known
    if node.op == "Mul" and all(state is known for state in states):
        return None if known.square else replace(known, square=True, scales=known.scales * 2)
    if node.op == "Pow" and not known.square and states[0] is known and isinstance(states[1], Static):
        power = lifter.constants.value(node.inputs[1])
        two = power is not None and np.size(power) == 1 and float(np.ravel(power)[0]) == 2.0
        return replace(known, square=True, scales=known.scales * 2) if two else None
    if node.op in ("Mul", "Div") and isinstance(states[0] if node.op == "Div" else known, Centred):
        other = node.inputs[1 - next(i for i, state in enumerate(states) if state is known)]
        if isinstance(lifter.state(other), Static) and not lifter.shape(other):
            return replace(known, scales=(*known.scales, (node.op, lifter.static(other))))
        return None
    if node.op in ("ReduceMean", "ReduceSum", *NORMS):
        return _reduction(lifter, node, known)
    if node.op in ("GlobalAveragePool", "AveragePool") and known.square:
        return _pool(lifter, node, known)
    return None


def _reduction(lifter: Lifter, node: gs.Node, known: Centred) -> View | None:
    """A reduction of the squared difference over the letters of its centre, or over more axes."""
    view, anchor = known.data, node.outputs[0].name
    axes = reduced_axes(lifter, node, view)
    if not axes:
        return None
    removed = atoms(view.axes[axis] for axis in axes)
    spatial = {a.letter for a in large(removed)}
    norm = node.op in NORMS
    if lifter.mixes_samples(removed) or not spatial >= known.letters or anchor in lifter.global_pools:
        return None
    if norm and (known.square or node.op == "ReduceL1" or spatial != known.letters or _channels(removed)):
        return None
    if not norm and not known.square:
        return None
    squared = replace(known, scales=known.scales * 2) if norm else known
    count = math.prod(view.spatial(letter).extent for letter in known.letters)
    found = _mean_square(lifter, node, squared, factor=1.0 if node.op == "ReduceMean" else float(count))
    if node.op == "ReduceL2":
        root = lifter.emitter.emit("Sqrt", [found.tensor], output=f"{anchor}/root", dtype=found.tensor.dtype)
        found = replace(found, tensor=root)
    keepdims = bool(node.attrs.get("keepdims", 1))
    return reduced(
        lifter, node, found, axes, letters=spatial - known.letters, keepdims=keepdims, again=_channels(removed)
    )


def _channels(removed: Sequence[object]) -> bool:
    return any(getattr(a, "letter", "") == "C" and getattr(a, "extent", 1) > 1 for a in removed)


def _pool(lifter: Lifter, node: gs.Node, known: Centred) -> View | None:
    """A pool of the squared difference over the whole map, on [N, C, *spatial]."""
    view = known.data
    plain = len(view.axes) == 2 + len(view.letters) and all(
        len(axis) == 1 and axis[0].letter == letter for axis, letter in zip(view.axes[2:], view.letters, strict=True)
    )
    everything = {a.letter for a in large(atoms(view.base))} == known.letters
    if not plain or not everything or node.outputs[0].name in lifter.global_pools:
        return None
    factor = 1.0
    if node.op == "AveragePool":
        layer = PoolLayer.from_node(node, size_of(view))
        places = range(len(view.letters))
        if not all(layer.sliding.covers_map(place) for place in places) or any(n != 1 for n in layer.sliding.output):
            return None
        _, factor = layer.over_whole_map(list(places))
    return _mean_square(lifter, node, known, factor=factor)


def _mean_square(lifter: Lifter, node: gs.Node, known: Centred, factor: float) -> View:
    """The mean of the squared difference over each window, times a factor; axes of one window stay, with extent 1."""
    emit, anchor = lifter.emitter.emit, node.outputs[0].name
    flat = lifter.emitter.as_map(known.data)
    kind = flat.tensor.dtype
    sizes = {letter: n for n, letter in zip(size_of(flat), letters_of(flat), strict=True)}
    first, above, tensor = moments(lifter, node, flat, [letter in known.letters for letter in letters_of(flat)])
    if not known.plain:
        centre = _brought(lifter, flat, known.centre)
        gap = emit("Sub", [first, centre], output=f"{anchor}/first-gap", dtype=kind)
        gap = emit("Add", [gap, above], output=f"{anchor}/gap", dtype=kind)
        squared = emit("Mul", [gap, gap], output=f"{anchor}/gap-squared", dtype=kind)
        tensor = emit("Add", [tensor, squared], output=f"{anchor}/about-centre", dtype=kind)
    for op, scale in known.scales:
        tensor = emit(op, [tensor, scale], output=f"{anchor}/scaled", dtype=kind)
    if factor != 1.0:
        number = lifter.emitter.constant(f"{anchor}/count", np.asarray(factor, lifter.float_type(node)))
        tensor = emit("Mul", [tensor, number], output=f"{anchor}/sum", dtype=kind)
    lifter.check_windows(node, op="AveragePool")
    fields = dict(flat.fields)
    for letter in known.letters:
        fields[letter] = fields[letter].slide(sizes[letter])
    window = by([sizes[letter] for letter in letters_of(flat) if letter in known.letters], " x ")
    how = "v = (vA + vB) / 2 + (mA - mB)^2 / 4 from half to whole"
    lifter.rewrote(node, f"squared deviations -> variance of each window of {window}, {how}", "reassociated")
    lifter.spans = True
    after = resized(flat, [1 if a in known.letters else n for a, n in sizes.items()])
    pooled = replace(
        after,
        tensor=tensor,
        fields=fields,
        pools=known.data.pools | known.centre.pools | {anchor},
        cuts=known.data.cuts | known.centre.cuts,
    )
    return replace(pooled, axes=behind(known.data, pooled))


def _brought(lifter: Lifter, flat: View, centre: View) -> gs.Tensor:
    """The centre in the layout of the map, [N, C or 1, *spatial]."""
    base = atoms(centre.base)
    shared = tuple(a for a in flat.base[1] if a in base)
    every, present = ([a for a in axis if a.extent > 1] for axis in (flat.base[1], shared))
    if present and present != every:
        raise MeetsLargerMap(centre.pools)
    batch = tuple(a for a in base if a.letter == "N")
    channel = shared + tuple(a for a in base if a.letter == "C" and a not in shared)
    layout: Layout = (batch, channel, *((centre.spatial(letter),) for letter in letters_of(flat)))
    return lifter.emitter.bring(centre, layout).tensor


@dataclass(frozen=True)
class _Moments:
    """The first cell of every run of `count` cells along an axis, the mean of the run less that cell, and its variance.

    None stands for zeros.
    """

    count: int
    first: gs.Tensor
    above: gs.Tensor | None = None
    variance: gs.Tensor | None = None


def moments(
    lifter: Lifter, node: gs.Node, flat: View, chosen_axes: Sequence[bool]
) -> tuple[gs.Tensor, gs.Tensor, gs.Tensor]:
    """First cell, mean less first cell, and variance of each window of a map [N, C, *spatial] over the chosen axes."""
    run = _Moments(1, flat.tensor)
    for place, (size, wanted) in enumerate(zip(size_of(flat), chosen_axes, strict=True)):
        if wanted and size > 1:
            run = _runs(lifter, node, replace(run, count=1), 2 + place, size=size)
    assert run.above is not None
    assert run.variance is not None
    return run.first, run.above, run.variance


def _runs(lifter: Lifter, node: gs.Node, doubled: _Moments, axis: int, size: int) -> _Moments:
    """Moments of every run of `size` cells from those of single cells: by doubling, and by joining powers of two."""
    found: _Moments | None = None
    while True:
        if size % 2:
            found = doubled if found is None else _merged(lifter, node, found, doubled, axis=axis)
        size //= 2
        if not size:
            return found or doubled
        doubled = _merged(lifter, node, doubled, doubled, axis=axis)


def _merged(lifter: Lifter, node: gs.Node, left: _Moments, right: _Moments, axis: int) -> _Moments:
    """Moments of runs whose first cells are those of one, and whose last cells are those of the other."""
    name, kind = node.outputs[0].name, left.first.dtype
    count = left.count + right.count
    share = right.count / count

    def made(op: str, label: str, *inputs: gs.Tensor) -> gs.Variable:
        return lifter.emitter.emit(op, inputs, output=f"{name}/{label}-{count}", dtype=kind)

    def times(label: str, tensor: gs.Tensor, value: float) -> gs.Variable:
        number = lifter.emitter.constant(f"{name}/share", np.asarray(value, lifter.float_type(node)))
        return made("Mul", label, tensor, number)

    def ahead(tensor: gs.Tensor) -> gs.Tensor:
        return _sliced(lifter, tensor, axis, 0, end=-right.count, name=f"{name}/ahead-{count}")

    def after(tensor: gs.Tensor) -> gs.Tensor:
        return _sliced(lifter, tensor, axis, left.count, end=END, name=f"{name}/after-{count}")

    first = ahead(left.first)
    step = made("Sub", "step", after(right.first), first)
    before = None if left.above is None else ahead(left.above)
    if right.above is not None:
        step = made("Add", "step-after", step, after(right.above))
    if before is not None:
        step = made("Sub", "step-between", step, before)
    part = times("part", step, share)
    above = part if before is None else made("Add", "above", before, part)
    rest = part if left.count == right.count else made("Sub", "rest", step, part)
    variance = made("Mul", "between", part, rest)
    if left.variance is not None:
        variance = made("Add", "with-ahead", variance, times("ahead", ahead(left.variance), 1 - share))
    if right.variance is not None:
        variance = made("Add", "with-after", variance, times("after", after(right.variance), share))
    return _Moments(count, first, above, variance)


def _sliced(lifter: Lifter, tensor: gs.Tensor, axis: int, start: int, end: int, name: str) -> gs.Variable:
    """The cells of one axis from `start` up to `end`, at any extent."""
    emitter = lifter.emitter
    if emitter.opset < 10:
        return emitter.emit("Slice", [tensor], {"starts": [start], "ends": [end], "axes": [axis]}, output=name)
    parts = [emitter.ints(f"{name}/{what}", [value]) for what, value in (("start", start), ("end", end), ("at", axis))]
    return emitter.emit("Slice", [tensor, *parts], output=name, dtype=tensor.dtype)


# Statistics of the whole map ------------------------------------------------------------------------------------


def note(lifter: Lifter, node: gs.Node, states: Sequence[State], results: Sequence[State]) -> None:
    """Remember what is a statistic of the whole map, a difference from one, or a power of such a difference.

    Raises:
        MeetsLargerMap: a pool of one window would make a mixture with it.
    """
    kinds = [lifter.statistics.get(tensor.name, "") for tensor in node.inputs]
    pooled = frozenset[str]().union(*map(_pools, results)) if "moment" in kinds else frozenset[str]()
    if pooled:
        raise MeetsLargerMap(pooled)
    anchor = node.outputs[0].name
    powers = kinds and (kinds[0] == "power" or (kinds[0] == "deviation" and node.op in NORMS))
    made = [r for r in results if powers and isinstance(r, View) and (anchor in r.pools or r.one_position)]
    if made:
        raise MeetsLargerMap(frozenset({anchor}).union(*(r.pools for r in made)))
    fixed = all(isinstance(result, Fixed) for result in results)
    kind = _fixed_kind(lifter, node, states, kinds) if fixed else _map_kind(node, states, kinds)
    if kind:
        lifter.statistics.update((tensor.name, kind) for tensor in node.outputs if tensor.name)


def _pools(state: State) -> frozenset[str]:
    """The pools of a value of one window."""
    if isinstance(state, Parts):
        return frozenset[str]().union(*map(_pools, state.members))
    return state.pools if isinstance(state, View) and state.one_position else frozenset()


def _fixed_kind(lifter: Lifter, node: gs.Node, states: Sequence[State], kinds: Sequence[str]) -> str:
    if "moment" in kinds:
        return "moment"
    if node.outputs[0].name in lifter.global_pools and node.op in AVERAGES | NORMS:
        about = kinds[0] == "power" or (kinds[0] == "deviation" and node.op in NORMS)
        return "moment" if about else "mean"
    alone = sum(not isinstance(state, Static) for state in states) == 1
    return "mean" if "mean" in kinds and alone and node.op in SHAPES | {"Mul", "Div", "Neg"} else ""


def _map_kind(node: gs.Node, states: Sequence[State], kinds: Sequence[str]) -> str:
    maps = [kind for kind, state in zip(kinds, states, strict=True) if isinstance(state, View)]
    if node.op == "Sub" and "mean" in kinds and len(maps) == 1:
        return "deviation"
    if not maps or not all(kind in ("deviation", "power") for kind in maps):
        return ""
    if node.op in ("Abs", "Pow") or (node.op == "Mul" and len(maps) > 1):
        return "power"
    return maps[0] if node.op in SHAPES | {"Mul", "Div", "Neg"} else ""


def check_outputs(lifter: Lifter) -> None:
    """Look for statistics of the whole map among the outputs.

    Raises:
        MeetsLargerMap: an output is a difference from a window's mean, or one of a window beside one of the map.
        Refuse: no output is left that depends on the position.
    """
    states = {tensor.name: lifter.state(tensor) for tensor in lifter.graph.outputs}
    for state in states.values():
        if isinstance(state, Centred):
            raise MeetsLargerMap(state.centre.pools)
    whole = [name for name in states if lifter.statistics.get(name) == "moment"]
    pooled = frozenset[str]().union(*map(_pools, states.values()))
    if whole and pooled:
        raise MeetsLargerMap(pooled)
    if whole and not any(isinstance(state, View | Parts) for state in states.values()):
        raise Refuse(
            "fcn/whole-map-statistic",
            f"output '{whole[0]}' is made of moments about the mean of the whole map that have no form per window",
        )
