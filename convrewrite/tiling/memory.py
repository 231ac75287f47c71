"""How large tiles may be: what a session needs for a crop, counted from shapes alone.

Tensors are held from the node that makes them to the last one that reads them; ONNX Runtime keeps a little more
(rearranged kernels and maps, buffers of its own), for which a factor stands, and each process has a base of its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import onnx
import onnx_graphsurgeon as gs

from convrewrite.engine import memory
from convrewrite.engine.graph import infer_shapes
from convrewrite.errors import UsageError
from convrewrite.text import counted, parameter
from convrewrite.tiling.survey import Survey

SLACK = 1.5
"""What ONNX Runtime holds, as a multiple of the tensors that are needed at once."""

BLOCK = 16
"""ONNX Runtime keeps maps in blocks of so many channels, some of which are empty."""

BASE = 220e6
"""Bytes of a worker process before it has a model."""

OVERHEAD = 350e6
"""Bytes of the process that hands out the tiles."""

LARGEST = 8192
"""Pixels along an axis of a crop; larger ones are no faster."""

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_bytes(text: str) -> float:
    """Bytes, from a text such as 2GB, 500MB, 1.5GiB. Raises UsageError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", text.lower())
    if found is None or not float(found[1]):
        raise UsageError(f"'{text}' is no amount of memory", remedy="write 2GB, or 500MB")
    amount = float(found[1]) * UNITS[found[2] or ""]
    if amount < 1e6:
        raise UsageError(f"{parameter('memory', text)} is {amount:g} bytes", remedy=f"write {text}GB")
    return amount


def peak(graph: gs.Graph, image: str, shape: Sequence[int]) -> float:
    """Bytes of the tensors that are held at once while a graph runs; weights apart."""
    return memory.peak(graph, memory.tensor_bytes(graph, infer_shapes(graph, {image: shape}), BLOCK))


def tile_bytes(survey: Survey, step: Sequence[int], itemsize: int) -> float:
    """Bytes of a worker while it computes a tile of so many units."""
    geometry = survey.geometry
    counts = geometry.counts(step)
    try:
        geometry.check(step)
    except ValueError:
        return math.inf  # a model of one size has no crop for so many
    middle = geometry.tile([count // 2 for count in counts], step)
    size = [stop - start for start, stop in middle.crop]
    pixels = math.prod(size) * survey.channels
    try:
        tensors = peak(survey.model.graph, survey.image, survey.crop_shape(size))
    except onnx.shape_inference.InferenceError:
        return math.inf
    constants = [t for t in survey.model.graph.tensors().values() if isinstance(t, gs.Constant)]
    weights = sum(math.prod(t.shape) * 4 for t in constants)
    return float(BASE + 2 * weights + SLACK * tensors + pixels * (2 * itemsize + 8))


def choose_step(survey: Survey, memory: float, workers: int, itemsize: int) -> tuple[int, ...]:
    """The largest tiles, near to square, of which one per worker fits; in units, per axis.

    Raises:
        UsageError: not even one unit fits.
    """
    share = (memory - OVERHEAD) / workers
    geometry = survey.geometry
    unit, extents = geometry.unit, geometry.counts([1] * len(geometry.size))
    low, high = 1, max(1, *(min(n * u, LARGEST) // u for n, u in zip(extents, unit, strict=True)))

    def step(side: int) -> tuple[int, ...]:
        """Units per axis for tiles of about `side` of the largest unit, no larger than the image."""
        return tuple(max(1, min(n, side * max(unit) // u)) for n, u in zip(extents, unit, strict=True))

    high = max(1, high * min(unit) // max(unit))
    needs = tile_bytes(survey, step(1), itemsize)
    if needs > share:
        least = OVERHEAD + workers * needs
        takes = f"{counted(workers, 'worker')} {'takes' if workers == 1 else 'take'} {least / 1e9:.1f} GB"
        fewer = f", or fewer {parameter('workers')}" if workers > 1 else ""
        raise UsageError(
            f"{takes}, and {parameter('memory')} is {memory / 1e9:.1f} GB",
            remedy=f"give {parameter('memory', f'{math.ceil(least / 1e8) / 10}GB')}{fewer}",
        )
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if tile_bytes(survey, step(middle), itemsize) <= share else (low, middle - 1)
    return even(step(low), extents)


def even(step: Sequence[int], extents: Sequence[int]) -> tuple[int, ...]:
    """The same number of tiles, of nearly equal extents."""
    return tuple(-(-n // -(-n // s)) for n, s in zip(extents, step, strict=True))
