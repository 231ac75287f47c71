"""What the tests of the GPU benchmark take for measured: one timing, one verification."""

from __future__ import annotations

from dataclasses import replace

from convrewrite.timing import Cell, Comparison, Cost, Estimate
from convrewrite.verification.verdicts import Case, Verification


def cell(**changes) -> Cell:
    one = Estimate(1.0, 0.99, 1.01, 5)
    comparison = Comparison(
        speedup=Estimate(15.4, 15.1, 15.8, 5),
        control=one,
        p=0.004,
        verdict="faster",
        sets=5,
        rounds=50,
        first=0.5,
        second=0.03,
    )
    known = Cell((480, 480), 8, Cost(0.5, 1, 100, None), Cost(0.03, 1, 10, None), comparison, windows=81, limit=15.6)
    return replace(known, **changes)


def verified(**changes) -> Verification:
    case = Case("native size", "prob", error=4e-7, tolerance=1e-5, noise=3e-7)
    return replace(Verification((case,), provider="cuda", nodes={"original": {"cuda": 20}}), **changes)
