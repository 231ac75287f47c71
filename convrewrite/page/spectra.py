"""Singular values of the kernels that `separable` looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_graphsurgeon as gs

from convrewrite.engine.layers import LinearLayer
from convrewrite.engine.rewrite import Declined, Refusal, Site
from convrewrite.page import charts
from convrewrite.passes.separable.forms import decompositions
from convrewrite.passes.separable.matrices import read_matrix
from convrewrite.passes.separable.site import read_site

USUAL = ("vertical-horizontal", "horizontal", "channel", "channel-out")
"""The form that is drawn where none was chosen: the first of these that the kernel has."""

MOST = 12
"""Kernels that are drawn where none was chosen: those with the most MACs."""


def spectra(graph: gs.Graph, sites: Sequence[Site]) -> dict[str, list[dict[str, Any]]]:
    """Curves by anchor: of the chosen form with its rank, and of the most expensive kernels that were left alone.

    Args:
        graph: the one that the pass saw. sites: of any passes.
    """
    own = [site for site in sites if site.pass_name == "separable"]
    left = sorted(
        (s for s in own if s.outcome == "declined" and s.tol_pays is not None), key=lambda s: -(s.macs_before or 0)
    )
    wanted = [*(site for site in own if site.form), *left[:MOST]]
    nodes = {t.name: node for node in graph.nodes for t in node.outputs}
    return {site.anchor: _curves(graph, nodes[site.anchor], site) for site in wanted if site.anchor in nodes}


def _curves(graph: gs.Graph, node: gs.Node, site: Site) -> list[dict[str, Any]]:
    layer = LinearLayer.of(node)
    read = read_site(graph, node) if layer is None else read_matrix(graph, node, layer, rank=2)
    if isinstance(read, Refusal | Declined):
        return []
    made = {found.name: found for found in decompositions(read.weight, read.group)}
    name = site.form or next((form for form in USUAL if form in made), next(iter(made), ""))
    if name not in made:
        return []
    ranks: Sequence[int | None] = site.rank or [None] * len(made[name].spectra)
    return [
        {"form": name, **charts.curve([float(value) for value in values], rank)}
        for values, rank in zip(made[name].spectra, ranks, strict=False)
    ]
