"""The Python API: what the commands do, as functions of models.

    import convrewrite as cr

    m = cr.load("classifier.onnx")
    r = cr.fcn(m)                     verified in ONNX Runtime, or CheckFailed is raised
    print(r)                          what the command prints
    r.window.stride                   what it knows
    cr.verify(m, r.model, size=(512, 512))
    r.save("any-size.onnx")

A model is what `load` gives, or a path. Each function raises what its command ends with: `CheckFailed` for exit code
1, `UsageError` for 2, `Refused` for 3, all of them `ConvrewriteError`. Nothing to do is no error: then the result's
`changed` is False, and its model the one that was given.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from onnx import ModelProto
from rich.console import Console

from convrewrite import inspection, model_io, pipeline, plugins, timing
from convrewrite.api import arguments
from convrewrite.api.arguments import Given, spoken
from convrewrite.engine.rewrite import Pass, Site
from convrewrite.engine.windows import Window
from convrewrite.errors import UsageError
from convrewrite.inspection import Inspection
from convrewrite.model_io import Model
from convrewrite.options import (
    ApplyOptions,
    BenchOptions,
    FcnOptions,
    GroupsOptions,
    InspectOptions,
    LazyOptions,
    SeparableOptions,
    TransformOptions,
    VerifyOptions,
    options_of,
)
from convrewrite.options.keywords import keywords, keywords_of
from convrewrite.pipeline import report
from convrewrite.pipeline.outcome import Outcome
from convrewrite.system import atomic
from convrewrite.system.leftovers import Scratch
from convrewrite.text import PYTHON, Printed, told
from convrewrite.timing import Bench
from convrewrite.verification import Verification


def _drawn(result: Any) -> str:
    """The summary of the page, for a notebook."""
    from convrewrite.page.summary import summary

    return summary(result)


Printed.shown = _drawn

__all__ = ["Result", "apply", "bench", "fcn", "groups", "inspect", "load", "separable", "transform", "verify"]


@dataclass(frozen=True)
class Result(Printed):
    """What a rewriting function made; it prints itself as the command does.

    Attributes:
        model: the rewritten model, or the one that was given where there was nothing to do.
        outcome: everything that the report says.
    """

    model: Model
    outcome: Outcome
    _folder: Scratch | None = field(default=None, repr=False, compare=False)

    @property
    def changed(self) -> bool:
        """Whether anything was rewritten."""
        return self.outcome.status == "rewritten"

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every place that the pass looked at, and what came of it."""
        return self.outcome.sites

    @property
    def window(self) -> Window | None:
        """What the output cells of a fully convolutional model stand for; None for other models."""
        return self.outcome.window

    @property
    def verification(self) -> Verification | None:
        """How it was proved; None where there was nothing to prove."""
        return self.outcome.verification

    def save(self, path: str | Path) -> Path:
        """Write the model, whole or not at all; external data goes beside it. Raises UsageError."""
        target = Path(arguments.path("the path", path))
        model_io.copy_bytes(self.model, target)
        return target

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON has it (schema convrewrite.report/1)."""
        return report.to_dict(self.outcome)

    def __str__(self) -> str:
        return text_of(self.outcome)


def text_of(outcome: Outcome) -> str:
    """The text that the command prints, without colours."""
    console = Console(file=io.StringIO(), width=200, color_system=None, force_terminal=False)
    report.show(outcome, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().rstrip("\n")


@spoken
def load(source: Given | bytes) -> Model:
    """Read a model; its weights stay where they are.

    Args:
        source: the path of an ONNX file, its bytes, or a model of the package onnx.

    Raises:
        UsageError: where this is no file, no ONNX model, or one that the ONNX checker refuses.
    """
    return model_io.load(source) if isinstance(source, bytes) else _model(source)


@spoken
@keywords(FcnOptions)
def fcn(model: Given, options: FcnOptions) -> Result:
    """Make a classifier run on images of any size.

    Args:
        model: the classifier.

    Raises:
        Refused: it cannot be converted. CheckFailed: it is not equivalent. UsageError: wrong input or options.
    """
    return _rewritten(model, lambda source, target: pipeline.fcn(source, target, options))


@spoken
@keywords(SeparableOptions)
def separable(model: Given, options: SeparableOptions) -> Result:
    """Factor convolutions and linear layers by singular values, within a relative error `tol` of each kernel.

    Args:
        model: the network.

    Raises:
        Refused, CheckFailed, UsageError: as for `fcn`.
    """
    return _rewritten(model, lambda source, target: pipeline.separable(source, target, options))


@spoken
@keywords(GroupsOptions)
def groups(model: Given, options: GroupsOptions) -> Result:
    """Split convolutions into groups of channels, or with `expand` ("branches", "dense") the opposite.

    Args:
        model: the network.

    Raises:
        Refused, CheckFailed, UsageError: as for `fcn`.
    """
    return _rewritten(model, lambda source, target: pipeline.groups(source, target, options))


@spoken
@keywords(VerifyOptions)
def verify(a: Given, b: Given, options: VerifyOptions) -> Verification:
    """Compare two models in ONNX Runtime; a model that `fcn` made is held against its windows.

    Args:
        a: the original.
        b: the rewritten model.

    Raises:
        CheckFailed: they are not the same function, or the verification says nothing. UsageError: they do not fit.
    """
    with atomic.scratch() as folder:
        outcome = pipeline.compare(_path(a, folder, "a"), _path(b, folder, "b"), options).check()
    assert outcome.verification is not None
    return told(outcome.verification, PYTHON)


@spoken
@keywords(BenchOptions)
def bench(a: Given, b: Given, options: BenchOptions) -> Bench:
    """Time two models against each other, beyond the noise.

    Args:
        a: the original.
        b: the rewritten model.

    Raises:
        CheckFailed: `min_speedup` is missed. UsageError: they cannot be timed.
    """
    with atomic.scratch() as folder:
        found = told(timing.bench(_path(a, folder, "a"), _path(b, folder, "b"), options).check(), PYTHON)
        return replace(found, a=arguments.placeless(found.a), b=arguments.placeless(found.b))


@spoken
@keywords(InspectOptions)
def inspect(model: Given, options: InspectOptions) -> Inspection:
    """List the layers of a model with cost and receptive fields, and what each pass would do within `tol`.

    Args:
        model: the network.

    Raises:
        UsageError: the size does not fit.
    """
    loaded = _model(model)
    return told(inspection.inspect(loaded, str(loaded.path or "model"), options), PYTHON)


@spoken
@keywords_of(ApplyOptions)
def apply(model: Given, image: Any, target: str | Path | None = None, *, options: ApplyOptions) -> Any:
    """Compute the cells of a fully convolutional model over an image of any size, tile by tile.

    Args:
        model: what `fcn` made, or another fully convolutional one.
        image: path or address of a Zarr array, TIFF, .npy, PNG or JPEG.
        target: a Zarr group, .npy, .tif or .png; then the result is a `tiling.Applied`. Without a target, the image is
            a `dask.array`, and so is the result, [K, *cells] by output name, lazily; the options are then layout,
            outputs, tile, scale, mean, std, channels and top1.

    Raises:
        Refused: tiles cannot give what one pass gives. CheckFailed: a tile or a comparison failed. UsageError.
    """
    from convrewrite import tiling

    if target is None:
        lazy = {option.name for option in options_of(LazyOptions)}
        whole = [option for option in options_of(ApplyOptions) if option.name not in lazy]
        if strange := [o.name for o in whole if getattr(options, o.name) != o.default]:
            raise UsageError(f"without a target there is no option '{strange[0]}'", remedy="give a target, too")
        return tiling.lazily(_model(model), image, options)
    if not isinstance(image, str | Path):
        raise UsageError("an array has no path", remedy="leave the target out, and store what comes, or give a path")
    made = tiling.apply(_model(model), str(image), arguments.path("the target", target), options)
    return told(made, PYTHON).check()


@spoken
@keywords(TransformOptions)
def transform(model: Given, pass_: Pass | str, options: TransformOptions) -> Result:
    """Run any pass, a third party's included, with the same judges and the same verification.

    Args:
        model: the network.
        pass_: the pass, or the name of one (with `fields` as its options).

    Raises:
        UsageError: there is no such pass, or it has no such option. Refused, CheckFailed: as for `fcn`.
    """
    made = plugins.make(pass_, options.fields or {}) if isinstance(pass_, str) else pass_
    if not isinstance(made, Pass):
        raise UsageError(f"{made!r} is no pass", remedy="give a pass such as Separable(tol=0.1), or the name of one")
    return _rewritten(model, lambda source, target: pipeline.transform(source, target, made, options))


def _rewritten(given: Given, run: Callable[[str, str], Outcome]) -> Result:
    """Run a command from file to file; the new file lives as long as the result."""
    model = _model(given)
    folder = atomic.scratch()
    target = os.path.join(folder.name, "model.onnx")
    outcome = run(_path(model, folder.name, "original"), target).check()
    outcome = _placeless(outcome.told(PYTHON))
    if outcome.status != "rewritten":
        folder.cleanup()
        return Result(model, outcome)
    return Result(load(target), outcome, folder)


def _placeless(outcome: Outcome) -> Outcome:
    """The outcome of a call, whose result is in no file that the caller knows of."""
    ends = {end: getattr(outcome, end) for end in ("input", "output")}
    named = {end: replace(file, path="") for end, file in ends.items() if file and arguments.PLACE.fullmatch(file.path)}
    return replace(outcome, **named)


def _model(given: Given) -> Model:
    return arguments.model(given)


def _path(given: Given, folder: str, name: str) -> str:
    """Where a model is, or is written for the while."""
    given = arguments.model(given) if isinstance(given, ModelProto) else given
    if not isinstance(given, Model):
        return arguments.path("the model", given)
    if given.path is not None:
        return str(given.path)
    target = Path(folder) / f"{name}.onnx"
    if given.origin is not None:
        model_io.copy_bytes(given, target)
    else:
        model_io.save(given, target)
    return str(target)
