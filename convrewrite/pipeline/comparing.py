"""Two files against each other: the commands `verify` and `bench`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from convrewrite import timing, verification
from convrewrite.engine.rewrite import Lifting, run_pass
from convrewrite.engine.windows import UPSAMPLED_KEY, Window
from convrewrite.errors import CheckFailed, UsageError
from convrewrite.model_io import Model
from convrewrite.options import BenchOptions, VerifyOptions
from convrewrite.passes.fcn import Fcn
from convrewrite.pipeline.files import input_facts, load
from convrewrite.pipeline.outcome import STREAM, Log, Outcome
from convrewrite.pipeline.steps import without_writing
from convrewrite.running.installed import check_installation
from convrewrite.text import parameter


def compare(source: str, target: str, options: VerifyOptions, *, repeat: str = "") -> Outcome:
    """Verify that two model files are the same function; a fully convolutional `target` is held against its windows.

    Whatever stops it is the outcome's `error`; `Outcome.check` raises it. `repeat` is the command that does the same
    again; the verification makes one up where it is left out, without what only its caller knows (the path of the
    data).
    """
    log = Log(Outcome("verify", options.provider, "error"))
    with log.until_error():
        _compare(source, target, options, repeat, log=log)
    if log.outcome.error is not None:
        without_writing(log.outcome.error)
    return log.outcome


def _compare(source: str, target: str, options: VerifyOptions, repeat: str, *, log: Log) -> None:
    check_installation()
    if STREAM in (source, target):
        raise UsageError("verify reads two files, and none from standard input", remedy="give both paths")
    before = log.reads(load(source))
    log.note(input=input_facts(before, source))
    after = log.reads(load(target))
    if UPSAMPLED_KEY in after.metadata and UPSAMPLED_KEY not in before.metadata:
        raise UsageError(
            f"{target} has a class for every pixel, which '{source}' does not",
            remedy=f"fcn proves it while it writes; convert without {parameter('upsample')} to compare the cells",
        )
    window = Window.from_metadata(after.metadata, after.graph)
    log.note(output=input_facts(after, target))
    if window is not None and Window.from_metadata(before.metadata) is None:
        log.note(window=window)
        if options.shapes or options.reference != "onnxruntime":
            out = f"leave {parameter('shapes')} and {parameter('reference')} out"
            remedy = f"{out}; {parameter('size')} and {parameter('batch')} are for it"
            raise UsageError("a model that fcn wrote is compared window by window", remedy=remedy)
        found = verification.verify_fcn(
            source, target, window, _on_all_axes(options, len(window.size)), cut=_cut(before, window), twins=True
        )
    else:
        try:
            found = verification.verify(source, target, options, twins=True)
        except UsageError as error:
            if error.remedy or not _swapped(before, after):
                raise
            raise UsageError(error.message, reason=error.reason, remedy=_swap(source)) from error
    found = replace(found, command=repeat or found.command)
    log.note(verification=found, provider=found.provider)
    if found.verdict == "failed" and _swapped(before, after) and any(case.error is None for case in found.cases):
        message = replace(found, command="").message()
        raise CheckFailed(message, reason=f"verify/{found.verdict}", remedy=_swap(source))
    found.check()
    log.note(status="compared")


def _on_all_axes(options: VerifyOptions, rank: int) -> VerifyOptions:
    """The options, in which one number for all axes is one for each."""
    size, *sizes = (one if one is None or len(one) > 1 else one * rank for one in (options.size, *options.sizes))
    return replace(options, size=size, sizes=[one for one in sizes if one is not None])


def _swapped(before: Model, after: Model) -> bool:
    """Whether the first model is a fully convolutional form and the second is not."""
    forms = [Window.from_metadata(model.metadata) is not None for model in (before, after)]
    return forms == [True, False]


def _swap(source: str) -> str:
    return f"{source} is a fully convolutional form: if the other is its original, swap the two"


def time(source: str, target: str, options: BenchOptions) -> Outcome:
    """Time two model files against each other.

    Whatever stops it is the outcome's `error`; sizes that were measured before stay in its `bench`.
    """
    log = Log(Outcome("bench", options.provider, "error"))
    with log.until_error():
        if STREAM in (source, target):
            raise UsageError("bench reads two files", remedy="give both paths")
        log.note(input=input_facts(log.reads(load(source)), source))
        log.note(output=input_facts(log.reads(load(target)), target))
        result = timing.bench(source, target, options)
        log.note(bench=result, provider=result.provider if result.cells else log.outcome.provider, status="compared")
        result.check()
    return log.outcome


def _cut(before: Model, window: Window) -> Sequence[Any]:
    """Where the original's head begins, as the pass sees it; nothing where it refuses the original."""
    result = run_pass(Fcn(window=window.size), before.graph)
    lifting = result.evidence_of(Lifting)
    cut: Sequence[Any] = () if lifting is None else lifting.cut
    return cut
