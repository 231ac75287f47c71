"""Layers of two axes over images of one: a kernel of one entry slides along an axis of one entry.

    [N, C, 1, L]  ── Conv, kernel 1 x k ──  [N, M, 1, L']      becomes      [N, C, L]  ── Conv, kernel k ──  [N, M, L']

So TensorFlow's exporter writes one-dimensional convolutions and pools, between an Unsqueeze and a Squeeze.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_graphsurgeon as gs

from convrewrite.engine.axes import atoms
from convrewrite.passes.fcn.lifter import Lifter
from convrewrite.passes.fcn.views import State, View

Rule = Callable[[Lifter, gs.Node, Sequence[State]], list[State]]


@dataclass(frozen=True)
class _Flat:
    """The layer without those axes; it is no node of any graph."""

    op: str
    name: str
    attrs: dict[str, Any]
    inputs: list[gs.Tensor]
    outputs: list[gs.Tensor]
    domain: str | None


def without_hollow_axes(rule: Rule) -> Rule:
    """A rule that is asked without the axes of one entry that are none of the image's, and gives them back."""

    def lifted(lifter: Lifter, node: gs.Node, states: Sequence[State]) -> list[State]:
        view = states[0]
        places = _hollow(lifter, view, node) if isinstance(view, View) else []
        if not places or not isinstance(view, View):
            return rule(lifter, node, states)
        flat: Any = _flattened(lifter, node, places)
        if flat is None:
            return rule(lifter, node, states)
        axes = tuple(axis for place, axis in enumerate(view.axes) if place not in places)
        results = rule(lifter, flat, [replace(view, axes=axes), *states[1:]])
        return [_restored(result, places) for result in results]

    return lifted


def _hollow(lifter: Lifter, view: View, node: gs.Node) -> list[int]:
    """Axes of one entry behind the channels, beside one of the image's at least, that the layer leaves alone."""
    places = [place for place, axis in enumerate(view.axes) if place > 1 and not any(a.spatial for a in axis)]
    spatial = [place for place, axis in enumerate(view.axes) if place > 1 and place not in places]
    if not spatial or any(a.extent > 1 for a in atoms(view.axes[place] for place in places)):
        return []
    rank = len(view.axes) - 2
    kernel = _kernel(lifter, node)
    pads = node.attrs.get("pads") or [0] * (2 * rank)
    ones = all(kernel[place - 2] == 1 for place in places)
    plain = all(not pads[place - 2] and not pads[place - 2 + rank] for place in places)
    return places if ones and plain else []


def _kernel(lifter: Lifter, node: gs.Node) -> Sequence[int]:
    given = node.attrs.get("kernel_shape")
    return given or lifter.shape(node.inputs[1])[2:]


def _flattened(lifter: Lifter, node: gs.Node, places: Sequence[int]) -> _Flat | None:
    """The layer of fewer axes; a weight is stored without them."""
    gone = {place - 2 for place in places}
    rank = len(_kernel(lifter, node))
    kept = [axis for axis in range(rank) if axis not in gone]
    attrs = dict(node.attrs)
    for name in ("kernel_shape", "strides", "dilations"):
        if name in attrs:
            attrs[name] = [attrs[name][axis] for axis in kept]
    if "pads" in attrs:
        attrs["pads"] = [attrs["pads"][axis + end] for end in (0, rank) for axis in kept]
    inputs = list(node.inputs)
    if node.op == "Conv":
        values = lifter.constants.value(node.inputs[1])
        if values is None:
            return None
        shape = tuple(extent for place, extent in enumerate(values.shape) if place not in places)
        weight = lifter.emitter.constant(f"{node.inputs[1].name}/one-axis", values.reshape(shape))
        lifter.native = {**lifter.native, weight.name: shape}
        inputs[1] = weight
    return _Flat(node.op, node.name, attrs, inputs=inputs, outputs=list(node.outputs), domain=node.domain)


def _restored(state: State, places: Sequence[int]) -> State:
    """The axes are there again, with nothing in them."""
    if not isinstance(state, View):
        return state
    axes = list(state.axes)
    for place in places:
        axes.insert(place, ())
    return replace(state, axes=tuple(axes))
