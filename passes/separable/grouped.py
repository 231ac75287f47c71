"""A weight [O, I / g, *kernel] seen as [g, O / g, I / g, *kernel], and its axes sorted into the sides of a matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from convrewrite.passes.separable.factors import Array, Rank
from convrewrite.passes.separable.lazy import lazy
from convrewrite.passes.separable.spectra import grams

Axes = tuple[int, ...]
Side = Sequence[str | int]


@dataclass(frozen=True)
class Grouped:
    """A weight and its number of groups. Spatial axes are counted from 0, whatever stands before them.

    Attributes:
        weight: [O, I / g, *kernel], any float type; converted to float64 only in parts.
    """

    weight: Array
    group: int

    @property
    def out(self) -> int:
        """The number of output channels of the whole convolution."""
        return int(self.weight.shape[0])

    @property
    def inputs(self) -> int:
        """The number of input channels of the whole convolution."""
        return int(self.weight.shape[1]) * self.group

    @property
    def outs_each(self) -> int:
        """The number of output channels of one group."""
        return self.out // self.group

    @property
    def inputs_each(self) -> int:
        """The number of input channels of one group."""
        return int(self.weight.shape[1])

    @property
    def kernel(self) -> tuple[int, ...]:
        """The extents of the kernel."""
        return tuple(int(extent) for extent in self.weight.shape[2:])

    @property
    def axes(self) -> Axes:
        """The indices of all spatial axes."""
        return tuple(range(len(self.kernel)))

    @lazy
    def norm(self) -> float:
        """The Frobenius norm of the weight."""
        return math.sqrt(sum(float(np.sum(np.square(filters, dtype=np.float64))) for filters in self.weight))

    def extents(self, axes: Axes) -> tuple[int, ...]:
        """The kernel of a stage that owns these axes: 1 on the others."""
        return tuple(extent if axis in axes else 1 for axis, extent in enumerate(self.kernel))

    def size(self, axes: Axes) -> int:
        """The number of cells of the kernel."""
        return math.prod(self.extents(axes))

    @lazy
    def input_gram(self) -> Array:
        """[g, I / g, I / g]: inner products of the kernels of each two channels in."""
        return grams(self.sorted_into("g", "i", ("o", *self.axes)))

    @lazy
    def output_gram(self) -> Array:
        """[g, O / g, O / g]: inner products of each two filters."""
        return grams(self.sorted_into("g", "o", ("i", *self.axes)))

    def sorted_into(self, *sides: Side) -> Array:
        """The weight with its axes in another order, each side's axes made one, in its own type.

        Args:
            sides: "g", "o", "i" for groups, channels out and in of a group, numbers for the spatial axes. Axes of
                extent 1 may be left out.
        """
        view = self.weight.reshape(self.group, self.outs_each, self.inputs_each, *self.kernel)
        places = {"g": 0, "o": 1, "i": 2}
        order = [[places[a] if isinstance(a, str) else 3 + a for a in side] for side in sides]
        extents = [math.prod(view.shape[place] for place in side) for side in order]
        named = [place for side in order for place in side]
        left_out = [place for place in range(view.ndim) if place not in named]
        return view.transpose(named + left_out).reshape(extents)


def checked(rank: Rank, full: Rank) -> Rank:
    """The rank, if a decomposition of this rank exists."""
    if len(rank) != len(full) or not all(1 <= number <= top for number, top in zip(rank, full, strict=True)):
        raise ValueError(f"rank {rank} is not between {tuple(1 for _ in full)} and {full}")
    return rank
