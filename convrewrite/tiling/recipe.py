"""How a crop of an image becomes the cells of a tile: what a worker needs to know of a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from convrewrite.tiling.geometry import Tile
from convrewrite.tiling.survey import Survey

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Recipe:
    """How one model is run on tiles, without the model itself.

    Attributes:
        input: name of the image input. shape: of it, with 0 for the spatial axes. dims: those. channel: dimension of
            the channels. dtype: of it.
        strides: of each output: pixels between cells, per axis. places: dimensions of its spatial axes.
    """

    input: str
    shape: tuple[int, ...]
    dims: tuple[int, ...]
    channel: int | None
    dtype: str
    strides: Mapping[str, tuple[int, ...]]
    places: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, survey: Survey) -> Recipe:
        """The recipe that a survey of the model leads to."""
        source = next(t for t in survey.model.graph.inputs if t.name == survey.image)
        shape = tuple(0 if dim in survey.dims else extent for dim, extent in enumerate(survey.shape))
        strides = {name: tuple(axis.stride for axis in axes) for name, axes in survey.geometry.outputs.items()}
        dtype = np.dtype(source.dtype).name
        return cls(
            input=survey.image,
            shape=shape,
            dims=survey.dims,
            channel=survey.channel,
            dtype=dtype,
            strides=strides,
            places=dict(survey.places),
        )

    def feed(self, pixels: Array) -> Array:
        """The input of the model for pixels [C, *spatial]."""
        order = [dim for dim in range(len(self.shape)) if dim in self.dims or dim == self.channel]
        sources = {dim: 1 + place for place, dim in enumerate(self.dims)}
        if self.channel is None:
            pixels = pixels[0]
            sources = {dim: place for place, dim in enumerate(self.dims)}
        else:
            sources[self.channel] = 0
        moved = pixels.transpose([sources[dim] for dim in order])
        shape = [moved.shape[order.index(dim)] if dim in order else 1 for dim in range(len(self.shape))]
        return np.ascontiguousarray(moved.reshape(shape), dtype=np.dtype(self.dtype))

    def cells(self, tile: Tile, values: Mapping[str, Array]) -> dict[str, Array]:
        """The cells of a tile, [K, *cells] of each output, out of what the model gives for its crop."""
        found: dict[str, Array] = {}
        for name, spans in tile.cells.items():
            value, places = values[name], self.places[name]
            index: list[slice] = [slice(None)] * value.ndim
            for place, (start, stop), (lo, _), stride in zip(places, spans, tile.crop, self.strides[name], strict=True):
                first = lo // stride
                index[place] = slice(start - first, stop - first)
            part = np.moveaxis(value[tuple(index)], places, range(-len(places), 0))
            ahead = part.shape[: -len(places)]
            found[name] = part.reshape(math.prod(ahead), *part.shape[-len(places) :])
        return found
