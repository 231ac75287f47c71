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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from convrewrite import atomic, inspection, model_io, pipeline, plugins, report, timing
from convrewrite.errors import UsageError
from convrewrite.inspection import Inspection
from convrewrite.leftovers import Scratch
from convrewrite.model_io import Model, load
from convrewrite.notebook import Printed
from convrewrite.outcome import Options, Outcome
from convrewrite.passes.fcn import Fcn
from convrewrite.passes.groups import Groups
from convrewrite.passes.separable import Separable
from convrewrite.passes.upsample import MODES
from convrewrite.pipeline import Map, Trade
from convrewrite.rewrite import Pass, Site
from convrewrite.timing import Bench
from convrewrite.verification import Verification
from convrewrite.windows import Window

__all__ = ["Result", "apply", "bench", "fcn", "groups", "inspect", "load", "separable", "transform", "verify"]

Given = Model | str | Path
"""A model, or the path of one."""

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
        model_io.copy_bytes(self.model, str(path))
        return Path(path)

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


def fcn(
    model: Given,
    *,
    window: Sequence[int] | None = None,
    size: Sequence[int] | None = None,
    stride: int | Sequence[int] | None = None,
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
    pass_ = Fcn(window=_extents(window), size=_extents(size))
    wanted = (stride,) if isinstance(stride, int) else _extents(stride)
    if upsample:
        _one_of("upsample", upsample, MODES)
    if softmax:
        _one_of("softmax", softmax, ("last", "none"))
    how = Map(wanted, upsample, softmax, opset, dynamic_batch)
    return _rewritten(model, lambda source, target: pipeline.fcn(source, target, pass_, _options(options), how))


def separable(
    model: Given,
    *,
    tol: float = 0.0,
    form: str = "auto",
    accept: str = "smaller",
    size: Sequence[int] | None = None,
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
    how = Trade(_one_of("accept", accept, pipeline.ACCEPT), _extents(size), timings, fit)
    return _traded(model, Separable(tol=_tolerance(tol), form=form), options, how)


def groups(
    model: Given,
    *,
    tol: float = 0.0,
    into: int | None = None,
    expand: str | None = None,
    accept: str = "smaller",
    size: Sequence[int] | None = None,
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
        _one_of("expand", expand, ("branches", "dense"))
    judge = "always" if expand is not None else _one_of("accept", accept, pipeline.ACCEPT)
    pass_ = Groups(tol=_tolerance(tol), into=into, expand=expand)
    return _traded(model, pass_, options, Trade(judge, _extents(size), timings))


def verify(a: Given, b: Given, *, size: Sequence[int] | None = None, **options: Any) -> Verification:
    """Compare two models in ONNX Runtime; a model that `fcn` made is held against its windows.

    Args:
        a: the original. b: the rewritten model. size: of the image, where it is open.
        options: as for `fcn`; others go to `verification.verify` (sizes, batch, shapes, where, reference).

    Raises:
        CheckFailed: they are not the same function, or the verification says nothing. UsageError: they do not fit.
    """
    known = {name: options.pop(name) for name in list(options) if name in Options.__dataclass_fields__}
    with atomic.scratch() as folder:
        first, second = _path(a, folder, "a"), _path(b, folder, "b")
        outcome = pipeline.compare(first, second, _extents(size), _options(known), **options).check()
    assert outcome.verification is not None
    return outcome.verification


def bench(a: Given, b: Given, **how: Any) -> Bench:
    """Time two models against each other, beyond the noise; `how` goes to `timing.bench` (sizes, batches, seconds).

    Raises:
        CheckFailed: `min_speedup` is missed. UsageError: they cannot be timed.
    """
    with atomic.scratch() as folder:
        return timing.bench(_path(a, folder, "a"), _path(b, folder, "b"), **how).check()


def inspect(model: Given, *, size: Sequence[int] | None = None, tol: float = 0.0, passes: bool = True) -> Inspection:
    """List the layers of a model with cost and receptive fields, and what each pass would do within `tol`.

    Raises:
        UsageError: the size does not fit.
    """
    loaded = _model(model)
    return inspection.inspect(loaded, str(loaded.path or "model"), size=size, tol=_tolerance(tol), passes=passes)


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
    unknown = set(how) - set(tiling.How.__dataclass_fields__)
    if unknown:
        known = ", ".join(sorted(tiling.How.__dataclass_fields__))
        raise UsageError(f"there is no option '{min(unknown)}'", remedy=f"choose from {known}")
    if not isinstance(image, str | Path):
        raise UsageError("an array has no path", remedy="leave the target out, and store what comes, or give a path")
    return tiling.apply(_model(model), str(image), str(target), tiling.How(**how)).check()


def transform(
    model: Given,
    pass_: Pass | str,
    *,
    accept: str = "always",
    size: Sequence[int] | None = None,
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
    made = plugins.make(pass_, fields or {}) if isinstance(pass_, str) else pass_
    if isinstance(made, Fcn):
        return _rewritten(model, lambda source, target: pipeline.fcn(source, target, made, _options(options)))
    how = Trade(_one_of("accept", accept, pipeline.ACCEPT), _extents(size), timings)
    return _traded(model, made, options, how)


def _traded(model: Given, pass_: Pass, options: Mapping[str, Any], how: Trade) -> Result:
    return _rewritten(model, lambda source, target: pipeline.trade(source, target, pass_, _options(options), how))


def _rewritten(given: Given, run: Callable[[str, str], Outcome]) -> Result:
    """Run a command from file to file; the new file lives as long as the result."""
    model = _model(given)
    folder = atomic.scratch()
    target = os.path.join(folder.name, "model.onnx")
    outcome = run(_path(model, folder.name, "original"), target).check()
    if outcome.status != "rewritten":
        folder.cleanup()
        return Result(model, outcome)
    return Result(load(target), outcome, folder)


def _model(given: Given) -> Model:
    return given if isinstance(given, Model) else load(given)


def _path(given: Given, folder: str, name: str) -> str:
    """Where a model is, or is written for the while."""
    if not isinstance(given, Model):
        return str(given)
    if given.path is not None:
        return str(given.path)
    target = Path(folder) / f"{name}.onnx"
    if given.origin is not None:
        model_io.copy_bytes(given, target)
    else:
        model_io.save(given, target)
    return str(target)


def _options(given: Mapping[str, Any]) -> Options:
    unknown = set(given) - set(Options.__dataclass_fields__)
    if unknown:
        known = ", ".join(sorted(Options.__dataclass_fields__))
        raise UsageError(f"there is no option '{min(unknown)}'", remedy=f"choose from {known}")
    return Options(**given)


def _extents(size: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if size is None else tuple(int(extent) for extent in size)


def _tolerance(tol: float) -> float:
    if not (np.isfinite(tol) and tol >= 0):
        raise UsageError(f"{tol} is not a tolerance", remedy="give a number such as 1e-5")
    return float(tol)


def _one_of(name: str, value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise UsageError(f"{name} is '{value}'", remedy=f"choose one of {', '.join(known)}")
    return value
