"""When one model may be called faster than another.

Three contestants run in turns: `first`, `again` (a second session of the same model) and `second`. Two sessions of one
file differ by a percent or more for as long as they live (memory layout), and the machine's other work comes in
bursts; so a measurement is a number of *sets*, each with three fresh sessions and many rounds:

    set 1   first again second | again second first | ...     3 sessions, made and run in random order
    set 2   second first again | ...                          3 new sessions
    ...

Within a set every round gives one ratio, and the set is its median. Rounds of one set depend on each other, sets do
not: the set is the unit of all that follows.

    the interval   bootstrap over the sets of the median of their medians (holds the truth 95 times in 100)
    A/A            the same for again against first (90 times): what no difference looks like here, today
    the test       if `second` were one more session of the same model, then in every set the three would be
                   exchangeable. So each way of choosing one of the three in each set (3^sets of them) is as likely
                   as the one that was measured; p is the share of them that are at least as far from 1.

The test is exact: no distribution is assumed, so bursts, drift and layout cost power but give no false alarms.
*faster* and *slower* need p <= 1 %, an interval without 1, a median outside the A/A interval, and a difference of 1 %
at least; anything else is *no difference*. The last three can only lower the rate of false alarms.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]

FALSE_ALARMS = 0.01
SMALLEST = 0.01
"""Differences below this share are called no difference, whatever their significance."""
MIN_SETS = 5
"""With fewer sets no result can reach p <= 1 %: 3 ** -4 is above it."""

BOOTSTRAPS = 4000
NOMINAL = 0.99
"""Of the percentile bootstrap; with few sets it covers less, and this leaves 95 % at least (a test holds that)."""
SPREAD = 0.9
"""Of the A/A interval. A wider one would hide differences that the test, which is exact by itself, has found."""
EXHAUSTIVE = 10
"""Up to so many sets all choices are counted; beyond, a seeded sample of them."""

FASTER, SLOWER, NO_DIFFERENCE = "faster", "slower", "no difference"


@dataclass(frozen=True)
class Estimate:
    """A median, and an interval that holds the true one at least 95 times in 100; `count` of what it is the median."""

    median: float
    low: float
    high: float
    count: int

    def text(self, unit: float = 1.0, digits: int = 2) -> str:
        """The estimate and its interval as text, `12.3 (12.1 to 12.6)`, in the given unit."""
        median, low, high = (f"{value / unit:.{digits}f}" for value in (self.median, self.low, self.high))
        return f"{median} ({low} to {high})"

    def inverse(self) -> Estimate:
        """The estimate of 1 / x."""
        return Estimate(1 / self.median, 1 / self.high, 1 / self.low, self.count)

    def to_dict(self) -> dict[str, float]:
        """The form that reports use."""
        return {"median": self.median, "low": self.low, "high": self.high}


def estimate(samples: Sequence[float]) -> Estimate:
    """Median of independent samples with its order-statistics interval, which assumes nothing of the distribution.

    The number of samples below the true median is binomial(n, 1/2), so the k-th smallest and the k-th largest sample
    enclose it with probability 1 - 2 P(X < k). Below six samples not even the extremes reach 95 %: they are given.
    """
    if not samples:
        raise ValueError("no samples")
    ordered = sorted(samples)
    count, k, tail = len(ordered), 0, 0.0
    while k < count // 2:
        tail += math.comb(count, k) / 2**count
        if tail > 0.025:
            break
        k += 1
    first = max(k - 1, 0)
    return Estimate(statistics.median(ordered), ordered[first], ordered[count - 1 - first], count)


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Ratio per round: what slows a whole round down cancels."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def geometric_mean(values: Iterable[float]) -> float:
    """The mean for ratios: twice as fast and half as fast cancel."""
    return statistics.geometric_mean(values)


def tells_apart(ratio: float, spread: Estimate) -> bool:
    """Whether a ratio lies outside what the same thing against itself shows (A/A, in either direction)."""
    low, high = min(spread.low, 1 / spread.high), max(spread.high, 1 / spread.low)
    return not low <= ratio <= high


@dataclass(frozen=True)
class Rounds:
    """One set: seconds per round of its three sessions."""

    first: tuple[float, ...]
    again: tuple[float, ...]
    second: tuple[float, ...]

    def logs(self) -> Floats:
        """The logarithms of the times, one row per session."""
        return np.asarray(np.log([self.first, self.again, self.second]), np.float64)


@dataclass(frozen=True)
class Comparison:
    """What the sets say.

    Attributes:
        first, second: seconds, median over the rounds of all sets.
        speedup: time of first over time of second, so above 1 where second is faster. control: first over again (A/A).
        p: how likely a ratio so far from 1 is where nothing differs.
        verdict: of second: FASTER, SLOWER or NO_DIFFERENCE.
        sets, rounds: how many went in.
    """

    first: float
    second: float
    speedup: Estimate
    control: Estimate
    p: float
    verdict: str
    sets: int
    rounds: int


def compare(sets: Sequence[Rounds], seed: int = 0) -> Comparison:
    """Judge the sets. Raises ValueError where there is none, or a set has no round."""
    if not sets or not all(one.first for one in sets):
        raise ValueError("no rounds")
    logs = [one.logs() for one in sets]
    # As if each of the three were `second`: its log ratio against the mean of the other two, median over the rounds.
    chosen = np.array([[np.median(x[j] - x[[i for i in range(3) if i != j]].mean(0)) for j in range(3)] for x in logs])
    control = _bootstrap(np.array([np.median(x[1] - x[0]) for x in logs]), SPREAD, seed)
    speedup = _bootstrap(chosen[:, 2], NOMINAL, seed).inverse()
    p = exchange_test(chosen)
    return Comparison(
        first=_pooled([*(one.first for one in sets), *(one.again for one in sets)]),
        second=_pooled([one.second for one in sets]),
        speedup=speedup,
        control=control.inverse(),
        p=p,
        verdict=_verdict(speedup, control, p),
        sets=len(sets),
        rounds=sum(len(one.first) for one in sets),
    )


def exchange_test(chosen: Floats, seed: int = 0) -> float:
    """p of the exchange test.

    Args:
        chosen: one row per set; entry j is the log ratio of its session j against the others, and 2 was measured.
        seed: of the sample of choices, where there are too many to count.
    """
    count = len(chosen)
    if count <= EXHAUSTIVE:
        sums = np.zeros(1)
        for row in chosen:
            sums = np.add.outer(sums, row).ravel()
    else:
        picks = np.random.default_rng(seed).integers(0, 3, (20_000, count))
        sums = np.append(chosen[np.arange(count), picks].sum(1), chosen[:, 2].sum())
    measured = abs(float(chosen[:, 2].sum()))
    return float(np.mean(np.abs(sums) >= measured * (1 - 1e-9)))


def _bootstrap(values: Floats, nominal: float, seed: int) -> Estimate:
    """Median of log ratios of the sets, with its interval, as ratios."""
    picks = np.random.default_rng(seed).integers(0, len(values), (BOOTSTRAPS, len(values)))
    low, high = np.quantile(np.median(values[picks], axis=1), [(1 - nominal) / 2, (1 + nominal) / 2])
    return Estimate(math.exp(np.median(values)), math.exp(low), math.exp(high), len(values))


def _verdict(speedup: Estimate, control: Estimate, p: float) -> str:
    clear = p <= FALSE_ALARMS and not speedup.low <= 1 <= speedup.high and tells_apart(speedup.median, control)
    if not clear or max(speedup.median, 1 / speedup.median) < 1 + SMALLEST:
        return NO_DIFFERENCE
    return FASTER if speedup.median > 1 else SLOWER


def _pooled(rows: Iterable[Sequence[float]]) -> float:
    return statistics.median(itertools.chain.from_iterable(rows))
