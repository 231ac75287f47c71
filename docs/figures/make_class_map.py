"""Make the README's picture: a canvas full of digits, and the class map that one pass of the converted LeNet-5 gives.

    pip install -e ".[dev]"
    python docs/figures/make_class_map.py

Converts the committed models/lenet5.onnx with the command line, runs the result once on a canvas of held-out digits,
and draws class_map.png beside this file. Everything in the picture but the words comes from the run: the map, and the
window with its stride from the metadata of the converted model. The same versions give the same file every time.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import onnxruntime
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from scipy import ndimage

from convrewrite.engine.windows import Window
from convrewrite.models import digits, lenet5_path

Array = np.ndarray[Any, Any]

HEIGHT, WIDTH, SEED, COUNT = 256, 384, 0, 32
PICKED = 0.25, 0.3
"""The window that is drawn belongs to the digit nearest to this place (fractions of the canvas)."""
SMALL_PATCH = 3
"""A patch with fewer cells carries no number."""

PANEL, MARGIN, GAP, ABOVE, BELOW, DPI = 5.2, 0.14, 0.3, 0.42, 0.46, 140
"""Inches: width of a panel, and the room around the two."""

PAPER, INK, SOFT, MARK = "#fbfaf7", "#22262b", "#6b7076", "#d1341f"
COLOURS = (
    "#4269d0", "#e0931a", "#2f9e62", "#d64550", "#7b5fc6",
    "#8a5a3c", "#e377b5", "#5f6f7f", "#a3a31b", "#17a2b5",
)  # fmt: skip
"""One per digit; the background has none."""

TEXT: dict[str, Any] = {"family": "DejaVu Sans", "color": INK}


def class_map(image: Array) -> tuple[Array, Window]:
    """Convert the model, run it once: probabilities [classes, rows, columns] and what a cell stands for."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "any_size.onnx")
        command = [sys.executable, "-m", "convrewrite", "fcn", str(lenet5_path()), str(target), "--provider", "cpu"]
        subprocess.run([*command, "--quiet"], check=True)
        session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    window = Window.from_metadata(session.get_modelmeta().custom_metadata_map)
    if window is None or window.equivalence != "windows":
        raise SystemExit("the converted model does not claim that its cells are windows")
    return session.run(None, {window.input: image})[0][0], window


def frame(axes: Axes, title: str) -> None:
    """A panel in the canvas's own pixels."""
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(HEIGHT, 0)
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set(color="#c9c6bd", linewidth=0.8)
    axes.set_title(title, fontsize=13, fontweight="bold", loc="left", pad=8, **TEXT)


def below(axes: Axes, x: float, text: str, **style: Any) -> None:
    """Words in the line below a panel; `x` in its pixels."""
    axes.text(x, HEIGHT + 17, text, va="center_baseline", clip_on=False, **{**TEXT, "fontsize": 10.5, **style})


def key(axes: Axes, x: float, **style: Any) -> None:
    """A small square in that line."""
    axes.add_patch(Rectangle((x, HEIGHT + 12.5), 8, 8, clip_on=False, **style))


def draw_map(axes: Axes, scores: Array, window: Window, picked: tuple[int, int]) -> None:
    """Each cell as a square of one stride around the centre of its window, and a number beside each patch."""
    classes, confidence = scores.argmax(0), scores.max(0)
    (top, left), (down, across) = first_cell(window), window.stride
    rows, columns = classes.shape
    palette = np.array([mpl.colors.to_rgb(colour) for colour in COLOURS] + [(1.0, 1.0, 1.0)])
    found = classes != digits.BACKGROUND
    colours = np.dstack([palette[classes], np.where(found, 0.25 + 0.75 * confidence, 0.0)])
    extent = (left, left + columns * across, top + rows * down, top)
    axes.imshow(colours, extent=extent, interpolation="nearest", zorder=2)
    patches, count = ndimage.label(found, np.ones((3, 3)))
    for patch in range(1, count + 1):
        cells = np.argwhere(patches == patch)
        if len(cells) < SMALL_PATCH:
            continue
        label = int(scores[:10, cells[:, 0], cells[:, 1]].sum(1).argmax())
        beside = left + (cells[:, 1].max() + 1) * across
        if patches[picked] == patch:  # beside the window that is drawn there
            beside = window.offset[1] + picked[1] * across + window.size[1]
        axes.text(
            beside + 2.5,
            top + (cells[:, 0].mean() + 0.5) * down,
            str(label),
            va="center_baseline",
            path_effects=[patheffects.withStroke(linewidth=2.5, foreground="white")],
            zorder=3,
            **{**TEXT, "color": COLOURS[label], "fontsize": 13, "fontweight": "bold"},
        )


def first_cell(window: Window) -> tuple[float, float]:
    """Top left corner of the first cell: a square of one stride in the middle of its window."""
    top, left = (o + (n - s) / 2 for o, n, s in zip(window.offset, window.size, window.stride, strict=True))
    return top, left


def draw_window(left: Axes, right: Axes, window: Window, picked: tuple[int, int]) -> None:
    """One window and the next one on the canvas; the window and its cell on the map."""
    (height, width), (down, across) = window.size, window.stride
    row, column = picked
    y, x = window.offset[0] + row * down, window.offset[1] + column * across
    top, start = first_cell(window)
    dashed: dict[str, Any] = {"ls": (0, (2, 1.6)), "lw": 1.1}
    solid: dict[str, Any] = {"ls": "-", "lw": 2.2}
    rectangles = (
        (left, (x + across, y), width, height, dashed),
        (left, (x, y), width, height, solid),
        (right, (x, y), width, height, {**solid, "lw": 1.1}),
        (right, (start + column * across, top + row * down), across, down, {**solid, "lw": 1.6}),
    )
    for axes, corner, breadth, depth, style in rectangles:
        axes.add_patch(Rectangle(corner, breadth, depth, fill=False, ec=MARK, joinstyle="miter", zorder=5, **style))


def picture(image: Array, placements: Sequence[digits.Placement], scores: Array, window: Window) -> Figure:
    """The two panels side by side, a line of words below each."""
    depth = PANEL * HEIGHT / WIDTH
    size = 2 * (MARGIN + PANEL) + GAP, ABOVE + depth + BELOW
    figure = Figure(figsize=size, dpi=DPI, facecolor=PAPER)
    left, right = (
        figure.add_axes((x / size[0], BELOW / size[1], PANEL / size[0], depth / size[1]))
        for x in (MARGIN, MARGIN + PANEL + GAP)
    )
    (height, width), (down, across) = window.size, window.stride
    frame(left, f"In: an image of any size, here {HEIGHT} × {WIDTH}")
    frame(right, f"Out: {scores.shape[1]} × {scores.shape[2]} windows classified in one pass")
    place: dict[str, Any] = {"extent": (0, WIDTH, HEIGHT, 0), "cmap": "gray_r", "vmin": 0.0}
    left.imshow(image[0, 0], vmax=1.1, **place)
    right.imshow(image[0, 0], vmax=7.0, **place)
    near = min(placements, key=lambda p: abs(p.top / HEIGHT - PICKED[0]) + abs(p.left / WIDTH - PICKED[1]))
    picked = round(near.top / down), round(near.left / across)
    draw_map(right, scores, window, picked)
    draw_window(left, right, window, picked)
    key(left, 1, fill=False, ec=MARK, lw=2)
    below(left, 14, f"one window, {height} × {width}, and its cell; the next (dashed) starts {across} pixels on")
    for label, colour in enumerate(COLOURS):
        key(right, 21 * label, color=colour, lw=0)
        below(right, 21 * label + 10, str(label))
    below(right, WIDTH, "faint: less sure, none: no digit", ha="right", color=SOFT)
    return figure


def write_png(figure: Figure, target: Path) -> None:
    """Write with a palette: a third of the size, and no difference to the eye."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    Image.open(buffer).convert("RGB").quantize(200, dither=Image.Dither.NONE).save(target, optimize=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the picture."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--out", type=Path, default=Path(__file__).with_name("class_map.png"))
    target = options.parse_args(arguments).out
    image, placements = digits.canvas(HEIGHT, WIDTH, seed=SEED, count=COUNT)
    scores, window = class_map(image)
    write_png(picture(image, placements, scores, window), target)
    print(f"{target.name}: {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
