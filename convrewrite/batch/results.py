"""What came of a run, model by model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convrewrite.batch.changes import Against


@dataclass(frozen=True)
class Result:
    """What came of one model. `facts` as `work.do` gives them; `cached`: it had not changed, and was left alone."""

    name: str
    target: Path
    facts: dict[str, Any]
    cached: bool = False

    @property
    def exit_code(self) -> int:
        """The exit code that this model alone would give."""
        return int(self.facts["exit_code"])


@dataclass(frozen=True)
class Batch:
    """The results of all models, and the exit code of the run.

    Attributes:
        reports: the paths of those that were written, by kind. notes: what else there is to say, a line each.
        against: the comparison with a baseline, where one was named.
    """

    results: tuple[Result, ...]
    exit_code: int
    reports: Mapping[str, Path] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    against: Against | None = None
