"""The lock file: what was done with each model, and the timings that decided it. It belongs under version control.

It is a cache of decisions and never a proof: outputs are hashed again, what is taken from it is told as not verified
again, and `check` takes nothing but the timings.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from convrewrite import model_io
from convrewrite.acceptance.decisions import Decision, Decisions
from convrewrite.batch.jobs import Job
from convrewrite.errors import ConvrewriteError, UsageError
from convrewrite.system import atomic, stored_json

SCHEMA = "convrewrite.lock/1"

VARYING = ("steps", "views", "seconds")
"""What differs from run to run, or is too much to keep."""

Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Kept(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", frozen=True)


class Speedup(_Kept):
    """The measured speedup of a model, with its confidence interval."""

    median: Finite
    low: Finite
    high: Finite


class Fingerprint(_Kept):
    """What an output that git ignores is known by: see `model_io.recognized`."""

    structure: Hash
    tensors: Annotated[int, Field(ge=0)]
    sums: list[Finite]


class Facts(_Kept):
    """The figures that reports give for a model that passed."""

    status: Literal["rewritten", "unchanged"]
    exit_code: Literal[0]
    message: str = ""
    equivalence: Literal["exact", "reassociated", "approximate"] = "exact"
    macs_left: Finite | None = None
    output_error: Finite | None = None
    top1_agreement: Finite | None = None
    speedup: Speedup | None = None
    sha256: Hash | None = None
    source: Hash | None = None
    fingerprint: Fingerprint | None = None


class Entry(BaseModel):
    """The record of one model that passed: the hashes of its files, the settings, and the result."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    key: Hash
    output: Hash
    result: Facts


class _File(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    format: Literal["convrewrite.lock/1"] = Field(alias="schema")
    models: dict[str, Entry]
    timings: dict[str, dict[str, dict[str, Any]]]


@dataclass
class Lock:
    """The lock file.

    Attributes:
        path: of the file. entries: by model. timings: decisions of accept "faster", by device and key.
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
            return cls.of(path, stored_json.read(path))
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
        except ValueError as error:
            raise _damaged(path, str(error)) from None

    @classmethod
    def of(cls, path: Path, content: Any) -> Lock:
        """What JSON has of one. Raises ValueError where it is anything else."""
        try:
            data = _File.model_validate(content)
        except pydantic.ValidationError as error:
            place = ".".join(str(part)[:80] for part in error.errors()[0]["loc"])
            raise ValueError(f"'{place}' is not as it was written" if place else "") from None
        for decisions in data.timings.values():
            for decision in decisions.values():
                Decision.read(decision)
        return cls(path, data.models, data.timings)

    def fresh(self, job: Job, wanted: str) -> Entry | None:
        """What is known of a model that has not changed, and whose output has the bytes that were left."""
        entry = self.entries.get(job.name)
        if entry is None or entry.key != wanted or not job.target.is_file():
            return None
        try:
            found = model_io.load(job.target).sha256
        except ConvrewriteError:  # damaged since: it is made again
            return None
        return entry if entry.output == found else None

    def known(self, job: Job) -> dict[str, Any] | None:
        """What `check` may hold an output against that is not at hand; None where the model is not on record."""
        entry = self.entries.get(job.name)
        if entry is None:
            return None
        kept = entry.result.fingerprint
        return {
            "output": entry.output,
            "source": entry.result.source,
            "fingerprint": None if kept is None else kept.model_dump(),
        }

    def forget(self, folder: Path) -> None:
        """Drop the records of models that are gone."""
        self.entries = {name: entry for name, entry in self.entries.items() if not _is_gone(folder / name)}

    def keep(self, job: Job, wanted: str, result: dict[str, Any]) -> None:
        """Record a model that passed."""
        kept = {name: _plain(fact) for name, fact in result.items() if name not in VARYING}
        facts = Facts.model_validate(kept)
        self.entries[job.name] = Entry(key=wanted, output=model_io.load(job.target).sha256, result=facts)

    def learn(self, path: Path) -> None:
        """Take over the timings that a worker has written."""
        if path.exists():
            Decisions.read(path)  # raises where it is damaged
            for device, more in json.loads(path.read_text(encoding="utf-8"))["devices"].items():
                self.timings.setdefault(device, {}).update(more)

    def save(self) -> None:
        """Write it, whole or not at all, where something is new."""
        models = {
            name: entry.model_dump(mode="json", exclude_unset=True) for name, entry in sorted(self.entries.items())
        }
        data = {"schema": SCHEMA, "models": models, "timings": self.timings}
        text = json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n"
        if not self.path.exists() or self.path.read_text(encoding="utf-8") != text:
            atomic.write_whole(self.path, [text.encode()], ".lock")


def _is_gone(path: Path) -> bool:
    """Whether there is no such file; one that cannot be looked at may be there."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _plain(fact: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(fact, float) and not math.isfinite(fact) else fact


def _damaged(path: Path, why: str) -> UsageError:
    return UsageError(
        f"{path} is no lock file of convrewrite{f' ({why})' if why else ''}",
        remedy="restore it from version control, delete it, or name another",
    )
