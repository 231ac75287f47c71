"""What models were like elsewhere: at a commit of the repository, or in a file that another run has left.

main              ──git──> convrewrite.lock of that commit, or its JSON report ──┐
report.json, x.lock ─────────────────────────────────────────────────────────────┴──> figures by model
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from convrewrite.batch import lock, repository
from convrewrite.batch.settings import Settings
from convrewrite.errors import UsageError
from convrewrite.system import stored_json
from convrewrite.text import parameter, shortened

SCHEMA = "convrewrite.run/1"
"""Of the reports of `run`."""

SHORT = 10
"""Digits of a commit that are shown."""

Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class Known(BaseModel):
    """What a baseline holds of a step or a model; None where it was written before that was recorded."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    macs: Count | None = None
    parameters: Count | None = None
    bytes: Count | None = None


class Step(Known):
    """One step of a model."""

    name: str = Field("", alias="pass")
    rewritten: Count | None = None


class Figures(Known):
    """One model."""

    exit_code: int
    macs_left: Finite | None = None
    output_error: Finite | None = None
    top1_agreement: Finite | None = None
    speedup: lock.Speedup | None = None
    device: str | None = None
    source: str | None = None
    by_step: list[Step] | None = None


class _Report(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    models: list[dict[str, Any]]


@dataclass(frozen=True)
class Baseline:
    """What models were like; `name` as it was given, `commit` where that is a ref, `file` that was read."""

    name: str
    commit: str | None = None
    file: str | None = None
    models: Mapping[str, Figures] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The name, with the commit that it stands for."""
        return self.name if self.commit is None else f"{self.name} ({self.commit[:SHORT]})"


def read(given: str, settings: Settings, folder: Path, config: Path | None) -> Baseline:
    """Read the baseline that a ref or a path names.

    Args:
        given: the ref, or the path. settings: of this run. folder: of the project. config: the file of settings.

    Raises:
        UsageError: it is neither, or both; there is nothing of a run; what is there is damaged, or of another version.
    """
    file = Path(given)
    is_file = os.path.isfile(given)
    try:
        commit = repository.commit(folder, given)
    except UsageError:
        if not is_file:
            raise _unknown(given, folder, "") from None
        commit = None
    if commit is None and not is_file:
        raise _unknown(given, folder, _advice(given, folder))
    if commit is not None and is_file:
        raise UsageError(
            f"{parameter('baseline', given)} is a git ref, and a file as well",
            remedy=f"write ./{given} for the file, or the whole name of the ref, such as refs/heads/{given}",
        )
    return _of_file(given, file) if commit is None else _of_commit(given, commit, settings, folder, config=config)


def _unknown(given: str, folder: Path, advice: str) -> UsageError:
    return UsageError(
        f"{parameter('baseline', shortened(given, 200))} is no file, and no commit that git knows in {folder}",
        remedy=advice or "name a branch, a tag or a commit there, or a report or lock file of run",
    )


def _advice(given: str, folder: Path) -> str:
    """What may be meant by a ref that is not there."""
    for near in (f"origin/{given}", f"upstream/{given}"):
        if repository.commit(folder, near) is not None:
            return f"did you mean {near}?"
    if repository.is_shallow(folder):
        branch = given.removeprefix("origin/")
        return f"this clone is shallow: git fetch origin {branch}, then name FETCH_HEAD"
    return ""


def _of_file(given: str, path: Path) -> Baseline:
    try:
        content = stored_json.read(path)
        return Baseline(given, None, given, _figures(path, content))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise _damaged(given, error) from None


def _of_commit(
    given: str, commit: repository.Commit, settings: Settings, folder: Path, *, config: Path | None
) -> Baseline:
    """The lock file of that commit, which is under version control; a JSON report that is, where there is none."""
    for name in (settings.lock, settings.reports.json_):
        content = None if name is None else commit.read(os.path.relpath(folder / name, folder))
        if name is None or content is None:
            continue
        try:
            figures = _figures(Path(name), stored_json.parse(content))
        except ValueError as error:
            raise _damaged(f"{given}:{name}", error) from None
        return Baseline(given, commit.sha, name, figures)
    if config is not None and commit.read(os.path.relpath(config, folder)) is not None:
        raise UsageError(
            f"there is no {settings.lock} at {given} ({commit.sha[:SHORT]}), and so nothing to compare with",
            remedy="commit the lock file there, or give a report of a run there",
        )
    return Baseline(given, commit.sha)


def _figures(path: Path, content: Any) -> dict[str, Figures]:
    """The figures by model. Raises ValueError where the content is not that of a run."""
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema == lock.SCHEMA:
        entries = lock.Lock.of(path, content).entries
        facts = {name: entry.result.model_dump(exclude_unset=True) for name, entry in entries.items()}
    elif schema == SCHEMA:
        models = _Report.model_validate(content).models
        facts = {str(model.get("model", "")): {"by_step": _steps(model), **model} for model in models}
    elif isinstance(schema, str) and schema.startswith("convrewrite."):
        if schema.startswith("convrewrite.report/"):
            raise ValueError("it is the report of one command, and not of run")
        raise ValueError(f"its schema is {schema[:80]}, where {SCHEMA} and {lock.SCHEMA} are read")
    else:
        raise ValueError("it was not written by run")
    return {name: Figures.model_validate(_shared(entry)) for name, entry in facts.items()}


def _shared(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that are compared; a whole number is as good as one with a point."""
    return {name: facts[name] for name in Figures.model_fields if name in facts}


def _steps(model: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """What a report from before `by_step` says of the steps of a model."""
    steps = model.get("steps")
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        return None
    sizes = [step.get("output") if isinstance(step.get("output"), dict) else {} for step in steps]
    return [{"pass": str(step.get("command", "")), **(size or {})} for step, size in zip(steps, sizes, strict=True)]


def _damaged(what: str, error: ValueError) -> UsageError:
    if isinstance(error, pydantic.ValidationError):
        place = ".".join(str(part)[:80] for part in error.errors()[0]["loc"])
        why = f"'{place}' is not as it was written"
    else:
        why = str(error)
    return UsageError(
        f"{parameter('baseline')}: {what} is no report and no lock file of run ({why})",
        remedy="give what convrewrite run has written",
    )
