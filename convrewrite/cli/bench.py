"""`convrewrite bench A B`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convrewrite.cli.options import Line, Run, TellOptions, declared
from convrewrite.errors import UsageError
from convrewrite.options import BenchOptions

if TYPE_CHECKING:
    from convrewrite.pipeline.outcome import Outcome
    from convrewrite.verification import Progress as Tell


def register(app: typer.Typer, run: Run) -> None:
    """Add the command to the application; `run` is how the application runs any command."""

    @declared(app, BenchOptions, TellOptions)
    def bench(
        a: Annotated[str, typer.Argument(metavar="A", help="The original model.")],
        b: Annotated[str, typer.Argument(metavar="B", help="The rewritten model.")],
        line: Line,
    ) -> None:
        """Time two models against each other, and say whether B is faster beyond the noise."""
        from convrewrite.model_io.guards import Files

        options = line.options(BenchOptions)
        plot = None if options.plot is None else Path(options.plot)

        def work(tell: Tell | None) -> Outcome:
            from convrewrite import pipeline, timing

            if plot is not None:
                timing.plot.check(plot)
            outcome = pipeline.time(a, b, replace(options, progress=tell))
            if plot is not None and outcome.bench is not None and outcome.bench.cells:
                try:
                    timing.plot.draw(outcome.bench, plot)
                except UsageError as error:  # what was measured is told all the same
                    outcome = outcome if outcome.error is not None else outcome.stopped(error)
            return outcome

        run("bench", line, work, Files({"A": a, "B": b}).writing(plot=plot))
