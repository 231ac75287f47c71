"""Axes as products of atoms: what Reshape, Transpose, Flatten and Squeeze do to the meaning of a tensor.

An *atom* is one indivisible axis of meaning: the batch, a channel axis (or a factor of one), a row or column axis of
the image. The axes of a tensor are products of atoms, so that the four operators above need no case each:

    [N, C, H, W]   = (N) (C) (H) (W)
    Flatten        = (N) (C H W)            an NCHW flatten: FC weights are ordered C, H, W
    Transpose      = (N) (H) (W) (C)
    then Reshape   = (N) (H W C)            an NHWC flatten: FC weights are ordered H, W, C
    channel shuffle: (N) (C) (H) (W) -> (N) (C1) (C2) (H) (W) -> (N) (C2) (C1) (H) (W) -> (N) (C2 C1) (H) (W)

Extents are those of the native input size. Atoms of extent 1 come and go freely in a Reshape.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

_labels = itertools.count()

SAMPLE = 61
"""Stands for a batch without a number: a prime, so that extents which are made of it can be told from the others."""


@dataclass(frozen=True)
class Atom:
    """One indivisible axis of meaning.

    Attributes:
        letter: "N" batch, "C" channels, any other letter a spatial axis of the image ("H", "W", "L", "D").
        extent: number of entries at the native input size.
        label: tells two atoms of the same letter apart.
    """

    letter: str
    extent: int
    label: int = field(default_factory=lambda: next(_labels))

    @property
    def spatial(self) -> bool:
        """Whether this is a row, column, depth or time axis of the image."""
        return self.letter not in "NC"


Axis = tuple[Atom, ...]
Layout = tuple[Axis, ...]


def channels(extent: int) -> Atom:
    """Make a new channel atom."""
    return Atom("C", extent)


def atoms(layout: Iterable[Axis]) -> tuple[Atom, ...]:
    """All atoms of a layout, in order."""
    return tuple(itertools.chain.from_iterable(layout))


def extent(axis: Iterable[Atom]) -> int:
    """The number of entries of an axis at the native size."""
    return math.prod(atom.extent for atom in axis)


def shape(layout: Layout) -> tuple[int, ...]:
    """The native shape of a tensor that has this layout."""
    return tuple(extent(axis) for axis in layout)


def letters(layout: Layout) -> tuple[str, ...]:
    """One string of letters per axis, without atoms of extent 1 except where an axis has nothing else."""

    def name(axis: Axis) -> str:
        text = "".join(a.letter for a in axis if a.extent > 1) or "".join(a.letter for a in axis[:1])
        return "".join(letter for letter, _ in itertools.groupby(text))

    return tuple(name(axis) for axis in layout)


def channel_factors(layout: Layout) -> tuple[int, ...]:
    """Extents of the letters C that `letters` writes, in order."""
    factors: list[int] = []
    for axis in layout:
        real = [a for a in axis if a.extent > 1] or list(axis[:1])
        for letter, group in itertools.groupby(real, key=lambda a: a.letter):
            if letter == "C":
                factors.append(extent(group))
    return tuple(factors)


def only(axis: Iterable[Atom], letter: str) -> bool:
    """Whether an axis holds no atom but those of that letter (an empty axis holds none)."""
    return all(atom.letter == letter for atom in axis)


def large(axis: Iterable[Atom]) -> tuple[Atom, ...]:
    """The spatial atoms whose extent is above 1."""
    return tuple(atom for atom in axis if atom.spatial and atom.extent > 1)


def substitute(layout: Layout, parts: Mapping[Atom, Axis]) -> Layout:
    """Replace each atom by its factors."""
    return tuple(atoms(parts.get(atom, (atom,)) for atom in axis) for axis in layout)


def regroup(layout: Layout, new_shape: Sequence[int]) -> tuple[Layout, dict[Atom, Axis]] | None:
    """The layout after a Reshape to `new_shape`, with the channel atoms that had to be split.

    Atoms are dealt out in order. Only channel atoms may be split: half an image row has no meaning at another size.
    Atoms of extent 1 are dropped, so an axis of extent 1 is empty.

    Returns:
        (new layout, {atom: its factors}), or None where an axis boundary cuts a batch or spatial atom.
    """
    queue = [atom for atom in atoms(layout) if atom.extent != 1]
    if math.prod(a.extent for a in queue) != math.prod(new_shape):
        return None
    splits: dict[Atom, Axis] = {}
    result: list[Axis] = []
    for wanted in new_shape:
        axis: list[Atom] = []
        missing = wanted
        while missing > 1:
            atom = queue.pop(0)
            if missing % atom.extent:
                rest, remainder = divmod(atom.extent, missing)
                if atom.letter != "C" or remainder:
                    return None
                front, back = channels(missing), channels(rest)
                _record_split(splits, atom, (front, back))
                queue.insert(0, back)
                atom = front
            axis.append(atom)
            missing //= atom.extent
        result.append(tuple(axis))
    return tuple(result), splits


def _record_split(splits: dict[Atom, Axis], atom: Atom, factors: Axis) -> None:
    """Note that `atom` falls into `factors`, also inside the atom that it was itself split from."""
    for whole, parts in splits.items():
        if atom in parts:
            place = parts.index(atom)
            splits[whole] = parts[:place] + factors + parts[place + 1 :]
            return
    splits[atom] = factors
