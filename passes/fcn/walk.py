"""Lifting a model over all windows: one walk over the graph, one rule per operator.

Every tensor of the original is given a state (`views.State`): it is static, or fixed (the same at every image size), or
a view of a tensor in the new graph. The rules live in `elementwise`, `sliding`, `linear`, `channels`, `normalising`,
`joining` and `shapes`; this module calls them and keeps the books; `outputs` writes the outputs.

A pool over the whole map is first taken as the classifier's, with the native map as its kernel. Where its result later
meets a larger map it was a squeeze-and-excite block: the walk starts again with that pool kept global.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite.engine import axes
from convrewrite.engine.axes import Atom, atoms, large, letters
from convrewrite.engine.graph import live_nodes, subgraph_tensors, unique_name
from convrewrite.engine.operators import chosen, ruled
from convrewrite.engine.windows import CutTensor, Field
from convrewrite.passes.fcn import channels, elementwise, joining, linear, normalising, shapes, sliding, statistics
from convrewrite.passes.fcn.attention import lift_attention, settle_outputs
from convrewrite.passes.fcn.gates import check_outputs, lift_gate, spread_through
from convrewrite.passes.fcn.lifter import Lifter, known_dtype
from convrewrite.passes.fcn.naming import named
from convrewrite.passes.fcn.outputs import SIZE_NAMES, Lifted, finish
from convrewrite.passes.fcn.views import Centred, Fixed, Parts, Refuse, State, Static, Strip, View, Weights

Rule = Callable[[Lifter, gs.Node, Sequence[State]], list[State]]

RULES: Mapping[str, Rule] = {
    **elementwise.RULES,
    **sliding.RULES,
    **linear.RULES,
    **channels.RULES,
    **normalising.RULES,
    **joining.RULES,
    **shapes.RULES,
}

EXTENTS = chosen("extents")
RANDOM = chosen("random")
REFUSED = ruled(
    {
        "dynamic-quantizer integer-convolution integer-matrix": "fcn/integer-operator",
        "sampling unpool region product recurrent attention scan triangle entries list bits gate": "fcn/no-rule",
        "constant random loss signal control sequence text": "fcn/no-rule",
    }
)
"""Operators without a rule, and the reason that is given where they read the image."""

INTEGER_OPERATORS = frozenset(
    """QGemm QLinearAdd QLinearMul QLinearAveragePool QLinearGlobalAveragePool QLinearConcat QLinearLeakyRelu
    QLinearSigmoid QLinearSoftmax QLinearWhere QLinearReduceMean DynamicQuantizeMatMul MatMulIntegerToFloat""".split()
)
"""Operators of ONNX Runtime's own that take integers and their scales."""


def lift(lifter: Lifter) -> Lifted:
    """Lift the whole graph.

    Raises:
        Refuse: an operator cannot be lifted. MeetsLargerMap: a pool has to stay global; start again with it.
    """
    inputs = [_input(lifter, tensor) for tensor in lifter.graph.inputs]
    for node in live_nodes(lifter.graph):
        try:
            _step(lifter, node)
        except Refuse as refused:
            raise named(lifter, node, refused) from None
        lifter.progress += 1
    settle_outputs(lifter)
    statistics.check_outputs(lifter)
    check_outputs(lifter)
    _check_one_place(lifter)
    return finish(lifter, inputs)


def _input(lifter: Lifter, tensor: gs.Variable) -> gs.Variable:
    if tensor.name != lifter.image.name and tensor.name not in lifter.beside:
        copy = gs.Variable(tensor.name, tensor.dtype, tensor.shape)
        lifter.states[tensor.name] = Fixed(copy)
        return copy
    dims: list[Any] = list(tensor.shape)
    base: list[tuple[Atom, ...]] = []
    spatial = lifter.spatial_letters
    for place, letter in enumerate(lifter.beside.get(tensor.name, lifter.axes)):
        base.append((Atom(letter, lifter.native[tensor.name][place]),))
        if letter in spatial:
            size = lifter.new_size[spatial.index(letter)] if lifter.new_size else None
            dims[place] = size if size is not None else _symbol(lifter, SIZE_NAMES[letter])
    image = gs.Variable(tensor.name, tensor.dtype, dims)
    lifter.states[tensor.name] = View(image, tuple(base), tuple(base), {letter: Field() for letter in spatial})
    lifter.sources[tensor.name] = frozenset({tensor.name})
    return image


def _trace(lifter: Lifter, node: gs.Node, states: Sequence[State]) -> None:
    """Note which inputs the results depend on, and which of them meet here while they have several positions."""
    read = [lifter.sources.get(tensor.name, frozenset()) for tensor in node.inputs]
    held = [_held(state) for state in states]
    maps = [names for views, names in zip(held, read, strict=True) if any(not view.one_position for view in views)]
    if len(maps) > 1:
        lifter.met.add(frozenset[str]().union(*maps))
    together = frozenset[str]().union(*read)
    lifter.sources.update((tensor.name, together) for tensor in node.outputs if tensor.name)


def _held(state: State) -> list[View]:
    """The views that stand for a tensor."""
    if isinstance(state, Parts):
        return [member for member in state.members if isinstance(member, View)]
    if isinstance(state, Weights | Strip):
        return [state.view]
    if isinstance(state, Centred):
        return [state.data]
    return [state] if isinstance(state, View) else []


def _check_one_place(lifter: Lifter) -> None:
    """Refuse inputs that never meet on a map: that two windows are at one place means nothing to the model then."""
    needed = frozenset[str]().union(*(lifter.sources.get(t.name, frozenset()) for t in lifter.graph.outputs))
    reached = {lifter.image.name}
    while more := {name for met in lifter.met if met & reached for name in met} - reached:
        reached |= more
    apart = [f"'{t.name}' {list(t.shape)}" for t in lifter.graph.inputs if t.name in needed - reached]
    if apart and lifter.beside:
        image = f"'{lifter.image.name}' {list(lifter.image.shape)}"
        text = f"inputs {' and '.join([image, *apart])} are images that meet behind their maps alone"
        raise Refuse("fcn/several-images", text)


def _symbol(lifter: Lifter, wanted: str) -> str:
    axes = {lifter.image.name: lifter.axes, **lifter.beside}
    taken = {
        dim
        for tensor in lifter.graph.inputs
        for place, dim in enumerate(tensor.shape or ())
        if isinstance(dim, str) and (tensor.name not in axes or axes[tensor.name][place] in "NC")
    }
    return unique_name(wanted, taken)


def _step(lifter: Lifter, node: gs.Node) -> None:
    states = [lifter.state(tensor) for tensor in node.inputs]
    if any(isinstance(lifter.state(t), View | Parts | Weights | Strip | Centred) for t in subgraph_tensors(node)):
        raise Refuse("fcn/no-rule", f"{lifter.label(node)} reads the image inside a subgraph")
    if not any(isinstance(state, View | Parts | Weights | Strip | Centred) for state in states):
        _step_aside(lifter, node, states)
        statistics.note(lifter, node, states, [lifter.state(t) for t in node.outputs if t.name])
        return
    _trace(lifter, node, states)
    if node.op in INTEGER_OPERATORS or REFUSED.get(node.op) == "fcn/integer-operator":
        raise Refuse("fcn/integer-operator", f"{lifter.label(node)} computes with integers")
    if node.domain not in (None, "", "ai.onnx"):
        raise Refuse("fcn/custom-operator", f"{lifter.label(node)} is from the domain '{node.domain}'")
    if node.op in EXTENTS:
        return
    if node.op not in RULES:
        raise Refuse(REFUSED.get(node.op, "fcn/no-rule"), f"{lifter.label(node)} has no rule")
    taken: Sequence[State] = states
    results = statistics.lift_statistic(lifter, node, states)
    if results is None:
        taken, made = lift_attention(lifter, node, states)
        results = made or lift_gate(lifter, node, taken) or RULES[node.op](lifter, node, taken)
        statistics.note(lifter, node, states, results)
    for tensor, result in zip(node.outputs, results, strict=False):
        if tensor.name:
            _check_shape(lifter, node, tensor, result)
            lifter.states[tensor.name] = _with_cut(lifter, tensor, result, taken)


def _check_shape(lifter: Lifter, node: gs.Node, tensor: gs.Tensor, state: State) -> None:
    """Shape inference of onnx counts the windows of some pools with ceil_mode otherwise than ONNX Runtime does."""
    found = lifter.native.get(tensor.name)
    if isinstance(state, View) and found not in (None, axes.shape(state.axes)):
        text = f"{lifter.label(node)} gives {list(axes.shape(state.axes))}, shape inference says {list(found or ())}"
        raise Refuse("fcn/dynamic-shape", text)


def _with_cut(lifter: Lifter, tensor: gs.Tensor, state: State, states: Sequence[State]) -> State:
    """Remember the last spatial tensors: this one where each of its spatial axes stands alone.

    A tensor that the new graph does not have (the result of a Transpose) is passed over: where the original's trunk
    does not run at another size, verification reads the cut tensors from the new graph. Where a map is joined with
    what a pool made of the whole map, it is remembered all the same: what comes before is not enough for a window.
    """
    if not isinstance(state, View):
        return state
    before = [s for s in states if isinstance(s, View)]
    alone = all(len(axis) == 1 for axis in state.axes if any(a.spatial for a in axis))
    present = {a.letter for a in atoms(state.axes) if a.spatial}
    gated = any(isinstance(s, Fixed) for s in states) and large(atoms(state.base))
    kept = gated or state.tensor.name == tensor.name or not any(view.cuts for view in before)
    if alone and present == set(state.letters) and not state.pools and kept:
        sizes = tuple(state.spatial(letter).extent for letter in lifter.spatial_letters)
        strides = tuple(state.fields[letter].stride for letter in lifter.spatial_letters)
        return replace(state, cuts=frozenset({CutTensor(tensor.name, letters(state.axes), sizes, strides)}))
    return replace(state, cuts=state.cuts.union(*(v.cuts for v in before)))


def _step_aside(lifter: Lifter, node: gs.Node, states: Sequence[State]) -> None:
    """A node that sees no position: static, or fixed and copied as it is."""
    gate = lift_gate(lifter, node, states)
    if gate is not None:
        lifter.states[node.outputs[0].name] = gate[0]
        return
    random = node.op in RANDOM
    captured = [lifter.state(t) for t in subgraph_tensors(node)]
    if not random and not captured and not any(isinstance(state, Fixed) for state in states):
        return
    if _of_shapes_alone(lifter, node, states):
        return
    spread = spread_through(lifter, node, [*states, *captured])
    pools = frozenset[str]().union(*(s.pools for s in (*states, *captured) if isinstance(s, Fixed)))
    outputs = [gs.Variable(t.name, known_dtype(t), getattr(t, "shape", None)) for t in node.outputs]
    inputs = [
        s.tensor if isinstance(s, Fixed) else _aside(lifter, node, t) for t, s in zip(node.inputs, states, strict=True)
    ]
    for state in captured:
        if isinstance(state, Static) and not isinstance(state.tensor, gs.Constant) and state.tensor.inputs:
            lifter.copied(state.tensor)
    lifter.emitter.nodes.append(
        gs.Node(node.op, node.name, dict(node.attrs), inputs, outputs=outputs, domain=node.domain)
    )
    for tensor in outputs:
        if tensor.name:
            lifter.states[tensor.name] = Fixed(tensor, pools, spread)


def _of_shapes_alone(lifter: Lifter, node: gs.Node, states: Sequence[State]) -> bool:
    """Whether a node joins extents of a gate with extents of the map: a size to resize to, read from shapes alone."""
    sizes = [
        t
        for t, s in zip(node.inputs, states, strict=True)
        if isinstance(s, Static) and t.name and not isinstance(t, gs.Constant) and lifter.constants.depends_on_shape(t)
    ]
    gates = [s for s in states if isinstance(s, Fixed)]
    if node.op != "Concat" or not sizes or not all(gate.pools for gate in gates):
        return False
    return lifter.constants.value(node.outputs[0]) is not None


def _aside(lifter: Lifter, node: gs.Node, tensor: gs.Tensor) -> gs.Tensor:
    """A static operand of a fixed node. One that was read from the image's shape would freeze its native size."""
    if not tensor.name or isinstance(tensor, gs.Constant) or not lifter.constants.depends_on_shape(tensor):
        return lifter.static(tensor)
    if node.op != "Reshape":
        return _recomputed(lifter, node, tensor, {})
    target, given = lifter.shape(node.outputs[0]), lifter.shape(node.inputs[0])
    batch = [a.extent for a in atoms(_image_axes(lifter)) if a.letter == "N"]
    dims = [
        (0 if place < len(given) and given[place] == size else -1) if [size] == batch else size
        for place, size in enumerate(target)
    ]
    return lifter.emitter.ints(f"{tensor.name}/native", dims)


def _recomputed(lifter: Lifter, node: gs.Node, tensor: gs.Tensor, made: dict[str, gs.Tensor]) -> gs.Tensor:
    """What the original computes from the size of a map, computed from that of the new one: a count of its cells."""
    if tensor.name in made:
        return made[tensor.name]
    if not tensor.name or isinstance(tensor, gs.Constant) or not lifter.constants.depends_on_shape(tensor):
        return lifter.static(tensor)
    source, values = tensor.inputs[0], lifter.constants.value(tensor)
    counts_samples = values is None or bool(np.any((values % axes.SAMPLE == 0) & (values != 0)))
    place = lifter.axes.find("N")
    read_as_one = place >= 0 and lifter.native[lifter.image.name][place] != axes.SAMPLE
    hidden = read_as_one and not isinstance(lifter.image.shape[place], int)  # a count of samples is not seen at one
    if hidden or (source.op != "Shape" and counts_samples):
        raise Refuse("fcn/dynamic-shape", f"{lifter.label(node)} computes with '{tensor.name}', a size of the image")
    if source.op in EXTENTS:
        state = lifter.state(source.inputs[0])
        seen = state.data if isinstance(state, Centred) else state
        seen = lifter.as_it_is(source, seen) if isinstance(seen, View) else seen
        if not isinstance(seen, Fixed) and not (isinstance(seen, View) and seen.natural):
            raise Refuse(
                "fcn/dynamic-shape", f"{lifter.label(node)} computes with '{tensor.name}', a size of the image"
            )
        inputs: list[gs.Tensor] = [seen.tensor]
    else:
        inputs = [_recomputed(lifter, node, t, made) for t in source.inputs]
    outputs = [gs.Variable(unique_name(f"{t.name}/new-size", lifter.taken), known_dtype(t)) for t in source.outputs]
    lifter.emitter.nodes.append(
        gs.Node(source.op, source.name, dict(source.attrs), inputs, outputs=outputs, domain=source.domain)
    )
    made.update((old.name, new) for old, new in zip(source.outputs, outputs, strict=True))
    return made[tensor.name]


def _image_axes(lifter: Lifter) -> tuple[tuple[Atom, ...], ...]:
    state = lifter.states[lifter.image.name]
    return state.base if isinstance(state, View) else ()
