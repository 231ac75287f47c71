"""What is done for one model: its steps, one after another, then the gates on all of them together, then the output.

source ──fcn──> 0.onnx ──separable──> 1.onnx ──gates: against source──> target, whole or not at all
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convrewrite import model_io, page, pipeline, plugins, timing
from convrewrite.acceptance.decisions import device
from convrewrite.batch.settings import FcnStep, Gates, GroupsStep, SeparableStep, Settings, Step
from convrewrite.batch.settings import Verification as Verified
from convrewrite.batch.words import KEYS
from convrewrite.engine import costs
from convrewrite.engine.windows import METADATA_KEY, UPSAMPLED_KEY
from convrewrite.errors import CheckFailed, ConvrewriteError, UsageError
from convrewrite.options import (
    BenchOptions,
    CheckOptions,
    FcnOptions,
    GroupsOptions,
    SeparableOptions,
    TransformOptions,
)
from convrewrite.pipeline import report
from convrewrite.pipeline.native import native
from convrewrite.pipeline.outcome import FAILURES, Outcome
from convrewrite.pipeline.steps import without_writing
from convrewrite.running.sampling import read_data
from convrewrite.system import atomic
from convrewrite.system.endings import theirs
from convrewrite.text import parameter
from convrewrite.verification.stated import output_error, state

CLASSES = ("exact", "reassociated", "approximate")
"""Equivalence classes, the strictest first."""

ROUNDING = 1e-5
"""By so much of the largest weight of a tensor factors differ from one processor to another: their sums are ordered
otherwise."""


@dataclass
class Finding:
    """What came of one model, as far as it is known; `facts` is what JSON has of it."""

    facts: dict[str, Any] = field(default_factory=lambda: {"status": "error", "exit_code": 70, "message": ""})

    def note(self, **more: Any) -> None:
        """Add facts to the record of this command."""
        self.facts.update(more)

    def ended(self, error: ConvrewriteError) -> None:
        """An error ended it, which is told in the words of the file."""
        error = theirs(error)
        without_writing(error)
        error.speak(KEYS)
        self.note(
            status=FAILURES.get(error.exit_code, "error"),
            exit_code=error.exit_code,
            message=error.text,
            reason=error.reason or "",
        )


def do(task: Mapping[str, Any]) -> dict[str, Any]:
    """Do what a task says.

    Args:
        task: `source`, `target`, `data` (or None), `timings`: paths; `settings`: of the run; `check`: write nothing;
            `folder`: an empty one, for the models that the steps make.

    Returns:
        `status` ("rewritten", "unchanged", "failed", "error", "refused"), `exit_code`, `message`, and what is known of
        `equivalence`, `output_error`, `top1_agreement`, `speedup`, `bytes`, MACs, parameters and each step's report.
        `made`: the path of the model that `publish` gives its place.
    """
    finding = Finding()
    try:
        _do(task, finding)
    except ConvrewriteError as error:
        finding.ended(error)
    except MemoryError:
        finding.ended(UsageError("not enough memory", remedy="choose a smaller size, or fewer jobs"))
    return finding.facts


def _do(task: Mapping[str, Any], finding: Finding) -> None:
    settings = Settings.model_validate(task["settings"], strict=False)
    source, target = Path(task["source"]), Path(task["target"])
    if not task["check"]:
        with atomic.write_errors(target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
        atomic.check_target(target, "output", [source])
    data = None if task["data"] is None else read_data(task["data"])
    last = source
    reports: list[dict[str, Any]] = []
    views: list[dict[str, Any]] = []
    for index, step in enumerate(settings.steps):
        made = Path(task["folder"]) / f"{index}.onnx"
        checked = settings.verification.options(data if _fits(last, data) else None, task["data"])
        outcome = _step(step, (str(last), str(made)), checked, task["timings"])
        if outcome.error is not None:
            without_writing(outcome.error)
        outcome = outcome.told(KEYS)
        reports.append(_told(outcome, index))
        if settings.reports.html is not None:
            views.append({**page.outcome_view(outcome), **_named(reports[-1])})
        finding.note(steps=reports, views=views, **_macs(reports))
        outcome.check()
        last = made
    changed = any(told["outcome"] == "rewritten" for told in reports)
    finding.note(**_sizes(source, last), equivalence=_class(reports), by_step=[_brief(told) for told in reports])
    if task["ignored"]:
        finding.note(fingerprint=model_io.fingerprint(model_io.load(last)))
    if changed:
        _gates(settings, (source, last), data, finding)
    elif too_large := _too_large(settings.gates, finding):
        raise CheckFailed(too_large[0])
    if task["check"]:
        finding.note(note=_check_current(last, target, changed, task, facts=finding.facts))
    else:
        finding.note(made=str(last))
    finding.note(status="rewritten" if changed else "unchanged", exit_code=0)


def publish(facts: dict[str, Any], target: str | Path) -> dict[str, Any]:
    """Give the model that a process has made its place, once that process has said that it is done, and is gone.

    Args:
        facts: as `do` returns them. target: the path of the output.

    Returns:
        The facts without the path of the model; those of an error where it cannot be written.
    """
    facts = dict(facts)
    made = facts.pop("made", None)
    if made is None or facts["exit_code"]:
        return facts
    finding = Finding(facts)
    try:
        model_io.copy_bytes(model_io.load(made), Path(target))
    except ConvrewriteError as error:
        finding.ended(error)
    return finding.facts


def _fits(model: Path, data: Mapping[str, Any] | None) -> bool:
    """Whether the data is for this model: after `fcn` it still is, by name."""
    return data is None or {t.name for t in model_io.load(model).graph.inputs} <= set(data)


def _step(step: Step, ends: tuple[str, str], checked: CheckOptions, timings: str) -> Outcome:
    """Run one step; what [verification] says holds for every one."""
    if isinstance(step, FcnStep):
        return pipeline.fcn(*ends, step.options(FcnOptions, checked))
    if isinstance(step, GroupsStep):
        return pipeline.groups(*ends, step.options(GroupsOptions, checked, timings=timings))
    if isinstance(step, SeparableStep):
        return pipeline.separable(*ends, step.options(SeparableOptions, checked, timings=timings))
    pass_ = plugins.make(step.name, step.model_extra or {})
    return pipeline.trade(*ends, pass_, step.options(TransformOptions, checked, timings=timings))


def _extents(size: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if size is None else tuple(size)


def _told(outcome: Outcome, index: int) -> dict[str, Any]:
    """The report of a step; files that live no longer than the run have no path."""
    told = {**report.to_dict(outcome), "step": index}
    return {**told, **_named(told)}


def _named(told: Mapping[str, Any]) -> dict[str, Any]:
    """The ends of a step, without the paths of files that live no longer than the run."""
    return {end: told[end] and {**told[end], "path": ""} for end in ("input", "output")}


def _macs(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The MACs of both ends, where they are known, and the share that is left over all steps that counted them."""
    ends = [(told["input"] and told["input"]["macs"], _macs_after(told)) for told in reports]
    pairs = [(before, after) for before, after in ends if before and after]
    ended = reports[-1]["exit_code"] != 0 and ends[-1][1] is None
    return {
        "macs_before": ends[0][0],
        "macs": ends[-1][1],
        "macs_left": math.prod(after / before for before, after in pairs) if pairs and not ended else None,
    }


def _macs_after(told: Mapping[str, Any]) -> int | None:
    """The MACs of what a step made; of a model that its check has failed, by what its sites say."""
    if told["output"] is not None:
        found: int | None = told["output"]["macs"]
        return found
    sites = [site for site in told["sites"] if site["outcome"] == "rewritten"]
    counts = [(site["macs_before"], site["macs_after"]) for site in sites]
    before = told["input"] and told["input"]["macs"]
    if told["exit_code"] != CheckFailed.exit_code or not before or not counts or None in sum(counts, ()):
        return None
    return int(before - sum(old - new for old, new in counts))


def _brief(told: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a step to compare it with that of another run."""
    sizes = {name: told["output"] and told["output"][name] for name in ("macs", "parameters", "bytes")}
    rewritten = sum(site["outcome"] == "rewritten" for site in told["sites"])
    return {"pass": told["command"], "rewritten": rewritten, **sizes}


def _class(reports: Sequence[Mapping[str, Any]]) -> str:
    """The loosest class of all that was rewritten; exact where nothing was."""
    found = {site["equivalence"] for told in reports for site in told["sites"] if site["outcome"] == "rewritten"}
    return max(found & set(CLASSES), key=CLASSES.index, default=CLASSES[0])


def _sizes(source: Path, last: Path) -> dict[str, Any]:
    before, after = model_io.load(source), model_io.load(last)
    return {
        "source": before.sha256,
        "bytes_before": before.nbytes,
        "bytes": after.nbytes,
        "sha256": after.sha256,
        "parameters_before": costs.parameters(before.graph),
        "parameters": costs.parameters(after.graph),
    }


def _gates(settings: Settings, ends: tuple[Path, Path], data: Any, finding: Finding) -> None:
    """Hold the result of all steps against the original. Raises CheckFailed, which names every gate that is missed.

    Timing takes long: where another gate was missed, nothing is timed, and the error says so.
    """
    gates, how = settings.gates, settings.verification
    equivalence = finding.facts["equivalence"]
    missed = []
    if gates.equivalence is not None and CLASSES.index(equivalence) > CLASSES.index(gates.equivalence):
        missed.append(f"gate equivalence: the result is {equivalence}, and {gates.equivalence} was asked for")
    missed += _too_large(gates, finding)
    if UPSAMPLED_KEY in model_io.load(ends[1]).metadata:  # no output has the original's shape: each step was proved
        unfit = [n for n in ("max_output_error", "min_top1_agreement", "min_speedup") if getattr(gates, n) is not None]
        missed += [f"gate {gate} has no meaning for a class map at every pixel, leave it out" for gate in unfit]
    else:
        missed += _too_far(settings, ends, data, finding)
        if gates.min_speedup is not None and missed:
            missed.append("gate min_speedup: not measured, since another gate was missed")
        elif gates.min_speedup is not None:
            timed = BenchOptions(
                sizes=[] if how.size is None else [how.size],
                provider=how.provider,
                seconds=gates.bench_seconds,
                min_speedup=gates.min_speedup,
            )
            found = timing.bench(*ends, timed)
            finding.note(speedup=None if found.speedup is None else found.speedup.to_dict(), verdict=found.verdict)
            finding.note(device=device(found.provider, found.threads))
            missed += [f"gate min_speedup: {found.error.text}"] if found.error is not None else []
    if missed:
        raise CheckFailed("; ".join(missed))


def _too_far(settings: Settings, ends: tuple[Path, Path], data: Any, finding: Finding) -> list[str]:
    """How far the outputs are from the original's; a line for each gate on that which is missed."""
    gates, how = settings.gates, settings.verification
    stated = state(*ends, how.options(data).comparing(size=_compared_at(*ends, how, data)))
    error = output_error(stated)
    shares = [c.metrics.top1_agreement for c in stated.cases if c.metrics and c.metrics.top1_agreement is not None]
    same = min(shares, default=None)
    finding.note(output_error=error, top1_agreement=same)
    missed = []
    try:
        stated.check()
    except CheckFailed as failure:
        missed.append(failure.text)
    if gates.max_output_error is not None and not error <= gates.max_output_error:
        hint = _option_of_a_step(settings, finding, gates.max_output_error)
        missed.append(
            f"gate max_output_error: the outputs moved by {error:.1e}, more than {gates.max_output_error:g}{hint}"
        )
    if gates.min_top1_agreement is not None and same is None:
        missed.append("gate min_top1_agreement: no output has classes to compare")
    elif gates.min_top1_agreement is not None and same is not None and same < gates.min_top1_agreement:
        missed.append(
            f"gate min_top1_agreement: the same class in {same:.1%}, less than {gates.min_top1_agreement:.1%}"
        )
    return missed


def _compared_at(source: Path, last: Path, how: Verified, data: Any) -> tuple[int, ...] | None:
    """The size that the file of settings names, or that the steps took where an input is open."""
    if how.size is not None or METADATA_KEY in model_io.load(last).metadata:
        return _extents(how.size)
    return native(model_io.load(source), None, data).size


def _too_large(gates: Gates, finding: Finding) -> list[str]:
    """A line where the file is larger than the gate allows."""
    size = finding.facts["bytes"]
    if gates.max_bytes is None or size <= gates.max_bytes:
        return []
    return [f"gate max_bytes: {size:,} bytes, more than {gates.max_bytes:,}"]


def _option_of_a_step(settings: Settings, finding: Finding, limit: float) -> str:
    """What keeps an approximate step within the bound of a gate: its own option of that name."""
    for step, told in zip(settings.steps, finding.facts["steps"], strict=True):
        own = getattr(step, "max_output_error", None)
        loose = any(site["equivalence"] == "approximate" for site in told["sites"] if site["outcome"] == "rewritten")
        if loose and "max_output_error" in type(step).model_fields:
            fitting = f"{limit:g}" if own is None or own > limit else f"less than {own:g}"
            return (
                f" (max_output_error = {fitting} in the step '{step.name}' rewrites only as many layers as stay "
                "within it)"
            ).replace("= less", "of less")
    return ""


def _check_current(
    last: Path, target: Path, changed: bool, task: Mapping[str, Any], *, facts: Mapping[str, Any]
) -> str:
    """Compare the output that is there with what would be written; returns what is to be said of it, if anything.

    Where git ignores the output, whoever has just cloned the project has none: what is under version control is the
    lock file, which has to know what would be written.

    Raises:
        CheckFailed: it is missing, is no model, or another one.
    """
    would = f"{parameter('check')}: it would be {'rewritten' if changed else 'copied'}"
    remedy = f"run without {parameter('check')}, and commit the result"
    note = ""
    if task["ignored"]:
        note = _check_locked(model_io.load(last), task["locked"], facts, would)
        if not target.is_file():
            return note
    elif not target.is_file():
        raise CheckFailed(f"{would}: its output is missing", remedy=remedy)
    made = model_io.load(last)
    try:
        there = model_io.load(target)
    except UsageError as error:
        raise CheckFailed(f"{would}: its output cannot be read ({error.text})", remedy=remedy) from None
    if there.sha256 == made.sha256 or model_io.same_network(there, made, 0.0):
        return note
    if changed and model_io.same_network(there, made, ROUNDING):
        return "the output is what is written here, but for the last digits of its weights"
    raise CheckFailed(f"{would}: its output is another network", remedy=remedy)


def _check_locked(made: model_io.Model, locked: Mapping[str, Any] | None, own: Mapping[str, Any], would: str) -> str:
    """Compare what would be written with what the lock file records of the same original, to its last digits.

    Raises:
        CheckFailed: it is another network, or not recorded.
    """
    remedy = f"run without {parameter('check')}, and commit the lock file"
    if locked is None:
        raise CheckFailed(f"{would}: git ignores its output, and the lock file does not record it", remedy=remedy)
    if locked["output"] == made.sha256:
        return ""
    known = locked["fingerprint"] if locked["source"] == own["source"] else None
    if known is not None and model_io.recognized(known, own["fingerprint"], ROUNDING):
        return "what is written here is what the lock file records, but for the last digits of its weights"
    raise CheckFailed(f"{would}: git ignores its output, and the lock file records another network", remedy=remedy)
