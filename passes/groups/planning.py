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
from dataclasses import dataclass, replace

import numpy as np

from convrewrite.engine import timemodel
from convrewrite.engine.convsite import ConvSite, rounding
from convrewrite.passes.groups.absorb import takes
from convrewrite.passes.groups.detection import Array
from convrewrite.passes.groups.emission import Grouping
from convrewrite.passes.groups.moves import Orders
from convrewrite.passes.groups.neighbours import find_space
from convrewrite.passes.groups.network import Network
from convrewrite.passes.groups.offers import Offer
from convrewrite.passes.groups.packing import Layout, by_inputs, by_outputs
from convrewrite.passes.groups.spaces import Space, Stop

ORDERS: tuple[Callable[[Layout], Layout], ...] = (by_inputs, by_outputs)


@dataclass(frozen=True)
class Fitting:
    """One offer with its place in the graph. time: per cell of the output, gathers included."""

    offer: Offer
    grouping: Grouping
    time: int


@dataclass(frozen=True)
class _Sides:
    """The spaces of channels on both sides of a convolution; they may be one."""

    source: Space
    target: Space


def fit(net: Network, site: ConvSite, found: Sequence[Offer]) -> list[Fitting] | Stop:
    """The offers that save more than their gathers cost, the fastest first; or what stands in their way."""
    out, inputs = site.channels
    sides = _Sides(find_space(net, site.data, inputs, site.anchor), find_space(net, site.anchor, out, site.anchor))
    now = timemodel.grouped(out // site.group, inputs // site.group, site.group, site.taps)
    read = inputs * math.prod(site.attrs.get("strides") or (1,))
    fitting: list[Fitting] = []
    reason: Stop | None = None
    for offer in found:
        grouping, stop = min(_groupings(net, site, sides, offer.layout), key=lambda pair: pair[0].gathers)
        gathered = (read if grouping.gather_inputs is not None else 0) + (
            out if grouping.gather_outputs is not None else 0
        )
        time = offer.layout.time(site.taps) + timemodel.TRAFFIC * gathered
        if gathered and time >= now:
            reason = reason or stop
        else:
            approximate = offer.error > rounding(site.weight.dtype)
            fitting.append(Fitting(offer, replace(grouping, approximate=approximate), time))
    if not fitting and reason is not None:
        return reason
    return sorted(fitting, key=lambda f: (f.time, f.offer.layout.group_count))


def _groupings(net: Network, site: ConvSite, sides: _Sides, layout: Layout) -> Iterator[tuple[Grouping, Stop | None]]:
    """Ways to put one layout into the graph, each with the first thing that keeps it from being absorbed."""
    for order in ORDERS:
        ordered = order(layout)
        for output_leads in (False, True):
            yield _settled(net, site, sides, ordered, output_leads=output_leads)


def _settled(
    net: Network, site: ConvSite, sides: _Sides, layout: Layout, output_leads: bool
) -> tuple[Grouping, Stop | None]:
    """The layout with its order absorbed on as many sides as can be, one of them first."""
    out, inputs = site.channels
    wanted = [(sides.source, site.data, layout.inputs), (sides.target, site.anchor, layout.outputs)]
    changes: list[tuple[Space, Array]] = []
    stop: Stop | None = None
    for space, tensor, index in reversed(wanted) if output_leads else wanted:
        attempt = Orders(net, site.anchor, list(changes))
        if attempt.of(tensor, len(index)) is not None:
            continue  # the other side has given it an order
        if attempt.touches(space):
            why: Stop | None = Stop("groups/tied-channels", f"both sides of {site.label} share channels")
        else:
            why = attempt.change(space, index)
        if why is None:
            changes = attempt.changes
        stop = stop or why
    orders = Orders(net, site.anchor, changes)
    have, want = orders.of(site.data, inputs), orders.of(site.anchor, out)
    gathers = (
        _lookup(np.arange(inputs) if have is None else have, layout.inputs),
        _lookup(layout.outputs, np.arange(out) if want is None else want),
    )
    if stop is None and any(index is not None for index in gathers):
        stop = Stop("groups/tied-channels", f"what {site.label} reads and gives has one order of channels")
    moved = [(space, index) for space, index in changes if not np.array_equal(index, np.arange(space.size))]
    return Grouping(site.anchor, layout, takes(net, moved), *gathers), stop


def _lookup(have: Array, want: Array) -> Array | None:
    """Where each wanted channel is in what there is; None where all are in place."""
    if np.array_equal(have, want):
        return None
    where = np.empty(int(have.max()) + 1, int)
    where[have] = np.arange(len(have))
    index: Array = where[want]
    return index
