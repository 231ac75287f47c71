"""Numbers to places in a drawing; the templates only put them there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

WIDE, HIGH = 300, 120
"""Pixels of a curve's field."""

DEEPEST = 8
"""Powers of ten below the largest singular value that are drawn."""

MOST = 128
"""Points of a curve."""


def curve(values: Sequence[float], kept: int | None) -> dict[str, Any]:
    """Singular values, largest first, on a logarithmic scale, with the rank that is kept (None: none was chosen)."""
    top = max(values, default=0.0)
    decades = [min(DEEPEST, -math.log10(value / top)) if value > 0 and top > 0 else DEEPEST for value in values]
    deep = min(DEEPEST, max(1, math.ceil(max(decades, default=1) - 1e-9)))
    count = len(values)
    step = -(-count // MOST) or 1
    places = [
        (_along(i + 1, count), abs(round(HIGH * min(decade, deep) / deep, 1)))
        for i, decade in enumerate(decades)
        if i % step == 0 or i == count - 1
    ]
    return {
        "points": " ".join(f"{x},{y}" for x, y in places),
        "kept": None if kept is None else {"rank": kept, "x": _along(kept + 0.5, count)},
        "full": count,
        "deep": deep,
        "width": WIDE,
        "height": HIGH,
    }


def _along(index: float, count: int) -> float:
    return round(WIDE * index / (count + 1), 1)


class Log:
    """A logarithmic scale over all numbers that it has to show, in percent of its length."""

    def __init__(self, values: Sequence[float | None], room: float = 2.0) -> None:
        shown = [value for value in values if value is not None and value > 0 and math.isfinite(value)]
        self.low = math.log10(min(shown, default=1e-8) / room)
        self.high = math.log10(max(shown, default=1.0) * room)

    def at(self, value: float | None) -> float | None:
        """The place of a number; zero lies at the left end, what is not finite at the right one."""
        if value is None or math.isnan(value):
            return None
        if value <= 0:
            return 0.0
        place = 100.0 if math.isinf(value) else 100 * (math.log10(value) - self.low) / (self.high - self.low)
        return round(min(max(place, 0.0), 100.0), 2)


def shares(values: Sequence[float]) -> list[float]:
    """Each value as a percentage of the largest."""
    top = max(values, default=0.0)
    return [round(100 * value / top, 2) if top else 0.0 for value in values]
