"""A kernel of rank one is a column times a row; any kernel is a sum of such, by singular value decomposition."""

from __future__ import annotations

import numpy as np
import style
from matplotlib.figure import Figure

SIZE, KEPT = 9, 2


def kernel() -> style.Array:
    """The edge of a line at 30 degrees: no column times a row, but not far from a few of them."""
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    across, along = x * np.cos(np.pi / 6) + y * np.sin(np.pi / 6), y * np.cos(np.pi / 6) - x * np.sin(np.pi / 6)
    made: style.Array = -across * np.exp(-5 * across**2 - 1.5 * along**2)
    return made


def draw() -> Figure:
    """The kernel, its first term as column and row, the nearest kernel of two terms, and the singular values."""
    weight = kernel()
    left, values, right = np.linalg.svd(weight)
    near = (left[:, :KEPT] * values[:KEPT]) @ right[:KEPT]
    error = np.linalg.norm(weight - near) / np.linalg.norm(weight)
    assert np.isclose(error, np.linalg.norm(values[KEPT:]) / np.linalg.norm(values))
    drawn, axes = style.figure(9.6, 2.7, 5, [1, 0.16, 1, 1, 1.5])
    style.image(axes[0], weight, f"{SIZE} x {SIZE} kernel")
    style.image(axes[1], left[:, :1], "column")
    style.image(axes[2], right[:1], "times row")
    style.image(axes[3], near, f"{KEPT} terms,\noff by {error:.0%}")
    colours = [style.KEPT if index < KEPT else style.LEFT_OUT for index in range(SIZE)]
    axes[4].bar(range(1, SIZE + 1), values / values[0], color=colours)
    axes[4].axvline(KEPT + 0.5, color=style.MARK, ls="--", lw=1)
    axes[4].set_title("singular values: kept, left out", fontsize=9, color=style.INK)
    return drawn
