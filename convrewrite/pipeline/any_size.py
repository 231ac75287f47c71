"""The command `fcn`: an image classifier becomes one for images of any size."""

from __future__ import annotations

import contextlib
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs

from convrewrite import costs, model_io, runtime, verification
from convrewrite.errors import UsageError
from convrewrite.graph import infer_shapes
from convrewrite.model_io import Model
from convrewrite.outcome import STREAM, Ends, FileFacts, Log, Options, Outcome
from convrewrite.passes.fcn import Fcn
from convrewrite.pipeline.denser import Denser, advice, denser, proved
from convrewrite.pipeline.files import (
    as_file,
    copied,
    input_facts,
    load,
    output_facts,
    refuse_stream_target,
    same_file,
)
from convrewrite.pipeline.steps import OTHERWISE, by, check_patterns, check_provider, common, refusal, why
from convrewrite.rewrite import PassResult, run_pass
from convrewrite.verification import Verification
from convrewrite.windows import Window


def fcn(source: str, target: str, pass_: Fcn, options: Options, stride: Sequence[int] | None = None) -> Outcome:
    """Make a classifier fully convolutional: read `source`, write `target` ("-" is standard input or output).

    With a `stride`, cells lie that many pixels apart, also in a model that is fully convolutional already.

    Whatever stops it is the outcome's `error`, and then nothing was written; `Outcome.check` raises it.
    """
    log = Log(Outcome("fcn", options.provider, "error"))
    with log.until_error():
        _fcn(source, target, pass_, options, stride, log)
    return log.outcome


def _fcn(source: str, target: str, pass_: Fcn, options: Options, stride: Sequence[int] | None, log: Log) -> None:
    runtime.check_installation()
    check_provider(options.provider)
    refuse_stream_target(target)
    model = load(source)
    log.note(input=input_facts(model, source))
    present = Window.from_metadata(model.metadata)
    if present is not None and stride is not None:
        return _denser_only(pass_, model, present, stride, source, target, options, log)
    if present is not None:
        log.note(window=present, advice=_already(present, pass_))
        return copied(model, source, target, log)
    check_patterns(model.graph, options)
    result = run_pass(pass_, model.graph, only=options.only, skip=options.skip)
    log.note(sites=result.sites)
    refused = result.outcome("refused")
    if refused:
        raise refusal(pass_, refused[0])
    if not result.changed and stride is not None:
        return _denser_only(pass_, model, None, stride, source, target, options, log)
    if not result.changed:
        told = "; ".join(why(pass_, site) for site in result.sites[:1]) or "no node reads the image"
        log.note(advice=f"nothing to do: {told}; copied byte for byte")
        return copied(model, source, target, log)
    window: Window = result.evidence["window"]
    log.note(window=window, input=_with_macs(log.outcome.input, model.graph, window))
    _check_sizes(pass_, window)
    after = replace(model, graph=result.graph, metadata={**model.metadata, **result.metadata})
    made = None if stride is None else denser(after, window, stride)
    if made is not None:
        log.note(sites=(*result.sites, *made.sites), window=made.window)
    return _publish(pass_, result, model, after, made, source, target, options, log)


def _denser_only(
    pass_: Fcn,
    model: Model,
    window: Window | None,
    stride: Sequence[int],
    source: str,
    target: str,
    options: Options,
    log: Log,
) -> None:
    """A model that is fully convolutional already becomes denser; it is its own original."""
    made = denser(model, window, stride, pass_.window or pass_.size)
    log.note(sites=made.sites, window=made.window)
    if not made.changed:
        told = "; ".join(site.detail for site in made.sites)
        log.note(advice=f"nothing to do: no stride is larger than was asked for ({told}); copied byte for byte")
        copied(model, source, target, log)
        return
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="convrewrite-")))
        path = folder / "rewritten.onnx" if target == STREAM else Path(target)
        staged = stack.enter_context(model_io.staged(made.model, path))
        facts = output_facts(made.model, staged.path, target)
        if options.verify:
            coarse = model.path or as_file(model, folder / "original.onnx")
            found = proved(coarse, made, folder, options)
            words = _repeat(source, target, pass_, options, stride)
            log.note(verification=replace(found, command=words, otherwise=OTHERWISE), provider=found.provider)
            found.check()
        else:
            log.note(verification=Verification.not_run("--no-verify"))
        _committed(staged, made.model, target)
        log.note(status="rewritten", output=facts, advice=advice(made))


def _publish(
    pass_: Fcn,
    result: PassResult,
    before: Model,
    coarse: Model,
    made: Denser | None,
    source: str,
    target: str,
    options: Options,
    log: Log,
) -> None:
    """Stage the rewritten model, verify the staged file, then publish it or leave no trace."""
    window: Window = result.evidence["window"]
    after = coarse
    if made is not None and made.window is not None:
        after, window = made.model, made.window
    log.note(ends=Ends(before, after, _native_inputs(after.graph, window), options.data))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="convrewrite-")))
        path = folder / "rewritten.onnx" if target == STREAM else Path(target)
        staged = stack.enter_context(model_io.staged(after, path))
        facts = _with_macs(output_facts(after, staged.path, target), after.graph, window)
        if options.verify:
            original = before.path or as_file(before, folder / "original.onnx")
            found = verification.verify_fcn(original, staged.path, window, result.evidence["cut"], **common(options))
            if made is not None and made.changed:
                every = proved(model_io.save(coarse, folder / "coarse.onnx"), made, folder, options)
                found = replace(found, cases=(*found.cases, *every.cases), vacuous=(*found.vacuous, *every.vacuous))
            stride = None if made is None else window.stride
            found = replace(found, command=_repeat(source, target, pass_, options, stride), otherwise=OTHERWISE)
            log.note(verification=found, provider=found.provider)
            found.check()
        else:
            log.note(verification=Verification.not_run("--no-verify"))
        _committed(staged, after, target)
        log.note(status="rewritten", output=facts, advice=_next(options, source, target, window, pass_.size))


def _committed(staged: model_io.Staged, model: Model, target: str) -> None:
    """Publish what was staged."""
    if target == STREAM:
        model_io.write_stream(model, sys.stdout.buffer)
    else:
        staged.commit()


def _repeat(source: str, target: str, pass_: Fcn, options: Options, stride: Sequence[int] | None = None) -> str:
    """The command that repeats a failed verification: the rewrite itself, which writes nothing where it fails."""
    words = ["convrewrite", "fcn", source, target]
    for name, extents in (("--window", pass_.window), ("--size", pass_.size)):
        words += [name, by(extents)] if extents else []
    words += ["--stride", by(stride)] if stride else []
    words += ["--data", options.data_path] if options.data is not None else []
    words += ["--seed", str(options.seed), "--samples", str(options.samples)]
    words += ["--max-output-error", repr(options.max_output_error)] if options.max_output_error is not None else []
    words += ["--provider", options.provider] if options.provider != "auto" else []
    words += [word for pattern in options.only for word in ("--only", pattern)]
    words += [word for pattern in options.skip for word in ("--skip", pattern)]
    return shlex.join(words)


def _next(options: Options, source: str, target: str, window: Window, size: Sequence[int] | None) -> str:
    """What a person does with the result."""
    if not options.verify and STREAM not in (source, target) and not same_file(source, target):
        return f"it was NOT verified; do so with: {shlex.join(['convrewrite', 'verify', source, target])}"
    if not options.verify:
        return "it was NOT verified; leave --no-verify out to do so"
    if size is not None:
        return f"run it on images of {by(size)}: it takes no other size; leave --size out for any size"
    steps = window.stride
    corner = ", ".join(f"{step if step > 1 else ''}{letter}" for step, letter in zip(steps, "ijk", strict=False))
    cell = ", ".join("ijk"[: len(steps)])
    return f"run it on a larger image: output cell ({cell}) is the window whose first pixel is ({corner})"


def _already(window: Window, pass_: Fcn) -> str:
    text = f"nothing to do: fcn has converted this model already (window {by(window.size)}); copied byte for byte"
    if pass_.size is not None:
        text += "; --size is not applied to it: convert the original again"
    return text


def _check_sizes(pass_: Fcn, window: Window) -> None:
    if pass_.window is not None and pass_.window != window.size:
        given, fixed = by(pass_.window), by(window.size)
        raise UsageError(f"--window {given} does not fit: the model's input is fixed at {fixed}", remedy="leave it out")


def _with_macs(facts: FileFacts | None, graph: gs.Graph, window: Window | None) -> FileFacts | None:
    """The facts with the MACs of one sample at the native size, where all shapes follow from it."""
    if facts is None or window is None:
        return facts
    shapes = _native_inputs(graph, window)
    with contextlib.suppress(onnx.shape_inference.InferenceError):
        return replace(facts, macs=costs.graph_macs(graph, infer_shapes(graph, shapes)))
    return facts


def _native_inputs(graph: gs.Graph, window: Window) -> dict[str, tuple[int, ...]]:
    """Shapes of the inputs of one sample at the native size."""
    shapes = {t.name: [d if isinstance(d, int) else 1 for d in t.shape or ()] for t in graph.inputs}
    for letter, extent in zip(window.letters, window.size, strict=True):
        shapes[window.input][window.axes.index(letter)] = extent
    return {name: tuple(shape) for name, shape in shapes.items()}
