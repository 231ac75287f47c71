"""What the original model says about every cell of a converted one, for tests that do not know the model beforehand.

    windows       image --> converted --> cells        every crop --> original --> outputs        equal
                  pixels outside a window changed --> converted --> that window's cells           unchanged
    native-size   image --> the original's trunk --> every feature window --> the original's head --> outputs     equal

Only the metadata and the cut that the pass hands out are read here; nothing of how it lifts.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
from onnx import helper

from convrewrite import model_io
from convrewrite.engine.rewrite import Lifting, PassResult, Site, run_pass
from convrewrite.engine.windows import CutTensor, OutputGrid, Window
from convrewrite.passes.fcn import Fcn
from convrewrite.passes.fcn.reasons import REASONS
from helpers import Array, Feeds, run, session, submodel

Position = tuple[int, ...]


@dataclass(frozen=True)
class Lift:
    """A model, what `Fcn` made of it, and open sessions of both.

    Attributes:
        least: rounding is measured by the largest entry of an output, but by no less than this: sums may cancel.
    """

    original: onnx.ModelProto
    converted: onnx.ModelProto
    window: Window
    cut: tuple[CutTensor, ...]
    before: ort.InferenceSession
    after: ort.InferenceSession
    least: float = 1e-30


def import_graph(model: onnx.ModelProto) -> gs.Graph:
    """The graph of a model as graphsurgeon has it: weights are no inputs, nodes are sorted."""
    graph = gs.import_onnx(model)
    constants = {tensor.name for tensor in model.graph.initializer}
    graph.inputs = [tensor for tensor in graph.inputs if tensor.name not in constants]
    return graph.toposort()


def export_graph(result: PassResult, model: onnx.ModelProto) -> onnx.ModelProto:
    """The result of a pass as a model, without the project's own writer."""
    exported: onnx.ModelProto = gs.export_onnx(result.graph, do_type_check=False)
    exported.ir_version = max(4, min(model.ir_version, 10))
    return exported


def lift(model: onnx.ModelProto, pass_: Fcn | None = None) -> Lift | Site:
    """Convert a model through the project's reader and writer; the site that says why where it is left alone."""
    loaded = model_io.load(model.SerializeToString())
    result = run_pass(pass_ or Fcn(), loaded.graph)
    if not result.changed:
        return left_alone(result)
    buffer = io.BytesIO()
    written = replace(loaded, graph=result.graph, metadata={**loaded.metadata, **result.metadata})
    model_io.write_stream(written, buffer)
    return opened(model, onnx.load_from_string(buffer.getvalue()), result)


def left_alone(result: PassResult) -> Site:
    """The one site of a model that was not rewritten; its reason must be a known one."""
    (site,) = result.sites
    assert site.outcome in ("declined", "refused"), site
    assert site.reason in REASONS, site
    assert site.detail, site
    assert site.remedy, site
    return site


def opened(model: onnx.ModelProto, converted: onnx.ModelProto, result: PassResult) -> Lift:
    """Check a converted model and what is said about it, and open both."""
    onnx.checker.check_model(converted, full_check=True)
    window: Window = result.evidence_of(Lifting).window
    assert window == Window.from_json(result.metadata["convrewrite.window"])
    assert [o.name for o in converted.graph.output] == [o.name for o in model.graph.output]
    return Lift(model, converted, window, result.evidence_of(Lifting).cut, session(model), session(converted))


# Images -------------------------------------------------------------------------------------------------------------


def resized(made: Lift, feeds: Mapping[str, Array], image: Array) -> Feeds:
    """The same inputs with another image."""
    return {**feeds, made.window.input: image}


def image_shape(window: Window, native: Sequence[int], size: Sequence[int]) -> tuple[int, ...]:
    """The shape of the image input at another size."""
    shape = list(native)
    for letter, extent in zip(window.letters, size, strict=True):
        shape[window.axes.index(letter)] = extent
    return tuple(shape)


def window_slices(window: Window, position: Position) -> tuple[slice, ...]:
    """Where one window lies in the image."""
    cut = [slice(None)] * len(window.axes)
    for letter, at, stride, size, first in zip(
        window.letters, position, window.stride, window.size, window.offset, strict=True
    ):
        cut[window.axes.index(letter)] = slice(first + at * stride, first + at * stride + size)
    return tuple(cut)


# Cells --------------------------------------------------------------------------------------------------------------


def as_cells(values: Array, grid: OutputGrid, letters: str, batch: int) -> Array:
    """An output of the original as [N, K, *spatial]: axes taken apart, put in order, channels joined."""
    assert values.ndim == len(grid.layout), f"{values.shape} is no {grid.layout}"
    known = {**dict(zip(letters, grid.size, strict=True)), "N": batch}
    names: list[str] = []
    dims: list[int] = []
    for text, extent in zip(grid.layout, values.shape, strict=True):
        if text.count("C") > 1:
            raise Unreadable(f"axis {text!r} cannot be taken apart")
        rest = extent // math.prod(known[letter] for letter in text if letter != "C")
        names += text
        dims += [rest if letter == "C" else known[letter] for letter in text]
    apart = values.reshape(dims)
    order = [place for letter in ("N", "C", *letters) for place, name in enumerate(names) if name == letter]
    return apart.transpose(order).reshape(batch, -1, *grid.size)


def block(made: Lift, name: str, values: Array, position: Position) -> Array:
    """The cells of one output that stand for one window."""
    grid = made.window.outputs[name]
    cut: list[slice] = [slice(None), slice(None)]
    for at, whole, own, extent in zip(position, made.window.stride, grid.stride, grid.size, strict=True):
        cut.append(slice(at * (whole // own), at * (whole // own) + extent))
    return values[tuple(cut)]


def assert_same(made: Lift, values: Feeds, wanted: Feeds, position: Position, tolerance: float, text: str) -> None:
    """Compare the cells of one window with what the original says; a tolerance of 0 is bit for bit."""
    for name, want in wanted.items():
        label = f"output '{name}' at window {position}, {text}"
        if name not in made.window.outputs:
            np.testing.assert_array_equal(values[name], want, err_msg=label)
            continue
        got = block(made, name, values[name], position)
        cells = as_cells(want, made.window.outputs[name], made.window.letters, got.shape[0])
        assert (got.shape, got.dtype) == (cells.shape, cells.dtype), label
        if tolerance and got.dtype.kind == "f":
            np.testing.assert_allclose(got, cells, rtol=0, atol=tolerance * _peak(made, values[name]), err_msg=label)
        elif not tolerance or got.dtype.kind != "f":
            np.testing.assert_array_equal(got, cells, err_msg=label)


def _peak(made: Lift, values: Array) -> float:
    """The largest finite entry over all windows, as what rounding is measured by."""
    return max(float(np.abs(values[np.isfinite(values)]).max(initial=0.0)), made.least)


def check_native(made: Lift, feeds: Feeds, tolerance: float) -> None:
    """Compare at the native size."""
    position = (0,) * len(made.window.size)
    assert_same(made, run(made.after, feeds), run(made.before, feeds), position, tolerance, "native size")


def check_windows(made: Lift, feeds: Feeds, positions: Sequence[int], tolerance: float, numbers: Any) -> None:
    """Compare every window of a larger image with the original on that crop, then change all pixels outside of one.

    Args:
        feeds: inputs with an image of any size that holds that many windows. numbers: shape -> other pixels.
    """
    image = feeds[made.window.input]
    values = run(made.after, feeds)
    assert_extents(made, values, positions)
    for position in np.ndindex(*positions):
        inside = window_slices(made.window, position)
        crop = np.ascontiguousarray(image[inside])
        assert_same(made, values, run(made.before, resized(made, feeds, crop)), position, tolerance, f"{image.shape}")
    last = tuple(count // 2 for count in positions)
    changed = numbers(image.shape).astype(image.dtype)
    changed[window_slices(made.window, last)] = image[window_slices(made.window, last)]
    again = run(made.after, resized(made, feeds, changed))
    for name in made.window.outputs:
        one, two = block(made, name, values[name], last), block(made, name, again[name], last)
        label = f"output '{name}' at window {last} looks at pixels outside of it"
        limit = tolerance * _peak(made, values[name]) if one.dtype.kind == "f" else 0
        np.testing.assert_allclose(two, one, rtol=0, atol=limit, err_msg=label)


def assert_extents(made: Lift, values: Feeds, positions: Sequence[int]) -> None:
    """A larger image gives at least the cells of its whole windows."""
    for name, grid in made.window.outputs.items():
        steps = [whole // own for whole, own in zip(made.window.stride, grid.stride, strict=True)]
        least = [n + (count - 1) * s for n, count, s in zip(grid.size, positions, steps, strict=True)]
        assert all(a >= b for a, b in zip(values[name].shape[2:], least, strict=True)), (name, values[name].shape)


class Unreadable(Exception):
    """The layout of a map among the outputs has rows between two factors of the channels, of unknown extents."""


class NoTrunk(Exception):
    """The original's trunk does not run at that size, or its head is not what the cut says."""


def check_trunk_and_head(made: Lift, feeds: Feeds, positions: Sequence[int], tolerance: float) -> None:
    """Compare a larger image with the original's trunk on it and the original's head on every feature window.

    Raises:
        NoTrunk: there is no cut, or the original's own trunk does not run on the larger image.
    """
    values = run(made.after, feeds)
    assert_extents(made, values, positions)
    for position, wanted in _head_on_windows(made, feeds, positions):
        text = f"{feeds[made.window.input].shape}, trunk and head"
        assert_same(made, values, wanted, position, tolerance, text)


def _head_on_windows(made: Lift, feeds: Feeds, positions: Sequence[int]) -> Iterator[tuple[Position, Feeds]]:
    if not made.cut:
        raise NoTrunk("the pass gives no cut")
    names = [tensor.name for tensor in made.cut]
    trunk = submodel(made.original, [made.window.input], names)
    head_outputs = [name for name in (o.name for o in made.original.graph.output) if name in made.window.outputs]
    head = session(submodel(made.original, names, head_outputs))
    try:
        features = run(trunk, feeds)
    except Exception as error:  # the exception classes of ONNX Runtime share no base but Exception
        raise NoTrunk(str(error)) from None
    for tensor in made.cut:
        steps = _steps(made, tensor)
        for place, letter in enumerate(made.window.letters):
            found = features[tensor.name].shape[tensor.layout.index(letter)]
            if found < (positions[place] - 1) * steps[place] + tensor.size[place]:
                raise NoTrunk(f"'{tensor.name}' {features[tensor.name].shape}: the trunk holds a baked size")
    native = feeds[made.window.input][window_slices(made.window, (0,) * len(made.window.size))]
    for position in np.ndindex(*positions):
        parts: Feeds = {}
        for tensor in made.cut:
            cut = [slice(None)] * features[tensor.name].ndim
            for place, (letter, step) in enumerate(zip(made.window.letters, _steps(made, tensor), strict=True)):
                start = position[place] * step
                cut[tensor.layout.index(letter)] = slice(start, start + tensor.size[place])
            parts[tensor.name] = np.ascontiguousarray(features[tensor.name][tuple(cut)])
        yield position, run(head, {**resized(made, feeds, native), **parts})


def _steps(made: Lift, tensor: CutTensor) -> list[int]:
    """Cells of a cut tensor per step of the window."""
    return [whole // own for whole, own in zip(made.window.stride, tensor.stride, strict=True)]


def random_feeds(model: onnx.ModelProto, rng: np.random.Generator, batch: int = 1) -> Feeds:
    """Standard normal numbers for every input, open dimensions filled with `batch`."""
    constants = {tensor.name for tensor in model.graph.initializer}
    feeds: Feeds = {}
    for info in model.graph.input:
        if info.name not in constants:
            kind = info.type.tensor_type
            dims = [dim.dim_value or batch for dim in kind.shape.dim]
            feeds[info.name] = rng.standard_normal(dims).astype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return feeds


def pixels_by_hand(cells: Array, window: Window, size: tuple[int, ...], mode: str) -> Array:
    """Each pixel between the centres of the windows around it, edges held: from the definition, one by one."""
    result = np.zeros((*cells.shape[:2], *size))
    for pixel in np.ndindex(*size):
        corners = []
        for x, w, s, o, n in zip(pixel, window.size, window.stride, window.offset, cells.shape[2:], strict=True):
            u = min(max((x - o - (w - 1) / 2) / s, 0.0), n - 1.0)
            if mode == "nearest":
                corners.append([(int(np.ceil(u - 0.5)), 1.0)])
            else:
                j = int(np.floor(u))
                corners.append([(j, 1 - (u - j)), (min(j + 1, n - 1), u - j)])
        for choice in itertools.product(*corners):
            weight = np.prod([w for _, w in choice])
            result[(slice(None), slice(None), *pixel)] += (
                weight * cells[(slice(None), slice(None), *(j for j, _ in choice))]
            )
    return result
