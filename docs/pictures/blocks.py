"""Channels that fall into groups which do not see each other: the same weight in two orders of its channels."""

from __future__ import annotations

import numpy as np
import style
from matplotlib.figure import Figure
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

CHANNELS, GROUPS = 16, 4


def draw() -> Figure:
    """Norms of the kernels between channels: as they stand in the file, and sorted by connected components."""
    rng = np.random.default_rng(7)
    each = CHANNELS // GROUPS
    norms = np.kron(np.eye(GROUPS), np.ones((each, each))) * rng.uniform(0.4, 1.0, (CHANNELS, CHANNELS))
    shuffled = norms[rng.permutation(CHANNELS)][:, rng.permutation(CHANNELS)]
    both = np.block([[np.zeros((CHANNELS, CHANNELS)), shuffled], [shuffled.T, np.zeros((CHANNELS, CHANNELS))]])
    count, labels = connected_components(csr_array(both), directed=False)
    assert count == GROUPS
    outs, ins = (np.argsort(part, kind="stable") for part in (labels[:CHANNELS], labels[CHANNELS:]))
    drawn, axes = style.figure(6.6, 3.1, 2)
    style.image(axes[0], shuffled, "as the file has it", style.SIZES)
    style.image(axes[1], shuffled[outs][:, ins], f"the channels sorted: {GROUPS} groups", style.SIZES)
    axes[0].set_ylabel("channels out", fontsize=8, color=style.SOFT)
    for ax in axes:
        ax.set_xlabel("channels in", fontsize=8, color=style.SOFT)
    return drawn
