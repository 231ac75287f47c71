"""Judges: each says of one legal plan whether it is worth it, and why not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx_graphsurgeon as gs

from convrewrite import model_io, timing
from convrewrite.acceptance.decisions import Decision, Decisions, device
from convrewrite.acceptance.regions import Shapes, region
from convrewrite.engine.rewrite import Declined, Judge, JudgeName, Pass, Plan, Reason, accept_all
from convrewrite.options import BenchOptions
from convrewrite.system import atomic
from convrewrite.text import parameter

NOT_SMALLER = Reason(
    "accept/not-smaller",
    "within the tolerance no form has fewer multiply-accumulates than the layer as it is",
    f"raise {parameter('tol')}, if the model can bear it; {parameter('accept', 'always')} rewrites all the same",
)
NOT_FASTER = Reason(
    "accept/not-faster",
    "no form within the tolerance was measured to be faster than the layer as it is",
    f"raise {parameter('tol')}, if the model can bear it; {parameter('accept', 'smaller')} asks for fewer "
    "multiply-accumulates alone",
)
WHOLE_NOT_FASTER = Reason(
    "accept/whole-not-faster",
    "layers are faster by themselves, but the whole model was not measured to be",
    f"write the smaller model all the same with {parameter('accept', 'smaller')}",
)
OVER_BUDGET = Reason(
    "accept/over-budget",
    "with this layer rewritten too, the model's outputs would be further off than "
    f"{parameter('max_output_error')} allows",
    f"raise {parameter('max_output_error')}, or lower {parameter('tol')} for a more accurate form",
)
REASONS = (NOT_SMALLER, NOT_FASTER, WHOLE_NOT_FASTER, OVER_BUDGET)
"""What a judge may give."""

TRIES = 4
"""Plans that are timed per site: they come ranked, the one that should be fastest first."""


def macs(plan: Plan) -> tuple[int, int] | None:
    """Multiply-accumulates before and after, over the sites of a plan that count them; None where none does."""
    counted = [(s.macs_before, s.macs_after) for s in plan.sites if s.macs_before is not None]
    return (sum(before for before, _ in counted), sum(after or 0 for _, after in counted)) if counted else None


def smaller(graph: gs.Graph, plan: Plan) -> Declined | None:
    """Accept what has fewer multiply-accumulates, or as many with fewer parameters."""
    known = macs(plan)
    before, after = known or (0, 0)
    fewer = sum(site.params_after - site.params_before for site in plan.sites) < 0
    if after < before or (after == before and fewer):
        return None
    if known is None:
        return Declined(NOT_SMALLER, "the pass does not say how many multiply-accumulates it would save")
    return Declined(NOT_SMALLER, f"{before:,} multiply-accumulates would become {after:,}")


COUNTING: Mapping[JudgeName, Judge] = {"smaller": smaller, "always": accept_all}
"""The judges that time nothing, by name."""


@dataclass
class Faster:
    """Accept what is measured to be faster in ONNX Runtime, at the shapes that the layer has in the model.

    Attributes:
        pass_: whose plans are judged. shapes: of the model's tensors. ir_version: of the model.
        provider, threads, seconds, sets: as for `timing.bench`. decisions: what is known already.
    """

    pass_: Pass
    shapes: Shapes
    ir_version: int
    decisions: Decisions = field(default_factory=Decisions)
    provider: str = "cpu"
    threads: int = 1
    seconds: float = 1.0
    sets: int = 6
    _tried: Counter[str] = field(default_factory=Counter)
    _last: dict[str, str] = field(default_factory=dict)

    def __call__(self, graph: gs.Graph, plan: Plan) -> Declined | None:
        """Time the region that the plan changes."""
        anchor = plan.sites[0].anchor
        if (not_fewer := smaller(graph, plan)) is not None:
            return Declined(NOT_FASTER, f"{not_fewer.detail}; not timed")
        self._tried[anchor] += 1
        if self._tried[anchor] > TRIES:
            return Declined(NOT_FASTER, f"{TRIES} forms were timed; the last: {self._last[anchor]}")
        parts = region(graph, self.pass_, plan, self.shapes, ir_version=self.ir_version)
        where = device(self.provider, self.threads)
        decision = self.decisions.get(where, parts.key)
        if decision is None:
            with atomic.scratch() as folder:
                a = model_io.save(parts.before, Path(folder) / "before.onnx")
                b = model_io.save(parts.after, Path(folder) / "after.onnx")
                decision = self._time(a, b)
            self.decisions.put(where, parts.key, decision)
        if decision.verdict == timing.FASTER:
            return None
        self._last[anchor] = f"{plan.sites[0].detail}: {decision.verdict}, {decision}"
        return Declined(NOT_FASTER, self._last[anchor])

    def _time(self, a: Path, b: Path) -> Decision:
        """Time two model files; raises what `timing.bench` raises."""
        how = BenchOptions(seconds=self.seconds, sets=self.sets, provider=self.provider, memory=False)
        return Decision.of(timing.bench(a, b, how).check())
