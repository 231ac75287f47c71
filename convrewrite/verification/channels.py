"""The largest output hides the others: every part of an output is judged by its own magnitude as well.

    scores [N, 5] = (3e6, 0.2, -0.1, 0.4, 0.3)     a second class that is 0 is 7e-8 of the largest, and 100 % of its own
    map [N, K, H, W]                               each image, channel, row and column; each cell, and each line of one
    boxes [N, 6, 8400] of 1e3 beside scores of 1e-3                                    the same, whichever axis it is
    cells that take turns, as DepthToSpace writes them                                 every second, third and fourth

For a part c:    max|a - b| over c   <=   max(E * max|b| over c,  10 * max|shaken - original| over c)

E is the smallest default tolerance of the type. The second term is what rounding alone does to that part: its terms may
cancel, and then its magnitude says nothing of the accuracy that it has (see `shaking`).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Draws = Sequence[Array]


@dataclass(frozen=True)
class Channel:
    """The part of an output that is nearest to, or furthest beyond, what it is allowed.

    Attributes:
        axis: that its index counts along; None where it is a line or cell, with an index on all other axes.
        index: on that axis, or on all but the one that was looked along; where every n-th entry is meant, the first.
        along: the axis that a line or cell was looked along.
        every: n of each axis, 1 where it is taken as a whole; () where the part is no such grid.
        error: max|a-b| / max|b| over the part. tolerance, noise: of the same. noise is None where it was not needed.
        place: of its worst element. figures: the rewritten model's value there, and the original's.
    """

    axis: int | None
    index: tuple[int, ...]
    along: int | None
    error: float
    tolerance: float
    noise: float | None
    place: tuple[int, ...]
    figures: tuple[float, float]
    every: tuple[int, ...] = ()

    @property
    def badness(self) -> float:
        """The error divided by the tolerance."""
        return self.error / self.tolerance if self.tolerance else (np.inf if self.error else 0.0)

    def __str__(self) -> str:
        """`[:, 3, :, :]`, as numpy counts."""
        rank = len(self.place)
        if self.every:
            words = [":" if n == 1 else f"{first}::{n}" for first, n in zip(self.index, self.every, strict=True)]
        elif self.axis is not None:
            words = [str(self.index[0]) if axis == self.axis else ":" for axis in range(rank)]
        else:
            rest = iter(self.index)
            words = [":" if axis == self.along else str(next(rest)) for axis in range(rank)]
        return f"[{', '.join(words)}]"

    def to_dict(self, number: Callable[[float | None], float | None]) -> dict[str, Any]:
        """The form that reports use."""
        return {
            "part": str(self),
            "error": number(self.error),
            "tolerance": number(self.tolerance),
            "noise": number(self.noise),
            "place": list(self.place),
            "figures": [number(figure) for figure in self.figures],
        }


def _parts(shape: Sequence[int]) -> Iterator[tuple[int | None, int | None, tuple[int, ...]]]:
    """(axis, along, axes that are reduced) of every way in which an array falls into parts."""
    wide = [axis for axis, extent in enumerate(shape) if extent > 1]
    every = set(range(len(shape)))
    for axis in wide:
        yield axis, None, tuple(sorted(every - {axis}))
    if len(wide) > 2:
        for along in wide:
            if along:
                yield None, along, (along,)


STEPS = (2, 3, 4)
"""Every n-th cell is a part by itself: upscaling by n writes the cells of its channels in turns."""


def _grids(shape: Sequence[int]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(first entries, steps) of the grids of every n-th entry on two axes; a step of 1 is the whole axis."""
    for one, other in itertools.combinations(range(len(shape)), 2):
        for step in STEPS:
            if min(shape[one], shape[other]) > step:  # else an index or a line is that part
                steps = [step if axis in (one, other) else 1 for axis in range(len(shape))]
                for first in itertools.product(*(range(n) for n in steps)):
                    yield first, tuple(steps)


def _cut(first: Sequence[int], steps: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(start, None, step) for start, step in zip(first, steps, strict=True))


def judge(
    got: Array,
    want: Array,
    relative: float,
    whole: float,
    draws: Callable[[], Draws | None],
) -> Channel | None:
    """The worst part of an output; None where it has only one, or rounding could not be told.

    Args:
        got, want: of one shape, finite. relative: E. whole: the difference that the output as a whole is allowed,
            which is what a part that is 0 throughout is held against.
        draws: arrays like `want` that rounding alone might have given; asked for where E alone does not suffice. None:
            not known, and then a part passes that is beyond E.
    """
    a, b = got.astype(np.float64), want.astype(np.float64)
    difference, magnitude = np.abs(a - b), np.abs(b)
    tiny = _tiny(want.dtype)
    noise: Array | None = None
    asked = False
    worst: Channel | None = None
    for axis, along, reduced in _parts(want.shape):
        errors, peaks = difference.max(axis=reduced), magnitude.max(axis=reduced)
        allowed = _allowed(peaks, relative, whole, tiny)
        if not asked and bool((errors > allowed).any()):
            asked = True
            known = draws()
            if known:
                noise = np.max([_deviation(draw, b) for draw in known], axis=0)
        if noise is not None:
            allowed = np.maximum(allowed, FACTOR * noise.max(axis=reduced))
        elif asked:
            return None
        badness, index = _worst(errors, allowed)
        if worst is None or badness > worst.badness:
            worst = _part(
                index, axis, along, (a, b, difference), sums=(errors, peaks, allowed), noise=noise, reduced=reduced
            )
    for first, steps in _grids(want.shape):
        cut = _cut(first, steps)
        error, peak = difference[cut].max(), magnitude[cut].max()
        limit = float(_allowed(peak, relative, whole, tiny))
        if not asked and error > limit:
            asked = True
            known = draws()
            noise = np.max([_deviation(draw, b) for draw in known], axis=0) if known else None
        if noise is not None:
            limit = max(limit, FACTOR * float(noise[cut].max()))
        elif asked:
            return None
        if worst is None or float(_ratio(error, np.asarray(limit))) > worst.badness:
            worst = _grid(first, steps, (a, b, difference), (float(error), float(peak), limit), noise=noise)
    return worst


def _grid(
    first: tuple[int, ...],
    steps: tuple[int, ...],
    arrays: tuple[Array, Array, Array],
    sums: tuple[float, float, float],
    noise: Array | None,
) -> Channel:
    """Describe every n-th entry."""
    inside = _largest(arrays[2][_cut(first, steps)])
    place = tuple(start + step * i for start, step, i in zip(first, steps, inside, strict=True))
    own = None if noise is None else noise[_cut(first, steps)]
    return _channel(place, arrays, sums, own, index=first, every=steps)


def judge_each(
    got: Array,
    want: Array,
    relative: float,
    whole: float,
    draws: Callable[[Sequence[int]], Draws | None],
) -> Channel | None:
    """The worst part of any entry of axis 0, each judged by itself; its place and index are those in the entry.

    Args:
        got, want, relative, whole: as for `judge`. draws: of some entries, stacked.
    """
    difference, magnitude = (np.abs(x.astype(np.float64)) for x in (_minus(got, want), want))
    tiny, worst = _tiny(want.dtype), np.zeros(len(want))
    for _, _, reduced in _parts(want.shape[1:]):
        axes = tuple(axis + 1 for axis in reduced)
        errors, peaks = difference.max(axis=axes), magnitude.max(axis=axes)
        ratio = _ratio(errors, _allowed(peaks, relative, whole, tiny))
        worst = np.maximum(worst, ratio.reshape(len(want), -1).max(axis=1))
    for first, steps in _grids(want.shape[1:]):
        cut = (slice(None), *_cut(first, steps))
        errors, peaks = (x[cut].reshape(len(want), -1).max(axis=1) for x in (difference, magnitude))
        worst = np.maximum(worst, _ratio(errors, _allowed(peaks, relative, whole, tiny)))
    order = np.argsort(-worst, kind="stable")
    asked = [int(entry) for entry in order[:ENTRIES] if worst[entry] > 1.0]
    known = draws(asked) if asked else []
    if asked and not known:
        return None
    found: list[Channel | None] = [
        judge(got[entry], want[entry], relative, whole, draws=functools.partial(_entry, known or (), i))
        for i, entry in enumerate(asked or [int(order[0])])
    ]
    return max((one for one in found if one is not None), key=lambda one: one.badness, default=None)


FACTOR = 10.0
"""A part may differ by so many times what rounding alone was seen to do to it."""

ENTRIES = 64
"""Rounding is looked at for at most so many entries that stand out, the worst first."""


def _entry(draws: Draws, index: int) -> Draws:
    return [draw[index] for draw in draws]


def _minus(a: Array, b: Array) -> Array:
    return np.asarray(a.astype(np.float64) - b.astype(np.float64))


def _allowed(peaks: Array, relative: float, whole: float, tiny: float) -> Array:
    """What parts may differ by without a look at their rounding."""
    return np.where(peaks > 0.0, np.maximum(relative * peaks, tiny), whole)


def _ratio(errors: Array, allowed: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(errors > 0.0, errors / allowed, 0.0)


def _deviation(draw: Array, want: Array) -> Array:
    """How far one run is from the original; NaN and Inf say that nothing is certain there."""
    with np.errstate(invalid="ignore"):
        away = np.abs(draw.astype(np.float64) - want)
    return np.where(np.isfinite(away), away, np.inf)


def _tiny(dtype: np.dtype[Any]) -> float:
    """A difference that says nothing in that type: numbers as small have fewer digits."""
    info = np.finfo(dtype)
    return 8.0 * float(info.smallest_subnormal if dtype.itemsize < 4 else info.tiny)


def _worst(errors: Array, allowed: Array) -> tuple[float, tuple[int, ...]]:
    """Badness and index of the worst part of one way."""
    ratio = _ratio(errors, allowed)
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(ratio)), ratio.shape))
    return float(ratio[index]), index


def _part(
    index: tuple[int, ...],
    axis: int | None,
    along: int | None,
    arrays: tuple[Array, Array, Array],
    sums: tuple[Array, Array, Array],
    noise: Array | None,
    reduced: tuple[int, ...],
) -> Channel:
    """Describe one part."""
    rest = iter(index)
    where = tuple(slice(None) if i in reduced else next(rest) for i in range(arrays[2].ndim))
    inside = iter(_largest(arrays[2][where]))
    place = tuple(next(inside) if isinstance(part, slice) else int(part) for part in where)
    own = None if noise is None else noise[where]
    error, peak, allowed = (float(values[index]) for values in sums)
    return _channel(place, arrays, (error, peak, allowed), own, index=index, axis=axis, along=along)


def _largest(difference: Array) -> tuple[int, ...]:
    """Where the difference is largest."""
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(difference)), difference.shape))


def _channel(
    place: tuple[int, ...],
    arrays: tuple[Array, Array, Array],
    sums: tuple[float, float, float],
    noise: Array | None,
    *,
    index: tuple[int, ...],
    axis: int | None = None,
    along: int | None = None,
    every: tuple[int, ...] = (),
) -> Channel:
    """The figures of a part, in units of its largest value. sums: error, largest value, what is allowed."""
    a, b, _ = arrays
    error, peak, allowed = sums
    scale = peak or float(np.max(np.abs(b))) or 1.0
    return Channel(
        axis=axis,
        index=index,
        along=along,
        error=error / scale,
        tolerance=allowed / scale,
        noise=None if noise is None else float(noise.max()) / scale,
        place=place,
        figures=(float(a[place]), float(b[place])),
        every=every,
    )
