"""Where the cells go: a Zarr group with an array for each output, chunked by tile, and a list of tiles that are done.

    OUT/<output>   [K, H', W'] float32, or with top1 [H', W'], the number of the best class; named as in the model
    OUT/done       one entry per tile: 1 once all of its chunks are written
    attributes     the plan: model, image, tiles, preparation; and of each array stride, offset and window

A tile is done only after its chunks are in place, and each chunk is a file of its own that appears whole: after a crash
what is not marked is computed again.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convrewrite.errors import UsageError
from convrewrite.tiling.extra import library
from convrewrite.tiling.geometry import Geometry, Tile

Array = np.ndarray[Any, Any]

DONE = "done"
PLAN = "convrewrite.plan"


@dataclass(frozen=True)
class Target:
    """The array of one output.

    Attributes:
        name: of the array. top1: the number of the best class in the place of all values. values: entries per cell.
        shape: of the cells. chunk: cells per tile. dtype: of what is stored. attributes: what the cells mean.
    """

    name: str
    top1: bool
    values: int
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: str
    attributes: Mapping[str, Any]

    def of(self, cells: Array) -> Array:
        """What is stored of cells [K, *cells]."""
        return cells.argmax(axis=0).astype(self.dtype) if self.top1 else cells


@dataclass(frozen=True)
class Store:
    """The group at `url`, and its arrays by output."""

    url: str
    targets: Mapping[str, Target]
    counts: tuple[int, ...]

    def create(self, plan: Mapping[str, Any], *, overwrite: bool) -> None:
        """Make the group and its arrays, which are empty. Raises UsageError where they cannot be made."""
        zarr = library("zarr")
        try:
            group = zarr.open_group(self.url, mode="w" if overwrite else "w-")
            for target in self.targets.values():
                ahead = () if target.top1 else (target.values,)
                array = group.create_array(
                    target.name,
                    shape=(*ahead, *target.shape),
                    chunks=(*ahead, *target.chunk),
                    dtype=target.dtype,
                    dimension_names=[*(("c",) if ahead else ()), *"zyx"[-len(target.shape) :]],
                )
                array.attrs.update(target.attributes)
            group.create_array(DONE, shape=(math.prod(self.counts),), chunks=(1,), dtype="uint8")
            group.attrs[PLAN] = dict(plan)
        except Exception as error:  # each kind of store has errors of its own
            text = " ".join(str(error).split())[:200]
            raise UsageError(f"cannot write {self.url}: {text}", remedy="choose another OUT") from None

    def open(self) -> Any:
        """The group, to be written to."""
        return library("zarr").open_group(self.url, mode="r+")

    def tidy(self) -> None:
        """Remove what a process that was killed in the middle of a chunk has left; of a store in a folder."""
        for path in Path(self.url).rglob("*.partial") if "://" not in self.url else ():
            path.unlink(missing_ok=True)

    def number(self, place: Sequence[int]) -> int:
        """Of a tile."""
        return int(np.ravel_multi_index(tuple(place), self.counts))

    def write(self, group: Any, tile: Tile, cells: Mapping[str, Array]) -> None:
        """Write a tile: its chunks, then that it is done."""
        for output, target in self.targets.items():
            spans = tile.cells[output]
            if all(start < stop for start, stop in spans):
                index = tuple(slice(start, stop) for start, stop in spans)
                group[target.name][index if target.top1 else (slice(None), *index)] = target.of(cells[output])
        group[DONE][self.number(tile.place)] = 1

    def left(self) -> list[tuple[int, ...]]:
        """Places of the tiles that are not done."""
        done = np.asarray(self.open()[DONE][:])
        return [tuple(int(i) for i in np.unravel_index(n, self.counts)) for n in np.flatnonzero(done == 0)]


def stored_plan(url: str) -> dict[str, Any] | None:
    """The plan of a group that is there already; None where there is none."""
    zarr = library("zarr")
    try:
        group = zarr.open_group(url, mode="r")
    except Exception:  # not there, or no group: each kind of store says so in its own way
        return None
    plan = group.attrs.get(PLAN)
    return dict(plan) if isinstance(plan, Mapping) else None


def same_plan(stored: Mapping[str, Any], plan: Mapping[str, Any]) -> list[str]:
    """Names of what differs between two plans."""
    mine, theirs = (json.loads(json.dumps(p)) for p in (plan, stored))
    return sorted(name for name in {*mine, *theirs} if mine.get(name) != theirs.get(name))


def targets(
    geometry: Geometry,
    step: Sequence[int],
    values: Mapping[str, int],
    dtypes: Mapping[str, np.dtype[Any]],
    attributes: Mapping[str, Mapping[str, Any]],
    *,
    top1: bool,
) -> dict[str, Target]:
    """The arrays of all outputs; their names are the outputs', as far as a file can have them."""
    found: dict[str, Target] = {}
    taken: set[str] = {DONE}
    for output, axes in geometry.outputs.items():
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", output).strip("._") or "output"
        while name in taken:
            name += "_"
        taken.add(name)
        shape = tuple(axis.count for axis in axes)
        spans = zip(axes, step, geometry.unit, strict=True)
        chunk = tuple(min(n, s * u // axis.stride) for n, (axis, s, u) in zip(shape, spans, strict=True))
        best = top1 and values[output] > 1
        kind = ("uint8" if values[output] <= 256 else "uint16" if values[output] <= 65536 else "int32") if best else ""
        stored = kind or dtypes[output].name
        found[output] = Target(name, best, values[output], shape, chunk, stored, attributes[output])
    return found
