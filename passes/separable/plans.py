"""Which forms and ranks a convolution could take, what each costs, and from which tolerance on one would pay.

for each form          the smallest ranks within the tolerance, and within a half, a quarter ... a 128th of it
a rank of 33           is offered as 48 too, where that takes no more blocks of channels: more accurate, as fast
ranked by              time as `geometry.cost` sees it; all that is ever built is the plan that is accepted
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from convrewrite.engine.convsite import rounding
from convrewrite.engine.timemodel import BLOCK
from convrewrite.passes.separable.decomposition import Decomposition, answers
from convrewrite.passes.separable.factors import Rank, Stage
from convrewrite.passes.separable.forms import decompositions
from convrewrite.passes.separable.geometry import Cells, Cost, cost
from convrewrite.passes.separable.placing import cells_of
from convrewrite.passes.separable.site import LayerSite

RUNGS = tuple(2.0**-step for step in range(8))
"""Shares of the tolerance at which plans are offered: whoever bounds the error of the whole model may want less."""

COARSE = 1e-3
"""Below this tolerance, a kernel for which no rank saves anything is not looked at for how little one could lose."""

FEW = 24
"""Ranks of one form that are looked at: of pairs of ranks, evenly spread ones."""


@dataclass(frozen=True)
class Option:
    """One form at one rank.

    Attributes:
        decomposition, rank: which. error: relative Frobenius error of the kernel. cost: on the site's map.
    """

    decomposition: Decomposition
    rank: Rank
    error: float
    cost: Cost

    def __str__(self) -> str:
        ranks = " and ".join(map(str, self.rank))
        return f"{self.decomposition.name}, rank {ranks}"


@dataclass(frozen=True)
class Offers:
    """What there is to choose from.

    Attributes:
        before: cost of the convolution as it is. options: within the tolerance, the fastest first.
        tol_pays, tol_halves: the smallest errors at which some form has fewer MACs, and half of them, or None.
    """

    before: Cost
    options: tuple[Option, ...]
    tol_pays: float | None
    tol_halves: float | None


def offers(site: LayerSite, tol: float, forms: Collection[str], batch: int = 1) -> Offers | None:
    """Forms and ranks for a layer on its map, or on so many vectors; None where no form fits its kernel."""
    found = [_Priced(made, site, batch) for made in decompositions(site.weight, site.group, forms)]
    if not found:
        return None
    whole = (Stage(*site.channels, site.kernel, site.group),)
    before = cost((whole,), cells_of(site, whole), batch)
    limit = max(tol, rounding(site.dtype))
    if site.layer is None:
        told = answers(found, lambda priced: priced.told(limit, before.macs))
    else:  # one form, of a matrix that may be large: the threads of the linear algebra serve it better
        told = [priced.told(limit, before.macs) for priced in found]
    options = [option for one in told for option in one.options]
    options.sort(key=lambda option: (option.cost.time, option.error, option.decomposition.name, option.rank))
    if not options:
        options = [min((priced.costlier(limit) for priced in found), key=lambda option: option.cost.time)]
    pays = [error for one in told for error in one.pays]
    halves = [error for one in told for error in one.halves]
    return Offers(before, tuple(_pareto(options)), min(pays, default=None), min(halves, default=None))


@dataclass(frozen=True)
class _Told:
    """What one form has to offer: options, and the errors from which on it pays and halves the cost."""

    options: list[Option]
    pays: list[float]
    halves: list[float]


@dataclass(frozen=True)
class _Priced:
    """One form of a site's kernel, with what its ranks cost."""

    decomposition: Decomposition
    site: LayerSite
    batch: int

    def cost(self, rank: Rank) -> Cost:
        """The cost of the chains of this rank."""
        return cost(self.decomposition.layout(rank), self._cells, self.batch)

    @cached_property
    def _cells(self) -> list[Cells]:
        return cells_of(self.site, self.decomposition.layout(self.decomposition.full)[0])

    def told(self, limit: float, macs: int) -> _Told:
        """All of it, for a convolution of so many MACs."""
        return _Told(list(self.options(limit, macs)), self.errors(macs - 1), self.errors(macs // 2))

    def option(self, rank: Rank) -> Option:
        """One plan to choose from."""
        return Option(self.decomposition, rank, self.decomposition.error(rank), self.cost(rank))

    def options(self, limit: float, macs: int) -> Iterator[Option]:
        """Within the tolerance, with fewer MACs than the convolution has; without repetition."""
        exact, seen = rounding(self.site.dtype), set()
        for rung in RUNGS:
            if rung < 1.0 and rung * limit <= exact:
                break
            ranks = self.decomposition.smallest(rung * limit, self._fits(macs - 1))
            if not ranks:
                break
            for rank in _few(ranks):
                found = [self.option(rank)]
                if min(self.site.channels) >= BLOCK and found[0].error > exact:
                    found.insert(0, self.option(_filled(rank, self.decomposition.full)))
                for option in found:
                    if option.rank not in seen and option.cost.macs < macs:
                        seen.add(option.rank)
                        yield option

    def costlier(self, limit: float) -> Option:
        """What there is within the tolerance although it has no fewer MACs."""
        ranks = self.decomposition.smallest(limit) if limit >= COARSE else [self.decomposition.full]
        return min(map(self.option, _few(ranks)), key=lambda option: option.cost.time)

    def errors(self, macs: int) -> list[float]:
        """The errors of the largest ranks with so many MACs at most."""
        return [self.decomposition.error(rank) for rank in _few(self.decomposition.largest(self._fits(macs)))]

    def _fits(self, macs: int) -> Callable[[Rank], bool]:
        return lambda rank: self.cost(rank).macs <= macs


def _filled(rank: Rank, full: Rank) -> Rank:
    """The rank with its last block of channels filled up; as it is where it fills less than one."""
    return tuple(min(-(-r // BLOCK) * BLOCK, most) if r >= BLOCK else r for r, most in zip(rank, full, strict=True))


def _few(ranks: Sequence[Rank]) -> Sequence[Rank]:
    step = -(-len(ranks) // FEW) or 1
    return ranks[::step]


def _pareto(options: Sequence[Option]) -> Iterator[Option]:
    """The options, sorted by time, that are more accurate than every faster one, or have fewer MACs."""
    for index, option in enumerate(options):
        faster = itertools.islice(options, index)
        if not any(o.error <= option.error and o.cost.macs <= option.cost.macs for o in faster):
            yield option
