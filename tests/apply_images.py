"""Images of every kind for the tests of `apply`, and what it has written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import dask
import numpy as np
import tifffile
import zarr
from PIL import Image

from convrewrite import models

if hasattr(os, "fork"):  # workers that need not import everything anew; a command that a test starts has its own kind
    dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"})

LENET = str(models.lenet5_path())
SIZE = (173, 141)


def stored(path: Path) -> np.ndarray:
    return np.asarray(zarr.open_group(path, mode="r")["probabilities"][:])


def as_zarr(path: Path, pixels: np.ndarray, version: int) -> None:
    array = zarr.create_array(path, shape=pixels.shape, chunks=(50, 64), dtype=pixels.dtype, zarr_format=version)
    array[:] = pixels


def as_group(path: Path, pixels: np.ndarray) -> None:
    """OME: an axis for time and one for channels, and a smaller level beside."""
    group = zarr.open_group(path, mode="w")
    axes = [{"name": name} for name in "tcyx"]
    group.attrs["multiscales"] = [{"axes": axes, "datasets": [{"path": "full"}, {"path": "half"}]}]
    for name, step in (("full", 1), ("half", 2)):
        part = pixels[None, None, ::step, ::step]
        group.create_array(name, shape=part.shape, dtype=part.dtype, chunks=(1, 1, 64, 64))[:] = part


def as_tiff(path: Path, pixels: np.ndarray, kind: str) -> None:
    if kind == "ome":
        tifffile.imwrite(path, pixels[None], ome=True, metadata={"axes": "CYX"}, tile=(64, 64))
    else:
        how: dict[str, Any] = {"tile": (64, 64)} if kind == "tiled" else {"rowsperstrip": 7}
        tifffile.imwrite(path, pixels, bigtiff=kind == "tiled", compression="zlib", photometric="minisblack", **how)


MAKERS = {
    "im.npy": np.save,
    "v2.zarr": lambda path, pixels: as_zarr(path, pixels, 2),
    "v3.zarr": lambda path, pixels: as_zarr(path, pixels, 3),
    "group.zarr": as_group,
    "tiled.tif": lambda path, pixels: as_tiff(path, pixels, "tiled"),
    "strips.tif": lambda path, pixels: as_tiff(path, pixels, "strips"),
    "im.ome.tif": lambda path, pixels: as_tiff(path, pixels, "ome"),
    "im.png": lambda path, pixels: Image.fromarray(pixels).save(path),
}
