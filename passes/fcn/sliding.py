"""Operators that slide a kernel over the map, and pools over the whole of it.

    GlobalAveragePool on [N, C, h, w]   ->   AveragePool, kernel h x w, stride 1
    AveragePool k >= map                ->   AveragePool, kernel h x w, stride 1 (cells of padding are not in it)
    ReduceMean over h, w                ->   AveragePool, kernel h x w, stride 1

so that each output cell is the pool of one window. auto_pad is frozen to the pads of the native size: the phase of SAME
padding flips between even and odd sizes and would shift the whole interior.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite.engine.axes import Atom, Layout, atoms, channels, large, only
from convrewrite.engine.layers import ConvLayer, PoolLayer, Sliding, TransposedLayer
from convrewrite.engine.operators import ruled
from convrewrite.passes.fcn.channels import reduce_channels
from convrewrite.passes.fcn.hollow import without_hollow_axes
from convrewrite.passes.fcn.joining import join
from convrewrite.passes.fcn.lifter import Lifter
from convrewrite.passes.fcn.views import Fixed, Parts, Refuse, State, Static, Strip, View, behind
from convrewrite.text import by

POOLS_OF_REDUCTIONS = {
    "ReduceMean": "AveragePool",
    "ReduceSum": "AveragePool",
    "ReduceMax": "MaxPool",
    "ReduceMin": "MaxPool",
    "ReduceL1": "LpPool",
    "ReduceL2": "LpPool",
    "ReduceSumSquare": "AveragePool",
}


def spread(lifter: Lifter, node: gs.Node, state: State) -> View:
    """A view in the layout [N, C, *spatial] that a sliding operator reads, in the order of the original's axes."""
    view = join(lifter, node, state) if isinstance(state, Parts) else state
    if not isinstance(view, View):
        raise Refuse("fcn/no-rule", f"{lifter.label(node)} does not slide over the image but over a parameter")
    axes = list(view.axes)
    for atom in atoms(view.base):
        if atom in atoms(view.axes):
            continue
        places = {"N": [0], "C": [1]}.get(atom.letter, range(2, len(axes)))
        place = next((i for i in places if i < len(axes) and not axes[i]), None)
        if place is not None:
            axes[place] = (atom,)
        elif atom.letter != "C":
            raise Refuse("fcn/mixed-axes", f"{lifter.label(node)} runs on a tensor without the axis {atom.letter}")
    spatial = [len(axis) == 1 and axis[0].spatial for axis in axes[2:]]
    if len(axes) < 3 or not only(axes[0], "N") or not only(axes[1], "C") or not all(spatial):
        raise Refuse("fcn/mixed-axes", f"{lifter.label(node)} slides over an axis that is not one of the image's")
    lifter.slides = True
    return replace(lifter.emitter.bring(view, tuple(axes)), axes=tuple(axes))


def letters_of(view: View) -> list[str]:
    """The letters of the axes that an operator slides over."""
    return [axis[0].letter for axis in view.axes[2:]]


def size_of(view: View) -> tuple[int, ...]:
    """The native extents of the axes that an operator slides over."""
    return tuple(axis[0].extent for axis in view.axes[2:])


def resized(view: View, size: Sequence[int], channel: Atom | None = None) -> View:
    """The view with new spatial extents, and a new channel atom where given."""
    spatial = tuple(
        (axis[0] if axis[0].extent == new else Atom(axis[0].letter, new),)
        for axis, new in zip(view.axes[2:], size, strict=True)
    )
    layout: Layout = (view.axes[0], view.axes[1] if channel is None else (channel,), *spatial)
    return replace(view, base=layout, axes=layout)


def slid(lifter: Lifter, node: gs.Node, view: View, sliding: Sliding, op: str | None = None) -> tuple[View, Sliding]:
    """Book-keeping of a sliding operator: pads, window property, receptive fields. op: what stands for the node."""
    if lifter.trim:
        sliding = sliding.trimmed()
    axes = range(len(sliding.size))
    padded = any(sliding.sees_padding(axis) for axis in axes)
    partly = sliding.ceil_mode and not any((*sliding.begin, *sliding.end))
    lifter.check_windows(node, sees_padding=padded and not partly, beyond_map=padded and partly, op=op)
    if padded and view.one_position and view.pools:
        lifter.cut_holds = False
    fields = dict(view.fields)
    for axis, letter in enumerate(letters_of(view)):
        fields[letter] = fields[letter].slide(
            sliding.kernel[axis], sliding.strides[axis], sliding.dilations[axis], sliding.begin[axis]
        )
    return replace(view, fields=fields), sliding


def lift_conv(lifter: Lifter, node: gs.Node, states: Sequence[State]) -> list[State]:
    """Conv: the same weights slide over a larger map."""
    view = spread(lifter, node, states[0])
    if any(not isinstance(state, Static) for state in states[1:]):
        raise Refuse("fcn/no-rule", f"{lifter.label(node)} has a weight that depends on an input")
    layer = ConvLayer.from_node(node, lifter.shape(node.inputs[1]), size_of(view))
    view, sliding = slid(lifter, node, view, layer.sliding)
    attrs = dict(node.attrs)
    if sliding != layer.sliding or attrs.get("auto_pad", "NOTSET") != "NOTSET":
        attrs = sliding.attributes(attrs, pool=False)
    result = resized(view, sliding.output, channels(layer.out_channels))
    inputs = [view.tensor, *(lifter.static(tensor) for tensor in node.inputs[1:])]
    return list(lifter.emit_like(node, inputs, result, attrs))


def lift_conv_transpose(lifter: Lifter, node: gs.Node, states: Sequence[State]) -> list[State]:
    """ConvTranspose: runs at any size; its stride divides the stride of the map."""
    view = spread(lifter, node, states[0])
    if any(not isinstance(state, Static) for state in states[1:]):
        raise Refuse("fcn/no-rule", f"{lifter.label(node)} has a weight that depends on an input")
    if "output_shape" in node.attrs or node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise Refuse("fcn/no-rule", f"{lifter.label(node)} fixes its output's size")
    layer = TransposedLayer.from_node(node, lifter.shape(node.inputs[1]), size_of(view))
    geometry = layer.spreading
    lifter.check_windows(node)
    view = _upsampled(lifter, node, view, [float(stride) for stride in geometry.strides], kernel=geometry.kernel)
    inputs = [view.tensor, *(lifter.static(tensor) for tensor in node.inputs[1:])]
    return list(lifter.emit_like(node, inputs, resized(view, geometry.output, channels(layer.out_channels))))


def _upsampled(
    lifter: Lifter, node: gs.Node, view: View, scales: Sequence[float], kernel: Sequence[int] | None = None
) -> View:
    """Divide the strides by integer scales; the receptive field grows by what an interpolation reads at most."""
    fields = dict(view.fields)
    for place, letter in enumerate(letters_of(view)):
        scale, old = scales[place], fields[letter]
        shrink = round(1 / scale)
        if shrink > 1 and abs(shrink * scale - 1) < 1e-6:
            fields[letter] = replace(old, stride=old.stride * shrink, size=old.size + shrink * old.stride)
            continue
        if scale < 1 or scale != int(scale) or old.stride % int(scale):
            what = f"by {scale:.6g}, which puts its cells between the pixels of the image"
            raise Refuse("fcn/no-rule", f"{lifter.label(node)} resizes the map {what}")
        lifter.period[letter] = math.lcm(lifter.period.get(letter, 1), old.stride)
        reach = old.stride if kernel is None else (kernel[place] - 1) // int(scale) * old.stride
        fields[letter] = replace(
            old, stride=old.stride // int(scale), size=old.size + 2 * reach, offset=old.offset - reach
        )
    return replace(view, fields=fields)


def lift_pool(lifter: Lifter, node: gs.Node, states: Sequence[State]) -> list[State]:
    """AveragePool, MaxPool, LpPool: a pool over the whole native map becomes the classifier's own at stride 1."""
    view = spread(lifter, node, states[0])
    if len(node.outputs) > 1 and node.outputs[1].name and node.outputs[1].outputs:
        raise Refuse("fcn/no-rule", f"{lifter.label(node)} gives the positions of its maxima away")
    layer = PoolLayer.from_node(node, size_of(view))
    whole = [axis for axis in range(len(layer.sliding.size)) if layer.sliding.covers_map(axis)]
    if len(whole) == len(layer.sliding.size) and node.outputs[0].name in lifter.global_pools:
        return kept_global(lifter, node, view, layer)
    if not whole or layer.sliding.output != (1,) * len(layer.sliding.size):
        view, sliding = slid(lifter, node, view, layer.sliding)
        attrs = dict(node.attrs)
        if sliding != layer.sliding or attrs.get("auto_pad", "NOTSET") != "NOTSET":
            attrs = sliding.attributes(attrs, pool=True)
        return list(lifter.emit_like(node, [view.tensor], resized(view, sliding.output), attrs))
    new, factor = layer.over_whole_map(whole)
    return [_window_pool(lifter, node, view, new, factor=factor)]


def _window_pool(lifter: Lifter, node: gs.Node, view: View, layer: PoolLayer, factor: float) -> View:
    """Emit a pool that stands for a whole-map pool of the original."""
    anchor = node.outputs[0].name
    pooled, sliding = slid(lifter, node, view, layer.sliding, op=layer.op)
    attrs: dict[str, Any] = {"kernel_shape": list(sliding.kernel), "strides": list(sliding.strides)}
    if any(dilation != 1 for dilation in sliding.dilations):
        attrs["dilations"] = list(sliding.dilations)
    if any((*sliding.begin, *sliding.end)):
        attrs["pads"] = [*sliding.begin, *sliding.end]
        if layer.op == "AveragePool":
            attrs["count_include_pad"] = int(layer.count_include_pad)
    if layer.op == "LpPool" and "p" in node.attrs:
        attrs["p"] = node.attrs["p"]
    result = resized(pooled, sliding.output)
    name, dtype = f"{anchor}/window", view.tensor.dtype
    if all(k == 1 for k in sliding.kernel) and layer.op != "LpPool":
        tensor = view.tensor
    else:
        tensor = lifter.emitter.emit(layer.op, [view.tensor], attrs, output=name, dtype=dtype)
    if factor != 1.0:
        scale = lifter.emitter.constant(f"{anchor}/factor", np.asarray(factor, lifter.float_type(node)))
        tensor = lifter.emitter.emit("Mul", [tensor, scale], output=f"{name}/scaled", dtype=dtype)
    kernel = by(sliding.kernel, " x ")
    lifter.rewrote(node, f"{node.op} over the whole map -> {layer.op} {kernel}, stride 1", "reassociated")
    lifter.spans = True
    return replace(result, tensor=tensor, pools=view.pools | {anchor})


def kept_global(lifter: Lifter, node: gs.Node, view: View, layer: PoolLayer) -> list[State]:
    """A squeeze-and-excite block: its pool stays over the whole map, whatever its size."""
    lifter.check_windows(node, over_space=True)
    _, factor = layer.over_whole_map(range(len(layer.sliding.size)))
    anchor, op = node.outputs[0].name, f"Global{layer.op}"
    attrs = {"p": node.attrs["p"]} if layer.op == "LpPool" and "p" in node.attrs else {}
    plain = factor == 1.0
    name = anchor if plain else f"{anchor}/global"
    tensor = lifter.emitter.emit(op, [view.tensor], attrs, output=name, own_name=plain)
    if not plain:
        scale = lifter.emitter.constant(f"{anchor}/factor", np.asarray(factor, lifter.float_type(node)))
        tensor = lifter.emitter.emit("Mul", [tensor, scale], output=anchor, own_name=True)
    lifter.rewrote(node, f"stays over the whole map ({op})", "exact")
    return [Fixed(tensor, frozenset({anchor}))]


def lift_global_pool(lifter: Lifter, node: gs.Node, states: Sequence[State]) -> list[State]:
    """GlobalAveragePool, GlobalMaxPool, GlobalLpPool."""
    view = spread(lifter, node, states[0])
    size, op = size_of(view), node.op.removeprefix("Global")
    ones, zeros = (1,) * len(size), (0,) * len(size)
    layer = PoolLayer(op, Sliding(size, size, ones, ones, begin=zeros, end=zeros), count_include_pad=False)
    if node.outputs[0].name in lifter.global_pools:
        return kept_global(lifter, node, view, layer)
    return [_window_pool(lifter, node, view, layer, factor=1.0)]


def lift_reduction(lifter: Lifter, node: gs.Node, states: Sequence[State]) -> list[State]:
    """ReduceMean and its kin: over channels as they are, over the whole map as a pool."""
    view = join(lifter, node, states[0]) if isinstance(states[0], Parts) else states[0]
    if not isinstance(view, View):
        raise Refuse("fcn/no-rule", f"{lifter.label(node)} reduces over axes that depend on an input")
    axes = reduced_axes(lifter, node, view)
    if axes is None:
        return [view]
    removed = atoms(view.axes[axis] for axis in axes)
    if lifter.mixes_samples(removed):
        raise Refuse("fcn/mixed-axes", f"{lifter.label(node)} reduces over the batch")
    keepdims = bool(node.attrs.get("keepdims", 1))
    if not large(removed):
        return [reduce_channels(lifter, node, view, axes, keepdims=keepdims)]
    if node.outputs[0].name in lifter.global_pools:
        return reduced_globally(lifter, node, view, axes)
    if node.op not in POOLS_OF_REDUCTIONS:
        raise Refuse("fcn/no-rule", f"{lifter.label(node)} over the map has no pool that does the same")
    mixed = any(a.letter == "C" and a.extent > 1 for a in removed)
    if mixed and node.op in ("ReduceL2", "ReduceSumSquare"):
        raise Refuse("fcn/no-rule", f"{lifter.label(node)} runs over channels and positions at once")
    spatial = {a.letter for a in removed if a.spatial}
    return [reduced(lifter, node, view, axes, letters=spatial, keepdims=keepdims, again=mixed)]


def reduced_axes(lifter: Lifter, node: gs.Node, view: View) -> list[int] | None:
    """The axes that a reduction removes, in order; None where it removes none."""
    rank = len(view.axes)
    given = lifter.parameter(node, "axes", 1)
    if given is not None and not np.size(given):
        given = None
    if given is None and node.attrs.get("noop_with_empty_axes", 0):
        return None
    return sorted(int(a) % rank for a in (range(rank) if given is None else np.atleast_1d(given)))


def reduced(
    lifter: Lifter, node: gs.Node, view: View, axes: Sequence[int], letters: set[str], *, keepdims: bool, again: bool
) -> View:
    """The view pooled over windows along those letters, and over the channels among the axes with `again`."""
    pooled = _pool_of_reduction(lifter, node, view, letters) if letters else view
    if again:
        return reduce_channels(lifter, node, pooled, axes, keepdims=keepdims, again=True)
    left = tuple(() if i in axes else axis for i, axis in enumerate(pooled.axes) if keepdims or i not in axes)
    return replace(pooled, axes=left)


def _pool_of_reduction(lifter: Lifter, node: gs.Node, view: View, letters: set[str]) -> View:
    """The pool that reduces a window over those spatial axes."""
    anchor = node.outputs[0].name
    flat = lifter.emitter.as_map(view)
    size = size_of(flat)
    kernel = tuple(n if letter in letters else 1 for n, letter in zip(size, letters_of(flat), strict=True))
    ones, zeros = (1,) * len(size), (0,) * len(size)
    layer = PoolLayer(POOLS_OF_REDUCTIONS[node.op], Sliding(size, kernel, ones, ones, begin=zeros, end=zeros), False)
    tensor = flat.tensor
    if node.op == "ReduceMin":
        tensor = lifter.emitter.emit("Neg", [tensor], output=f"{anchor}/negated", dtype=tensor.dtype)
    elif node.op == "ReduceSumSquare":
        tensor = lifter.emitter.emit("Mul", [tensor, tensor], output=f"{anchor}/squared", dtype=tensor.dtype)
    norm = {"ReduceL1": 1, "ReduceL2": 2}.get(node.op)
    source = gs.Node(node.op, node.name, {"p": norm} if norm else {}, outputs=[gs.Variable(anchor)])
    factor = float(math.prod(kernel)) if node.op in ("ReduceSum", "ReduceSumSquare") else 1.0
    pooled = _window_pool(lifter, source, replace(flat, tensor=tensor), layer, factor=factor)
    if node.op == "ReduceMin":
        back = lifter.emitter.emit("Neg", [pooled.tensor], output=f"{anchor}/lifted", dtype=tensor.dtype)
        pooled = replace(pooled, tensor=back)
    return replace(pooled, axes=behind(view, pooled))


def reduced_globally(lifter: Lifter, node: gs.Node, view: View, axes: Sequence[int]) -> list[State]:
    """A reduction over the whole map, whatever its size."""
    lifter.check_windows(node, over_space=True)
    view = lifter.as_it_is(node, view)
    left = {a for i, axis in enumerate(view.axes) if i not in axes for a in axis if a.spatial}
    if any(large(axis) and any(a.letter == "C" and a.extent > 1 for a in axis) for axis in view.axes):
        raise Refuse("fcn/no-rule", f"{lifter.label(node)} runs over the features of a flattened map")
    inputs = [view.tensor, *(lifter.static(tensor) for tensor in node.inputs[1:])]
    name = node.outputs[0].name
    if left and any(large(axis) for i, axis in enumerate(view.axes) if i not in axes):
        keepdims = bool(node.attrs.get("keepdims", 1))
        layout = tuple(() if i in axes else axis for i, axis in enumerate(view.axes) if keepdims or i not in axes)
        (half,) = lifter.emit_like(node, inputs, replace(view, base=layout, axes=layout))
        return [Strip(half, name)]
    if left:
        raise Refuse("fcn/mixed-axes", f"{lifter.label(node)} reduces over one axis of the map and leaves another")
    lifter.rewrote(node, "stays over the whole map", "exact")
    tensor = lifter.emitter.emit(node.op, inputs, node.attrs, output=name, own_name=True, node_name=node.name)
    return [Fixed(tensor, frozenset({name}))]


def lift_pad(lifter: Lifter, node: gs.Node, states: Sequence[State]) -> list[State]:
    """Pad: a border of fixed width; windows at the image's edge see it, others do not."""
    if not isinstance(states[0], View):
        raise Refuse("fcn/no-rule", f"{lifter.label(node)} pads joined features")
    view = lifter.as_it_is(node, states[0])
    pads = lifter.parameter(node, "pads", 1)
    if pads is None:
        raise Refuse("fcn/no-rule", f"{lifter.label(node)} has no pads")
    rank = len(view.axes)
    chosen = lifter.parameter(node, "axes", 3)
    places = range(rank) if chosen is None else [int(a) % rank for a in chosen]
    half = len(pads) // 2
    before = {axis: int(pads[i]) for i, axis in enumerate(places)}
    after = {axis: int(pads[half + i]) for i, axis in enumerate(places)}
    layout, fields = list(view.axes), dict(view.fields)
    for axis, old in enumerate(view.axes):
        begin, end = before.get(axis, 0), after.get(axis, 0)
        if not begin and not end:
            continue
        if len(old) > 1 or (old and old[0].letter == "N"):
            raise Refuse("fcn/mixed-axes", f"{lifter.label(node)} pads the batch or a product of axes")
        extent = old[0].extent if old else 1
        if old and old[0].spatial:
            letter = old[0].letter
            fields[letter] = replace(fields[letter], offset=fields[letter].offset - begin * fields[letter].stride)
            lifter.breaks.append(f"Pad moves the border of the map ('{node.name or node.outputs[0].name}')")
            layout[axis] = (Atom(letter, extent + begin + end),)
        else:
            layout[axis] = (channels(extent + begin + end),)
    result = replace(view, base=tuple(layout), axes=tuple(layout), fields=fields)
    return list(lifter.emit_like(node, [view.tensor, *(lifter.static(t) for t in node.inputs[1:])], result))


def lift_resize(lifter: Lifter, node: gs.Node, states: Sequence[State]) -> list[State]:
    """Resize and Upsample by whole factors; sizes become scales, since they name the native size."""
    view = spread(lifter, node, states[0])
    new, old = lifter.shape(node.outputs[0]), lifter.shape(node.inputs[0])
    scales = [after / before for after, before in zip(new, old, strict=True)]
    if scales[:2] != [1.0, 1.0]:
        raise Refuse("fcn/no-rule", f"{lifter.label(node)} resizes the batch or the channels")
    lifter.check_windows(node)
    view = _upsampled(lifter, node, view, scales[2:])
    inputs = [view.tensor, *(lifter.static(t) for t in node.inputs[1:])]
    by_size = len(node.inputs) > 3 and bool(node.inputs[3].name)
    if by_size:
        factors = lifter.emitter.constant(f"{node.outputs[0].name}/scales", np.asarray(scales, np.float32))
        inputs = [view.tensor, inputs[1], factors]
    named = ("keep_aspect_ratio_policy", "axes") if by_size else ()
    attrs = {k: v for k, v in node.attrs.items() if k not in named}
    return list(lifter.emit_like(node, inputs, resized(view, new[2:]), attrs))


def lift_blocks(lifter: Lifter, node: gs.Node, states: Sequence[State]) -> list[State]:
    """Lift SpaceToDepth and DepthToSpace."""
    view = spread(lifter, node, states[0])
    block = int(node.attrs["blocksize"])
    new = lifter.shape(node.outputs[0])
    lifter.check_windows(node)
    if node.op == "SpaceToDepth":
        fields = {letter: field.slide(block, block) for letter, field in view.fields.items()}
        view = replace(view, fields=fields)
    else:
        view = _upsampled(lifter, node, view, [float(block)] * 2, kernel=(block, block))
    return list(lifter.emit_like(node, [view.tensor], resized(view, new[2:], channels(new[1]))))


RULES: Mapping[str, Callable[[Lifter, gs.Node, Sequence[State]], list[State]]] = ruled(
    {
        "convolution": without_hollow_axes(lift_conv),
        "transposed-convolution": lift_conv_transpose,
        "pool": without_hollow_axes(lift_pool),
        "global-pool": lift_global_pool,
        "reduction": lift_reduction,
        "pad": lift_pad,
        "resize": lift_resize,
        "blocks": lift_blocks,
    }
)
