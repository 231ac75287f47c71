"""Which models there are, where each goes, and which of them have changed since they were last done."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convrewrite import atomic, model_io, plugins, report
from convrewrite.acceptance.decisions import Decisions
from convrewrite.batch.matching import matching
from convrewrite.batch.settings import Settings
from convrewrite.errors import UsageError
from convrewrite.text import file_name

SCHEMA = "convrewrite.lock/1"


@dataclass(frozen=True)
class Job:
    """One model: where it is and where it goes (absolute), its name in reports, and its data if there is some."""

    name: str
    source: Path
    target: Path
    data: Path | None = None


@dataclass(frozen=True)
class Entry:
    """What the lock file keeps of a model that passed: what went in, what came out, and how that ended."""

    key: str
    output: str
    result: dict[str, Any]


def jobs(settings: Settings, folder: Path) -> list[Job]:
    """The models that the globs match, in the order of their names.

    Raises:
        UsageError: a glob matches nothing; two models, or a model and its source, would have the same path.
    """
    found: dict[Path, None] = {}
    for pattern in settings.models:
        matches = matching(folder, pattern)
        if not matches:
            raise UsageError(f"models: '{pattern}' matches no file in {folder}", remedy="mend the pattern")
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
        if job.target in found:
            raise UsageError(f"'{job.name}' would overwrite a model that is read", remedy="choose another 'output'")
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
    chosen = settings.model_dump(mode="json", exclude={"models", "output", "jobs", "timeout", "reports", "lock"})
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


@dataclass
class Lock:
    """The lock file: what was done, and the timings that decided it. It belongs under version control.

    Attributes:
        path: of the file. entries: by model. timings: decisions of `--accept faster`, by device and key.
    """

    path: Path
    entries: dict[str, Entry] = field(default_factory=dict)
    timings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Lock:
        """Read it; one that is not there yet is empty. Raises UsageError for anything else."""
        if not path.exists():
            return cls(path)
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["schema"] != SCHEMA:
                raise ValueError(data["schema"])
            entries = {str(name): Entry(**entry) for name, entry in data["models"].items()}
            return cls(path, entries, dict(data["timings"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise UsageError(f"{path} is no lock file of convrewrite", remedy="delete it, or name another") from None

    def fresh(self, job: Job, wanted: str) -> Entry | None:
        """What is known of a model that has not changed, and whose output is as it was left.

        Raises:
            UsageError: the output cannot be read.
        """
        entry = self.entries.get(job.name)
        if entry is None or entry.key != wanted or not job.target.is_file():
            return None
        return entry if entry.output == model_io.load(job.target).sha256 else None

    def keep(self, job: Job, wanted: str, result: dict[str, Any]) -> None:
        """Remember a model that passed; what differs from run to run stays out."""
        kept = {name: fact for name, fact in result.items() if name not in ("steps", "views", "seconds")}
        self.entries[job.name] = Entry(wanted, model_io.load(job.target).sha256, kept)

    def learn(self, path: Path) -> None:
        """Take over the timings that a worker left."""
        if path.exists():
            Decisions.read(path)  # raises where it is damaged
            for device, more in json.loads(path.read_text(encoding="utf-8"))["devices"].items():
                self.timings.setdefault(device, {}).update(more)

    def save(self) -> None:
        """Write it, whole or not at all, where something is new."""
        models = {name: vars(entry) for name, entry in sorted(self.entries.items())}
        data = {"schema": SCHEMA, "models": models, "timings": self.timings}
        text = json.dumps(data, indent=1, sort_keys=True) + "\n"
        if not self.path.exists() or self.path.read_text(encoding="utf-8") != text:
            atomic.write_whole(self.path, [text.encode()], ".lock")
