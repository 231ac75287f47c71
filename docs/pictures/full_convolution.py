"""A fully connected layer is a convolution with a kernel as large as its map; on a larger map it slides."""

from __future__ import annotations

import numpy as np
import style
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy.signal import correlate2d

KERNEL, MAP, PICKED = 5, 12, (2, 4)


def draw() -> Figure:
    """The map, the weights as a kernel, and the sums at every place; one window and its cell are marked."""
    rng = np.random.default_rng(3)
    values = rng.standard_normal((MAP, MAP))
    weights = rng.standard_normal((KERNEL, KERNEL))
    sums = correlate2d(values, weights, mode="valid")
    row, column = PICKED
    window = values[row : row + KERNEL, column : column + KERNEL]
    assert np.isclose(window.ravel() @ weights.ravel(), sums[row, column])  # the fully connected layer on that crop
    drawn, (left, middle, right) = style.figure(8.4, 3.0, 3, [1.2, 0.6, 0.9])
    style.image(left, values, f"a map of {MAP} x {MAP}")
    left.add_patch(Rectangle((column - 0.5, row - 0.5), KERNEL, KERNEL, fill=False, edgecolor=style.MARK, lw=2))
    style.image(middle, weights, f"the {KERNEL * KERNEL} weights of one neuron,\nas a {KERNEL} x {KERNEL} kernel")
    style.image(right, sums, f"its answer for all {sums.size} windows")
    right.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=style.MARK, lw=2))
    return drawn
