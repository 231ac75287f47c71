"""The command line: typer declares it, `pipeline` does the work, `report` prints it.

Human text goes to standard error, what was asked for to standard output. Exit codes: 0 done or nothing to do, 1 a check
failed, 2 usage or input, 3 refused, 70 an internal error, 130 interrupted. Never a traceback, but with --debug.
Nothing heavy is imported until a command runs, so that --help comes at once.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from convrewrite import __version__, text
from convrewrite.cli import apply as apply_command
from convrewrite.cli import bench as bench_command
from convrewrite.cli import inspect as inspect_command
from convrewrite.cli import rewriting as rewriting_commands
from convrewrite.cli import run as run_command
from convrewrite.cli import verify as verify_command
from convrewrite.cli.completion import passes_and_reasons
from convrewrite.cli.options import DebugOption, Details, Line, TellOptions, Words
from convrewrite.cli.telling import errors, results, say, settle_output, tell, tell_usage, tell_warnings
from convrewrite.cli.usage import Command
from convrewrite.cli.words import FLAGS
from convrewrite.errors import ConvrewriteError, Interrupted, ReaderGone, Terminated, UsageError
from convrewrite.system.endings import theirs
from convrewrite.text.layout import folded, show, width_of

if TYPE_CHECKING:
    from convrewrite.engine.rewrite import Pass
    from convrewrite.model_io.guards import Files
    from convrewrite.pipeline.outcome import Outcome
    from convrewrite.verification import Progress as Tell

STREAM = "-"
WORKERS = "starting workers"
"""The first phase of what other processes do."""
COMPLETING = "_CONVREWRITE_COMPLETE"
"""Set by a shell that asks how a line goes on."""

COMPLETION = {"--install-completion", "--show-completion"}
"""Words that typer answers."""

app = typer.Typer(
    cls=Words,
    name="convrewrite",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Equivalent forms of convolutional networks, for ONNX: proved in ONNX Runtime before they are written.",
    epilog="Exit codes: 0 done, 1 a check failed, 2 usage or input, 3 refused, 70 internal error, 130 interrupted.",
)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", metavar="", help="Print the version.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", metavar="", help="With --version: all that a report of a fault needs.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", metavar="", help="Show the traceback of an error.")] = False,
) -> None:
    """Nothing to do here but what the options above ask for."""
    if version:
        from convrewrite.cli.version import lines

        _answer(lines() if verbose else [f"convrewrite {__version__}"])
        raise typer.Exit
    if verbose:
        raise UsageError("--verbose belongs to a command, or to --version", remedy="write it behind the command")
    if context.invoked_subcommand is None:
        raise UsageError("there is no command", remedy="see convrewrite --help")


@app.command(cls=Command)
def explain(
    subject: Annotated[
        str | None,
        typer.Argument(
            metavar="PASS|REASON", help="A pass, or a reason such as fcn/flat-input.", autocompletion=passes_and_reasons
        ),
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Explain a pass or a reason; without one, list them."""
    from convrewrite import pipeline, plugins, tiling

    loaded, broken = plugins.load_all()
    if subject in broken and subject not in plugins.OWN:
        raise broken[subject]
    passes = {pass_.name: _documented(pass_) for pass_ in loaded}
    others = [pass_ for pass_ in loaded if pass_.name not in plugins.OWN]
    reasons = {code: (meaning, remedy) for code, meaning, remedy in pipeline.reasons(others)}
    reasons |= {reason.code: (reason.meaning, reason.remedy) for reason in tiling.REASONS.values()}
    reasons = text.told(reasons, FLAGS)
    if subject is None:
        faults = [text.terminal(f"{name}: broken: {text.told(error.text, FLAGS)}") for name, error in broken.items()]
        lines = ["passes", *(f"  {told.splitlines()[0]}" for told in passes.values())]
        lines += [*(f"  {fault}" for fault in faults), "reasons"]
        _answer([*lines, *(f"  {code}\n      {meaning}" for code, (meaning, _) in reasons.items())])
    elif subject in passes:
        _answer([passes[subject]])
    elif subject in reasons:
        meaning, remedy = reasons[subject]
        _answer([subject, f"  What it means: {meaning}.", f"  What helps: {remedy}."])
    else:
        raise UsageError(f"there is no pass or reason '{subject}'", remedy="run 'convrewrite explain' for the list")


def _documented(pass_: type[Pass]) -> str:
    """What the module of a pass says of it, or else its class."""
    module = sys.modules.get(pass_.__module__)
    told = getattr(module, "__doc__", None) or pass_.__doc__ or ""
    return str(told).strip() or f"{pass_.name}: it says nothing of itself"


def _answer(lines: list[str]) -> None:
    """Print what was asked for; on a terminal sentences are folded, but drawings are not."""
    from convrewrite.system.streams import refuse_closed_output

    refuse_closed_output()
    width = width_of(results)
    print("\n".join(part for text in lines for part in _fitting(text, width)), flush=True)


def _fitting(told: str, width: int) -> list[str]:
    """The lines, those of a sentence in pieces that keep its indent; anything else as it is."""
    made: list[str] = []
    open_ = False  # whether the sentence goes on
    for line in told.split("\n"):
        words = line.lstrip()
        prose = bool(words) and "  " not in words and words.isascii()
        if open_ and prose and line == words and made[-1] == made[-1].lstrip():
            made[-1] += f" {words}"
        else:
            made.append(line)
        open_ = prose and bool(width) and not words.endswith((".", ":"))
    fitting: list[str] = []
    for line in made:
        words = line.lstrip()
        indent = " " * (len(line) - len(words))
        drawn = not width or "  " in words or not words.isascii()
        fitting += [line] if drawn else [indent + part for part in folded(words, width - len(indent), "")]
    return fitting


def _run(
    command: str,
    line: Line,
    work: Callable[[Tell | None], Outcome],
    files: Files,
    *,
    details: Details = lambda outcome, width: [],
) -> None:
    """Do the work, write the reports whatever came of it, print the text, and let an error set the exit code."""
    from convrewrite.pipeline import report
    from convrewrite.pipeline.outcome import Outcome
    from convrewrite.system import board

    told, image, labels = line.options(TellOptions), line.values.get("image"), line.values.get("labels")
    provider = line.values["provider"] or "auto"
    if told.report is not None:
        report.check_target(told.report, files.writes.get("OUT"))
    files.reading(image=image, labels=labels).writing(report=told.report, html=told.html).check_targets()
    if image is not None and told.html is None:
        raise UsageError("--image is drawn on the page of --html", remedy="name a page with --html")
    if labels is not None and told.html is None:
        raise UsageError("--labels names classes on the page of --html", remedy="name a page with --html")
    nothing = Outcome(command, provider, "error")
    board.mine().facts = {"command": command, "provider": provider, "report": told.report, "html": told.html}
    try:
        with _progress(told.quiet, WORKERS if command == "bench" else "reading the model") as tell:
            outcome = work(tell)
    except ConvrewriteError as error:
        outcome = nothing.stopped(error)
    except KeyboardInterrupt:
        outcome = nothing.stopped(Interrupted("interrupted"))
    except MemoryError as error:
        why = " ".join(str(error).split()) or "out of memory"
        smaller = "choose a smaller --size, or " if line.values.get("size") or line.values.get("sizes") else "choose "
        remedy = f"{smaller}a machine with more memory"
        outcome = nothing.stopped(UsageError(f"not enough memory: {why}", remedy=remedy))
    except Exception as error:  # a fault of ours: the report says so too
        fault = ConvrewriteError(f"{type(error).__name__}: {' '.join(str(error).split())}")
        fault.__cause__ = error
        outcome = nothing.stopped(fault)
    if outcome.error is not None:
        outcome = replace(outcome, error=theirs(outcome.error))
    outcome = outcome.told(FLAGS)
    if told.report is not None:
        with _failure_first(outcome):
            report.write(outcome, told.report)
    if told.html is not None:
        _write_page(outcome, told.html, image, labels)
    if not told.quiet:
        try:
            with _failure_first(outcome):
                _show(outcome, told, details)
        except UsageError as error:  # of standard output: what failed before is more than that
            if outcome.error is None:
                raise
            say(error.text)
    outcome.check()


@contextlib.contextmanager
def _failure_first(outcome: Outcome) -> Iterator[None]:
    """A reader of standard output that went away does not hide what failed."""
    try:
        yield
    except ReaderGone:
        if outcome.error is None:
            raise


def _show(outcome: Outcome, told: TellOptions, details: Details) -> None:
    """Print the text for people; of a command that writes no model it is the result, and goes to standard output."""
    from convrewrite.pipeline import report

    result = outcome.command in ("verify", "bench") and told.report != STREAM and sys.stdout is not None
    console = results if result else errors
    report.show(outcome, console, FLAGS, verbose=told.verbose)
    show(console, details(outcome, width_of(console)))


def _write_page(outcome: Outcome, target: str, image: str | None = None, labels: str | None = None) -> None:
    """The page; what it cannot show must not hide an error of the command itself."""
    from convrewrite import page
    from convrewrite.page.class_map import read_image

    try:
        pixels = None if image is None or outcome.error is not None else read_image(image)  # what failed has no map
        view = page.outcome_view(outcome, pixels, labels)
        page.write(text.told(view, FLAGS), target)
    except ConvrewriteError as error:
        if outcome.error is None:
            raise
        say(f"no page: {text.told(error.text, FLAGS)}")


@contextlib.contextmanager
def _progress(quiet: bool, first: str = WORKERS) -> Iterator[Tell | None]:
    """A bar on standard error, on a terminal only: at `first`, until what it yields is called."""
    if quiet or not width_of(errors) or errors.is_dumb_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
        TextColumn("remaining"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors, transient=True) as bar:
        task = bar.add_task(first, total=None, count="")

        def tell(what: str, done: int, total: int) -> None:
            bar.update(task, description=text.terminal(what), completed=done, total=total, count=f"{done}/{total}")

        yield tell


rewriting_commands.register(app, _run)
verify_command.register(app, _run)
bench_command.register(app, _run)
inspect_command.register(app, _answer)
run_command.register(app, _answer, say, _progress)
apply_command.register(app, say, _progress)


def main() -> None:
    """The console script: the command in a process of its own."""
    from convrewrite.cli import supervisor

    if not os.environ.get("COLUMNS", "").strip("0"):  # nothing could be printed in a width of 0
        os.environ.pop("COLUMNS", None)
    supervisor.supervised(_command, _died)


def _command() -> int:
    """Run what the words ask for, tell what is wrong, and return the exit code."""
    debug = "--debug" in sys.argv[1:]
    tell_warnings(quiet=bool({"--quiet", "-q"} & set(sys.argv[1:])))
    code: object
    if COMPLETING in os.environ or COMPLETION & set(sys.argv[1:2]):
        try:
            code = app()
        except SystemExit as end:  # typer answers the shell, and leaves
            code = end.code
        return code if isinstance(code, int) else 0
    try:
        code = app(standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except ConvrewriteError as error:
        code = error.exit_code
        tell(theirs(error))
        if debug:
            errors.print_exception()
    except typer.Abort:
        code = Interrupted.exit_code
        say("interrupted")
    except typer.TyperException as error:
        code = UsageError.exit_code
        tell_usage(error)
    except KeyboardInterrupt:
        code = Interrupted.exit_code
        say("interrupted")
    except Terminated as error:
        code = error.code
    except (Exception, SystemExit) as error:  # the last resort: never a traceback without --debug
        code = ConvrewriteError.exit_code
        tell(theirs(ConvrewriteError(f"{type(error).__name__}: {' '.join(str(error).split())}")))
        if debug:
            errors.print_exception()
    settle_output()
    return code if isinstance(code, int) else 0


def _died(error: ConvrewriteError, facts: dict[str, Any]) -> None:
    """End in the place of a command whose process died: its reports, and the line."""
    from convrewrite.pipeline import report
    from convrewrite.pipeline.outcome import Outcome

    outcome = Outcome(facts.get("command", ""), facts.get("provider", ""), "error").stopped(error).told(FLAGS)
    with contextlib.suppress(ConvrewriteError):
        if facts.get("report") is not None:
            report.write(outcome, facts["report"])
        if facts.get("html") is not None:
            _write_page(outcome, facts["html"])
    tell(error)
