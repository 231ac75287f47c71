"""The command `fcn`: an image classifier becomes one for images of any size, as dense as asked, as large as the image.

original ──(opset, dynamic_batch)──fcn──> cells ──(stride) dense──> more cells ──(upsample)──> pixels
   |                                            |                            |                          |
   '── on every crop, or its own trunk and head ┴──── every f-th of them ────┴───────── numpy ──────────'
each step is proved by itself; where the batch was opened, two at once give what each gives by itself.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import onnx_graphsurgeon as gs

from convrewrite import model_io, verification
from convrewrite.engine import costs
from convrewrite.engine.graph import infer_shapes
from convrewrite.engine.image_axes import image_input, spatial_dims
from convrewrite.engine.rewrite import Lifting, Site, run_pass
from convrewrite.engine.windows import Window
from convrewrite.errors import UsageError
from convrewrite.model_io import Model
from convrewrite.options import FcnOptions
from convrewrite.passes.fcn import Fcn
from convrewrite.pipeline import batching, denser, upsampling
from convrewrite.pipeline.denser import Denser
from convrewrite.pipeline.files import (
    as_file,
    copied,
    fixed_defaults,
    input_facts,
    load,
    output_facts,
    refuse_stream_target,
    same_file,
)
from convrewrite.pipeline.native import check_known, native
from convrewrite.pipeline.opsets import upgraded
from convrewrite.pipeline.outcome import STREAM, FileFacts, Log, ModelPair, Outcome
from convrewrite.pipeline.steps import OTHERWISE, again, check_patterns, check_provider, explained, refusal
from convrewrite.pipeline.upsampling import Upsampled
from convrewrite.running.installed import check_installation
from convrewrite.system import atomic
from convrewrite.text import Call, by, parameter
from convrewrite.verification import Verification

Fits = Callable[[ModelPair, Window | None], object]
"""Raises what is wrong about two models and the window of the second."""


@dataclass(kw_only=True)
class _Run:
    """One run: what was read, and what became of it step by step.

    Attributes:
        original: as it was read. model: the fully convolutional one, before it is made denser. window: of it, if known.
        fits: holds what the caller has for the result against it, before it is proved and written.
        opened: what was done for any number of images, where anything was. upgraded: a model that fcn leaves as it is
            goes to another operator set.
        cut: where the original's head begins; None where the original is fully convolutional itself.
        denser, upsampled: the further steps, where they changed anything.
    """

    source: str
    target: str
    pass_: Fcn
    options: FcnOptions
    log: Log
    original: Model
    model: Model
    window: Window | None
    fits: Fits | None = None
    opened: tuple[Site, ...] = ()
    upgraded: bool = False
    cut: Sequence[Any] | None = None
    denser: Denser | None = None
    upsampled: Upsampled | None = None

    @property
    def cells(self) -> Model:
        """The model of the cells, as dense as they become."""
        return self.model if self.denser is None else self.denser.model

    @property
    def result(self) -> Model:
        """The model that is written."""
        return self.cells if self.upsampled is None else self.upsampled.model

    @property
    def cells_window(self) -> Window | None:
        """The window that each output cell stands for."""
        return self.window if self.denser is None else self.denser.window


def fcn(source: str, target: str, options: FcnOptions, *, fits: Fits | None = None) -> Outcome:
    """Make a classifier fully convolutional: read `source`, write `target` ("-" is standard input or output).

    What the options ask for besides is done to a model that is fully convolutional already, too.

    Args:
        source, target: paths. options: of the command.
        fits: called with what is about to be verified and written; what it raises ends the command.

    Whatever stops it is the outcome's `error`, and then nothing was written; `Outcome.check` raises it.
    """
    log = Log(Outcome("fcn", options.provider, "error"))
    with log.until_error():
        _fcn(source, target, options, log, fits=fits)
    return log.outcome


def _fcn(source: str, target: str, options: FcnOptions, log: Log, *, fits: Fits | None) -> None:
    if options.verify:
        check_installation()
    check_provider(options.provider)
    refuse_stream_target(target)
    if options.softmax and not options.upsample:
        raise UsageError(
            f"{parameter('softmax')} says what is interpolated",
            remedy=f"give {parameter('upsample', 'bilinear')} or nearest, too",
        )
    original = log.reads(load(source))
    log.note(input=input_facts(original, source))
    model = original if options.opset is None else upgraded(original, options.opset)
    window = Window.from_metadata(model.metadata, model.graph)
    pass_ = Fcn(window=options.window, size=options.size).spread(model.graph)
    run = _Run(
        source=source,
        target=target,
        pass_=pass_,
        options=options,
        log=log,
        original=original,
        model=model,
        window=window,
        fits=fits,
    )
    log.note(window=run.window)
    if options.dynamic_batch:
        size = pass_.window or pass_.size if run.window is None else run.window.size
        run.model, sites = batching.opened(run.model, size)
        run.opened = sites if run.model is not model else ()
    idle = _idle_or_converted(run)
    if idle and pass_.size is not None and (options.stride is not None or options.upsample or options.dynamic_batch):
        told = idle.partition(";")[0]
        raise UsageError(f"{parameter('size')} fixes the input of what fcn converts, and {told}", remedy="leave it out")
    if options.stride is not None:
        run.denser = denser.denser(run.model, run.window, options.stride, pass_.window or pass_.size)
        run.denser = run.denser if run.denser.changed else None
    if options.upsample:
        run.upsampled = _upsampled(run)
    steps = [step for step in (run.denser, run.upsampled) if step is not None]
    run.upgraded = bool(idle) and model is not original
    if idle and not steps and not run.opened and not run.upgraded:
        asked = "; no stride is larger than was asked for" if options.stride is not None else ""
        asked += "; its batch is open already" if options.dynamic_batch else ""
        log.note(advice=f"nothing to do: {idle}{asked}{_fixed(original)}; copied byte for byte")
        return copied(original, source, target, log)
    done = (site for step in steps for site in step.sites)
    log.note(sites=(*run.opened, *log.outcome.sites, *done), window=run.cells_window)
    return _publish(run)


def _idle_or_converted(run: _Run) -> str:
    """Convert the classifier; or say why there is nothing to convert."""
    if run.window is not None:
        told = f"fcn has converted this model already (window {by(run.window.size)})"
        return (
            told
            if run.pass_.size is None
            else f"{told}; {parameter('size')} is not applied to it: convert the original again"
        )
    check_patterns(run.model.graph, run.options)
    result = run_pass(run.pass_, run.model.graph, only=run.options.only, skip=run.options.skip)
    run.log.note(sites=result.sites)
    refused = result.outcome("refused")
    if refused:
        raise refusal(run.pass_, refused[0])
    if not result.changed:
        run.log.note(sites=() if run.options.further else result.sites)
        return "; ".join(explained(run.pass_, site) for site in result.sites[:1]) or "no node reads the image"
    lifting = result.evidence_of(Lifting)
    assert lifting is not None, "what fcn rewrites takes images of any size"
    window = lifting.window
    _check_sizes(run.pass_, window)
    run.window, run.cut = window, lifting.cut
    run.log.note(window=window, input=_with_macs(run.log.outcome.input, run.original.graph, window))
    run.model = replace(run.model, graph=result.graph, metadata={**run.model.metadata, **result.metadata})
    return ""


def _fixed(model: Model) -> str:
    """What a copy of the model still takes, where that is one size alone."""
    shapes = {tensor.name: tuple(tensor.shape or ()) for tensor in model.graph.inputs}
    image = image_input(model.graph, shapes)
    extents = [] if image is None else [shapes[image][dim] for dim in spatial_dims(model.graph, shapes, image)]
    known = bool(extents) and all(isinstance(extent, int) for extent in extents)
    return f"; it still takes only {by(extents)}" if known else ""


def _upsampled(run: _Run) -> Upsampled:
    if run.cells_window is None:
        raise UsageError(
            f"{parameter('upsample')} needs to know which windows the cells stand for", remedy="convert a classifier"
        )
    return upsampling.upsampled(run.cells, run.cells_window, run.options.upsample, run.options.softmax)


def _publish(run: _Run) -> None:
    """Stage the rewritten model, verify the staged file, then publish it or leave no trace."""
    after, window, log = run.result, run.cells_window, run.log
    inputs = {} if window is None else _native_inputs(after.graph, window)
    ends = ModelPair(run.original, after, inputs, run.options.data)
    log.note(ends=ends)
    if run.fits is not None:
        run.fits(ends, window)
    log.note(warnings=fixed_defaults(run.original, after))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(atomic.scratch()))
        path = folder / "rewritten.onnx" if run.target == STREAM else Path(run.target)
        staged = stack.enter_context(model_io.staged(after, path))
        facts = _with_macs(output_facts(after, staged, run.target), after.graph, window)
        if run.options.verify:
            found = _proved(run, staged.path, folder)
            log.note(verification=found, provider=found.provider)
            found.check()
        else:
            log.note(verification=Verification.not_run(parameter("verify", False)))
        _committed(staged, after, run.target)
        log.note(status="rewritten", output=facts, advice=_next(run))


def _proved(run: _Run, staged: Path, folder: Path) -> Verification:
    """Each step by itself, in one verification."""
    parts: list[Verification] = []
    window = run.cells_window
    cells = staged if run.upsampled is None else model_io.save(run.cells, folder / "all-cells.onnx")
    if run.cut is not None and window is not None:
        original = run.original.path or as_file(run.original, folder / "original.onnx")
        parts.append(verification.verify_fcn(original, cells, window, run.options.comparing(), cut=run.cut))
        if run.denser is not None and run.window is not None:
            coarse = model_io.save(run.model, folder / "first-cells.onnx")
            parts = denser.trunk_of_coarse(original, coarse, run.window, run.cut, found=parts[0], options=run.options)
    elif run.opened or run.upgraded:
        original = run.original.path or as_file(run.original, folder / "original.onnx")
        opened = model_io.save(run.model, folder / "any-batch.onnx")
        sizes = [_size_of(run)] if run.window is None else [run.window.size]
        options = run.options.comparing(sizes=[one for one in sizes if one])
        parts.append(verification.verify(original, opened, options, fixed={}))
    if run.denser is not None:
        coarse = model_io.save(run.model, folder / "coarse.onnx")
        parts.append(denser.checked(coarse, run.denser, folder, run.options))
    pixels = () if run.upsampled is None else upsampling.checked(run.upsampled, staged, folder, run.options)
    first = parts[0] if parts else Verification((), provider=run.options.provider.replace("auto", "cpu"))
    return replace(
        first,
        cases=(*(case for part in parts for case in part.cases), *pixels),
        vacuous=tuple(dict.fromkeys(name for part in parts for name in part.vacuous)),
        constant=tuple(dict.fromkeys(name for part in parts for name in part.constant)),
        command=_repeat(run),
        otherwise=OTHERWISE,
    )


def _size_of(run: _Run) -> tuple[int, ...] | None:
    """The size at which a model without windows is compared; None where its file or the user's inputs say it."""
    at = native(run.original, run.pass_.window or run.pass_.size, run.options.data)
    if run.options.data is None:
        check_known(run.original, at, f"give real inputs with {parameter('data', 'F.npz')}")
    return at.size


def _committed(staged: model_io.Staged, model: Model, target: str) -> None:
    """Publish what was staged."""
    if target == STREAM:
        model_io.write_stream(model, sys.stdout.buffer)
    else:
        staged.commit()


def _repeat(run: _Run) -> Call:
    """What repeats a failed verification: the rewrite itself, which writes nothing where it fails."""
    pass_, options = run.pass_, run.options
    given: dict[str, Any] = {"window": pass_.window, "size": pass_.size, "stride": options.stride}
    given |= {"upsample": options.upsample, "softmax": options.softmax, "opset": options.opset}
    given |= {"dynamic_batch": options.dynamic_batch or None}
    return Call("fcn", (run.source, run.target), {**given, **again(options)})


def _next(run: _Run) -> str:
    """What a person does with the result."""
    window = run.cells_window
    if (
        not run.options.verify
        and run.upsampled is None
        and STREAM not in (run.source, run.target)
        and not same_file(run.source, run.target)
    ):
        return f"it was NOT verified; do so with: {Call('verify', (run.source, run.target))}"
    if not run.options.verify:
        return f"it was NOT verified; leave {parameter('verify', False)} out to do so"
    if run.pass_.size is not None and run.cut is not None:
        alone = f"run it on images of {by(run.pass_.size)}: it takes no other size"
        return f"{alone}; leave {parameter('size')} out for any size"
    if window is None and run.opened and run.denser is None:
        return "run it on any number of images at once"
    if window is None:
        return "its maps have more cells than they had" if run.denser is not None else "run it as you ran the original"
    if run.upsampled is not None:
        return "run it on a larger image: each pixel has the classes of the windows around it"
    steps = window.stride
    corner = ", ".join(f"{step if step > 1 else ''}{letter}" for step, letter in zip(steps, "ijk", strict=False))
    cell = ", ".join("ijk"[: len(steps)])
    return f"run it on a larger image: output cell ({cell}) is the window whose first pixel is ({corner})"


def _check_sizes(pass_: Fcn, window: Window) -> None:
    if pass_.window is not None and pass_.window != window.size:
        given, fixed = by(pass_.window), by(window.size)
        raise UsageError(
            f"{parameter('window', given)} does not fit: the model's input is fixed at {fixed}", remedy="leave it out"
        )


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
    return {name: tuple(window.at_size(name, shape, window.size)) for name, shape in shapes.items()}
