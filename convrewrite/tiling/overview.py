"""A map of classes, or of one value, as small as a page can show it; and how many cells each class has in the whole.

stored cells ──block by block──> best class ──every s-th──> small map
                                     └──────counted──────> cells of each class
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from convrewrite.tiling.store import Target, best_class, blocks, class_type, no_class

Array = np.ndarray[Any, Any]

LARGEST = 640
"""Cells of the longer side of the small map."""

NOTHING = -1
"""Stands in the small map for a cell without a class."""


@dataclass(frozen=True)
class Overview:
    """What a page shows of one output.

    Attributes:
        cells: rows and columns of the whole map. classes: of the model. small: every `step`-th cell: the number of its
            class or NOTHING; the value itself where there is one alone. counts: cells by class.
    """

    cells: tuple[int, int]
    classes: int
    small: Array
    counts: dict[int, int]
    step: int


def overview(array: Any, target: Target) -> Overview | None:
    """Look at the stored cells of one output, block by block; None where it is no map of two axes."""
    if len(target.shape) != 2 or math.prod(target.shape) == 0:
        return None
    rows, columns = target.shape
    step = -(-max(rows, columns) // LARGEST)
    values = target.values == 1 and not target.top1
    shape = (-(-rows // step), -(-columns // step))
    small = np.full(shape, np.nan) if values else np.full(shape, NOTHING)
    counts: dict[int, int] = {}
    for block in _planes(array):
        i, j = (side.start for side in block)
        part = np.asarray(array[(..., *block)])
        if not target.top1:
            part = part[0] if values else best_class(part, class_type(target.values))
        if not values:
            nothing = no_class(part.dtype.name)
            found, times = np.unique(part, return_counts=True)
            for number, count in zip(found.tolist(), times.tolist(), strict=True):
                known = NOTHING if number == nothing else number
                counts[known] = counts.get(known, 0) + count
            part = np.where(part == nothing, NOTHING, part.astype(int))
        kept = part[-i % step :: step, -j % step :: step]
        row, column = -(-i // step), -(-j // step)
        small[row : row + kept.shape[0], column : column + kept.shape[1]] = kept
    return Overview((rows, columns), target.values, small, counts, step=step)


def _planes(array: Any) -> Iterable[tuple[slice, ...]]:
    """The blocks of the stored array, by their place on the map alone: each is read with all of its values."""
    return {tuple((side.start, side.stop) for side in block[-2:]): block[-2:] for block in blocks(array)}.values()
