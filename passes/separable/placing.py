"""Where the stages of a chain stand, for the kind of layer that it replaces."""

from __future__ import annotations

from convrewrite.passes.separable import geometry, transposed
from convrewrite.passes.separable.geometry import Cells, Chain, Placed
from convrewrite.passes.separable.site import LayerSite


def placed(site: LayerSite, chain: Chain) -> list[Placed]:
    """The stages of a chain that replaces a convolution or a transposed one, with their attributes."""
    if site.transposed:
        return transposed.placed(chain, site.attrs)
    return geometry.placed(chain, site.attrs)


def cells_of(site: LayerSite, chain: Chain) -> list[Cells]:
    """How often each stage of a chain applies its weights on the site's map; once, where it is a matrix.

    Channels play no part: every chain whose stages have the same kernels has the same.
    """
    if site.layer is not None:
        return [Cells(1, 1) for _ in chain]
    if site.transposed:
        return transposed.cells_of(chain, site.attrs, site.size)
    return geometry.cells_of(chain, site.attrs, site.size)
