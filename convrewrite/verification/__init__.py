"""Is the rewritten model the same function? ONNX Runtime runs both, before anything is written.

    verify(a, b)                            two models with one interface, a being the original
    verify_fcn(original, converted, ...)    a classifier and its fully convolutional form, at sizes beyond its own

What is compared: every output, and the tensor ahead of a final Softmax, LogSoftmax, Sigmoid or ArgMax, which would hide
a difference. On what: seeded inputs at several scales, or the user's own. Against what: max|a-b| / max|b|, held against
1e-5 or ten times the noise of the original itself (graph optimizations on against off), whichever is larger. Outputs
that never move make the verdict `vacuous`; NaN and Inf are never equal; what did not run is `skipped`, with the reason.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from convrewrite.errors import UsageError
from convrewrite.runtime import RunFailed, TensorInfo
from convrewrite.sampling import InputSpec, fill
from convrewrite.verification import trunk_oracle, window_checks
from convrewrite.verification.comparison import Ledger
from convrewrite.verification.exposure import read_sketch
from convrewrite.verification.specimens import (
    Evidence,
    Progress,
    Specimen,
    carried_noise,
    collect,
    open_specimen,
    undecided,
)
from convrewrite.verification.subjects import Subject, large_images
from convrewrite.verification.verdicts import Case, Deviation, Verification
from convrewrite.windows import CutTensor, OutputGrid, Window

__all__ = ["Case", "Deviation", "Progress", "Verification", "verify", "verify_fcn"]

Array = np.ndarray[Any, Any]


def verify(
    a_path: str | Path,
    b_path: str | Path,
    *,
    samples: int = 3,
    seed: int = 0,
    data: Mapping[str, Array] | None = None,
    size: Sequence[int] | None = None,
    tolerance: float | None = None,
    provider: str = "cpu",
    progress: Progress | None = None,
) -> Verification:
    """Compare two models with the same inputs and outputs.

    Where only `b_path` carries the window of a fully convolutional form, `verify_fcn` compares the two (without a
    `cut`: whoever can find the original's head calls it directly).

    Args:
        a_path: the original, which is the reference. b_path: the rewritten model.
        samples: seeded inputs to run, over several scales. seed: that they start from.
        data: the user's inputs by name (`sampling.read_data`), instead of seeded ones.
        size: extents for open spatial dimensions.
        tolerance: for every output, instead of the default by type and noise.
        provider: where both run.
        progress: called as work goes on.

    Raises:
        UsageError: the models cannot be compared: other inputs or outputs, open dimensions without a size.
        RunFailed: the original does not run.
    """
    window = _window_of(b_path)
    if window is not None and _window_of(a_path) is None:
        options: dict[str, Any] = {"samples": samples, "seed": seed, "data": data, "tolerance": tolerance}
        return verify_fcn(a_path, b_path, window, provider=provider, progress=progress, **options)
    reference = open_specimen(a_path, provider, reference=True)
    unoptimized = open_specimen(a_path, provider, optimize=False, reference=True)
    rewritten = open_specimen(b_path, provider)
    _same_names(reference, rewritten)
    specs = _match_inputs(reference, rewritten, size)
    evidence = collect(reference, unoptimized, specs, samples=samples, seed=seed, data=data, progress=progress)
    del unoptimized
    ledger = evidence.ledger(seed, tolerance)
    shared = _shared_probes(ledger, evidence, reference, rewritten, reference.outputs)
    for sample, want in zip(evidence.samples, evidence.references, strict=True):
        try:
            got = rewritten.run(sample.feeds)
        except RunFailed as error:
            ledger.fail("outputs", f"{error}; {sample.source}")
            break
        for name in [*reference.outputs, *shared]:
            mask = undecided(reference.probes, name, want, ledger)
            check = "ahead of the final operator" if name in shared else "outputs"
            if name in shared and got[name].shape != want[name].shape:
                ledger.skip(check, f"other shape: {got[name].shape} and {want[name].shape}", name)
                continue
            ledger.compare(check, name, got[name], want[name], note=sample.source, uncertain=mask)
    command = _command(a_path, b_path, seed, samples, size, tolerance, provider, data is not None)
    return Verification(ledger.cases, vacuous=evidence.vacuous, command=command, provider=rewritten.session.provider)


def verify_fcn(
    original_path: str | Path,
    converted_path: str | Path,
    window: Window,
    cut: Sequence[CutTensor] = (),
    *,
    samples: int = 3,
    seed: int = 0,
    data: Mapping[str, Array] | None = None,
    size: Sequence[int] | None = None,
    tolerance: float | None = None,
    provider: str = "cpu",
    progress: Progress | None = None,
) -> Verification:
    """Compare a classifier with its fully convolutional form: at the native size, and on larger images.

    Where `window` claims "windows", every output cell of larger images is compared with the original on its crop.
    Where it claims "native-size", with the original's own trunk on the larger image and its own head on every feature
    window; the distance from the original on the crops is then stated as `deviation`, and never fails.

    Args:
        original_path, converted_path: before and after. window: what the converted model's metadata says.
        cut: where the original's head begins; without it the check at larger sizes of "native-size" is skipped.
        size: of the one larger image to compare on, instead of a few near the native size.
        samples, seed, data, tolerance, provider, progress: as for `verify`.

    Raises:
        UsageError: the models cannot be compared, or `size` is below the window.
        RunFailed: the original does not run.
    """
    original = open_specimen(original_path, provider, reference=True)
    unoptimized = open_specimen(original_path, provider, optimize=False, reference=True)
    converted = open_specimen(converted_path, provider)
    specs = _native_inputs(original, converted, window)
    evidence = collect(original, unoptimized, specs, samples=samples, seed=seed, data=data, progress=progress)
    del unoptimized
    ledger = evidence.ledger(seed, tolerance)
    spec = next(spec for spec in specs if spec.name == window.input)
    subject = Subject(window, original, converted, evidence, ledger, spec, seed, progress)
    deviation = None
    if _metadata_holds(subject):
        subject.grids = _grids(subject)
        window_checks.native(subject)
        claimed = window.equivalence == "windows"
        plans = _window_plans(window) if claimed else _native_size_plans(window)
        images = large_images(subject, plans, size)
        if not images:
            ledger.skip("larger images", "the converted model takes images of the native size alone")
        elif claimed:
            window_checks.windows(subject, images)
        else:
            deviation = trunk_oracle.check(subject, cut, images, provider)
    command = _command(original_path, converted_path, seed, samples, size, tolerance, provider, data is not None)
    return Verification(ledger.cases, deviation, evidence.vacuous, command, converted.session.provider)


def _window_of(path: str | Path) -> Window | None:
    """The window in a model's metadata."""
    return Window.from_metadata({entry.key: entry.value for entry in read_sketch(path).model.metadata_props})


def _window_plans(window: Window) -> list[tuple[tuple[int, ...], bool]]:
    """Numbers of windows per axis: not square, with pixels left over, and long and thin."""
    rest = len(window.size) - 1
    return [((3,) + (2,) * rest, False), ((2,) + (2,) * rest, True), ((1,) * rest + (5,), False)]


def _native_size_plans(window: Window) -> list[tuple[tuple[int, ...], bool]]:
    """Numbers of windows per axis; sizes of native + k * stride alone, where SAME pads keep their phase."""
    rest = len(window.size) - 1
    return [((2,) + (2,) * rest, False), ((3,) + (2,) * rest, False)]


def _same_names(a: Specimen, b: Specimen) -> None:
    """Raise UsageError where two models do not have the same outputs."""
    missing = [name for name in a.outputs if name not in b.outputs]
    added = [name for name in b.outputs if name not in a.outputs]
    if missing or added:
        which = f"output '{missing[0]}' is only in {a.path}" if missing else f"output '{added[0]}' is only in {b.path}"
        raise UsageError(f"the models have different outputs: {which}")


def _match_inputs(a: Specimen, b: Specimen, size: Sequence[int] | None) -> list[InputSpec]:
    """Match inputs by name, type and shape, and fill what is open."""
    theirs = {info.name: info for info in b.session.inputs}
    ours = {info.name: info for info in a.session.inputs}
    if lonely := sorted(ours.keys() ^ theirs.keys()):
        whose = a.path if lonely[0] in ours else b.path
        raise UsageError(f"the models have different inputs: '{lonely[0]}' is only in {whose}")
    for name, info in ours.items():
        _match(info, theirs[name])
    return [fill(info, size, theirs[name].shape) for name, info in ours.items()]


def _match(a: TensorInfo, b: TensorInfo) -> None:
    """Raise UsageError where two inputs of one name cannot take the same array."""
    if a.kind != b.kind:
        raise UsageError(f"input '{a.name}' is {a.kind} in one model and {b.kind} in the other")
    if not a.shape or not b.shape:
        return
    pairs = list(zip(a.shape, b.shape, strict=False))
    differ = any(isinstance(x, int) and isinstance(y, int) and x != y for x, y in pairs)
    if len(a.shape) != len(b.shape) or differ:
        words = ["x".join(map(str, info.shape)) for info in (a, b)]
        raise UsageError(f"input '{a.name}' has shape {words[0]} in one model and {words[1]} in the other")


def _native_inputs(original: Specimen, converted: Specimen, window: Window) -> list[InputSpec]:
    """The original's inputs at the native size."""
    ours = {info.name: info for info in original.session.inputs}
    theirs = {info.name: info for info in converted.session.inputs}
    if lonely := sorted(ours.keys() ^ theirs.keys()):
        raise UsageError(f"the models have different inputs: '{lonely[0]}' is in one of them alone")
    if window.input not in ours:
        raise UsageError(f"the window's image input '{window.input}' is no input of {original.path}")
    specs = []
    for name, info in ours.items():
        known: list[int | str | None] = list(theirs[name].shape)
        if name == window.input:
            known = [dim if isinstance(dim, int) else None for dim in known] or [None] * len(window.axes)
            if len(known) != len(window.axes):
                raise UsageError(f"input '{name}' has {len(known)} axes, the window's metadata says {window.axes}")
            for letter, extent in zip(window.letters, window.size, strict=True):
                known[window.axes.index(letter)] = extent
            if "N" in window.axes and known[window.axes.index("N")] is None:
                known[window.axes.index("N")] = 1
        specs.append(fill(replace(info, shape=info.shape or tuple(known)), None, known))
    return specs


def _metadata_holds(subject: Subject) -> bool:
    """Whether the metadata fits the models; records a failure where not."""
    window, ledger, check = subject.window, subject.ledger, "window metadata"
    native = tuple(subject.spec.shape[axis] for axis in subject.axes)
    if native != window.size:
        ledger.fail(check, f"it says a window of {window.size}, the original takes images of {native}")
    for name in subject.original.outputs:
        if name not in subject.converted.outputs:
            ledger.fail(check, "the converted model lacks this output", name)
    for name in subject.converted.outputs:
        if name not in subject.original.outputs:
            ledger.fail(check, "the original has no such output", name)
    for name, grid in window.outputs.items():
        if name not in subject.original.outputs:
            ledger.fail(check, "it describes an output that the original does not have", name)
        steps = list(zip(window.stride, grid.stride, strict=True))
        if any(cell < 1 or step < 1 or step % cell for step, cell in steps):
            ledger.fail(check, f"stride {grid.stride} does not divide the window's stride {window.stride}", name)
    return not any(case.status == "failed" for case in ledger.cases)


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


def _command(
    a: str | Path,
    b: str | Path,
    seed: int,
    samples: int,
    size: Sequence[int] | None,
    tolerance: float | None,
    provider: str,
    data: bool,
) -> str:
    """The command that repeats a verification."""
    words = ["convrewrite verify", shlex.quote(str(a)), shlex.quote(str(b))]
    words.append("--data F.npz" if data else f"--seed {seed} --samples {samples}")
    if size:
        words.append(f"--size {'x'.join(map(str, size))}")
    if tolerance is not None:
        words.append(f"--max-output-error {tolerance:g}")
    if provider != "cpu":
        words.append(f"--provider {provider}")
    return " ".join(words)
