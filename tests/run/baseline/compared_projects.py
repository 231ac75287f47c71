"""What the tests of `run --baseline` share: settings, a commit, figures of a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from run_projects import TWO_STEPS, git

CONFIG = TWO_STEPS


Run = Callable[..., tuple[int, str, str]]


def commit(folder: Path) -> None:
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "some")


# What a baseline may be -----------------------------------------------------------------------------------------------

FACTS: dict[str, Any] = {
    "status": "rewritten",
    "exit_code": 0,
    "message": "",
    "macs": 1000,
    "macs_left": 0.5,
    "parameters": 100,
    "bytes": 500,
    "output_error": 1e-3,
    "top1_agreement": 0.99,
    "speedup": {"median": 2.0, "low": 1.9, "high": 2.1},
    "device": "cpu: x",
    "source": "0" * 64,
    "by_step": [{"pass": "separable", "rewritten": 2, "macs": 1000, "parameters": 100, "bytes": 500}],
}


REPORT = {"schema": "convrewrite.run/1", "versions": {}, "exit_code": 0, "models": [{"model": "a", **FACTS}]}


LOCK = {
    "schema": "convrewrite.lock/1",
    "models": {"a": {"key": "0" * 64, "output": "1" * 64, "result": FACTS}},
    "timings": {},
}
