"""How the new order of a convolution's channels gets into the graph: absorbed on both sides, or gathered where it pays.

    order of x           conv reads          conv gives           order of y
    absorbed: changed    the layout's        the layout's         absorbed: changed
    else: as it was      through a Gather    through a Gather     else: as it was

Where x and y share one space of channels, as around a residual Add, they have one order: the layout must have the same
on both sides, or a Gather stands on one of them. A Gather writes and reads every channel, which costs about as much as
TRAFFIC multiply-accumulates for each; where that is more than the groups save, the convolution is left alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from convrewrite.passes.groups.absorb import along, takes
from convrewrite.passes.groups.detection import Array
from convrewrite.passes.groups.emission import Grouping
from convrewrite.passes.groups.neighbours import find_space
from convrewrite.passes.groups.network import Network
from convrewrite.passes.groups.offers import Offer
from convrewrite.passes.groups.packing import TRAFFIC, Layout, by_inputs, by_outputs, part_time
from convrewrite.passes.groups.site import ConvSite
from convrewrite.passes.groups.spaces import Range, Space, Stop

ORDERS: tuple[Callable[[Layout], Layout], ...] = (by_inputs, by_outputs)


@dataclass(frozen=True)
class Fitting:
    """One offer with its place in the graph. time: per cell of the output, gathers included."""

    offer: Offer
    grouping: Grouping
    time: int


@dataclass(frozen=True)
class _Sides:
    """The channels on both sides of a convolution, and why they would not move."""

    source: Space
    target: Space
    shared: bool


def fit(net: Network, site: ConvSite, found: Sequence[Offer]) -> list[Fitting] | Stop:
    """The offers that save more than their gathers cost, the fastest first; or what stands in their way."""
    out, inputs = site.channels
    source = find_space(net, site.data, inputs, site.anchor)
    target = find_space(net, site.anchor, out, site.anchor)
    sides = _Sides(source, target, _overlap(source, target))
    now = part_time(out // site.group, inputs // site.group, site.group, site.taps)
    read = inputs * math.prod(site.attrs.get("strides") or (1,))
    fitting: list[Fitting] = []
    reason: Stop | None = None
    for offer in found:
        grouping, stop = min(_groupings(net, site, sides, offer.layout), key=lambda pair: pair[0].gathers)
        gathered = (read if grouping.gather_inputs is not None else 0) + (
            out if grouping.gather_outputs is not None else 0
        )
        time = offer.layout.time(site.taps) + TRAFFIC * gathered
        if gathered and time >= now:
            reason = reason or stop
        else:
            fitting.append(Fitting(offer, grouping, time))
    if not fitting and reason is not None:
        return reason
    return sorted(fitting, key=lambda f: (f.time, f.offer.layout.group_count))


def _groupings(net: Network, site: ConvSite, sides: _Sides, layout: Layout) -> Iterator[tuple[Grouping, Stop | None]]:
    """Ways to put one layout into the graph, each with the first thing that keeps it from being absorbed."""
    for order in ORDERS:
        ordered = order(layout)
        yield _settled(net, site, sides, ordered)
        if sides.shared:
            yield _settled(net, site, sides, ordered, output_leads=True)


def _settled(
    net: Network, site: ConvSite, sides: _Sides, layout: Layout, output_leads: bool = False
) -> tuple[Grouping, Stop | None]:
    out, inputs = site.channels
    have, want = np.arange(inputs), np.arange(out)
    changes: list[tuple[Space, Array]] = []
    stop: Stop | None = None
    if output_leads:
        stop = sides.target.allows(layout.outputs)
        if stop is None:
            changes.append((sides.target, layout.outputs))
            want = layout.outputs
            have = along(inputs, _ranges(sides.target, site.data, layout.outputs))
    else:
        stop = sides.source.allows(layout.inputs)
        if stop is None:
            changes.append((sides.source, layout.inputs))
            have = layout.inputs
            want = along(out, _ranges(sides.source, site.anchor, layout.inputs))
        if not sides.shared:
            other = sides.target.allows(layout.outputs)
            stop = stop or other
            if other is None:
                changes.append((sides.target, layout.outputs))
                want = layout.outputs
    changes = [(space, index) for space, index in changes if not np.array_equal(index, np.arange(space.size))]
    gathers = _lookup(have, layout.inputs), _lookup(layout.outputs, want)
    if sides.shared and stop is None and any(index is not None for index in gathers):
        stop = Stop("groups/tied-channels", f"what {site.label} reads and gives has one order of channels")
    return Grouping(site.anchor, layout, takes(net, changes), *gathers), stop


def _ranges(space: Space, tensor: str, index: Array) -> list[tuple[Range, Array]]:
    return [(own, index) for own in space.members.get(tensor, ())]


def _lookup(have: Array, want: Array) -> Array | None:
    """Where each wanted channel is in what there is; None where all are in place."""
    if np.array_equal(have, want):
        return None
    where = np.empty(int(have.max()) + 1, int)
    where[have] = np.arange(len(have))
    index: Array = where[want]
    return index


def _overlap(one: Space, other: Space) -> bool:
    """Whether two spaces have channels of some tensor in common."""
    for name, ranges in one.members.items():
        for a in ranges:
            if any(a.at < b.end and b.at < a.end for b in other.members.get(name, ())):
                return True
    return False
