"""Lazy arrays of Dask in and out: the same tiles, computed where and when Dask likes."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convrewrite import model_io
from convrewrite.errors import UsageError
from convrewrite.model_io import Model
from convrewrite.options import LazyOptions
from convrewrite.running.runtime import Session, open_session
from convrewrite.tiling.extra import library
from convrewrite.tiling.geometry import Geometry
from convrewrite.tiling.images import Source, settled
from convrewrite.tiling.preparing import Preparation, prepared
from convrewrite.tiling.recipe import Recipe
from convrewrite.tiling.store import best_class, class_type
from convrewrite.tiling.survey import outline, survey

Array = np.ndarray[Any, Any]

DEFAULT = LazyOptions()

CELLS = 64
"""Cells of a tile per axis, where nothing is said."""


@functools.lru_cache(maxsize=2)
def _session(model: bytes) -> Session:
    return open_session(model, "cpu", threads=1, label="the model")


def lazily(model: Model, image: Any, options: LazyOptions = DEFAULT) -> dict[str, Any]:
    """The cells of a `dask.array`, as one: [K, *cells] for each output, with a chunk for each tile.

    Args:
        model: a fully convolutional one. image: `dask.array`, or what Dask makes one of.
        options: how pixels are prepared, and what is computed; with `top1` the best class of each cell, [*cells], and
            `tiling.store` says which number is none. Without a `tile`, one has 64 cells per axis.

    Raises:
        Refused, UsageError: as `apply` does.
    """
    arrays, dask = library("dask.array"), library("dask")
    if isinstance(image, str | Path):
        raise UsageError(f"{image} is a path", remedy="give a target, too, or open it as an array")
    image = arrays.asarray(image)
    rank, depth = outline(model)
    prepare = prepared(model.metadata, options).fitting(depth)
    source = settled(
        Source("the image", "dask", "", shape=tuple(image.shape), dtype=str(image.dtype)),
        rank,
        depth,
        options.layout,
        taken=prepare.channels,
    )
    seen = survey(model, source.size, options.outputs)
    geometry, recipe = seen.geometry, Recipe.of(seen)
    frozen = dask.delayed(model_io.to_bytes(seen.model), name=False)
    step = geometry.units(options.tile or (CELLS,))
    counts = geometry.counts(step)
    parts: dict[str, Array] = {name: np.empty(counts, object) for name in geometry.outputs}
    for place in itertools.product(*map(range, counts)):
        crop = geometry.tile(place, step).crop
        pixels = source.region(image, crop)
        cells = dask.delayed(_cells)(frozen, pixels, prepare, recipe, geometry=geometry, place=place, step=step)
        for name, spans in geometry.tile(place, step).cells.items():
            shape = tuple(stop - start for start, stop in spans)
            if options.top1 and seen.values[name] > 1:
                kind = class_type(seen.values[name])
                best = dask.delayed(best_class)(cells[name], kind)
                parts[name][place] = arrays.from_delayed(best, shape, kind)
            else:
                whole = (seen.values[name], *shape)
                parts[name][place] = arrays.from_delayed(cells[name], whole, seen.dtypes[name])
    return {name: arrays.block(_nested(blocks)) for name, blocks in parts.items()}


def _cells(
    model: bytes,
    pixels: Array,
    prepare: Preparation,
    recipe: Recipe,
    *,
    geometry: Geometry,
    place: Sequence[int],
    step: Sequence[int],
) -> dict[str, Array]:
    """One tile of all outputs."""
    values = _session(model).run({recipe.input: recipe.feed(prepare.of(pixels))}, list(recipe.strides))
    return recipe.cells(geometry.tile(place, step), values)


def _nested(blocks: Array) -> Any:
    """Lists of lists, one level per axis, with the channels' axis in front left alone."""
    return [_nested(part) if isinstance(part, np.ndarray) else part for part in blocks]
