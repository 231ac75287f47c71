"""What the original gives on every sample: the right outputs, how far rounding moves them, and which never move.

The user's data, or seeded inputs that take turns over several scales; a scale at which the original gives no numbers is
left out. (`specimens` makes the models that run.)
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from convrewrite.errors import UsageError
from convrewrite.options import CheckOptions
from convrewrite.running.runtime import DeviceFailed, RunFailed
from convrewrite.running.sampling import EXTRA_SCALES, SCALES, Feeds, Images, InputSpec, Sample, cut_data, draw
from convrewrite.text import parameter
from convrewrite.verification.comparison import LARGEST_TOLERANCE, ONE_STEP, TOLERANCE, Ledger, finite, relative_error
from convrewrite.verification.exposure import Probe
from convrewrite.verification.shaking import Shaken
from convrewrite.verification.specimens import Array, Progress, Specimen, Tolerance, open_shaken
from convrewrite.verification.still import moved, sorted_out
from convrewrite.verification.suggested import suggested, telling
from convrewrite.verification.verdicts import Case

VARIATION = 10.0
"""An output has moved when it differs between samples by more than this many tolerances."""


@dataclass
class Evidence:
    """What the original gives on every sample.

    Attributes:
        samples, references: inputs and outputs (with probes), pairwise.
        noise: error between graph optimizations on and off, the largest per output.
        peak: the largest magnitude per output.
        dropped: scales at which the original itself gave NaN or Inf.
        still: outputs that did not move.
        beside: outputs on random inputs that are not compared, where the user gave one sample: it alone cannot move.
        shaken: what rounding does to the original; None where it is not known. steps: the largest difference that it
            makes of an output where activations are rounded to integers.
    """

    samples: list[Sample] = field(default_factory=list)
    references: list[dict[str, Array]] = field(default_factory=list)
    noise: dict[str, float] = field(default_factory=dict)
    peak: dict[str, float] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    still: tuple[str, ...] = ()
    beside: list[dict[str, Array]] = field(default_factory=list)
    shaken: Shaken | None = None
    steps: dict[str, float] = field(default_factory=dict)

    def verdicts(self, reference: Specimen, cases: Iterable[Case]) -> dict[str, Any]:
        """What the outputs that did not move say of a verification with these cases."""
        moved = [name for name in reference.outputs if name in reference.moving and name not in self.still]
        ahead = {name: [p.name for p in reference.probes if p.output == name] for name in reference.outputs}
        return sorted_out(self.still, moved, ahead, cases)

    def add(
        self, sample: Sample, on: dict[str, Array], off: dict[str, Array], truth: dict[str, Array] | None = None
    ) -> None:
        """Keep one sample; `truth` is the reference where that is another than the original in ONNX Runtime."""
        self.samples.append(sample)
        self.references.append(on if truth is None else truth)
        for name, want in on.items():
            if want.dtype.kind == "f" and want.size and finite(want):
                self.peak[name] = max(self.peak.get(name, 0.0), float(np.max(np.abs(want.astype(np.float64)))))
                noise = relative_error(off[name], want, self.peak[name]) if name in off else 0.0
                if np.isfinite(noise):
                    self.noise[name] = max(self.noise.get(name, 0.0), noise)

    def add_rounding(self, feeds: Feeds, on: Mapping[str, Array], *, steps: bool) -> None:
        """Note what rounding does to the outputs: to the other side of a step, or as noise of a coarser type."""
        errors = self.steps if steps else self.noise
        for run in self.shaken.runs(feeds) if self.shaken is not None else ():
            for name, want in on.items():
                error = relative_error(run[name], want, self.peak.get(name)) if want.dtype.kind == "f" else 0.0
                scale = (float(np.max(np.abs(want), initial=0.0)) or self.peak.get(name, 0.0)) if steps else 1.0
                errors[name] = max(errors.get(name, 0.0), error * scale if np.isfinite(error) else 0.0)

    def ledger(self, seed: int, tolerance: Tolerance, reference: Specimen) -> Ledger:
        """A ledger that knows the original's noise. Raises UsageError for the tolerance of an unknown output."""
        ledger = Ledger(seed, None, dict(self.noise), dict(self.peak))
        ledger.least = ONE_STEP if reference.rounds and not self.steps else 0.0
        ledger.stepped = {name: max(away, 1.5 * reference.steps.get(name, 0.0)) for name, away in self.steps.items()}
        ledger.steps, ledger.units = reference.steps, reference.units
        ledger.shaken, ledger.twins, ledger.coarse = self.shaken, reference.twins, reference.coarse
        if not isinstance(tolerance, Mapping):
            ledger.limit = tolerance
            return ledger
        ledger.limit = tolerance.get("")
        limits = {name: limit for name, limit in tolerance.items() if name}
        if strange := [name for name in limits if name not in reference.outputs]:
            known = ", ".join(reference.outputs)
            raise UsageError(
                f"{parameter('max_output_error')} names '{strange[0]}', which is no output", remedy=f"there are {known}"
            )
        ahead = {probe.name: limits[probe.output] for probe in reference.probes if probe.output in limits}
        ledger.limits = limits | ahead
        return ledger


def collect(
    reference: Specimen,
    otherwise: Specimen,
    specs: Sequence[InputSpec],
    options: CheckOptions,
    *,
    truth: Specimen | None = None,
    twin: Specimen | None = None,
) -> Evidence:
    """Run the original on every sample: the user's data, or seeded inputs that take turns over the scales.

    A scale at which the original gives NaN or Inf, or does not run, is dropped; where none is left, what names and
    types suggest is tried (see `suggested`). Further scales are tried while some output that depends on the inputs does
    not move. `truth`, where given, is the original in another
    implementation of ONNX: it says what is right, and ONNX Runtime how large the noise is. `twin`: the other
    model, where that is of another precision: what overflows there is dropped as well.
    """
    evidence = Evidence()
    if not reference.rounds or reference.proven:
        other = otherwise if reference.optimized else None
        evidence.shaken = Shaken(other, lambda: open_shaken(reference))
    data, seed, progress = options.data, options.seed, options.progress

    def observe(sample: Sample, *, keep: bool = False) -> bool:
        """Run one sample; keep it where the original gives numbers."""
        on = reference.run(sample.feeds)
        usable = keep or (all(finite(value) for value in on.values()) and _bears(twin, sample))
        if usable:
            right = truth.run(sample.feeds) if truth is not None else None
            stored = not reference.optimized and not reference.rounds  # weights alone: kernels for them say nothing
            evidence.add(sample, on, {} if stored else otherwise.run(sample.feeds), right)
            if reference.proven or reference.coarse or stored:
                evidence.add_rounding(sample.feeds, on, steps=reference.proven)
        return usable

    if data is not None:
        given = data.samples(specs) if isinstance(data, Images) else cut_data(data, specs)
        for index, sample in enumerate(given):
            _tell(progress, "original on the data", index, len(given))
            observe(sample, keep=True)
        for index, scale in enumerate(SCALES if len(given) == 1 else ()):
            with contextlib.suppress(RunFailed):
                evidence.beside.append(reference.run(draw(specs, scale, seed + index).feeds))
    else:
        _draw_all(reference, evidence, specs, options, observe=observe)
    evidence.still = tuple(still(reference, evidence))
    return evidence


def _bears(twin: Specimen | None, sample: Sample) -> bool:
    """Whether a model of another precision gives numbers: float16 ends at 65504."""
    try:
        return twin is None or all(finite(value) for value in twin.run(sample.feeds).values())
    except DeviceFailed:
        raise
    except RunFailed:  # which the comparison will say
        return True


def _draw_all(
    reference: Specimen,
    evidence: Evidence,
    specs: Sequence[InputSpec],
    options: CheckOptions,
    *,
    observe: Callable[..., bool],
) -> None:
    """Observe seeded inputs, until there are enough of them and the outputs move."""
    samples, seed = options.samples, options.seed

    def tried(sample: Sample) -> bool:
        try:
            return observe(sample)
        except DeviceFailed:
            raise
        except RunFailed:
            return False

    scales, turn = list(SCALES), 0
    while len(evidence.samples) < samples and scales:
        _tell(options.progress, "original on samples", len(evidence.samples), samples)
        scale = scales[turn % len(scales)]
        if not tried(draw(specs, scale, seed + turn)):
            scales.remove(scale)
            evidence.dropped.append(scale.name)
        turn += 1
    for sample in () if evidence.samples else suggested(specs, seed):
        if len(evidence.samples) < samples:
            tried(sample)
    if not evidence.samples:
        observe(draw(specs, SCALES[-1], seed + turn - 1), keep=True)
    extra = [*SCALES[1:], *EXTRA_SCALES] if samples == 1 else list(EXTRA_SCALES)
    more = [draw(specs, scale, seed + turn + k) for k, scale in enumerate(extra)] if still(reference, evidence) else []
    for sample in itertools.chain(more, suggested(specs, seed) if telling(specs) else ()):
        if not still(reference, evidence):
            break
        tried(sample)


def carried_noise(evidence: Evidence, probe: Probe) -> float:
    """The noise of a final Softmax, LogSoftmax or Sigmoid that the noise of its operand z explains.

    |dp| / max p <= 2 max|dz|: scores of 300 with a relative noise of 1e-7 move a Softmax by 6e-5, although it shows no
    noise at all on samples where it is saturated. The output may be that loose, because z itself is compared tightly.
    """
    arrays = [values[probe.name] for values in evidence.references]
    if probe.op not in ("Softmax", "LogSoftmax", "Sigmoid") or arrays[0].dtype.kind != "f":
        return 0.0
    relative = max(evidence.noise.get(probe.name, 0.0), float(np.finfo(arrays[0].dtype).eps))
    absolute = 2.0 * relative * evidence.peak.get(probe.name, 0.0)
    scale = evidence.peak.get(probe.output, 0.0) if probe.op == "LogSoftmax" else 1.0
    return absolute / scale if scale else 0.0


def still(reference: Specimen, evidence: Evidence) -> list[str]:
    """The outputs that depend on the inputs but did not move, neither they nor what lies ahead of their Softmax."""
    names = []
    for output in reference.outputs:
        views = [output, *(probe.name for probe in reference.probes if probe.output == output)]
        if output in reference.moving and not any(_moved(evidence, view) for view in views):
            names.append(output)
    return names


def _moved(evidence: Evidence, name: str) -> bool:
    """Whether a tensor differs between samples, and its elements from each other."""
    values = [reference[name] for reference in evidence.references]
    beside = [other[name] for other in evidence.beside if finite(other[name])]
    noise = max(TOLERANCE, min(LARGEST_TOLERANCE, 10.0 * evidence.noise.get(name, 0.0)))
    return moved(values, beside, VARIATION * noise * evidence.peak.get(name, 0.0))


def _tell(progress: Progress | None, text: str, done: int, total: int) -> None:
    """Report progress where someone listens."""
    if progress is not None:
        progress(text, done, total)
