"""Normalisations: with constants, over the channels of a cell, over neighbouring channels, over the whole map.

    LayerNormalization(axis=-1) on [N, K]   ->   Transpose to [N, H', W', K], LayerNormalization(axis=-1), and back
    LpNormalization(axis=1) on [N, K]       ->   LpNormalization(axis=1) on [N, K, H', W']

since a cell of the new map holds what the original held for its window: the statistics of a cell are those of one
window. Where positions belong to them (InstanceNormalization, GroupNormalization) they are those of the whole image,
whatever its size. Sources: https://onnx.ai/onnx/operators/onnx__LayerNormalization.html and its kin.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite.engine.axes import Axis, Layout, atoms, extent, large
from convrewrite.engine.operators import ruled
from convrewrite.passes.fcn.channels import one_view, plainly
from convrewrite.passes.fcn.lifter import Lifter
from convrewrite.passes.fcn.sliding import spread
from convrewrite.passes.fcn.views import Refuse, State, View, relayout


def lift_batch_norm(lifter: Lifter, node: gs.Node, states: Sequence[State]) -> list[State]:
    """BatchNormalization, on maps and on the features of a head; its parameters may not differ by position."""
    view = one_view(lifter, node, states[0])
    if any(t.name for t in node.outputs[1:]) or node.attrs.get("training_mode", 0):
        raise Refuse("fcn/no-rule", f"{lifter.label(node)} is in training mode")
    axis = view.axes[1]
    if any(a.letter == "N" for a in axis):
        raise Refuse("fcn/mixed-axes", f"{lifter.label(node)} normalises over the batch")
    brought, at = lifter.emitter.split_off(view, axis)
    if at != 1:
        raise Refuse("fcn/uncontracted-channels", f"{lifter.label(node)} normalises one of two channel axes")
    inputs: list[gs.Tensor] = [brought.tensor]
    own = tuple(a for a in brought.base[1])
    for tensor in node.inputs[1:]:
        if own == axis or (not large(axis) and _same(own, axis)):
            inputs.append(lifter.static(tensor))
            continue
        values = relayout(lifter.value(tensor, node), (axis,), (own,), f"'{tensor.name}' of {lifter.label(node)}")
        full = np.broadcast_to(values, (extent(own),))
        inputs.append(lifter.emitter.constant(f"{tensor.name}/lifted", full))
    return list(lifter.emit_like(node, inputs, replace(brought, axes=view.axes)))


def _same(left: Axis, right: Axis) -> bool:
    return [a for a in left if a.extent > 1] == [a for a in right if a.extent > 1]


def lift_lrn(lifter: Lifter, node: gs.Node, states: Sequence[State]) -> list[State]:
    """Lift an LRN over neighbouring channels, axis 1."""
    view = one_view(lifter, node, states[0])
    brought, at = lifter.emitter.split_off(view, view.axes[1])
    if at != 1 or not _same(brought.base[1], view.axes[1]):
        raise Refuse("fcn/mixed-axes", f"{lifter.label(node)} runs over an axis that is not the channels'")
    return list(lifter.emit_like(node, [brought.tensor], replace(brought, axes=view.axes)))


def lift_layer_norm(lifter: Lifter, node: gs.Node, states: Sequence[State]) -> list[State]:
    """LayerNormalization and RMSNormalization over channels, which go last; the mean and deviation are not read."""
    view = one_view(lifter, node, states[0])
    if any(t.name for t in node.outputs[1:]):
        raise Refuse("fcn/no-rule", f"{lifter.label(node)} gives its statistics as well")
    place = int(node.attrs.get("axis", -1)) % len(view.axes)
    normalised: Layout = view.axes[place:]
    _require_a_cell(lifter, node, view, atoms(normalised))
    brought, _ = lifter.emitter.split_off(view, atoms(normalised), last=True)
    own = brought.base[-1]
    inputs: list[gs.Tensor] = [brought.tensor]
    for tensor in node.inputs[1:]:
        if not tensor.name:
            inputs.append(gs.Variable.empty())
        elif len(normalised) == 1 and _same(own, normalised[0]):
            inputs.append(lifter.static(tensor))
        else:
            values = lifter.value(tensor, node)
            laid = relayout(values, normalised, (own,), f"'{tensor.name}' of {lifter.label(node)}")
            inputs.append(lifter.emitter.constant(f"{tensor.name}/lifted", np.broadcast_to(laid, (extent(own),))))
    return list(lifter.emit_like(node, inputs, replace(brought, axes=view.axes), {**node.attrs, "axis": -1}))


def lift_lp_norm(lifter: Lifter, node: gs.Node, states: Sequence[State]) -> list[State]:
    """LpNormalization over channels; over rows or columns it runs on the whole axis, as it is."""
    view = one_view(lifter, node, states[0])
    axis = view.axes[int(node.attrs.get("axis", -1)) % len(view.axes)]
    if large(axis) and not view.pools:
        lifter.check_windows(node, over_space=True)
        whole = plainly(lifter, node, view)
        return list(lifter.emit_like(node, [whole.tensor], whole))
    _require_a_cell(lifter, node, view, axis)
    brought, at = lifter.emitter.split_off(view, axis)
    attrs = {**node.attrs, "axis": at}
    return list(lifter.emit_like(node, [brought.tensor], replace(brought, axes=view.axes), attrs))


def lift_mean_variance(lifter: Lifter, node: gs.Node, states: Sequence[State]) -> list[State]:
    """MeanVarianceNormalization over channels, or over the map as a whole."""
    view = one_view(lifter, node, states[0])
    places = [int(a) % len(view.axes) for a in node.attrs.get("axes", (0, 2, 3))]
    axis = atoms(view.axes[place] for place in places)
    if lifter.mixes_samples(axis):
        raise Refuse("fcn/mixed-axes", f"{lifter.label(node)} normalises over the batch")
    if large(axis) and not view.pools:
        lifter.check_windows(node, over_space=True)
        whole = plainly(lifter, node, view)
        return list(lifter.emit_like(node, [whole.tensor], whole))
    _require_a_cell(lifter, node, view, axis)
    brought, at = lifter.emitter.split_off(view, axis)
    attrs = {**node.attrs, "axes": [at]}
    return list(lifter.emit_like(node, [brought.tensor], replace(brought, axes=view.axes), attrs))


def lift_map_norm(lifter: Lifter, node: gs.Node, states: Sequence[State]) -> list[State]:
    """InstanceNormalization and GroupNormalization: statistics of the whole map, whatever its size."""
    if node.op == "InstanceNormalization" and isinstance(states[0], View) and not large(atoms(states[0].axes)):
        return [_groups_of_a_cell(lifter, node, states[0])]
    view = spread(lifter, node, states[0])
    lifter.check_windows(node, over_space=True)
    return list(lifter.emit_like(node, [view.tensor, *(lifter.static(t) for t in node.inputs[1:])], view))


def _groups_of_a_cell(lifter: Lifter, node: gs.Node, view: View) -> View:
    """InstanceNormalization of features in groups, [N, G, K / G]: what exporters make of a GroupNorm of a vector.

    The groups of a cell are those of one window: (x - mean) / sqrt(variance + epsilon) * scale + bias, over each.
    """
    group, normalised = view.axes[1], atoms(view.axes[2:])
    _require_a_cell(lifter, node, view, normalised)
    brought, at = lifter.emitter.split_off(view, normalised)
    if not (at == 2 and _same(brought.base[1], group) and _same(brought.base[2], normalised)):
        raise Refuse("fcn/mixed-axes", f"{lifter.label(node)} has groups that are not the channels' second axis")
    name, emit = node.outputs[0].name, lifter.emitter
    kind = lifter.float_type(node)

    def made(op: str, label: str, *inputs: gs.Tensor) -> gs.Variable:
        return emit.emit(op, inputs, output=f"{name}/{label}", dtype=kind)

    def mean(label: str, tensor: gs.Variable) -> gs.Variable:
        axes = [tensor, emit.ints(f"{name}/axes", [at])] if lifter.graph.opset >= 18 else [tensor]
        attrs = {"keepdims": 1} if len(axes) == 2 else {"keepdims": 1, "axes": [at]}
        return emit.emit("ReduceMean", axes, attrs, output=f"{name}/{label}", dtype=kind)

    def line(label: str, tensor: gs.Tensor) -> gs.Constant:
        values = np.asarray(lifter.value(tensor, node))
        return emit.constant(f"{name}/{label}", values.reshape(1, -1, *[1] * (len(brought.base) - 2)))

    centred = made("Sub", "centred", brought.tensor, mean("mean", brought.tensor))
    variance = mean("variance", made("Mul", "squared", centred, centred))
    epsilon = emit.constant(f"{name}/epsilon", np.asarray(node.attrs.get("epsilon", 1e-5), kind))
    deviation = made("Sqrt", "deviation", made("Add", "above-zero", variance, epsilon))
    scaled = made("Mul", "scaled", made("Div", "normal", centred, deviation), line("scale", node.inputs[1]))
    return replace(brought, tensor=made("Add", "shifted", scaled, line("bias", node.inputs[2])), axes=view.axes)


def _require_a_cell(lifter: Lifter, node: gs.Node, view: View, axis: Axis) -> None:
    """Refuse statistics over more than the channels of a cell, or over some of its channels alone."""
    if lifter.mixes_samples(axis):
        raise Refuse("fcn/mixed-axes", f"{lifter.label(node)} normalises over the batch")
    if large(axis):
        raise Refuse("fcn/mixed-axes", f"{lifter.label(node)} normalises over positions and channels at once")


RULES: Mapping[str, Callable[[Lifter, gs.Node, Sequence[State]], list[State]]] = ruled(
    {
        "batch-norm": lift_batch_norm,
        "channel-norm": lift_lrn,
        "layer-norm": lift_layer_norm,
        "axis-norm": lift_lp_norm,
        "axes-norm": lift_mean_variance,
        "map-norm": lift_map_norm,
    }
)
