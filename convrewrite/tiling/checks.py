"""Random places of a class map, computed once more: by the original classifier on their crops, and by the model itself.

    image ── crop of one window ── original ──> scores     == cell      where the model claims "windows"
    image ── another crop ── model ──> cell                == cell      always: a seam or an offset would show

What is stored is read back from the store. Where windows see padding that the whole image has not, the distance from
the original is a difference in meaning: it is stated, and fails nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convrewrite.engine.windows import Window
from convrewrite.running.runtime import Session, open_session
from convrewrite.text import parameter
from convrewrite.tiling.engine import Job, open_job
from convrewrite.tiling.geometry import Tile
from convrewrite.tiling.survey import Survey
from convrewrite.verification.comparison import floor, relative_error

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Check:
    """One comparison over several places.

    Attributes:
        name: what was compared. count: places. error: max|a-b| / max|b| over all, or the share of other classes.
        tolerance: that it must not exceed; None where it is only stated. why: it was left out, and why.
    """

    name: str
    count: int = 0
    error: float = 0.0
    tolerance: float | None = None
    why: str = ""

    @property
    def failed(self) -> bool:
        """Whether the error is above its tolerance."""
        return self.tolerance is not None and not self.error <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        judged = "failed" if self.failed else "passed"
        status = "skipped" if self.why else "stated" if self.tolerance is None else judged
        return {
            "name": self.name,
            "places": self.count,
            "error": self.error if math.isfinite(self.error) else None,
            "tolerance": self.tolerance,
            "status": status,
            "why": self.why,
        }


def check(
    job: Job,
    survey: Survey,
    count: int,
    *,
    original: str | Path | None = None,
    seed: int = 0,
    tolerance: float | None = None,
) -> list[Check]:
    """Compare `count` random places of what is stored.

    Args:
        original: path of the classifier that the model was converted from. seed: of the places.
        tolerance: of max|a-b| / max|b|; that of the outputs' type where left out.

    Raises:
        UsageError: the original cannot be loaded. RunFailed: it does not run on a crop.
    """
    places = _Places(job, survey, np.random.default_rng(seed), count=count, tolerance=tolerance)
    found = [places.again(name) for name in job.store.targets]
    name = "the original on its crops"
    window = survey.window
    if original is None:
        return [*found, Check(name, why=f"it was not given: {parameter('original')}")]
    if window is None or any(axis.stride != step for axis, step in places.first_axes(window)):
        return [*found, Check(name, why="the model does not say which windows its cells stand for")]
    return [*found, *places.against(open_session(original, job.provider, threads=job.threads), window)]


@dataclass(frozen=True)
class _Places:
    """Places to look at, and what they are compared by."""

    job: Job
    survey: Survey
    random: np.random.Generator
    count: int
    tolerance: float | None

    def first_axes(self, window: Window) -> list[tuple[Any, int]]:
        """Axes of the outputs that the window describes, with its stride."""
        outputs = self.survey.geometry.outputs
        return [
            pair
            for name, grid in window.outputs.items()
            if name in outputs
            for pair in zip(outputs[name], grid.stride, strict=True)
        ]

    def again(self, output: str) -> Check:
        """The model once more, on crops that begin elsewhere."""
        session, image, _ = open_job(self.job)
        geometry, recipe = self.survey.geometry, self.job.recipe
        axes = geometry.outputs[output]
        stored, wants = [], []
        for _ in range(self.count):
            place = [int(self.random.integers(axis.count)) for axis in axes]
            cells = {output: tuple((i, i + 1) for i in place)}
            spans = zip(geometry.crop(cells), geometry.period, strict=True)
            more = 0 if geometry.fixed is not None else int(self.random.integers(3))
            crop = tuple((max(0, start - more * period), stop) for (start, stop), period in spans)
            pixels = self.job.preparation.of(self.job.source.read(image, crop))
            values = session.run({recipe.input: recipe.feed(pixels)}, [output])
            wants.append(recipe.cells(Tile((), cells, crop), values)[output].reshape(-1))
            stored.append(self._stored(output, place))
        return self._compared(f"the model on other crops, '{output}'", output, stored, wants)

    def against(self, original: Session, window: Window) -> list[Check]:
        """The original classifier on the crops of windows."""
        _, image, _ = open_job(self.job)
        found = []
        for output, grid in window.outputs.items():
            if output not in self.job.store.targets:
                continue
            if any(extent > 1 for extent in grid.size):
                found.append(Check(f"the original on its crops, '{output}'", why="it gives a map for each crop"))
                continue
            stored, wants = [], []
            for _ in range(self.count):
                place = [int(self.random.integers(n)) for n in window.positions(self.survey.geometry.size)]
                starts = [o + i * s for o, i, s in zip(window.offset, place, window.stride, strict=True)]
                crop = [(start, start + extent) for start, extent in zip(starts, window.size, strict=True)]
                pixels = self.job.preparation.of(self.job.source.read(image, crop))
                wants.append(self._classified(original, output, pixels))
                stored.append(self._stored(output, place))
            name = f"the original on its crops, '{output}'"
            found.append(self._compared(name, output, stored, wants, stated=window.equivalence != "windows"))
        return found

    def _classified(self, original: Session, output: str, pixels: Array) -> Array:
        """What the original gives for one crop; where it takes several at once, for the first of them."""
        feed = self.job.recipe.feed(pixels)
        info = original.inputs[0]
        many = info.shape[0] if info.shape and isinstance(info.shape[0], int) else 1
        several = len(self.job.recipe.shape) > len(self.job.recipe.dims) + 1 and many > 1
        value = original.run({info.name: np.repeat(feed, many, axis=0) if several else feed}, [output])[output]
        return (value[0] if several else value).reshape(-1)

    def _stored(self, output: str, place: Sequence[int]) -> Array:
        group, target = self.job.store.open(), self.job.store.targets[output]
        index = tuple(place) if target.top1 else (slice(None), *place)
        return np.asarray(group[target.name][index]).reshape(-1)

    def _compared(
        self, name: str, output: str, stored: Sequence[Array], wants: Sequence[Array], *, stated: bool = False
    ) -> Check:
        got, want = np.stack(stored), np.stack(wants)
        if want.dtype.kind == "f" and got.dtype.kind == "f":  # pixels without a value give cells without one, in both
            nowhere = np.isnan(got) & np.isnan(want)
            got, want = np.where(nowhere, 0, got).astype(got.dtype), np.where(nowhere, 0, want).astype(want.dtype)
        limit = floor(want.dtype) if self.tolerance is None else self.tolerance
        target = self.job.store.targets[output]
        if target.top1:
            wrong = _wrong_classes(got[:, 0], want, target.nothing, limit)
            return Check(f"{name}, best class", len(got), float(wrong.mean()), None if stated else 0.0)
        if want.dtype.kind != "f":
            return Check(name, len(got), float((got != want).mean()), None if stated else 0.0)
        return Check(name, len(got), relative_error(got, want), None if stated else limit)


def _wrong_classes(got: Array, want: Array, nothing: int | None, limit: float) -> Array:
    """Per place, whether its class is not one of the best by the scores [places, K], or is missing, or too many."""
    none = np.isnan(want).any(axis=1) if want.dtype.kind == "f" else np.zeros(len(want), bool)
    classes = got.astype(np.int64)
    outside = (classes < 0) | (classes >= want.shape[1])
    chosen = np.take_along_axis(want, np.where(outside, 0, classes)[:, None], axis=1)[:, 0]
    scale = float(np.abs(want[~none]).max(initial=0.0))
    with np.errstate(invalid="ignore"):
        below = outside | (want.max(axis=1) - chosen > limit * scale)
    return np.asarray(np.where(none, classes != nothing, below))
