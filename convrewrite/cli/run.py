"""``convrewrite run [convrewrite.toml]``, the step of a CI, and ``convrewrite init``, which writes the file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convrewrite.cli.options import Line, TellOptions, declared
from convrewrite.cli.telling import errors
from convrewrite.cli.words import FLAGS
from convrewrite.errors import UsageError
from convrewrite.options import InitOptions, RunOptions

if TYPE_CHECKING:
    from rich.text import Text

    from convrewrite.batch.results import Batch
    from convrewrite.batch.settings import Settings
    from convrewrite.verification import Progress

CONFIG = "convrewrite.toml"


def register(
    app: typer.Typer,
    answer: Callable[[list[str]], None],
    say: Callable[[str], None],
    progress: Callable[[bool], AbstractContextManager[Progress | None]],
) -> None:
    """Add the commands. `answer` prints what was asked for, `say` a line for a person, `progress` opens the bar."""

    @declared(app, RunOptions, TellOptions, but=("report", "html", "verbose"))
    def run(
        config: Annotated[Path, typer.Argument(metavar="[convrewrite.toml]", show_default=False)] = Path(CONFIG),
        *,
        line: Line,
    ) -> None:
        """Optimize the models that a file names, and fail where one of them misses a gate."""
        from convrewrite.batch import settings as file
        from convrewrite.batch.run import run as run_batch
        from convrewrite.batch.summary import to_markdown
        from convrewrite.text import layout

        settings, options, quiet = file.read(config), line.options(RunOptions), line.options(TellOptions).quiet
        folder = config.absolute().parent
        if options.dry_run:
            answer(_plan(settings, folder, config))
            return
        with progress(quiet) as tell:
            batch = run_batch(
                settings, folder, options, config=config, tell=tell or (lambda text, done, total: None), words=FLAGS
            )
        if not quiet:
            for told in (*_lines(batch, layout.width_of(errors)), *_written(batch)):
                if isinstance(told, str):
                    say(told)
                else:
                    layout.show(errors, [told])
        if options.markdown == "-":
            answer(to_markdown(batch).splitlines())
        raise typer.Exit(batch.exit_code)

    @declared(app, InitOptions, TellOptions, but=("report", "html", "quiet", "verbose"))
    def init(
        config: Annotated[Path, typer.Argument(metavar="[convrewrite.toml]", show_default=False)] = Path(CONFIG),
        *,
        line: Line,
    ) -> None:
        """Write a settings file for `run`, with a comment on every key."""
        from convrewrite.batch import ignoring
        from convrewrite.batch.starter import STARTER
        from convrewrite.system import atomic

        add = line.options(InitOptions).gitignore
        if config.exists() and not add:
            raise UsageError(f"{config} is there already", remedy="name another file, or delete it first")
        if add:
            ignoring.check(config.absolute().parent)
        if not config.exists():
            atomic.write_whole(config, [STARTER.encode()], ".toml")
            named = "" if str(config) == CONFIG else f" {config}"
            say(f"wrote {config}; edit its 'models', then: convrewrite run{named}")
        for told in _ignoring(config, add):
            say(told)


def _ignoring(config: Path, add: bool) -> list[str]:
    """Have git ignore the reports, where that is asked for; or say how."""
    from convrewrite.batch import ignoring, settings
    from convrewrite.text import terminal

    folder = config.absolute().parent
    lines = ignoring.missing(settings.read(config), folder)
    path = os.path.relpath(folder / ignoring.NAME)
    if add:
        ignoring.add(lines, folder)
        return [terminal(f"added to {path}: {' '.join(lines)}" if lines else f"{path} has every report already")]
    if not lines:
        return []
    named = "" if str(config) == CONFIG else f" {config}"
    told = ["every run writes its reports anew; to have git ignore them:", f"    convrewrite init --gitignore{named}"]
    return [terminal(line) for line in [*told, f"which adds to {path}:", *(f"    {line}" for line in lines)]]


def _lines(batch: Batch, width: int) -> list[Text | str]:
    """One line per model, and the sum, in at most `width` columns; 0 is no limit."""
    from convrewrite.batch.summary import HEADER, row
    from convrewrite.batch.summary import told as compared
    from convrewrite.text import counted
    from convrewrite.text.layout import Table

    rows = [row(result) for result in batch.results]
    used = [i for i in range(len(HEADER)) if i < 2 or any(cells[i] for cells in rows)]
    named = [[cells[i] for i in used] for cells in (HEADER, *rows)]
    folds = {used.index(i): least for i, least in ((0, 14), (1, 12), (5, 8), (6, 24)) if i in used}
    table = Table(named, folds=folds, verdict=1).lines(width)
    codes = [result.exit_code for result in batch.results]
    counts = [counted(len(codes), "model")] + [
        f"{codes.count(code)} {word}" for code, word in ((1, "failed"), (3, "refused")) if code in codes
    ]
    broken = sum(code not in (0, 1, 3) for code in codes)
    counts += [f"{broken} in error"] if broken else []
    cached = sum(result.cached for result in batch.results)
    counts += [f"{cached} not verified again (--check and --force do)"] if cached else []
    return [*table, ", ".join(counts), *batch.notes, *(["", *compared(batch.against)] if batch.against else [])]


def _written(batch: Batch) -> list[str]:
    """A line with the reports that were written."""
    paths = [os.path.relpath(path) for path in batch.reports.values()]
    return [f"{'report is' if len(paths) == 1 else 'reports are'} in {', '.join(paths)}"] if paths else []


def _plan(settings: Settings, folder: Path, config: Path) -> list[str]:
    """What would be done with each model."""
    from convrewrite.batch import paths
    from convrewrite.batch.jobs import jobs, key
    from convrewrite.batch.lock import Lock
    from convrewrite.errors import ConvrewriteError
    from convrewrite.text import columns, terminal

    every = jobs(settings, folder)
    paths.refuse(settings, folder, every, config)
    lock = Lock.read(folder / settings.lock)
    rows = [("model", "output", "state")]
    for job in every:
        state = "unreadable"
        with contextlib.suppress(ConvrewriteError):
            state = "to do" if lock.fresh(job, key(job, settings)) is None else "as before"
        rows.append((job.name, os.path.relpath(job.target, folder), state))
    steps = []
    for step in settings.steps:
        options = step.model_dump(exclude={"name"}, exclude_defaults=True)
        steps.append(" ".join([step.name, *(f"{name}={value}" for name, value in options.items())]))
    gates = settings.gates.model_dump(exclude_none=True, exclude={"bench_seconds"})
    told = ", ".join(f"{name} {value}" for name, value in gates.items()) or "none"
    return [*columns(rows), terminal(f"steps: {'; '.join(steps)}"), terminal(f"gates: {told}")]
