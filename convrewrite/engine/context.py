"""What a pass may ask about the model that it plans for, beside the graph itself; each fact is found when it is read.

context.graph                 the graph, as it has been rewritten so far
context.shapes["x"]           (1, 3, 224, 224)     at the size at which the model is looked at
context.fixed["x"]            (None, 3, 224, 224)  as far as the file fixes it
context.constants.value(t)    an array, or None where the tensor depends on an input
context.responses             what layers see and give on the user's inputs, where there are any
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from convrewrite.engine.graph import Constants, OpenShape, Shape, fixed_extents, infer_shapes
from convrewrite.errors import UsageError

Value = TypeVar("Value")


class Responses(Protocol):
    """What layers see and give on real inputs, for a pass that fits what it makes to them (`Pass.fits`)."""

    def __call__(self, graph: gs.Graph, site: Any) -> Any:
        """Moments of the inputs of a layer as the graph now computes them, and of what the original gives there.

        None where they would be too large to hold.
        """
        ...


class OnDemand(Mapping[str, Value]):
    """A mapping that is found when it is first read, once."""

    def __init__(self, find: Callable[[], Mapping[str, Value]]) -> None:
        self._find = functools.cache(find)

    def __getitem__(self, name: str) -> Value:
        return self._find()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._find())

    def __len__(self) -> int:
        return len(self._find())


@dataclass(frozen=True)
class Context:
    """What `plan` is given; `Context.of(graph)` makes one.

    Attributes:
        graph: as it has been rewritten so far.
        shapes: extents of the tensors at the size at which the model is looked at, by name. Like `fixed` and `sized`
            they are those of the model as it came: what rewrites have added is not there, and {} where they are not
            known.
        fixed: extents as far as the file fixes them; None for each that follows an open axis of an input.
        sized: the same for inputs that are fixed at the size that the user gave; {} where none was given.
        constants: values of tensors of `graph` that depend on no input.
        responses: of layers on real inputs, or None.
    """

    graph: gs.Graph
    shapes: Mapping[str, Shape]
    fixed: Mapping[str, OpenShape]
    sized: Mapping[str, OpenShape]
    constants: Constants
    responses: Responses | None = None

    @classmethod
    def of(
        cls,
        graph: gs.Graph,
        *,
        shapes: Mapping[str, Shape] | None = None,
        sized: Mapping[str, Sequence[Any]] | None = None,
        responses: Responses | None = None,
    ) -> Context:
        """The context of a graph.

        Args:
            graph: it is not changed. shapes: of all tensors, where they are known; else they follow from the inputs.
            sized: shapes of the inputs that are fixed at a size.
            responses: of layers on real inputs.
        """
        return cls(
            graph,
            OnDemand(lambda: _shapes(graph)) if shapes is None else shapes,
            OnDemand(lambda: fixed_extents(graph)),
            sized={} if sized is None else OnDemand(lambda: fixed_extents(graph, sized)),
            constants=Constants(graph),
            responses=responses,
        )

    def at(self, graph: gs.Graph) -> Context:
        """The same model, rewritten to `graph`."""
        return replace(self, graph=graph, constants=Constants(graph))


def _shapes(graph: gs.Graph) -> Mapping[str, Shape]:
    """Extents that follow from the inputs; {} where an input is open, or the graph contradicts itself."""
    given = {t.name: list(t.shape or ()) for t in graph.inputs}
    if any(not isinstance(dim, int | np.integer) or dim <= 0 for dims in given.values() for dim in dims):
        return {}
    try:
        return infer_shapes(graph, given)
    except (onnx.shape_inference.InferenceError, UsageError):
        return {}
