"""Fully connected layers become convolutions.

    Flatten [N, C h w] -> Gemm W [K, C h w]     ->     Conv, kernel [K, C, h, w]
    Gemm W [K, F] on [N, F]                     ->     Conv, kernel [K, F, 1, 1]

because on one window  sum_f W[k, f] x[f]  with f = (c, i, j)  is  sum_cij W[k, c, i, j] x[c, i, j],  a convolution at
one position; on a larger map the same kernel slides. After an NHWC flatten f = (i, j, c), and the weight is permuted.
A plain convolution is emitted: it is the fastest form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite.engine.axes import Atom, Axis, Layout, atoms, channels, extent, large
from convrewrite.engine.graph import all_finite, producer
from convrewrite.engine.layers import LinearLayer
from convrewrite.engine.operators import ruled
from convrewrite.engine.quantized import Stored
from convrewrite.passes.fcn.lifter import Lifter
from convrewrite.passes.fcn.naming import product_of_two
from convrewrite.passes.fcn.views import Fixed, Parts, Refuse, State, Static, View, relayout
from convrewrite.text import by


def lift_linear(lifter: Lifter, node: gs.Node, states: Sequence[State]) -> list[State]:
    """Lift a Gemm or MatMul that has a constant factor."""
    static = [index for index, state in enumerate(states[:2]) if isinstance(state, Static)]
    if len(static) != 1:
        for tensor, state in zip(node.inputs, states[:2], strict=False):
            if isinstance(state, Fixed):
                detail = f"{lifter.label(node)} multiplies by '{tensor.name}', which is not constant"
                raise Refuse("fcn/weight-not-constant", detail)
        raise product_of_two(lifter, node, states)
    stored, rank = lifter.shape(node.inputs[static[0]]), len(lifter.shape(node.inputs[1 - static[0]]))
    layer = LinearLayer.from_node(node, weight=static[0], stored=stored, rank=rank)
    if lifter.graph.opset < 22 and str(node.inputs[layer.weight].dtype) in ("bfloat16", "16"):
        raise Refuse("fcn/no-rule", f"{lifter.label(node)} has bfloat16 weights, which Conv takes from opset 22 on")
    data = states[layer.data]
    scaled = _scaled_identity(lifter, node, layer, data) if isinstance(data, View) else None
    if scaled is not None:
        return [scaled]
    if len(stored) > 1 and not layer.is_matrix:
        raise Refuse("fcn/uncontracted-channels", f"{lifter.label(node)} multiplies by a stack of matrices")
    result = _product(lifter, node, layer, data)
    missing = len(lifter.shape(node.outputs[0])) - len(result.axes)  # a weight [1, F, K] adds an axis of extent 1
    result = replace(result, axes=((),) * missing + result.axes)
    lifter.states[node.outputs[0].name] = result
    return [result]


def _product(lifter: Lifter, node: gs.Node, layer: LinearLayer, data: State) -> View:
    anchor = node.outputs[0].name
    outputs = layer.outputs
    if isinstance(data, Parts):
        if data.axis != data.rank + layer.axis:
            raise Refuse("fcn/mixed-axes", f"{lifter.label(node)} contracts another axis than the joined one")
        members, extents = data.members, data.extents
    elif isinstance(data, View):
        members, extents = (data,), (extent(data.axes[layer.axis]),)
    else:
        raise Refuse("fcn/weight-not-constant", f"{lifter.label(node)} has no constant factor")
    knew = channels(outputs)
    terms: list[View | gs.Variable] = []
    start = 0
    for member, size in zip(members, extents, strict=True):
        part = slice(None) if len(members) == 1 else slice(start, start + size)
        start += size
        name = anchor if len(members) == 1 else f"{anchor}/part"
        if isinstance(member, View):
            terms.append(_contracted(lifter, node, layer, member, part=part, knew=knew, name=name))
        else:
            terms.append(_vector_product(lifter, node, layer, member, part=part, knew=knew))
    view = _summed(lifter, node, terms)
    view = _with_bias(lifter, node, layer, view)
    entries = math.prod(layer.stored)
    detail = f"{node.op} [{outputs}, {sum(extents)}] -> {_kernel_text(lifter, members, layer.axis, outputs)}"
    lifter.rewrote(node, detail, "reassociated", params=(entries, entries))
    return view


def _kernel_text(lifter: Lifter, members: Sequence[View | Fixed], axis: int, outputs: int) -> str:
    """The kernel that contracts a view, for people: outputs x channels x rows x columns."""
    if len(members) > 1 or not isinstance(members[0], View):
        return f"{len(members)} Convs, added"
    view = members[0]
    inside = view.axes[axis]
    kernel = [view.spatial(letter).extent if view.spatial(letter) in inside else 1 for letter in view.letters]
    fan_in = extent(a for a in inside if a.letter == "C")
    return "Conv " + by([outputs, fan_in, *kernel], " x ")


def _contracted(
    lifter: Lifter, node: gs.Node, layer: LinearLayer, view: View, part: slice, knew: Atom, name: str
) -> View:
    """The convolution that contracts one axis of a view."""
    place = len(view.axes) + layer.axis
    axis = view.axes[place]
    aside = atoms(a for i, a in enumerate(view.axes) if i != place)
    if any(a.letter == "N" and a.extent > 1 for a in axis):
        raise Refuse("fcn/mixed-axes", f"{lifter.label(node)} contracts the batch")
    if any(a.letter == "C" and a.extent > 1 for a in aside):
        raise Refuse(
            "fcn/uncontracted-channels", f"{lifter.label(node)} contracts {_text(axis)} and leaves {_text(aside)}"
        )
    batch = tuple(a for a in atoms(view.base) if a.letter == "N")
    channel = tuple(a for a in axis if a.letter == "C")
    channel += tuple(a for a in atoms(view.base) if a.letter == "C" and a not in channel)
    target: Layout = (batch, channel, *((view.spatial(letter),) for letter in view.letters))
    brought = lifter.emitter.bring(view, target)
    inside = set(axis)
    kernel = {letter: view.spatial(letter).extent if view.spatial(letter) in inside else 1 for letter in view.letters}
    lifter.spans |= any(size > 1 for size in kernel.values())
    weight = _weight(
        lifter, node, layer, part, axis=axis, sizes=[len(channel) and extent(channel), kernel], view=view, name=name
    )
    attrs = {"kernel_shape": [kernel[letter] for letter in view.letters]}
    output = f"{name}/conv"
    tensor = lifter.emitter.emit("Conv", [brought.tensor, weight], attrs, output=output, dtype=view.tensor.dtype)
    fields = {letter: field.slide(kernel[letter]) for letter, field in view.fields.items()}
    spatial = {
        letter: Atom(letter, 1) if view.spatial(letter) in inside else view.spatial(letter) for letter in view.letters
    }
    base: Layout = (batch, (knew,), *((spatial[letter],) for letter in view.letters))
    rest = [
        tuple(a for a in other if a in batch or a in spatial.values())
        for i, other in enumerate(view.axes)
        if i != place
    ]
    return replace(view, tensor=tensor, base=base, axes=_output_axes(layer, rest, knew), fields=fields)


def _output_axes(layer: LinearLayer, rest: Sequence[Axis], knew: Atom) -> Layout:
    """Axes of the product: where the layer puts its outputs; none for a vector."""
    others = list(rest)
    if len(layer.stored) == 1:
        return tuple(others)
    return (*others, (knew,)) if layer.output_axis == -1 else (*others[:-1], (knew,), *others[-1:])


def _text(axis: Sequence[Atom]) -> str:
    return "(" + " ".join(f"{a.letter}{a.extent}" for a in axis if a.extent > 1) + ")"


def _weight(
    lifter: Lifter,
    node: gs.Node,
    layer: LinearLayer,
    part: slice,
    axis: Axis,
    sizes: Sequence[Any],
    view: View,
    name: str,
) -> gs.Tensor:
    """The kernel [K, C, *spatial] of a fully connected layer whose features are ordered as the atoms of `axis`."""
    fan_in, kernel = sizes
    tensor = node.inputs[layer.weight]
    made = producer(tensor)
    outputs = layer.outputs
    shape = [outputs, int(fan_in) or 1, *(kernel[letter] for letter in view.letters)]
    plain = part == slice(None) and layer.alpha == 1.0
    if plain and made is not None and made.op == "ConstantOfShape" and not isinstance(tensor, gs.Constant):
        dims = lifter.emitter.ints(f"{name}/weight/shape", shape)
        return lifter.emitter.emit("ConstantOfShape", [dims], made.attrs, output=f"{name}/weight")
    order = [i for i, a in enumerate(axis) if not a.spatial]
    order += [i for letter in view.letters for i, a in enumerate(axis) if a.letter == letter]

    def kernels(stored: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        matrix = replace(layer, alpha=1.0).matrix(stored)[:, part]
        read = math.prod(a.extent for a in axis)
        if matrix.shape[1] != read:  # below opset 11 shape inference lets it pass
            detail = f"{lifter.label(node)} takes {matrix.shape[1]} features, and reads {read}"
            raise Refuse("fcn/dynamic-shape", f"{detail} at this size of the input")
        apart = matrix.reshape(outputs, *(a.extent for a in axis))
        return apart.transpose(0, *(i + 1 for i in order)).reshape(shape)

    what = f"weight '{tensor.name}' of {lifter.label(node)}"
    kept = Stored.read(tensor, lifter.constants)
    kept = kept and kept.arranged(kernels)
    if kept is not None and kept.finite:
        return lifter.emitter.kept(f"{name}/weight", kept.times(layer.alpha))
    values = lifter.constants.value(tensor)
    if values is None:
        raise Refuse("fcn/weight-not-constant", f"{what} is not constant")
    whole = isinstance(tensor, gs.Constant)
    if values.dtype.kind == "f" and not (all_finite(tensor) if whole else np.isfinite(values.sum(dtype=np.float64))):
        raise Refuse("fcn/not-finite", f"{what} holds NaN or infinity")
    moved = kernels(values)
    scaled = moved if layer.alpha == 1.0 else moved * np.asarray(layer.alpha, values.dtype)
    return lifter.emitter.constant(f"{name}/weight", scaled)


def _vector_product(
    lifter: Lifter, node: gs.Node, layer: LinearLayer, vector: Fixed, part: slice, knew: Atom
) -> gs.Variable:
    """A second input without positions: its share of the product, [N, K]."""
    values = lifter.value(node.inputs[layer.weight], node)
    matrix = layer.matrix(values)[:, part]
    anchor = node.outputs[0].name
    weight = lifter.emitter.constant(f"{anchor}/vector/weight", matrix.T)
    return lifter.emitter.emit("MatMul", [vector.tensor, weight], output=f"{anchor}/vector", dtype=vector.tensor.dtype)


def _summed(lifter: Lifter, node: gs.Node, terms: Sequence[View | gs.Variable]) -> View:
    """The sum of the shares of a product; grids of different stride are brought to one."""
    views = [term for term in terms if isinstance(term, View)]
    strides = {letter: math.lcm(*(v.fields[letter].stride for v in views)) for letter in views[0].fields}
    views = [
        lifter.emitter.thinned(v, {k: strides[k] // f.stride for k, f in v.fields.items()}, f"{v.tensor.name}/every")
        for v in views
    ]
    total = views[0]
    anchor = node.outputs[0].name
    for other in views[1:]:
        tensor = lifter.emitter.emit(
            "Add", [total.tensor, other.tensor], output=f"{anchor}/sum", dtype=total.tensor.dtype
        )
        fields = {letter: field.union(other.fields[letter]) for letter, field in total.fields.items()}
        total = replace(
            total, tensor=tensor, fields=fields, pools=total.pools | other.pools, cuts=total.cuts | other.cuts
        )
    for vector in (term for term in terms if not isinstance(term, View)):
        axes: Layout = (total.base[0], total.base[1])
        plain = View(vector, axes, axes, {})
        spread: Layout = (total.base[0], total.base[1], *((),) * (len(total.base) - 2))
        placed = lifter.emitter.bring(plain, spread).tensor
        tensor = lifter.emitter.emit("Add", [total.tensor, placed], output=f"{anchor}/sum", dtype=total.tensor.dtype)
        total = replace(total, tensor=tensor)
    return total


def _with_bias(lifter: Lifter, node: gs.Node, layer: LinearLayer, view: View) -> View:
    """The bias of a Gemm, in the convolution itself."""
    if layer.bias is None or layer.beta == 0.0:
        return view
    tensor = node.inputs[layer.bias]
    state = lifter.state(tensor)
    if not isinstance(state, Static):
        raise Refuse("fcn/weight-not-constant", f"the bias of {lifter.label(node)} depends on an input")
    what = f"the bias of {lifter.label(node)}"

    def line(stored: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        laid = relayout(stored, view.axes, view.base, what)
        return np.broadcast_to(laid, (1, extent(view.base[1]), *(1,) * (len(view.base) - 2))).reshape(-1)

    name = f"{node.outputs[0].name}/bias"
    conv = view.tensor.inputs[0]
    alone = conv.op == "Conv" and len(conv.inputs) == 2
    kept = Stored.read(tensor, lifter.constants) if alone else None
    kept = kept and kept.arranged(line)
    if kept is not None and kept.finite:
        conv.inputs.append(lifter.emitter.kept(name, kept.times(layer.beta)))
        lifter.emitter.nodes.append(lifter.emitter.nodes.pop(lifter.emitter.nodes.index(conv)))
        return view
    values = lifter.value(tensor, node)
    if not np.all(np.isfinite(values)):
        raise Refuse("fcn/not-finite", f"{what} holds NaN or infinity")
    full = line(values if layer.beta == 1.0 else values * np.asarray(layer.beta, values.dtype))
    if alone:
        conv.inputs.append(lifter.emitter.constant(name, full))
        return view
    bias = lifter.emitter.constant(name, full.reshape(1, -1, *(1,) * (len(view.base) - 2)))
    output = f"{node.outputs[0].name}/biased"
    return replace(view, tensor=lifter.emitter.emit("Add", [view.tensor, bias], output=output, dtype=view.tensor.dtype))


def _scaled_identity(lifter: Lifter, node: gs.Node, layer: LinearLayer, view: View) -> View | None:
    """A MatMul over the width by s * I (one s, or one per channel) is a multiplication by s."""
    if node.op != "MatMul" or not large(view.axes[layer.axis]):
        return None
    stored = layer.stored
    if len(stored) < 2 or stored[-1] != stored[-2] or len(view.axes[layer.axis]) != 1:
        return None
    values = lifter.constants.value(node.inputs[layer.weight])
    if values is None:
        return None
    diagonal = np.diagonal(values, axis1=-2, axis2=-1)
    eye = np.eye(stored[-1], dtype=values.dtype)
    if not np.array_equal(values, diagonal[..., None] * eye) or not np.all(diagonal == diagonal[..., :1]):
        return None
    factors = diagonal[..., :1, None]
    laid = relayout(factors, view.axes, view.base, f"'{node.inputs[layer.weight].name}' of {lifter.label(node)}")
    scale = lifter.emitter.constant(f"{node.outputs[0].name}/scale", laid)
    tensor = lifter.emitter.emit(
        "Mul", [view.tensor, scale], output=f"{node.outputs[0].name}/lifted", dtype=view.tensor.dtype
    )
    lifter.rewrote(node, "MatMul by a scaled identity -> Mul", "reassociated")
    return replace(view, tensor=tensor)


RULES: Mapping[str, Callable[[Lifter, gs.Node, Sequence[State]], list[State]]] = ruled({"matrix": lift_linear})
