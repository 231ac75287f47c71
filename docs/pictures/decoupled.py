"""A convolution as depthwise and pointwise ones: which entries of the weight each of them has."""

from __future__ import annotations

import numpy as np
import style
from matplotlib.figure import Figure

CHANNELS, KERNEL = 4, 3


def tiled(weight: style.Array) -> style.Array:
    """[O, I, k, k] as one picture, a tile for each pair of channels, with gaps."""
    out, inputs, high, wide = weight.shape
    made = np.full((out * (high + 1) - 1, inputs * (wide + 1) - 1), np.nan)
    for o in range(out):
        for i in range(inputs):
            made[o * (high + 1) : o * (high + 1) + high, i * (wide + 1) : i * (wide + 1) + wide] = weight[o, i]
    return made


def draw() -> Figure:
    """A dense weight that is exactly depthwise then pointwise, and its two factors."""
    rng = np.random.default_rng(1)
    filters, mixing = rng.standard_normal((CHANNELS, KERNEL, KERNEL)), rng.standard_normal((CHANNELS, CHANNELS))
    dense = np.einsum("oi,ihw->oihw", mixing, filters)
    depthwise = np.einsum("oi,ihw->oihw", np.eye(CHANNELS), filters)
    drawn, axes = style.figure(8.4, 3.3, 3)
    entries = KERNEL * KERNEL
    for ax, weight, words in (
        (axes[0], dense, f"dense: {dense.size} numbers"),
        (axes[1], depthwise, f"depthwise: {CHANNELS * entries} numbers"),
        (axes[2], mixing[:, :, None, None], f"then pointwise: {mixing.size} numbers"),
    ):
        pictured = tiled(weight)
        top = np.nanmax(np.abs(pictured))
        ax.imshow(pictured, cmap=style.SIGNED, vmin=-top, vmax=top, interpolation="nearest")
        ax.set_title(words, fontsize=9, color=style.INK)
        ax.set_xlabel("channels in", fontsize=8, color=style.SOFT)
        ax.set_xticks([])
        ax.set_yticks([])
    axes[0].set_ylabel("channels out", fontsize=8, color=style.SOFT)
    return drawn
