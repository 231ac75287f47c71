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
Where groups of one size need a dead channel to be full, it stays.

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
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import onnx_graphsurgeon as gs

from convrewrite.engine import timemodel
from convrewrite.engine.convsite import ConvSite, read_site, rounding
from convrewrite.engine.graph import Shape
from convrewrite.engine.rewrite import (
    Context,
    Declined,
    Evidence,
    JudgeName,
    Kernels,
    Pass,
    Plan,
    Reason,
    Refusal,
    Site,
    option,
)
from convrewrite.passes.groups.clustering import needed_tol
from convrewrite.passes.groups.dead import Trims, find_trims, trim
from convrewrite.passes.groups.detection import Array, kernel_norms
from convrewrite.passes.groups.emission import MADE, Grouping, regroup
from convrewrite.passes.groups.expand import Expansion, expand, expanded_size
from convrewrite.passes.groups.network import Network
from convrewrite.passes.groups.offers import Offer, offers
from convrewrite.passes.groups.planning import Fitting, fit
from convrewrite.passes.groups.reasons import REASONS
from convrewrite.passes.groups.reconstruction import reconstruction
from convrewrite.passes.groups.spaces import Stop
from convrewrite.passes.groups.weights import node_of
from convrewrite.text import enough, parameter

__all__ = ["Groups"]


@dataclass(frozen=True)
class Work:
    """What is done for one convolution: channels left out, and then groups; at least one of them."""

    trims: Trims | None
    grouping: Grouping | None

    def new_biases(self, site: ConvSite) -> int:
        """Entries of a bias that the convolution gets for the constants that it read."""
        return 0 if self.trims is None or site.bias is not None else self.trims.shifts(site.anchor)


@dataclass(frozen=True)
class Groups(Pass):
    """The pass.

    Attributes:
        tol: bound on the relative Frobenius error of each kernel; 0 for what rounding costs.
        into: look for this number of groups alone. expand: "branches" or "dense", to do the opposite.
    """

    name: ClassVar[str] = "groups"
    reasons: ClassVar[Mapping[str, Reason]] = REASONS
    noun: ClassVar[str] = "convolution"
    judge: ClassVar[JudgeName] = "smaller"
    command: ClassVar[str] = "groups"
    tol: float = option(0.0)
    into: int | None = option(None)
    expand: Literal["branches", "dense"] | None = option(None)

    def candidates(self, graph: gs.Graph) -> Iterator[gs.Node]:
        """Every Conv; every ConvTranspose too, where groups are expanded."""
        ops = ("Conv",) if self.expand is None else ("Conv", "ConvTranspose")
        for node in graph.nodes:
            if node.op in ops and (node.domain or "ai.onnx") == "ai.onnx":
                yield node

    def plan(self, context: Context, node: gs.Node) -> Sequence[Plan] | Declined | Refusal:
        """Find the groups within the tolerance and the way to put them into the graph, the fastest first."""
        graph = context.graph
        site = read_site(graph, node, "groups", context.shapes)
        if isinstance(site, Refusal):
            return site
        if self.expand is not None:
            return self._expansion(site)
        out, inputs = site.channels
        if self.into is not None and (self.into < 2 or out % self.into or inputs % self.into):
            return Declined(REASONS["groups/no-such-number"], f"{site.label}: {site}")
        norms = kernel_norms(site.weight, site.group)
        trims = None
        if not norms.any(0).all() or not norms.any(1).all():
            trims = find_trims(graph, site, norms)
        if isinstance(trims, Trims) and (other := self._undivided(graph, site, trims)):
            trims = Stop("groups/dead-kept", f"{other} divides into faster groups with all of its channels")
        options = self._options(graph, site, norms)
        plans = self._plans(graph, site, None, site, options=options)
        smaller: list[Plan] = []
        if isinstance(trims, Trims):
            left, more = self._trimmed(trims, site, context.shapes)
            plans = [*more, *plans]
            smaller = [self._plan(trims.graph, site, Work(trims, None), None, left=left)]
        if plans or smaller:
            return [*(plan for _, plan in sorted(plans, key=lambda pair: pair[0])), *smaller]
        if not isinstance(options, Stop) and self.tol > 0 and MADE.search(site.node):
            return Declined(REASONS["groups/already-grouped"], site.label, self._known(site))
        stop = options if isinstance(options, Stop) else trims
        if isinstance(stop, Stop):
            return Declined(REASONS[stop.reason], f"{site.label}: {stop.detail}", self._known(site))
        return self._no_structure(site, norms)

    def apply(self, graph: gs.Graph, plan: Plan) -> None:
        """Carry out the plan on the graph; it cannot fail."""
        if isinstance(plan.payload, Expansion):
            expand(graph, plan.payload)
            return
        for step in () if plan.payload.trims is None else plan.payload.trims.steps:
            trim(graph, step)
        if plan.payload.grouping is not None:
            regroup(graph, plan.payload.grouping)

    def advice(self) -> str:
        """What expanded groups are for."""
        if self.expand is None:
            return ""
        return "for backends without grouped convolution; on ONNX Runtime it is usually slower"

    def _options(self, graph: gs.Graph, site: ConvSite, norms: Array) -> list[Fitting] | Stop:
        """What groups there are within the tolerance, and fit into the graph."""
        found = self._offers(site, norms)
        return fit(Network(graph), site, found) if found else []

    def _undivided(self, graph: gs.Graph, site: ConvSite, trims: Trims) -> str:
        """Another convolution that would be slower without the dead channels, as they no longer fill its groups up."""
        for anchor in sorted(trims.convolutions - {site.anchor}):
            sites = [read_site(g, node_of(g, anchor), "groups") for g in (graph, trims.graph)]
            times = [self._fastest(other) for other in sites if isinstance(other, ConvSite)]
            if len(times) == 2 and times[0] < times[1]:
                return node_of(graph, anchor).name or anchor
        return ""

    def _fastest(self, site: ConvSite) -> int:
        """Time of the best layout of a convolution, or as it is."""
        found = self._offers(site, kernel_norms(site.weight, site.group))
        (out, inputs), group = site.channels, site.group
        now = timemodel.grouped(out // group, inputs // group, group, site.taps)
        return min([now, *(offer.layout.time(site.taps) for offer in found)])

    def _offers(self, site: ConvSite, norms: Array) -> list[Offer]:
        tol = 0.0 if MADE.search(site.node) else self.tol
        return offers(norms, site.taps, rounding(site.weight.dtype), tol, into=self.into, group=site.group)

    def _plans(
        self, graph: gs.Graph, site: ConvSite, trims: Trims | None, left: ConvSite, options: list[Fitting] | Stop
    ) -> list[tuple[int, Plan]]:
        """Plans for the options, with their times."""
        found = [] if isinstance(options, Stop) else options
        return [(o.time, self._plan(graph, site, Work(trims, o.grouping), o.offer, left=left)) for o in found]

    def _trimmed(
        self, trims: Trims, site: ConvSite, shapes: Mapping[str, Shape]
    ) -> tuple[ConvSite, list[tuple[int, Plan]]]:
        """What is left without the dead channels, and plans with that in groups."""
        left = read_site(trims.graph, node_of(trims.graph, site.anchor), "groups", shapes)
        assert isinstance(left, ConvSite), "fewer of the same channels can be read as well"
        options = self._options(trims.graph, left, kernel_norms(left.weight, left.group))
        return left, self._plans(trims.graph, site, trims, left, options=options)

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
            detail = f"{site.label}: {site}; {2 * site.group} groups would take {parameter('tol', enough(needed))}"
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

    def _plan(self, graph: gs.Graph, site: ConvSite, work: Work, offer: Offer | None, left: ConvSite) -> Plan:
        """What is done for a site; `left` is what a graph without dead channels has in its place."""
        error = 0.0 if offer is None else offer.error
        weights = int(left.weight.size) if offer is None else offer.layout.weights * left.taps
        biases = left.params - int(left.weight.size) + work.new_biases(site)
        gathers = 0 if work.grouping is None else work.grouping.gathers
        told = [str(part) for part in (work.trims, None if offer is None else offer.layout) if part is not None]
        approximate = error > rounding(site.weight.dtype)
        known = replace(
            self._known(site, error if offer is not None else None),
            outcome="rewritten",
            detail=f"{site} -> {', '.join(told)}{f', {gathers} Gather' if gathers else ''}",
            equivalence="approximate" if approximate else "reassociated",
            error=error,
            macs_after=weights * left.cells,
            tol_halves=error if offer is not None and 2 * weights <= site.weight.size else None,
            params_after=weights + biases,
        )
        evidence: list[Evidence] = []
        if approximate and offer is not None:
            evidence.append(Kernels({site.anchor: reconstruction(graph, left, offer.layout, error)}))
        return Plan((known,), work, evidence=evidence)
