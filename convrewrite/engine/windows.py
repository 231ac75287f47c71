"""Which pixels an output cell looks at: receptive fields, sliding windows, and when the two agree.

A classifier for images of one size becomes a fully convolutional network whose output cell ``i`` stands for the
window that starts at pixel ``offset + i * stride`` and is as large as the classifier's native input:

    image    |---------------- any size ----------------|
    cell 0   |== window ==|
    cell 1      |== window ==|
    cell 2         |== window ==|
              <-> stride

Whether cell ``i`` *equals* the classifier on that crop is a property of the trunk. It does where every operator
commutes with a shift of the image and none sees padding; then the equivalence is `windows`. One operator without a
rule here makes the model `native-size`: equal at the native size, a different (measured) function of the crop beyond.

Receptive-field arithmetic after Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural
Networks", Distill 2019, per axis.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import onnx_graphsurgeon as gs

from convrewrite.engine.operators import chosen
from convrewrite.errors import UsageError

METADATA_KEY = "convrewrite.window"

UPSAMPLED_KEY = "convrewrite.upsampled"
"""Metadata entry of a model whose cells are pixels: how they came to be, and the windows that were interpolated."""

ELEMENTWISE = chosen("unary broadcast cast-like quantizer")
"""Operators whose result at a cell depends on the operands at that cell alone (broadcasting aside)."""

LETTERS = ("L", "HW", "DHW")
"""Spatial axes of sound, images and volumes."""

CHANNEL_WISE = chosen(
    """matrix reduction search softmax batch-norm layer-norm channel-norm axis-norm axes-norm concat gather slice split
    top"""
)
"""Operators that mix channels of one cell; the caller vouches that they do not run over a spatial axis."""

SLIDING = chosen("convolution integer-convolution pool")
"""Operators that slide a kernel: they keep the window property where no native window sees their padding."""

REARRANGING = chosen("reshape transpose repeat SpaceToDepth")
"""Operators that only move cells about, keeping each spatial axis whole."""


def keeps_windows(
    op: str, *, over_space: bool = False, sees_padding: bool = False, beyond_map: bool = False
) -> str | None:
    """Say why an operator breaks the window property, or None where it keeps it: the allow-list of the project.

    Args:
        op: ONNX operator type.
        over_space: the operator runs over a spatial axis as a whole (a Softmax over the width, a global mean).
        sees_padding: at the native size some window of the operator covers a padded cell.
        beyond_map: the last window of a pool in ceil_mode is not full.
    """
    if over_space:
        return f"{op} runs over the spatial axes as a whole"
    if sees_padding:
        return f"{op} sees zero padding at the native size"
    if beyond_map:
        return f"{op} ends on a window that is partly beyond the map (ceil_mode)"
    if op in ELEMENTWISE | CHANNEL_WISE | SLIDING | REARRANGING:
        return None
    return f"{op} has no window rule"


@dataclass(frozen=True)
class Field:
    """The receptive field of the cells of one tensor along one spatial axis, in pixels of the input.

    Cell ``i`` depends on pixels ``offset + i * stride`` up to, not including, ``offset + i * stride + size``.
    """

    stride: int = 1
    size: int = 1
    offset: int = 0

    def slide(self, kernel: int, stride: int = 1, dilation: int = 1, pad_begin: int = 0) -> Field:
        """The field after a convolution or pooling with that kernel."""
        return Field(
            stride=self.stride * stride,
            size=self.size + (kernel - 1) * dilation * self.stride,
            offset=self.offset - pad_begin * self.stride,
        )

    def union(self, other: Field) -> Field:
        """The field of a cell that looks at both (the strides have been brought to one)."""
        begin = min(self.offset, other.offset)
        end = max(self.offset + self.size, other.offset + other.size)
        return Field(max(self.stride, other.stride), end - begin, begin)


@dataclass(frozen=True)
class OutputGrid:
    """How one output of the rewritten model relates to the original's output.

    Attributes:
        stride: pixels of the input between neighbouring cells, per spatial axis.
        size: cells that the original's output has per spatial axis at the native size ((1, 1) for a classifier).
        layout: the original output's axes as products of the letters N, C and the spatial letters; "" is an axis of
            extent 1. ("N", "C") for class scores, ("N", "CHW") for a flattened map, ("N", "H", "W", "C") for NHWC.
        channels: extents of the letters C, where there are several: [N, 10, 2] scores are ("N", "C", "C") and (10, 2).
            The K channels of the new output are their product, in that order.
    """

    stride: tuple[int, ...]
    size: tuple[int, ...]
    layout: tuple[str, ...] = ("N", "C")
    channels: tuple[int, ...] = ()


@dataclass(frozen=True)
class CutTensor:
    """A spatial tensor of the original model from which its head starts.

    Attributes:
        name: of the tensor in the original graph.
        layout: its axes there, e.g. ("N", "C", "H", "W").
        size: native extents per spatial axis. stride: pixels of the input between neighbouring cells.
    """

    name: str
    layout: tuple[str, ...]
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Window:
    """What the cells of a fully convolutional model's outputs mean; stored in the model's metadata.

    All tuples have one entry per spatial axis, in the order of the spatial letters in `axes`.

    Attributes:
        input: name of the image input.
        axes: letters of the input's axes, "NCHW", "NHWC", "NCL", "HWC", ...
        size: the window: the native input size of the original, in pixels.
        stride: pixels between neighbouring windows. offset: first pixel of window 0.
        receptive_field: pixels that one cell can depend on; smaller or larger (with padding) than the window.
        equivalence: "windows" (each cell equals the original on its crop) or "native-size".
        why: for native-size, the operator that breaks the window property.
        outputs: every output that depends on the image.
        coarse: the stride before `dense` made it finer, and then a map may have up to coarse / stride - 1 more cells
            behind the last window; () where it did not.
        beside: further inputs on the same grid, whose windows move with those of `input`, with the letters of their
            axes: a mask, coordinates, a second signal.
    """

    input: str
    axes: str
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: tuple[int, ...]
    receptive_field: tuple[int, ...]
    equivalence: str
    why: str = ""
    outputs: Mapping[str, OutputGrid] = field(default_factory=dict)
    coarse: tuple[int, ...] = ()
    beside: Mapping[str, str] = field(default_factory=dict)

    @property
    def images(self) -> dict[str, str]:
        """The letters of the axes of every input that has the grid of pixels, the image's first."""
        return {self.input: self.axes, **self.beside}

    def places(self, name: str) -> tuple[int, ...]:
        """The dimensions of the spatial axes of one of `images`, in the order of `letters`."""
        return tuple(self.images[name].index(letter) for letter in self.letters)

    def at_size(self, name: str, shape: Sequence[Any], size: Sequence[int]) -> list[Any]:
        """The shape of an input where the image has that size; that of an input off the grid stays."""
        dims = list(shape)
        for place, extent in zip(self.places(name), size, strict=True) if name in self.images else ():
            dims[place] = extent
        return dims

    @property
    def letters(self) -> str:
        """The spatial letters in order: "HW", "L", "DHW"."""
        return "".join(a for a in self.axes if a not in "NC")

    @property
    def factor(self) -> tuple[int, ...]:
        """Cells per step of the stride before `dense`; ones where it was not made finer."""
        return tuple(a // b for a, b in zip(self.coarse or self.stride, self.stride, strict=True))

    def denser(self, stride: Sequence[int]) -> Window:
        """The window of a model whose strides were reduced to these."""
        grids = {name: replace(grid, stride=tuple(stride)) for name, grid in self.outputs.items()}
        return replace(self, stride=tuple(stride), outputs=grids, coarse=self.coarse or self.stride)

    def positions(self, image_size: Sequence[int]) -> tuple[int, ...]:
        """Number of whole windows per axis in an image of that size (0 where the image is smaller)."""
        triples = zip(image_size, self.size, self.stride, strict=True)
        return tuple(max(0, (image - window) // stride + 1) for image, window, stride in triples)

    def image_size(self, positions: Sequence[int]) -> tuple[int, ...]:
        """The smallest image with that many windows per axis: native + (positions - 1) * stride."""
        triples = zip(positions, self.size, self.stride, strict=True)
        return tuple(window + (count - 1) * stride for count, window, stride in triples)

    def to_json(self) -> str:
        """The metadata text. An output is listed where it differs from a [N, K] classifier on the window grid."""
        plain = OutputGrid(self.stride, (1,) * len(self.size))
        outputs: dict[str, dict[str, Any]] = {}
        for name, grid in self.outputs.items():
            entry: dict[str, Any] = {}
            if grid.stride != plain.stride or grid.size != plain.size:
                entry = {"stride": list(grid.stride), "size": list(grid.size)}
            if grid.layout != plain.layout:
                entry["layout"] = list(grid.layout)
            if len(grid.channels) > 1:
                entry["channels"] = list(grid.channels)
            outputs[name] = entry
        return json.dumps(
            {
                "input": self.input,
                "axes": self.axes,
                "size": list(self.size),
                "stride": list(self.stride),
                "offset": list(self.offset),
                "receptive_field": list(self.receptive_field),
                "equivalence": self.equivalence,
                "why": self.why,
                "outputs": outputs,
                **({"coarse": list(self.coarse)} if self.coarse else {}),
                **({"beside": dict(self.beside)} if self.beside else {}),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Window:
        """Read the metadata text; raises UsageError where it is not what `to_json` writes."""
        try:
            data = json.loads(text)
            size, stride = _extents(data["size"]), _extents(data["stride"])
            outputs = {
                name: OutputGrid(
                    stride=_extents(entry.get("stride", stride)),
                    size=_extents(entry.get("size", (1,) * len(size))),
                    layout=tuple(map(_text, entry.get("layout", ("N", "C")))),
                    channels=_extents(entry.get("channels", ())),
                )
                for name, entry in data["outputs"].items()
            }
            window = cls(
                input=_text(data["input"]),
                axes=_text(data["axes"]),
                size=size,
                stride=stride,
                offset=_extents(data["offset"]),
                receptive_field=_extents(data["receptive_field"]),
                equivalence=_text(data["equivalence"]),
                why=_text(data.get("why", "")),
                outputs=outputs,
                coarse=_extents(data.get("coarse", ())),
                beside={_text(name): _text(axes) for name, axes in data.get("beside", {}).items()},
            )
            window._check()
            return window
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise _damaged(
                f"it lacks {error}" if isinstance(error, KeyError) else "it is not what fcn writes"
            ) from None

    def _check(self) -> None:
        """Raise ValueError where the entries contradict each other."""
        lists = self.size, self.stride, self.offset, self.receptive_field
        letters = self.letters
        if letters not in LETTERS or sorted(self.axes) != sorted(set(self.axes)):
            raise ValueError(f"{self.axes!r} are no axes")
        for axes in self.beside.values():
            if sorted(axes) != sorted(set(axes)) or set(axes) - {*"NC"} != set(letters):
                raise ValueError(f"{axes!r} are no axes on the grid of {self.axes!r}")
        if any(len(entries) != len(letters) for entries in lists):
            raise ValueError(f"{self.axes!r} does not have the axes of {lists}")
        for name, grid in self.outputs.items():
            if len(grid.stride) != len(letters) or len(grid.size) != len(letters):
                raise ValueError(f"output {name!r} does not have the axes of {self.axes!r}")
            if min(*grid.stride, *grid.size, *grid.channels, 1) < 1 or set("".join(grid.layout)) - {*"NC", *letters}:
                raise ValueError(f"output {name!r} is no grid")
        if min(*self.size, *self.stride, *self.receptive_field, *self.coarse) < 1:
            raise ValueError("a size or stride is not positive")
        if self.coarse and any(a % b for a, b in zip(self.coarse, self.stride, strict=True)):
            raise ValueError("the stride does not divide the coarse one")
        if self.equivalence not in ("windows", "native-size"):
            raise ValueError(f"equivalence {self.equivalence!r}")

    def of_graph(self, graph: gs.Graph) -> Window:
        """Itself. Raises UsageError where it speaks of inputs or outputs that a graph does not have."""
        shapes = {tensor.name: tensor.shape for tensor in graph.inputs}
        for name, axes in self.images.items():
            if name not in shapes or (shapes[name] is not None and len(shapes[name]) != len(axes)):
                raise _damaged("it speaks of an input that the model does not have")
        if not self.outputs.keys() <= {tensor.name for tensor in graph.outputs}:
            raise _damaged("it speaks of an output that the model does not have")
        return self

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], graph: gs.Graph | None = None) -> Window | None:
        """The window of a model that `fcn` wrote, or None for any other model.

        Args:
            metadata: of the model. graph: of it, where the window is more than a guess.

        Raises:
            UsageError: the entry is damaged, or does not belong to the graph.
        """
        if METADATA_KEY not in metadata:
            return None
        found = cls.from_json(metadata[METADATA_KEY])
        return found if graph is None else found.of_graph(graph)

    @classmethod
    def interpolated(cls, metadata: Mapping[str, str]) -> Window | None:
        """The window whose cells were interpolated to pixels, or None for any other model; raises UsageError."""
        if UPSAMPLED_KEY not in metadata:
            return None
        try:
            return cls.from_json(json.dumps(json.loads(metadata[UPSAMPLED_KEY])["window"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            raise _damaged("it is not what fcn writes", UPSAMPLED_KEY) from None


def _damaged(why: str, key: str = METADATA_KEY) -> UsageError:
    remedy = "convert the original model again with 'convrewrite fcn'"
    return UsageError(f"the model's metadata entry {key} is damaged: {why}", remedy=remedy)


def _extents(values: object) -> tuple[int, ...]:
    """A JSON list of whole numbers that a tensor's extent can be."""
    if not isinstance(values, list | tuple) or not all(type(value) is int and abs(value) < 2**31 for value in values):
        raise TypeError(f"{str(values)[:40]} is no list of extents")
    return tuple(values)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{str(value)[:40]} is no text")
    return value
