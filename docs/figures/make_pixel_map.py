"""Make the README's second picture: a class for every pixel of a large canvas, from one call of the dense LeNet-5.

    pip install -e ".[dev]"
    python docs/figures/make_pixel_map.py

Converts models/lenet5.onnx with `fcn --dense --upsample bilinear --softmax last`, runs the result once on a canvas of
held-out digits, draws pixel_map.png beside this file, and prints how many digits have their own class at their centre.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import onnxruntime
from make_class_map import COLOURS, PAPER, TEXT, write_png
from matplotlib.figure import Figure

from convrewrite.models import digits, lenet5_path

Array = np.ndarray[Any, Any]

SIDE, SEED, COUNT = 1024, 1, 220
PANEL, ABOVE, MARGIN = 5.2, 0.42, 0.14
"""Inches."""


def pixel_map(image: Array) -> Array:
    """Convert the model, run it once: probabilities [classes, height, width]."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "pixels.onnx")
        words = ["fcn", str(lenet5_path()), str(target), "--dense", "--upsample", "bilinear", "--softmax", "last"]
        subprocess.run([sys.executable, "-m", "convrewrite", *words, "--provider", "cpu", "--quiet"], check=True)
        session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    probabilities: Array = session.run(None, {"image": image})[0][0]
    return probabilities


def picture(image: Array, probabilities: Array) -> Figure:
    """The canvas, and the class of every pixel over it; a fainter colour is less sure."""
    size = 2 * PANEL + 3 * MARGIN, PANEL + ABOVE + MARGIN
    figure = Figure(figsize=size, dpi=110, facecolor=PAPER)
    classes, confidence = probabilities.argmax(0), probabilities.max(0)
    palette = np.array([mpl.colors.to_rgb(colour) for colour in COLOURS] + [(1.0, 1.0, 1.0)])
    found = classes != digits.BACKGROUND
    colours = np.dstack([palette[classes], np.where(found, 0.2 + 0.7 * confidence, 0.0)])
    titles = (
        f"In: {SIDE} × {SIDE} pixels",
        f"Out: {probabilities.shape[1]} × {probabilities.shape[2]} classes, one call",
    )
    for place, title in enumerate(titles):
        left = (MARGIN + place * (PANEL + MARGIN)) / size[0]
        axes = figure.add_axes((left, MARGIN / size[1], PANEL / size[0], PANEL / size[1]))
        axes.imshow(image[0, 0], cmap="gray_r", vmin=0, vmax=1.1 if place == 0 else 4.0)
        if place:
            axes.imshow(colours, interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(title, fontsize=13, fontweight="bold", loc="left", pad=8, **TEXT)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the picture."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--out", type=Path, default=Path(__file__).with_name("pixel_map.png"))
    options.add_argument("--result", type=Path, help="also write what is counted, for benchmarks.render")
    chosen = options.parse_args(arguments)
    target = chosen.out
    image, placements = digits.canvas(SIDE, SIDE, seed=SEED, count=COUNT)
    probabilities = pixel_map(image)
    right = sum(
        int(probabilities[:, p.top + 16, p.left + 16].argmax() == p.label) for p in placements
    )  # the middle of a glyph's window of 32 pixels
    write_png(picture(image, probabilities), target)
    print(f"{target.name}: {target.stat().st_size} bytes")
    print(f"{right} of {len(placements)} digits have their own class at their centre")
    if chosen.result is not None:
        counted = {"right": right, "digits": len(placements), "rehearsal": False}
        chosen.result.write_text(json.dumps(counted) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
