"""How two arrays are compared, and the ledger that keeps the worst comparison of every check.

    error = max|a - b| / max|b|        a: the rewritten model's output, b: the original's

Element by element would be the wrong measure: two float32 runs of one and the same network differ by 1e-3 near zero,
but by under 1e-6 of the output's largest magnitude. NaN and Inf are never equal, not even to themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from convrewrite.text import counted
from convrewrite.verification.channels import Draws, judge, judge_each
from convrewrite.verification.failing import Failing
from convrewrite.verification.metrics import Tally
from convrewrite.verification.shaking import Shaken
from convrewrite.verification.verdicts import MISMATCHES, RELATIVE, Case, Status

Array = np.ndarray[Any, Any]

Again = Callable[[str, Sequence[int]], Draws | None]
"""Gives what rounding may make of an output, and of some entries of its axis 0 where that counts windows."""

TOLERANCE = 1e-5
"""Of float32 and wider; rewritten models were seen at 3e-7 to 1.3e-6."""

NOISE_FACTOR = 10.0
"""The default tolerance is this many times the model's own noise, where that is larger."""

LARGEST_TOLERANCE = 1e-2
"""Noise raises the default tolerance no further than this: beyond it, the user has to say what is good enough."""

LARGEST_PART = 0.1
"""The rounding of new kernels raises the tolerance of a part of an output no further than this."""

ONE_STEP = 1e-2
"""Of activations stored in eight bits, as a share of the largest: a sum in another order may round to the next one."""


LARGEST_STEP = 0.1
"""One step of an output that is stored in integers is tolerated up to this share of its largest value."""


def floor(dtype: np.dtype[Any], unit: float = 0.0) -> float:
    """The smallest default tolerance of a type: eight units in the last place of a narrow one.

    `unit`: in the last place of the narrowest type that led there, where that is narrower.
    """
    unit = max(unit, float(np.finfo(dtype).eps)) if dtype.kind == "f" and dtype.itemsize < 4 else unit
    return max(TOLERANCE, 8 * unit)


def relative_error(got: Array, want: Array, scale: float | None = None) -> float:
    """max|a-b| / max|b|, or over `scale`; Inf where there are NaNs, other shapes, or only zeros to compare with."""
    if got.shape != want.shape or not finite(got) or not finite(want):
        return math.inf
    if got.size == 0:
        return 0.0
    worst = float(np.max(np.abs(got.astype(np.float64) - want.astype(np.float64))))
    scale = float(np.max(np.abs(want.astype(np.float64)))) or (scale or 0.0)
    return worst / scale if scale else (math.inf if worst else 0.0)


def finite(array: Array) -> bool:
    """Whether an array holds neither NaN nor infinity."""
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


@dataclass
class Ledger:
    """Collects comparisons, and keeps the worst per check and output.

    Attributes:
        seed: that the verification started from.
        limit: the user's tolerance for every output; None for the default by type and noise.
        limits: the user's tolerance for single outputs, before `limit`.
        noise: of the original, per output. peak: the original's largest magnitude, per output.
        carried: noise that a final Softmax makes of the noise ahead of it, per output whose operand is compared too.
        units: in the last place, where the way to an output led through a narrower type than its own.
        least: smallest default tolerance, where the model itself rounds to less than its type. least_part: the same of
            a part of an output. steps: by which the values of an output differ at the least, as its last
            QuantizeLinear has them. stepped: by how much numbers on the other side of a step inside may move an output.
            twins: whether the types of the two models may differ. coarse: spacing of the coarser type then.
        inputs: what the comparisons that follow ran on. failing: where the worst failure was seen.
        shaken: what rounding does to the original; None where outputs are not judged in parts.
    """

    seed: int = 0
    limit: float | None = None
    noise: dict[str, float] = field(default_factory=dict)
    peak: dict[str, float] = field(default_factory=dict)
    carried: dict[str, float] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)
    units: Mapping[str, float] = field(default_factory=dict)
    least: float = 0.0
    least_part: float = 0.0
    steps: Mapping[str, float] = field(default_factory=dict)
    stepped: Mapping[str, float] = field(default_factory=dict)
    twins: bool = False
    coarse: float = 0.0
    inputs: Mapping[str, Array] | None = None
    failing: Failing | None = None
    shaken: Shaken | None = None
    _worst: dict[tuple[str, str], Case] = field(default_factory=dict)
    _tallies: dict[tuple[str, str], Tally] = field(default_factory=dict)

    def tolerance(self, output: str, dtype: np.dtype[Any]) -> float:
        """What an error of that output is held against."""
        limit = self.limits.get(output, self.limit)
        if limit is not None:
            return limit
        if dtype.kind != "f":
            return 0.0
        noise = max(self.noise.get(output, 0.0), self.carried.get(output, 0.0))
        step = min(LARGEST_STEP, 1.5 * self.steps.get(output, 0.0) / (self.peak.get(output) or 1.0))
        least = floor(dtype, self.units.get(output, 0.0))
        return max(least, 8 * self.coarse, self.least, step, min(LARGEST_TOLERANCE, NOISE_FACTOR * noise))

    def compare(
        self,
        check: str,
        output: str,
        got: Array,
        want: Array,
        *,
        note: str = "",
        places: Sequence[str] = (),
        uncertain: Array | None = None,
        again: Again | None = None,
    ) -> bool:
        """Compare two arrays, keep the case if it is the worst of its check and output, and say whether it passed.

        Args:
            check, output: what the case is called.
            got, want: the rewritten model's array and the original's.
            note: which inputs.
            places: names of the entries of axis 0, where that counts windows.
            uncertain: integers only: where the original itself is undecided, and a mismatch does not count.
            again: what rounding may make of the original's array, where that did not run on `inputs` alone.
        """
        case = Case(check, output, note=note, noise=self.noise.get(output), seed=self.seed)
        if self.twins and {got.dtype.kind, want.dtype.kind} in ({"f"}, {"i"}, {"u"}, {"i", "u"}):
            wider = np.result_type(got.dtype, want.dtype)
            got, want = got.astype(wider, copy=False), want.astype(wider, copy=False)
        if got.dtype != want.dtype or got.shape != want.shape:
            words = [f"{array.dtype} of shape {'x'.join(map(str, array.shape)) or 'scalar'}" for array in (got, want)]
            case = replace(case, status="failed", note=f"{words[0]} instead of {words[1]}; {note}".rstrip("; "))
        elif got.dtype.kind == "f":
            case = self._floats(case, got, want, again, stacked=bool(places))
            if finite(got) and finite(want):
                self._tallies.setdefault((check, output), Tally()).add(got, want, stacked=bool(places))
        else:
            case = self._integers(case, got, want, uncertain)
        if case.status == "failed":
            self._keep_inputs(case.badness, output, got, want)
        if places and case.place:
            case = replace(case, note=f"{places[case.place[0]]}; {case.note}".rstrip("; "), place=case.place[1:])
        self.add(case)
        return case.status != "failed"

    def _floats(self, case: Case, got: Array, want: Array, again: Again | None, stacked: bool) -> Case:
        """Judge floating-point arrays of one shape."""
        broken = [(array, whose) for array, whose in ((got, "rewritten"), (want, "original")) if not finite(array)]
        if broken:
            array, whose = broken[0] if len(broken) == 1 else (got, "original and the rewritten")
            place = _index(~np.isfinite(array))
            figures = (float(got[place]), float(want[place]))
            note = f"NaN or Inf in the {whose} model; {case.note}".rstrip("; ")
            return replace(case, status="failed", error=math.inf, place=place, figures=figures, note=note)
        tolerance = self.tolerance(case.output, got.dtype)
        if got.size == 0:
            return replace(case, error=0.0, tolerance=tolerance, status="failed", note="no elements to compare")
        error = relative_error(got, want, self.peak.get(case.output))
        place = _index(np.abs(got.astype(np.float64) - want.astype(np.float64)))
        figures = (float(got[place]), float(want[place]))
        scale = float(np.max(np.abs(want.astype(np.float64)))) or self.peak.get(case.output, 0.0)
        if self.limits.get(case.output, self.limit) is None and scale:
            tolerance = max(tolerance, self.stepped.get(case.output, 0.0) / scale * (1.0 + 1e-6))
        channel = self._part(case.output, got, want, tolerance * scale, again=again, stacked=stacked) if error else None
        asked = self.limits.get(case.output, self.limit) is not None
        beyond = channel is not None and channel.badness > 1.0 and not asked
        status: Status = "passed" if error <= tolerance and not beyond else "failed"
        return replace(
            case,
            channel=channel,
            metric=RELATIVE,
            error=error,
            tolerance=tolerance,
            place=place,
            figures=figures,
            status=status,
        )

    def _part(self, output: str, got: Array, want: Array, whole: float, again: Again | None, stacked: bool) -> Any:
        """The worst part of an output by its own magnitude; None where it is not judged in parts."""
        if self.stepped:  # which element falls to the other side is a lottery: the surrogates are judged in parts
            return None
        limit = self.limits.get(output, self.limit)
        least = max(floor(want.dtype, self.units.get(output, 0.0)), 8 * self.coarse, self.least_part)
        relative = least if limit is None else limit
        if again is None and (self.shaken is None or stacked):
            return None
        if stacked:
            return judge_each(
                got, want, relative, whole, draws=lambda entries: again(output, entries) if again else None
            )
        return judge(got, want, relative, whole, draws=lambda: (again or self._again)(output, ()))

    def _again(self, output: str, _: Sequence[int]) -> Draws | None:
        """What rounding makes of an output on the inputs of the comparison."""
        runs = self.shaken.runs(self.inputs) if self.shaken is not None and self.inputs is not None else []
        return [run[output] for run in runs if output in run]

    def _integers(self, case: Case, got: Array, want: Array, uncertain: Array | None) -> Case:
        """Judge integer, boolean or string arrays of one shape."""
        wrong = np.asarray(got != want)
        ignored = 0
        if uncertain is not None and uncertain.shape == wrong.shape:
            ignored = int(np.count_nonzero(wrong & uncertain))
            wrong = wrong & ~uncertain
        tolerance = self.tolerance(case.output, got.dtype)
        error = float(np.mean(wrong)) if wrong.size else 0.0
        place = _index(wrong)
        numeric = got.dtype.kind in "iub" and got.size
        figures = (float(got[place]), float(want[place])) if numeric else None
        note = (
            f"{counted(ignored, 'undecided element')} not counted; {case.note}".rstrip("; ") if ignored else case.note
        )
        return replace(
            case,
            metric=MISMATCHES,
            error=error,
            tolerance=tolerance,
            noise=None,
            place=place,
            figures=figures,
            status="passed" if error <= tolerance else "failed",
            note=note,
        )

    def add(self, case: Case) -> None:
        """Keep a case unless a worse one of its check and output is there."""
        key = (case.name, case.output)
        known = self._worst.get(key)
        rank = {"skipped": 0, "stated": 1, "passed": 2, "failed": 3}
        if known is None or (rank[case.status], case.badness) > (rank[known.status], known.badness):
            self._worst[key] = replace(case, seed=self.seed)
        parts = [one.channel for one in (known, case) if one is not None and one.channel is not None]
        if parts and not self._worst[key].failed_in_part:
            self._worst[key] = replace(self._worst[key], channel=max(parts, key=lambda part: part.badness))

    def _keep_inputs(
        self, badness: float, output: str = "", got: Array | None = None, want: Array | None = None
    ) -> None:
        """Remember the inputs of a failure, if it is the worst; all outputs that failed on them go along."""
        if self.inputs is None:
            return
        if self.failing is None or (self.failing.inputs is not self.inputs and badness > self.failing.badness):
            self.failing = Failing(self.inputs, badness)
        if self.failing.inputs is self.inputs:
            self.failing.badness = max(self.failing.badness, badness)
            if got is not None and want is not None and output not in self.failing.outputs:
                self.failing.outputs[output] = (got, want)

    def fail(self, check: str, note: str, output: str = "") -> None:
        """Record a failure for which no figures are needed."""
        self._keep_inputs(math.inf)
        self.add(Case(check, output, status="failed", note=note))

    def skip(self, check: str, reason: str, output: str = "") -> None:
        """Record that a check was not run, and the reason."""
        self.add(Case(check, output, status="skipped", note=reason))

    @property
    def cases(self) -> tuple[Case, ...]:
        """All cases, in the order in which their checks began."""
        return tuple(
            replace(case, metrics=self._tallies[key].metrics) if key in self._tallies else case
            for key, case in self._worst.items()
        )


def _index(array: Array) -> tuple[int, ...]:
    """Index of the largest element."""
    if array.ndim == 0 or array.size == 0:
        return ()
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(array)), array.shape))
