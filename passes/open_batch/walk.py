"""One walk over a graph that says where the images lie in every tensor, one rule per operator.

The rules live in `pointwise`, `along`, `sliding`, `products`, `moving`, `indexing` and `counting`. An operator without
one is refused where it reads images: nothing is taken for harmless because it looks so on samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite.engine.axes import SAMPLE, Atom
from convrewrite.engine.graph import Constants, Shape, live_nodes, producer, subgraph_tensors, subgraphs
from convrewrite.engine.operators import chosen, is_standard
from convrewrite.passes.open_batch.edits import Edit
from convrewrite.passes.open_batch.states import Counts, Each, Free, Images, Lost, State, Stop

Rule = Callable[["Walk", gs.Node, Sequence[State]], Sequence[State]]


class Decided(Exception):
    """An If that reads the images takes one branch, however many there are: go on with that branch in its place."""

    def __init__(self, output: str, way: bool) -> None:
        super().__init__(output)
        self.output = output
        self.way = way


RANDOM = chosen("random")
"""Operators that draw numbers: those of one image would depend on how many there are."""


@dataclass
class Walk:
    """What is known of every tensor, and what has to be changed for any number of images.

    Attributes:
        graph: it is not changed. native: shapes of its tensors with the file's number of images.
        inputs: those that have images, along their first axis. images: how many.
        sized: an input leaves other extents open, too, so that no number of `native` may be written down.
        states: by tensor name. edits: in the order of the nodes.
    """

    graph: gs.Graph
    native: Mapping[str, Shape]
    inputs: Sequence[str]
    images: Images
    sized: bool = False
    states: dict[str, State] = field(default_factory=dict)
    edits: list[Edit] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.written = Constants(self.graph)
        self._at_native = Constants(self.graph, self.native)

    # What the rules ask -----------------------------------------------------------------------------------------

    def label(self, node: gs.Node) -> str:
        """How messages name a node: operator and name, or the tensor it computes where it has none."""
        return f"{node.op} '{node.name or node.outputs[0].name}'"

    def shape(self, tensor: gs.Tensor) -> Shape:
        """Native shape of a tensor; stops where it is unknown."""
        if tensor.name not in self.native:
            raise Stop("no-shape", self._unknown(tensor))
        return self.native[tensor.name]

    def _unknown(self, tensor: gs.Tensor) -> str:
        """Which operator is to blame for a shape that is not known: the first one on the way back from there."""
        node, seen = producer(tensor), set[int]()
        while node is not None and id(node) not in seen:
            seen.add(id(node))
            ahead = [t for t in node.inputs if t.name and t.inputs and t.name not in self.native]
            if not ahead:
                whose = "" if is_standard(node) else f" of the domain '{node.domain}'"
                return f"shape inference of onnx finds no shape behind {self.label(node)}{whose}"
            node = producer(ahead[0])
        return f"the shape of '{tensor.name}' is not known"

    def number(self, tensor: gs.Tensor) -> np.ndarray[Any, Any] | None:
        """The value of a tensor that is free, at the native size; None where it depends on more than shapes."""
        return self._at_native.value(tensor)

    def parameter(self, node: gs.Node, name: str, index: int) -> list[int] | None:
        """Whole numbers that are an attribute in older operator sets and an input in newer ones; None where absent.

        Raises:
            Stop: it is computed from more than shapes.
        """
        found = self.parameter_numbers(node, name, index)
        return None if found is None else [int(v) for v in found]

    def parameter_numbers(self, node: gs.Node, name: str, index: int) -> np.ndarray[Any, Any] | None:
        """A parameter's numbers, which are the same for any number of images, along one axis."""
        if name in node.attrs:
            return np.ravel(node.attrs[name])
        if index < len(node.inputs) and node.inputs[index].name:
            value = self.number(node.inputs[index]) if isinstance(self.state(node.inputs[index]), Free) else None
            if value is None:
                raise Stop("no-rule", f"{self.label(node)}: its {name} are not constant")
            return np.ravel(value)
        return None

    def images_of(self, node: gs.Node, states: Sequence[State]) -> Each:
        """The state of the first input that has images, where the others have none.

        Raises:
            Stop: another has, too.
        """
        found = [state for state in states if isinstance(state, Each)]
        if len(found) != 1 or not isinstance(states[0], Each):
            raise Stop("no-rule", f"{self.label(node)} takes a parameter that depends on the images")
        return found[0]

    def mixed(self, node: gs.Node, how: str) -> Stop:
        """The words for an operator that lets images see each other."""
        return Stop("mixed", f"{self.label(node)} {how}")

    def state(self, tensor: gs.Tensor) -> State:
        """The state of a tensor."""
        known = self.states.get(tensor.name)
        if known is None and isinstance(tensor, gs.Variable) and tensor.inputs:
            return Lost(f"'{tensor.name}', which is computed later")
        return known or Free()

    # The walk ---------------------------------------------------------------------------------------------------

    def run(self, rules: Mapping[str, Rule], counting: Mapping[str, Rule], takes_counts: frozenset[str]) -> None:
        """Walk over the whole graph.

        Args:
            rules: by operator ("domain::operator" for those that are not ONNX's own). counting: for numbers of images.
            takes_counts: operators whose rule takes a number of images as a shape.

        Raises:
            Stop: images see each other, or there is no place for more of them. Decided: see there.
        """
        for name in self.inputs:
            self.states[name] = Each(self.native[name], 0)
        for node in live_nodes(self.graph):
            states = [self.state(tensor) for tensor in node.inputs]
            self._check(node, states)
            after = self._after(node, states, rules, counting, takes_counts=takes_counts)
            for tensor, state in zip(node.outputs, after, strict=False):
                if tensor.name:
                    self._keep(node, tensor, state)
        for output in self.graph.outputs:
            self._check_output(output)

    def _check(self, node: gs.Node, states: Sequence[State]) -> None:
        """Stop where a node can have no rule."""
        lost = next((state for state in states if isinstance(state, Lost)), None)
        if lost is not None:
            raise Stop(lost.code, f"{self.label(node)} reads {lost.why}")
        if _draws(node):
            raise Stop("no-rule", f"{self.label(node)} draws random numbers, others for every number of images")
        if any(not isinstance(self.state(tensor), Free) for tensor in subgraph_tensors(node)):
            way = self._way(node)
            if way is not None:
                raise Decided(node.outputs[0].name, way)
            raise Stop("no-rule", f"{self.label(node)} reads the images inside a subgraph")

    def _way(self, node: gs.Node) -> bool | None:
        """The condition of an If where it is the same for any number of images, and at every size that is left open."""
        if node.op != "If" or not is_standard(node) or not isinstance(self.state(node.inputs[0]), Free):
            return None
        value = (self.written if self.sized else self._at_native).value(node.inputs[0])
        return bool(value.reshape(-1)[0]) if value is not None and value.size == 1 else None

    def _after(
        self,
        node: gs.Node,
        states: Sequence[State],
        rules: Mapping[str, Rule],
        counting: Mapping[str, Rule],
        takes_counts: frozenset[str],
    ) -> Sequence[State]:
        """What is known of the outputs."""
        if all(isinstance(state, Free) for state in states):
            return [Free()] * len(node.outputs)
        key = node.op if is_standard(node) else f"{node.domain}::{node.op}"
        some = any(isinstance(state, Counts) for state in states)
        shaped = key in takes_counts and not isinstance(states[0], Counts)
        if key in counting and not shaped and (some or key in ("Shape", "Size")):
            rule: Rule | None = counting[key]
        elif some and key not in takes_counts:
            raise Stop("counted", f"{self.label(node)} computes with the number of images")
        else:
            rule = rules.get(key)
        if rule is None:
            raise Stop("no-rule", f"{self.label(node)} has no rule")
        results = list(rule(self, node, states))
        spare = f"output {len(results) + 1} of {self.label(node)}, which has no rule"
        return results + [Lost(spare)] * (len(node.outputs) - len(results))

    def _keep(self, node: gs.Node, tensor: gs.Tensor, state: State) -> None:
        """Note the state of a tensor, if its shape is the one that the walk thinks it has."""
        if isinstance(state, Each) and tensor.name not in self.native:
            state = Lost(f"'{tensor.name}', and {self._unknown(tensor)}", "no-shape")
        if isinstance(state, Each):
            own, axis = self.shape(tensor), self.images.native * state.before * state.after
            if state.shape != own or not 0 <= state.place < len(own) or own[state.place] != axis:
                raise Stop("baked", f"{self.label(node)} gives {list(own)}, which has no axis of the images")
        self.states[tensor.name] = state

    def _check_output(self, output: gs.Tensor) -> None:
        """Stop where an output has no place for more images."""
        state = self.state(output)
        if isinstance(state, Each) and (state.place or state.before > 1):
            raise Stop(
                "mixed", f"output '{output.name}' {list(state.shape)} has the images at another than its first axis"
            )
        if isinstance(state, Counts):
            raise Stop("counted", f"output '{output.name}' is the number of images")
        if isinstance(state, Lost):
            raise Stop(state.code, f"output '{output.name}' is {state.why}")


def images_for(native: int, shapes: Mapping[str, Shape]) -> Images:
    """The atom of the images: a prime that divides no extent, so that no axis can be taken for theirs."""
    extents = {size for shape in shapes.values() for size in shape}
    prime = SAMPLE
    while any(prime % k == 0 for k in range(2, int(prime**0.5) + 1)) or any(
        size % prime == 0 for size in extents if size
    ):
        prime += 1
    return Images(native, Atom("N", prime))


def _draws(node: gs.Node) -> bool:
    """Whether a node, or one in its subgraphs, draws random numbers."""
    return node.op in RANDOM or any(_draws(inner) for graph in subgraphs(node) for inner in graph.nodes)
