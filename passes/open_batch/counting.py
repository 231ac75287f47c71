"""What becomes of the number of images where a graph reads it: it may say how large a tensor is, and nothing else.

Shape [N, 3, 224, 224] -> Gather 0 -> [N] -> Concat with [-1] -> Reshape      a shape
Shape -> Gather 0 -> Cast to float -> Mul                                      refused: a number among pixels
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from convrewrite.passes.open_batch.states import Count, Counts, Each, Free, State, Stop, Whole
from convrewrite.passes.open_batch.walk import Rule, Walk

WHOLE = (onnx.TensorProto.INT64, onnx.TensorProto.INT32, np.int64, np.int32)
"""Types of a Cast that keep a number of images what it is."""


def _entries(walk: Walk, node: gs.Node, index: int) -> Whole:
    """The numbers of an input, as far as they are known."""
    state = walk.state(node.inputs[index])
    if isinstance(state, Counts):
        return state.values
    value = walk.number(node.inputs[index]) if isinstance(state, Free) else None
    if value is None or value.dtype.kind not in "iub":
        raise _no_shape(walk, node)
    return np.asarray(value.astype(object))


def _no_shape(walk: Walk, node: gs.Node) -> Stop:
    return Stop("counted", f"{walk.label(node)} computes with the number of images")


def _given(values: Any) -> State:
    """Counts, or free where no entry has the number of images."""
    array = np.asarray(values, dtype=object)
    return Counts(array) if any(isinstance(value, Count) for value in array.ravel()) else Free()


def shape(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """Shape: one entry has the number of images."""
    state = states[0]
    if not isinstance(state, Each):
        return [Free()]
    values: list[Any] = list(state.shape)
    values[state.place] = Count(state.before * state.after, 1)
    start, end = int(node.attrs.get("start", 0)), int(node.attrs.get("end", len(values)))
    return [_given(values[start:end])]


def size(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """Size, the product of the shape."""
    state = states[0]
    if not isinstance(state, Each):
        return [Free()]
    return [_given(Count(math.prod(state.shape) // walk.images.native, 1))]


def gather(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """Gather on a vector of extents."""
    if isinstance(states[1], Counts):
        raise _no_shape(walk, node)
    values, indices = _entries(walk, node, 0), walk.number(node.inputs[1])
    if indices is None or not values.ndim:
        raise _no_shape(walk, node)
    return [_given(np.take(values, indices.astype(np.int64), axis=0))]


def cut(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """Slice on a vector of extents."""
    values = _entries(walk, node, 0)
    if any(isinstance(state, Counts) for state in states[1:]) or values.ndim != 1:
        raise _no_shape(walk, node)
    start, end = ((walk.parameter(node, name, i) or [0])[0] for i, name in ((1, "starts"), (2, "ends")))
    steps = walk.parameter(node, "steps", 4) or [1]
    return (
        [_given(values[slice(start, end, steps[0])])]
        if steps[0] > 0
        else [_given(_backwards(values, start, end, steps[0]))]
    )


def _backwards(values: Whole, start: int, end: int, step: int) -> list[Any]:
    """A Slice with a negative step: an end far below 0 means all."""
    count = len(values)
    first = min(start + count if start < 0 else start, count - 1)
    last = max(end + count, -1) if end < 0 else min(end, count - 1)
    return [values[i] for i in range(first, last, step)]


def joined(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """Concat of vectors of extents."""
    return [_given(np.concatenate([_entries(walk, node, index) for index in range(len(states))]))]


def reshaped(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """A number becomes a vector, or a vector of one a number."""
    if isinstance(states[0], Each) or any(isinstance(state, Counts) for state in states[1:]):
        raise _no_shape(walk, node)
    values = _entries(walk, node, 0)
    return [_given(values.reshape(walk.shape(node.outputs[0])))]


def same(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """Identity, and Cast to whole numbers."""
    if node.op == "Cast" and node.attrs.get("to") not in WHOLE:
        raise _no_shape(walk, node)
    return [states[0]]


def product(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """Mul: a multiple of the number of images."""
    return [_given(_entries(walk, node, 0) * _entries(walk, node, 1))]


def quotient(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """Div: a multiple of the number of images, divided by a divisor of the factor."""
    a, b = np.broadcast_arrays(_entries(walk, node, 0), _entries(walk, node, 1))
    found = [_over(walk, node, x, y) for x, y in zip(a.ravel(), b.ravel(), strict=True)]
    made = np.empty(len(found), dtype=object)
    made[:] = found
    return [_given(made.reshape(a.shape))]


def _over(walk: Walk, node: gs.Node, a: Any, b: Any) -> Any:
    factors = [getattr(x, "factor", x) for x in (a, b)]
    power = getattr(a, "power", 0) - getattr(b, "power", 0)
    if not factors[1] or (factors[0] % factors[1] and (power or isinstance(a, Count))) or power < 0:
        raise _no_shape(walk, node)
    return Count(factors[0] // factors[1], power) if power else int(factors[0] / factors[1])


def total(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """ReduceProd: the product of all entries."""
    values = _entries(walk, node, 0)
    result: Any = 1
    for value in values.ravel():
        result = result * value
    return [_given(np.full(walk.shape(node.outputs[0]), result, dtype=object))]


def equal(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """Whether entries are -1 or 0, as an Expand asks: a number of images never is."""
    for a, b in zip(*map(np.ravel, np.broadcast_arrays(_entries(walk, node, 0), _entries(walk, node, 1))), strict=True):
        counted = isinstance(a, Count) or isinstance(b, Count)
        plain = [value for value in (a, b) if not isinstance(value, Count)]
        if counted and (not plain or int(plain[0]) > 0):
            raise _no_shape(walk, node)
    return [Free()]


def chosen(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """Where: entries of one vector or of the other."""
    if not isinstance(states[0], Free):
        raise _no_shape(walk, node)
    condition = walk.number(node.inputs[0])
    if condition is None:
        raise _no_shape(walk, node)
    a, b = _entries(walk, node, 1), _entries(walk, node, 2)
    arrays = np.broadcast_arrays(condition, a, b)
    return [_given(np.where(arrays[0], arrays[1], arrays[2]))]


def filled(walk: Walk, node: gs.Node, states: Sequence[State]) -> Sequence[State]:
    """ConstantOfShape: the same number for every image."""
    values = _entries(walk, node, 0)
    places = [(place, value) for place, value in enumerate(values) if isinstance(value, Count)]
    if len(places) != 1 or places[0][1].power != 1:
        raise _no_shape(walk, node)
    place, count = places[0]
    return [Each(walk.shape(node.outputs[0]), place, 1, count.factor)]


COUNTING: Mapping[str, Rule] = {
    "Shape": shape,
    "Size": size,
    "Gather": gather,
    "Slice": cut,
    "Concat": joined,
    **dict.fromkeys(("Reshape", "Squeeze", "Unsqueeze"), reshaped),
    **dict.fromkeys(("Identity", "Cast"), same),
    "Mul": product,
    "Div": quotient,
    "ReduceProd": total,
    "Equal": equal,
    "Where": chosen,
    "ConstantOfShape": filled,
}
"""Rules for nodes that read the number of images."""

TAKES_COUNTS = frozenset("Reshape Expand Resize".split())
"""Operators whose own rule takes it as a part of a shape."""
