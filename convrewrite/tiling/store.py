"""Where the cells go: a Zarr group with an array for each output, chunked by tile, and a list of tiles that are done.

    OUT/<output>   [K, H', W'] float32, or with top1 [H', W'], the number of the best class; named as in the model
    OUT/seen       for each tile a hash of the pixels that it was computed from
    OUT/done       one entry per tile: 1 once all of its chunks are written
    attributes     the plan: model, image, tiles, preparation; and of each array stride, offset and window

A tile is done only after its chunks are in place, and each chunk is a file of its own that appears whole: after a crash
what is not marked is computed again.

With top1 the largest number of the type is no class: 255 of uint8 (up to 255 classes), 65535 of uint16, 2147483647 of
int32. It stands where a score is NaN, so that no class is the best, and where nothing has been computed yet; the
attribute `no_class` of the array names it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convrewrite.errors import UsageError
from convrewrite.text import as_line, parameter
from convrewrite.tiling.extra import library
from convrewrite.tiling.geometry import Geometry, Tile

Array = np.ndarray[Any, Any]

DONE = "done"
SEEN = "seen"
PLAN = "convrewrite.plan"

HASH = 16
"""Bytes of the hash of a tile's pixels."""


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
        """The part of the cells [K, *cells] that is stored."""
        return best_class(cells, self.dtype) if self.top1 else cells

    @property
    def nothing(self) -> int | None:
        """What stands for a cell without a class; None where values are stored."""
        return no_class(self.dtype) if self.top1 else None


def class_type(values: int) -> str:
    """The smallest type for numbers of so many classes, and one for none of them."""
    return "uint8" if values <= 255 else "uint16" if values <= 65535 else "int32"


def no_class(dtype: str) -> int:
    """The number that stands for "no class"."""
    return int(np.iinfo(dtype).max)


def best_class(cells: Array, dtype: str) -> Array:
    """The number of the best class of cells [K, *cells], the first of equals; none where a score is NaN."""
    best: Array = cells.argmax(axis=0).astype(dtype)
    if cells.dtype.kind == "f":
        best[np.isnan(cells).any(axis=0)] = no_class(dtype)
    return best


def hashed(pixels: Array) -> Array:
    """A hash of pixels as they were read: their type, their shape and every value."""
    digest = hashlib.blake2b(f"{pixels.dtype.str} {pixels.shape}".encode(), digest_size=HASH)
    digest.update(np.ascontiguousarray(pixels).data)
    return np.frombuffer(digest.digest(), np.uint8)


def blocks(array: Any) -> Iterator[tuple[slice, ...]]:
    """The chunks of an array in the store."""
    counts = [-(-extent // chunk) for extent, chunk in zip(array.shape, array.chunks, strict=True)]
    for place in np.ndindex(*counts):
        yield tuple(slice(i * c, min((i + 1) * c, n)) for i, c, n in zip(place, array.chunks, array.shape, strict=True))


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
                    fill_value=0 if target.nothing is None else target.nothing,
                    dimension_names=[*(("c",) if ahead else ()), *"zyx"[-len(target.shape) :]],
                )
                array.attrs.update(target.attributes)
            tiles = math.prod(self.counts)
            group.create_array(SEEN, shape=(tiles, HASH), chunks=(1, HASH), dtype="uint8")
            group.create_array(DONE, shape=(tiles,), chunks=(1,), dtype="uint8")
            group.attrs[PLAN] = dict(plan)
        except Exception as error:  # each kind of store has errors of its own
            text = as_line(error)[:200]
            raise UsageError(f"cannot write {self.url}: {text}", remedy="choose another OUT") from None

    def open(self) -> Any:
        """Open the Zarr group for writing."""
        return library("zarr").open_group(self.url, mode="r+")

    def tidy(self) -> None:
        """Remove what a process that was killed in the middle of a chunk has left; of a store in a folder."""
        for path in Path(self.url).rglob("*.partial") if "://" not in self.url else ():
            path.unlink(missing_ok=True)

    def number(self, place: Sequence[int]) -> int:
        """The number of a tile."""
        return int(np.ravel_multi_index(tuple(place), self.counts))

    def write(self, group: Any, tile: Tile, cells: Mapping[str, Array], seen: Array) -> None:
        """Write a tile: its chunks, the hash of the pixels that they were computed from, then that it is done."""
        for output, target in self.targets.items():
            spans = tile.cells[output]
            if all(start < stop for start, stop in spans):
                index = tuple(slice(start, stop) for start, stop in spans)
                group[target.name][index if target.top1 else (slice(None), *index)] = target.of(cells[output])
        group[SEEN][self.number(tile.place)] = seen
        group[DONE][self.number(tile.place)] = 1

    def seen(self, group: Any, place: Sequence[int]) -> Array:
        """The hash of the pixels that a tile was computed from."""
        return np.asarray(group[SEEN][self.number(place)])

    def every(self) -> list[tuple[int, ...]]:
        """The places of all tiles."""
        return [tuple(int(i) for i in place) for place in np.ndindex(*self.counts)]

    def places(self) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        """Places of the tiles that are done, and of those that are not. Raises UsageError for a damaged store."""
        try:
            group = self.open()
            done = np.asarray(group[DONE][:])
            if done.shape != (math.prod(self.counts),) or group[SEEN].shape != (done.size, HASH):
                raise ValueError("it has another number of tiles")
        except Exception as error:  # each kind of store has errors of its own
            text = as_line(error)[:200]
            raise UsageError(
                f"{self.url} is damaged: {text}", remedy=f"give {parameter('overwrite')} to begin anew"
            ) from None
        numbers = np.flatnonzero(done != 0), np.flatnonzero(done == 0)
        first, second = ([tuple(int(i) for i in np.unravel_index(n, self.counts)) for n in of] for of in numbers)
        return first, second

    def without_class(self) -> dict[str, int]:
        """For each output whose best classes are stored, the number of cells that have none."""
        group, found = self.open(), {}
        for output, target in self.targets.items():
            if target.top1:
                array = group[target.name]
                found[output] = sum(int((np.asarray(array[at]) == target.nothing).sum()) for at in blocks(array))
        return found


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
    """The names of the settings in which two plans differ."""
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
    taken: set[str] = {DONE, SEEN}
    for output, axes in geometry.outputs.items():
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", output).strip("._") or "output"
        while name in taken:
            name += "_"
        taken.add(name)
        shape = tuple(axis.count for axis in axes)
        spans = zip(axes, step, geometry.unit, strict=True)
        chunk = tuple(min(n, s * u // axis.stride) for n, (axis, s, u) in zip(shape, spans, strict=True))
        best = top1 and values[output] > 1
        stored = class_type(values[output]) if best else dtypes[output].name
        means = {**attributes[output], **({"no_class": no_class(stored)} if best else {})}
        found[output] = Target(
            name=name, top1=best, values=values[output], shape=shape, chunk=chunk, dtype=stored, attributes=means
        )
    return found
