"""Is a model larger, slower or less accurate than it was in a baseline?

MACs, parameters, bytes   a share more than before
output error              a share more than before; up to ROUNDING it counts as none
same class                so much less than before
speedup                   where its interval lies beyond the other, on one device and of one original
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from convrewrite.batch.baseline import Baseline, Figures, Known, Step
from convrewrite.errors import CheckFailed
from convrewrite.options import ChangeOptions

ROUNDING = 1e-5
"""Errors up to this are those of sums in another order."""

SAME = 1e-9
"""By this share figures differ that were written down and read."""

Verdict: TypeAlias = Literal["worse", "allowed", "better", "same"]
Standing: TypeAlias = Literal["worse", "allowed", "better", "same", "new", "removed", "failed", "not compared"]

ORDER: tuple[Verdict, ...] = ("worse", "allowed", "better", "same")
STANDINGS: tuple[Standing, ...] = (*ORDER, "new", "removed", "failed", "not compared")


@dataclass(frozen=True)
class Change:
    """One figure there and here; "worse" fails, "allowed" is worse by no more than `limit`.

    Attributes:
        figure: its key in reports. by: how much more, as a share (of the share of equal classes: how much less).
        option: the key of [baseline] that sets `limit`.
    """

    figure: str
    before: float
    now: float
    by: float
    limit: float
    option: str
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        by = self.by if math.isfinite(self.by) else None
        return {**vars(self), "by": by}


@dataclass(frozen=True)
class StepChange:
    """A step that is not what it was; None where there was or is none at that place."""

    step: int
    before: Step | None
    now: Step | None

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        ends = {"before": self.before, "now": self.now}
        return {"step": self.step} | {k: None if v is None else v.model_dump(by_alias=True) for k, v in ends.items()}


@dataclass(frozen=True)
class Comparison:
    """One model there and here. `notes`: why something is not compared."""

    model: str
    standing: Standing
    changes: tuple[Change, ...] = ()
    steps: tuple[StepChange, ...] = ()
    notes: tuple[str, ...] = ()

    def change(self, figure: str) -> Change | None:
        """What became of one figure."""
        return next((change for change in self.changes if change.figure == figure), None)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "model": self.model,
            "standing": self.standing,
            "changes": [change.to_dict() for change in self.changes],
            "steps": [step.to_dict() for step in self.steps],
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Against:
    """The whole comparison: what it was made with, and each model of either side."""

    baseline: Baseline
    models: tuple[Comparison, ...]

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        own = self.baseline
        models = [model.to_dict() for model in self.models]
        return {"name": own.name, "commit": own.commit, "file": own.file, "models": models}

    def __str__(self) -> str:
        counts = {standing: [m.standing for m in self.models].count(standing) for standing in STANDINGS}
        words = {"allowed": "worse within the limits", "same": "as before"}
        told = ", ".join(f"{count} {words.get(standing, standing)}" for standing, count in counts.items() if count)
        return f"against {self.baseline.title}: {told or 'no model on either side'}"


def against(baseline: Baseline, facts: Mapping[str, Mapping[str, Any]], allowed: ChangeOptions) -> Against:
    """Compare all models: those of this run, whose facts are given, then those that only the baseline has."""
    here = [compare(name, own, baseline.models.get(name), allowed) for name, own in facts.items()]
    gone = sorted(baseline.models.keys() - facts.keys())
    return Against(baseline, (*here, *(Comparison(name, "removed") for name in gone)))


def judged(name: str, facts: dict[str, Any], baseline: Baseline, allowed: ChangeOptions) -> dict[str, Any]:
    """The facts of a model that passed so far; those of a failed check where it is worse than it was."""
    if facts["exit_code"]:
        return facts
    found = compare(name, facts, baseline.models.get(name), allowed)
    worse = [change for change in found.changes if change.verdict == "worse"]
    if not worse:
        return facts
    lines = "; ".join(map(_line, worse))
    error = CheckFailed(
        f"worse than {baseline.title}: {lines}", remedy="where that is meant, raise the limit under [baseline]"
    )
    return {**facts, "status": "failed", "exit_code": error.exit_code, "message": error.text}


def compare(name: str, facts: Mapping[str, Any], before: Figures | None, allowed: ChangeOptions) -> Comparison:
    """Compare one model with what it was.

    Args:
        facts: of this run. before: None where the baseline does not have it. allowed: how much worse it may become.
    """
    if before is None:
        return Comparison(name, "failed" if facts["exit_code"] else "new")
    now = Figures.model_validate({key: _plain(facts[key]) for key in Figures.model_fields if key in facts})
    changes = tuple(change for make in _FIGURES if (change := make(before, now, allowed)) is not None)
    steps = _step_changes(before, now)
    notes = _notes(before, now)
    # a message of the baseline itself has made this one fail: that is what it stands for
    if now.exit_code and not any(change.verdict == "worse" for change in changes):
        return Comparison(name, "failed", changes, steps, notes=notes)
    if before.exit_code:
        return Comparison(name, "not compared", notes=("it failed there",))
    verdicts = {change.verdict for change in changes}
    standing: Standing = next((verdict for verdict in ORDER if verdict in verdicts), "not compared")
    return Comparison(name, standing, changes, steps, notes=notes)


def _plain(fact: Any) -> Any:
    """What is no number says nothing here; the gates have judged it."""
    return None if isinstance(fact, float) and not math.isfinite(fact) else fact


def _growth(figure: str, option: str) -> Callable[[Figures, Figures, ChangeOptions], Change | None]:
    """A figure that had better not grow."""

    def change(before: Figures, now: Figures, allowed: ChangeOptions) -> Change | None:
        old, new = getattr(before, figure), getattr(now, figure)
        if old is None or new is None:
            return None
        return _made(figure, old, new, by=_more(old, new), option=option, allowed=allowed)

    return change


def _left(before: Figures, now: Figures, allowed: ChangeOptions) -> Change | None:
    """The share of the MACs that is left, where a baseline has no more of them: of the same original only."""
    if before.macs is not None and now.macs is not None:
        return None
    if before.macs_left is None or now.macs_left is None or not _one_original(before, now):
        return None
    by = _more(before.macs_left, now.macs_left)
    return _made("macs_left", before.macs_left, now.macs_left, by=by, option="max_more_macs", allowed=allowed)


def _error(before: Figures, now: Figures, allowed: ChangeOptions) -> Change | None:
    if before.output_error is None or now.output_error is None:
        return None
    by = _more(max(before.output_error, ROUNDING), max(now.output_error, ROUNDING))
    return _made("output_error", before.output_error, now.output_error, by=by, option="max_more_error", allowed=allowed)


def _agreement(before: Figures, now: Figures, allowed: ChangeOptions) -> Change | None:
    if before.top1_agreement is None or now.top1_agreement is None:
        return None
    by = before.top1_agreement - now.top1_agreement
    return _made(
        "top1_agreement", before.top1_agreement, now.top1_agreement, by=by, option="max_less_agreement", allowed=allowed
    )


def _speed(before: Figures, now: Figures, allowed: ChangeOptions) -> Change | None:
    """How much longer it takes at least, by both intervals; nothing where these share a value."""
    if before.speedup is None or now.speedup is None or _why_no_times(before, now):
        return None
    old, new = before.speedup, now.speedup
    least, most = old.low / new.high, old.high / new.low  # of time now over time before
    by = least - 1 if least > 1 else most - 1 if most < 1 else 0.0
    return _made("speedup", old.median, new.median, by=by, option="max_slowdown", allowed=allowed)


_FIGURES = (
    _growth("macs", "max_more_macs"),
    _left,
    _growth("parameters", "max_more_parameters"),
    _growth("bytes", "max_more_bytes"),
    _error,
    _agreement,
    _speed,
)


def _made(figure: str, before: float, now: float, *, by: float, option: str, allowed: ChangeOptions) -> Change:
    limit = getattr(allowed, option)
    if abs(by) <= SAME:
        return Change(figure, before, now, 0.0, limit=limit, option=option, verdict="same")
    verdict: Verdict = "better" if by < 0 else "worse" if by > limit * (1 + SAME) else "allowed"
    return Change(figure, before, now, by, limit=limit, option=option, verdict=verdict)


def _more(before: float, now: float) -> float:
    """How much more it is, as a share of what it was."""
    return now / before - 1 if before else (math.inf if now else 0.0)


def _one_original(before: Figures, now: Figures) -> bool:
    """Whether both were made of one file; a baseline that does not say so is believed."""
    return before.source is None or now.source is None or before.source == now.source


def _notes(before: Figures, now: Figures) -> tuple[str, ...]:
    notes = [] if _one_original(before, now) else ["the original is another file than there"]
    if before.speedup is not None or now.speedup is not None:
        notes += [f"times are not compared: {why}"] if (why := _why_no_times(before, now)) else []
    return tuple(notes)


def _why_no_times(before: Figures, now: Figures) -> str:
    """Why two speedups cannot be compared; "" where they can."""
    if before.speedup is None or now.speedup is None:
        return f"nothing was timed {'there' if before.speedup is None else 'here'}"
    if min(before.speedup.low, before.speedup.high, now.speedup.low, now.speedup.high) <= 0:
        return "an interval has no meaning"
    if before.device is None or now.device is None:
        return f"the device is not recorded {'there' if before.device is None else 'here'}"
    if before.device != now.device:
        return f"there on {before.device}, here on {now.device}"
    return "" if _one_original(before, now) else "they are speedups over different originals"


def _step_changes(before: Figures, now: Figures) -> tuple[StepChange, ...]:
    """The steps whose sizes or names are others; none where one side does not have them."""
    if before.by_step is None or now.by_step is None:
        return ()
    many = max(len(before.by_step), len(now.by_step))
    pairs = [(_at(before.by_step, place), _at(now.by_step, place)) for place in range(many)]
    return tuple(StepChange(place, old, new) for place, (old, new) in enumerate(pairs) if _differ(old, new))


def _at(steps: Sequence[Step], place: int) -> Step | None:
    return steps[place] if place < len(steps) else None


def _differ(before: Step | None, now: Step | None) -> bool:
    if before is None or now is None:
        return True
    known = [getattr(before, name) != getattr(now, name) for name in Known.model_fields if _both(before, now, name)]
    return before.name != now.name or any(known)


def _both(before: Known, now: Known, name: str) -> bool:
    return getattr(before, name) is not None and getattr(now, name) is not None


def _line(change: Change) -> str:
    """What is worse, by how much, and what would be allowed."""
    allowed = f"{change.option} is {change.limit:g}"
    by = "much" if not math.isfinite(change.by) else f"{change.by:.1%}"
    if change.figure in ("macs", "parameters", "bytes"):
        noun = {"macs": "MACs", "parameters": "parameters", "bytes": "bytes"}[change.figure]
        return f"{by} more {noun} ({change.now:,.0f}, there {change.before:,.0f}; {allowed})"
    if change.figure == "macs_left":
        return f"{change.now:.1%} of the MACs left, there {change.before:.1%} ({allowed})"
    if change.figure == "output_error":
        return f"the outputs moved by {change.now:.1e}, there by {change.before:.1e} ({allowed})"
    if change.figure == "top1_agreement":
        return f"the same class in {change.now:.1%}, there in {change.before:.1%} ({allowed})"
    return f"slower by {by} at least ({change.now:.2f}x, there {change.before:.2f}x; {allowed})"
