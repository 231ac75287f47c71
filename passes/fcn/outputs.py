"""The outputs of a lifted model: [N, K, *spatial] each, on one grid of windows, and what that grid is.

    classes [N, K] at stride 8   ->   classes [N, K, H', W'] at stride 16     every second position kept
    coarse  [N, K] at stride 16  ->   coarse  [N, K, H', W'] at stride 16     (1x1 subsampling)
    map     [N, C, h, w], stride 4    stays a map of its own stride and size

An output that does not depend on the position passes through.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx_graphsurgeon as gs

from convrewrite.engine.axes import Layout, atoms, channel_factors, large, letters
from convrewrite.engine.graph import unique_name
from convrewrite.engine.rewrite import Site
from convrewrite.engine.windows import CutTensor, OutputGrid, Window
from convrewrite.passes.fcn.joining import join
from convrewrite.passes.fcn.lifter import Lifter
from convrewrite.passes.fcn.views import Fixed, Parts, Refuse, View

SIZE_NAMES = {"H": "height", "W": "width", "L": "length", "D": "depth"}
"""Symbols for the extents of the new input and outputs."""


@dataclass(frozen=True)
class Lifted:
    """The new graph's parts and what was learned on the way."""

    nodes: list[gs.Node]
    inputs: list[gs.Variable]
    outputs: list[gs.Variable]
    window: Window
    cut: tuple[CutTensor, ...]
    sites: tuple[Site, ...]


def finish(lifter: Lifter, inputs: list[gs.Variable]) -> Lifted:
    """Write the outputs of a graph whose nodes have all been lifted.

    Raises:
        Refuse: no output has a head over the whole map.
    """
    views: dict[str, View] = {}
    for tensor in lifter.graph.outputs:
        state = lifter.state(tensor)
        if isinstance(state, Parts):
            state = join(lifter, tensor.inputs[0], state)
        if isinstance(state, View):
            views[tensor.name] = state
    if not views:
        raise Refuse("fcn/no-image-input", "no output depends on the position in the image")
    if not any(view.one_position for view in views.values()):
        name, view = next(iter(views.items()))
        axes = " x ".join(f"({part})" for part in letters(view.axes))
        raise Refuse("fcn/position-in-output", f"output '{name}' {axes} has no head over the whole map")
    stride = {
        letter: math.lcm(lifter.period.get(letter, 1), *(view.fields[letter].stride for view in views.values()))
        for letter in lifter.spatial_letters
    }
    outputs = [_output(lifter, tensor, views.get(tensor.name), stride) for tensor in lifter.graph.outputs]
    for tensor in [] if lifter.sites else lifter.graph.outputs:  # nothing computed: a Flatten or a Squeeze that is gone
        if tensor.name in views and views[tensor.name].one_position and not views[tensor.name].natural:
            lifter.rewrote(tensor.inputs[0], "keeps the axes of the map", "exact")
    _name_apart(lifter.emitter.nodes)
    window = _window(lifter, views, stride)
    return Lifted(
        lifter.emitter.nodes, inputs, outputs, window=window, cut=_cut(lifter, views), sites=tuple(lifter.sites)
    )


def _name_apart(nodes: list[gs.Node]) -> None:
    """One node may have become several: ONNX Runtime wants names that differ."""
    taken: set[str] = set()
    for node in nodes:
        if node.name:
            node.name = unique_name(node.name, taken)


def _output(lifter: Lifter, tensor: gs.Tensor, view: View | None, stride: Mapping[str, int]) -> gs.Variable:
    """The output tensor under its own name: [N, K, *spatial] where it depends on the position."""
    if view is None:
        return _passed_through(lifter, tensor)
    if view.one_position:
        steps = {letter: stride[letter] // f.stride for letter, f in view.fields.items()}
        view = lifter.emitter.thinned(view, steps, f"{tensor.name}/every")
    view = lifter.emitter.bring(view, _canonical(lifter, view))
    output = view.tensor
    for node in lifter.emitter.nodes:
        for other in node.outputs:
            if other.name == tensor.name and other is not output:
                other.name = unique_name(f"{tensor.name}/original-layout", lifter.taken)
    interface = {t.name for t in (*lifter.graph.inputs, *lifter.graph.outputs)}
    if output.name in interface and output.name != tensor.name:
        output = lifter.emitter.emit("Identity", [output], output=tensor.name, own_name=True)
    output.name = tensor.name
    output.dtype = tensor.dtype
    output.shape = _output_shape(lifter, tensor, view)
    return output


def _passed_through(lifter: Lifter, tensor: gs.Tensor) -> gs.Variable:
    """An output that does not depend on the position in the image."""
    state = lifter.state(tensor)
    if isinstance(state, Fixed):
        return state.tensor
    copied = lifter.static(tensor)
    if isinstance(copied, gs.Constant) and copied.name == tensor.name:
        return copied  # an initializer that is an output: nothing is computed
    if isinstance(copied, gs.Constant):
        return lifter.emitter.emit("Identity", [copied], output=tensor.name, own_name=True, dtype=tensor.dtype)
    copied.dtype, copied.shape = tensor.dtype, tensor.shape
    return copied


def _canonical(lifter: Lifter, view: View) -> Layout:
    """The layout [N, K, *spatial], the channels in the order of the original output."""
    base = atoms(view.base)
    channel = tuple(a for a in atoms(view.axes) if a.letter == "C")
    channel += tuple(a for a in base if a.letter == "C" and a not in channel)
    batch = tuple(a for a in base if a.letter == "N")
    return (batch, channel, *((view.spatial(letter),) for letter in lifter.spatial_letters))


def _output_shape(lifter: Lifter, tensor: gs.Tensor, view: View) -> list[int | str | None]:
    batch = any(a.letter == "N" for a in view.base[0])
    first = lifter.image.shape[lifter.axes.index("N")] if batch else 1
    spatial = [f"{tensor.name}_{SIZE_NAMES[letter]}" for letter in lifter.spatial_letters]
    return [first, math.prod(a.extent for a in view.base[1]), *spatial]


def _window(lifter: Lifter, views: Mapping[str, View], stride: Mapping[str, int]) -> Window:
    order = lifter.spatial_letters
    grids = {}
    for name, view in views.items():
        own = stride if view.one_position else {letter: f.stride for letter, f in view.fields.items()}
        size = tuple(view.spatial(letter).extent for letter in order)
        factors = channel_factors(view.axes)
        grid = OutputGrid(tuple(own[letter] for letter in order), size, letters(view.axes))
        grids[name] = replace(grid, channels=factors) if len(factors) > 1 else grid
    native = lifter.native[lifter.image.name]
    return Window(
        input=lifter.image.name,
        axes=lifter.axes,
        size=tuple(native[lifter.axes.index(letter)] for letter in order),
        stride=tuple(stride[letter] for letter in order),
        offset=(0,) * len(order),
        receptive_field=tuple(max(view.fields[letter].size for view in views.values()) for letter in order),
        equivalence="native-size" if lifter.breaks else "windows",
        why=lifter.breaks[0] if lifter.breaks else "",
        outputs=grids,
        beside=lifter.beside,
    )


def _cut(lifter: Lifter, views: Mapping[str, View]) -> tuple[CutTensor, ...]:
    """The tensors from which the original's head starts; none where the outputs are not all of one position."""
    if not lifter.cut_holds or any(large(atoms(view.base)) for view in views.values()):
        return ()
    cuts = {cut.name: cut for view in views.values() for cut in view.cuts}
    return tuple(cuts[name] for name in sorted(cuts))
