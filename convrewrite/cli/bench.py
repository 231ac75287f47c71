"""`convrewrite bench A B`: its options."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convrewrite.cli.options import (
    CHECK,
    TELL,
    DebugOption,
    HtmlOption,
    Provider,
    ProviderOption,
    QuietOption,
    ReportOption,
    Run,
    Size,
    VerboseOption,
    parse_size,
)
from convrewrite.errors import UsageError

if TYPE_CHECKING:
    from convrewrite.pipeline.outcome import Outcome
    from convrewrite.verification import Progress as Tell


class Sizes(tuple[Size, ...]):
    """Several sizes. (A class of its own: a plain tuple would be an option with several values.)"""


class Batches(tuple[int, ...]):
    """Several batches."""


def parse_sizes(text: str) -> Sizes:
    """Read `224,512x512,1024`."""
    return Sizes(parse_size(part.strip()) for part in text.split(","))


def parse_batches(text: str) -> Batches:
    """Read `1,8`."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) < 7 and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"'{text}' is no list of batches; write 1,8")
    return Batches(int(part) for part in parts)


def _positive(value: float | None) -> float | None:
    if value is not None and not (math.isfinite(value) and value > 0):
        raise typer.BadParameter(f"{value} is not a number above 0")
    return value


def register(app: typer.Typer, run: Run) -> None:
    """Add the command to the application; `run` is how the application runs any command."""

    @app.command()
    def bench(
        a: Annotated[str, typer.Argument(metavar="A", help="The original model.")],
        b: Annotated[str, typer.Argument(metavar="B", help="The rewritten model.")],
        size: Annotated[
            Sizes | None,
            typer.Option(
                parser=parse_sizes,
                metavar="HxW,...",
                rich_help_panel=CHECK,
                help="Time at these sizes, e.g. 224,512x768.",
            ),
        ] = None,
        batch: Annotated[
            Batches | None,
            typer.Option(parser=parse_batches, metavar="N,...", rich_help_panel=CHECK, help="Time these batches."),
        ] = None,
        windows: Annotated[
            bool,
            typer.Option(
                "--windows",
                metavar="",
                rich_help_panel=CHECK,
                help="Compare A, slid over every window of the image, with B, which fcn made of it.",
            ),
        ] = False,
        min_speedup: Annotated[
            float | None,
            typer.Option(
                metavar="X",
                callback=_positive,
                rich_help_panel=CHECK,
                help="Fail (exit 1) where the median speedup is below X at some size.",
            ),
        ] = None,
        seconds: Annotated[
            float,
            typer.Option(metavar="S", callback=_positive, rich_help_panel=CHECK, help="Time for so long per size."),
        ] = 10.0,
        provider: ProviderOption = Provider.auto,
        tf32: Annotated[
            bool,
            typer.Option("--tf32", metavar="", rich_help_panel=CHECK, help="Let CUDA round float32 factors to TF32."),
        ] = False,
        threads: Annotated[
            int | None,
            typer.Option(
                min=1, metavar="N", rich_help_panel=CHECK, help="Use N threads of the CPU. Left out: one per core."
            ),
        ] = None,
        seed: Annotated[
            int, typer.Option(min=0, metavar="N", rich_help_panel=CHECK, help="Draw inputs and orders from this seed.")
        ] = 0,
        profile: Annotated[
            bool,
            typer.Option("--profile", metavar="", rich_help_panel=TELL, help="List the most expensive nodes of each."),
        ] = False,
        plot: Annotated[
            Path | None,
            typer.Option(metavar="F.png|svg", rich_help_panel=TELL, help="Draw time against size."),
        ] = None,
        report: ReportOption = None,
        html: HtmlOption = None,
        quiet: QuietOption = False,
        verbose: VerboseOption = False,
        debug: DebugOption = False,
    ) -> None:
        """Time two models against each other, and say whether B is faster beyond the noise."""
        from convrewrite.model_io.guards import Files

        def work(tell: Tell | None) -> Outcome:
            from convrewrite import pipeline, timing

            if plot is not None:
                timing.plot.check(plot)
            outcome = pipeline.time(
                a,
                b,
                sizes=size or (),
                batches=batch or (),
                seconds=seconds,
                provider=provider.value,
                tf32=tf32,
                min_speedup=min_speedup,
                profile=profile,
                windows=windows,
                threads=threads,
                seed=seed,
                verbose=verbose,
                progress=tell,
            )
            if plot is not None and outcome.bench is not None and outcome.bench.cells:
                try:
                    timing.plot.draw(outcome.bench, plot)
                except UsageError as error:  # what was measured is told all the same
                    outcome = outcome if outcome.error is not None else outcome.stopped(error)
            return outcome

        files = Files({"A": a, "B": b}).writing(plot=plot)
        run("bench", provider, work, report, files, quiet=quiet, verbose=verbose, html=html)
