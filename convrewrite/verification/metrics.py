"""Figures beside the one that judges: how far two arrays are apart in other words, over all samples of a check.

rms ratio      rms(a - b) / rms(b)            a typical element, where the judged error is the worst one
cosine         <a, b> / (|a| |b|)             1 where only the scale differs
max absolute   max |a - b|
top-1          how often the same class is largest; for outputs that are class scores alone
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Metrics:
    """The figures of one output; None where one has no meaning.

    Attributes:
        rms_ratio: root mean square of the difference over that of the original.
        cosine: of the angle between the two, as vectors. max_absolute: the largest difference.
        top1_agreement: fraction of samples where both name the same class.
    """

    rms_ratio: float | None
    cosine: float | None
    max_absolute: float
    top1_agreement: float | None

    def to_dict(self) -> dict[str, float | None]:
        """The form that reports use; NaN and infinity, which JSON does not have, become null."""
        figures = dict(vars(self))
        return {name: value if value is not None and math.isfinite(value) else None for name, value in figures.items()}


@dataclass
class Tally:
    """Sums over the samples of one check and output."""

    largest: float = 0.0
    _sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("dd", "aa", "bb", "ab"), 0.0))
    _same: int = 0
    _ranked: int = 0

    def add(self, got: Array, want: Array, *, stacked: bool = False) -> None:
        """Add finite arrays of one shape; `stacked` where axis 0 counts windows."""
        if got.size == 0:
            return
        a, b = got.astype(np.float64), want.astype(np.float64)
        d = a - b
        self.largest = max(self.largest, float(np.max(np.abs(d))))
        for key, x, y in (("dd", d, d), ("aa", a, a), ("bb", b, b), ("ab", a, b)):
            self._sums[key] += float(np.vdot(x, y))
        scores = class_scores(a, stacked=stacked)
        if scores is not None:
            wanted = class_scores(b, stacked=stacked)
            assert wanted is not None
            self._same += int(np.count_nonzero(scores.argmax(-1) == wanted.argmax(-1)))
            self._ranked += len(scores)

    @property
    def metrics(self) -> Metrics:
        """The error metrics that the sums lead to."""
        dd, aa, bb, ab = self._sums.values()
        return Metrics(
            rms_ratio=math.sqrt(dd / bb) if bb else None,
            cosine=ab / math.sqrt(aa * bb) if aa * bb else None,
            max_absolute=self.largest,
            top1_agreement=self._same / self._ranked if self._ranked else None,
        )


def class_scores(values: Array, *, stacked: bool = False) -> Array | None:
    """Class scores as [samples, classes]: of [N, K] and [N, K, 1, 1], and of [K]; None for anything else."""
    shape = values.shape[1:] if stacked else values.shape
    batched = len(shape) > 1
    classes = shape[1] if batched else shape[0] if shape else 0
    if classes < 2 or any(extent != 1 for extent in shape[2:]):
        return None
    return values.reshape(-1, classes)
