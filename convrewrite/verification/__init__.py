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
from dataclasses import replace
from pathlib import Path
from typing import Any

from convrewrite.engine.windows import CutTensor, OutputGrid, Window
from convrewrite.errors import said
from convrewrite.running.runtime import DeviceFailed, RunFailed
from convrewrite.running.sampling import Images
from convrewrite.verification import batches, extents, trunk_oracle, window_checks
from convrewrite.verification.comparison import Ledger
from convrewrite.verification.evidence import Evidence, carried_noise, collect
from convrewrite.verification.exposure import read_sketch
from convrewrite.verification.interface import Shapes, match_inputs, native_inputs, repeated, same_outputs
from convrewrite.verification.models import Models, joined, open_models
from convrewrite.verification.room import Room, ended, room_for
from convrewrite.verification.specimens import Data, Progress, Specimen, Tolerance
from convrewrite.verification.still import undecided
from convrewrite.verification.subjects import Subject, large_images, native_size_plans, split_data, window_plans
from convrewrite.verification.verdicts import Case, Deviation, Divergence, Verification
from convrewrite.verification.where import locate

__all__ = ["Case", "Deviation", "Divergence", "Progress", "Shapes", "Verification", "verify", "verify_fcn"]


def verify(
    a_path: str | Path,
    b_path: str | Path,
    *,
    samples: int = 3,
    seed: int = 0,
    data: Data | None = None,
    size: Sequence[int] | None = None,
    sizes: Sequence[Sequence[int]] = (),
    batch: int | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    tolerance: Tolerance = None,
    provider: str = "cpu",
    reference: str = "onnxruntime",
    where: bool = False,
    fixed: Mapping[str, Sequence[Any]] | None = None,
    twins: bool = False,
    least: tuple[float, float] = (0.0, 0.0),
    progress: Progress | None = None,
) -> Verification:
    """Compare two models with the same inputs and outputs.

    Where only `b_path` carries the window of a fully convolutional form, `verify_fcn` compares the two (without a
    `cut`: whoever can find the original's head calls it directly).

    Args:
        a_path: the original, which is the reference. b_path: the rewritten model.
        samples: seeded inputs to run, over several scales. seed: that they start from.
        data: the user's inputs by name (`sampling.read_data`) or `sampling.Images`, instead of seeded ones.
        size: extents for open spatial dimensions. sizes: several, one after the other, and then no others are drawn.
        batch: of open first dimensions. shapes: whole shapes by input name.
        tolerance: for every output, or by output name, instead of the default by type and noise.
        provider: where both run.
        reference: "onnx" takes what onnx's reference evaluator makes of the original as right.
        where: find the first inner tensor that differs, too.
        fixed: shapes by input that a rewrite was asked to fix ({} for none): one that accepts less than the original
            without that fails. None where the two files are simply compared: then a warning says so.
        twins: whether they may be of other precision (float32 and float16): the same inputs are cast for each, and
            the tolerance is that of the coarser type.
        least: smallest default tolerance of an output and of a part of one, where kernels are known to round so.
        progress: called as work goes on.

    Raises:
        UsageError: the models cannot be compared: other inputs or outputs, open dimensions without a size.
        RunFailed: the original does not run. At a later one of several sizes, the result's `stopped` says so; so does
            it where memory runs out or Ctrl-C comes.
    """
    window = _window_of(b_path)
    every: list[tuple[int, ...] | None] = [tuple(one) for one in sizes]
    every = every or [None if size is None else tuple(size)]
    common: dict[str, Any] = {"samples": samples, "seed": seed, "data": data, "tolerance": tolerance}
    if window is not None and _window_of(a_path) is None:
        options: dict[str, Any] = {
            "size": size,
            "sizes": sizes,
            "batch": batch,
            "provider": provider,
            "where": where,
            "twins": twins,
            "progress": progress,
        }
        return verify_fcn(a_path, b_path, window, **common, **options)
    asked = Shapes(None, batch, shapes or {})
    with room_for(a_path, b_path, size=every[0], batch=batch, named=asked.named, data=data) as fit:
        common["data"] = fit.data
        models = open_models(fit.a, fit.b, provider, reference, twins=twins)
        common |= {"where": where, "provider": provider, "progress": progress, "fixed": fixed, "least": least}
        found = _at_all(every, replace(asked, batch=fit.batch), fit, models, **common)
    return fit.named(found)


def _at_all(
    every: Sequence[tuple[int, ...] | None], asked: Shapes, fit: Room, models: Models, **common: Any
) -> Verification:
    """Compare two models at several sizes, one after the other."""
    same_outputs(models.reference, models.rewritten)
    parts: dict[str, Verification] = {}
    stopped = None
    more = common["fixed"] is not None or len(every) == 1
    for one in every:
        at = replace(asked, size=one)
        try:
            if parts and one is not None:
                fit.check(one)
            parts[str(at)] = _verify_at(at, models, more=more, **common)
        except (RunFailed, MemoryError, KeyboardInterrupt) as error:
            if not parts:
                raise
            stopped = ended(error, f"at {at}; it ran at {', '.join(parts)}")
            break
    return replace(Verification.merged(parts, alone=len(every) == 1), stopped=stopped)


def _verify_at(
    at: Shapes,
    models: Models,
    *,
    samples: int,
    seed: int,
    data: Data | None,
    tolerance: Tolerance,
    where: bool,
    fixed: Mapping[str, Sequence[Any]] | None,
    more: bool,
    provider: str,
    progress: Progress | None,
    least: tuple[float, float],
) -> Verification:
    """Compare two models at one size, and with `more` at further extents of open axes.

    Where they are quantized, their float surrogates come first.
    """
    taken: dict[str, Any] = {"samples": samples, "seed": seed, "data": data, "progress": progress}
    inner = None
    if models.bare is not None and (tolerance is None or isinstance(tolerance, Mapping)):
        same: dict[str, Any] = {**taken, "tolerance": tolerance, "provider": provider, "least": least}
        inner = _verify_at(at, models.bare, where=where, fixed=fixed, more=False, **same)
        models = models.proven_by(inner)
    reference, rewritten = models.reference, models.rewritten
    right = "onnxruntime" if models.truth is None else "onnx"
    specs = match_inputs(reference, rewritten, at, data)
    evidence = collect(reference, models.otherwise, specs, truth=models.truth, twin=models.twin, **taken)
    ledger = evidence.ledger(seed, tolerance, reference)
    ledger.least, ledger.least_part = max(ledger.least, least[0]), least[1]
    shared = _shared_probes(ledger, evidence, reference, rewritten, reference.outputs)
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
    batches.check(reference, rewritten, evidence, ledger, every)
    narrowed = extents.declared(reference, rewritten, fixed, ledger)
    if more:
        chosen = fixed is None and at.batch is not None
        extents.check((reference, models.otherwise, rewritten), specs, evidence, ledger, every, images=not chosen)
    size = [at.size] if at.size else []
    repeat = repeated(reference.path, rewritten.path, seed, samples, size, at, tolerance, provider, data, right)
    found = Verification(
        ledger.cases,
        command=repeat,
        failing=ledger.failing,
        given=_word(data),
        **evidence.verdicts(reference, ledger.cases),
        **models.facts(inner),
    )
    found = replace(found, warnings=(*found.warnings, *narrowed))
    return joined(replace(found, divergence=_locate(models, evidence, ledger)) if where else found, inner)


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
    cut: Sequence[CutTensor] = (),
    *,
    samples: int = 3,
    seed: int = 0,
    data: Data | None = None,
    size: Sequence[int] | None = None,
    sizes: Sequence[Sequence[int]] = (),
    batch: int | None = None,
    tolerance: Tolerance = None,
    provider: str = "cpu",
    where: bool = False,
    twins: bool = False,
    progress: Progress | None = None,
) -> Verification:
    """Compare a classifier with its fully convolutional form: at the native size, and on larger images.

    Where `window` claims "windows", every output cell of larger images is compared with the original on its crop.
    Where it claims "native-size", with the original's own trunk on the larger image and its own head on every feature
    window; the distance from the original on the crops is then stated as `deviation`, and never fails.

    Args:
        original_path, converted_path: before and after. window: what the converted model's metadata says.
        cut: where the original's head begins; without it the check at larger sizes of "native-size" is skipped.
        size: of the one larger image to compare on, instead of a few near the native size. sizes: of several.
        samples, seed, data, batch, tolerance, provider, where, twins, progress: as for `verify`. Images in `data` that
            are larger than the window are compared as they are, and the window at their first pixel as a native image.

    Raises:
        UsageError: the models cannot be compared, or `size` is below the window.
        RunFailed: the original does not run.
    """
    asked = [tuple(extents) for extents in sizes] or ([tuple(size)] if size is not None else [])
    with room_for(original_path, converted_path, size=window.size, batch=batch, named={}, data=data) as fit:
        models = open_models(fit.a, fit.b, provider, twins=twins)
        common: dict[str, Any] = {"samples": samples, "seed": seed, "data": fit.data, "progress": progress}
        common |= {"tolerance": tolerance, "provider": provider, "wanted": asked, "fit": fit}
        inner = None
        if models.bare is not None and (tolerance is None or isinstance(tolerance, Mapping)):
            inner = _verify_map(models.bare, window, cut, where=where, **common)
            models = models.proven_by(inner)
        found = joined(_verify_map(models, window, cut, where=where, inner=inner, **common), inner)
    return fit.named(found)


def _verify_map(
    models: Models,
    window: Window,
    cut: Sequence[CutTensor],
    *,
    samples: int,
    seed: int,
    data: Data | None,
    wanted: Sequence[tuple[int, ...]],
    fit: Room,
    tolerance: Tolerance,
    provider: str,
    where: bool,
    progress: Progress | None,
    inner: Verification | None = None,
) -> Verification:
    """Compare a classifier with its fully convolutional form.

    Args:
        wanted: the sizes of larger images. inner: what the comparison of their float surrogates gave.
    """
    original, converted = models.reference, models.rewritten
    specs = native_inputs(original, converted, window, fit.batch)
    native, given = split_data(data, window, specs)
    taken: dict[str, Any] = {"samples": samples, "seed": seed, "data": native, "progress": progress}
    evidence = collect(original, models.otherwise, specs, twin=models.twin, **taken)
    ledger = evidence.ledger(seed, tolerance, original)
    spec = next(spec for spec in specs if spec.name == window.input)
    subject = Subject(window, original, converted, evidence, ledger, spec, seed, progress, room=fit.check)
    deviation, stopped = None, None
    if window_checks.metadata_holds(subject):
        subject.grids = _grids(subject)
        window_checks.native(subject)
        window_checks.several_batches(subject, models.otherwise, specs)
        claimed = window.equivalence == "windows"
        seen = subject if claimed else subject.coarsely
        plans = window_plans(window) if claimed else native_size_plans(window)
        larger = large_images(seen, plans, wanted, given)
        ran = ["x".join(map(str, window.size))]
        try:
            if not larger:
                ledger.skip("larger images", "the converted model takes images of the native size alone")
            elif not claimed:
                images = [make() for make in larger]
                deviation = trunk_oracle.check(seen, cut, images, provider, ran)
            for make in larger if claimed else []:
                image = make()
                window_checks.windows(subject, [image])
                ran.append(image.name)
        except (DeviceFailed, MemoryError, KeyboardInterrupt) as error:
            stopped = ended(error, f"it ran at {', '.join(ran)}")
    at = Shapes(None, fit.batch)
    repeat = repeated(original.path, converted.path, seed, samples, wanted, at, tolerance, provider, data)
    facts: dict[str, Any] = {"failing": ledger.failing, "stopped": stopped, "given": _word(data), **models.facts(inner)}
    facts |= evidence.verdicts(original, ledger.cases)
    found = Verification(ledger.cases, deviation, command=repeat, **facts)
    wanted_where = where and stopped is None
    return replace(found, divergence=_locate(models, evidence, ledger)) if wanted_where else found


def _window_of(path: str | Path) -> Window | None:
    """The window in a model's metadata."""
    return Window.from_metadata({entry.key: entry.value for entry in read_sketch(path).model.metadata_props})


def _grids(subject: Subject) -> dict[str, OutputGrid]:
    """The grid of every output that depends on the image, and of every probe that both models have."""
    grids = dict(subject.window.outputs)
    original, converted = subject.original, subject.converted
    shared = _shared_probes(subject.ledger, subject.evidence, original, converted, tuple(grids))
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


def _shared_probes(ledger: Ledger, evidence: Evidence, a: Specimen, b: Specimen, outputs: Sequence[str]) -> list[str]:
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
