"""The command line: typer declares it, `pipeline` does the work, `report` prints it.

Human text goes to standard error, what was asked for to standard output. Exit codes: 0 done or nothing to do, 1 a check
failed, 2 usage or input, 3 refused, 70 an internal error, 130 interrupted. Never a traceback, but with --debug.
"""

from __future__ import annotations

import contextlib
import enum
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from convrewrite import __version__
from convrewrite.errors import ConvrewriteError, Refused, UsageError

if TYPE_CHECKING:
    from convrewrite.pipeline import Options, Outcome
    from convrewrite.verification import Progress as Tell

app = typer.Typer(
    name="convrewrite",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Equivalent forms of convolutional networks, for ONNX: proved in ONNX Runtime before they are written.",
)
errors = Console(stderr=True, soft_wrap=True)


class Provider(enum.StrEnum):
    """Where ONNX Runtime runs the models."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    tensorrt = "tensorrt"


class Size(tuple[int, ...]):
    """Extents per spatial axis. (A class of its own: a plain tuple would be an option with several values.)"""


def parse_size(text: str) -> Size:
    """Read `L`, `HxW` or `DxHxW`: one parser for every option that takes a size."""
    parts = text.lower().split("x")
    if not 1 <= len(parts) <= 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"'{text}' is not a size; write HxW, such as 224x224 (L for audio, DxHxW for video)")
    return Size(int(part) for part in parts)


In = Annotated[str | None, typer.Argument(metavar="IN", help="ONNX model; - or nothing is standard input.")]
Out = Annotated[str | None, typer.Argument(metavar="OUT", help="where to write; - or nothing is standard output.")]
ProviderOption = Annotated[Provider, typer.Option(help="where ONNX Runtime runs the models")]
VerifyOption = Annotated[bool, typer.Option(help="run both models before writing")]
ErrorOption = Annotated[
    float | None,
    typer.Option("--max-output-error", metavar="E", min=0.0, help="tolerance on max|a-b|/max|b| per output"),
]
SamplesOption = Annotated[int, typer.Option(min=1, help="number of seeded inputs")]
SeedOption = Annotated[int, typer.Option(min=0, help="of the seeded inputs")]
DataOption = Annotated[Path | None, typer.Option(metavar="F.npz", help="real inputs by input name; axis 0 is samples")]
ReportOption = Annotated[Path | None, typer.Option(metavar="F.json", help="write the report as JSON")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="print nothing but errors")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="print every site")]
OnlyOption = Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="only these nodes or tensors (globs)")]
SkipOption = Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="not these nodes or tensors (globs)")]
DebugOption = Annotated[bool, typer.Option("--debug", help="show the traceback of an error")]


def _version(value: bool) -> None:
    if value:
        print(f"convrewrite {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Nothing to do here: the options above act by themselves."""


@app.command()
def fcn(
    source: In = None,
    target: Out = None,
    window: Annotated[
        Size | None,
        typer.Option(parser=parse_size, metavar="HxW", help="the classifier's own size, where its input is symbolic"),
    ] = None,
    size: Annotated[
        Size | None,
        typer.Option(
            parser=parse_size, metavar="HxW", help="fix the new input to this size instead of making it symbolic"
        ),
    ] = None,
    provider: ProviderOption = Provider.auto,
    verify: VerifyOption = True,
    max_output_error: ErrorOption = None,
    samples: SamplesOption = 3,
    seed: SeedOption = 0,
    data: DataOption = None,
    report: ReportOption = None,
    only: OnlyOption = None,
    skip: SkipOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    debug: DebugOption = False,
) -> None:
    """Make a classifier run on images of any size: its head becomes convolutions."""
    from convrewrite import pipeline
    from convrewrite.passes.fcn import Fcn

    paths = _paths(source, target)
    pass_ = Fcn(window=window, size=size)
    with _progress(quiet) as progress:
        options = _options(provider, verify, max_output_error, samples, seed, data, only, skip, progress)
        outcome = pipeline.fcn(*paths, pass_, options)
    _finish(outcome, report, quiet=quiet, verbose=verbose)


@app.command()
def verify(
    a: Annotated[str, typer.Argument(metavar="A", help="the original model")],
    b: Annotated[str, typer.Argument(metavar="B", help="the rewritten model")],
    size: Annotated[
        Size | None, typer.Option(parser=parse_size, metavar="HxW", help="size of symbolic image axes")
    ] = None,
    provider: ProviderOption = Provider.auto,
    max_output_error: ErrorOption = None,
    samples: SamplesOption = 3,
    seed: SeedOption = 0,
    data: DataOption = None,
    report: ReportOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    debug: DebugOption = False,
) -> None:
    """Run two models in ONNX Runtime and say whether they are the same function; B may be what `fcn` wrote."""
    from convrewrite import pipeline

    with _progress(quiet) as progress:
        options = _options(provider, True, max_output_error, samples, seed, data, None, None, progress)
        outcome = pipeline.compare(a, b, size, options)
    _finish(outcome, report, quiet=quiet, verbose=verbose)


@app.command()
def explain(
    subject: Annotated[str | None, typer.Argument(metavar="[PASS|REASON]", help="what to explain")] = None,
) -> None:
    """Explain a pass or a reason; without one, list them."""
    from convrewrite import pipeline
    from convrewrite.passes import ALL

    passes = {pass_.name: sys.modules[pass_.__module__].__doc__ or "" for pass_ in ALL}
    reasons = {code: (meaning, remedy) for code, meaning, remedy in pipeline.reasons()}
    if subject is None:
        print("passes:  " + " ".join(passes))
        print("reasons:")
        for code, (meaning, _) in reasons.items():
            print(f"  {code}: {meaning}")
    elif subject in passes:
        print(passes[subject].strip())
    elif subject in reasons:
        meaning, remedy = reasons[subject]
        print(f"{subject}\n  {meaning}.\n  What helps: {remedy}.")
    else:
        raise UsageError(f"there is no pass or reason '{subject}'", remedy="run 'convrewrite explain' for the list")


def _paths(source: str | None, target: str | None) -> tuple[str, str]:
    if source is not None and target is None:
        raise UsageError(f"where should the result of '{source}' go?", remedy="give IN and OUT, or neither for a pipe")
    return source or "-", target or "-"


def _options(
    provider: Provider,
    verify: bool,
    max_output_error: float | None,
    samples: int,
    seed: int,
    data: Path | None,
    only: list[str] | None,
    skip: list[str] | None,
    progress: Tell | None,
) -> Options:
    from convrewrite import pipeline, sampling

    feeds = None if data is None else sampling.read_data(data)
    return pipeline.Options(
        provider.value, verify, max_output_error, samples, seed, feeds, tuple(only or ()), tuple(skip or ()), progress
    )


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[Tell | None]:
    """A bar on standard error, on a terminal only; yields what the verification calls as it goes."""
    if quiet or not errors.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=errors, transient=True) as bar:
        tasks = {}

        def tell(text: str, done: int, total: int) -> None:
            if text not in tasks:
                tasks[text] = bar.add_task(text, total=total)
            bar.update(tasks[text], completed=done, total=total)

        yield tell


def _finish(outcome: Outcome, report_path: Path | None, *, quiet: bool, verbose: bool) -> None:
    """Write the report, print the text, and let the outcome's error set the exit code."""
    from convrewrite import report

    if report_path is not None:
        report.write(outcome, report_path)
    if not quiet:
        report.show(outcome, errors, verbose=verbose)
    outcome.check()


def main() -> None:
    """The console script."""
    debug = "--debug" in sys.argv[1:]
    try:
        code = app(standalone_mode=False)
    except ConvrewriteError as error:
        code = error.exit_code
        _say(f"{'refused' if isinstance(error, Refused) else 'error'}: {error}")
        if debug:
            errors.print_exception()
    except typer.Abort:
        code = 130
        _say("interrupted")
    except typer.TyperException as error:
        lines = str(error).strip().splitlines()
        print(str(error), file=sys.stderr) if len(lines) > 1 else _say(
            f"error: {' '.join(lines)}; see convrewrite --help"
        )
        code = 2
    except KeyboardInterrupt:
        code = 130
        _say("interrupted")
    except BrokenPipeError:
        code = 2
        _say("error: the reader of standard output went away")
    except Exception as error:  # the last resort: never a traceback without --debug
        code = 70
        _say(f"internal error: {type(error).__name__}: {' '.join(str(error).split())}")
        if debug:
            errors.print_exception()
        else:
            command = shlex.join(["convrewrite", *sys.argv[1:], "--debug"])
            _say(f"please report it with what this prints: {command}")
    sys.exit(code if isinstance(code, int) else 0)


def _say(text: str) -> None:
    errors.print(text, markup=False, highlight=False)
