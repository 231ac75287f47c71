"""Images of every kind for the tests of `apply`, and what it has written."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import zarr
from PIL import Image

from convrewrite import models

LENET = str(models.lenet5_path())
SIZE = (173, 141)


def fork_workers() -> None:
    """Let the workers of this process be forks of one that has imported what they need: each starts three times faster.

    A command that runs in a process of its own starts them as it always does.
    """
    if "forkserver" in multiprocessing.get_all_start_methods():
        import dask
        from distributed.utils import get_mp_context

        dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"})
        get_mp_context().set_forkserver_preload(["distributed", "convrewrite.tiling.engine", "onnxruntime", "zarr"])


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
