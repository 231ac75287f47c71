"""The kernel that a rewritten convolution amounts to, as the original one would hold it.

    grouped Conv (W1, W2), channels in another order        ==>        W~ [O, I/g, *kernel] with zeros outside of the
                                                                       blocks, in the original's order of channels

The rewritten model is verified against the original with that kernel in it. Channels that were left out keep what they
had: nothing reads them, or what they add, always the same, is in a bias of the rewritten model.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite.passes.groups.detection import Array, spread
from convrewrite.passes.groups.packing import Layout
from convrewrite.passes.groups.site import ConvSite
from convrewrite.passes.groups.weights import Origin, node_of, origin

Kernel = Callable[[], tuple[Array, Array | None]]


def reconstruction(graph: gs.Graph, site: ConvSite, layout: Layout) -> Kernel:
    """What gives the kernel when it is asked for."""
    where = origin(node_of(graph, site.anchor).inputs[1], site.channels)
    weight, group = site.weight, site.group
    return lambda: (_kernel(weight, group, where, layout), None)


def _kernel(weight: Array, group: int, where: Origin, layout: Layout) -> Array:
    dense = spread(weight, group)
    mask = layout.mask(*dense.shape[:2])
    kept = np.where(mask.reshape(*mask.shape, *[1] * (dense.ndim - 2)), dense, np.zeros((), dense.dtype))
    whole = where.placed(kept)
    if group == 1:
        return whole
    rows, per = where.full[0] // group, where.full[1] // group
    return np.concatenate([whole[g * rows : (g + 1) * rows, g * per : (g + 1) * per] for g in range(group)])
