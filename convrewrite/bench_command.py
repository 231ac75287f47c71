"""`convrewrite bench A B`: the options, and where the results go."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from convrewrite.cli_options import (
    CHECK,
    TELL,
    DebugOption,
    Provider,
    ProviderOption,
    QuietOption,
    ReportOption,
    Size,
    VerboseOption,
    parse_size,
)
from convrewrite.errors import ConvrewriteError

if TYPE_CHECKING:
    from convrewrite.timing import Bench

Tell = Callable[[str, int, int], None]

errors = Console(stderr=True, soft_wrap=True)


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


def bench(
    a: Annotated[str, typer.Argument(metavar="A", help="The original model.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The rewritten model.")],
    size: Annotated[
        Sizes | None,
        typer.Option(
            parser=parse_sizes, metavar="HxW,...", rich_help_panel=CHECK, help="Time at these sizes, e.g. 224,512x768."
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
        bool, typer.Option("--tf32", metavar="", rich_help_panel=CHECK, help="Let CUDA round float32 factors to TF32.")
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
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    debug: DebugOption = False,
) -> None:
    """Time two models against each other: is B faster, by how much, and is that more than noise?"""
    from convrewrite import timing
    from convrewrite.report import check_target

    if report is not None:
        check_target(report, [a, b])
    if plot is not None:
        timing.plot.check(plot)
    result: Bench | None = None
    failure: ConvrewriteError | None = None
    try:
        with _progress(quiet) as tell:
            result = timing.bench(
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
        failure = result.error
    except ConvrewriteError as error:
        failure = error
    if result is not None and not quiet:
        errors.print(str(result), markup=False, highlight=False)
    if report is not None:
        _write_report(report, provider.value, result, failure)
    if plot is not None and result is not None and result.cells:
        timing.plot.draw(result, plot)
    if failure is not None:
        raise failure


def register(app: typer.Typer) -> None:
    """Make it a command of the application."""
    app.command()(bench)


def _write_report(target: str, provider: str, result: Bench | None, failure: ConvrewriteError | None) -> None:
    """The report of this command, whole or not at all."""
    from convrewrite.outcome import Outcome
    from convrewrite.report import to_dict

    ran = result.provider if result is not None and result.cells else provider
    outcome = Outcome("bench", ran, "compared")
    data = to_dict(outcome if failure is None else outcome.stopped(failure))
    _write_json({**data, "bench": result.to_dict() if result is not None and result.cells else None}, target)


def _write_json(data: dict[str, Any], target: str) -> None:
    from convrewrite.atomic import discard, refuse_target, temporary_beside, write_durably, write_errors

    text = json.dumps(data, indent=2, allow_nan=False) + "\n"
    if target == "-":
        print(text, end="")
        return
    path = Path(target)
    refuse_target(path)
    temporary = temporary_beside(path, ".json")
    try:
        with write_errors(target):
            write_durably(temporary, [text.encode()])
            temporary.replace(path)
    finally:
        discard(temporary)


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[Tell | None]:
    """A bar on standard error, on a terminal only."""
    if quiet or not errors.is_terminal:
        yield None
        return
    columns: Sequence[Any] = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=errors, transient=True) as bar:
        task = bar.add_task("")

        def tell(text: str, done: int, total: int) -> None:
            bar.update(task, description=text, completed=done, total=total)

        yield tell
