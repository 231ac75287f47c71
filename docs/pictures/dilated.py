"""The same cells with a stride, and without it behind a dilated kernel."""

from __future__ import annotations

import numpy as np
import style
from matplotlib.figure import Figure

PIXELS, STRIDE, TAPS = 12, 2, 3


def draw() -> Figure:
    """Which cells of the first layer each cell of the second one reads, both ways; shared cells are in colour."""
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal(PIXELS), rng.standard_normal(TAPS)
    coarse = np.convolve(first[::STRIDE], second[::-1], "valid")
    dilated = np.zeros((TAPS - 1) * STRIDE + 1)
    dilated[::STRIDE] = second
    dense = np.convolve(first, dilated[::-1], "valid")
    assert np.allclose(dense[::STRIDE], coarse)
    drawn, (above, below) = style.figure(9.0, 2.6, 2)
    for ax, step, kernel_step, count, title in (
        (above, STRIDE, 1, len(coarse), f"stride {STRIDE}, then {TAPS} taps beside each other"),
        (below, 1, STRIDE, len(dense), f"no stride, then {TAPS} taps {STRIDE} apart"),
    ):
        cells = range(0, PIXELS, step)
        ax.scatter(list(cells), [0] * len(cells), s=60, color=style.LEFT_OUT, zorder=3)
        for cell in range(count):
            shared = (cell * step) % STRIDE == 0
            colour = style.KEPT if shared else style.SOFT
            middle = cell * step + (TAPS - 1) * STRIDE / 2
            ax.scatter([middle], [1], s=70, color=colour, zorder=3)
            for tap in range(TAPS):
                place = cell * step + tap * step * kernel_step
                ax.plot([place, middle], [0, 1], color=colour, lw=1.1 if shared else 0.5, zorder=2)
        ax.set_title(title, fontsize=9, color=style.INK)
        ax.set_yticks([0, 1], ["first layer", "second"], fontsize=8)
        ax.set_xlim(-0.7, PIXELS - 0.3)
        ax.set_ylim(-0.4, 1.4)
    return drawn
