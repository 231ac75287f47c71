"""Tiles of a model put together, held against one pass over the whole image in ONNX Runtime; and nets to tile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from convrewrite import model_io
from convrewrite.model_io import Model
from convrewrite.tiling.recipe import Recipe
from convrewrite.tiling.survey import Survey, survey
from nets import Net

Array = np.ndarray[Any, Any]


def session(model: Model) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(model_io.to_bytes(model), options, providers=["CPUExecutionProvider"])


def run(opened: ort.InferenceSession, name: str, feed: Array) -> dict[str, Array]:
    names = [info.name for info in opened.get_outputs()]
    return dict(zip(names, opened.run(names, {name: feed}), strict=True))


def tiled(model: Model, seen: Survey, image: Array, step: Sequence[int]) -> tuple[dict[str, Array], float]:
    """All cells by tiles, and how often a pixel was read on average."""
    recipe, opened, read = Recipe.of(seen), session(seen.model), 0
    outputs = seen.geometry.outputs
    whole = {n: np.full((seen.values[n], *(a.count for a in axes)), 77, np.float64) for n, axes in outputs.items()}
    for place in np.ndindex(*seen.geometry.counts(step)):
        tile = seen.geometry.tile(place, step)
        crop = image[(slice(None), *(slice(*span) for span in tile.crop))]
        read += crop[0].size
        for name, cells in recipe.cells(tile, run(opened, seen.image, recipe.feed(crop))).items():
            whole[name][(slice(None), *(slice(*span) for span in tile.cells[name]))] = cells
    return whole, read / image[0].size


def check_tiles(model: Model, size: Sequence[int], step: Sequence[int], *, exact: bool = True) -> float:
    seen = survey(model, size)
    image = np.random.default_rng(0).integers(-3, 4, (seen.channels, *size)).astype(np.float32)
    want = run(session(model), seen.image, Recipe.of(seen).feed(image))
    got, reads = tiled(model, seen, image, step)
    for name, places in seen.places.items():
        whole = np.moveaxis(want[name], places, range(-len(places), 0))
        whole = whole.reshape(-1, *whole.shape[-len(places) :])
        assert got[name].shape == whole.shape
        if exact:
            np.testing.assert_array_equal(got[name], whole)
        else:
            np.testing.assert_allclose(got[name], whole, atol=1e-5 * float(np.abs(whole).max()))
        assert len(np.unique(whole)) > 1
    return reads


def loaded(model: onnx.ModelProto) -> Model:
    return model_io.load(model.SerializeToString())


def open_net(rank: int = 2, channels: int = 3, opset: int = 19) -> Net:
    """A net under construction, on an image of 48 pixels per axis."""
    return Net(1, channels, *[48] * rank, opset=opset)


def opened(model: onnx.ModelProto, dims: Sequence[int] = (2, 3, 4)) -> Model:
    """The model for images of any size."""
    for info in (*model.graph.input, *model.graph.output):
        if info.type.tensor_type.HasField("shape"):
            for dim, extent in enumerate(info.type.tensor_type.shape.dim):
                if dim in dims:
                    extent.dim_param = f"{info.name}_{dim}"
    return loaded(model)


def padded(net: Net) -> str:
    x = net.Relu(net.conv("x", 4, 3, 3, pads=[1, 1, 1, 1], strides=[2, 2]))
    x = net.MaxPool(x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    return net.conv(net.Relu(net.conv(x, 4, 3, 3, pads=[2, 2, 2, 2], dilations=[2, 2])), 3, 1, 1)
