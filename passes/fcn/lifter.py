"""The books of one walk over a model: what is known of each tensor, the graph that is being made, and the sites.

Every tensor of the original is given a state (`views.State`): it is static, or fixed (the same at every image size), or
a view of a tensor in the new graph. The rules of `walk` read and write it here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite.engine import costs
from convrewrite.engine.axes import Atom, atoms
from convrewrite.engine.graph import Constants, Shape, unique_name
from convrewrite.engine.rewrite import Equivalence, Site
from convrewrite.engine.windows import keeps_windows
from convrewrite.passes.fcn.views import Fixed, Layouts, Refuse, State, Static, View


@dataclass
class Lifter:
    """What one walk over a graph knows, and what it has made.

    Attributes:
        graph: the original; it is not changed. image: its image input. axes: that input's letters, "NCHW".
        native: shapes of all its tensors at the native size. constants: folds them on demand.
        global_pools: anchors of the whole-map pools that stay global.
        period: pixels by which the image may grow where a map is upsampled later, per spatial letter.
        statistics: which tensors of the original are a "mean" of the whole map, a "deviation" from it, a "power" of
            such a deviation, or a "moment", the mean of that.
        forced: those of them that stay so for what is behind them, which has no rule for a pool over a window.
        beside: further inputs on the image's grid, with the letters of their axes.
        sources: for each tensor, the inputs on that grid that it depends on. met: sets of them that met on a map.
        trim: drop trailing pads that no native window sees. new_size: extents to fix, or None for symbols.
    """

    graph: gs.Graph
    image: gs.Variable
    axes: str
    native: Mapping[str, Shape]
    constants: Constants
    global_pools: frozenset[str]
    trim: bool
    forced: frozenset[str] = frozenset()
    new_size: tuple[int, ...] | None = None
    beside: Mapping[str, str] = field(default_factory=dict)
    sources: dict[str, frozenset[str]] = field(default_factory=dict)
    met: set[frozenset[str]] = field(default_factory=set)
    emitter: Layouts = field(init=False)
    states: dict[str, State] = field(default_factory=dict)
    breaks: list[str] = field(default_factory=list)
    cut_holds: bool = True
    slides: bool = False
    spans: bool = False
    period: dict[str, int] = field(default_factory=dict)
    sites: list[Site] = field(default_factory=list)
    statistics: dict[str, str] = field(default_factory=dict)
    progress: int = 0

    def __post_init__(self) -> None:
        self.emitter = Layouts(self.graph.opset, set(self.graph.tensors()))

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
            if state.spread is not None:
                raise Refuse("fcn/no-rule", f"'{tensor.name}' is a parameter that is spread over the map")
            return state.tensor
        if not isinstance(state, Static):
            raise Refuse("fcn/no-rule", f"'{tensor.name}' is a parameter that depends on the image")
        if self.constants.depends_on_shape(tensor):
            values = self.constants.value(tensor)
            if values is None:
                raise Refuse("fcn/dynamic-shape", f"'{tensor.name}' cannot be folded")
            return self.emitter.constant(f"{tensor.name}/native", values)
        return self.copied(tensor)

    def copied(self, tensor: gs.Tensor) -> gs.Variable:
        """A static tensor with the nodes that compute it, as they are in the original."""
        made = {t.name: t for n in self.emitter.nodes for t in n.outputs}
        todo = [tensor]
        while todo:
            wanted = todo[-1]
            node = wanted.inputs[0]
            ahead = [t for t in node.inputs if self._is_computed(t) and t.name not in made]
            if wanted.name not in made and ahead:
                todo += ahead
                continue
            todo.pop()
            if wanted.name in made:
                continue
            inputs = [made[t.name] if self._is_computed(t) else self.static(t) for t in node.inputs]
            outputs = [gs.Variable(t.name, t.dtype, t.shape) for t in node.outputs]
            self.emitter.nodes.append(
                gs.Node(node.op, node.name, dict(node.attrs), inputs, outputs=outputs, domain=node.domain)
            )
            made.update((t.name, t) for t in outputs)
        return made[tensor.name]

    def _is_computed(self, tensor: gs.Tensor) -> bool:
        """Whether a static tensor has to be computed in the new graph, by nodes that are copied."""
        if not tensor.name or isinstance(tensor, gs.Constant) or not isinstance(self.state(tensor), Static):
            return False
        return not self.constants.depends_on_shape(tensor)

    def emit_like(
        self, node: gs.Node, inputs: Sequence[gs.Tensor], view: View, attrs: Mapping[str, Any] | None = None
    ) -> tuple[View, ...]:
        """Emit the node itself on other tensors; every output is a view with that base and those axes."""
        views: list[View] = []
        for place, tensor in enumerate(node.outputs):
            name = tensor.name and (tensor.name if view.natural else unique_name(f"{tensor.name}/lifted", self.taken))
            views.append(replace(view, tensor=gs.Variable(name, known_dtype(tensor))))
            if place and not tensor.name:
                views[-1] = replace(views[-1], tensor=gs.Variable.empty())
        chosen = dict(node.attrs if attrs is None else attrs)
        self.emitter.nodes.append(
            gs.Node(node.op, node.name, chosen, list(inputs), outputs=[v.tensor for v in views], domain=node.domain)
        )
        return tuple(views)

    def float_type(self, node: gs.Node) -> np.dtype[Any]:
        """The floating-point type that a node computes in, float32 where the graph does not say."""
        known = [t.dtype for t in (*node.inputs, *node.outputs, self.image) if getattr(t, "dtype", None) is not None]
        kinds = [np.dtype(d) for d in known if not isinstance(d, int) and np.dtype(d).kind == "f"]
        return kinds[0] if kinds else np.dtype(np.float32)

    @property
    def taken(self) -> set[str]:
        """The names that are in use."""
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

    def rewrote(
        self, node: gs.Node, detail: str, equivalence: Equivalence, *, params: tuple[int, int] = (0, 0)
    ) -> None:
        """Note a site; a fully connected layer costs the same before and after at the native size."""
        macs = costs.macs(node, self.native)
        anchor = node.outputs[0].name
        self.sites.append(
            Site(
                "fcn",
                anchor,
                node.op,
                "rewritten",
                detail=detail,
                equivalence=equivalence,
                macs_before=macs,
                macs_after=macs,
                params_before=params[0],
                params_after=params[1],
            )
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

    def state(self, tensor: gs.Tensor) -> State:
        """The state of a tensor of the original."""
        return self.states.get(tensor.name) or Static(tensor)

    @property
    def spatial_letters(self) -> tuple[str, ...]:
        """The letters of the image's spatial axes, in order."""
        return tuple(letter for letter in self.axes if letter not in "NC")


def known_dtype(tensor: gs.Tensor) -> Any:
    """The element type of a tensor, where the graph says it."""
    return tensor.dtype if isinstance(tensor, gs.Variable) else None
