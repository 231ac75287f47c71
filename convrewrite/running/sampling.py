"""Inputs for checks: seeded ones at several scales, or the user's own from an .npz file or a folder of images.

A check is only as good as the inputs that it runs on. A model trained on pixels in 0..255 hardly moves on 0..1, a
saturated Softmax hides everything on 0..255: so samples take turns over several scales, and the caller looks whether
the outputs moved.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convrewrite.engine.image_axes import open_axes_of
from convrewrite.errors import UsageError
from convrewrite.running.runtime import TensorInfo
from convrewrite.text import as_line, counted, parameter

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]


@dataclass(frozen=True)
class Scale:
    """A family of random inputs: uniform in low..high, or normal with that deviation where `normal` is set."""

    name: str
    low: float = 0.0
    high: float = 1.0
    normal: float = 0.0


SCALES = (Scale("0..1"), Scale("normal", normal=1.0), Scale("0..255", high=255.0))
"""What the samples take turns over."""

EXTRA_SCALES = (
    Scale("normal x 10", normal=10.0),
    Scale("-1..1", low=-1.0),
    Scale("normal x 1000", normal=1000.0),
)
"""Tried as well before a verification is called vacuous."""


@dataclass(frozen=True)
class Sample:
    """One set of inputs. `source` says where it came from ("0..1, seed 3" or "data 5")."""

    feeds: Feeds
    source: str
    scale: Scale | None = None


@dataclass(frozen=True)
class InputSpec:
    """An input with its shape filled in; `below` bounds its integers where the graph does (0: their type does).

    `wide`: integers of the user may be of a wider type, where their values fit.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    below: int = 0
    wide: bool = False


def draw(specs: Sequence[InputSpec], scale: Scale, seed: int) -> Sample:
    """Random inputs at one scale; the same seed gives the same numbers on every machine."""
    rng = np.random.default_rng(seed)
    return Sample({spec.name: random_array(rng, spec, scale) for spec in specs}, f"{scale.name}, seed {seed}", scale)


def random_array(rng: np.random.Generator, spec: InputSpec, scale: Scale) -> Array:
    """One random array of that type: the scale for floats, pixel values for small integers, else 0 and 1."""
    if spec.dtype.kind == "f":
        if scale.normal:
            return np.asarray(scale.normal * rng.standard_normal(spec.shape), spec.dtype)
        return np.asarray(rng.uniform(scale.low, scale.high, spec.shape), spec.dtype)
    if spec.dtype.kind in "iub":
        bounds = {"uint8": (0, 256), "int8": (-128, 128), "uint16": (0, 256)}
        low, high = (0, spec.below) if spec.below else bounds.get(spec.dtype.name, (0, 2))
        return np.asarray(rng.integers(low, high, spec.shape), spec.dtype)
    raise UsageError(
        f"input '{spec.name}' has a type that cannot be drawn at random", remedy=f"give inputs with {parameter('data')}"
    )


def fill(
    info: TensorInfo,
    size: Sequence[int] | None = None,
    known: Sequence[int | str | None] = (),
    batch: int | None = None,
    bound: Mapping[str, int] | None = None,
    remedy: str = "",
) -> InputSpec:
    """Give every dimension of an input a number.

    The batch (the first axis, where the input has two or more) becomes `batch`, or 1; the other open dimensions take
    `known` (another model's shape of the same input, or the data's) where it has a number, else `size` in order: one
    extent for all, one for each, or the whole image's, whose fixed axes it then has to name as they are. A name of the
    first axis that is `bound` (see `bind_batch`) has that number, of a vector too. Where an extent stays open, the
    error offers `size`, and behind it what `remedy` says.
    """
    if info.dtype == np.dtype("object"):
        raise UsageError(f"input '{info.name}' is {info.kind}, not a numeric tensor: no numbers can be drawn for it")
    shape = list(info.shape or known)
    for axis, dim in enumerate(shape):
        if not isinstance(dim, int) and axis < len(known) and isinstance(known[axis], int):
            shape[axis] = known[axis]
    if shape and isinstance(shape[0], str):
        shape[0] = (bound or {}).get(shape[0], shape[0])
    if len(shape) > 1 and batch is not None and isinstance(shape[0], int) and shape[0] != batch:
        raise UsageError(
            f"{parameter('batch', batch)} does not fit: input '{info.name}' has the fixed batch {shape[0]}"
        )
    if len(shape) > 1 and not isinstance(shape[0], int):
        shape[0] = batch or 1
    free = [axis for axis, dim in enumerate(shape) if not isinstance(dim, int)]
    if free:
        dims = "x".join(str(dim) if dim is not None else "?" for dim in info.shape)
        if not size:
            letters = "x".join("DHW"[-len(free) :]) if 1 < len(free) < 4 else "L"
            raise UsageError(
                f"input '{info.name}' has the open shape {dims}", remedy=f"give {parameter('size', letters)}{remedy}"
            )
        sizes = list(size) * len(free) if len(size) == 1 else list(size)
        if len(free) < len(size) < len(shape):
            sizes = list(open_axes_of([dim if isinstance(dim, int) else None for dim in shape], size))
            if not sizes:
                raise UsageError(
                    f"{parameter('size', tuple(size))} does not fit: input '{info.name}' is fixed at {dims}",
                    remedy=f"{parameter('size', 'L' if len(free) == 1 else 'HxW')} gives the open "
                    f"{'axis' if len(free) == 1 else 'axes'} alone",
                )
        if len(size) > 1 and len(free) != len(sizes):
            raise UsageError(
                f"{parameter('size')} has {counted(len(size), 'number')}, but input '{info.name}' ({dims}) has "
                f"{counted(len(free), 'open dimension')}"
            )
        for axis, extent in zip(free, sizes, strict=False):
            shape[axis] = extent
    return InputSpec(info.name, info.dtype, tuple(int(dim) for dim in shape if isinstance(dim, int)))


def bind_batch(
    inputs: Sequence[TensorInfo], batch: int | None, named: Mapping[str, Sequence[int]] | None = None
) -> dict[str, int]:
    """What the names of first axes stand for: ids [N] beside an image [N, 3, H, W] have the image's batch.

    Args:
        inputs: of a model. batch: of an open first axis. named: inputs whose whole shape is given.
    """
    bound: dict[str, int] = {}
    for info in inputs:
        shape = (named or {}).get(info.name)
        if shape and info.shape and isinstance(info.shape[0], str):
            bound.setdefault(info.shape[0], shape[0])
    for info in inputs:
        if len(info.shape) > 1 and isinstance(info.shape[0], str):
            bound.setdefault(info.shape[0], batch or 1)
    return bound


def read_data(path: str | Path) -> Feeds:
    """Read an .npz file of inputs by name. Raises UsageError for anything else; never unpickles."""
    remedy = "write it with numpy.savez(path, input_name=array)"
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.lib.npyio.NpzFile):
            with archive:
                return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        whole = zipfile.is_zipfile(path) and "allow_pickle" in str(error)
        reason = "it holds Python objects" if whole else getattr(error, "strerror", None)
        reason = reason or f"it is no .npz file ({type(error).__name__})"
        raise UsageError(f"cannot read {path}: {reason}", remedy=remedy) from None
    raise UsageError(f"{path} is not an .npz file", remedy=remedy)


def cut_data(data: Mapping[str, Array], specs: Sequence[InputSpec]) -> list[Sample]:
    """Cut the user's arrays (axis 0 is samples) into sets of inputs of the model's batch.

    An array with one axis more than the input holds one whole input per entry; otherwise axis 0 is the input's own
    first axis, taken in steps of its extent.
    """
    columns: dict[str, list[Array]] = {}
    for spec in specs:
        columns[spec.name] = _cut(named_array(data, spec.name), spec)
    counts = {name: len(parts) for name, parts in columns.items()}
    if len(set(counts.values())) > 1:
        raise UsageError(f"the arrays of the data hold different numbers of samples: {counts}")
    count = next(iter(counts.values()), 0)
    if not count:
        raise UsageError("the data holds no sample")
    feeds = [{name: parts[i] for name, parts in columns.items()} for i in range(count)]
    return [Sample(values, f"data {i}{_numberless(values)}") for i, values in enumerate(feeds)]


def named_array(data: Mapping[str, Array], name: str) -> Array:
    """One of the user's arrays. Raises UsageError where it is not there."""
    if name not in data:
        raise UsageError(f"the data has no array '{name}' (it has: {', '.join(sorted(data)) or 'nothing'})")
    return data[name]


def _numberless(feeds: Feeds) -> str:
    """A remark on inputs that hold NaN or Inf; a mask may, but where an output does too, it is the first suspect."""
    names = [name for name, array in feeds.items() if array.dtype.kind == "f" and not np.isfinite(array).all()]
    return f", which holds NaN or Inf in '{names[0]}'" if names else ""


@dataclass(frozen=True)
class Images:
    """A folder of images as inputs: (pixel / 255 - mean) / std per channel; an integer input gets plain pixels.

    Attributes:
        folder: every file in it with an image's suffix, in order of their names.
        mean, std: one number, or one per channel.
        layout: letters of the input's axes, such as "NHWC"; "" finds the channels as the axis of extent 1 or 3.
        limit: read at most so many; 0 reads all.
    """

    folder: Path
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: str = ""
    limit: int = 0

    def parameters(self) -> dict[str, Any]:
        """These images as parameters of a command."""
        given: dict[str, Any] = {"images": str(self.folder)}
        for name, numbers, plain in (("mean", self.mean, (0.0,)), ("std", self.std, (1.0,))):
            given |= {name: tuple(numbers)} if numbers != plain else {}
        return given | {"layout": self.layout, "samples": self.limit or None}

    def samples(self, specs: Sequence[InputSpec]) -> list[Sample]:
        """Read the images at the size and in the batches that the input takes. Raises UsageError."""
        if len(specs) != 1:
            raise UsageError(
                f"{parameter('images')} fills one input, the model has {len(specs)}",
                remedy=f"give {parameter('data', 'F.npz')}",
            )
        spec = specs[0]
        layout = self._layout(spec)
        files = self._files()
        arrays = np.stack([self._read(file, spec, layout) for file in files])
        if "N" not in layout:
            return [Sample({spec.name: array}, f"image {f.name}") for array, f in zip(arrays, files, strict=True)]
        axis = layout.index("N")
        batch = spec.shape[axis]
        if len(files) % batch:
            raise UsageError(f"{self.folder} holds {counted(len(files), 'image')}, no multiple of the batch {batch}")
        starts = range(0, len(files), batch)
        chunks = [np.ascontiguousarray(np.moveaxis(arrays[i : i + batch], 0, axis)) for i in starts]
        return [Sample({spec.name: c}, f"image {files[i].name}") for c, i in zip(chunks, starts, strict=True)]

    def _layout(self, spec: InputSpec) -> str:
        layout, dims = self.layout.upper(), spec.shape
        if not layout and len(dims) in (3, 4):
            lead = "N" * (len(dims) - 3)
            guesses = [text for text in (lead + "CHW", lead + "HWC") if dims[text.index("C")] in (1, 3)]
            layout = guesses[0] if guesses else ""
        if len(layout) != len(dims) or "".join(sorted(layout)) not in ("CHNW", "CHW", "HNW", "HW"):
            shape = "x".join(map(str, dims))
            raise UsageError(
                f"input '{spec.name}' ({shape}) is no image",
                remedy=f"give its axes, as in {parameter('layout', 'NHWC')}",
            )
        return layout

    def _files(self) -> list[Path]:
        if not self.folder.is_dir():
            raise UsageError(f"{parameter('images', self.folder)}: there is no such folder")
        suffixes = set(".bmp .gif .jpeg .jpg .pgm .png .ppm .tif .tiff .webp".split())
        found = sorted(file for file in self.folder.iterdir() if file.suffix.lower() in suffixes)
        if not found:
            raise UsageError(
                f"{parameter('images', self.folder)}: no image in it", remedy=f"known are {' '.join(sorted(suffixes))}"
            )
        return found[: self.limit] if self.limit else found

    def _read(self, file: Path, spec: InputSpec, layout: str) -> Array:
        """One image, without the batch axis."""
        try:
            from PIL import Image, ImageOps
        except ImportError:
            raise UsageError(
                f"{parameter('images')} needs Pillow, which is not installed", remedy='pip install "convrewrite[plot]"'
            ) from None
        extent = dict(zip(layout, spec.shape, strict=True))
        channels = extent.get("C", 1)
        if channels not in (1, 3):
            raise UsageError(
                f"input '{spec.name}' has {counted(channels, 'channel')}, an image 1 or 3",
                remedy=f"give {parameter('data', 'F.npz')}",
            )
        try:
            with Image.open(file) as opened:
                image = _eight_bits(opened, file, Image.fromarray)
                mode = ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
                pixels = np.asarray(mode.resize((extent["W"], extent["H"]), Image.Resampling.BILINEAR))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            words = as_line(error)
            raise UsageError(f"cannot read the image {file}: {words or type(error).__name__}") from None
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if len(numbers) not in (1, channels):
                raise UsageError(
                    f"{parameter(name)} has {counted(len(numbers), 'number')}, the input has "
                    f"{counted(channels, 'channel')}"
                )
        pixels = pixels.reshape(extent["H"], extent["W"], channels)
        if spec.dtype.kind == "f":
            if 0.0 in self.std:
                raise UsageError(f"{parameter('std')} has a 0")
            pixels = (pixels / 255.0 - np.asarray(self.mean)) / np.asarray(self.std)
        elif (self.mean, self.std) != ((0.0,), (1.0,)):
            raise UsageError(
                f"input '{spec.name}' takes {spec.dtype}: {parameter('mean')} and {parameter('std')} are for "
                "floating-point inputs"
            )
        letters = layout.replace("N", "")
        ordered = pixels.transpose(["HWC".index(c) for c in (letters if "C" in letters else letters + "C")])
        return ordered.reshape([extent[letter] for letter in letters]).astype(spec.dtype)


def _eight_bits(image: Any, file: Path, fromarray: Callable[[Array], Any]) -> Any:
    """The image with 8 bits per pixel: Pillow cuts more bits off at 255, and nearly all pixels become white."""
    if image.mode in ("I", "F"):
        raise UsageError(f"the pixels of {file} have 32 bits and no known range", remedy="save it with 8 or 16 bits")
    if not image.mode.startswith("I;16"):
        return image
    return fromarray((np.asarray(image) >> 8).astype(np.uint8))


def _cut(array: Array, spec: InputSpec) -> list[Array]:
    """Cut one array into pieces of the input's shape and type."""
    if array.dtype != spec.dtype and not (array.dtype.kind == spec.dtype.kind == "f") and not _fits(array, spec):
        raise UsageError(f"array '{spec.name}' of the data is {array.dtype}, the input is {spec.dtype}")
    with np.errstate(over="ignore"):
        fitting = array.astype(spec.dtype, copy=False)
    if spec.dtype.kind == "f" and np.count_nonzero(np.isfinite(array)) != np.count_nonzero(np.isfinite(fitting)):
        raise UsageError(f"array '{spec.name}' of the data is {array.dtype} and too large for {spec.dtype}")
    array = fitting
    wanted = "x".join(map(str, spec.shape))
    if array.ndim == len(spec.shape) + 1 and array.shape[1:] == spec.shape:
        return [np.asarray(part) for part in array]  # those of a scalar input would be no arrays
    if array.ndim != len(spec.shape) or array.ndim == 0 or array.shape[1:] != spec.shape[1:]:
        raise UsageError(
            f"array '{spec.name}' of the data has shape {'x'.join(map(str, array.shape))}, the input is {wanted}"
        )
    batch = spec.shape[0]
    if batch == 0 or len(array) % batch:
        raise UsageError(
            f"array '{spec.name}' of the data holds {counted(len(array), 'sample')}, no multiple of the batch {batch}"
        )
    return [array[i : i + batch] for i in range(0, len(array), batch)]


def _fits(array: Array, spec: InputSpec) -> bool:
    """Whether integers of a wider type are all numbers of the input's."""
    if not spec.wide or array.dtype.kind not in "iu" or spec.dtype.kind not in "iu":
        return False
    bounds = np.iinfo(spec.dtype)
    return not array.size or (int(array.min()) >= bounds.min and int(array.max()) <= bounds.max)


def enlarge(image: Array, axes: Sequence[int], extents: Sequence[int]) -> Array:
    """Make a larger image of a real one by reflecting it at its far edges; a scalar stays as it is."""
    if not image.ndim:
        return image
    pads = [(0, 0)] * image.ndim
    for axis, extent in zip(axes, extents, strict=True):
        pads[axis] = (0, max(0, extent - image.shape[axis]))
    return np.pad(image, pads, mode="symmetric")
