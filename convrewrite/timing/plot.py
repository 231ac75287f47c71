"""Time against size as a picture (matplotlib, the extra `plot`; imported only here, only when asked for)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from convrewrite.errors import UsageError
from convrewrite.system import atomic
from convrewrite.text import by, parameter
from convrewrite.timing.result import Bench, Cell

SUFFIXES = (".png", ".svg")


def check(target: str | Path) -> None:
    """Raise UsageError where no plot can be made, before any timing."""
    if Path(target).suffix.lower() not in SUFFIXES:
        raise UsageError(f"{parameter('plot', target)}: the name must end in {' or '.join(SUFFIXES)}")
    _matplotlib()


def draw(result: Bench, target: str | Path) -> None:
    """Write the plot: milliseconds over pixels, both logarithmic, a line per model and batch."""
    figure_type = _matplotlib()
    from matplotlib.ticker import LogLocator

    figure = figure_type(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    labels = {_pixels(cell): by(cell.size) for cell in result.cells}
    for number, batch in enumerate(sorted({_line(cell) for cell in result.cells})):
        cells = sorted((cell for cell in result.cells if _line(cell) == batch), key=_pixels)
        x = [_pixels(cell) for cell in cells]
        kind = f", batch {batch}" if batch else ""
        pairs = ("A", [c.a.seconds * 1e3 for c in cells], "--"), ("B", [c.b.seconds * 1e3 for c in cells], "-")
        for name, y, style in pairs:
            model = Path(result.a if name == "A" else result.b).name
            axes.plot(x, y, f"o{style}", color=f"C{number}", label=f"{name}: {model}{kind}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(list(labels), labels=list(labels.values()))
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set_xlabel("size of the image")
    axes.set_ylabel("milliseconds")
    axes.set_title(f"on {result.provider}")
    axes.grid(alpha=0.3)
    axes.legend()
    path = atomic.refuse_target(Path(target))
    temporary = atomic.temporary_beside(path, path.suffix)
    try:
        with atomic.write_errors(target):
            figure.savefig(temporary)
            atomic.publish(temporary, path)
    finally:
        atomic.discard(temporary)


def _pixels(cell: Cell) -> int:
    return math.prod(cell.size)


def _line(cell: Cell) -> int:
    """Cells of one line: those of one batch; all of them where the batch is the best one for all windows."""
    return 0 if cell.windows else cell.batch


def _matplotlib() -> Any:
    """A figure without a display."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError(
            f"{parameter('plot')} needs matplotlib, which is not installed",
            remedy='run: pip install "convrewrite[plot]"',
        ) from None
    return Figure
