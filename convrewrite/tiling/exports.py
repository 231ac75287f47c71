"""From the Zarr group of the cells to another file, in pieces: .npy, a TIFF with a pyramid, a PNG heat map."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convrewrite.errors import UsageError
from convrewrite.system.atomic import discard, publish, refuse_target, temporary_beside, write_errors
from convrewrite.text import by, counted, parameter
from convrewrite.tiling import colours
from convrewrite.tiling.extra import library
from convrewrite.tiling.images import PICTURES, TIFFS
from convrewrite.tiling.store import Target, blocks

Array = np.ndarray[Any, Any]

LARGEST_PICTURE = 8192
"""Pixels of a PNG per side."""

OTHERS = frozenset(".npz .h5 .hdf5 .nc .csv .json .onnx .txt .zip .mat .raw .bin".split())
"""Endings of files that are no Zarr groups."""

EDGE = 256
"""Pixels of a TIFF's tiles per side."""

SMALLEST = 512
"""The top of a pyramid is no larger."""


def kind_of(target: str) -> str:
    """What a file's name asks for: "zarr", "npy", "tiff" or "png". Raises UsageError for another format's."""
    suffix = Path(target).suffix.lower()
    if suffix in TIFFS:
        return "tiff"
    if suffix in (".npy", ".png"):
        return suffix[1:]
    if suffix in PICTURES or suffix in OTHERS:
        raise UsageError(f"{target}: no map is written as {suffix}", remedy="name it .zarr, .npy, .tif or .png")
    return "zarr"


def check(kind: str, target: str, found: Mapping[str, Target], chosen: int | None) -> None:
    """Raise UsageError where a file of that kind cannot hold these outputs."""
    if chosen is not None and (kind != "png" or any(of.top1 for of in found.values())):
        raise UsageError(
            f"{parameter('chosen')} draws the values of one class in a .png",
            remedy=f"leave it out, or {parameter('top1')}",
        )
    if kind == "zarr":
        return
    if len(found) > 1:
        raise UsageError(
            f"{target} holds one output, the model has {len(found)}", remedy=f"choose one with {parameter('outputs')}"
        )
    only = next(iter(found.values()))
    if kind in ("tiff", "png") and len(only.shape) != 2:
        raise UsageError(f"{target} holds a map of two axes, the model gives {len(only.shape)}", remedy="write Zarr")
    if kind != "png":
        return
    if max(only.shape) > LARGEST_PICTURE:
        text = by(only.shape)
        raise UsageError(f"a picture of {text} cells is too large", remedy="write a TIFF, which has a pyramid, or Zarr")
    if not only.top1 and only.values > 1 and chosen is None:
        raise UsageError(
            f"a picture shows one of {counted(only.values, 'value')}",
            remedy=f"give {parameter('chosen', 'K')}, or {parameter('top1')}",
        )
    if chosen is not None and not 0 <= chosen < only.values:
        raise UsageError(f"{parameter('chosen', chosen)}: the model has classes 0 to {only.values - 1}")


def export(kind: str, array: Any, target: str, only: Target, chosen: int | None) -> None:
    """Write the array of an output to a file, which appears whole. Raises UsageError where it cannot be written."""
    path = refuse_target(Path(target))
    temporary = temporary_beside(path, path.suffix)
    try:
        with write_errors(path):
            {"npy": _npy, "tiff": _tiff, "png": _png}[kind](array, temporary, only, chosen)
            publish(temporary, path)
    finally:
        discard(temporary)


def _npy(array: Any, path: Path, only: Target, chosen: int | None) -> None:
    made = np.lib.format.open_memmap(path, mode="w+", dtype=array.dtype, shape=array.shape)
    for block in blocks(array):
        made[block] = array[block]
    made.flush()


def _tiff(array: Any, path: Path, only: Target, chosen: int | None) -> None:
    """Each level has half the size: of classes every second one, of scores their mean."""
    tifffile = library("tifffile")
    levels, shape = 1, array.shape[-2:]
    while max(shape) > SMALLEST:
        levels, shape = levels + 1, tuple(-(-n // 2) for n in shape)
    note = json.dumps(dict(only.attributes))
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        scratch: Any = array
        for level in range(levels):
            scratch = array if level == 0 else _halved(scratch, only.top1)
            file.write(
                _tiles(scratch),
                shape=scratch.shape,
                dtype=scratch.dtype,
                tile=(EDGE, EDGE),
                compression="zlib",
                photometric="minisblack",
                planarconfig="separate" if len(scratch.shape) > 2 else None,
                description=note if level == 0 else None,
                metadata=None,
                subifds=levels - 1 if level == 0 else None,
                subfiletype=0 if level == 0 else 1,
            )


def _tiles(array: Any) -> Iterator[Array]:
    """Square pieces, row by row, of each plane."""
    for plane in np.ndindex(*array.shape[:-2]):
        for i in range(0, array.shape[-2], EDGE):
            rows = np.asarray(array[(*plane, slice(i, i + EDGE))])
            for j in range(0, array.shape[-1], EDGE):
                piece = rows[:, j : j + EDGE]
                pads = [(0, EDGE - n) for n in piece.shape]
                yield np.ascontiguousarray(np.pad(piece, pads))


def _halved(array: Any, whole: bool) -> Array:
    """Half the size, a row of pieces at a time."""
    rows = []
    for i in range(0, array.shape[-2], 2 * EDGE):
        part = np.asarray(array[..., i : i + 2 * EDGE, :])
        if whole or part.dtype.kind != "f":
            rows.append(part[..., ::2, ::2])
            continue
        pads = [(0, 0)] * (part.ndim - 2) + [(0, n % 2) for n in part.shape[-2:]]
        even = np.pad(part, pads, mode="edge")
        split = even.reshape(*even.shape[:-2], even.shape[-2] // 2, 2, even.shape[-1] // 2, 2)
        rows.append(split.mean(axis=(-3, -1), dtype=np.float32).astype(part.dtype))
    return np.concatenate(rows, axis=-2)


def _png(array: Any, path: Path, only: Target, chosen: int | None) -> None:
    """Classes in colours that are told apart, or one value from its smallest to its largest."""
    image_library = library("PIL.Image")
    values = np.asarray(array[:] if only.top1 else array[chosen or 0])
    image_library.fromarray(coloured(values, whole=only.top1, nothing=only.nothing)).save(path, format="PNG")


def coloured(values: Array, *, whole: bool, nothing: int | None = None) -> Array:
    """Colours [H, W, 3] of classes, black for none of them, or of values from the smallest to the largest."""
    if whole:
        return np.where((values == nothing)[..., None], np.uint8(0), colours.of_classes(values))
    finite = np.where(np.isfinite(values), values, np.nan).astype(np.float64)
    low, high = (np.nanmin(finite), np.nanmax(finite)) if np.isfinite(finite).any() else (0.0, 1.0)
    return colours.of_values(np.nan_to_num((finite - low) / (high - low or 1.0)))
