"""separable: a convolution or a linear layer becomes a chain of smaller ones, by singular values, within a tolerance.

Before                                  After
    x ── Conv k x k, I -> O ── y            one of
                                            x ── k x 1, I -> R ── 1 x k, R -> O ── y          spatial
                                            x ── depthwise k x k ── 1 x 1 ──(+)── y           depthwise, R times, added
                                            x ── k x k, I -> R ── 1 x 1, R -> O ── y          channel
                                            x ── 1 x 1 ── k x k, P -> R ── 1 x 1 ── y         tucker
    x ── Gemm or MatMul, F -> K ── y        x ── Gemm or MatMul, F -> R ── the same, R -> K ── y   channel

Algebra. Written as a matrix, with some of its axes as rows and the others as columns, the kernel W has singular values
s1 >= s2 >= ...; cut off behind the R-th it is the nearest kernel of rank R, and

    || W - W~ || / || W ||  =  sqrt(s[R+1]^2 + s[R+2]^2 + ...) / sqrt(s1^2 + s2^2 + ...)

so the error is known before anything is built. Rows (in, k vertical) and columns (out, k horizontal) give the spatial
form, with R k (I + O) instead of k^2 I O multiplications per cell: O(m n) becomes O(m + n) for a kernel of rank one,
such as Sobel's [1 2 1]^T [1 0 -1]. Each axis of the kernel belongs to one convolution of the chain, which takes its
stride, dilation and pads; the bias goes to the last one. A BatchNormalization that follows directly is folded in first.
A ConvTranspose spreads and crops each axis by itself, so it is cut in the same ways; its 1 x 1 stages are plain Convs.

A Gemm, or a MatMul with a constant matrix on either side, is a 1 x 1 convolution of the vectors that it multiplies: its
form is "channel", with R (F + K) instead of F K multiplications for each of them. A Gemm stays a Gemm and a MatMul a
MatMul. A product of two activations, as in attention, and a Gather from an embedding are no sites.

`tol` bounds that relative error of each kernel, after the fold; 0 means what rounding costs. The forms and ranks within
it are ranked by their cost, and a judge accepts one or leaves the layer as it is: trained kernels are rarely of low
rank. Where real inputs are given, the factors are fitted to the layer's responses on them, within the same bound.

Requires a Conv or ConvTranspose with 1, 2 or 3 spatial axes, a Gemm or a MatMul, whose weight is constant: an
initializer, a Constant, or computed from them (through Reshape, Transpose, DequantizeLinear ...).
Refuses weights that are computed from an input, that are not floating-point, or that hold NaN.
Sources: Jaderberg, Vedaldi and Zisserman, "Speeding up Convolutional Neural Networks with Low Rank Expansions", BMVC
2014 (spatial); Guo, Li, Lin and Chen, "Network Decoupling", BMVC 2018 (depthwise); Zhang, Zou, He and Sun,
"Accelerating Very Deep Convolutional Networks", TPAMI 2016 (channel, and fitting responses); Kim et al., "Compression
of Deep Convolutional Neural Networks", ICLR 2016 (tucker).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, overload

import onnx_graphsurgeon as gs

from convrewrite.engine.convsite import rounding
from convrewrite.engine.graph import has_fixed_inputs
from convrewrite.engine.layers import LinearLayer
from convrewrite.engine.rewrite import Context, Declined, JudgeName, Kernels, Pass, Plan, Reason, Refusal, Site, option
from convrewrite.passes.separable.emission import Replacement, emit
from convrewrite.passes.separable.matrices import read_matrix
from convrewrite.passes.separable.plans import Offers, Option, offers
from convrewrite.passes.separable.reasons import REASONS
from convrewrite.passes.separable.refine import Moments
from convrewrite.passes.separable.site import LayerSite, read_site
from convrewrite.passes.separable.transposed import explicit

FORMS = ("spatial", "depthwise", "channel", "tucker")
"""What `form` may be, beside "auto" for all of them."""

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})

FACTOR = re.compile(r"/separable/\d+\.\d+(_\d+)?$")
"""The end of the name of a node that this pass made."""


class Lazily(Sequence[Plan]):
    """Plans that are made when they are asked for, once each: to fit one to responses takes seconds."""

    def __init__(self, options: Sequence[Option], make: Callable[[Option], Plan]) -> None:
        self._options, self._make = options, functools.cache(make)

    def __len__(self) -> int:
        return len(self._options)

    @overload
    def __getitem__(self, place: int) -> Plan: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Plan]: ...
    def __getitem__(self, place: int | slice) -> Plan | Sequence[Plan]:
        if isinstance(place, slice):
            return [self._make(option) for option in self._options[place]]
        return self._make(self._options[place])


def _worth_fitting(site: LayerSite, found: Offers) -> bool:
    """Whether some option is approximate, and has fewer MACs."""
    limit = rounding(site.dtype)
    return any(option.error > limit and option.cost.macs < found.before.macs for option in found.options)


@dataclass(frozen=True)
class Separable(Pass):
    """The pass.

    Attributes:
        tol: bound on the relative Frobenius error of each kernel; 0 for what rounding costs.
        form: one of FORMS, or "auto".
    """

    name: ClassVar[str] = "separable"
    reasons: ClassVar[Mapping[str, Reason]] = REASONS
    noun: ClassVar[str] = "linear layer and no convolution"
    judge: ClassVar[JudgeName] = "smaller"
    command: ClassVar[str] = "separable"
    fits: ClassVar[bool] = True
    tol: float = option(0.0)
    form: Literal["auto", "spatial", "depthwise", "channel", "tucker"] = option("auto")

    def candidates(self, graph: gs.Graph) -> Iterator[gs.Node]:
        """Every Conv and ConvTranspose, and every Gemm and MatMul with one constant factor."""
        for node in graph.nodes:
            convolves = node.op in CONVOLUTIONS and (node.domain or "ai.onnx") == "ai.onnx"
            if convolves or LinearLayer.of(node) is not None:
                yield node

    def plan(self, context: Context, node: gs.Node) -> Sequence[Plan] | Declined | Refusal:
        """Find the forms and ranks within the tolerance, the fastest first."""
        label = f"{node.op} '{node.name or node.outputs[0].name}'"
        if FACTOR.search(node.name):
            return Declined(REASONS["separable/already-factored"], label)
        layer = LinearLayer.of(node)
        shape = context.shapes.get(node.inputs[0 if layer is None else layer.data].name)
        rank = None if shape is None else len(shape)
        site = read_site(context.graph, node) if layer is None else read_matrix(context.graph, node, layer, rank)
        if isinstance(site, Refusal | Declined):
            return site
        if not site.weight.any():
            return Declined(REASONS["separable/zero-kernel"], label)
        size, batch = (None, 1) if shape is None else (shape[2:], shape[0])
        if site.layer is not None:
            size, batch = None, 1 if shape is None else site.layer.rows(shape)
        site = replace(site, size=size)
        if site.transposed and size is not None and has_fixed_inputs(context.graph):
            site = replace(site, attrs=explicit(site.attrs, site.kernel, size))
        found = offers(site, self.tol, self._forms(site), batch)
        if found is None:
            return Declined(REASONS["separable/no-form"], f"{label}: {site}")
        moments: Moments | None = None
        if context.responses is not None and site.fits and _worth_fitting(site, found):
            moments = context.responses(context.graph, site)
        return Lazily(found.options, lambda option: self._plan(site, found, option, moments))

    def _forms(self, site: LayerSite) -> Sequence[str]:
        """Those that were asked for, as far as they can be placed."""
        forms = FORMS if self.form == "auto" else (self.form,)
        # The extents between two stages that both spread would follow from those of the map, which are open.
        open_map = site.transposed and site.attrs.get("output_shape")
        return [form for form in forms if form in ("channel", "tucker")] if open_map else forms

    def apply(self, graph: gs.Graph, plan: Plan) -> None:
        """Put the chain in the place of the layer, and of the BatchNormalization that it holds."""
        emit(graph, plan.payload)

    def _plan(self, site: LayerSite, found: Offers, option: Option, moments: Moments | None) -> Plan:
        moments = moments if option.error > rounding(site.dtype) else None
        replacement = Replacement(site, option, moments, max(self.tol, rounding(site.dtype)))
        error, response = replacement.errors
        biases = 0 if site.bias is None or (site.layer is not None and moments is None) else len(site.bias)
        told = Site(
            self.name,
            site.anchor,
            site.op,
            "rewritten",
            detail=f"{site} -> {option}",
            equivalence="reassociated" if error <= rounding(site.dtype) else "approximate",
            error=error,
            response_error=response,
            macs_before=found.before.macs,
            macs_after=option.cost.macs,
            params_before=found.before.parameters + biases,
            params_after=option.cost.parameters + (biases if moments is None else site.channels[0]),
            tol_pays=found.tol_pays,
            tol_halves=found.tol_halves,
            form=option.decomposition.name,
            rank=option.rank,
        )
        return Plan((told,), replacement, evidence=[Kernels({site.anchor: replacement.reconstruction})])
