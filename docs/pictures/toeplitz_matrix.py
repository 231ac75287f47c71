"""A convolution is a matrix: doubly block Toeplitz, with one row per output cell."""

from __future__ import annotations

import numpy as np
import style
from matplotlib.figure import Figure
from scipy.signal import correlate2d

from convrewrite.engine.layers import Sliding
from convrewrite.inspection.toeplitz import toeplitz

SIZE = 6


def draw() -> Figure:
    """The 3 x 3 kernel, the matrix that inspect --toeplitz builds of it, and the patches that im2col copies."""
    weight = np.arange(1.0, 10.0).reshape(1, 1, 3, 3)
    matrix = toeplitz(weight, Sliding.read({}, (3, 3), (SIZE, SIZE))).toarray()
    pixels = np.random.default_rng(0).standard_normal((SIZE, SIZE))
    assert np.allclose(matrix @ pixels.ravel(), correlate2d(pixels, weight[0, 0], mode="valid").ravel())
    patches = np.stack([pixels[i : i + 3, j : j + 3].ravel() for i in range(SIZE - 2) for j in range(SIZE - 2)])
    assert np.allclose(patches @ weight.ravel(), matrix @ pixels.ravel())
    drawn, axes = style.figure(9.0, 3.0, 3, [0.5, 2.2, 0.7])
    style.image(axes[0], weight[0, 0], "3 x 3 kernel", style.SIZES)
    style.image(
        axes[1], matrix, f"its matrix for a {SIZE} x {SIZE} image: {matrix.shape[0]} x {matrix.shape[1]}", style.SIZES
    )
    style.image(axes[2], patches, f"im2col of an image:\n{patches.shape[0]} patches of {patches.shape[1]}")
    return drawn
