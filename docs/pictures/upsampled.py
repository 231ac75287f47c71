"""Cells at the centres of their windows, and the pixels between them."""

from __future__ import annotations

import numpy as np
import style
from matplotlib.figure import Figure

from convrewrite.engine.windows import Window
from convrewrite.pipeline.upsampling import interpolated

SIZE, STRIDE, CELLS = 9, 4, 5


def draw() -> Figure:
    """Scores along one axis of an image."""
    window = Window("x", "NCL", (SIZE,), (STRIDE,), (0,), (SIZE,), "windows")
    pixels = window.image_size((CELLS,))[0]
    cells = np.random.default_rng(4).uniform(-1, 1, (1, 1, CELLS))
    drawn, (ax,) = style.figure(7.4, 2.6, 1)
    for mode, colour, mark in (("nearest", style.LEFT_OUT, "s"), ("bilinear", style.KEPT, ".")):
        values = interpolated(cells, window, (pixels,), mode)[0, 0]
        ax.plot(range(pixels), values, mark, color=colour, ms=4, label=f"pixels, {mode}")
    centres = np.arange(CELLS) * STRIDE + (SIZE - 1) / 2
    ax.plot(centres, cells[0, 0], "o", color=style.MARK, ms=9, mfc="none", label="cells, at their windows' centres")
    ax.set_xlabel("pixel", fontsize=8, color=style.SOFT)
    ax.legend(fontsize=8, frameon=False)
    return drawn
