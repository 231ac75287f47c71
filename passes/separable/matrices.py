"""A linear layer as the pass sees it: a 1 x 1 kernel without spatial axes, and the two layers that it becomes.

    x ── Gemm W [K, F], C ── y              x ── Gemm V [R, F] ── Gemm U [K, R], C ── y
    x ── MatMul W [F, K] ── Add b ── y      x ── MatMul V [F, R] ── MatMul U [R, K] ── Add b ── y

    y[.., k] = sum_f W[k, f] x[.., f]   ~   sum_r U[k, r] (sum_f V[r, f] x[.., f])

A Gemm stays a Gemm: its alpha goes into the factors, what it adds to the second. Each factor is stored as W was,
flipped or not, on the left or on the right; the first has as many ones before it, which give the result its axes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite.engine.convsite import FLOATS
from convrewrite.engine.graph import Constants
from convrewrite.engine.layers import LinearLayer
from convrewrite.engine.rewrite import Declined, Refusal
from convrewrite.passes.separable.factors import Array
from convrewrite.passes.separable.reasons import REASONS
from convrewrite.passes.separable.site import LayerSite


def read_matrix(
    graph: gs.Graph, node: gs.Node, layer: LinearLayer, rank: int | None = None
) -> LayerSite | Declined | Refusal:
    """Read a Gemm or MatMul with a constant factor, or say why it cannot be factored.

    Args:
        rank: axes of its data; what the graph says where it is left out.
    """
    anchor = node.outputs[0].name
    label = f"{node.op} '{node.name or anchor}'"
    constants = Constants(graph)
    stored = constants.value(node.inputs[layer.weight])
    if stored is None:
        return Declined(REASONS["separable/not-folded"], f"'{node.inputs[layer.weight].name}' of {label}")
    if stored.dtype.name not in FLOATS:
        return Declined(REASONS["separable/weight-type"], f"{label} has weights of type {stored.dtype}")
    shown = node.inputs[layer.data].shape
    rank = len(shown) if rank is None and shown is not None else rank
    if rank is None and node.op == "MatMul" and layer.data == 1:
        return Declined(REASONS["separable/open-rank"], label)
    layer = LinearLayer.from_node(node, weight=layer.weight, stored=stored.shape, rank=rank)
    if not layer.is_matrix:
        return Declined(REASONS["separable/not-a-matrix"], f"{label} has weights {list(stored.shape)}")
    # A large matrix stays in its own type; what is computed from it is not.
    weight = layer.matrix(stored if layer.alpha == 1.0 else stored.astype(np.float64))
    if not np.isfinite(weight).all():
        return Refusal(REASONS["separable/nan-weight"], label)
    target, bias, fits = _added(node, layer, constants)
    attrs = dict(node.attrs)
    return LayerSite(
        anchor=anchor,
        node=node.name or anchor,
        target=target,
        weight=weight,
        bias=bias,
        scale=None,
        group=1,
        dtype=stored.dtype,
        attrs=attrs,
        op=node.op,
        layer=layer,
        fits=fits,
    )


def emit_matrices(
    site: LayerSite,
    node: gs.Node,
    weights: Sequence[Array],
    shift: Array | None,
    opset: int,
    fresh: Callable[[str], gs.Variable],
    constant: Callable[[str, Array], gs.Constant],
) -> list[gs.Node]:
    """The nodes that take the place of the site's; the last one still has no output.

    Args:
        node: the one that is replaced. weights: of the factors, [out, inputs], the one that meets the data first.
        shift: what is added to the result, [K], or None.
    """
    layer = site.layer
    assert layer is not None
    tensor, made = node.inputs[layer.data], list[gs.Node]()
    flags = {name: site.attrs[name] for name in ("transA", "transB") if name in site.attrs}
    of_data = "transA" if layer.data == 0 else "transB"
    for place, weight in enumerate(weights):
        name = f"{site.node}/separable/0.{place}"
        # A vector on the right of a constant is a row of what the first product gives.
        turned = place > 0 and layer.data == 1 and layer.output_axis == -1
        stored = weight.T if turned else layer.laid_out(weight, ones=place == 0)
        factor = constant(f"{name}/weight", stored)
        inputs = [tensor, factor] if layer.data == 0 or turned else [factor, tensor]
        attrs = dict(flags) if place == 0 else {flag: value for flag, value in flags.items() if flag != of_data}
        last = place == len(weights) - 1
        if site.op == "Gemm" and opset < 11 and not (last and (shift is not None or layer.bias is not None)):
            inputs.append(constant(f"{name}/bias", np.zeros(1)))  # a Gemm must add something
        elif last and site.op == "Gemm" and shift is not None:
            total = shift if site.bias is None else site.bias + shift
            inputs.append(constant(f"{name}/bias", layer.spread(total)))
        elif last and layer.bias is not None:
            inputs.append(node.inputs[layer.bias])
            attrs |= {"beta": site.attrs["beta"]} if "beta" in site.attrs else {}
        made.append(gs.Node(site.op, name, attrs, inputs))
        if not last:
            tensor = fresh(name)
            made[-1].outputs = [tensor]
    if shift is not None and site.op == "MatMul":
        name = f"{site.node}/separable/add"
        tensor = fresh(f"{site.node}/separable/product")
        made[-1].outputs = [tensor]
        total = shift if site.bias is None else site.bias + shift
        made.append(gs.Node("Add", name, {}, [tensor, constant(f"{name}/bias", layer.spread(total))]))
    return made


def _added(node: gs.Node, layer: LinearLayer, constants: Constants) -> tuple[str, Array | None, bool]:
    """(the tensor that holds the result with what is added, that, whether more can be added for each output)."""
    anchor = node.outputs[0].name
    if node.op == "Gemm":
        if layer.bias is None or layer.beta == 0.0:
            return anchor, None, layer.bias is None
        value = _vector(constants.value(node.inputs[layer.bias]), layer, layer.beta)
        return anchor, value, value is not None
    found = layer.add_behind(node)
    shown = node.outputs[0].shape
    if found is not None:
        add, tensor = found
        stored = constants.value(tensor)
        value = _vector(stored, layer, 1.0)
        axes = 1 if shown is None else len(shown)
        if value is not None and stored is not None and stored.ndim <= axes and stored.size == layer.outputs:
            return add.outputs[0].name, value, True
    return anchor, None, True


def _vector(stored: Any, layer: LinearLayer, factor: float) -> Array | None:
    """One number for each output, float64; None where what is added is something else."""
    if stored is None or stored.dtype.kind != "f" or not layer.vector(stored.shape) or not np.isfinite(stored).all():
        return None
    return np.broadcast_to(np.ravel(stored), (layer.outputs,)).astype(np.float64) * factor
