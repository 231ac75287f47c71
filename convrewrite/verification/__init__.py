"""Is the rewritten model the same function? ONNX Runtime runs both, before anything is written.

    verify(a, b)                            two models with one interface, a being the original
    verify_fcn(original, converted, ...)    a classifier and its fully convolutional form, at sizes beyond its own

What is compared: every output, and the tensor ahead of a final Softmax, LogSoftmax, Sigmoid or ArgMax, which would hide
a difference. On what: seeded inputs at several scales, or the user's own. Against what: max|a-b| / max|b|, held against
1e-5 or ten times the noise of the original itself (graph optimizations on against off), whichever is larger; of the
output as a whole, and of every part of it (see `channels`). Where no output moves the verdict is `vacuous`; NaN and Inf
are never equal; what did not run is `skipped`, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from convrewrite.engine.windows import CutTensor, OutputGrid, Window
from convrewrite.errors import said
from convrewrite.options import VerifyOptions
from convrewrite.running.runtime import DeviceFailed, RunFailed
from convrewrite.running.sampling import Images
from convrewrite.verification import batches, extents, trunk_oracle, window_checks
from convrewrite.verification.comparison import Ledger
from convrewrite.verification.evidence import Evidence, carried_noise, collect
from convrewrite.verification.exposure import read_sketch
from convrewrite.verification.interface import Shapes, match_inputs, native_inputs, repeated, same_outputs
from convrewrite.verification.models import Models, joined, open_models
from convrewrite.verification.room import Room, ended, room_for
from convrewrite.verification.specimens import Data, Progress, Specimen
from convrewrite.verification.still import undecided
from convrewrite.verification.subjects import Subject, large_images, native_size_plans, split_data, window_plans
from convrewrite.verification.verdicts import Case, Deviation, Divergence, Verification
from convrewrite.verification.where import locate

__all__ = ["Case", "Deviation", "Divergence", "Progress", "Shapes", "Verification", "verify", "verify_fcn"]

DEFAULT = VerifyOptions()


def verify(
    a_path: str | Path,
    b_path: str | Path,
    options: VerifyOptions = DEFAULT,
    *,
    fixed: Mapping[str, Sequence[Any]] | None = None,
    twins: bool = False,
    least: tuple[float, float] = (0.0, 0.0),
) -> Verification:
    """Compare two models with the same inputs and outputs.

    Where only `b_path` carries the window of a fully convolutional form, `verify_fcn` compares the two (without a
    `cut`: whoever can find the original's head calls it directly).

    Args:
        a_path: the original, which is the reference. b_path: the rewritten model.
        options: how; with several `sizes` one after the other, and then no others are drawn.
        fixed: shapes by input that a rewrite was asked to fix ({} for none): one that accepts less than the original
            without that fails. None where the two files are simply compared: then a warning says so.
        twins: whether they may be of other precision (float32 and float16): the same inputs are cast for each, and
            the tolerance is that of the coarser type.
        least: smallest default tolerance of an output and of a part of one, where kernels are known to round so.

    Raises:
        UsageError: the models cannot be compared: other inputs or outputs, open dimensions without a size.
        RunFailed: the original does not run. At a later one of several sizes, the result's `stopped` says so; so does
            it where memory runs out or Ctrl-C comes.
    """
    window = _window_of(b_path)
    if window is not None and _window_of(a_path) is None:
        return verify_fcn(a_path, b_path, window, options, twins=twins)
    every = options.sizes or (options.size,)
    asked = Shapes(None, options.batch, options.shapes or {})
    with room_for(a_path, b_path, size=every[0], batch=options.batch, named=asked.named, data=options.data) as fit:
        options = replace(options, data=fit.data)
        models = open_models(fit.a, fit.b, options.provider, options.reference, twins=twins)
        same_outputs(models.reference, models.rewritten)
        case = _Case(models, options, fixed, least, more=fixed is not None or len(every) == 1)
        found = _at_all(case, every, replace(asked, batch=fit.batch), fit)
    return fit.named(found)


@dataclass(frozen=True)
class _Case:
    """Two open models and how they are compared: `fixed` and `least` as for `verify`.

    Attributes:
        more: whether further extents of open axes are tried.
    """

    models: Models
    options: VerifyOptions
    fixed: Mapping[str, Sequence[Any]] | None
    least: tuple[float, float]
    more: bool


def _at_all(case: _Case, every: Sequence[tuple[int, ...] | None], asked: Shapes, fit: Room) -> Verification:
    """Compare two models at several sizes, one after the other."""
    parts: dict[str, Verification] = {}
    stopped = None
    for one in every:
        at = replace(asked, size=one)
        try:
            if parts and one is not None:
                fit.check(one)
            parts[str(at)] = _verify_at(at, case)
        except (RunFailed, MemoryError, KeyboardInterrupt) as error:
            if not parts:
                raise
            stopped = ended(error, f"at {at}; it ran at {', '.join(parts)}")
            break
    return replace(Verification.merged(parts, alone=len(every) == 1), stopped=stopped)


def _verify_at(at: Shapes, case: _Case) -> Verification:
    """Compare two models at one size. Where they are quantized, their float surrogates come first."""
    models, options, tolerance = case.models, case.options, case.options.max_output_error
    inner = None
    if models.bare is not None and (tolerance is None or isinstance(tolerance, Mapping)):
        inner = _verify_at(at, replace(case, models=models.bare, more=False))
        models = models.proven_by(inner)
    reference, rewritten = models.reference, models.rewritten
    specs = match_inputs(reference, rewritten, at, options.data)
    evidence = collect(reference, models.otherwise, specs, options, truth=models.truth, twin=models.twin)
    ledger = evidence.ledger(options.seed, tolerance, reference)
    ledger.least, ledger.least_part = max(ledger.least, case.least[0]), case.least[1]
    shared = _shared_probes(ledger, evidence, reference, rewritten, outputs=reference.outputs)
    for sample, want in zip(evidence.samples, evidence.references, strict=True):
        ledger.inputs = sample.feeds
        try:
            got = rewritten.run(sample.feeds)
        except DeviceFailed:
            raise
        except RunFailed as error:
            ledger.fail("outputs", f"{said(error)}; {sample.source}")
            break
        for name in [*reference.outputs, *shared]:
            mask = undecided(reference.probes, name, want, ledger)
            check = "ahead of the final operator" if name in shared else "outputs"
            if name in shared and got[name].shape != want[name].shape:
                ledger.skip(check, f"other shape: {got[name].shape} and {want[name].shape}", name)
                continue
            ledger.compare(check, name, got[name], want[name], note=sample.source, uncertain=mask)
    every = [*reference.outputs, *shared]
    batches.check(reference, rewritten, evidence, ledger, names=every)
    narrowed = extents.declared(reference, rewritten, case.fixed, ledger)
    if case.more:
        chosen = case.fixed is None and at.batch is not None
        subjects = (reference, models.otherwise, rewritten)
        extents.check(subjects, specs, evidence, ledger, names=every, images=not chosen)
    reached = replace(options, reference="onnxruntime" if models.truth is None else "onnx")
    found = Verification(
        ledger.cases,
        command=repeated(reference.path, rewritten.path, reached, at),
        failing=ledger.failing,
        given=_word(options.data),
        **evidence.verdicts(reference, ledger.cases),
        **models.facts(inner),
    )
    found = replace(found, warnings=(*found.warnings, *narrowed))
    return joined(replace(found, divergence=_locate(models, evidence, ledger)) if options.where else found, inner)


def _word(data: Data | None) -> str:
    """What the user gave."""
    return "images" if isinstance(data, Images) else "" if data is None else "data"


def _locate(models: Models, evidence: Evidence, ledger: Ledger) -> Divergence:
    """Where the models begin to differ: on the failing inputs if the original takes them, else on the first sample."""
    first = evidence.samples[0].feeds
    feeds = dict(ledger.failing.inputs if ledger.failing is not None else first)
    elsewhere = any(feeds[name].shape != array.shape for name, array in first.items())
    found = locate(models.reference, models.rewritten, dict(first) if elsewhere else feeds, ledger)
    if elsewhere and not found.tensor:  # an image beyond the native size, several batches at once
        note = "looked for on inputs of the usual shape; what failed has another"
        return replace(found, note="; ".join(part for part in (found.note, note) if part))
    return found


def verify_fcn(
    original_path: str | Path,
    converted_path: str | Path,
    window: Window,
    options: VerifyOptions = DEFAULT,
    *,
    cut: Sequence[CutTensor] = (),
    twins: bool = False,
) -> Verification:
    """Compare a classifier with its fully convolutional form: at the native size, and on larger images.

    Where `window` claims "windows", every output cell of larger images is compared with the original on its crop.
    Where it claims "native-size", with the original's own trunk on the larger image and its own head on every feature
    window; the distance from the original on the crops is then stated as `deviation`, and never fails.

    Args:
        original_path, converted_path: before and after. window: what the converted model's metadata says.
        options: how; `size` and `sizes` are those of the larger images, instead of a few near the native size. Images
            in `data` that are larger than the window are compared as they are, and the window at their first pixel as
            a native image.
        cut: where the original's head begins; without it the check at larger sizes of "native-size" is skipped.
        twins: as for `verify`.

    Raises:
        UsageError: the models cannot be compared, or `size` is below the window.
        RunFailed: the original does not run.
    """
    wanted = options.sizes or ((options.size,) if options.size is not None else ())
    options = replace(options, size=None, sizes=wanted)
    data, tolerance = options.data, options.max_output_error
    with room_for(original_path, converted_path, size=window.size, batch=options.batch, named={}, data=data) as fit:
        models = open_models(fit.a, fit.b, options.provider, twins=twins)
        case = _MapCase(models, replace(options, data=fit.data), window, cut, fit=fit)
        inner = None
        if models.bare is not None and (tolerance is None or isinstance(tolerance, Mapping)):
            inner = _verify_map(replace(case, models=models.bare))
            case = replace(case, models=models.proven_by(inner))
        found = joined(_verify_map(case, inner), inner)
    return fit.named(found)


@dataclass(frozen=True)
class _MapCase:
    """An open classifier and its fully convolutional form, and how they are compared; `cut` as for `verify_fcn`."""

    models: Models
    options: VerifyOptions
    window: Window
    cut: Sequence[CutTensor]
    fit: Room


def _verify_map(case: _MapCase, inner: Verification | None = None) -> Verification:
    """Compare a classifier with its fully convolutional form; `inner` is the result for their float surrogates."""
    models, options, window, fit = case.models, case.options, case.window, case.fit
    original, converted = models.reference, models.rewritten
    specs = native_inputs(original, converted, window, fit.batch)
    native, given = split_data(options.data, window, specs)
    evidence = collect(original, models.otherwise, specs, replace(options, data=native), twin=models.twin)
    ledger = evidence.ledger(options.seed, options.max_output_error, original)
    spec = next(spec for spec in specs if spec.name == window.input)
    subject = Subject(
        window=window,
        original=original,
        converted=converted,
        evidence=evidence,
        ledger=ledger,
        spec=spec,
        beside=[spec for spec in specs if spec.name in window.beside],
        seed=options.seed,
        progress=options.progress,
        room=fit.check,
    )
    deviation, stopped = None, None
    if window_checks.metadata_holds(subject):
        subject.grids = _grids(subject)
        window_checks.native(subject)
        window_checks.several_batches(subject, models.otherwise, specs)
        claimed = window.equivalence == "windows"
        seen = subject if claimed else subject.coarsely
        plans = window_plans(window) if claimed else native_size_plans(window)
        larger = large_images(seen, plans, options.sizes, given)
        ran = ["x".join(map(str, window.size))]
        try:
            if not larger:
                ledger.skip("larger images", "the converted model takes images of the native size alone")
            elif not claimed:
                images = [make() for make in larger]
                deviation = trunk_oracle.check(seen, case.cut, images, options.provider, ran=ran)
            for make in larger if claimed else []:
                image = make()
                window_checks.windows(subject, [image])
                ran.append(image.name)
        except (DeviceFailed, MemoryError, KeyboardInterrupt) as error:
            stopped = ended(error, f"it ran at {', '.join(ran)}")
    found = Verification(
        ledger.cases,
        deviation,
        command=repeated(original.path, converted.path, options, Shapes(None, fit.batch)),
        failing=ledger.failing,
        stopped=stopped,
        given=_word(options.data),
        **models.facts(inner),
        **evidence.verdicts(original, ledger.cases),
    )
    located = options.where and stopped is None
    return replace(found, divergence=_locate(models, evidence, ledger)) if located else found


def _window_of(path: str | Path) -> Window | None:
    """The window in a model's metadata."""
    return Window.from_metadata({entry.key: entry.value for entry in read_sketch(path).model.metadata_props})


def _grids(subject: Subject) -> dict[str, OutputGrid]:
    """The grid of every output that depends on the image, and of every probe that both models have."""
    grids = dict(subject.window.outputs)
    original, converted = subject.original, subject.converted
    shared = _shared_probes(subject.ledger, subject.evidence, original, converted, outputs=tuple(grids))
    twins = {probe.name: probe for probe in converted.probes}
    for probe in original.probes:
        if probe.name not in shared or probe.output not in grids:
            continue
        grid = grids[probe.output]
        if probe.op != "ArgMax":
            grids[probe.name] = grid
            continue
        twin, rank = twins[probe.name], len(grid.layout) + (not probe.keepdims)
        axis = probe.axis % rank
        if not (probe.straight and twin.straight and twin.axis == 1):
            subject.ledger.skip("ahead of the final operator", "its axes were moved after the ArgMax", probe.name)
            continue
        layout = [*grid.layout[:axis], "C", *grid.layout[axis + probe.keepdims :]]
        if "".join(layout).count("C") > 1:
            subject.ledger.skip("ahead of the final operator", "it has two channel axes", probe.name)
            continue
        grids[probe.name] = replace(grid, layout=tuple(layout))
    return grids


def _shared_probes(
    ledger: Ledger, evidence: Evidence, a: Specimen, b: Specimen, *, outputs: Sequence[str]
) -> list[str]:
    """Names of the probes that both models have; records as skipped what only the original has."""
    check = "ahead of the final operator"
    for specimen in (a, b):
        if specimen.unprobed:
            ledger.skip(check, specimen.unprobed)
    there = {probe.name for probe in b.probes}
    ours = [probe.name for probe in a.probes if probe.output in outputs]
    if not a.unprobed and not b.unprobed:
        for name in ours:
            if name not in there:
                ledger.skip(check, "the rewritten model has no such operator at that output", name)
    for probe in a.probes:
        if probe.name in there and probe.output in outputs:
            ledger.carried[probe.output] = carried_noise(evidence, probe)
    return [name for name in ours if name in there]
