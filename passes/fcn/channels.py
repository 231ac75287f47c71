"""Operators over the classes or channels of a cell: Softmax, ArgMax, TopK, Split, Gather, reductions.

    Softmax(axis=1) on [N, K], opset >= 13   ->   Softmax(axis=1) on [N, K, H', W']
    Softmax on [N, K], opset < 13            ->   Transpose to [N, H', W', K], Softmax(axis=3), and back

since Softmax below opset 13 normalises over everything from `axis` on, which would be K * H' * W'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite.engine.axes import Layout, atoms, channels, large, only
from convrewrite.engine.operators import ruled
from convrewrite.passes.fcn.joining import join
from convrewrite.passes.fcn.lifter import Lifter
from convrewrite.passes.fcn.views import Parts, Refuse, State, Static, View


def one_view(lifter: Lifter, node: gs.Node, state: State) -> View:
    """The tensor that a node reads, as one; refuses a parameter of it."""
    view = join(lifter, node, state) if isinstance(state, Parts) else state
    if not isinstance(view, View):
        raise Refuse("fcn/no-rule", f"{lifter.label(node)} has a parameter that depends on the image")
    return view


def _axis(node: gs.Node, view: View, default: int) -> int:
    return int(node.attrs.get("axis", default)) % len(view.axes)


def lift_softmax(lifter: Lifter, node: gs.Node, states: Sequence[State]) -> list[State]:
    """Softmax, LogSoftmax, Hardmax over the classes; over rows or columns they run on the whole axis, as they are."""
    view = one_view(lifter, node, states[0])
    old = lifter.graph.opset < 13
    place = _axis(node, view, 1 if old else -1)
    axis = atoms(view.axes[place:]) if old else view.axes[place]
    if lifter.mixes_samples(axis):
        raise Refuse("fcn/mixed-axes", f"{lifter.label(node)} normalises over the batch")
    if large(axis):
        if view.pools:
            raise Refuse("fcn/mixed-axes", f"{lifter.label(node)} normalises over positions behind a pool")
        lifter.check_windows(node, over_space=True)
        return list(lifter.emit_like(node, [plainly(lifter, node, view).tensor], plainly(lifter, node, view)))
    brought, at = lifter.emitter.split_off(view, axis, last=old)
    result = replace(brought, axes=view.axes)
    return list(lifter.emit_like(node, [result.tensor], result, {**node.attrs, "axis": at}))


def plainly(lifter: Lifter, node: gs.Node, view: View) -> View:
    """The view in the original's own layout, every axis of the image alone."""
    view = lifter.as_it_is(node, view)
    if not view.natural:
        raise Refuse("fcn/mixed-axes", f"{lifter.label(node)} runs over positions of a joined axis")
    return view


def lift_argmax(lifter: Lifter, node: gs.Node, states: Sequence[State]) -> list[State]:
    """ArgMax and ArgMin over the classes: axis 1, keepdims, int64."""
    view = one_view(lifter, node, states[0])
    place = _axis(node, view, 0)
    axis = view.axes[place]
    if not only(axis, "C"):
        raise Refuse("fcn/mixed-axes", f"{lifter.label(node)} searches over positions or the batch")
    brought, at = lifter.emitter.split_off(view, axis)
    one = channels(1)
    base = tuple((one,) if i == at else b for i, b in enumerate(brought.base))
    axes = _reduced(view.axes, [place], bool(node.attrs.get("keepdims", 1)))
    result = replace(brought, base=base, axes=axes)
    (lifted, *_) = lifter.emit_like(node, [brought.tensor], result, {**node.attrs, "axis": at, "keepdims": 1})
    lifted.tensor.dtype = np.dtype(np.int64)
    return [lifted]


def _reduced(axes: Layout, removed: Sequence[int], keepdims: bool) -> Layout:
    return tuple(() if i in removed else axis for i, axis in enumerate(axes) if keepdims or i not in removed)


def reduce_channels(
    lifter: Lifter, node: gs.Node, view: View, removed: Sequence[int], keepdims: bool, *, again: bool = False
) -> View:
    """A reduction over channel axes: one axis of the base, kept with extent 1."""
    axis = atoms(view.axes[i] for i in removed)
    brought, at = lifter.emitter.split_off(view, axis)
    base = tuple((channels(1),) if i == at else b for i, b in enumerate(brought.base))
    result = replace(brought, base=base, axes=_reduced(view.axes, removed, keepdims))
    attrs = {k: v for k, v in node.attrs.items() if k not in ("axes", "noop_with_empty_axes")} | {"keepdims": 1}
    inputs: list[gs.Tensor] = [brought.tensor]
    name = node.outputs[0].name
    if lifter.graph.opset >= (13 if node.op == "ReduceSum" else 18):
        inputs.append(lifter.emitter.ints(f"{name}/axes", [at]))
    else:
        attrs["axes"] = [at]
    if again:
        tensor = lifter.emitter.emit(node.op, inputs, attrs, output=f"{name}/channels", dtype=view.tensor.dtype)
        return replace(result, tensor=tensor)
    return lifter.emit_like(node, inputs, result, attrs)[0]


def lift_split(lifter: Lifter, node: gs.Node, states: Sequence[State]) -> list[State]:
    """Lift a Split over channels."""
    view = one_view(lifter, node, states[0])
    place = _axis(node, view, 0)
    _require_channels(lifter, node, view, place)
    brought, at = lifter.emitter.split_off(view, view.axes[place])
    inputs = [brought.tensor, *(lifter.static(tensor) for tensor in node.inputs[1:])]
    outputs = lifter.emit_like(node, inputs, brought, {**node.attrs, "axis": at})
    results: list[State] = []
    for tensor, output in zip(node.outputs, outputs, strict=True):
        if tensor.name:
            results.append(_replaced(output, view, place, at, size=lifter.shape(tensor)[place]))
        else:
            results.append(output)
    return results


def _replaced(output: View, view: View, place: int, at: int, size: int) -> View:
    """The output of an operator that keeps `size` entries of the axis at `place` (`at` in the base)."""
    new = channels(size)
    base = tuple((new,) if i == at else axis for i, axis in enumerate(output.base))
    return replace(output, base=base, axes=tuple((new,) if i == place else axis for i, axis in enumerate(view.axes)))


def _require_channels(lifter: Lifter, node: gs.Node, view: View, place: int) -> None:
    if not only(tuple(a for a in view.axes[place] if a.extent > 1), "C"):
        raise Refuse("fcn/mixed-axes", f"{lifter.label(node)} picks positions or samples by number")


def lift_gather(lifter: Lifter, node: gs.Node, states: Sequence[State]) -> list[State]:
    """Gather of channels by constant indices; a scalar index removes the axis."""
    if not isinstance(states[1], Static):
        raise Refuse("fcn/no-rule", f"{lifter.label(node)} has indices that depend on an input")
    view = one_view(lifter, node, states[0])
    place = _axis(node, view, 0)
    _require_channels(lifter, node, view, place)
    indices = lifter.value(node.inputs[1], node)
    if indices.ndim > 1:
        raise Refuse("fcn/no-rule", f"{lifter.label(node)} gathers by a matrix of indices")
    brought, at = lifter.emitter.split_off(view, view.axes[place])
    flat = lifter.emitter.constant(f"{node.inputs[1].name}/lifted", indices.reshape(-1))
    (output, *_) = lifter.emit_like(node, [brought.tensor, flat], replace(brought, axes=()), {**node.attrs, "axis": at})
    result = _replaced(output, view, place, at, size=indices.size)
    if indices.ndim == 0:
        result = replace(result, axes=tuple(a for i, a in enumerate(result.axes) if i != place))
    return [result]


def lift_top_k(lifter: Lifter, node: gs.Node, states: Sequence[State]) -> list[State]:
    """TopK over the classes: the k best scores of each cell, and which classes they are."""
    view = one_view(lifter, node, states[0])
    place = _axis(node, view, -1)
    _require_channels(lifter, node, view, place)
    brought, at = lifter.emitter.split_off(view, view.axes[place])
    inputs = [brought.tensor, *(lifter.static(tensor) for tensor in node.inputs[1:])]
    outputs = lifter.emit_like(node, inputs, brought, {**node.attrs, "axis": at})
    count = next(lifter.shape(t)[place] for t in node.outputs if t.name)
    for tensor, output in zip(node.outputs[1:], outputs[1:], strict=True):
        if tensor.name:
            output.tensor.dtype = np.dtype(np.int64)
    return [_replaced(output, view, place, at, size=count) for output in outputs]


RULES: Mapping[str, Callable[[Lifter, gs.Node, Sequence[State]], list[State]]] = ruled(
    {"softmax": lift_softmax, "search": lift_argmax, "split": lift_split, "gather": lift_gather, "top": lift_top_k}
)

__all__ = ["RULES", "one_view", "plainly", "reduce_channels"]
