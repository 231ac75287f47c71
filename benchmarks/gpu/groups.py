"""`groups`: nets with planted blocks under permutations, so that the pass finds groups, and their shape counts."""

from __future__ import annotations

from benchmarks.gpu.traded import Traded
from benchmarks.groups import Net
from convrewrite.passes.groups import Groups

NAME = "groups"
MODEL = "blocks"
"""What `--models` calls all of them together."""
SHARE = 0.3

NETS = (
    Net("sequential", 128, 2, 56),
    Net("sequential", 256, 8, 28),
    Net("residual", 256, 4, 28),
    Net("inception", 256, 4, 28),
)
QUICK_NETS = (Net("residual", 32, 2, 14),)


def works(quick: bool) -> list[Traded]:
    """All of it."""
    return [Traded(Groups(), MODEL, net.label, net.model, SHARE) for net in (QUICK_NETS if quick else NETS)]
