"""The two models: do they take the same inputs, at which shapes are they run, how many multiply-accumulates is that."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from convrewrite import model_io
from convrewrite.engine import costs, memory
from convrewrite.engine.graph import infer_shapes
from convrewrite.engine.windows import Window
from convrewrite.errors import UsageError
from convrewrite.model_io import Model
from convrewrite.running.runtime import TensorInfo
from convrewrite.running.sampling import bind_batch, fill
from convrewrite.text import Call, by, counted, parameter
from convrewrite.timing.protocol import Part, Shapes, Subject

WINDOW_BATCHES = (1, 8, 32)
"""What `windows` tries for the original."""
WINDOW_POSITIONS = 9
"""Windows per axis where no size is given."""

Size = tuple[int, ...]


@dataclass(frozen=True)
class Candidate:
    """A model file, as far as timing needs to know it."""

    path: str
    model: Model
    inputs: tuple[TensorInfo, ...]
    window: Window | None

    @classmethod
    def read(cls, path: str | Path) -> Candidate:
        """Read a model file. Raises UsageError where it cannot be read."""
        if str(path) == "-":
            raise UsageError("bench reads two files, and none from standard input", remedy="give both paths")
        model = model_io.load(path)
        inputs = tuple(
            TensorInfo(t.name, _dtype(t.dtype), tuple(map(_dim, t.shape or ())), f"of type {t.dtype}")
            for t in model.graph.inputs
        )
        if not inputs:
            raise UsageError(f"{path} has no input")
        memory.check_constants(model.graph)
        return cls(str(path), model, inputs, Window.from_metadata(model.metadata, model.graph))

    @property
    def image(self) -> TensorInfo:
        """The input that sizes and batches are about: the one with most axes."""
        window = self.window
        named = [info for info in self.inputs if window is not None and info.name == window.input]
        return max(named or self.inputs, key=lambda info: len(info.shape))

    def macs(self, shapes: Shapes) -> int | None:
        """Multiply-accumulates of one run; None where shapes do not follow from the inputs.

        Raises:
            UsageError: nothing is left of an image so small (ONNX Runtime would end the process).
        """
        graph = self.model.graph
        try:
            found = infer_shapes(graph, shapes)
        except onnx.shape_inference.InferenceError:
            return None
        for node in graph.nodes:
            shape = found.get(node.outputs[0].name, ())
            if node.op in costs.CONVS and any(extent < 1 for extent in shape[2:]):
                image = by(shapes[self.image.name])
                raise UsageError(
                    f"{self.path} does not run at {image}: '{node.outputs[0].name}' would be {by(shape)}",
                    remedy=f"give a larger {parameter('sizes')}",
                )
        return costs.graph_macs(graph, found)


def _dim(dim: object) -> int | str | None:
    return dim if isinstance(dim, int | str) and dim != "" else None


def _dtype(dtype: object) -> np.dtype[np.generic]:
    with contextlib.suppress(TypeError):
        if dtype is not None and not isinstance(dtype, int):
            return np.dtype(dtype)  # type: ignore[call-overload, no-any-return]
    return np.dtype("object")


def check_inputs(a: Candidate, b: Candidate) -> None:
    """Raise UsageError where the inputs differ: then times of the two say nothing of each other.

    Types of other precision do not count: both models are given the same numbers.
    """
    mine, its = {info.name: info for info in a.inputs}, {info.name: info for info in b.inputs}
    if set(mine) != set(its):
        raise UsageError(
            f"the models take different inputs: {a.path} takes {', '.join(mine)}; {b.path} takes {', '.join(its)}",
            remedy="give both the same input names",
        )
    for name, info in mine.items():
        other = its[name]
        if not _alike(info.dtype, other.dtype) or len(info.shape) != len(other.shape):
            raise UsageError(
                f"input '{name}' is {_described(info)} in {a.path}, and {_described(other)} in {b.path}",
                remedy="inputs of other precision are cast (float16, float32, float64; int32, int64), others are not",
            )


def _alike(a: np.dtype[np.generic], b: np.dtype[np.generic]) -> bool:
    """Whether the same random numbers can be cast for both."""
    return a == b or (a.kind == b.kind == "f") or (a.kind in "iu" and b.kind in "iu" and a.itemsize > 1 < b.itemsize)


def casts(a: Candidate, b: Candidate) -> tuple[str, ...]:
    """Lines on inputs that the models take in other types."""
    pairs = [(info, other) for info in a.inputs for other in b.inputs if info.name == other.name]
    return tuple(
        f"input '{info.name}' is {info.dtype} in {a.path}, and {other.dtype} in {b.path}: the same numbers are cast "
        "for each"
        for info, other in pairs
        if info.dtype != other.dtype
    )


def shapes_at(a: Candidate, b: Candidate, size: Size | None, batch: int | None) -> Shapes:
    """The shape of every input, the same for both. Raises UsageError where that cannot be."""
    if size is None and not _all_fixed(a) and not _all_fixed(b):
        window = b.window or a.window
        size = None if window is None else window.size
    found = []
    for one, other in ((a, b), (b, a)):
        known = {info.name: info.shape for info in other.inputs}
        bound = bind_batch(one.inputs, batch)
        specs = (fill(info, size, known[info.name], batch, bound=bound) for info in one.inputs)
        shapes = {spec.name: spec.shape for spec in specs}
        half_open = [_number(a) is None for a in one.image.shape[1:]]
        half_open = [a and _number(b) is None for a, b in zip(half_open, known[one.image.name][1:], strict=False)]
        if size is not None and not any(half_open) and not _is_at(shapes[one.image.name], size):
            raise UsageError(
                f"{parameter('sizes', by(size))} does not fit: input '{one.image.name}' of {one.path} is fixed "
                f"at {by(shapes[one.image.name])}",
                remedy=f"'{Call('fcn')}' makes a model of any size; {parameter('windows')} compares one with its "
                "original",
            )
        found.append(shapes)
    for name, shape in found[0].items():
        if shape != found[1][name]:
            raise UsageError(
                f"input '{name}' is {by(shape)} in {a.path}, and {by(found[1][name])} in {b.path}",
                remedy=f"compare models of one size; {parameter('windows')} compares an fcn model with its original",
            )
    return found[0]


def extents(shape: Sequence[int], axes: str = "") -> tuple[Size, int]:
    """Size and batch of an image input; without the letters of its axes, channels are last where only that fits."""
    if not axes:
        if len(shape) < 3:
            return tuple(shape[1:]), shape[0] if shape else 1
        last = len(shape) > 3 and shape[-1] in (1, 3) and shape[1] not in (1, 3)
        axes = "N" + "".join("?" * (len(shape) - 2)) + "C" if last else "NC" + "?" * (len(shape) - 2)
    named = list(zip(axes, shape, strict=True))
    return tuple(n for letter, n in named if letter not in "NC"), next((n for c, n in named if c == "N"), 1)


def _number(dim: int | str | None) -> int | None:
    return dim if isinstance(dim, int) else None


def _is_at(shape: Sequence[int], size: Size) -> bool:
    places = (shape[2:], shape[1:-1], shape[1:])
    return any(place and tuple(place) == (size * len(place) if len(size) == 1 else size) for place in places)


def _all_fixed(one: Candidate) -> bool:
    return all(isinstance(dim, int) for dim in one.image.shape[1:])


def _described(info: TensorInfo) -> str:
    return f"{info.dtype.name} {'x'.join(str(d) if isinstance(d, int) else '?' for d in info.shape)}"


@dataclass(frozen=True)
class Sliding:
    """A fully convolutional model on one image, and its original on all windows of that image.

    Attributes:
        image: shapes for the one pass. original: the original over all windows, a way per batching.
        batches: of those ways. windows: their number. size: of the image.
        limit: multiply-accumulates of all windows over those of the pass; None where they are not known.
    """

    image: Shapes
    original: Subject
    batches: tuple[int, ...]
    windows: int
    size: Size
    limit: float | None


def check_windows(original: Candidate, fcn: Candidate) -> Window:
    """Raise UsageError where `windows` has nothing to compare."""
    if fcn.window is None:
        swapped = original.window is not None
        remedy = (
            f"swap them: bench {fcn.path} {original.path} {parameter('windows', True)}"
            if swapped
            else f"make it with '{Call('fcn')}'"
        )
        raise UsageError(
            f"{fcn.path} carries no convrewrite.window, which {parameter('windows')} needs of B", remedy=remedy
        )
    if len(original.inputs) != 1 or len(fcn.inputs) != 1:
        raise UsageError(
            f"{parameter('windows')} compares models of one input", remedy=f"leave {parameter('windows')} out"
        )
    return fcn.window


def sliding(original: Candidate, fcn: Candidate, size: Size | None, batches: Sequence[int]) -> Sliding:
    """What to run for an image of that size (None: its own, or the smallest of 9 x 9 windows). Raises UsageError."""
    window = check_windows(original, fcn)
    if size is None:  # that of a model with a fixed size, else that of 9 x 9 windows
        held_at = [_number(d) or 0 for c, d in zip(window.axes, fcn.image.shape, strict=False) if c in window.letters]
        size = tuple(held_at) if all(held_at) else window.image_size([WINDOW_POSITIONS] * len(window.size))
    size = size * len(window.size) if len(size) == 1 else size
    if len(size) != len(window.size):
        raise UsageError(
            f"{parameter('sizes', by(size))} has {counted(len(size), 'number')}, the windows {len(window.size)}"
        )
    count = math.prod(window.positions(size))
    if not count:
        raise UsageError(f"{parameter('sizes', by(size))} is smaller than the window, {by(window.size)}")
    channels = _number(fcn.image.shape[window.axes.index("C")]) if "C" in window.axes else None
    image, crop = (_image_shape(window, extent, channels or 1) for extent in (size, window.size))
    for one, shape in ((fcn, image), (original, crop)):
        pairs = list(zip(one.image.shape, shape, window.axes, strict=False))
        if len(one.image.shape) != len(shape) or any(
            _number(h) not in (None, want) for h, want, c in pairs if c != "N"
        ):
            raise UsageError(f"{one.path} does not run at {by(shape)}: its input is {_described(one.image)}")
    axis = window.axes.index("N") if "N" in window.axes else None
    held = 1 if axis is None else _number(original.image.shape[axis])
    if held is not None and batches and tuple(batches) != (held,):
        raise UsageError(
            f"{parameter('batches')} does not fit: {original.path} has the fixed batch {held}",
            remedy=f"leave {parameter('batches')} out",
        )
    tried = (held,) if held is not None else tuple(b for b in batches or WINDOW_BATCHES if b <= count) or (count,)
    name = original.image.name
    ways = []
    for batch in tried:
        full, rest = divmod(count, batch)
        if held is not None and rest:
            full, rest = full + 1, 0  # the last batch is filled up
        sizes = [(batch, full), (rest, 1)]
        ways.append(tuple(Part({name: _with_batch(crop, axis, b)}, runs) for b, runs in sizes if b and runs))
    shapes = {fcn.image.name: image}
    one_window = original.macs({name: _with_batch(crop, axis, held or 1)})
    one_pass = fcn.macs(shapes)
    limit = one_window / (held or 1) * count / one_pass if one_window and one_pass else None
    return Sliding(shapes, Subject(original.path, tuple(ways)), tried, windows=count, size=size, limit=limit)


def _image_shape(window: Window, size: Sequence[int], channels: int) -> Size:
    rest = iter(size)
    return tuple({"N": 1, "C": channels}.get(letter) or next(rest) for letter in window.axes)


def _with_batch(shape: Size, axis: int | None, batch: int) -> Size:
    return shape if axis is None else (*shape[:axis], batch, *shape[axis + 1 :])
