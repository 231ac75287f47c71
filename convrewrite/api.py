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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto
from rich.console import Console

from convrewrite import arguments, inspection, model_io, pipeline, plugins, timing
from convrewrite.arguments import Given, Size, extents, one_of, spoken, tolerance, yes
from convrewrite.arguments import options as options_of
from convrewrite.engine.rewrite import Pass, Site
from convrewrite.engine.windows import Window
from convrewrite.errors import UsageError
from convrewrite.inspection import Inspection
from convrewrite.model_io import Model
from convrewrite.passes.fcn import Fcn
from convrewrite.passes.groups import Groups
from convrewrite.passes.separable import FORMS, Separable
from convrewrite.passes.upsample import MODES
from convrewrite.pipeline import Map, Trade, report
from convrewrite.pipeline.outcome import Options, Outcome
from convrewrite.system import atomic
from convrewrite.system.leftovers import Scratch
from convrewrite.text import PYTHON, Printed, told
from convrewrite.timing import Bench
from convrewrite.verification import Verification

__all__ = ["Result", "apply", "bench", "fcn", "groups", "inspect", "load", "separable", "transform", "verify"]

Data = Mapping[str, np.ndarray[Any, Any]]
"""Real inputs by name; axis 0 is samples."""


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
        """Of a fully convolutional model: what its output cells mean."""
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
    """What the command prints, as plain text."""
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
def fcn(
    model: Given,
    *,
    window: Size | None = None,
    size: Size | None = None,
    stride: Size | None = None,
    upsample: str = "",
    softmax: str = "",
    opset: int | None = None,
    dynamic_batch: bool = False,
    **options: Any,
) -> Result:
    """Make a classifier run on images of any size.

    Args:
        model: the classifier. window: its own input size, where the file leaves it open. size: fix the new input to it.
        stride: pixels between cells, where it is to be less than the network's own; 1 is dense.
        upsample: "bilinear" or "nearest" for a cell at every pixel of the image. softmax: "last" or "none", to
            interpolate the scores. opset: of the result, where it is to be a later one.
        dynamic_batch: whether it is to take any number of images at once.
        options: fields of `outcome.Options`: provider, verify, max_output_error, samples, seed, data, only, skip.

    Raises:
        Refused: it cannot be converted. CheckFailed: it is not equivalent. UsageError: wrong input or options.
    """
    pass_ = Fcn(window=extents("window", window), size=extents("size", size))
    wanted = extents("stride", stride)
    if upsample:
        one_of("upsample", upsample, MODES)
    if softmax:
        one_of("softmax", softmax, ("last", "none"))
    opset = None if opset is None else arguments.whole("opset", opset, 7)
    how = Map(wanted, upsample, softmax, opset, yes("dynamic_batch", dynamic_batch))
    return _rewritten(model, lambda source, target: pipeline.fcn(source, target, pass_, options_of(options), how))


@spoken
def separable(
    model: Given,
    *,
    tol: float = 0.0,
    form: str = "auto",
    accept: str = "smaller",
    size: Size | None = None,
    timings: str | None = None,
    fit: bool = True,
    **options: Any,
) -> Result:
    """Factor convolutions and linear layers by singular values, within a relative error `tol` of each kernel.

    Args:
        model: the network. form: "auto", "spatial", "depthwise", "channel" or "tucker". accept: "smaller", "faster" or
            "always". size: of the image, where the file leaves it open. timings: file of timing decisions.
        fit: with data among the options, fit the factors to the layers' responses. options: as for `fcn`.

    Raises:
        Refused, CheckFailed, UsageError: as for `fcn`.
    """
    how = Trade(
        one_of("accept", accept, pipeline.ACCEPT), extents("size", size), arguments.timings(timings), yes("fit", fit)
    )
    return _traded(model, Separable(tol=tolerance(tol), form=one_of("form", form, ("auto", *FORMS))), options, how)


@spoken
def groups(
    model: Given,
    *,
    tol: float = 0.0,
    into: int | None = None,
    expand: str | None = None,
    accept: str = "smaller",
    size: Size | None = None,
    timings: str | None = None,
    **options: Any,
) -> Result:
    """Split convolutions into groups of channels, or with `expand` ("branches", "dense") the opposite.

    Args:
        model: the network. tol: bound on each kernel's relative error. into: this number of groups alone.
        accept, size, timings, options: as for `separable`.

    Raises:
        Refused, CheckFailed, UsageError: as for `fcn`.
    """
    if expand is not None:
        one_of("expand", expand, ("branches", "dense"))
    judge = "always" if expand is not None else one_of("accept", accept, pipeline.ACCEPT)
    into = None if into is None else arguments.whole("into", into, 2)
    pass_ = Groups(tol=tolerance(tol), into=into, expand=expand)
    return _traded(model, pass_, options, Trade(judge, extents("size", size), arguments.timings(timings)))


@spoken
def verify(a: Given, b: Given, *, size: Size | None = None, **options: Any) -> Verification:
    """Compare two models in ONNX Runtime; a model that `fcn` made is held against its windows.

    Args:
        a: the original. b: the rewritten model. size: of the image, where it is open.
        options: as for `fcn`; others go to `verification.verify` (sizes, batch, shapes, where, reference).

    Raises:
        CheckFailed: they are not the same function, or the verification says nothing. UsageError: they do not fit.
    """
    known = {name: options.pop(name) for name in list(options) if name in Options.__dataclass_fields__}
    more = arguments.comparison(options)
    with atomic.scratch() as folder:
        first, second = _path(a, folder, "a"), _path(b, folder, "b")
        outcome = pipeline.compare(first, second, extents("size", size), options_of(known), **more).check()
    assert outcome.verification is not None
    return told(outcome.verification, PYTHON)


@spoken
def bench(a: Given, b: Given, **how: Any) -> Bench:
    """Time two models against each other, beyond the noise; `how` goes to `timing.bench` (sizes, batches, seconds).

    Raises:
        CheckFailed: `min_speedup` is missed. UsageError: they cannot be timed.
    """
    arguments.known_only(how, arguments.parameters(timing.bench))
    how |= arguments.timing(how)
    with atomic.scratch() as folder:
        found = told(timing.bench(_path(a, folder, "a"), _path(b, folder, "b"), **how).check(), PYTHON)
        return replace(found, a=arguments.placeless(found.a), b=arguments.placeless(found.b))


@spoken
def inspect(model: Given, *, size: Size | None = None, tol: float = 0.0, passes: bool = True) -> Inspection:
    """List the layers of a model with cost and receptive fields, and what each pass would do within `tol`.

    Raises:
        UsageError: the size does not fit.
    """
    loaded = _model(model)
    at, within = extents("size", size), tolerance(tol)
    asked = yes("passes", passes)
    return told(inspection.inspect(loaded, str(loaded.path or "model"), size=at, tol=within, passes=asked), PYTHON)


@spoken
def apply(model: Given, image: Any, target: str | Path | None = None, **how: Any) -> Any:
    """Compute the cells of a fully convolutional model over an image of any size, tile by tile.

    Args:
        model: what `fcn` made, or another fully convolutional one. image: path or address of a Zarr array, TIFF, .npy,
            PNG or JPEG. target: a Zarr group, .npy, .tif or .png; then the result is a `tiling.Applied`.
            Without a target, the image is a `dask.array`, and so is the result, [K, *cells] by output name, lazily.
        how: fields of `tiling.How`, as the command's options; without a target layout, outputs, tile, scale, mean, std
            and channels.

    Raises:
        Refused: tiles cannot give what one pass gives. CheckFailed: a tile or a comparison failed. UsageError.
    """
    from convrewrite import tiling

    if target is None:
        return tiling.lazily(_model(model), image, **how)
    arguments.known_only(how, tiling.How.__dataclass_fields__)
    if not isinstance(image, str | Path):
        raise UsageError("an array has no path", remedy="leave the target out, and store what comes, or give a path")
    made = tiling.apply(_model(model), str(image), arguments.path("the target", target), tiling.How(**how))
    return told(made, PYTHON).check()


@spoken
def transform(
    model: Given,
    pass_: Pass | str,
    *,
    accept: str = "always",
    size: Size | None = None,
    timings: str | None = None,
    fields: Mapping[str, Any] | None = None,
    **options: Any,
) -> Result:
    """Run any pass, a third party's included, with the same judges and the same verification.

    Args:
        model: the network. pass_: the pass, or the name of one (with `fields` as its options).
        accept, size, timings, options: as for `separable`.

    Raises:
        UsageError: there is no such pass, or it has no such option. Refused, CheckFailed: as for `fcn`.
    """
    if not isinstance(fields, Mapping | None):
        raise UsageError(f"fields is {fields!r}", remedy="give options by name, such as fields={'tol': 0.1}")
    made = plugins.make(pass_, fields or {}) if isinstance(pass_, str) else pass_
    if not isinstance(made, Pass):
        raise UsageError(f"{made!r} is no pass", remedy="give a pass such as Separable(tol=0.1), or the name of one")
    if isinstance(made, Fcn):
        return _rewritten(model, lambda source, target: pipeline.fcn(source, target, made, options_of(options)))
    how = Trade(one_of("accept", accept, pipeline.ACCEPT), extents("size", size), arguments.timings(timings))
    return _traded(model, made, options, how)


def _traded(model: Given, pass_: Pass, options: Mapping[str, Any], how: Trade) -> Result:
    return _rewritten(model, lambda source, target: pipeline.trade(source, target, pass_, options_of(options), how))


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
