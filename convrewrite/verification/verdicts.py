"""What a verification found: cases, a deviation that is stated, and one verdict over all of it.

Nothing that did not run is called verified: a check that could not run is a case `skipped` with its reason, and a
verification without one passed case is not `verified`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from convrewrite.errors import CheckFailed, ConvrewriteError, Interrupted
from convrewrite.text import Call, Printed, counted, parameter
from convrewrite.verification import leading
from convrewrite.verification.channels import Channel
from convrewrite.verification.failing import Failing
from convrewrite.verification.metrics import Metrics

SEEDED = f"at any scale; give real inputs with {parameter('data', 'F.npz')}"
"""Of outputs that did not move although the inputs were drawn, and what helps."""

OWN_SEEDS = 1000
"""Inputs are drawn from so many seeds, one after the other; those of larger images lie beyond."""

Status = Literal["passed", "failed", "skipped", "stated"]
Verdict = Literal["verified", "failed", "vacuous", "skipped"]

RELATIVE = "max|a-b|/max|b|"
"""The metric for numbers: a is the rewritten model's output, b the original's."""

MISMATCHES = "fraction of elements that differ"
"""The metric for integers and booleans, such as the classes that an ArgMax gives."""


@dataclass(frozen=True)
class Case:
    """One check of one output, the worst over all samples.

    Attributes:
        name: of the check: "native size", "every window of 288x256", ...
        output: of the model, or of the tensor ahead of its final Softmax; "" where the check has none.
        metric: how `error` is measured. error, tolerance: None where nothing was measured.
        noise: the same metric between the original with graph optimizations on and off.
        place: index of the worst element. figures: the rewritten model's value there, and the original's.
        status: "stated" is measured and never fails.
        note: which inputs, which window, or why it was skipped or failed.
        seed: that the whole verification started from.
        metrics: further figures, over all samples; None where the output holds no numbers to judge.
        channel: the part of the output that is worst by its own magnitude; None where it was not judged in parts.
    """

    name: str
    output: str = ""
    metric: str = RELATIVE
    error: float | None = None
    tolerance: float | None = None
    noise: float | None = None
    place: tuple[int, ...] = ()
    figures: tuple[float, float] | None = None
    status: Status = "passed"
    note: str = ""
    seed: int = 0
    metrics: Metrics | None = None
    channel: Channel | None = None

    @property
    def badness(self) -> float:
        """Error in units of the tolerance, or as it is where none is set; what ranks cases.

        Those that fail in a part alone are ranked by that part, behind those that fail by twice the tolerance as a
        whole.
        """
        if self.failed_in_part and self.channel is not None:
            return 2.0 - 1.0 / max(1.0, self.channel.badness)
        return self._badness

    @property
    def failed_in_part(self) -> bool:
        """Whether one part alone is beyond what it is allowed."""
        return self.status == "failed" and self.error is not None and self._badness <= 1.0

    @property
    def _badness(self) -> float:
        if self.error is None:
            return math.inf if self.status == "failed" else 0.0
        if self.status == "stated":
            return self.error
        return self.error / self.tolerance if self.tolerance else (math.inf if self.error else 0.0)

    def __str__(self) -> str:
        subject = f"{self.name}, {self.output}" if self.output else self.name
        if self.error is None:
            return f"{subject}: {self.status} ({self.note})"
        text = f"{subject}: max error {self.error:.1e} (tolerance {self.tolerance or 0.0:.1e}"
        if self.metric == MISMATCHES:
            text = f"{subject}: {self.error:.2%} of the elements differ (tolerance {self.tolerance or 0.0:.2%}"
        elif self.noise:
            text += f", {self.error / self.noise:.1f} x the model's own noise"
        if self.channel is not None and (self.channel.badness > 1.0 or self.failed_in_part):
            text += f"; {self.part}"
        return text + ")" + ("" if self.status == "passed" else f" {self.status.upper()}")

    @property
    def part(self) -> str:
        """The worst part in words; "" where there is none."""
        worst = self.channel
        if worst is None:
            return ""
        noise = "" if worst.noise is None else f", {worst.noise:.1e} by rounding alone"
        return f"{worst} {worst.error:.1e} of its own largest value (tolerance {worst.tolerance:.1e}{noise})"

    def to_dict(self) -> dict[str, Any]:
        """The form that reports use; NaN and infinity, which JSON does not have, become null."""
        return {
            "name": self.name,
            "output": self.output,
            "metric": self.metric,
            "error": _number(self.error),
            "tolerance": _number(self.tolerance),
            "noise": _number(self.noise),
            "place": list(self.place),
            "figures": None if self.figures is None else [_number(figure) for figure in self.figures],
            "status": self.status,
            "note": self.note,
            "seed": self.seed,
            "channel": None if self.channel is None else self.channel.to_dict(_number),
            **(self.metrics or NO_METRICS).to_dict(),
        }


NO_METRICS = Metrics(None, None, math.nan, None)


@dataclass(frozen=True)
class Divergence:
    """What `where` found: the first tensor, in the order of computation, that both models have and that differs.

    Attributes:
        tensor: its name; "" where all agree. op, node: that make it in the rewritten model.
        error, tolerance: as of a case. agreeing: tensors ahead of it that agree. compared: all that both have.
        note: what was left out. part: the part that differs, in words, where the tensor as a whole does not.
    """

    tensor: str = ""
    op: str = ""
    node: str = ""
    error: float | None = None
    tolerance: float | None = None
    agreeing: int = 0
    compared: int = 0
    note: str = ""
    part: str = ""

    def __str__(self) -> str:
        left_out = f" ({self.note})" if self.note else ""
        if not self.compared:
            return f"where: the models have no tensor of one name and shape{left_out}"
        if not self.tensor:
            which = "the one tensor" if self.compared == 1 else f"all {self.compared} tensors"
            return f"where: {which} that both models have {'agrees' if self.compared == 1 else 'agree'}{left_out}"
        maker = f"{self.op} '{self.node}'" if self.node else self.op
        error = "NaN or Inf" if self.error is None or math.isinf(self.error) else f"error {self.error:.1e}"
        told = f"{error}, tolerance {self.tolerance or 0.0:.1e}"
        if self.part:
            told = f"by {self.part}, although only {self.error or 0.0:.1e} of the largest of all"
        return (
            f"where: '{self.tensor}' ({maker}) is the first that differs: {told}; of the "
            f"{counted(self.compared, 'tensor')} that both have, {self.agreeing} ahead of it agree{left_out}"
        )

    def to_dict(self) -> dict[str, Any]:
        """The form that reports use."""
        return {**vars(self), "error": _number(self.error), "tolerance": _number(self.tolerance)}


@dataclass(frozen=True)
class Deviation:
    """How far a `native-size` model is from the original on each crop: a difference in meaning, not an error.

    Attributes:
        output: that was compared. error: max|d|/max|ref| over all windows.
        top1_agreement: fraction of windows where both name the same class; None where the output has no classes.
        positions: windows that were compared. image: that they are of; real images may deviate more than random ones.
    """

    output: str
    error: float
    top1_agreement: float | None
    positions: int
    image: str = ""

    def __str__(self) -> str:
        text = f"against the original on each crop: {self.error:.1%} of the largest output"
        if self.top1_agreement is not None:
            text += f", same class in {self.top1_agreement:.0%}"
        where = f" of {counted(self.positions, 'window')}" + (f" of {self.image}" if self.image else "")
        return text + f"{where} (a difference in meaning, not an error)"

    def to_dict(self) -> dict[str, Any]:
        """The form that reports use."""
        return {
            "output": self.output,
            "error": _number(self.error),
            "top1_agreement": _number(self.top1_agreement),
            "positions": self.positions,
        }


@dataclass(frozen=True)
class Verification(Printed):
    """The result of verifying one model against another; prints itself as the text for the user.

    Attributes:
        cases: every check, in order. deviation: see there.
        vacuous: outputs that did not move over all samples, so that their agreement says nothing.
        command: what repeats the verification. provider: where the models really ran; "" where nothing ran.
        nodes: per model ("original", "rewritten"), how many nodes ran on which provider. warnings: lines on it.
        divergence: where the models begin to differ, if that was asked for.
        stopped: what ended it before all sizes ran; the cases are of those that did.
        failing: inputs of the worst failure.
        constant: outputs that did not move, beside others that did, and that are bit-equal: constant by nature, as far
            as these inputs show.
        given: "data" or "images" where the inputs were the user's. otherwise: what else helps where it says nothing.
    """

    cases: tuple[Case, ...]
    deviation: Deviation | None = None
    vacuous: tuple[str, ...] = ()
    command: Call | str = ""
    provider: str = ""
    nodes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    divergence: Divergence | None = None
    stopped: ConvrewriteError | None = field(default=None, compare=False)
    failing: Failing | None = field(default=None, compare=False, repr=False)
    given: str = ""
    otherwise: str = ""
    constant: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """One word that sums up all cases."""
        if any(case.status == "failed" for case in self.cases):
            return "failed"
        if self.vacuous:
            return "vacuous"
        if self.stopped is not None:
            return "skipped"
        return "verified" if any(case.status == "passed" for case in self.cases) else "skipped"

    @property
    def passed(self) -> bool:
        """Whether the models were shown to be equal."""
        return self.verdict == "verified"

    @property
    def worst(self) -> Case | None:
        """The case nearest to, or furthest beyond, its tolerance."""
        failed = [case for case in self.cases if case.status == "failed"]
        ran = failed or [case for case in self.cases if case.status == "passed"]
        return max(ran, key=lambda case: case.badness, default=None)

    @classmethod
    def not_run(cls, reason: str) -> Verification:
        """The result where the user turned verification off: skipped, and said so."""
        return cls((Case("verification", status="skipped", note=reason),))

    @classmethod
    def merged(cls, parts: Mapping[str, Verification], *, alone: bool) -> Verification:
        """One verification of several, each under what sets it apart (a size); what is of no one part is the last's.

        Where one was all that was asked for (`alone`), it needs no name.
        """
        if alone:
            return next(iter(parts.values()))
        cases = [replace(case, name=f"{case.name} at {text}") for text, part in parts.items() for case in part.cases]
        decisive = next((part for part in parts.values() if part.verdict == "failed"), list(parts.values())[-1])
        return replace(
            decisive,
            cases=tuple(cases),
            vacuous=_unique(name for part in parts.values() for name in part.vacuous),
            constant=_unique(name for part in parts.values() for name in part.constant),
            warnings=_unique(line for part in parts.values() for line in part.warnings),
        )

    def summary(self) -> list[str]:
        """Lines for a person: the worst case of every check, what was skipped, the deviation."""
        lines = []
        for name in dict.fromkeys(case.name for case in leading.ordered(self.cases)):
            group = [case for case in self.cases if case.name == name]
            ran = [case for case in group if case.status not in ("skipped",)]
            if ran:
                lines.append(str(max(ran, key=lambda case: (case.status == "failed", case.badness))))
            lines.extend(str(case) for case in group if case.status == "skipped")
        lines.extend(str(part) for part in (self.deviation, self.divergence) if part is not None)
        lines += [self.still] if self.still else []
        return [*lines, *(f"warning: {line}" for line in self.warnings)]

    @property
    def still(self) -> str:
        """A line on the outputs that are constant by nature; "" where there are none."""
        if not self.constant or self.verdict == "vacuous":
            return ""
        some = ", ".join(self.constant[:4]) + (f" and {len(self.constant) - 4} more" if len(self.constant) > 4 else "")
        which = f"output {some} did" if len(self.constant) == 1 else f"outputs {some} did"
        return f"{which} not move on any of the inputs, and the two models agree there bit for bit; the others moved"

    def __str__(self) -> str:
        return "\n".join([self.verdict, *(f"  {line}" for line in self.summary())])

    def message(self) -> str:
        """One line on why it did not pass; empty where it did."""
        repeat = f"; repeat it with: {self.command}" if self.command else ""
        if self.verdict == "vacuous":
            return (
                f"the verification says nothing: {', '.join(self.vacuous)} did not move between samples "
                f"{f'of the {self.given}; give others' if self.given else SEEDED}{self.otherwise}"
            )
        if self.verdict == "failed" and self.worst is not None:
            return _failure(self.worst, named=not repeat) + repeat
        return ""

    def check(self) -> None:
        """Raise CheckFailed where the verification failed or says nothing, and Interrupted where Ctrl-C ended it."""
        if isinstance(self.stopped, Interrupted):
            raise self.stopped
        if self.verdict in ("failed", "vacuous"):
            raise CheckFailed(self.message(), reason=f"verify/{self.verdict}")
        if self.stopped is not None:
            raise self.stopped

    def to_dict(self) -> Mapping[str, Any]:
        """The `verify` part of the report."""
        return {
            "verdict": self.verdict,
            "passed": self.passed,
            "cases": [case.to_dict() for case in self.cases],
            "vacuous": list(self.vacuous),
            "constant": list(self.constant),
            "deviation": None if self.deviation is None else self.deviation.to_dict(),
            "command": str(self.command),
            "tf32": False,  # verification never rounds factors
            "nodes": {model: dict(counts) for model, counts in self.nodes.items()},
            "warnings": list(self.warnings),
            "where": None if self.divergence is None else self.divergence.to_dict(),
        }


def _unique(lines: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(lines))


def _failure(case: Case, named: bool) -> str:
    """One line on a failed case: output, place, both figures, the error and the inputs."""
    if case.figures is not None and not math.isfinite(case.figures[1]):
        at = ",".join(map(str, case.place))
        return (
            f"the original itself gives {case.figures[1]:g} at [{at}] of output {case.output}, {case.name} "
            f"({inputs_of(case, named)}): no rewrite of it can be verified; repair its weights, or give the "
            f"inputs that it was made for with {parameter('data', 'F.npz')}"
        )
    text = f"not equivalent at {case.name}"
    if case.output:
        text += f": output {case.output}"
    channel = case.channel if case.failed_in_part else None
    figures, place = (case.figures, case.place) if channel is None else (channel.figures, channel.place)
    if figures is not None:
        index = ",".join(map(str, place))
        text += f" is {figures[0]:.7g} instead of {figures[1]:.7g} at [{index}]"
    if case.error is not None and case.metric == MISMATCHES:
        text += f", {case.error:.2%} of its elements differ"
    elif channel is not None:
        text += f": by {case.part}, although only {case.error or 0.0:.1e} of the largest of all"
    elif case.error is not None:
        text += f", error {case.error:.2e} ({case.metric}), tolerance {case.tolerance or 0.0:.1e}"
    return f"{text} ({inputs_of(case, named)})"


def inputs_of(case: Case, named: bool) -> str:
    """Which inputs a case is of, by where they stand among those of the seed to give; that one where it is `named`."""

    def place(found: re.Match[str]) -> str:
        index = int(found[1]) - case.seed
        if not 0 <= index < OWN_SEEDS:
            return f"from seed {case.seed}" if named else "random inputs"
        return f"inputs {index + 1}{f' of seed {case.seed}' if named else ''}"

    if "seed " in case.note:
        return re.sub(r"seed (\d+)", place, case.note)
    return ", ".join(part for part in (case.note, f"seed {case.seed}" if named else "") if part) or "random inputs"


def _number(value: float | None) -> float | None:
    """A number that JSON can hold."""
    return float(value) if value is not None and math.isfinite(value) else None
