"""Which groups a convolution could have within a tolerance, the fastest first, and what its weight is then.

    tol = 0      the components of its channel graph, packed
    tol > 0      the same, with the smallest kernels dropped; and for every N that divides the channels the N blocks
                 that keep the most energy, as long as what they lose stays within the tolerance
    into N       N groups and no other number

If N groups are out of reach then so are 2 N, since any 2 N can be merged to N: those are not looked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from convrewrite.engine import timemodel
from convrewrite.passes.groups.clustering import best_groups, error_of_layout
from convrewrite.passes.groups.detection import Array, structure
from convrewrite.passes.groups.packing import Layout, layouts

MOST = 4
"""Offers per convolution."""


@dataclass(frozen=True)
class Offer:
    """One layout, with the relative Frobenius error of the kernel in it."""

    layout: Layout
    error: float


def offers(
    norms: Array, taps: int, exact: float, tol: float = 0.0, into: int | None = None, group: int = 1
) -> list[Offer]:
    """What there is to choose from, the fastest first, all of it with fewer multiplications.

    Groups that there are already are divided further only where that should be faster, unless a number is asked for.

    Args:
        norms: kernel norms [O, I] of the dense convolution. taps: of a kernel. exact: what rounding costs.
        tol, into: bound on the error, and number of groups. group: what the convolution has now.
    """
    out, inputs = norms.shape
    limit = max(tol, exact)
    seen: dict[str, Offer] = {}
    now = timemodel.grouped(out // group, inputs // group, group, taps)
    for layout in (*_exact(norms, taps, exact, tol, into=into), *_approximate(norms, tol, into, group)):
        error = error_of_layout(norms, layout)
        if error > limit or layout.weights >= out * inputs // group:
            continue
        slower = layout.time(taps) >= now and group > 1 and into is None
        if slower or (str(layout) in seen and seen[str(layout)].error <= error):
            continue
        seen[str(layout)] = Offer(layout, error)
    ranked = sorted(seen.values(), key=lambda o: (o.layout.time(taps), o.layout.group_count, o.error))
    return ranked[:MOST]


def _exact(norms: Array, taps: int, exact: float, tol: float, into: int | None) -> Iterator[Layout]:
    yield from layouts(structure(norms, 0.0, exact), taps, into)
    if tol > exact:
        yield from layouts(structure(norms, tol, exact), taps, into)


def _approximate(norms: Array, tol: float, into: int | None, group: int) -> Iterator[Layout]:
    """The blocks that keep the most energy, for each number of groups that may be within the tolerance."""
    if tol <= 0:
        return
    out, inputs = norms.shape
    if into is not None:
        layout = best_groups(norms, into, group)
        if layout is not None:
            yield layout
        return
    failed: list[int] = []
    for groups in range(2 * group, math.gcd(out, inputs) + 1):
        if out % groups or inputs % groups or groups % group or any(groups % f == 0 for f in failed):
            continue
        layout = best_groups(norms, groups, group)
        if layout is None or error_of_layout(norms, layout) > tol:
            failed.append(groups)
        else:
            yield layout
