"""What an approximate rewrite is verified against: the original, with the kernels that the rewrite amounts to.

A kernel is that of a Conv or ConvTranspose, or the constant factor of a Gemm or MatMul.

original   x ── Conv W  ── BatchNormalization ── Relu ── ...        the error against it is stated
reference  x ── Conv W~ ── BatchNormalization ── Relu ── ...        equal to the rewritten model but for rounding
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite.engine.evidence import Kernel, Kernels
from convrewrite.engine.graph import Constants, unique_name
from convrewrite.engine.layers import LinearLayer

Array = np.ndarray[Any, Any]


def shaken(kernels: Kernels, seed: int = 0) -> Kernels:
    """The kernels with each entry moved by up to one unit in its last place, at random: what rounding alone can do."""

    def moved(place: int, give: Kernel) -> tuple[Array, Array | None]:
        weight, shift = give()
        noise = np.random.default_rng([seed, place]).uniform(-1.0, 1.0, weight.shape)
        return (weight * (1.0 + np.finfo(weight.dtype).eps * noise)).astype(weight.dtype), shift

    pairs = enumerate(kernels.made.items())
    return Kernels({name: functools.partial(moved, place, give) for place, (name, give) in pairs})


def with_kernels(graph: gs.Graph, kernels: Kernels) -> gs.Graph:
    """A copy of the original in which some layers hold other numbers; everything else stays as it is."""
    work = graph.copy()
    constants, taken = Constants(work), set(work.tensors())
    for node in list(work.nodes):
        anchor = node.outputs[0].name if node.outputs else ""
        if anchor not in kernels.made:
            continue
        weight, shift = kernels.made[anchor]()
        layer = LinearLayer.of(node)
        place = 1 if layer is None else layer.weight
        node.inputs[place] = gs.Constant(unique_name(f"{anchor}/kernel", taken), np.ascontiguousarray(weight))
        if shift is not None and layer is not None:
            _added(work, node, shift, taken)
        elif shift is not None:
            bias = constants.value(node.inputs[2]) if len(node.inputs) > 2 else None
            total = shift if bias is None else (bias + shift).astype(bias.dtype)
            made = gs.Constant(unique_name(f"{anchor}/bias", taken), total)
            if len(node.inputs) > 2:
                node.inputs[2] = made
            else:
                node.inputs.append(made)
    return work.cleanup(remove_unused_graph_inputs=False)


def _added(graph: gs.Graph, node: gs.Node, shift: Array, taken: set[str]) -> None:
    """Add something to the result of a node."""
    result = node.outputs[0]
    product = gs.Variable(unique_name(f"{result.name}/product", taken), result.dtype or shift.dtype)
    node.outputs = [product]
    more = gs.Constant(unique_name(f"{result.name}/shift", taken), shift)
    name = unique_name(f"{result.name}/shifted", taken)
    graph.nodes.insert(graph.nodes.index(node) + 1, gs.Node("Add", name, {}, [product, more], outputs=[result]))
