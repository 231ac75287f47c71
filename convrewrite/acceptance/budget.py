"""A closed loop: rewrite as much as the model's outputs can bear.

    all sites     error of the outputs within the bound?  ->  done
    one by one    the site that saves the most multiply-accumulates per error of its kernel first; it stays if the
                  outputs stay within the bound, else at a half, a quarter, ... of its error, else it is left alone

What is measured is the whole rewritten model on real or seeded inputs, after each step: errors of layers do not add up
in any way that could be foretold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from convrewrite.acceptance.judges import OVER_BUDGET
from convrewrite.engine.rewrite import Declined, Judge, PassResult, Plan, Site

SHARES = tuple(2.0**-step for step in range(8))
"""Of a site's error, tried in this order."""

SLACK = 1.01
"""Factors that are fitted to the network before them change a little with it."""


@dataclass(frozen=True)
class _Bounded:
    """Accepts what `judge` accepts at the sites in `bounds`, up to the error given there."""

    judge: Judge
    bounds: Mapping[str, float]
    refused: Mapping[str, str]

    def __call__(self, graph: gs.Graph, plan: Plan) -> Declined | None:
        anchor = plan.sites[0].anchor
        if anchor not in self.bounds:
            return Declined(OVER_BUDGET, self.refused.get(anchor, plan.sites[0].detail))
        if plan.sites[0].error > SLACK * self.bounds[anchor]:
            return Declined(OVER_BUDGET, f"a kernel error of {plan.sites[0].error:.1e} is too large there")
        return self.judge(graph, plan)


def within(
    run: Callable[[Judge], PassResult],
    judge: Judge,
    error_of: Callable[[PassResult], float],
    limit: float,
) -> PassResult:
    """Accept sites while the error of the model's outputs stays within `limit`.

    Args:
        run: runs the pass with a judge. judge: what is worth it at all. error_of: the largest error of an output.
    """
    everything = run(judge)
    wanted = everything.outcome("rewritten")
    if not wanted or error_of(everything) <= limit:
        return everything
    bounds: dict[str, float] = {}
    refused: dict[str, str] = {}
    best = run(_Bounded(judge, bounds, refused))
    for site in sorted(wanted, key=_rank):
        for share in SHARES:
            trial = run(_Bounded(judge, {**bounds, site.anchor: share * site.error}, refused))
            if not any(made.anchor == site.anchor for made in trial.outcome("rewritten")):
                break
            error = error_of(trial)
            if error <= limit:
                bounds[site.anchor], best = share * site.error, trial
                break
            refused[site.anchor] = f"{site.detail}: the outputs' error would be {error:.1e}, the bound is {limit:.1e}"
    return best if not refused else run(_Bounded(judge, bounds, refused))


def _rank(site: Site) -> tuple[float, str]:
    """The most saved per error first; names settle what is equal."""
    saved = (site.macs_before or 0) - (site.macs_after or 0)
    return (-(saved / site.error) if site.error else -math.inf), site.anchor
