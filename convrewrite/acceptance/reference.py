"""What an approximate rewrite is verified against: the original, with the kernels that the rewrite amounts to.

original   x ── Conv W  ── BatchNormalization ── Relu ── ...        the error against it is stated
reference  x ── Conv W~ ── BatchNormalization ── Relu ── ...        equal to the rewritten model but for rounding
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite.graph import Constants, unique_name

Array = np.ndarray[Any, Any]
Kernels = Mapping[str, Callable[[], tuple[Array, Array | None]]]
"""By the name of a Conv's output: gives its weight in the rewritten model, and what is added to its bias, or None."""


def shaken(kernels: Kernels, seed: int = 0) -> Kernels:
    """The kernels with each entry moved by up to one unit in its last place, at random: what rounding alone can do."""

    def moved(place: int, give: Callable[[], tuple[Array, Array | None]]) -> tuple[Array, Array | None]:
        weight, shift = give()
        noise = np.random.default_rng([seed, place]).uniform(-1.0, 1.0, weight.shape)
        return (weight * (1.0 + np.finfo(weight.dtype).eps * noise)).astype(weight.dtype), shift

    return {name: functools.partial(moved, place, give) for place, (name, give) in enumerate(kernels.items())}


def with_kernels(graph: gs.Graph, kernels: Kernels) -> gs.Graph:
    """A copy of the original in which some convolutions hold other numbers; everything else stays as it is."""
    work = graph.copy()
    constants, taken = Constants(work), set(work.tensors())
    for node in work.nodes:
        anchor = node.outputs[0].name if node.outputs else ""
        if anchor not in kernels:
            continue
        weight, shift = kernels[anchor]()
        node.inputs[1] = gs.Constant(unique_name(f"{anchor}/kernel", taken), np.ascontiguousarray(weight))
        if shift is not None:
            bias = constants.value(node.inputs[2]) if len(node.inputs) > 2 else None
            total = shift if bias is None else (bias + shift).astype(bias.dtype)
            made = gs.Constant(unique_name(f"{anchor}/bias", taken), total)
            if len(node.inputs) > 2:
                node.inputs[2] = made
            else:
                node.inputs.append(made)
    return work.cleanup(remove_unused_graph_inputs=False)
