"""What a fully convolutional model says of a sample image: one class per cell.

image, larger than a window ──model, one pass──> scores [K, rows, columns] ──largest──> class of each cell

The image is the user's own; else the samples of the data beside each other; else smooth noise, which is only good for
seeing how the cells lie.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from scipy import ndimage

from convrewrite import model_io
from convrewrite.engine.windows import UPSAMPLED_KEY, Window
from convrewrite.errors import ConvrewriteError, UsageError
from convrewrite.model_io import Model
from convrewrite.running import runtime
from convrewrite.system import atomic
from convrewrite.system.labels import fitting, read_labels
from convrewrite.text import counted

Array = np.ndarray[Any, Any]

ALONG = 8
"""Cells along an axis of the noise."""

COLOURS = ("#4269d0", "#e0931a", "#2f9e62", "#d64550", "#7b5fc6", "#8a5a3c", "#c2569b", "#17a2b5")
"""Of the classes with the most cells; the others are grey."""

OTHER = "#8b8f94"
STRONG, FAINT = 150, 45
"""Opacity of a cell, and of those of a class that has more than half of all cells, out of 255."""

LARGEST = 640
"""Pixels of the longer side, as drawn."""


@dataclass(frozen=True)
class Sample:
    """An image [C, H, W] and its description."""

    image: Array
    told: str


def read_image(path: str | Path) -> Array:
    """Read an image: .npy [H, W], [H, W, C] or [C, H, W] as it is; PNG, JPEG ... as [H, W, C] in 0..1.

    Raises:
        UsageError: it cannot be read, or has another rank.
    """
    try:
        if Path(path).suffix == ".npy":
            image = np.load(path, allow_pickle=False)
        else:
            with Image.open(path) as opened:
                mode = "L" if opened.mode in ("1", "L", "I", "I;16", "F") else "RGB"
                image = np.asarray(opened.convert(mode), np.float32) / 255
    except (OSError, ValueError, EOFError, UnidentifiedImageError) as error:
        reason = getattr(error, "strerror", None) or "it is no image that can be read"
        raise UsageError(f"cannot read {path}: {reason}", remedy="give a PNG, a JPEG or an .npy array") from None
    if image.ndim not in (2, 3) or image.dtype.kind not in "fiu":
        raise UsageError(
            f"{path} holds an array {list(image.shape)} of {image.dtype}", remedy="give [H, W], [H, W, C] or [C, H, W]"
        )
    return np.asarray(image)


def class_map(
    model: Model,
    window: Window,
    data: Mapping[str, Array] | None,
    image: Array | None,
    *,
    labels: str | None = None,
) -> dict[str, Any]:
    """Run the model once, and draw what it says; `{"why": ...}` where there is nothing to draw.

    Args:
        labels: the path of a file with the names of the classes.

    Raises:
        UsageError: the given image, or the names, do not fit the model.
    """
    name = next((name for name, grid in window.outputs.items() if "".join(grid.layout) in ("NC", "C")), None)
    if len(window.size) != 2 or name is None:
        return {"why": "there is a picture for two spatial axes and class scores only"}
    info = next(tensor for tensor in model.graph.inputs if tensor.name == window.input)
    if len(model.graph.inputs) > 1:
        return {"why": "the model has other inputs beside the image"}
    shape = dict(zip(window.axes, info.shape, strict=True))
    channels = shape.get("C", 1)
    fixed = [shape[letter] if isinstance(shape[letter], int) else None for letter in window.letters]
    sample = _sample(window, channels, fixed, data, image=image)
    feed = _arranged(sample.image, window.axes, shape).astype(info.dtype)
    try:
        with atomic.scratch() as folder:
            session = runtime.open_session(model_io.save(model, Path(folder) / "map.onnx"), "cpu")
            scores = session.run({window.input: feed}, [name])[name]
    except ConvrewriteError as error:
        if image is not None:
            raise UsageError(f"the model does not run on the image: {error.text}", remedy="try another one") from None
        return {"why": error.text}
    if scores.ndim != 4 or scores.shape[1] < 2:
        return {"why": f"output '{name}' holds no scores of classes"}
    names = () if labels is None else fitting(read_labels(labels), scores.shape[1], name, labels)
    drawn = _drawn(sample, scores[0].argmax(axis=0), window, name, names=names)
    if UPSAMPLED_KEY in model.metadata:
        drawn["place"] = {"left": 0, "top": 0, "width": 100, "height": 100}
    return {**drawn, "pixels": UPSAMPLED_KEY in model.metadata}


def _sample(
    window: Window, channels: int, fixed: list[int | None], data: Mapping[str, Array] | None, image: Array | None
) -> Sample:
    size = [have or want for have, want in zip(fixed, window.image_size((ALONG, ALONG)), strict=True)]
    if image is not None:
        return Sample(_channels_first(image, channels, window), "the image that was given")
    rng = np.random.default_rng(0)
    tiles = _tiles(data, window) if data is not None and None in fixed else None
    if tiles is not None:
        side = min(4, max(1, int(len(tiles) ** 0.5)))
        rows = [np.concatenate(tiles[i * side : (i + 1) * side], axis=2) for i in range(side)]
        return Sample(np.concatenate(rows, axis=1), f"{counted(side * side, 'sample')} of the data, beside each other")
    noise = ndimage.gaussian_filter(rng.standard_normal((channels, *size)), (0, *(max(s // 8, 1) for s in window.size)))
    noise = (noise - noise.min()) / max(float(noise.max() - noise.min()), 1e-9)
    return Sample(noise, "smooth noise, since no image was given: only the places of the cells mean something")


def _tiles(data: Mapping[str, Array], window: Window) -> list[Array] | None:
    """The samples as [C, H, W] of the window's size."""
    array = data.get(window.input)
    if array is None or array.ndim != len(window.axes) or not len(array):
        return None
    moved = np.moveaxis(array, [window.axes.index(letter) for letter in "CHW" if letter in window.axes], [-3, -2, -1])
    tiles = moved.reshape(-1, *moved.shape[-3:])
    return list(tiles) if tiles.shape[-2:] == window.size else None


def _channels_first(image: Array, channels: int, window: Window) -> Array:
    stacked: Array = image[None] if image.ndim == 2 else image
    if stacked.shape[0] != channels and stacked.shape[-1] in (1, 3, channels):
        stacked = np.moveaxis(stacked, -1, 0)
    if stacked.shape[0] == 1 and channels > 1:
        stacked = np.repeat(stacked, channels, axis=0)
    if stacked.shape[0] == 3 and channels == 1:
        stacked = stacked.mean(axis=0, keepdims=True)
    if stacked.shape[0] != channels:
        raise UsageError(f"the image has {counted(stacked.shape[0], 'channel')}, and the model takes {channels}")
    if any(have < least for have, least in zip(stacked.shape[1:], window.size, strict=True)):
        have, least = ("x".join(map(str, extents)) for extents in (stacked.shape[1:], window.size))
        raise UsageError(f"the image of {have} is smaller than one window of {least}", remedy="give a larger one")
    return stacked


def _arranged(image: Array, axes: str, shape: Mapping[str, Any]) -> Array:
    """[C, H, W] with the axes of the input, repeated over a fixed batch."""
    letters = [letter for letter in axes if letter != "N"]
    arranged = np.transpose(
        image if "C" in axes else image[0], [("CHW" if "C" in axes else "HW").index(x) for x in letters]
    )
    if "N" not in axes:
        return arranged
    batch = shape["N"] if isinstance(shape["N"], int) else 1
    return np.repeat(np.expand_dims(arranged, axes.index("N")), batch, axis=axes.index("N"))


def legend_of(counts: Mapping[int, int], names: Sequence[str]) -> list[dict[str, Any]]:
    """The classes with the most cells, each with its name, its share of all cells and its colour."""
    order = sorted(counts, key=lambda number: -counts[number])[: len(COLOURS)]
    total = sum(counts.values())
    return [
        {
            "name": number,
            "label": names[number] if 0 <= number < len(names) else "",
            "share": counts[number] / total,
            "colour": colour,
        }
        for number, colour in zip(order, COLOURS, strict=False)
    ]


def painted(classes: Array, legend: Sequence[Mapping[str, Any]], strong: int = STRONG) -> Array:
    """Colours [H, W, 4] of classes; those that the legend does not name are grey."""
    colour = {entry["name"]: entry["colour"] for entry in legend}
    found = np.unique(classes)
    palette = np.array([(*bytes.fromhex(colour.get(int(c), OTHER)[1:]), strong) for c in found], np.uint8)
    made: Array = palette[np.searchsorted(found, classes)]
    return made


def _drawn(sample: Sample, classes: Array, window: Window, output: str, names: Sequence[str] = ()) -> dict[str, Any]:
    height, width = sample.image.shape[1:]
    rows, columns = classes.shape
    found, counts = np.unique(classes, return_counts=True)
    legend = legend_of(dict(zip(found.tolist(), counts.tolist(), strict=True)), names)
    rest = 1 - sum(entry["share"] for entry in legend)
    faint = counts.max() > classes.size / 2  # such as a background
    colours = painted(classes, legend)
    if faint:
        colours[classes == legend[0]["name"], 3] = FAINT
    longest = max(height, width)
    scale = LARGEST / longest if longest > LARGEST else max(1, 320 // longest)
    step = window.stride
    return {
        "told": sample.told,
        "faint": bool(faint),
        "output": output,
        "size": [height, width],
        "cells": [rows, columns],
        "image": png(_grey(sample.image)),
        "map": png(colours),
        "width": round(width * scale),
        "height": round(height * scale),
        "legend": legend,
        "rest": rest if rest > 1e-9 else None,
        "other": OTHER,
        "place": {  # of the map over the image: each cell over the middle of its window, in percent
            "left": 100 * (window.offset[1] + (window.size[1] - step[1]) / 2) / width,
            "top": 100 * (window.offset[0] + (window.size[0] - step[0]) / 2) / height,
            "width": 100 * columns * step[1] / width,
            "height": 100 * rows * step[0] / height,
        },
    }


def _grey(image: Array) -> Array:
    """[H, W] or [H, W, 3] in 0..255, stretched over what the image holds."""
    picture = np.moveaxis(image, 0, -1) if image.shape[0] == 3 else image[0]
    picture = np.nan_to_num(picture.astype(np.float64))
    low, high = float(picture.min()), float(picture.max())
    return np.asarray(np.round(255 * (picture - low) / max(high - low, 1e-12)), np.uint8)


def png(pixels: Array) -> str:
    """A picture as text that a page can hold."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
