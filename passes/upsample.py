"""upsample: a class map becomes as large as the image, each pixel interpolated between the centres of the windows.

Before                                    After
    scores [N, K, H', W']                     scores [N, K, H', W'] ── Pad, edges held ── Resize ── Slice
    one cell every s pixels                   [N, K, H, W], one cell for each pixel

Algebra. Cell i stands for the window of w pixels from pixel o + i s on, whose centre is the pixel c + i s, where
c = o + (w - 1) / 2. Pixel x lies at u = (x - c) / s among the cells, and gets

    bilinear   (1 - a) cell[j] + a cell[j + 1],     j = floor(u), a = u - j,     each axis in turn
    nearest    cell[ceil(u - 1/2)]

where u is held within 0 .. n - 1. With p cells more ahead of the first, a Resize by s has the entry r at the cell
r / s - p (asymmetric) or (r + 1/2) / s - 1/2 - p (half_pixel), so that pixel x is the entry

    r = x + s p - c                      whole where w is odd
    r = x + s p - c + (s - 1) / 2        whole where w and s are even

and elsewhere every second entry of a Resize by 2 s: a Slice picks as many of them as the image has pixels, whatever its
size. `softmax`: "last" interpolates the scores ahead of a final Softmax and puts it behind; "none" leaves it out.

Requires outputs [N, K, *spatial] on one grid of windows, and opset 11 or later.
Refuses outputs of whole numbers (classes of an ArgMax) where they would be interpolated.
Source: the ONNX operator page of Resize; Long, Shelhamer and Darrell, CVPR 2015, section 3.3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite.engine.emitting import Emitter
from convrewrite.engine.graph import position
from convrewrite.engine.rewrite import Context, Declined, Pass, Plan, Reason, Refusal, Site, option
from convrewrite.engine.windows import Window
from convrewrite.text import parameter

MODES = ("bilinear", "nearest")
SOFTMAXES = ("Softmax", "LogSoftmax")

REASONS = {
    reason.code: reason
    for reason in (
        Reason(
            "upsample/no-window",
            "the model does not say which windows its cells stand for",
            "convert the classifier with fcn in the same step",
        ),
        Reason(
            "upsample/opset",
            "operator sets below 11 cannot say where the cells of a Resize lie",
            f"give {parameter('opset', '11')} or later",
        ),
        Reason(
            "upsample/classes",
            "the output holds whole numbers, and there is nothing between two classes",
            f"choose {parameter('upsample', 'nearest')}",
        ),
        Reason(
            "upsample/not-a-map",
            "the output was a map in the original already, or has no spatial axes",
            "leave that output out of the model",
        ),
    )
}


@dataclass(frozen=True)
class Upsample(Pass):
    """The pass.

    Attributes:
        mode: one of MODES. softmax: "" for what the outputs give, "last" or "none". window: of the model.
    """

    name: ClassVar[str] = "upsample"
    reasons: ClassVar[Mapping[str, Reason]] = REASONS
    step_of: ClassVar[tuple[str, str] | None] = ("fcn", "upsample")
    mode: str = option("bilinear")
    softmax: str = option("")
    window: Window | None = None

    def candidates(self, graph: gs.Graph) -> Iterator[gs.Node]:
        """The nodes that give the outputs of the window."""
        names = set() if self.window is None else set(self.window.outputs)
        for node in list(graph.nodes):
            if self.window is None or any(t.name in names and t in graph.outputs for t in node.outputs):
                yield node
                if self.window is None:
                    return

    def plan(self, context: Context, node: gs.Node) -> Sequence[Plan] | Declined | Refusal:
        """Where the output's cells lie, and what brings them to the pixels."""
        label = f"{node.op} '{node.name or node.outputs[0].name}'"
        window = self.window
        if window is None:
            return Declined(REASONS["upsample/no-window"], label)
        if context.graph.opset < 11:
            return Refusal(REASONS["upsample/opset"], f"the model has opset {context.graph.opset}")
        output = next(t for t in node.outputs if t.name in window.outputs)
        grid = window.outputs[output.name]
        if grid.stride != window.stride or any(extent > 1 for extent in grid.size):
            return Refusal(REASONS["upsample/not-a-map"], f"output '{output.name}'")
        whole = output.dtype is not None and np.dtype(output.dtype).kind != "f"
        if whole and self.mode == "bilinear":
            return Refusal(REASONS["upsample/classes"], f"output '{output.name}'")
        moved = self.softmax if node.op in SOFTMAXES else ""
        where = {"": "", "last": f", {node.op} behind it", "none": f", without {node.op}"}[moved]
        axes = tuple(_Axis.of(*axis) for axis in zip(window.size, window.stride, window.offset, strict=True))
        text = f"{self.mode} by {'x'.join(str(axis.stride) for axis in axes)}{where}"
        site = Site(self.name, output.name, node.op, "rewritten", detail=text, equivalence="reassociated")
        return [Plan((site,), _Work(output.name, self.mode, moved, axes=axes, window=window))]

    def apply(self, graph: gs.Graph, plan: Plan) -> None:
        """Put Pad, Resize and Slice between the output and what gave it."""
        plan.payload.do(graph)


@dataclass(frozen=True)
class _Axis:
    """One axis: `before` and `after` cells are put around; entry start + x step of a Resize by `scale` is pixel x."""

    stride: int
    before: int
    after: int
    scale: int
    start: int
    step: int
    half_pixel: bool

    @classmethod
    def of(cls, size: int, stride: int, offset: int) -> _Axis:
        """The grid of windows of this size and stride whose first window starts at this pixel."""
        twice = 2 * offset + size - 1  # the first centre is at half of that
        before = max(0, -(-twice // (2 * stride)))
        after = max(0, -(-(2 * (size - 1) - twice) // (2 * stride))) + 1
        half = size % 2 == 0 and stride % 2 == 0
        start = 2 * stride * before - twice + (stride - 1 if half else 0)
        if size % 2 or half:
            return cls(
                stride=stride, before=before, after=after, scale=stride, start=start // 2, step=1, half_pixel=half
            )
        return cls(stride=stride, before=before, after=after, scale=2 * stride, start=start, step=2, half_pixel=False)


@dataclass(frozen=True)
class _Work:
    """What becomes of one output."""

    output: str
    mode: str
    softmax: str
    axes: tuple[_Axis, ...]
    window: Window

    def do(self, graph: gs.Graph) -> None:
        """Build it; each axis whose cells lie differently has a Resize of its own."""
        output = next(t for t in graph.outputs if t.name == self.output)
        last = output.inputs[0]
        data: gs.Tensor = last.inputs[0] if self.softmax else output
        if not self.softmax:
            output.name = f"{self.output}/cells"
        dtype = data.dtype if data.dtype is not None else output.dtype
        result = gs.Variable(self.output, output.dtype, self._shape(graph, output))
        whole = dtype is not None and np.dtype(dtype).kind != "f"
        emit = Emitter.into(graph, f"{self.output}/upsample", np.int32 if whole else dtype)
        if whole:  # ONNX Runtime resizes no int64, which the classes of an ArgMax are
            data = emit("Cast", "as-int32", [data], to=np.int32)
        rank = len(self.axes)
        flat = rank == 1  # Resize interpolates two axes or three
        if flat:
            data = self._plane(graph, emit, "Unsqueeze", data)
        dims = range(3, 4) if flat else range(2, 2 + rank)
        total = 4 if flat else 2 + rank
        pads = [0] * (2 * total)
        for dim, axis in zip(dims, self.axes, strict=True):
            pads[dim], pads[total + dim] = axis.before, axis.after
        data = emit("Pad", "held", [data, emit.ints("pads", pads)], mode="edge")
        for half in sorted({axis.half_pixel for axis in self.axes}):
            scales = np.ones(total, np.float32)
            for dim, axis in zip(dims, self.axes, strict=True):
                scales[dim] = axis.scale if axis.half_pixel == half else 1
            if scales.max() > 1:
                data = self._resized(emit, data, scales, half)
        data = self._cut(graph, emit, data, dims)
        if flat:
            data = self._plane(graph, emit, "Squeeze", data)
        if whole:
            data = emit("Cast", "as-it-was", [data], dtype=dtype, to=np.dtype(dtype).type)
        final = graph.nodes[-1]
        if self.softmax == "last":
            moved = gs.Variable(f"{self.output}/upsampled", dtype)
            final.outputs[0] = moved
            graph.nodes.append(gs.Node(last.op, last.name, dict(last.attrs), [moved], outputs=[result]))
        else:
            final.outputs[0] = result
        if self.softmax:
            del graph.nodes[position(graph, last)]
        graph.outputs[graph.outputs.index(output)] = result

    def _resized(self, emit: Emitter, data: gs.Tensor, scales: np.ndarray[Any, Any], half: bool) -> gs.Tensor:
        attrs: dict[str, Any] = {
            "mode": "linear" if self.mode == "bilinear" else "nearest",
            "coordinate_transformation_mode": "half_pixel" if half else "asymmetric",
        }
        if self.mode == "nearest":
            attrs["nearest_mode"] = "round_prefer_floor"
        name = f"resized-{'half' if half else 'whole'}"
        empty = emit.constant(f"{name}/roi", np.zeros(0, np.float32))
        factors = emit.constant(f"{name}/scales", scales)
        return emit("Resize", name, [data, empty, factors], **attrs)

    def _cut(self, graph: gs.Graph, emit: Emitter, data: gs.Tensor, dims: Sequence[int]) -> gs.Tensor:
        """Cut the map to as many entries as the image has pixels."""
        window = self.window
        image = next(t for t in graph.inputs if t.name == window.input)
        places = [window.axes.index(letter) for letter in window.letters]
        sizes = emit("Shape", "image", [image], dtype=np.int64)
        pixels = emit("Gather", "pixels", [sizes, emit.ints("axes", places)], dtype=np.int64, axis=0)
        steps, starts = [axis.step for axis in self.axes], [axis.start for axis in self.axes]
        spans = emit("Mul", "spans", [pixels, emit.ints("steps", steps)], dtype=np.int64)
        ends = emit("Add", "ends", [spans, emit.ints("starts", starts)], dtype=np.int64)
        inputs = [data, emit.ints("from", starts), ends, emit.ints("dims", list(dims)), emit.ints("each", steps)]
        return emit("Slice", "pixels-of-the-image", inputs)

    def _plane(self, graph: gs.Graph, emit: Emitter, op: str, data: gs.Tensor) -> gs.Tensor:
        """A line as a plane of one row, or back."""
        if graph.opset >= 13:
            return emit(op, op.lower(), [data, emit.ints(f"{op.lower()}-axis", [2])])
        return emit(op, op.lower(), [data], axes=[2])

    def _shape(self, graph: gs.Graph, output: gs.Tensor) -> list[Any] | None:
        image = next(t for t in graph.inputs if t.name == self.window.input)
        spatial = [image.shape[self.window.axes.index(letter)] for letter in self.window.letters]
        return None if output.shape is None else [*output.shape[:2], *spatial]
