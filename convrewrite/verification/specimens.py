"""A model under test: its plain file for the outputs, and a probed copy for what lies ahead of a final Softmax.

The outputs of a rewritten model come from the very file that will be published. Tensors ahead of a final Softmax come
from a second session on a copy (see `exposure`). Of the original, the reference, one probed session gives both.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx

from convrewrite.errors import UsageError
from convrewrite.runtime import RunFailed, Session, TensorInfo, open_session
from convrewrite.sampling import EXTRA_SCALES, SCALES, Feeds, Images, InputSpec, Sample, cut_data, draw
from convrewrite.verification import exposure
from convrewrite.verification.comparison import LARGEST_TOLERANCE, ONE_STEP, TOLERANCE, Ledger, finite, relative_error
from convrewrite.verification.exposure import Probe
from convrewrite.verification.on_demand import opened
from convrewrite.verification.precision import roundings
from convrewrite.verification.ranges import integer_limits
from convrewrite.verification.values import Flattened, all_tensors

Array = np.ndarray[Any, Any]
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many steps are done, and how many there are."""

Data = Mapping[str, Array] | Images
"""The user's inputs: arrays by input name, or a folder of images."""

Tolerance = float | Mapping[str, float] | None
"""The user's: for every output, or by output ("" for all others); None for the default."""

VARIATION = 10.0
"""An output has moved when it differs between samples by more than this many tolerances."""


class Runner(Protocol):
    """What runs a model: a `Session`, or another implementation of ONNX."""

    @property
    def provider(self) -> str: ...
    @property
    def inputs(self) -> tuple[TensorInfo, ...]: ...
    @property
    def outputs(self) -> tuple[TensorInfo, ...]: ...
    @property
    def nodes(self) -> dict[str, int]: ...
    @property
    def warning(self) -> str: ...
    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]: ...


@dataclass(frozen=True)
class Specimen:
    """One model, ready to run.

    Attributes:
        path: of the model. outputs: of the model itself, without probes.
        probes: tensors ahead of final operators that `run` gives as well. unprobed: why there are none, if so.
        moving: outputs that depend on an input's values.
        below: numbers that the values of integer inputs stay below, where the graph says so.
        optimized: whether its sessions run with graph optimizations. steps: by which outputs stored in integers differ.
        units: in the last place, of outputs and probes that a narrower type than their own led to.
    """

    path: str
    outputs: tuple[str, ...]
    probes: tuple[Probe, ...]
    unprobed: str
    moving: frozenset[str]
    _plain: Runner | None
    _probed: Runner | None
    below: Mapping[str, int] = field(default_factory=dict)
    optimized: bool = True
    steps: Mapping[str, float] = field(default_factory=dict)
    units: Mapping[str, float] = field(default_factory=dict)

    @property
    def session(self) -> Runner:
        """Some session of the model: its inputs and outputs are described there."""
        session = self._plain or self._probed
        assert session is not None
        return session

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs and all probes."""
        if self._plain is None:
            return self.session.run(feeds)
        values = self._plain.run(feeds)
        if self._probed is not None:
            values |= self._probed.run(feeds, [probe.name for probe in self.probes])
        return values


def open_specimen(path: str | Path, provider: str = "cpu", *, usual: bool = True, reference: bool = False) -> Specimen:
    """Open a model and its probed copy; a `reference` runs as one session where it has probes.

    (Two where it has local functions: the copy has them inlined, and the outputs are to be the file's own.)
    With `usual`, graph optimizations are on, or off for a model that rounds inside; without, the other way round.
    Where the probed copy cannot be opened, the model goes without, and `unprobed` says why.
    """
    path = str(path)
    sketch = exposure.read_sketch(path)
    optimize = usual != exposure.rounds_inside(sketch.model)
    moving = frozenset(exposure.moving_outputs(sketch.model))
    below, steps = integer_limits(sketch.model), exposure.last_steps(sketch.model)
    probes = exposure.add_probes(sketch.model)
    units = roundings(sketch.model)
    probed: Runner | None = None
    unprobed = ""
    if probes:
        try:
            make = functools.partial(session_of, sketch, sketch.model, path, provider, optimize=optimize)
            probed = opened(make)
        except (UsageError, ValueError) as error:  # ValueError: over the 2 GB of one protobuf message
            probes, unprobed = (), f"its probed copy does not load: {error}"
    one_session = probed is not None and reference and not sketch.inlined
    plain = None if one_session else opened(lambda: all_tensors(open_session(path, provider, optimize)))
    described = probed if plain is None else plain
    assert described is not None
    added = {probe.name for probe in probes}
    outputs = tuple(info.name for info in described.outputs if info.name not in added)
    return Specimen(path, outputs, probes, unprobed, moving, plain, probed, below, optimize, steps, units)


def session_of(
    sketch: exposure.Sketch, variant: onnx.ModelProto, path: str, provider: str, *, optimize: bool | None = None
) -> Session | Flattened:
    """A session on a temporary variant of the model at `path`; its external data is read where it lies."""
    folder = Path(path).resolve().parent if exposure.has_external_data(variant) else None
    content = sketch.serialize(variant)
    if optimize is None:
        optimize = not exposure.rounds_inside(sketch.model)
    return all_tensors(open_session(content, provider, optimize, label=f"a variant of {path}", data_folder=folder))


@dataclass
class Evidence:
    """What the original gives on every sample.

    Attributes:
        samples, references: inputs and outputs (with probes), pairwise.
        noise: error between graph optimizations on and off, the largest per output.
        peak: the largest magnitude per output.
        dropped: scales at which the original itself gave NaN or Inf.
        vacuous: outputs that did not move.
        beside: outputs on random inputs that are not compared, where the user gave one sample: it alone cannot move.
    """

    samples: list[Sample] = field(default_factory=list)
    references: list[dict[str, Array]] = field(default_factory=list)
    noise: dict[str, float] = field(default_factory=dict)
    peak: dict[str, float] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    vacuous: tuple[str, ...] = ()
    beside: list[dict[str, Array]] = field(default_factory=list)

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

    def ledger(self, seed: int, tolerance: Tolerance, reference: Specimen) -> Ledger:
        """A ledger that knows the original's noise. Raises UsageError for the tolerance of an unknown output."""
        ledger = Ledger(seed, None, dict(self.noise), dict(self.peak))
        ledger.least = 0.0 if reference.optimized else ONE_STEP
        ledger.steps, ledger.units = reference.steps, reference.units
        if not isinstance(tolerance, Mapping):
            ledger.limit = tolerance
            return ledger
        ledger.limit = tolerance.get("")
        limits = {name: limit for name, limit in tolerance.items() if name}
        if strange := [name for name in limits if name not in reference.outputs]:
            known = ", ".join(reference.outputs)
            raise UsageError(
                f"--max-output-error names '{strange[0]}', which is no output", remedy=f"there are {known}"
            )
        ahead = {probe.name: limits[probe.output] for probe in reference.probes if probe.output in limits}
        ledger.limits = limits | ahead
        return ledger


def collect(
    reference: Specimen,
    otherwise: Specimen,
    specs: Sequence[InputSpec],
    *,
    samples: int,
    seed: int,
    data: Data | None,
    progress: Progress | None = None,
    truth: Specimen | None = None,
) -> Evidence:
    """Run the original on every sample: the user's data, or seeded inputs that take turns over the scales.

    A scale at which the original gives NaN or Inf is dropped, unless it is the last. Further scales are tried while
    some output that depends on the inputs does not move. `truth`, where given, is the original in another
    implementation of ONNX: it says what is right, and ONNX Runtime how large the noise is.
    """
    evidence = Evidence()
    if samples < 1:
        raise UsageError(f"--samples is {samples}", remedy="give 1 or more")

    def observe(sample: Sample, *, keep: bool = False) -> bool:
        """Run one sample; keep it where the original gives numbers."""
        on = reference.run(sample.feeds)
        usable = keep or all(finite(value) for value in on.values())
        if usable:
            right = truth.run(sample.feeds) if truth is not None else None
            evidence.add(sample, on, otherwise.run(sample.feeds), right)
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
        scales = list(SCALES)
        turn = 0
        while len(evidence.samples) < samples and scales:
            _tell(progress, "original on samples", len(evidence.samples), samples)
            scale = scales[turn % len(scales)]
            if not observe(draw(specs, scale, seed + turn), keep=len(scales) == 1 and not evidence.samples):
                scales.remove(scale)
                evidence.dropped.append(scale.name)
            turn += 1
        extra = [*SCALES[1:], *EXTRA_SCALES] if samples == 1 else list(EXTRA_SCALES)
        for scale in extra:
            if not still(reference, evidence):
                break
            observe(draw(specs, scale, seed + turn))
            turn += 1
    evidence.vacuous = tuple(still(reference, evidence))
    return evidence


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
    """Whether a tensor differs between samples, and its elements from each other.

    A network with constant weights gives every class the same score, larger for a brighter image: its output moves,
    but a converter that confuses rows, columns and classes would go unnoticed.
    """
    values = [reference[name] for reference in evidence.references]
    beside = [other[name] for other in evidence.beside if finite(other[name])]
    if values[0].dtype.kind != "f":
        return any(not np.array_equal(values[0], value) for value in [*values[1:], *beside])
    if not all(map(finite, values)) or not any(value.size for value in values):
        return True  # a failure, but no vacuous one
    threshold = (
        VARIATION
        * max(TOLERANCE, min(LARGEST_TOLERANCE, 10.0 * evidence.noise.get(name, 0.0)))
        * evidence.peak.get(name, 0.0)
    )
    uneven = any(value.size == 1 or float(np.ptp(value.astype(np.float64))) > threshold for value in values)
    least = most = values[0].astype(np.float64)
    for value in [*values[1:], *beside]:  # one at a time: there may be many samples
        if value.shape == least.shape:
            wide = value.astype(np.float64)
            least, most = np.minimum(least, wide), np.maximum(most, wide)
    return uneven and float(np.max(most - least)) > threshold


def undecided(probes: Iterable[Probe], output: str, reference: Mapping[str, Array], ledger: Ledger) -> Array | None:
    """Where the original's own ArgMax has two candidates within its noise: a mask over the output."""
    for probe in probes:
        if probe.output != output or probe.op != "ArgMax" or probe.reordered:
            continue
        scores = reference[probe.name].astype(np.float64)
        if scores.ndim == 0 or scores.shape[probe.axis] < 2:
            continue
        best = np.partition(scores, -2, axis=probe.axis)
        margin = np.take(best, -1, axis=probe.axis) - np.take(best, -2, axis=probe.axis)
        limit = 2 * ledger.tolerance(probe.name, reference[probe.name].dtype) * float(np.max(np.abs(scores)))
        if margin.size == reference[output].size:
            return np.asarray(margin <= limit).reshape(reference[output].shape)
    return None


def feeds_of(sample: Sample, names: Iterable[str]) -> Feeds:
    """The part of a sample that a model takes."""
    return {name: sample.feeds[name] for name in names}


def _tell(progress: Progress | None, text: str, done: int, total: int) -> None:
    """Report progress where someone listens."""
    if progress is not None:
        progress(text, done, total)
