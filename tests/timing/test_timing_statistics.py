"""Verdicts on simulated times: how seldom they are wrong, and what they find."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from convrewrite.timing import FASTER, NO_DIFFERENCE, SLOWER, Rounds, compare
from convrewrite.timing.statistics import Estimate, estimate, exchange_test, tells_apart


def series(
    rng: np.random.Generator,
    *,
    factor: float = 1.0,
    sets: int = 8,
    rounds: int = 12,
    session: float = 0.02,
    noise: float = 0.05,
    memory: float = 0.7,
) -> list[Rounds]:
    """Times as a busy machine gives them: heavy-tailed noise that lasts, sessions that differ for good, drift.

    Args:
        factor: time of second over time of first. session: deviation of sessions of one model.
        noise: of a round. memory: share of a round's noise that the next one keeps.
    """
    found = []
    for _ in range(sets):
        shocks = noise * rng.standard_t(3, (rounds, 3))
        for i in range(1, rounds):
            shocks[i] += memory * shocks[i - 1]
        drift = np.cumsum(0.02 * rng.standard_normal(rounds))[:, None]
        logs = shocks + drift + session * rng.standard_normal(3) + np.log([1.0, 1.0, factor])
        times = 0.01 * np.exp(logs)
        found.append(Rounds(*(tuple(times[:, i]) for i in range(3))))
    return found


def verdicts(count: int, seed: int, **options: Any) -> dict[str, int]:
    rng = np.random.default_rng(seed)
    found = [compare(series(rng, **options)).verdict for _ in range(count)]
    return {verdict: found.count(verdict) for verdict in (FASTER, SLOWER, NO_DIFFERENCE)}


@pytest.mark.parametrize(("runs", "most"), [(250, 7), pytest.param(1000, 18, marks=pytest.mark.campaign)])
@pytest.mark.parametrize(
    ("seed", "options"),
    [
        (1, {}),
        (2, {"noise": 0.01, "memory": 0.3}),
        (3, {"session": 0.0, "noise": 0.1, "memory": 0.9}),
        (4, {"sets": 6, "rounds": 3}),
    ],
    ids=["busy", "quiet", "bursts", "short"],
)
def test_false_alarms_are_rare(seed, options, runs, most):
    """1 % at most by design, so 1000 runs give 18 or fewer in 99 of 100 cases, and 250 runs 7 or fewer."""
    found = verdicts(runs, seed, **options)
    assert found[FASTER] + found[SLOWER] <= most, found


def test_a_difference_of_a_tenth_is_found():
    quiet = {"session": 0.01, "noise": 0.02}
    assert verdicts(100, 5, factor=1.1, **quiet)[SLOWER] >= 95
    assert verdicts(100, 6, factor=1 / 1.1, **quiet)[FASTER] >= 95


def test_a_doubled_time_is_found_on_a_busy_machine():
    assert verdicts(50, 7, factor=2.0, noise=0.1)[SLOWER] == 50


def test_the_interval_holds_the_truth_95_times_in_100():
    rng = np.random.default_rng(8)
    held = 0
    for _ in range(400):
        speedup = compare(series(rng, factor=1.25)).speedup
        held += speedup.low <= 1 / 1.25 <= speedup.high
    assert held >= 0.95 * 400 - 2 * math.sqrt(400 * 0.95 * 0.05)


def test_a_difference_below_a_percent_is_none():
    exact = [Rounds((1.0, 1.0), (1.0, 1.0), (1.005, 1.005))] * 10
    assert compare(exact).p <= 0.01
    assert compare(exact).verdict == NO_DIFFERENCE
    assert compare([replace(one, second=(1.02, 1.02)) for one in exact]).verdict == SLOWER


def test_a_difference_inside_the_spread_of_the_control_is_none():
    sets = [Rounds((1.0,), (1.1,), (1.2,))] * 10
    assert compare(sets).control.median == pytest.approx(1 / 1.1)
    assert compare([replace(one, second=(1.12,)) for one in sets]).verdict == NO_DIFFERENCE
    assert compare(sets).verdict == SLOWER


def test_four_sets_cannot_tell():
    assert compare([Rounds((1.0,), (1.0,), (2.0,))] * 4).verdict == NO_DIFFERENCE
    assert compare([Rounds((1.0,), (1.0,), (2.0,))] * 5).verdict == SLOWER


def test_the_exchange_test_counts_choices():
    """Two sets: of the nine sums of one entry of each row, only that of the last column is as far from 0."""
    assert exchange_test(np.array([[0.1, 0.2, 0.9], [0.0, -0.1, 0.8]])) == pytest.approx(1 / 9)
    assert exchange_test(np.zeros((3, 3))) == 1.0
    many = np.tile([-0.5, -0.5, 1.0], (14, 1))
    assert exchange_test(many) == pytest.approx(1 / 20_001), "sampled: what was measured is one of the choices"


def test_a_comparison_in_words():
    found = compare([Rounds((2.0, 4.0), (2.0, 4.0), (1.0, 2.0))] * 6)
    assert (found.first, found.second, found.sets, found.rounds) == (3.0, 1.5, 6, 12)
    assert found.speedup.text() == "2.00 (2.00 to 2.00)"
    assert found.speedup.inverse().median == 0.5
    assert found.verdict == FASTER


@pytest.mark.parametrize("sets", [[], [Rounds((), (), ())]])
def test_nothing_measured_is_an_error(sets):
    with pytest.raises(ValueError, match="no rounds"):
        compare(sets)


def test_the_interval_of_a_median():
    assert estimate(range(1, 12)) == Estimate(6, 2, 10, 11)
    assert estimate([3.0]) == Estimate(3.0, 3.0, 3.0, 1)
    assert tells_apart(1.2, Estimate(1.0, 0.9, 1.05, 9))
    assert not tells_apart(1.1, Estimate(1.0, 0.9, 1.05, 9)), "0.9 the other way round is 1.11"
