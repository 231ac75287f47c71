"""What is compared in a fully convolutional model: its models, its grids, and images beyond the native size.

A map [N, K, *spatial] of the converted model is cut with slices into blocks of the original output's native size, and
each block is brought to the original's layout. Nothing of the converter is used for it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from convrewrite.engine.windows import OutputGrid, Window
from convrewrite.errors import UsageError
from convrewrite.running.sampling import Feeds, Images, InputSpec, Scale, enlarge, random_array
from convrewrite.text import counted, parameter
from convrewrite.verification.comparison import Ledger
from convrewrite.verification.evidence import Evidence
from convrewrite.verification.specimens import Data, Progress, Specimen

Array = np.ndarray[Any, Any]
Values = dict[str, Array]
Position = tuple[int, ...]

CROP_PIXELS = 16_000_000
"""At most this many pixels of crops go through the original per image. Every window is compared where they fit (320
of 224x224, 15,625 of 32x32); on larger maps the corners and a seeded choice of the rest."""


@dataclass
class Subject:
    """Everything that the checks of one conversion share.

    Attributes:
        grids: per output and probe that depends on the image, how its cells lie.
        spec: the image input at the native size.
        beside: the inputs that lie on the image's grid, at the native size.
        room: raises DeviceFailed where an image of a size would not fit into the memory.
    """

    window: Window
    original: Specimen
    converted: Specimen
    evidence: Evidence
    ledger: Ledger
    spec: InputSpec
    beside: Sequence[InputSpec] = ()
    seed: int = 0
    progress: Progress | None = None
    grids: dict[str, OutputGrid] = field(default_factory=dict)
    room: Callable[[Sequence[int]], None] = lambda size: None

    @property
    def coarsely(self) -> Subject:
        """The same with the stride before `dense`: only each factor-th cell is looked at."""
        window = self.window
        return replace(self, window=replace(window, stride=window.coarse)) if window.coarse else self

    def fits(self, found: Sequence[int], extents: Sequence[int], exact: bool = True) -> bool:
        """Whether a map has the cells that it should have; a denser one may have some more behind the last window."""
        if len(found) != len(extents):
            return False
        window = self.window
        more = [0] * len(extents)
        if window.coarse:
            more = [a // min(g.stride[i] for g in self.grids.values()) - 1 for i, a in enumerate(window.coarse)]
        triples = zip(found, extents, more, strict=True)
        return all(want <= have and (not exact or have <= want + slack) for have, want, slack in triples)

    @property
    def axes(self) -> tuple[int, ...]:
        """The dimensions of the spatial axes of the image input."""
        return self.window.places(self.window.input)

    def ratio(self, grid: OutputGrid) -> tuple[int, ...]:
        """The number of cells of a map per step of the window."""
        return tuple(step // cells for step, cells in zip(self.window.stride, grid.stride, strict=True))

    def block(self, name: str, values: Mapping[str, Array], position: Position) -> Array | None:
        """What a map holds for the window at `position`, in the original's layout; None where it does not fit."""
        grid = self.grids[name]
        starts = tuple(index * ratio for index, ratio in zip(position, self.ratio(grid), strict=True))
        return to_layout(values[name], grid, self.window.letters, starts)

    def fixed_size(self) -> tuple[int, ...] | None:
        """The one image size that the converted model takes; None where it takes any."""
        shape = next(info.shape for info in self.converted.session.inputs if info.name == self.window.input)
        dims = [shape[axis] for axis in self.axes]
        if not any(isinstance(dim, int) for dim in dims):
            return None
        return tuple(dim if isinstance(dim, int) else size for dim, size in zip(dims, self.window.size, strict=True))


@dataclass(frozen=True)
class LargeImage:
    """An image beyond the native size, with the windows that are compared on it.

    Attributes:
        size: in pixels. chosen: the positions that are compared. total: positions that there are.
        exact: the size is native + k * stride, so the maps have just the expected extents.
        feeds: inputs of the converted model. note: what the inputs are.
    """

    size: tuple[int, ...]
    chosen: tuple[Position, ...]
    total: int
    exact: bool
    feeds: Feeds
    scale: Scale
    note: str

    @property
    def name(self) -> str:
        """The size as text."""
        return "x".join(map(str, self.size))


def to_layout(new: Array, grid: OutputGrid, letters: str, starts: Position) -> Array | None:
    """Cut one native-sized block out of a [N, K, *spatial] map and bring it to the original output's layout."""
    axes = "NC" + letters
    stops = [start + extent for start, extent in zip(starts, grid.size, strict=True)]
    if new.ndim != len(axes) or any(stop > extent for stop, extent in zip(stops, new.shape[2:], strict=True)):
        return None
    block = new[(slice(None), slice(None), *(slice(a, b) for a, b in zip(starts, stops, strict=True)))]
    factors = grid.channels or block.shape[1:2]
    if int(np.prod(factors, dtype=int)) != block.shape[1]:
        return None
    block = block.reshape(block.shape[0], *factors, *block.shape[2:])
    # Every factor of the channels gets a name of its own: C0, C1, ... in the order in which the layout has them.
    names = ["N", *(f"C{i}" for i in range(len(factors))), *letters]
    extent = dict(zip(names, block.shape, strict=True))
    count = itertools.count()
    parts = [[f"C{next(count)}" if letter == "C" else letter for letter in part] for part in grid.layout]
    order = list(itertools.chain.from_iterable(parts))
    gone = [name for name in names if name not in order]
    if any(extent[name] != 1 for name in gone) or not set(order) <= set(names):
        return None
    block = block.transpose([names.index(name) for name in [*gone, *order]])
    return block.reshape([int(np.prod([extent[name] for name in part], dtype=int)) for part in parts])


def split_data(
    data: Data | None, window: Window, specs: Sequence[InputSpec]
) -> tuple[Data | None, Mapping[str, Array] | None]:
    """The user's data at the native size, and its first image where that is larger than the window.

    The image comes with what lies beside it, by the names of their inputs.
    """
    if data is None or isinstance(data, Images):
        return data, None
    parts = {spec.name: _split(data, window, spec) for spec in specs if spec.name in window.images}
    if None in parts.values():
        return data, None
    known = {name: part for name, part in parts.items() if part is not None}
    return {**data, **{name: part[0] for name, part in known.items()}}, {n: part[1] for n, part in known.items()}


def _split(data: Mapping[str, Array], window: Window, spec: InputSpec) -> tuple[Array, Array] | None:
    """The user's array for one input at the native size, and its first entry as it is; None where it is no larger."""
    if spec.name not in data:
        return None
    image, letters = data[spec.name], window.images[spec.name]
    extra = image.ndim - len(spec.shape)
    axes = [place + extra for place in window.places(spec.name)]
    if extra not in (0, 1) or any(image.shape[axis] < size for axis, size in zip(axes, window.size, strict=True)):
        return None  # cut_data says what does not fit
    index = [slice(None)] * image.ndim
    for axis, size, start in zip(axes, window.size, window.offset, strict=True):
        index[axis] = slice(start, start + size) if start >= 0 else slice(0, size)
    native = image[tuple(index)]
    if native.shape == image.shape:
        return None
    first = image[0] if extra else image
    if not extra and "N" in letters:
        axis = letters.index("N")
        first = first[tuple(slice(0, spec.shape[axis]) if i == axis else slice(None) for i in range(first.ndim))]
    return native, np.ascontiguousarray(first.astype(spec.dtype, copy=False))


def window_plans(window: Window) -> list[tuple[tuple[int, ...], bool]]:
    """Numbers of windows per axis: not square, with pixels left over, and long and thin."""
    rest = len(window.size) - 1
    return [((3,) + (2,) * rest, False), ((2,) + (2,) * rest, True), ((1,) * rest + (5,), False)]


def native_size_plans(window: Window) -> list[tuple[tuple[int, ...], bool]]:
    """Numbers of windows per axis; sizes of native + k * stride alone, where SAME pads keep their phase."""
    rest = len(window.size) - 1
    return [((2,) + (2,) * rest, False), ((3,) + (2,) * rest, False)]


def large_images(
    subject: Subject,
    plans: Sequence[tuple[Position, bool]],
    wanted: Sequence[tuple[int, ...]] = (),
    given: Mapping[str, Array] | None = None,
) -> list[Callable[[], LargeImage]]:
    """What makes images for some numbers of windows per axis, with a remainder of pixels where the flag is set.

    Each is made when it is called for, since it may be too large for the memory. Where sizes are `wanted`, images of
    those instead; a converted model of one fixed size takes that one alone. An image that is `given` is taken as it is.
    """
    window = subject.window
    fixed = subject.fixed_size()
    sizes: list[tuple[int, ...]] = []
    for size in wanted:
        _check_size(size, fixed, window)
    if given is not None:
        own = tuple(given[window.input].shape[axis] for axis in subject.axes)
        _check_size(own, fixed, window)
        for name, array in given.items():
            if tuple(array.shape[axis] for axis in window.places(name)) != own:
                found = "x".join(str(array.shape[axis]) for axis in window.places(name))
                text = "x".join(map(str, own))
                raise UsageError(f"array '{name}' of the data is {found}, beside '{window.input}' of {text}")
        return [functools.partial(_large_image, subject, own, 0, given)]
    for positions, remainder in [] if wanted else plans:
        rest = [(step - 1 if axis % 2 == 0 else step // 2) * remainder for axis, step in enumerate(window.stride)]
        sizes.append(tuple(extent + r for extent, r in zip(window.image_size(positions), rest, strict=True)))
    if fixed is not None:
        sizes = [fixed]
    every = dict.fromkeys([*wanted, *sizes])
    return [
        functools.partial(_large_image, subject, size, index) for index, size in enumerate(every) if size != window.size
    ]


def _check_size(size: Sequence[int], fixed: Sequence[int] | None, window: Window) -> None:
    """Raise UsageError where no larger image can have that size."""
    text, own = "x".join(map(str, size)), "x".join(map(str, window.size))
    if len(size) != len(window.size):
        raise UsageError(
            f"{parameter('size', text)} has {counted(len(size), 'number')}, the model has "
            f"{counted(len(window.size), 'spatial axis')}"
        )
    if any(wanted < least for wanted, least in zip(size, window.size, strict=True)):
        raise UsageError(f"{parameter('size', text)} is smaller than the classifier's own {own}")
    if fixed is not None and tuple(fixed) != tuple(size):
        only = "x".join(map(str, fixed))
        raise UsageError(f"{parameter('size', text)} does not fit: the converted model takes images of {only} alone")


def _large_image(
    subject: Subject, size: tuple[int, ...], index: int, given: Mapping[str, Array] | None = None
) -> LargeImage:
    """One image of that size (the user's own where it is given), and the windows to compare on it."""
    subject.room(size)
    window, samples = subject.window, subject.evidence.samples
    sample = samples[index % len(samples)]
    seed = subject.seed + 1000 + index
    rng = np.random.default_rng(seed)
    if given is not None:
        images, note = dict(given), "the data's own image"
    elif sample.scale is not None:
        images = {
            spec.name: random_array(
                rng, replace(spec, shape=tuple(window.at_size(spec.name, spec.shape, size))), sample.scale
            )
            for spec in (subject.spec, *subject.beside)
        }
        note = f"{sample.scale.name}, seed {seed}"
    else:
        images = {
            spec.name: enlarge(sample.feeds[spec.name], window.places(spec.name), size)[
                tuple(slice(0, extent) for extent in window.at_size(spec.name, spec.shape, size))
            ]
            for spec in (subject.spec, *subject.beside)
        }
        note = f"{sample.source}, reflected"
    positions = [tuple(map(int, p)) for p in np.ndindex(*window.positions(size))]
    budget = max(4, CROP_PIXELS // max(1, int(np.prod(window.size))))
    chosen = positions
    if len(positions) > budget:
        ends = [sorted({0, count - 1}) for count in window.positions(size)]
        corners = list(itertools.product(*ends))
        picks = rng.choice(len(positions), size=budget - min(budget, len(corners)), replace=False)
        chosen = sorted({*corners, *(positions[i] for i in picks)})
        note += f"; {len(chosen)} of {counted(len(positions), 'window')}"
    exact = all((a - b) % c == 0 for a, b, c in zip(size, window.size, window.stride, strict=True))
    feeds = {**sample.feeds, **images}
    return LargeImage(
        size=size,
        chosen=tuple(chosen),
        total=len(positions),
        exact=exact,
        feeds=feeds,
        scale=sample.scale or Scale("0..1"),
        note=note,
    )
