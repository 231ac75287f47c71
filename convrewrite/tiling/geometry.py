"""Which pixels of an image the cells of each output need: the arithmetic that makes tiles exact.

    image      0 ........ lo |~~~~~ crop ~~~~~| hi ........ end
    cells               start |== wanted ==| stop

A cell of stride t reads the pixels offset + i * t up to offset + i * t + size, padding included. A crop that has all of
these, or ends where the image ends, gives the cell that the whole image gives, if it begins at a multiple of every
stride in the network (the period): then each layer's cells, and its padding at the image's own border, lie as they lie
in the whole. A crop whose size is the image's less a multiple of the period has every map of it smaller by whole cells,
so that branches that meet in the whole image meet in the crop.

Sources: Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill 2019.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from convrewrite.engine.windows import Field
from convrewrite.errors import UsageError
from convrewrite.text import by, counted

Span = tuple[int, int]
"""First, and one past the last."""


@dataclass(frozen=True)
class Cells:
    """One axis of an output that is a map: so many cells of the whole image, and the field of each."""

    count: int
    field: Field

    @property
    def stride(self) -> int:
        """The distance from one cell to the next, in pixels."""
        return self.field.stride

    def needs(self, start: int, stop: int) -> Span:
        """The pixels that some cells read, as far beyond the image as their padding goes."""
        first = self.field.offset + start * self.stride
        return first, first + (stop - 1 - start) * self.stride + self.field.size


@dataclass(frozen=True)
class Pixels:
    """One axis of an output with a cell for every pixel, interpolated between the centres of windows.

    Attributes:
        count: of pixels. cells: that are interpolated. size, offset: of their windows.
    """

    count: int
    cells: Cells
    size: int
    offset: int

    @property
    def stride(self) -> int:
        """The distance from one cell to the next: one pixel."""
        return 1

    def needs(self, start: int, stop: int) -> Span:
        """The pixels that a range of cells needs; at the edges the first or last one is held."""
        first, last = self._place(start), self._place(stop - 1)
        lo, hi = self.cells.needs(math.floor(first), min(math.ceil(last) + 1, self.cells.count))
        return min(lo, start), max(hi, stop)

    def _place(self, pixel: int) -> float:
        """Where a pixel lies among the cells."""
        place = (pixel - self.offset - (self.size - 1) / 2) / self.cells.stride
        return min(max(place, 0.0), self.cells.count - 1.0)


Axis = Cells | Pixels


@dataclass(frozen=True)
class Tile:
    """One part of the work.

    Attributes:
        place: in the grid of tiles. cells: of each output and axis, in the whole. crop: of the image, per axis.
    """

    place: tuple[int, ...]
    cells: dict[str, tuple[Span, ...]]
    crop: tuple[Span, ...]


@dataclass(frozen=True)
class Geometry:
    """The axes of the outputs over one image.

    Attributes:
        size: of the image, per axis. period: the least common multiple of all strides of the network.
        outputs: their axes by name. fixed: the one size that the model takes, where it takes no other.
    """

    size: tuple[int, ...]
    period: tuple[int, ...]
    outputs: dict[str, tuple[Axis, ...]]
    fixed: tuple[int, ...] | None = None

    @property
    def unit(self) -> tuple[int, ...]:
        """Pixels by which tiles can begin: a multiple of every output's stride."""
        axes = zip(*self.outputs.values(), strict=True)
        return tuple(math.lcm(*(axis.stride for axis in of)) for of in axes)

    def units(self, tile: Sequence[int]) -> tuple[int, ...]:
        """A tile of so many cells of the first output (per axis, or one number for all); no more than there are.

        Raises:
            UsageError: it does not fit the axes.
        """
        rank = len(self.size)
        if len(tile) not in (1, rank) or min(tile) < 1:
            raise UsageError(f"a tile of {by(tile)} cells does not fit {counted(rank, 'axis')}")
        cells = tuple(tile) * (rank if len(tile) == 1 else 1)
        strides = [axis.stride for axis in next(iter(self.outputs.values()))]
        spans = zip(cells, strides, self.unit, self.counts([1] * rank), strict=True)
        return tuple(min(most, -(-n * s // unit)) for n, s, unit, most in spans)

    def counts(self, step: Sequence[int]) -> tuple[int, ...]:
        """Tiles per axis, where each has so many units."""
        axes = zip(*self.outputs.values(), strict=True)
        return tuple(
            max(-(-axis.count * axis.stride // (units * unit)) for axis in of)
            for of, units, unit in zip(axes, step, self.unit, strict=True)
        )

    def tile(self, place: Sequence[int], step: Sequence[int]) -> Tile:
        """One tile of `step` units per axis; at the end of the image it is smaller."""
        cells: dict[str, tuple[Span, ...]] = {}
        for name, axes in self.outputs.items():
            spans = []
            for axis, at, units, unit in zip(axes, place, step, self.unit, strict=True):
                per = units * unit // axis.stride
                spans.append((min(at * per, axis.count), min((at + 1) * per, axis.count)))
            cells[name] = tuple(spans)
        return Tile(tuple(place), cells, self.crop(cells))

    def check(self, step: Sequence[int]) -> None:
        """Raise ValueError where some tile has no crop: of a model of one size alone."""
        counts = self.counts(step)
        for axis, count in enumerate(counts if self.fixed is not None else ()):
            for place in range(count):
                self.tile([place if i == axis else 0 for i in range(len(counts))], step)

    def crop(self, cells: dict[str, tuple[Span, ...]]) -> tuple[Span, ...]:
        """The part of the image that gives these cells as the whole image does."""
        return tuple(self._crop(axis, cells) for axis in range(len(self.size)))

    def _crop(self, axis: int, cells: dict[str, tuple[Span, ...]]) -> Span:
        size, period = self.size[axis], self.period[axis]
        needs = []
        for name, spans in cells.items():
            output, (start, stop) = self.outputs[name][axis], spans[axis]
            start = min(start, output.count - 1)  # of an output that has no cell here, the nearest: the model gives it
            stop = max(stop, start + 1)
            first, last = output.needs(start, stop)
            # the crop's own cells have to begin and end around these, wherever their fields lie
            behind = 0 if self.fixed is not None else size - (output.count - stop) * output.stride
            needs.append((min(first, start * output.stride), max(last, behind)))
        first, last = min(first for first, _ in needs), max(last for _, last in needs)
        if self.fixed is not None:
            lo = max(0, first)
            return self._fixed(axis, lo - lo % period, last)
        least = min(size, max(b - a for a, b in (of[axis].needs(0, 1) for of in self.outputs.values())))
        lo = max(0, min(first, size - least))  # no operator has less than one field to run on
        lo -= lo % period
        hi = min(size, max(last, lo + least))
        return lo, size - (size - hi) // period * period

    def _fixed(self, axis: int, lo: int, hi: int) -> Span:
        """A crop of the one size that the model takes.

        Raises:
            ValueError: there is none that shows these cells what the whole image does.
        """
        size, period, fixed = self.size[axis], self.period[axis], (self.fixed or ())[axis]
        lo = min(lo, (size - fixed) // period * period)
        if lo < 0 or lo + fixed < min(hi, size) or (hi > size and lo + fixed != size):
            raise ValueError(f"no crop of {fixed} pixels, the one size that the model takes, shows pixels {lo} to {hi}")
        return lo, lo + fixed
