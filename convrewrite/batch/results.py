"""What came of a run, model by model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


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
    """The results of all models, and the exit code of the run."""

    results: tuple[Result, ...]
    exit_code: int
