"""What is known of a tensor while the number of images is a symbol: where the images lie in it, if it has any.

Free        the same numbers whatever the images are, and however many
Each        every image has its part, which depends on that image alone:  [.., (before) images (after), ..]
Counts      whole numbers, some of which are a multiple of the number of images
Lost        something else, which nothing may read

The images of a tensor `Each` lie along one axis, and are no more than a factor of it: [N * heads, S, D] has them at
axis 0, with 1 before and `heads` behind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convrewrite.engine.axes import Atom, Axis, Layout, channels, extent, regroup

Shape = tuple[int, ...]
Whole = np.ndarray[Any, np.dtype[Any]]


class Stop(Exception):
    """The batch cannot be opened: the code of the reason, and the words for it."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = f"open-batch/{code}"
        self.detail = detail


@dataclass(frozen=True)
class Images:
    """The number of images: `native` of them in the file; `atom` stands for any number, as a prime that nothing has."""

    native: int
    atom: Atom


@dataclass(frozen=True)
class Free:
    """It does not depend on the images, nor on how many there are."""


@dataclass(frozen=True)
class Each:
    """Every image has its part.

    Attributes:
        shape: with the file's number of images. place: the axis along which the images lie.
        before, after: entries of that axis outside and inside of an image.
    """

    shape: Shape
    place: int
    before: int = 1
    after: int = 1

    @property
    def alone(self) -> bool:
        """Whether the axis of the images has nothing else."""
        return self.before == self.after == 1

    @property
    def axis(self) -> tuple[int, int]:
        """The atoms that the axis has beside the images."""
        return self.before, self.after

    def layout(self, images: Images) -> Layout:
        """The axes, as products of atoms."""
        axes: list[Axis] = [(channels(size),) for size in self.shape]
        axes[self.place] = tuple(
            atom for atom in (channels(self.before), images.atom, channels(self.after)) if atom.extent > 1
        )
        return tuple(axes)

    def wide(self, images: Images) -> Shape:
        """The shape with as many images as the atom stands for."""
        return tuple(extent(axis) for axis in self.layout(images))

    def along(self, shape: Sequence[int], place: int) -> Each:
        """Another tensor whose axis `place` is the axis of the images here."""
        return Each(tuple(shape), place, self.before, self.after)


@dataclass(frozen=True)
class Count:
    """A multiple of a power of the number of images."""

    factor: int
    power: int

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, Count):
            return Count(self.factor * other.factor, self.power + other.power)
        return Count(self.factor * int(other), self.power) if int(other) else 0

    __rmul__ = __mul__


@dataclass(frozen=True)
class Counts:
    """Whole numbers: an array of `int` and `Count`."""

    values: Whole


@dataclass(frozen=True)
class Lost:
    """Nothing may read it; `why` says so, and `code` is that of the reason."""

    why: str
    code: str = "no-rule"


State = Free | Each | Counts | Lost


def regrouped(state: Each, wide: Sequence[int], native: Sequence[int], images: Images) -> Each | None:
    """Where the images lie after a Reshape to `wide`, the shape that it has with many; None where it cuts an image."""
    if 0 in (*wide, *state.shape):
        return None
    found = regroup(state.layout(images), wide)
    if found is None:
        return None
    for place, axis in enumerate(found[0]):
        if images.atom in axis:
            at = axis.index(images.atom)
            return Each(tuple(native), place, extent(axis[:at]), extent(axis[at + 1 :]))
    return None


def told_shape(told: Sequence[int], old: Sequence[int], *, zero_copies: bool = True) -> Shape | None:
    """What a Reshape makes of `told`, with its 0 and -1; None where the entries do not fit."""
    shape = [old[i] if v == 0 and zero_copies and i < len(old) else v for i, v in enumerate(told)]
    total, known = math.prod(old), math.prod(v for v in shape if v != -1)
    if shape.count(-1) > 1 or any(v < -1 for v in shape) or known == 0:
        return None
    if -1 in shape:
        if total % known:
            return None
        shape[shape.index(-1)] = total // known
    return tuple(shape) if math.prod(shape) == total else None
