"""Which models there are, where each goes, and which of them have changed since they were last done."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from convrewrite import model_io, plugins
from convrewrite.batch.matching import matching
from convrewrite.batch.settings import Settings
from convrewrite.errors import UsageError
from convrewrite.pipeline import report
from convrewrite.text import file_name

NO_MATTER = {"models", "output", "jobs", "timeout", "reports", "lock", "baseline"}
"""Keys of the file that decide nothing about what a model becomes."""


@dataclass(frozen=True)
class Job:
    """One model: where it is and where it goes (absolute), its name in reports, and its data if there is some."""

    name: str
    source: Path
    target: Path
    data: Path | None = None


def jobs(settings: Settings, folder: Path) -> list[Job]:
    """The models that the globs match, in the order of their names.

    Raises:
        UsageError: a glob matches nothing; two models would have the same path.
    """
    found: dict[Path, None] = {}
    for pattern in settings.models:
        matches = matching(folder, pattern)
        if not matches:
            raise UsageError(f"models: '{pattern}' matches no file in {folder}", remedy="correct the pattern")
        found.update(dict.fromkeys(matches))
    made = [_job(settings, folder, path) for path in found]
    taken: dict[Path, Job] = {}
    for job in made:
        other = taken.setdefault(job.target, job)
        if other is not job:
            raise UsageError(
                f"'{other.name}' and '{job.name}' would both be written to {_short(job.target, folder)}",
                remedy="put {folder} into 'output'",
            )
    return made


def _job(settings: Settings, folder: Path, path: Path) -> Job:
    name = _short(path, folder)
    inside = Path(name).parent
    folders = [part if part in ("..", inside.anchor) else file_name(part) for part in inside.parts]
    stem = file_name(path.stem)
    words = {"name": stem, "stem": stem, "folder": str(Path(*folders))}
    data = settings.verification.data
    return Job(
        name,
        path,
        Path(os.path.normpath(folder / settings.output.format(**words))),
        None if data is None else folder / data.format(**words),
    )


def _short(path: Path, folder: Path) -> str:
    return os.path.relpath(path, folder)


def key(job: Job, settings: Settings) -> str:
    """A name for all that decides the result: the model, its data, the settings, the versions.

    Raises:
        UsageError: the model or its data cannot be read.
    """
    digest = hashlib.sha256()
    chosen = settings.model_dump(mode="json", exclude=NO_MATTER)
    packages = [plugins.version(step.name) for step in settings.steps]
    digest.update(json.dumps([chosen, report.versions(), packages], sort_keys=True).encode())
    digest.update(model_io.load(job.source).sha256.encode())
    if job.data is not None:
        digest.update(_hash(job.data).encode())
    return digest.hexdigest()


def _hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
