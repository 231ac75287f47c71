"""From components to convolutions: equal groups for one grouped Conv, or the cheapest set of convs of unequal ones.

    components   4x4  2x2  2x2  4x4  4x4                     one Conv of 4 groups of 4x4:  the 2x2 share one
    components   8x8  2x2  2x2                               Conv 8x8 beside a Conv of 2 groups of 2x2
    components   48 of 1x1                                   3 groups of 16x16: fewer, fatter groups may be faster

A grouped Conv needs groups of one shape [O/g, I/g]. Components smaller than that share a group, and dead channels fill
what is left. Channels are computed in blocks of 16, so the cost of a group is that of its channels rounded up:

    time of a part  ~  g * blocks(O/g) * blocks(I/g) * taps,      blocks(c) = 16 * ceil(c / 16)

but for depthwise convolutions, which have an inner loop of their own. Where several convs stand side by side, their
inputs are split off and their outputs joined again, which costs as much as writing and reading those channels.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from convrewrite.engine import timemodel
from convrewrite.passes.groups.detection import Array, Component, Structure
from convrewrite.text import counted

Room = tuple[int, int]
"""Output and input channels: of a component, or what a group may still hold."""

SEARCH = 20_000
"""Steps after which the search for equal groups gives up."""

KINDS = 24
"""Shapes of components that are told apart where convs of unequal groups are looked for."""


@dataclass(frozen=True)
class Part:
    """One convolution: groups of one shape, in order."""

    groups: tuple[Component, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of output and input channels per group."""
        return self.groups[0].shape

    @property
    def channels(self) -> tuple[int, int]:
        """The numbers of output and input channels of the whole part."""
        out, inputs = self.shape
        return out * len(self.groups), inputs * len(self.groups)

    def time(self, taps: int) -> int:
        """Per cell of the output, in a unit that ranks layouts by their time."""
        return timemodel.grouped(*self.shape, len(self.groups), taps)

    @property
    def weights(self) -> int:
        """Kernels, which is parameters and MACs per tap."""
        out, inputs = self.shape
        return out * inputs * len(self.groups)


@dataclass(frozen=True)
class Layout:
    """What a convolution becomes: one part, or several side by side."""

    parts: tuple[Part, ...]

    @cached_property
    def outputs(self) -> Array:
        """The old output channels in their new order."""
        return np.concatenate([group.outputs for part in self.parts for group in part.groups])

    @cached_property
    def inputs(self) -> Array:
        """The old input channels in their new order."""
        return np.concatenate([group.inputs for part in self.parts for group in part.groups])

    @property
    def weights(self) -> int:
        """The number of weights of all parts."""
        return sum(part.weights for part in self.parts)

    @property
    def group_count(self) -> int:
        """The number of groups of all parts."""
        return sum(len(part.groups) for part in self.parts)

    def mask(self, out: int, inputs: int) -> Array:
        """Which kernels of the dense convolution [O, I] are kept."""
        kept = np.zeros((out, inputs), bool)
        for part in self.parts:
            for group in part.groups:
                kept[np.ix_(group.outputs, group.inputs)] = True
        return kept

    def time(self, taps: int) -> int:
        """Per cell of the output, in a unit that ranks layouts by their time."""
        own = sum(part.time(taps) for part in self.parts)
        return own + (timemodel.TRAFFIC * sum(sum(part.channels) for part in self.parts) if len(self.parts) > 1 else 0)

    def __str__(self) -> str:
        return " beside ".join(
            f"{counted(len(part.groups), 'group')} of {part.shape[0]}x{part.shape[1]}"
            if len(part.groups) > 1
            else f"{part.shape[0]}x{part.shape[1]}"
            for part in self.parts
        )


def by_inputs(layout: Layout) -> Layout:
    """The layout with its groups in the order of their first input channels, and its parts likewise."""
    return _sorted(layout, lambda group: int(group.inputs.min()))


def by_outputs(layout: Layout) -> Layout:
    """The layout with its groups in the order of their first output channels, and its parts likewise."""
    return _sorted(layout, lambda group: int(group.outputs.min()))


def _sorted(layout: Layout, key: Callable[[Component], int]) -> Layout:
    parts = (Part(tuple(sorted(part.groups, key=key))) for part in layout.parts)
    return Layout(tuple(sorted(parts, key=lambda part: key(part.groups[0]))))


def layouts(found: Structure, taps: int, into: int | None = None) -> list[Layout]:
    """What the components allow, the fastest first; none where they allow nothing but one dense convolution.

    Args:
        found: the components. taps: of a kernel. into: this number of groups and no other.
    """
    if into is not None:
        equal = equal_groups(found, into)
        return [] if equal is None else [by_inputs(equal)]
    made = [layout for g in group_counts(found) if (layout := equal_groups(found, g)) is not None]
    unequal = unequal_groups(found, taps)
    if unequal is not None:
        made.append(unequal)
    made = [by_inputs(layout) for layout in made]
    return sorted(made, key=lambda layout: (layout.time(taps), layout.group_count))


def group_counts(found: Structure) -> list[int]:
    """Numbers of groups that divide the channels and that there are components for."""
    out, inputs = found.channels
    most = min(len(found.components), math.gcd(out, inputs))
    return [g for g in range(2, most + 1) if out % g == 0 and inputs % g == 0]


def equal_groups(found: Structure, groups: int) -> Layout | None:
    """The components in that many groups of one shape, dead channels filling them up; None where they do not fit."""
    out, inputs = found.channels
    if out % groups or inputs % groups or len(found.components) < 1:
        return None
    bins = pack([c.shape for c in found.components], groups, (out // groups, inputs // groups))
    if bins is None:
        return None
    dead_outputs, dead_inputs = list(found.dead_outputs), list(found.dead_inputs)
    made = []
    for members in bins:
        own_outputs = [c for m in members for c in found.components[m].outputs]
        own_inputs = [c for m in members for c in found.components[m].inputs]
        missing = out // groups - len(own_outputs), inputs // groups - len(own_inputs)
        own_outputs += [dead_outputs.pop(0) for _ in range(missing[0])]
        own_inputs += [dead_inputs.pop(0) for _ in range(missing[1])]
        made.append(Component(np.sort(np.array(own_outputs, int)), np.sort(np.array(own_inputs, int))))
    return Layout((Part(tuple(made)),))


def pack(shapes: Sequence[Room], count: int, room: Room) -> list[list[int]] | None:
    """Components by number in `count` bins that hold at most `room` outputs and inputs each, or None.

    Bin after bin, the largest component that is left goes first; a step that leads nowhere is taken back.
    """
    kinds = Counter(shapes)
    order = sorted(kinds, key=lambda s: (-(s[0] + s[1]), s))
    slack = (count * room[0] - sum(s[0] for s in shapes), count * room[1] - sum(s[1] for s in shapes))
    if min(slack) < 0 or not all(_fits(s, room) for s in order):
        return None
    steps = 0

    def fillings(left: Room, spare: Room) -> Iterator[list[Room]]:
        """What else one bin may hold, the fullest first, wasting no more than there are dead channels for."""
        nonlocal steps
        taken: list[Room] = []
        path = [(0, left)]
        while path:
            start, left = path.pop()
            fitting = (i for i in range(start, len(order)) if kinds[order[i]] and _fits(order[i], left))
            index = next(fitting, None)
            if index is None:
                if _fits(left, spare):
                    yield list(taken)
                if taken:
                    kinds[taken.pop()] += 1
                continue
            steps += 1
            if steps > SEARCH:
                return
            kind = order[index]
            kinds[kind] -= 1
            taken.append(kind)
            path += [(index + 1, left), (index, _less(left, kind))]

    bins: list[_Bin] = []
    while (first := next((kind for kind in order if kinds[kind]), None)) is not None:
        spare = bins[-1].spare if bins else slack
        if len(bins) < count:
            kinds[first] -= 1
            bins.append(_Bin(first, fillings(_less(room, first), spare), slack=spare))
        while (rest := next(bins[-1].fillings, None)) is None:
            kinds[bins.pop().first] += 1
            if not bins or steps > SEARCH:
                return None
        bins[-1].fill(rest, room)
    left: dict[Room, list[int]] = {}
    for number, shape in enumerate(shapes):
        left.setdefault(shape, []).append(number)
    used = [one.used for one in bins]
    return [[left[kind].pop(0) for kind in kinds] for kinds in (*used, *[[]] * (count - len(used)))]


@dataclass
class _Bin:
    """One bin of a search: what it holds, the ways to fill it that are left, and the channels that may be wasted."""

    first: Room
    fillings: Iterator[list[Room]]
    slack: Room
    spare: Room = (0, 0)
    used: list[Room] = field(default_factory=list)

    def fill(self, rest: Sequence[Room], room: Room) -> None:
        """Hold the first component and these, in a bin of that room."""
        self.used = [self.first, *rest]
        held = (sum(kind[0] for kind in self.used), sum(kind[1] for kind in self.used))
        self.spare = _less(self.slack, _less(room, held))


def _fits(shape: Room, room: Room) -> bool:
    return shape[0] <= room[0] and shape[1] <= room[1]


def _less(room: Room, shape: Room) -> Room:
    return room[0] - shape[0], room[1] - shape[1]


def unequal_groups(found: Structure, taps: int) -> Layout | None:
    """The cheapest convs side by side, each of components of neighbouring shapes; None where there is but one."""
    kinds = sorted({c.shape for c in found.components}, key=lambda s: (s[0] * s[1], s))
    if len(found.components) < 2 or len(kinds) > KINDS:
        return None
    best: list[tuple[int, tuple[Part, ...]]] = [(0, ())]
    for end in range(1, len(kinds) + 1):
        options = []
        for start in range(end):
            members = [c for c in found.components if c.shape in kinds[start:end]]
            part = _cheapest(members, taps)
            cost, parts = best[start]
            own = part.time(taps) + timemodel.TRAFFIC * sum(part.channels)
            options.append((cost + own, (*parts, part)))
        best.append(min(options, key=lambda option: option[0]))
    parts = best[-1][1]
    if len(parts) < 2:
        return None
    return Layout((_filled(parts[0], found), *parts[1:]))


def _cheapest(members: Sequence[Component], taps: int) -> Part:
    """One Conv of those components, with as many groups as make it fastest."""
    outputs, inputs = (np.concatenate([getattr(c, name) for c in members]) for name in ("outputs", "inputs"))
    own = Structure(
        (len(outputs), len(inputs)), tuple(members), np.zeros(0, int), dead_inputs=np.zeros(0, int), error=0.0
    )
    made = [layout.parts[0] for g in (1, *group_counts(own)) if (layout := equal_groups(own, g)) is not None]
    return min(made, key=lambda part: part.time(taps))


def _filled(part: Part, found: Structure) -> Part:
    """The part with the dead channels in it: as one group of their own shape they would not fit beside the others."""
    if not len(found.dead_outputs) and not len(found.dead_inputs):
        return part
    outputs = np.sort(np.concatenate([*(g.outputs for g in part.groups), found.dead_outputs]))
    inputs = np.sort(np.concatenate([*(g.inputs for g in part.groups), found.dead_inputs]))
    return Part((Component(outputs, inputs),))
