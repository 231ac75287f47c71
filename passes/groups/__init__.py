"""groups: a convolution is split into groups of channels, exactly where its weights allow it.

Before                                          After
    x ── Conv 64 x 64 x 3 x 3 ── y                  x' ── Conv 64 x 64 x 3 x 3, 4 groups ── y'

with the channels of x and y in another order, which the layers around take over: rows of what makes x, columns of what
reads y, and every vector between.

Algebra. Let P and Q reorder channels so that the kernel becomes block-diagonal, each block a convolution of its own:

    y  =  W x,     Q W P^T  =  [ W1  0 ]        ==>      y'  =  Q y  =  [ W1 x'1 ],      x' = P x
                               [ 0  W2 ]                                [ W2 x'2 ]

g groups cost 1 / g of the multiplications. The blocks are the connected components of the graph in which an input and
an output channel are joined where their kernel is not zero. P and Q commute with everything that treats channels alike
(activations, pools), turn into reordered parameters where each channel has its own (bias, BatchNormalization, PRelu,
depthwise convolutions), and end in the rows or the columns of another convolution or Gemm. A channel that no output
reads is left out where it is made; one that reads nothing is a constant, which goes into the bias of what reads it.

`tol` allows blocks that are only almost there: what lies outside of them is dropped, and its relative Frobenius norm is
the error of the kernel, which `tol` bounds. `into` asks for one number of groups. `expand` does the opposite, exactly:
a grouped Conv or ConvTranspose becomes "branches" (Split, convolutions, Concat) or one "dense" convolution with zeros,
for backends without grouped convolution; on ONNX Runtime that is usually slower.

Requires a Conv with 1, 2 or 3 spatial axes and a constant weight. Channels keep their order in inputs and outputs of
the model, and at operators that depend on it (LRN, a Slice or Split of channels, a shuffle, one that is not known):
there a Gather reorders them, if the groups save more than it costs.
Refuses weights that are computed from an input, that are not floating-point, or that hold NaN.
Sources: Krizhevsky, Sutskever and Hinton, NIPS 2012 (groups); Xie et al., "Aggregated Residual Transformations", CVPR
2017; Dhillon, KDD 2001 (co-clustering).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from convrewrite.graph import infer_shapes
from convrewrite.passes.groups.clustering import needed_tol
from convrewrite.passes.groups.detection import Array, kernel_norms, rounding
from convrewrite.passes.groups.emission import regroup
from convrewrite.passes.groups.expand import Expansion, expand, expanded_size
from convrewrite.passes.groups.network import Network
from convrewrite.passes.groups.offers import offers
from convrewrite.passes.groups.planning import Fitting, fit
from convrewrite.passes.groups.reasons import REASONS
from convrewrite.passes.groups.reconstruction import reconstruction
from convrewrite.passes.groups.site import ConvSite, read_site
from convrewrite.passes.groups.spaces import Stop
from convrewrite.rewrite import Declined, Plan, Reason, Refusal, Site

__all__ = ["Groups"]


@dataclass(frozen=True)
class Groups:
    """The pass.

    Attributes:
        tol: bound on the relative Frobenius error of each kernel; 0 for what rounding costs.
        into: look for this number of groups alone. expand: "branches" or "dense", to do the opposite.
        shapes: of the graph's tensors, where they are known already.
    """

    name: ClassVar[str] = "groups"
    reasons: ClassVar[Mapping[str, Reason]] = REASONS
    tol: float = 0.0
    into: int | None = None
    expand: str | None = None
    shapes: Mapping[str, tuple[int, ...]] | None = field(default=None, compare=False, repr=False)

    def candidates(self, graph: gs.Graph) -> Iterator[gs.Node]:
        """Every Conv; every ConvTranspose too, where groups are expanded."""
        ops = ("Conv",) if self.expand is None else ("Conv", "ConvTranspose")
        for node in graph.nodes:
            if node.op in ops and (node.domain or "ai.onnx") == "ai.onnx":
                yield node

    def plan(self, graph: gs.Graph, node: gs.Node) -> Sequence[Plan] | Declined | Refusal:
        """Find the groups within the tolerance and the way to put them into the graph, the fastest first."""
        site = read_site(graph, node, self._shapes(graph))
        if isinstance(site, Refusal):
            return site
        if self.expand is not None:
            return self._expansion(site)
        out, inputs = site.channels
        if self.into is not None and (out % self.into or inputs % self.into):
            return Declined(REASONS["groups/no-such-number"], f"{site.label}: {site}")
        norms = kernel_norms(site.weight, site.group)
        exact = rounding(site.weight.dtype)
        found = offers(norms, site.taps, exact, self.tol, self.into, site.group)
        if not found:
            return self._no_structure(site, norms)
        fitted = fit(Network(graph), site, found)
        if isinstance(fitted, Stop):
            return Declined(REASONS[fitted.reason], f"{site.label}: {fitted.detail}", self._known(site))
        return [self._plan(graph, site, option) for option in fitted]

    def apply(self, graph: gs.Graph, plan: Plan) -> None:
        """Do what the plan says."""
        if isinstance(plan.payload, Expansion):
            expand(graph, plan.payload)
        else:
            regroup(graph, plan.payload)

    def _expansion(self, site: ConvSite) -> Sequence[Plan] | Declined:
        assert self.expand is not None
        if site.group == 1:
            return Declined(REASONS["groups/not-grouped"], site.label)
        macs, params = expanded_size(site, self.expand)
        told = Site(
            self.name,
            site.anchor,
            site.op,
            "rewritten",
            detail=f"{site} -> {self.expand}",
            equivalence="exact",
            macs_before=site.macs,
            macs_after=macs,
            params_before=site.params,
            params_after=params,
        )
        return [Plan((told,), Expansion(site.anchor, self.expand))]

    def _no_structure(self, site: ConvSite, norms: Array) -> Declined:
        needed = needed_tol(norms, site.group)
        if needed is None:
            detail = f"{site.label}: {site}, which cannot be divided by two"
        elif needed <= max(self.tol, rounding(site.weight.dtype)):
            detail, needed = f"{site.label}: {site}; more groups would be smaller than is fast", None
        else:
            detail = f"{site.label}: {site}; {2 * site.group} groups would take --tol {needed:.2g}"
        return Declined(REASONS["groups/no-structure"], detail, self._known(site, needed))

    def _known(self, site: ConvSite, needed: float | None = None) -> Site:
        """What the report says of a convolution that is left alone."""
        return Site(
            self.name,
            site.anchor,
            "Conv",
            "declined",
            macs_before=site.macs,
            params_before=site.params,
            tol_pays=needed,
            tol_halves=needed,
        )

    def _plan(self, graph: gs.Graph, site: ConvSite, option: Fitting) -> Plan:
        layout, error = option.offer.layout, option.offer.error
        gathers = option.grouping.gathers
        more = f", {gathers} Gather" if gathers else ""
        biases = site.params - int(site.weight.size)
        approximate = error > rounding(site.weight.dtype)
        told = Site(
            self.name,
            site.anchor,
            "Conv",
            "rewritten",
            detail=f"{site} -> {layout}{more}",
            equivalence="approximate" if approximate else "reassociated",
            error=error,
            macs_before=site.macs,
            macs_after=layout.weights * site.taps * site.cells,
            params_before=site.params,
            params_after=layout.weights * site.taps + biases,
            tol_pays=error,
            tol_halves=error if 2 * layout.weights * site.taps <= site.weight.size else None,
        )
        evidence: dict[str, Any] = {}
        if approximate:
            evidence["kernels"] = {site.anchor: reconstruction(graph, site, layout)}
        return Plan((told,), option.grouping, evidence=evidence)

    def _shapes(self, graph: gs.Graph) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the graph's tensors, as far as they are known."""
        if self.shapes is not None:
            return self.shapes
        given: dict[str, list[Any]] = {t.name: list(t.shape or ()) for t in graph.inputs}
        if any(not isinstance(dim, int | np.integer) for dims in given.values() for dim in dims):
            return {}
        try:
            return infer_shapes(graph, given)
        except onnx.shape_inference.InferenceError:
            return {}
