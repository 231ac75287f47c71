"""Where the files of a run may lie: what is written within the project's folder, and over nothing that is read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from convrewrite.batch.jobs import Job
from convrewrite.batch.settings import Settings
from convrewrite.errors import UsageError
from convrewrite.model_io.guards import Files
from convrewrite.options import RunOptions
from convrewrite.system.atomic import write_errors
from convrewrite.system.identity import folders, identity

DEFAULT = RunOptions()

STREAM = "-"

NAMES = {
    "json": "convrewrite-report.json",
    "junit": "convrewrite-junit.xml",
    "markdown": "convrewrite-report.md",
    "html": "convrewrite-report.html",
}
"""What reports are called where the file of settings does not say it."""


def reports(settings: Settings, folder: Path, options: RunOptions) -> dict[str, Path]:
    """The reports that are asked for, by the key that names them; `reports` of the options has all in its folder."""
    wanted = settings.reports
    named = {"json": wanted.json_, "junit": wanted.junit, "markdown": wanted.markdown, "html": wanted.html}
    if options.reports is not None:
        within = {kind: os.path.relpath(folder / (path or NAMES[kind]), folder) for kind, path in named.items()}
        return {f"reports.{kind}": Path(options.reports).absolute() / path for kind, path in within.items()}
    return {f"reports.{kind}": folder / path for kind, path in named.items() if path is not None}


def elsewhere(options: RunOptions) -> dict[str, Path]:
    """What options alone have written, which may lie anywhere."""
    return {} if options.markdown in (None, STREAM) else {"markdown": Path(str(options.markdown))}


def refuse(
    settings: Settings, folder: Path, jobs: Sequence[Job], config: Path | None, options: RunOptions = DEFAULT
) -> None:
    """Hold all paths of a run against each other.

    Args:
        folder: of the project, that of the file of settings. config: that file. options: of the command.

    Raises:
        UsageError: a file would be written outside of the folder, or in the place of one that is read or written.
    """
    written = {f"output of '{job.name}'": job.target for job in jobs}
    written |= {"lock": folder / settings.lock, **reports(settings, folder, options)}
    free = {*elsewhere(options), *(role for role in written if options.reports and role.startswith("reports."))}
    written |= elsewhere(options)
    project = identity(folder)
    for role, path in written.items():
        with write_errors(path):
            _refuse_name(path)
        if path.is_dir():
            raise UsageError(f"{role} '{path}' is a folder", remedy="name a file")
        if role not in free and project not in folders(path):
            raise UsageError(
                f"{role} '{path}' lies outside of the project's folder {folder}", remedy="choose a path within it"
            )
    Files(
        {f"model '{job.name}'": job.source for job in jobs},
        {
            "the file of settings": config,
            "baseline": options.baseline if options.baseline and os.path.isfile(options.baseline) else None,
            **{f"data of '{job.name}'": job.data for job in jobs},
        },
        writes=written,
    ).keep_apart()


def _refuse_name(path: Path) -> None:
    """Let the system say what it has against a name, such as its length; that nothing is there is well."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return
