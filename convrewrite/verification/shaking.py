"""How far rounding alone can move every output of a model: the original, shaken.

    x -> Conv -> c -> Relu -> r     x * (1 + d) -> Conv -> c * (1 + d) -> Relu -> r     d: random, |d| <= SHAKE * eps

Each tensor that a node computes, each float input and each small weight is multiplied by random numbers near 1: what a
kernel does that adds up in another order. A channel whose terms cancel moves far for its size, and one with small
weights does not, whatever stands beside it. No weight is read for it.

Source: D. S. Parker, Monte Carlo Arithmetic, UCLA CSD-970002, 1997.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import onnx
from onnx import TensorProto, helper

from convrewrite.engine.operators import MOVING, chosen
from convrewrite.errors import UsageError, said
from convrewrite.running.runtime import DeviceFailed, RunFailed
from convrewrite.verification import exposure

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]

SHAKE = 4.0
"""Largest relative change of one number, in units in the last place of its type."""

DRAWS = 6
"""So many times a shaken model runs on one set of inputs."""

SMALL = 1 << 16
"""Weights up to so many elements are shaken too; in larger ones the rounding of their products says as much."""

EPS: dict[int, float] = {
    TensorProto.FLOAT: float(np.finfo(np.float32).eps),
    TensorProto.DOUBLE: float(np.finfo(np.float64).eps),
    TensorProto.FLOAT16: float(np.finfo(np.float16).eps),
}

_MOVES = MOVING | chosen(
    """Pad Relu MaxPool GlobalMaxPool ReduceMax ReduceMin Max Min Clip Dropout Where Neg Abs Floor Ceil Round Sign
    OneHot TopK NonMaxSuppression Constant ConstantOfShape Range extents quantizer control Optional OptionalGetElement
    SequenceAt SplitToSequence"""
)
"""Operators that compute no new number: shaking what they are given is enough."""

_WEIGHTED = chosen("""Conv ConvTranspose matrix Add Sub Mul Div batch-norm map-norm layer-norm PRelu""")
"""Operators whose constant operands may be computed."""


def shaken(model: onnx.ModelProto, eps: float | None = None) -> None:
    """Shake a model, in place; a probed one keeps its probes.

    Args:
        model: may be weightless. eps: of the type that is to be simulated; None for that of every tensor itself.
    """
    graph = model.graph
    types = _types(model)
    inputs = set(exposure.input_names(graph))
    moving = exposure.moving_tensors(graph)
    seeds = itertools.count(1)
    nodes: list[onnx.NodeProto] = []
    again: dict[str, str] = {}
    weights = {t.name: t for t in graph.initializer}

    def shake(source: str, target: str) -> None:
        delta = SHAKE * (eps if eps is not None else EPS[types[source]])
        draw: dict[str, Any] = {
            "low": 1.0 - delta,
            "high": 1.0 + delta,
            "seed": float(next(seeds)),
            "dtype": TensorProto.FLOAT,
        }
        near = f"{target}/near 1"
        nodes.append(helper.make_node("RandomUniformLike", [source], [near], **draw))
        if types[source] != TensorProto.FLOAT:
            nodes.append(helper.make_node("Cast", [near], [f"{near}/cast"], to=types[source]))
            near += "/cast"
        nodes.append(helper.make_node("Mul", [source, near], [target]))

    for name in inputs:
        if types.get(name) in EPS:
            again[name] = f"{name}/shaken"
            shake(name, again[name])
    for node in graph.node:
        clone = onnx.NodeProto()
        clone.CopyFrom(node)
        for index, name in enumerate(clone.input):
            weight = weights.get(name)
            small = weight is not None and weight.data_type in EPS and int(np.prod(weight.dims, dtype=int)) <= SMALL
            if weight is not None and small and node.op_type in _WEIGHTED and name not in again and weight.dims:
                again[name] = f"{name}/shaken"
                types[name] = weight.data_type
                shake(name, again[name])
            if name in again and (name in inputs or node.op_type in _WEIGHTED):
                clone.input[index] = again[name]
        nodes.append(clone)
        if node.op_type in _MOVES or node.domain not in ("", "ai.onnx") or not moving & set(node.output):
            continue
        for index, name in enumerate(node.output):
            if name and types.get(name) in EPS:
                clone.output[index] = f"{name}/still"
                types[clone.output[index]] = types[name]
                shake(clone.output[index], name)
    del graph.node[:]
    graph.node.extend(nodes)


def shaken_by_hand(feeds: Feeds, rng: np.random.Generator) -> dict[str, Array]:
    """The inputs with a small change to every floating-point value."""
    return {
        name: (array * (1.0 + SHAKE * np.finfo(array.dtype).eps * rng.uniform(-1, 1, array.shape))).astype(array.dtype)
        if array.dtype.kind == "f"
        else array
        for name, array in feeds.items()
    }


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Element types of all tensors that they are known of."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except Exception:  # protobuf and the checker raise several unrelated classes
        inferred = model
    graph = inferred.graph
    values = itertools.chain(graph.input, graph.value_info, graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values if value.type.HasField("tensor_type")}
    for node in graph.node:  # a value_info in the file may be stale
        if node.op_type == "Cast":
            types[node.output[0]] = next(a.i for a in node.attribute if a.name == "to")
    return types


class _Runs(Protocol):
    """A model that runs: a specimen."""

    def run(self, feeds: Feeds) -> dict[str, Array]: ...


@dataclass
class Shaken:
    """What the original gives otherwise: with the other graph optimizations, and shaken.

    Attributes:
        otherwise: the original with the other graph optimizations. open: makes the shaken one, when it is first needed.
        reason: why it cannot be had.
    """

    otherwise: _Runs | None
    open: Callable[[], _Runs]
    reason: str = ""
    _shaken: _Runs | None = None
    _last: tuple[Feeds, list[dict[str, Array]]] | None = field(default=None, repr=False)

    def runs(self, feeds: Feeds) -> Sequence[Mapping[str, Array]]:
        """The outputs (and probes) of each run on these inputs; nothing where the original cannot be shaken."""
        if self._last is None or self._last[0] is not feeds:
            self._last = (feeds, list(self._run(feeds)))
        return self._last[1]

    def _run(self, feeds: Feeds) -> Iterator[dict[str, Array]]:
        try:
            if self._shaken is None and not self.reason:
                self._shaken = self.open()
        except (UsageError, ValueError) as error:  # ValueError: over the 2 GB of one protobuf message
            self.reason = said(error)
        if self._shaken is None:
            return
        try:
            found = [self._shaken.run(feeds) for _ in range(DRAWS)]
            if self.otherwise is not None:
                found.append(self.otherwise.run(feeds))
        except DeviceFailed:
            raise
        except RunFailed:  # inputs that it does not take
            return
        yield from found
