"""How the pictures of the guide look: one paper, one set of colours, the same bytes every time."""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

PAPER, INK, SOFT = "#fbfaf7", "#1f2428", "#5c646b"
KEPT, LEFT_OUT, MARK = "#0b7a75", "#c9cdd2", "#b3261e"
SIGNED, SIZES = "PuOr", "cividis"
"""Colour maps that the colour-blind can read: of numbers with a sign, and of sizes."""

Array = np.ndarray[Any, Any]


def figure(width: float, height: float, columns: int, ratios: list[float] | None = None) -> tuple[Figure, list[Axes]]:
    """An empty figure, inches, with axes beside each other."""
    made = Figure(figsize=(width, height), facecolor=PAPER, layout="constrained")
    axes = made.subplots(1, columns, width_ratios=ratios, squeeze=False)[0]
    for ax in axes:
        ax.set_facecolor(PAPER)
        ax.tick_params(colors=SOFT, labelsize=8)
        for spine in ax.spines.values():
            spine.set_color(LEFT_OUT)
    return made, list(axes)


def image(ax: Axes, values: Array, title: str, cmap: str = SIGNED) -> None:
    """A matrix as cells; a signed colour map is centred on zero."""
    top = float(np.abs(values).max()) or 1.0
    ax.imshow(values, cmap=cmap, vmin=-top if cmap == SIGNED else 0, vmax=top, interpolation="nearest")
    ax.set_title(title, fontsize=9, color=INK)
    ax.set_xticks([])
    ax.set_yticks([])


def svg(drawn: Figure) -> bytes:
    """The figure as SVG without a date."""
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "convrewrite", "svg.fonttype": "path"}):
        drawn.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
