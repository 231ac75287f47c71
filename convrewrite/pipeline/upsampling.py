"""The class map at the size of the image: the options `upsample` and `softmax` of `fcn`, and their proof.

cells ──upsample──> pixels         pixels == cells interpolated by numpy, on images of several sizes, in ONNX Runtime
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from convrewrite import model_io
from convrewrite.engine.rewrite import Site, run_pass
from convrewrite.engine.windows import METADATA_KEY, UPSAMPLED_KEY, Window
from convrewrite.errors import UsageError
from convrewrite.model_io import Model
from convrewrite.options import CheckOptions
from convrewrite.passes.upsample import SOFTMAXES, Upsample
from convrewrite.pipeline.steps import refusal
from convrewrite.running import runtime
from convrewrite.running.sampling import InputSpec, Scale, random_array
from convrewrite.text import by, parameter
from convrewrite.verification import Case
from convrewrite.verification.comparison import floor, relative_error

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Upsampled:
    """What came of it: the new model, what was done at each output, and the model of the cells it is held against."""

    model: Model
    sites: tuple[Site, ...]
    cells: Model
    mode: str
    softmax: str
    window: Window


def upsampled(model: Model, window: Window, mode: str, softmax: str) -> Upsampled:
    """Run the pass `upsample`.

    Raises:
        Refused: an output cannot be interpolated. UsageError: there is no final Softmax to move.
    """
    pass_ = Upsample(mode, softmax, window)
    result = run_pass(pass_, model.graph)
    for site in result.outcome("refused"):
        raise refusal(pass_, site)
    if softmax and not any(site.op in SOFTMAXES for site in result.outcome("rewritten")):
        raise UsageError(
            f"{parameter('softmax', softmax)}: no output is given by a Softmax over the classes",
            remedy="leave it out"
            + (
                f", or give {parameter('opset', '13')}, from which on a Softmax runs over one axis"
                if model.opset < 13
                else ""
            ),
        )
    metadata = {key: text for key, text in model.metadata.items() if key != METADATA_KEY}
    metadata[UPSAMPLED_KEY] = json.dumps({"mode": mode, "softmax": softmax, "window": json.loads(window.to_json())})
    after = replace(model, graph=result.graph, metadata=metadata)
    return Upsampled(after, result.sites, _scores(model, softmax), mode=mode, softmax=softmax, window=window)


def _scores(model: Model, softmax: str) -> Model:
    """The model of the cells; where a Softmax is moved, of what lies ahead of it, under the output's name."""
    graph = model.graph.copy()
    for place, output in enumerate(graph.outputs if softmax else []):
        last = output.inputs[0]
        if last.op in SOFTMAXES:
            scores, name = last.inputs[0], output.name
            last.outputs[0].name = f"{name}/softmax"
            scores.name, scores.dtype = name, output.dtype
            graph.outputs[place] = scores
    return replace(model, graph=graph)


def interpolated(cells: Array, window: Window, size: Sequence[int], mode: str) -> Array:
    """The oracle: [N, K, *cells] at every pixel of an image of that size, in float64 by plain indexing."""
    values = cells.astype(np.float64) if mode == "bilinear" else cells
    for axis, (extent, native, stride, offset) in enumerate(
        zip(size, window.size, window.stride, window.offset, strict=True), 2
    ):
        count = values.shape[axis]
        at = np.clip((np.arange(extent) - (offset + (native - 1) / 2)) / stride, 0, count - 1)
        if mode == "nearest":
            values = values.take(np.ceil(at - 0.5).astype(int), axis)
            continue
        low = np.floor(at).astype(int)
        share = (at - low).reshape(-1, *[1] * (values.ndim - axis - 1))
        high = np.minimum(low + 1, count - 1)
        values = values.take(low, axis) * (1 - share) + values.take(high, axis) * share
    return values


def checked(made: Upsampled, staged: Path, folder: Path, options: CheckOptions) -> tuple[Case, ...]:
    """Every pixel against numpy, on images whose size divides nothing."""
    window = made.window
    last = {site.anchor: site.op for site in made.sites}
    before = runtime.open_session(model_io.save(made.cells, folder / "cells.onnx"), options.provider)
    after = runtime.open_session(staged, options.provider)
    cases = []
    for index, size in enumerate(_sizes(after, window)):
        feeds = _feeds(after, window, size, options.seed + index)
        cells, pixels = before.run(feeds), after.run(feeds)
        for name in window.outputs:
            want = interpolated(cells[name], window, size, made.mode)
            if made.softmax == "last" and last.get(name) in SOFTMAXES:
                want = want - want.max(axis=1, keepdims=True)
                whole = np.exp(want).sum(axis=1, keepdims=True)
                want = want - np.log(whole) if last[name] == "LogSoftmax" else np.exp(want) / whole
            same = want.shape == pixels[name].shape
            error = relative_error(pixels[name], want.astype(pixels[name].dtype)) if same else None
            tolerance = floor(pixels[name].dtype)
            passed = error is not None and error <= tolerance
            note = f"seed {options.seed + index}" if same else f"{pixels[name].shape} where {want.shape} is due"
            cases.append(
                Case(
                    f"every pixel of {by(size)} against the interpolated cells",
                    name,
                    error=error,
                    tolerance=tolerance,
                    status="passed" if passed else "failed",
                    note=note,
                    seed=options.seed,
                )
            )
    return tuple(cases)


def _sizes(session: runtime.Session, window: Window) -> list[tuple[int, ...]]:
    """Native + one, a few windows with pixels left over, and the one size of a model that takes no other."""
    info = next(info for info in session.inputs if info.name == window.input)
    fixed = [info.shape[window.axes.index(letter)] for letter in window.letters]
    if all(isinstance(dim, int) for dim in fixed):
        return [tuple(int(dim) for dim in fixed if isinstance(dim, int))]
    few = window.image_size((2, 3, 2)[: len(window.size)])
    return [window.size, tuple(extent + step // 2 for extent, step in zip(few, window.stride, strict=True))]


def _feeds(session: runtime.Session, window: Window, size: Sequence[int], seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    feeds = {}
    for info in session.inputs:
        shape = window.at_size(info.name, [dim if isinstance(dim, int) else 1 for dim in info.shape], size)
        feeds[info.name] = random_array(rng, InputSpec(info.name, info.dtype, tuple(shape)), Scale("0..1"))
    return feeds
