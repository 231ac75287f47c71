"""Images of any size, read by region: Zarr, TIFF, NumPy files and Pillow's formats.

A `Source` says where an image is and how its axes lie; it can be sent to a worker, which opens it there. What is read
is [C, *spatial], in the image's own type.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from convrewrite.errors import UsageError
from convrewrite.text import by, counted, parameter
from convrewrite.tiling.extra import library

Array = np.ndarray[Any, Any]

TIFFS = frozenset(".tif .tiff .btf .tf2 .tf8 .svs .ndpi .scn .qptiff".split())
PICTURES = frozenset(".png .jpg .jpeg .bmp .webp .gif".split())
SPATIAL = {1: "L", 2: "HW", 3: "DHW"}
SHOWN = 200
"""Characters of a path or a shape in a message."""

MOST_PIXELS = 2**60
"""What operators count in 64 bits, with room for channels and bytes."""

SLACK = 1.5
"""A process is stopped where it takes so many times its share of the memory."""

ALIASES = {"Z": "D", "Y": "H", "X": "W", "S": "C"}
"""What TIFF and OME call the axes, in the letters of the command line."""


@dataclass(frozen=True)
class Source:
    """An image.

    Attributes:
        url: path or address. kind: "zarr", "tiff" or "npy". key: of the array in a Zarr group, or the page
            series of a TIFF.
        shape, dtype: as stored. axes: a letter for each: "HWC", "CHW", "HW"; "." is an axis of one entry.
        channels: that are taken, in this order; () for all.
    """

    url: str
    kind: str
    key: str
    shape: tuple[int, ...]
    dtype: str
    axes: str = ""
    channels: tuple[int, ...] = ()

    @property
    def size(self) -> tuple[int, ...]:
        """Extents of the spatial axes, in the order of the model's letters."""
        return tuple(self.shape[self.axes.index(letter)] for letter in self.letters)

    @property
    def letters(self) -> str:
        """The letters of the spatial axes, in order."""
        return "".join(letter for letter in "DHWL" if letter in self.axes)

    @property
    def depth(self) -> int:
        """The number of channels that are taken."""
        if self.channels:
            return len(self.channels)
        return self.shape[self.axes.index("C")] if "C" in self.axes else 1

    def region(self, array: Any, crop: Sequence[tuple[int, int]]) -> Any:
        """A region [C, *spatial] of the opened array, or of a lazy one of its shape."""
        spans = dict(zip(self.letters, crop, strict=True))
        index = tuple(
            slice(*spans[letter]) if letter in spans else (slice(None) if letter == "C" else 0) for letter in self.axes
        )
        part, kept = array[index], [letter for letter in self.axes if letter != "."]
        if "C" not in kept:
            part, kept = part[None], ["C", *kept]
        part = part.transpose([kept.index(letter) for letter in ("C", *self.letters)])
        return part[list(self.channels)] if self.channels else part

    def read(self, array: Any, crop: Sequence[tuple[int, int]]) -> Array:
        """A region [C, *spatial] in memory. Raises UsageError where the image ends early."""
        part = np.asarray(self.region(array, crop))
        wanted = tuple(stop - start for start, stop in crop)
        if part.shape[1:] != wanted:
            raise UsageError(f"{self.url} ends early: a region of {wanted} gave {part.shape[1:]}")
        return part

    def open(self) -> Any:
        """The array, ready to be read by region. Raises UsageError."""
        try:
            if self.kind == "npy":
                return np.load(self.url, mmap_mode="r", allow_pickle=False)
            if self.kind == "tiff":
                return _tiff_array(self.url, int(self.key))
            return _zarr_array(self.url, self.key)
        except UsageError:
            raise
        except Exception as error:  # each library has errors of its own
            raise UsageError(f"cannot read the image {self.url}: {_line(error)}") from None


def probe(source: Source, memory: float = math.inf) -> None:
    """Read one pixel.

    Args:
        source: the image. memory: bytes that a process may take: what is stored in one piece has to fit.

    Raises:
        UsageError: the image cannot be decoded here, or its pieces are too large.
    """
    try:
        array = source.open()
        piece = math.prod(getattr(array, "chunks", ())) * array.dtype.itemsize
        if piece > SLACK * memory:
            raise UsageError(
                f"the image {source.url} is stored in pieces of {piece / 1e9:,.1f} GB, each of which is read whole",
                remedy=f"store it in smaller ones, give more {parameter('memory')}, or fewer {parameter('workers')}",
            )
        source.read(array, [(0, 1)] * len(source.letters))
    except UsageError:
        raise
    except Exception as error:  # each library has errors of its own
        text = _line(error)
        remedy = "pip install imagecodecs" if "imagecodecs" in text else "see whether another program reads it"
        raise UsageError(f"cannot read the image {source.url}: {text}", remedy=remedy) from None


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def find(url: str, key: str = "", scratch: Path | None = None, memory: float = math.inf) -> Source:
    """An image by its path or address; its axes are not settled yet, but where the file tells them.

    Args:
        url: of a Zarr array or group, a TIFF, .npy or picture. key: the array of a group, or the series of a TIFF.
        scratch: folder for the pixels of a compressed picture, which cannot be read by region.
        memory: bytes that these may take.

    Raises:
        UsageError: there is none, or it cannot be read.
    """
    suffix = Path(url).suffix.lower()
    if "://" not in url and not os.path.exists(url):
        raise UsageError(f"cannot read the image {url[:SHOWN]}: no such file")
    try:
        if suffix == ".npy":
            array = np.load(url, mmap_mode="r", allow_pickle=False)
            return Source(url, "npy", "", shape=array.shape, dtype=array.dtype.name)
        if suffix in TIFFS:
            return _tiff(url, key)
        if suffix in PICTURES:
            return _picture(url, scratch, memory)
        return _zarr(url, key)
    except UsageError:
        raise
    except Exception as error:  # each library has errors of its own
        raise UsageError(f"cannot read the image {url}: {_line(error)}") from None


def _tiff(url: str, key: str) -> Source:
    tifffile = library("tifffile")
    with tifffile.TiffFile(url) as file:
        series = file.series
        number = int(key or 0)
        if not 0 <= number < len(series):
            raise UsageError(f"{url} has {len(series)} series, not one of number {number}")
        level = series[number].levels[0]
        first = level.pages[0]
        told, stored = math.prod(getattr(first, "chunked", ())), len(getattr(first, "dataoffsets", ()))
        if stored < told:
            raise UsageError(f"the image {url} is damaged: its header tells of {told:,} pieces, and places {stored:,}")
        return Source(
            url,
            "tiff",
            str(number),
            shape=tuple(level.shape),
            dtype=level.dtype.name,
            axes=_lettered(level.axes, level.shape),
        )


def _tiff_array(url: str, number: int) -> Any:
    tifffile, zarr = library("tifffile"), library("zarr")
    store = tifffile.imread(url, aszarr=True, series=number, level=0)
    found = zarr.open(store, mode="r")
    return found if isinstance(found, zarr.Array) else found["0"]


def _zarr(url: str, key: str) -> Source:
    zarr = library("zarr")
    node = zarr.open(url, mode="r")
    axes = ""
    if not isinstance(node, zarr.Array):
        attrs = dict(node.attrs)
        scales: Any = (attrs.get("ome") or attrs).get("multiscales")
        if not key and scales:
            key = scales[0]["datasets"][0]["path"]
            axes = "".join(str(a["name"] if isinstance(a, Mapping) else a).upper() for a in scales[0].get("axes", ()))
        names = sorted(name for name, _ in node.arrays())
        if not key and len(names) == 1:
            key = names[0]
        if not key or key not in node or not isinstance(node[key], zarr.Array):
            raise UsageError(
                f"{url} is a group of arrays",
                remedy=f"choose with {parameter('array')} one of {', '.join(names) or '-'}",
            )
        node = node[key]
    named = getattr(node.metadata, "dimension_names", None)
    if not axes and named and all(isinstance(name, str) for name in named):
        axes = "".join(name[:1].upper() for name in named)
    return Source(url, "zarr", key, shape=tuple(node.shape), dtype=node.dtype.name, axes=_lettered(axes, node.shape))


def _zarr_array(url: str, key: str) -> Any:
    node = library("zarr").open(url, mode="r")
    return node[key] if key else node


def _picture(url: str, scratch: Path | None, memory: float) -> Source:
    """The pixels of a compressed picture in a file of their own, which workers map."""
    image_library = library("PIL.Image")
    image_library.MAX_IMAGE_PIXELS = None
    with image_library.open(url) as image:
        size = math.prod(image.size) * len(image.getbands()) * (4 if image.mode in ("I", "F") else 1)
        if size > memory:
            raise UsageError(
                f"the picture {url} of {by(image.size[::-1])} pixels is unpacked whole, to {size / 1e9:,.1f} GB",
                remedy=f"save it as TIFF or Zarr, or give more {parameter('memory')}",
            )
        pixels = np.asarray(image.convert("RGB") if image.mode in ("P", "CMYK", "YCbCr") else image)
    if scratch is None:
        raise UsageError(f"{url} has to be unpacked first", remedy="save it as TIFF or Zarr")
    target = scratch / f"{Path(url).stem}.npy"
    np.save(target, pixels)
    return Source(
        str(target), "npy", "", shape=pixels.shape, dtype=pixels.dtype.name, axes="HWC" if pixels.ndim == 3 else "HW"
    )


def _lettered(axes: str, shape: Sequence[int]) -> str:
    """The axes that a file tells, where they are ones that are known here."""
    letters = "".join(ALIASES.get(letter, letter) for letter in axes)
    letters = "".join(
        letter if letter in "CDHWL" else ("." if extent == 1 else "?")
        for letter, extent in zip(letters, shape, strict=False)
    )
    known = len(letters) == len(shape) and "?" not in letters
    return letters if known and len(set(letters) - {"."}) == len(letters.replace(".", "")) else ""


def settled(source: Source, rank: int, channels: int, layout: str = "", taken: Sequence[int] = ()) -> Source:
    """The image with a letter for each axis.

    Args:
        source: as found. rank: spatial axes of the model. channels: that the model takes.
        layout: letters that the user gave. taken: channels to take, in this order.

    Raises:
        UsageError: the axes cannot be told, or do not fit the model.
    """
    spatial, shape = SPATIAL[rank], source.shape
    if min(shape, default=1) < 1:
        raise UsageError(f"the image [{by(shape)[:SHOWN]}] has no pixels")
    if math.prod(shape) > MOST_PIXELS:
        raise UsageError(f"the image [{by(shape)[:SHOWN]}] has more pixels than can be counted")
    if np.dtype(source.dtype).kind not in "biuf":
        raise UsageError(f"the image has pixels of type {source.dtype}", remedy="give real numbers")
    text = by(shape)[:SHOWN]
    axes = layout.upper() or source.axes or _guessed(shape, spatial, channels, bool(taken))
    if not axes:
        letters = f"{spatial}C, C{spatial} or {spatial}"
        remedy = f"give {parameter('layout')}: {letters}"
        if sum(extent > 1 for extent in shape) > rank + 1:
            remedy = f"take one plane out of it first, and give its axes: {letters}"
        raise UsageError(f"the axes of the image [{text}] are not clear", remedy=remedy)
    if len(axes) != len(shape):
        raise UsageError(
            f"{parameter('layout', layout)} names {counted(len(axes), 'axis')}, the image [{text}] has {len(shape)}"
        )
    axes = "".join(
        "." if letter not in "CDHWL" and extent == 1 else letter for letter, extent in zip(axes, shape, strict=True)
    )
    lacks = [letter for letter in spatial if axes.count(letter) != 1]
    odd = [letter for letter in axes if letter not in (*spatial, "C", ".")]
    if "D" in odd and rank == 2 and shape[axes.index("D")] == 1:
        axes, odd = axes.replace("D", "."), [letter for letter in odd if letter != "D"]
    if lacks or odd or axes.count("C") > 1:
        raise UsageError(
            f"the image [{text}] with axes {axes} does not have the axes {spatial} of the model",
            remedy=f"give {parameter('layout')}",
        )
    found = replace(source, axes=axes, channels=tuple(taken))
    stored = shape[axes.index("C")] if "C" in axes else 1
    if any(not 0 <= channel < stored for channel in taken):
        raise UsageError(f"{parameter('channels', tuple(taken))}: the image has {stored}")
    if found.depth != channels:
        picks = tuple(range(channels))
        remedy = f"choose with {parameter('channels', picks)}" if stored > channels else "give an image that has them"
        raise UsageError(f"the image has {counted(found.depth, 'channel')}, the model takes {channels}", remedy=remedy)
    return found


def _guessed(shape: Sequence[int], spatial: str, channels: int, picked: bool) -> str:
    """The layout where only one fits: channels last, channels first, or none."""
    if len(shape) > len(spatial) + 1 and 1 in shape:  # axes of one entry, such as time, are passed over
        rest = iter(_guessed([extent for extent in shape if extent > 1], spatial, channels, picked))
        letters = "".join("." if extent == 1 else next(rest, "") for extent in shape)
        return letters if len(letters) == len(shape) and not next(rest, "") else ""
    if len(shape) == len(spatial):
        return spatial
    if len(shape) != len(spatial) + 1:
        return ""
    last, first = (shape[-1] == channels, shape[0] == channels)
    if picked or not (last or first):  # by what is usual: few channels
        last, first = shape[-1] <= 4 < shape[0], shape[0] <= 4 < shape[-1]
    return "" if last == first else (f"{spatial}C" if last else f"C{spatial}")
