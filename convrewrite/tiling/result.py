"""What came of `apply`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from convrewrite.errors import CheckFailed
from convrewrite.text import Printed, counted, parameter, terminal
from convrewrite.tiling.checks import Check
from convrewrite.tiling.engine import Finished
from convrewrite.tiling.overview import Overview

STATED = "stated, no fault: a crop sees padding where the image has pixels"

FAILED = 5
"""So many failed tiles are named in full."""


@dataclass(frozen=True, kw_only=True)
class Applied(Printed):
    """What came of it; it prints itself.

    Attributes:
        target: what was written. size: of the image. outputs: shape of each. tiles: in all; resumed: done before.
        useful: share of the pixels read that tiles do not share. rate: pixels of the image per second.
        finished, workers, provider: how it was done. checks: comparisons. attributes: what cells mean, by output.
        written: whether the target is there; tiles that were computed are kept otherwise. without_class: of each output
            whose best classes are stored, cells that have none. maps: of each output what a page shows, if asked for.
    """

    target: str
    size: tuple[int, ...]
    outputs: Mapping[str, tuple[int, ...]]
    tiles: int
    resumed: int
    useful: float
    rate: float
    finished: Finished
    workers: int
    provider: str
    crop: tuple[int, ...]
    checks: tuple[Check, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    written: bool = True
    without_class: Mapping[str, int] = field(default_factory=dict)
    maps: Mapping[str, Overview | None] = field(default_factory=dict, compare=False, repr=False)

    @property
    def failed(self) -> list[str]:
        """One line of text for each kind of failure."""
        return [f"{c.name}: error {c.error:.1e}, tolerance {c.tolerance or 0:.1e}" for c in self.checks if c.failed]

    def check(self) -> Applied:
        """Itself; raises CheckFailed where tiles or comparisons failed."""
        if self.finished.failed:
            named = [f"{place}: {why}" for place, why in sorted(self.finished.failed.items())[:FAILED]]
            more = f"; and {len(self.finished.failed) - FAILED} more" if len(self.finished.failed) > FAILED else ""
            raise CheckFailed(
                f"{len(self.finished.failed)} of {counted(self.tiles, 'tile')} failed: {'; '.join(named)}{more}; "
                f"what was computed is kept: remove the cause and give {parameter('resume')}"
            )
        if self.failed:
            raise CheckFailed(f"not what the models give: {'; '.join(self.failed)}")
        return self

    def to_dict(self) -> dict[str, Any]:
        """The JSON form (schema convrewrite.apply/1)."""
        return {
            "schema": "convrewrite.apply/1",
            "output": self.target,
            "image": list(self.size),
            "outputs": {name: list(shape) for name, shape in self.outputs.items()},
            "attributes": dict(self.attributes),
            "tiles": {"total": self.tiles, "resumed": self.resumed, "computed": self.finished.tiles},
            "failed": [{"tile": list(place), "why": why} for place, why in sorted(self.finished.failed.items())],
            "crop": list(self.crop),
            "useful": self.useful,
            "seconds": self.finished.seconds,
            "pixels_per_second": self.rate,
            "workers": self.workers,
            "provider": self.provider,
            "without_class": dict(self.without_class),
            "checks": [check.to_dict() for check in self.checks],
        }

    def __str__(self) -> str:
        by = "x".join
        cells = ", ".join(f"{name} [{by(map(str, shape))}]" for name, shape in self.outputs.items())
        again = f", {self.resumed} of them done before" if self.resumed else ""
        tiles = f"{self.tiles} of up to {by(map(str, self.crop))} pixels{again}; "
        tiles += f"{self.useful:.0%} of what was read belongs to one tile alone"
        if self.tiles == 1:  # which shares nothing with another, whatever lies at the edge and gives no cell
            tiles = f"1, the whole image{', which was done before' if self.resumed else ''}"
        lines = [f"applied    to an image of {by(map(str, self.size))}: {cells}", f"tiles      {tiles}"]
        if self.finished.tiles:
            rate = f"{self.rate / 1e6:.2f} million pixels per second"
            lines.append(
                f"ran        in {self.finished.seconds:.1f} s on {counted(self.workers, 'worker')} "
                f"({self.provider}): {rate}"
            )
        for check in self.checks:
            if check.why:
                lines.append(f"checked    {check.name}: skipped ({check.why})")
                continue
            kind = f"tolerance {check.tolerance:.1e}" if check.tolerance is not None else STATED
            lines.append(f"checked    {check.name}: {counted(check.count, 'place')}, error {check.error:.1e} ({kind})")
        for name, count in self.without_class.items():
            if count:
                total, number = math.prod(self.outputs[name]), self.attributes[name]["no_class"]
                lines.append(
                    f"warning    {count:,} of {counted(total, 'cell')} of '{name}' have no class, because a score "
                    f"is NaN: they are {number}"
                )
        lines.append(f"wrote      {self.target}" if self.written else f"not made   {self.target}")
        return "\n".join(map(terminal, lines))
