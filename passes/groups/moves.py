"""The order of one space of channels, and what else must change its order for it.

    x ── grouped conv ── y        order of y   0 1 2 3 4 5  ->  4 5 0 1 3 2        groups of two: 2 0 1
                                  order of x   0 1 2 3 4 5  ->  4 5 0 1 2 3        the groups move on both sides

Within a group of a grouped convolution channels change places as they like. Where whole groups do, they do so on its
other side as well: that space gets a new order too, and so on, until a layer that is not grouped takes it over. Where
two such orders meet, they have to agree.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from convrewrite.passes.groups.absorb import along
from convrewrite.passes.groups.detection import Array
from convrewrite.passes.groups.neighbours import find_space
from convrewrite.passes.groups.network import Network
from convrewrite.passes.groups.spaces import Seam, Space, Stop


@dataclass
class Orders:
    """New orders of spaces of channels that go together.

    Attributes:
        owner: name of the output of the convolution that is being rewritten. changes: (space, index), where index[j]
            becomes channel j.
    """

    net: Network
    owner: str
    changes: list[tuple[Space, Array]] = field(default_factory=list)

    def of(self, tensor: str, count: int) -> Array | None:
        """The new order of a tensor; None where nothing has been said of it."""
        ranges = [(own, index) for space, index in self.changes for own in space.members.get(tensor, ())]
        return along(count, ranges) if ranges else None

    def touches(self, space: Space) -> bool:
        """Whether an order has been given to channels of a space."""
        return any(overlap(space, other) for other, _ in self.changes)

    def change(self, space: Space, index: Array) -> Stop | None:
        """Give a space a new order, with all that follows; None where that is possible. Nothing is undone if not."""
        orders = [(space, index)]
        seams: list[tuple[Seam, Array]] = []
        while orders or seams:
            if orders:
                space, index = orders.pop()
                stop = space.allows(index)
                if stop is not None:
                    return stop
                self.changes.append((space, index))
                seams += [(seam, index) for seam in reversed(space.seams)]
                continue
            follows = self._across(*seams.pop())
            if isinstance(follows, Stop):
                return follows
            if follows is not None:
                orders.append(follows)
        return None

    def _across(self, seam: Seam, index: Array) -> tuple[Space, Array] | Stop | None:
        """What a new order on one side of a grouped convolution means for its other side: an order for that, if any."""
        own = seam.range
        blocks = (index[own.start : own.start + own.size] - own.start).reshape(-1, seam.per) // seam.per
        if (blocks != blocks[:, :1]).any():
            return Stop("groups/tied-channels", f"the groups of the convolution that gives '{seam.anchor}' would mix")
        order = (blocks[:, :1] * seam.others + np.arange(seam.others)).ravel()
        known = self.of(seam.other, len(order))
        if known is not None:
            groups = known.reshape(-1, seam.others) // seam.others
            if np.array_equal(groups, np.broadcast_to(blocks[:, :1], groups.shape)):
                return None  # within the groups it may be any
            return Stop("groups/tied-channels", f"two orders meet in the convolution that gives '{seam.anchor}'")
        if np.array_equal(order, np.arange(len(order))):
            return None
        space = find_space(self.net, seam.other, len(order), self.owner)
        if self.touches(space):
            return Stop("groups/tied-channels", f"two orders meet in the convolution that gives '{seam.anchor}'")
        return space, order


def overlap(one: Space, other: Space) -> bool:
    """Whether two spaces have channels of some tensor in common."""
    for name, ranges in one.members.items():
        for a in ranges:
            if any(a.at < b.end and b.at < a.end for b in other.members.get(name, ())):
                return True
    return False
