"""What is done to each model, whatever the pass: rewrite and verify it, then time it job by job, and save after each.

A piece of work says how its model is made, rewritten and verified, and which jobs there are. What goes wrong with one
is recorded with it, and the others go on; what there was no time for is recorded as left out.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from benchmarks.gpu.budget import Budget
from convrewrite.errors import CheckFailed, ConvrewriteError, Interrupted
from convrewrite.options import BenchOptions
from convrewrite.pipeline.outcome import Outcome
from convrewrite.timing import Cell, bench
from convrewrite.verification import Verification

NO_TIME = "no time left"
CUT_OFF = "the run was cut off"
NOTHING_WRITTEN = "the rewritten model was not written"


class Job(Protocol):
    """One thing to time."""

    @property
    def label(self) -> str:
        """In words."""
        ...

    def options(self, rewritten: Path) -> Mapping[str, Any]:
        """What `timing.bench` takes for it."""
        ...


@dataclass(frozen=True)
class Batch:
    """The native size, with a batch."""

    batch: int

    @property
    def label(self) -> str:
        """In words."""
        return f"native size, batch {self.batch}"

    def options(self, rewritten: Path) -> Mapping[str, Any]:
        """What `timing.bench` takes for it."""
        return {"batches": (self.batch,)}


class Work(Protocol):
    """One model under one pass.

    Attributes:
        pass_name: of the pass. model: what `--models` calls it. title: what the tables call it.
        share: of the time, in relation to the others. jobs: to time, the most telling first: the last are left out.
    """

    @property
    def pass_name(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def share(self) -> float: ...
    @property
    def jobs(self) -> Sequence[Job]: ...

    def make(self, original: Path, rewritten: Path, provider: str) -> Outcome:
        """Write the model, rewrite it, and verify that on the provider."""
        ...


@dataclass
class Plan:
    """What is run: `seconds` and `sets` are of `timing.bench`, `folder` is for models, `target` is the result file."""

    provider: str
    tf32: bool
    seconds: float
    sets: int
    works: Sequence[Work]
    folder: Path
    target: Path
    budget: Budget
    report: dict[str, Any] = field(default_factory=dict)

    def save(self) -> None:
        """Write what there is; a file is there whole or not at all."""
        part = self.target.with_suffix(".part")
        part.write_text(json.dumps(self.report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        part.replace(self.target)


def run(plan: Plan) -> int:
    """Verify and time every model; the exit code."""
    code = 0
    entries = [_entry(work) for work in plan.works]
    try:
        for number, (work, entry) in enumerate(zip(plan.works, entries, strict=True)):
            plan.report["models"].append(entry)
            if plan.budget.over:
                _leave_out(work, entry, NO_TIME)
            else:
                plan.budget.begin(work.share, sum(other.share for other in plan.works[number:]))
                code = max(code, _guarded(plan, work, entry))
            plan.save()
        plan.report["complete"] = True
    except KeyboardInterrupt:
        code = Interrupted.exit_code
        print("interrupted, or out of time", file=sys.stderr, flush=True)
        for work, entry in zip(plan.works, entries, strict=True):
            _leave_out(work, entry, CUT_OFF)
        plan.report["models"] = entries
    plan.save()
    return code


def _entry(work: Work) -> dict[str, Any]:
    head = {"pass": work.pass_name, "model": work.model, "title": work.title}
    return {**head, "verify": None, "sites": None, "cells": [], "missed": [], "error": ""}


def _leave_out(work: Work, entry: dict[str, Any], reason: str) -> None:
    """Say of every job that nothing is known of that it was left out."""
    known = {found["job"] for found in (*entry["cells"], *entry["missed"])}
    entry["missed"] += [{"job": job.label, "reason": reason} for job in work.jobs if job.label not in known]


def _guarded(plan: Plan, work: Work, entry: dict[str, Any]) -> int:
    """Do one piece of work, whatever comes; the exit code."""
    try:
        _do(plan, work, entry)
    except Interrupted:
        raise KeyboardInterrupt from None
    except ConvrewriteError as error:
        entry["error"] = str(error)
    except Exception as error:  # nobody is there to start the rest again
        traceback.print_exc()
        entry["error"] = f"{type(error).__name__}: {error}"
    if entry["error"]:
        _leave_out(work, entry, "see the error")
    verdict = entry["error"] or entry["verify"]["verdict"]
    print(f"{work.pass_name}, {work.title}: {verdict}, {len(entry['cells'])} measurements", file=sys.stderr, flush=True)
    return CheckFailed.exit_code if entry["error"] or not entry["verify"]["passed"] else 0


def _do(plan: Plan, work: Work, entry: dict[str, Any]) -> None:
    """Rewrite, verify and time one model; `entry` holds what is known at any time."""
    original, rewritten = plan.folder / "original.onnx", plan.folder / "rewritten.onnx"
    try:
        outcome = work.make(original, rewritten, plan.provider)
        if outcome.verification is None or isinstance(outcome.error, Interrupted):
            outcome.check()
        assert outcome.verification is not None, "an outcome without an error has a verification"
        entry["verify"] = summary(outcome.verification)
        if outcome.sites:
            entry["sites"] = [sum(site.outcome == "rewritten" for site in outcome.sites), len(outcome.sites)]
        plan.save()
        if not rewritten.exists():
            _leave_out(work, entry, NOTHING_WRITTEN)
            return
        for job in work.jobs:
            if not plan.budget.allows:
                entry["missed"].append({"job": job.label, "reason": NO_TIME})
                continue
            with plan.budget.job():
                _measure(plan, original, rewritten, job, entry)
            plan.save()
    finally:
        original.unlink(missing_ok=True)
        rewritten.unlink(missing_ok=True)


def _measure(plan: Plan, original: Path, rewritten: Path, job: Job, entry: dict[str, Any]) -> None:
    """Time one job; what fails is recorded as missed, and the others go on."""
    how = BenchOptions(
        provider=plan.provider,
        tf32=plan.tf32,
        seconds=plan.seconds,
        sets=plan.sets,
        memory=False,
        **job.options(rewritten),
    )
    found = bench(original, rewritten, how)
    entry["missed"] += [{"job": job.label, "reason": missed.reason} for missed in found.missed]
    entry["warnings"] = list(dict.fromkeys([*entry.get("warnings", []), *found.warnings]))
    if found.provider not in ("", plan.provider):
        entry["error"] = f"it was timed on {found.provider}, not on {plan.provider}"
    entry["cells"] += [{"job": job.label, "tf32": found.tf32, **timed(cell)} for cell in found.cells]
    if isinstance(found.error, Interrupted):
        raise KeyboardInterrupt


def timed(cell: Cell) -> dict[str, Any]:
    """One measurement in the result file; `limit` is the ratio of the multiply-accumulates."""
    a, b = cell.a.macs, cell.b.macs
    return {
        "size": list(cell.size),
        "batch": cell.batch,
        "windows": cell.windows,
        "original_seconds": cell.a.seconds,
        "rewritten_seconds": cell.b.seconds,
        "speedup": cell.comparison.speedup.to_dict(),
        "control": cell.comparison.control.to_dict(),
        "verdict": cell.comparison.verdict,
        "macs": [a, b],
        "limit": cell.limit if cell.windows else (a / b if a and b else None),
        "sets": cell.comparison.sets,
        "complete": cell.complete,
    }


def summary(found: Verification) -> dict[str, Any]:
    """The verification in the result file: the verdict, its worst case, what is stated, where the nodes ran."""
    stated = [case for case in found.cases if case.status == "stated"]
    return {
        "verdict": found.verdict,
        "passed": found.passed,
        "message": found.message(),
        "worst": None if found.worst is None else found.worst.to_dict(),
        "stated": [case.to_dict() for case in stated],
        "nodes": {model: dict(counts) for model, counts in found.nodes.items()},
        "warnings": list(found.warnings),
    }
