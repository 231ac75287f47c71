"""What a benchmark found; it prints itself as the table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rich.text import Text

from convrewrite.errors import ConvrewriteError
from convrewrite.text import Printed, by, counted, short, terminal
from convrewrite.text.layout import Table, folded
from convrewrite.timing.statistics import MIN_SETS, Comparison, Estimate

HEADER = (
    "size",
    "batch",
    "model",
    "ms",
    "images/s",
    "MACs",
    "GMAC/s",
    "peak MiB",
    "speedup",
    "A/A",
    "verdict",
)
RIGHT = frozenset(range(11)) - {0, 2, 10}
COSTS = 8
"""Columns of what each model costs; those of how they compare follow."""

PROFILED = 5
"""Nodes that the text lists per model."""


@dataclass(frozen=True)
class Cost:
    """One model at one size.

    Attributes:
        seconds: median of the runs. images: that go through in that time.
        macs: of that work; None where shapes are not known.
        memory: bytes; how far the resident memory of a fresh process grew at most while it loaded the model and ran it
            twice, weights included; None where that was not measured. On a GPU this is the host's memory alone.
        nodes: of `profile`: name, op, provider, seconds; the most expensive first.
    """

    seconds: float
    images: int
    macs: int | None
    memory: int | None
    nodes: tuple[dict[str, Any], ...] = ()

    @property
    def images_per_second(self) -> float:
        """The throughput in images per second."""
        return self.images / self.seconds

    @property
    def gmacs_per_second(self) -> float | None:
        """The arithmetic rate in 10^9 multiply-accumulates per second."""
        return self.macs / self.seconds / 1e9 if self.macs else None

    def to_dict(self) -> dict[str, Any]:
        """The form that reports use."""
        return {
            "seconds": self.seconds,
            "images_per_second": self.images_per_second,
            "macs": self.macs,
            "gmacs_per_second": self.gmacs_per_second,
            "peak_memory_bytes": self.memory,
            "nodes": list(self.nodes),
        }


@dataclass(frozen=True)
class Cell:
    """Two models at one size and batch.

    Attributes:
        size, batch: of the image. a, b: the costs.
        comparison: of B against A: `speedup` above 1 is B faster.
        complete: False where the benchmark was stopped inside this cell.
        windows: for `windows`, how many; then `batch` is the best batching of the original. limit: by FLOPs.
    """

    size: tuple[int, ...]
    batch: int
    a: Cost
    b: Cost
    comparison: Comparison
    complete: bool = True
    windows: int = 0
    limit: float | None = None

    @property
    def label(self) -> str:
        """The size and batch as text: `224x224, batch 8`."""
        return f"{by(self.size)}, batch {self.batch}" if self.size else f"batch {self.batch}"

    def to_dict(self) -> dict[str, Any]:
        """The form that reports use."""
        found = self.comparison
        return {
            "size": list(self.size),
            "batch": self.batch,
            "a": self.a.to_dict(),
            "b": self.b.to_dict(),
            "speedup": found.speedup.to_dict(),
            "control": found.control.to_dict(),
            "p": found.p,
            "verdict": found.verdict,
            "sets": found.sets,
            "rounds": found.rounds,
            "complete": self.complete,
            "windows": self.windows or None,
            "limit": self.limit,
        }


@dataclass(frozen=True)
class Missed:
    """A size that could not be measured, and the reason."""

    label: str
    reason: str


@dataclass(frozen=True)
class Bench(Printed):
    """Times of two models.

    Attributes:
        a, b: the paths. provider: where both ran; "" where nothing did. tf32: whether TF32 was on. threads: of the CPU.
        seconds: that were given per cell. nodes: how many of A and B ran on which provider; {} where not known.
        cells: what was measured. missed: what could not be.
        warnings: nodes that fell to the CPU. error: what makes the command fail, if anything.
    """

    a: str
    b: str
    provider: str
    tf32: bool
    threads: int
    seconds: float
    cells: tuple[Cell, ...]
    missed: tuple[Missed, ...] = ()
    nodes: tuple[dict[str, int], ...] = ()
    warnings: tuple[str, ...] = ()
    error: ConvrewriteError | None = field(default=None, compare=False)

    @property
    def worst(self) -> Cell | None:
        """The cell with the smallest speedup: what a gate looks at."""
        return min(self.cells, key=lambda cell: cell.comparison.speedup.median, default=None)

    @property
    def speedup(self) -> Estimate | None:
        """The speedup in the worst cell."""
        return None if self.worst is None else self.worst.comparison.speedup

    @property
    def verdict(self) -> str | None:
        """The verdict on the worst cell."""
        return None if self.worst is None else self.worst.comparison.verdict

    def check(self) -> Bench:
        """Raise the error, if there is one; for use from Python."""
        if self.error is not None:
            raise self.error
        return self

    def to_dict(self) -> dict[str, Any]:
        """The `bench` part of a report; `speedup` and `verdict` are those of the worst cell, None where none ran."""
        return {
            "provider": self.provider,
            "speedup": None if self.speedup is None else self.speedup.to_dict(),
            "verdict": self.verdict,
            "tf32": self.tf32,
            "threads": self.threads,
            "seconds": self.seconds,
            "a": self.a,
            "b": self.b,
            "nodes": [dict(counts) for counts in self.nodes],
            "cells": [cell.to_dict() for cell in self.cells],
            "missed": [dict(vars(missed)) for missed in self.missed],
            "warnings": list(self.warnings),
        }

    def __str__(self) -> str:
        return "\n".join(line.plain for line in self.lines())

    def lines(self, width: int = 0) -> list[Text]:
        """The table, and what belongs below it, in at most `width` columns; 0 is no limit."""
        lines = self._tables(width) if self.cells else []
        facts: list[str | Table] = []
        for cell in self.cells:
            if cell.windows:
                limit = "not known" if cell.limit is None else f"{cell.limit:.1f}x"
                facts.append(
                    f"{by(cell.size)}: one pass against {counted(cell.windows, 'window')} in batches of {cell.batch}, "
                    f"the fastest; limit by FLOPs {limit}"
                )
            if cell.comparison.sets < MIN_SETS:
                facts.append(
                    f"{cell.label}: stopped after {counted(cell.comparison.sets, 'set')}, too few for a verdict"
                )
            elif not cell.complete:
                facts.append(f"{cell.label}: stopped after {counted(cell.comparison.sets, 'set')}")
            facts += _profile(cell)
        facts += [f"not measured: {missed.label}: {missed.reason}" for missed in self.missed]
        facts += [f"warning: {warning}" for warning in self.warnings]
        facts += [self._legend()] if self.cells else []
        for fact in facts:
            lines += fact.lines(width) if isinstance(fact, Table) else map(Text, folded(terminal(fact), width))
        return lines

    def _tables(self, width: int) -> list[Text]:
        """One table; where it does not fit, how they compare comes first, and below it what each costs."""
        rows = [HEADER, *(row for cell in self.cells for row in _rows(cell))]
        whole = Table(rows, RIGHT, verdict=len(HEADER) - 1)
        lines = whole.lines()
        if not width or max(line.cell_len for line in lines) <= width:
            return lines
        speed = [(*_place(cell), *_rows(cell)[1][COSTS:]) for cell in self.cells]
        compared = Table([(*HEADER[:2], *HEADER[COSTS:]), *speed], {1, 2, 3}, verdict=4)
        costs = Table([row[:COSTS] for row in rows], RIGHT & set(range(COSTS)))
        return [*compared.lines(width), Text(), *costs.lines(width)]

    def _legend(self) -> str:
        where = f"{self.provider}, {counted(self.threads, 'thread')}" if self.provider == "cpu" else self.provider
        rounding = "" if self.provider == "cpu" else f", TF32 {'on' if self.tf32 else 'off'}"
        host = "" if self.provider == "cpu" else " of the host"
        return (
            f"A is {self.a}, B is {self.b}; on {where}{rounding}; ms: medians of all runs; speedup: time of A over "
            "time of B, side by side in every round, so not just the quotient of the two; A/A: of A over itself; peak: "
            f"growth of resident memory{host} from loading the model to its second run"
        )


def _place(cell: Cell) -> tuple[str, str]:
    return by(cell.size) or "-", str(cell.batch)


def _rows(cell: Cell) -> list[tuple[str, ...]]:
    found = cell.comparison
    spread = f"{found.control.low:.2f} to {found.control.high:.2f}"
    return [
        (*_place(cell), "A", *_figures(cell.a), "", "", ""),
        ("", "", "B", *_figures(cell.b), found.speedup.text(), spread, found.verdict),
    ]


def _figures(cost: Cost) -> tuple[str, ...]:
    rate = cost.gmacs_per_second
    return (
        f"{cost.seconds * 1e3:.3g}" if cost.seconds < 1 else f"{cost.seconds * 1e3:.0f}",
        f"{cost.images_per_second:.3g}" if cost.images_per_second < 1000 else f"{cost.images_per_second:.0f}",
        "-" if cost.macs is None else short(cost.macs),
        "-" if rate is None else f"{rate:.3g}",
        "-" if cost.memory is None else f"{cost.memory / 2**20:.0f}",
    )


def _profile(cell: Cell) -> list[str | Table]:
    lines: list[str | Table] = []
    for name, cost in (("A", cell.a), ("B", cell.b)):
        total = sum(node["seconds"] for node in cost.nodes)
        if cost.nodes:
            rows = [
                (f"  {n['seconds'] * 1e3:.3g} ms", f"{n['seconds'] / total:.0%}", n["op"], n["name"])
                for n in cost.nodes[:PROFILED]
            ]
            lines += [
                f"most expensive nodes of {name} at {cell.label}:",
                Table(rows, right=(0, 1), folds={3: 16}, headed=False),
            ]
    return lines
