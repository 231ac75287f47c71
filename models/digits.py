"""The handwritten digits that scikit-learn ships, as LeNet-5 sees them: 32x32 glyphs, patches, canvases.

Data: the test part of "Optical Recognition of Handwritten Digits" (Alpaydin, Kaynak 1998, UCI repository),
1797 images of 8x8 pixels, values 0 to 16, about 180 per digit, from 13 writers. Ink is bright, paper is 0.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

__all__ = ["BACKGROUND", "SIDE", "Placement", "canvas", "glyphs", "patches", "upsample"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

SIDE = 32
"""Side of a glyph, and of the window of LeNet-5, in pixels."""
BACKGROUND = 10
"""The class of a window that no digit is centred in."""
CENTRED = 3
"""A digit at most this many pixels off the window's centre, per axis, is still that digit."""
OFF_CENTRE = 9
"""A digit at least this many pixels off, along some axis, is background. Between the two: no label."""


@dataclass(frozen=True)
class Placement:
    """A digit on a canvas; its glyph covers rows top to top + 32 and columns left to left + 32."""

    label: int
    top: int
    left: int


def upsample(images: npt.NDArray[Any], side: int = SIDE) -> Floats:
    """Bilinear enlargement with half-pixel centres: [N,h,w] of 0..16 -> [N,side,side] of 0..1.

    Outside the image the paper goes on (zeros), so that ink at the edge fades out and is not cut.
    """

    def weights(length: int) -> npt.NDArray[np.float64]:
        centres = (np.arange(side) + 0.5) * length / side - 0.5
        return np.clip(1.0 - np.abs(centres[:, None] - np.arange(length)), 0.0, None)

    rows, columns = weights(images.shape[1]), weights(images.shape[2])
    return np.asarray(rows @ (images / 16.0) @ columns.T, np.float32)


def glyphs(part: Literal["train", "held-out"]) -> tuple[Floats, Ints]:
    """Glyphs [N,32,32] in 0..1 and labels [N] of one part of the fixed, stratified split.

    Every fourth image of each digit, in the data set's order, is held out (25 %). There is no random
    number in it, so every version of every library gives the same split. Writers are in both parts.
    """
    datasets: Any = importlib.import_module("sklearn.datasets")  # only needed here, and slow to import
    images, labels = datasets.load_digits(return_X_y=True)
    labels = np.asarray(labels, np.int64)
    held_out = np.zeros(len(labels), bool)
    for digit in range(10):
        held_out[np.flatnonzero(labels == digit)[3::4]] = True
    chosen = held_out if part == "held-out" else ~held_out
    return upsample(np.asarray(images).reshape(-1, 8, 8)[chosen]), labels[chosen]


def patches(images: Floats, labels: Ints, rng: np.random.Generator, background: float = 1.0) -> tuple[Floats, Ints]:
    """Random windows on scenes of glyphs: [M,1,32,32] and labels [M] of 11 classes.

    One patch per glyph with the glyph within ``CENTRED`` pixels of the centre, every second one with a
    neighbour reaching in from a side; and ``background`` times as many patches with one or two digits
    off the centre (nine in ten) or plain paper of some brightness (one in ten).
    """
    count = round(len(images) * background)
    result = np.zeros((len(images) + count, SIDE, SIDE), np.float32)
    for patch, image in zip(result[: len(images)], images, strict=True):
        top, left = rng.integers(-CENTRED, CENTRED + 1, 2)
        _paste(patch, image, top, left)
        if rng.random() < 0.5:
            _paste(patch, images[rng.integers(len(images))], *_neighbour(rng, top, left))
        patch *= rng.uniform(0.7, 1.0)
    for patch in result[len(images) :]:
        if rng.random() < 0.1:
            patch += rng.uniform(0.0, 1.0) * rng.integers(2)
            continue
        top, left = _off_centre(rng)
        _paste(patch, images[rng.integers(len(images))], top, left)
        if rng.random() < 0.5:
            _paste(patch, images[rng.integers(len(images))], *_other_side(rng, top, left))
        patch *= rng.uniform(0.7, 1.0)
    return result[:, None], np.concatenate([labels, np.full(count, BACKGROUND, np.int64)])


def canvas(
    height: int, width: int, seed: int = 0, count: int | None = None, gap: int = 4
) -> tuple[Floats, tuple[Placement, ...]]:
    """Held-out digits scattered over dark paper: image [1,1,height,width] in 0..1, and where each digit is.

    Glyphs stay ``gap`` pixels apart and inside the canvas. ``count`` digits are placed, fewer where no
    more fit; None places about one per two glyph areas.
    """
    if height < SIDE or width < SIDE:
        raise ValueError(f"a canvas of {height}x{width} has no room for a {SIDE}x{SIDE} digit")
    rng = np.random.default_rng(seed)
    images, labels = glyphs("held-out")
    wanted = max(1, height * width // (2 * SIDE * SIDE)) if count is None else count
    result = np.zeros((height, width), np.float32)
    placed: list[Placement] = []
    for _ in range(200 * wanted):
        if len(placed) == wanted:
            break
        top, left = int(rng.integers(height - SIDE + 1)), int(rng.integers(width - SIDE + 1))
        if any(max(abs(top - p.top), abs(left - p.left)) < SIDE + gap for p in placed):
            continue
        index = int(rng.integers(len(images)))
        _paste(result, images[index], top, left)
        placed.append(Placement(int(labels[index]), top, left))
    return result[None, None], tuple(placed)


def _paste(target: Floats, glyph: Floats, top: int, left: int) -> None:
    """Draw ``glyph`` on ``target`` with its corner at (top, left), clipped; ink on ink keeps the brighter."""
    if not (-SIDE < top < target.shape[0] and -SIDE < left < target.shape[1]):
        return
    view = target[max(top, 0) : top + SIDE, max(left, 0) : left + SIDE]
    above, before = max(-top, 0), max(-left, 0)
    part = glyph[above : above + view.shape[0], before : before + view.shape[1]]
    np.maximum(view, part, out=view)


def _off_centre(rng: np.random.Generator) -> tuple[int, int]:
    """A shift of OFF_CENTRE to 30 pixels along at least one axis."""
    far = int(rng.integers(OFF_CENTRE, SIDE - 1)) * int(rng.choice((-1, 1)))
    other = int(rng.integers(-SIDE + 6, SIDE - 5))
    return (far, other) if rng.random() < 0.5 else (other, far)


def _neighbour(rng: np.random.Generator, top: int, left: int) -> tuple[int, int]:
    """A corner next to the glyph at (top, left): SIDE to SIDE + 8 pixels away along one axis."""
    far = int(rng.integers(SIDE, SIDE + 9)) * int(rng.choice((-1, 1)))
    other = int(rng.integers(-SIDE, SIDE + 1))
    return (top + far, left + other) if rng.random() < 0.5 else (top + other, left + far)


def _other_side(rng: np.random.Generator, top: int, left: int) -> tuple[int, int]:
    """A corner across the window from an off-centre glyph, clear of it and of the centre."""
    far = int(rng.integers(SIDE, SIDE + 9))
    if abs(top) >= abs(left):
        shift = top - far if top > 0 else top + far
        return (min(shift, -OFF_CENTRE) if top > 0 else max(shift, OFF_CENTRE)), left
    shift = left - far if left > 0 else left + far
    return top, (min(shift, -OFF_CENTRE) if left > 0 else max(shift, OFF_CENTRE))
