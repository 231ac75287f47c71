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

from convrewrite.engine.convsite import ConvSite, rounding
from convrewrite.errors import ConvrewriteError
from convrewrite.passes.groups.detection import Array, spread
from convrewrite.passes.groups.packing import Layout
from convrewrite.passes.groups.weights import Origin, node_of, origin

Kernel = Callable[[], tuple[Array, Array | None]]

SLACK = 1.02
"""Between the error of a kernel that was foretold and that of the one that is claimed."""


def reconstruction(graph: gs.Graph, site: ConvSite, layout: Layout, stated: float) -> Kernel:
    """What gives the kernel when it is asked for.

    It raises ConvrewriteError where the kernel is further than `stated` from the original's (relative Frobenius error):
    what is verified against it could otherwise be any function.
    """
    where = origin(node_of(graph, site.anchor).inputs[1], site.channels)
    weight, group = site.weight, site.group

    def kernel() -> tuple[Array, None]:
        dense = spread(weight, group)
        mask = layout.mask(*dense.shape[:2])
        kept = np.where(mask.reshape(*mask.shape, *[1] * (dense.ndim - 2)), dense, np.zeros((), dense.dtype))
        true = float(np.linalg.norm((dense - kept).astype(float)) / np.linalg.norm(dense.astype(float)))
        if not true <= SLACK * stated + rounding(weight.dtype):
            raise ConvrewriteError(f"the groups of {site.label} ({layout}) are off by {true:.2e}, not by {stated:.2e}")
        return _whole(kept, group, where), None

    return kernel


def _whole(kept: Array, group: int, where: Origin) -> Array:
    whole = where.placed(kept)
    if group == 1:
        return whole
    rows, per = where.full[0] // group, where.full[1] // group
    return np.concatenate([whole[g * rows : (g + 1) * rows, g * per : (g + 1) * per] for g in range(group)])
