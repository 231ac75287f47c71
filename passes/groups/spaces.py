"""All places that share one order of channels: what must change together when the channels change places.

    stem ── x ──┬── conv A ── Relu ── conv B ── Add ── y ── conv C           the space of x:  x, y, what B gives
                └────────────────────────────── ┘                            rows of the stem and of B, columns of A, C

A space starts at one tensor and grows: an element-wise operator, a normalization, a pool or a depthwise convolution
hands on the order of its channels; a convolution or a Gemm ends it, with the rows of the one that makes the channels
and the columns of the ones that read them. A Concat makes a space of what it joins, in which channels may move within
one input only: the space is cut there. So it is at the groups of a grouped convolution. Flatten turns one channel into
several features, which move as one. What depends on the order otherwise (LRN, a Slice of channels, an output of the
model, an operator that is not known) stops it; the order of channels must then stay as it is.

    member of a space:   tensor[:, at + (c - start) * repeat + k]  =  channel c,   start <= c < start + size, k < repeat
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite.engine.graph import producer
from convrewrite.engine.operators import is_standard
from convrewrite.passes.groups.detection import Array
from convrewrite.passes.groups.network import Network


@dataclass(frozen=True)
class Range:
    """Where channels [start, start + size) of a space lie along an axis: from `at` on, `repeat` entries for each."""

    at: int
    start: int
    size: int
    repeat: int = 1

    @property
    def end(self) -> int:
        """The index behind the last entry."""
        return self.at + self.size * self.repeat

    @property
    def offset(self) -> int:
        """Two ranges along one axis agree on the channels of their entries if this and `repeat` are the same."""
        return self.at - self.start * self.repeat

    def moved(self, by: int) -> Range:
        """The same channels at another offset."""
        return replace(self, at=self.at + by)

    def clipped(self, low: int, high: int) -> Range | None:
        """What of it lies in [low, high), or None; channels that lie partly inside raise ValueError."""
        first, last = max(self.at, low), min(self.end, high)
        if first >= last:
            return None
        if (first - self.at) % self.repeat or (last - self.at) % self.repeat:
            raise ValueError("a channel lies on both sides")
        skipped = (first - self.at) // self.repeat
        return Range(first, self.start + skipped, (last - first) // self.repeat, self.repeat)

    def scaled(self, before: int, after: int) -> Range | None:
        """Where an axis of `before` channels becomes one of `after`, each made of several or several made of each."""
        if before and after % before == 0:
            factor = after // before
            return replace(self, at=self.at * factor, repeat=self.repeat * factor)
        if after and before % after == 0:
            factor = before // after
            if self.at % factor == 0 and self.repeat % factor == 0:
                return replace(self, at=self.at // factor, repeat=self.repeat // factor)
        return None


@dataclass(frozen=True)
class Edit:
    """Entries to choose along one axis of a constant input of a node.

    Attributes:
        grouped: within each row's own group. columns: the node reads the channels there and adds them up.
    """

    anchor: str
    input: int
    axis: int
    range: Range
    grouped: bool = False
    columns: bool = False


@dataclass(frozen=True)
class Seam:
    """A grouped convolution at the edge of a space: within a group channels move freely, groups only with their other
    side.

    Attributes:
        anchor: names it. tensor: of the space. range: the channels there, all of them. per: channels per group there.
        other, others: the tensor on its other side, and channels per group on that.
    """

    anchor: str
    tensor: str
    range: Range
    per: int
    other: str
    others: int


@dataclass(frozen=True)
class Stop:
    """Why the channels of a space cannot change places, as the code of a reason."""

    reason: str
    detail: str


@dataclass
class Space:
    """One order of channels.

    Attributes:
        size: channels. members: ranges by the name of a tensor. edits: what changes with the order.
        cuts: channels do not move across these. seams: groups move here together with those of the other side.
        stops: why they cannot move. rigid: why none can be left out.
    """

    size: int
    members: dict[str, list[Range]] = field(default_factory=dict)
    edits: list[Edit] = field(default_factory=list)
    cuts: set[int] = field(default_factory=set)
    seams: list[Seam] = field(default_factory=list)
    stops: list[Stop] = field(default_factory=list)
    rigid: list[Stop] = field(default_factory=list)

    def allows(self, index: Array) -> Stop | None:
        """None if channel index[j] may become channel j, for all j; else why not."""
        if np.array_equal(index, np.arange(self.size)):
            return None
        if self.stops:
            return self.stops[0]
        bounds = sorted(self.cuts | {0, self.size})
        for low, high in itertools.pairwise(bounds):
            own = index[low:high]
            if len(own) and (own.min() < low or own.max() >= high):
                return Stop("groups/tied-channels", f"channels {low} to {high - 1} have to stay together")
        return None


class Search:
    """The traversal; what the operators mean for it is in `neighbours`."""

    def __init__(self, net: Network, owner: str, makers: Mapping[str, Made], readers: Mapping[str, Read]) -> None:
        self.net = net
        self.owner = owner
        self._makers, self._readers = makers, readers
        self.space = Space(0)
        self.queue: deque[tuple[str, Range]] = deque()

    def run(self, tensor: str, size: int) -> Space:
        """The space that starts at a tensor of that many channels."""
        self.space.size = size
        self.add(tensor, Range(0, 0, size))
        while self.queue and not any(s.reason == "groups/tied-channels" for s in self.space.stops):
            name, own = self.queue.popleft()
            self.made(self.net.tensors[name], own)
            for reader in self.net.readers.get(name, ()):
                self.read(reader, self.net.tensors[name], own)
        return self.space

    # What the traversal of the operators (`neighbours`) says ----------------------------------------------------------

    def add(self, tensor: str, own: Range | None) -> None:
        """A tensor belongs to the space; None where it does but not with whole channels."""
        if own is None:
            self.stop("groups/unknown-shape", f"how channels run into '{tensor}'")
            return
        for known in self.space.members.get(tensor, ()):
            if known.at < own.end and own.at < known.end:
                agree = (known.offset, known.repeat) == (own.offset, own.repeat)
                if not agree or own.at < known.at or own.end > known.end:
                    self.stop("groups/tied-channels", f"'{tensor}' is reached in two orders")
                return
        self.space.members.setdefault(tensor, []).append(own)
        self.space.cuts |= {own.start, own.start + own.size}
        self.queue.append((tensor, own))

    def edit(self, node: gs.Node, position: int, axis: int, own: Range) -> None:
        """A constant input of a node changes with the order."""
        self.space.edits.append(Edit(self.net.anchor(node), position, axis, own))

    def columns(self, node: gs.Node, axis: int, own: Range, grouped: bool = False) -> None:
        """The weight of a node reads the channels along an axis."""
        self.space.edits.append(Edit(self.net.anchor(node), 1, axis, range=own, grouped=grouped, columns=True))

    def seam(self, node: gs.Node, made: bool, own: Range, per: int, others: int) -> None:
        """A grouped convolution that makes or reads the range, with so many channels per group on its two sides."""
        tensor, other = node.inputs[0].name, node.outputs[0].name
        if made:
            tensor, other = other, tensor
        if own.at == 0 and own.repeat == 1 and own.size == per * int(node.attrs["group"]):
            self.space.seams.append(Seam(self.net.anchor(node), tensor, own, per=per, other=other, others=others))
        else:
            self.cut(own, per)

    def cut(self, own: Range, every: int) -> None:
        """Channels do not move across multiples of `every` along the axis that the range lies on."""
        for position in range(-(-own.at // every) * every, own.end + 1, every):
            if (position - own.at) % own.repeat:
                self.stop("groups/tied-channels", "a group holds a part of a channel")
                return
            self.space.cuts.add(own.start + (position - own.at) // own.repeat)

    def stop(self, reason: str, detail: str) -> None:
        """The reason why the channels cannot change places."""
        self.space.stops.append(Stop(reason, detail))
        self.space.rigid.append(Stop(reason, detail))

    def keep(self, detail: str) -> None:
        """The channels may change places, but none may be left out."""
        self.space.rigid.append(Stop("groups/dead-kept", detail))

    def made(self, tensor: gs.Tensor, own: Range) -> None:
        """Follow a tensor to the node that computes it."""
        node = producer(tensor)
        if self.net.is_public(tensor):
            self.stop("groups/public-order", f"'{tensor.name}' is an input or an output of the model")
        if self.net.is_captured(tensor):
            self.stop("groups/order-fixed", f"a subgraph reads '{tensor.name}'")
        if node is None:
            return
        if self.net.anchor(node) == self.owner:
            return
        handler = self._makers.get(node.op) if self._is_known(node) else None
        if handler is None or tensor is not node.outputs[0]:
            self.stop("groups/order-fixed", self.net.label(node))
        else:
            handler(self, node, own)

    def read(self, node: gs.Node, tensor: gs.Tensor, own: Range) -> None:
        """Follow a tensor to a node that reads it."""
        positions = [p for p, t in enumerate(node.inputs) if t is tensor]
        if self.net.anchor(node) == self.owner and positions == [0]:
            return
        handler = self._readers.get(node.op) if self._is_known(node) else None
        for position in positions:
            if handler is None:
                self.stop("groups/order-fixed", self.net.label(node))
            else:
                handler(self, node, position, own)

    def _is_known(self, node: gs.Node) -> bool:
        """Whether it is an operator of ONNX of which no further output is used."""
        return is_standard(node) and not any(t.outputs or self.net.is_public(t) for t in node.outputs[1:])


Made = Callable[[Search, gs.Node, Range], None]
Read = Callable[[Search, gs.Node, int, Range], None]
