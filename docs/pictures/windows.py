"""Which pixels the cells of a fully convolutional network stand for: the windows of the converted LeNet-5."""

from __future__ import annotations

import style
from matplotlib.figure import Figure

from convrewrite.engine.rewrite import Lifting, run_pass
from convrewrite.model_io import load
from convrewrite.models import lenet5_path
from convrewrite.passes.fcn import Fcn

PIXELS = 56


def draw() -> Figure:
    """One bar for each window of an image, along one axis."""
    window = run_pass(Fcn(), load(str(lenet5_path())).graph).evidence_of(Lifting).window
    size, stride = window.size[0], window.stride[0]
    count = window.positions((PIXELS, PIXELS))[0]
    drawn, (ax,) = style.figure(7.2, 2.4, 1)
    ax.barh([-1], [PIXELS], height=0.7, color=style.LEFT_OUT)
    ax.text(PIXELS / 2, -1, f"image, {PIXELS} pixels", ha="center", va="center", fontsize=8, color=style.INK)
    for cell in range(count):
        ax.barh([cell], [size], left=cell * stride, height=0.7, color=style.KEPT, alpha=0.85)
        ax.text(cell * stride + size / 2, cell, f"cell {cell}", ha="center", va="center", fontsize=8, color="white")
    ax.annotate("", (stride, count - 0.4), (0, count - 0.4), arrowprops={"arrowstyle": "<->", "color": style.MARK})
    ax.text(stride + 1, count - 0.4, f"stride {stride}", fontsize=8, color=style.MARK, va="center")
    ax.set_ylim(count, -1.6)
    ax.set_yticks([])
    ax.set_xlabel("pixel", fontsize=8, color=style.SOFT)
    return drawn
