"""One form of one weight: what each rank costs in error, known before any factor is made."""

from __future__ import annotations

import functools
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, final

from threadpoolctl import ThreadpoolController

from convrewrite.passes.separable.factors import Array, Factorization, Rank, Stage

Fits = Callable[[Rank], bool]
Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class Decomposition(ABC):
    """One form of one weight. Nothing is computed before the first question; factors only in `build`.

    Attributes:
        form: "channel", "depthwise", "tucker" or "spatial".
        name: which of that form's variants, unique for the weight: "vertical-horizontal", "channel-out", ...
        full: the rank at which it is exact for any weight. A rank is one number or two, each from 1 to that of `full`.
    """

    form: str
    name: str
    full: Rank

    @abstractmethod
    def error(self, rank: Rank) -> float:
        """|W - W~| / |W| of what `build` makes, in the Frobenius norm; 0 for W = 0.

        Right to 1 %, or to 2e-14 where it is smaller. It falls, or stays, where a number of the rank grows.
        """

    @abstractmethod
    def layout(self, rank: Rank) -> tuple[tuple[Stage, ...], ...]:
        """The convolutions that `build` makes: the branches, and in each the stages from input to output."""

    @abstractmethod
    def build(self, rank: Rank) -> Factorization:
        """The factors. The same weight gives the same bytes on the same machine."""

    @property
    @abstractmethod
    def spectra(self) -> tuple[Array, ...]:
        """The singular values for each number of the rank, largest first; below 1e-8 of the largest they are blurred.

        Matrices with a common rank (groups, channels) count as one, by the root of the sum of their squares.
        """

    def within(self, rank: Rank, tol: float) -> bool:
        """Whether error(rank) <= tol; may be known sooner than the error itself."""
        return self.error(rank) <= tol

    @final
    def smallest(self, tol: float, fits: Fits | None = None) -> list[Rank]:
        """The ranks with error <= tol (and that fit) that have none below them: one rank where it is one number.

        With `fits`, as for `largest`, a weight that is far from low rank costs its blurred spectrum and no more.
        """
        top = [self.full] if fits is None else self.largest(fits)
        if not any(self.within(rank, tol) for rank in top):
            return []
        if len(self.full) == 2:
            corners = lowest_corners((self.full[0], self.full[1]), lambda a, b: self.within((a, b), tol))
            return [rank for rank in corners if fits is None or fits(rank)]
        return [(bisect(top[0][0], lambda number: self.within((number,), tol)),)]

    @final
    def largest(self, fits: Fits) -> list[Rank]:
        """The ranks that satisfy `fits` and have none above them; [] where not even rank 1 does.

        Args:
            fits: monotone: what holds for a rank holds for all ranks below it.
        """
        if len(self.full) == 2:
            return list(highest_corners((self.full[0], self.full[1]), lambda a, b: fits((a, b))))
        beyond = bisect(self.full[0] + 1, lambda number: number > self.full[0] or not fits((number,)))
        return [(beyond - 1,)] if beyond > 1 else []


def answers(found: Iterable[Asked], ask: Callable[[Asked], Answer], workers: int | None = None) -> list[Answer]:
    """Ask many forms one question, in threads, and without threads inside the linear algebra.

    That is faster than the threads of the linear algebra, and far faster where other processes compete for the cores.

    Args:
        found: decompositions, or what holds them. ask: a question of one of them.
        workers: threads; as many as this process may use by default. Each needs about 8 times its weight in float32.
    """
    with _linear_algebra(len(sys.modules)).limit(limits=1), ThreadPoolExecutor(workers or _cores()) as pool:
        return list(pool.map(ask, found))


@functools.lru_cache(maxsize=1)
def _linear_algebra(modules: int) -> ThreadpoolController:
    """The libraries that have threads of their own; they are looked for again where a module was imported since."""
    return ThreadpoolController()


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def bisect(top: int, holds: Callable[[int], bool]) -> int:
    """The smallest of 1 .. top for which it holds, given that it holds at the top and above wherever it does."""
    low, high = 1, top
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return high


def lowest_corners(full: tuple[int, int], holds: Callable[[int, int], bool]) -> list[tuple[int, int]]:
    """The smallest pairs for which it holds, if it holds above wherever it does. One walk down the staircase."""
    corners: list[tuple[int, int]] = []
    second = full[1] + 1
    for first in range(1, full[0] + 1):
        before = second
        while second > 1 and holds(first, second - 1):
            second -= 1
        if second < before:
            corners.append((first, second))
    return corners


def highest_corners(full: tuple[int, int], holds: Callable[[int, int], bool]) -> list[tuple[int, int]]:
    """The largest pairs for which it holds, if it holds below wherever it does."""
    corners: list[tuple[int, int]] = []
    second = full[1]
    for first in range(1, full[0] + 1):
        while second > 0 and not holds(first, second):
            second -= 1
        if second == 0:
            break
        if corners and corners[-1][1] == second:
            corners.pop()
        corners.append((first, second))
    return corners


def relative(error: float, norm: float) -> float:
    """error / norm, and 0 for a weight of zeros, which any factorization meets."""
    return error / norm if norm > 0 else 0.0
