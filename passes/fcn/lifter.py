"""Lifting a model over all windows: one walk over the graph, one rule per operator.

Every tensor of the original is given a state (`views.State`): it is static, or fixed (the same at every image size), or
a view of a tensor in the new graph. The rules live in `elementwise`, `sliding`, `linear`, `channels`, `normalising`,
`joining` and `shapes`; this module calls them and keeps the books; `outputs` writes the outputs.

A pool over the whole map is first taken as the classifier's, with the native map as its kernel. Where its result later
meets a larger map it was a squeeze-and-excite block: the walk starts again with that pool kept global.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite.engine import axes, costs
from convrewrite.engine.axes import Atom, atoms, large, letters
from convrewrite.engine.graph import Constants, Shape, live_nodes, subgraph_tensors, unique_name
from convrewrite.engine.rewrite import Site
from convrewrite.engine.windows import CutTensor, Field, keeps_windows
from convrewrite.passes.fcn import channels, elementwise, joining, linear, normalising, shapes, sliding
from convrewrite.passes.fcn.outputs import SIZE_NAMES, Lifted, finish
from convrewrite.passes.fcn.views import Emitter, Fixed, MeetsLargerMap, Parts, Refuse, State, Static, View

Rule = Callable[["Lifter", gs.Node, Sequence[State]], list[State]]

RULES: Mapping[str, Rule] = {
    **dict.fromkeys(elementwise.UNARY, elementwise.lift_unary),
    **dict.fromkeys(elementwise.BINARY, elementwise.lift_binary),
    "CastLike": elementwise.lift_cast_like,
    **sliding.RULES,
    **linear.RULES,
    **channels.RULES,
    **normalising.RULES,
    **joining.RULES,
    **shapes.RULES,
}

INTEGER_OPERATORS = frozenset(
    """QLinearConv QLinearMatMul ConvInteger MatMulInteger DynamicQuantizeLinear QGemm QLinearAdd QLinearMul
    QLinearAveragePool QLinearGlobalAveragePool QLinearConcat QLinearLeakyRelu QLinearSigmoid QLinearSoftmax
    QLinearWhere QLinearReduceMean DynamicQuantizeMatMul MatMulIntegerToFloat""".split()
)
"""Operators of quantized models that take integers and their scales, of ONNX and of ONNX Runtime."""


@dataclass
class Lifter:
    """One walk over a graph.

    Attributes:
        graph: the original; it is not changed. image: its image input. axes: that input's letters, "NCHW".
        native: shapes of all its tensors at the native size. constants: folds them on demand.
        global_pools: anchors of the whole-map pools that stay global.
        period: pixels by which the image may grow where a map is upsampled later, per spatial letter.
        trim: drop trailing pads that no native window sees. new_size: extents to fix, or None for symbols.
    """

    graph: gs.Graph
    image: gs.Variable
    axes: str
    native: Mapping[str, Shape]
    constants: Constants
    global_pools: frozenset[str]
    trim: bool
    new_size: tuple[int, ...] | None = None
    emitter: Emitter = field(init=False)
    states: dict[str, State] = field(default_factory=dict)
    breaks: list[str] = field(default_factory=list)
    cut_holds: bool = True
    slides: bool = False
    spans: bool = False
    period: dict[str, int] = field(default_factory=dict)
    sites: list[Site] = field(default_factory=list)
    progress: int = 0

    def __post_init__(self) -> None:
        self.emitter = Emitter(self.graph.opset, set(self.graph.tensors()))

    # What the rules ask -----------------------------------------------------------------------------------------

    def shape(self, tensor: gs.Tensor) -> Shape:
        """Native shape of a tensor of the original; refuses where it is unknown."""
        if tensor.name not in self.native:
            raise Refuse("fcn/dynamic-shape", f"the shape of '{tensor.name}' is not known")
        return self.native[tensor.name]

    def label(self, node: gs.Node) -> str:
        """How messages name a node: operator and name, or the tensor it computes where it has none."""
        return f"{node.op} '{node.name or node.outputs[0].name}'"

    def value(self, tensor: gs.Tensor, node: gs.Node) -> np.ndarray[Any, Any]:
        """Value of a constant parameter; refuses where it is not constant."""
        values = self.constants.value(tensor)
        if values is None:
            raise Refuse("fcn/no-rule", f"{self.label(node)}: its parameter '{tensor.name}' is not constant")
        return values

    def parameter(self, node: gs.Node, name: str, index: int) -> np.ndarray[Any, Any] | None:
        """A parameter that is an attribute in older operator sets and an input in newer ones."""
        if name in node.attrs:
            return np.asarray(node.attrs[name])
        if index < len(node.inputs) and node.inputs[index].name:
            return self.value(node.inputs[index], node)
        return None

    def static(self, tensor: gs.Tensor) -> gs.Tensor:
        """A static or fixed tensor as it may stand in the new graph."""
        if not tensor.name:
            return gs.Variable.empty()
        if isinstance(tensor, gs.Constant):
            return self.emitter.share(tensor)
        state = self.state(tensor)
        if isinstance(state, Fixed):
            return state.tensor
        if not isinstance(state, Static):
            raise Refuse("fcn/no-rule", f"'{tensor.name}' is a parameter that depends on the image")
        if self.constants.depends_on_shape(tensor):
            values = self.constants.value(tensor)
            if values is None:
                raise Refuse("fcn/dynamic-shape", f"'{tensor.name}' cannot be folded")
            return self.emitter.constant(f"{tensor.name}/native", values)
        return self._copied(tensor)

    def _copied(self, tensor: gs.Tensor) -> gs.Variable:
        """A static tensor with the nodes that compute it, as they are in the original."""
        made = {t.name: t for n in self.emitter.nodes for t in n.outputs}
        if tensor.name not in made:
            node = tensor.inputs[0]
            inputs = [self.static(t) for t in node.inputs]
            outputs = [gs.Variable(t.name, t.dtype, t.shape) for t in node.outputs]
            self.emitter.nodes.append(gs.Node(node.op, node.name, dict(node.attrs), inputs, outputs, node.domain))
            made.update((t.name, t) for t in outputs)
        return made[tensor.name]

    def joined(self, node: gs.Node, parts: Parts) -> View:
        """Features from several places as one tensor, for operators other than a fully connected layer."""
        return joining.join(self, node, parts)

    def emit_like(
        self, node: gs.Node, inputs: Sequence[gs.Tensor], view: View, attrs: Mapping[str, Any] | None = None
    ) -> tuple[View, ...]:
        """Emit the node itself on other tensors; every output is a view with that base and those axes."""
        views: list[View] = []
        for place, tensor in enumerate(node.outputs):
            name = tensor.name and (tensor.name if view.natural else unique_name(f"{tensor.name}/lifted", self.taken))
            views.append(replace(view, tensor=gs.Variable(name, _known_dtype(tensor))))
            if place and not tensor.name:
                views[-1] = replace(views[-1], tensor=gs.Variable.empty())
        chosen = dict(node.attrs if attrs is None else attrs)
        self.emitter.nodes.append(
            gs.Node(node.op, node.name, chosen, list(inputs), [v.tensor for v in views], node.domain)
        )
        return tuple(views)

    def float_type(self, node: gs.Node) -> np.dtype[Any]:
        """The floating-point type that a node computes in, float32 where the graph does not say."""
        known = [t.dtype for t in (*node.inputs, *node.outputs, self.image) if getattr(t, "dtype", None) is not None]
        kinds = [np.dtype(d) for d in known if not isinstance(d, int) and np.dtype(d).kind == "f"]
        return kinds[0] if kinds else np.dtype(np.float32)

    @property
    def taken(self) -> set[str]:
        """Names in use."""
        return self.emitter.taken

    def as_it_is(self, node: gs.Node, view: View) -> View:
        """The view's tensor in the very layout of the original, for operators that run over spatial axes."""
        axes = list(view.axes)
        for atom in atoms(view.base):
            if atom in atoms(view.axes) or atom.letter == "C":
                continue
            places = [0] if atom.letter == "N" else range(1, len(axes))
            place = next((i for i in places if not axes[i]), None)
            if place is None:
                raise Refuse("fcn/mixed-axes", f"{self.label(node)} runs on a tensor without the axis {atom.letter}")
            axes[place] = (atom,)
        return replace(self.emitter.bring(view, tuple(axes)), axes=tuple(axes))

    def mixes_samples(self, axis: Sequence[Atom]) -> bool:
        """Whether an operator that runs over these axes runs over the batch, which may be open."""
        batch = [a.extent for a in axis if a.letter == "N"]
        return any(extent > 1 for extent in batch) or (
            bool(batch) and not isinstance(self.image.shape[self.axes.index("N")], int)
        )

    def rewrote(self, node: gs.Node, detail: str, equivalence: str, *, params: tuple[int, int] = (0, 0)) -> None:
        """Note a site; a fully connected layer costs the same before and after at the native size."""
        macs = costs.macs(node, self.native)
        anchor = node.outputs[0].name
        self.sites.append(
            Site("fcn", anchor, node.op, "rewritten", "", detail, "", equivalence, 0.0, macs, macs, *params)
        )

    def check_windows(
        self,
        node: gs.Node,
        *,
        over_space: bool = False,
        sees_padding: bool = False,
        beyond_map: bool = False,
        op: str | None = None,
    ) -> None:
        """Note where an operator breaks the window property. op: the one that stands for the node."""
        why = keeps_windows(op or node.op, over_space=over_space, sees_padding=sees_padding, beyond_map=beyond_map)
        if why is not None:
            self.breaks.append(f"{why} ('{node.name or node.outputs[0].name}')")

    # The walk ---------------------------------------------------------------------------------------------------

    def run(self) -> Lifted:
        """Lift the whole graph.

        Raises:
            Refuse: an operator cannot be lifted. MeetsLargerMap: a pool has to stay global; start again with it.
        """
        inputs = [self._input(tensor) for tensor in self.graph.inputs]
        for node in live_nodes(self.graph):
            self._step(node)
            self.progress += 1
        return finish(self, inputs)

    def _input(self, tensor: gs.Variable) -> gs.Variable:
        if tensor.name != self.image.name:
            copy = gs.Variable(tensor.name, tensor.dtype, tensor.shape)
            self.states[tensor.name] = Fixed(copy)
            return copy
        dims: list[Any] = list(tensor.shape)
        base: list[tuple[Atom, ...]] = []
        spatial = [a for a in self.axes if a not in "NC"]
        for place, letter in enumerate(self.axes):
            base.append((Atom(letter, self.native[tensor.name][place]),))
            if letter in spatial:
                size = self.new_size[spatial.index(letter)] if self.new_size else None
                dims[place] = size if size is not None else self._symbol(SIZE_NAMES[letter])
        image = gs.Variable(tensor.name, tensor.dtype, dims)
        self.states[tensor.name] = View(image, tuple(base), tuple(base), {letter: Field() for letter in spatial})
        return image

    def _symbol(self, wanted: str) -> str:
        taken = {dim for t in self.graph.inputs if t is not self.image for dim in t.shape or () if isinstance(dim, str)}
        taken |= {
            dim for place, dim in enumerate(self.image.shape) if isinstance(dim, str) and self.axes[place] in "NC"
        }
        return unique_name(wanted, taken)

    def state(self, tensor: gs.Tensor) -> State:
        """What is known of a tensor of the original."""
        return self.states.get(tensor.name) or Static(tensor)

    def _step(self, node: gs.Node) -> None:
        states = [self.state(tensor) for tensor in node.inputs]
        if any(isinstance(self.state(t), View | Parts) for t in subgraph_tensors(node)):
            raise Refuse("fcn/no-rule", f"{self.label(node)} reads the image inside a subgraph")
        if not any(isinstance(state, View | Parts) for state in states):
            self._step_aside(node, states)
            return
        if node.op in INTEGER_OPERATORS:
            raise Refuse("fcn/integer-operator", f"{self.label(node)} computes with integers")
        if node.domain not in (None, "", "ai.onnx"):
            raise Refuse("fcn/custom-operator", f"{self.label(node)} is from the domain '{node.domain}'")
        if node.op in ("Shape", "Size"):
            return
        if node.op not in RULES:
            raise Refuse("fcn/no-rule", f"{self.label(node)} has no rule")
        results = RULES[node.op](self, node, states)
        for tensor, result in zip(node.outputs, results, strict=False):
            if tensor.name:
                self._check_shape(node, tensor, result)
                self.states[tensor.name] = self._with_cut(tensor, result, states)

    def _check_shape(self, node: gs.Node, tensor: gs.Tensor, state: State) -> None:
        """Shape inference of onnx counts the windows of some pools with ceil_mode otherwise than ONNX Runtime does."""
        found = self.native.get(tensor.name)
        if isinstance(state, View) and found not in (None, axes.shape(state.axes)):
            text = f"{self.label(node)} gives {list(axes.shape(state.axes))}, shape inference says {list(found or ())}"
            raise Refuse("fcn/dynamic-shape", text)

    def _with_cut(self, tensor: gs.Tensor, state: State, states: Sequence[State]) -> State:
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
            sizes = tuple(state.spatial(letter).extent for letter in self.spatial_letters)
            strides = tuple(state.fields[letter].stride for letter in self.spatial_letters)
            return replace(state, cuts=frozenset({CutTensor(tensor.name, letters(state.axes), sizes, strides)}))
        return replace(state, cuts=state.cuts.union(*(v.cuts for v in before)))

    def _step_aside(self, node: gs.Node, states: Sequence[State]) -> None:
        """A node that sees no position: static, or fixed and copied as it is."""
        random = node.op.startswith(("Random", "Multinomial", "Bernoulli"))
        captured = [self.state(t) for t in subgraph_tensors(node)]
        if not random and not captured and not any(isinstance(state, Fixed) for state in states):
            return
        outputs = [gs.Variable(t.name, _known_dtype(t), getattr(t, "shape", None)) for t in node.outputs]
        inputs = [
            s.tensor if isinstance(s, Fixed) else self._aside(node, t) for t, s in zip(node.inputs, states, strict=True)
        ]
        for state in captured:
            if isinstance(state, Static) and not isinstance(state.tensor, gs.Constant) and state.tensor.inputs:
                self._copied(state.tensor)
        self.emitter.nodes.append(gs.Node(node.op, node.name, dict(node.attrs), inputs, outputs, node.domain))
        for tensor in outputs:
            if tensor.name:
                self.states[tensor.name] = Fixed(tensor)

    def _aside(self, node: gs.Node, tensor: gs.Tensor) -> gs.Tensor:
        """A static operand of a fixed node. One that was read from the image's shape would freeze its native size."""
        if not tensor.name or isinstance(tensor, gs.Constant) or not self.constants.depends_on_shape(tensor):
            return self.static(tensor)
        if node.op != "Reshape":
            raise Refuse("fcn/dynamic-shape", f"{self.label(node)} computes with '{tensor.name}', a size of the image")
        target, given = self.shape(node.outputs[0]), self.shape(node.inputs[0])
        batch = [a.extent for a in atoms(self._image_axes()) if a.letter == "N"]
        dims = [
            (0 if place < len(given) and given[place] == size else -1) if [size] == batch else size
            for place, size in enumerate(target)
        ]
        return self.emitter.ints(f"{tensor.name}/native", dims)

    def _image_axes(self) -> tuple[tuple[Atom, ...], ...]:
        state = self.states[self.image.name]
        return state.base if isinstance(state, View) else ()

    @property
    def spatial_letters(self) -> tuple[str, ...]:
        """The image's spatial letters in order."""
        return tuple(letter for letter in self.axes if letter not in "NC")


def _known_dtype(tensor: gs.Tensor) -> Any:
    return tensor.dtype if isinstance(tensor, gs.Variable) else None


__all__ = ["Lifted", "Lifter", "MeetsLargerMap"]
