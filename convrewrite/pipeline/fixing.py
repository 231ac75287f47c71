"""What `size` fixes: where a rewrite holds at that size alone, the input of the file that is written takes no other.

    image ["N", 3, "H", "W"]  size 32x32  ->  ["N", 3, 32, 32]

The batch stays as it is. A rewrite that rests on no size leaves the input open.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import onnx_graphsurgeon as gs

from convrewrite.engine.graph import fixed_extents
from convrewrite.engine.rewrite import FIXES_SIZE, Pass, PassResult
from convrewrite.pipeline.native import Native

Shapes = Mapping[str, tuple[Any, ...]]


def informed(pass_: Pass, graph: gs.Graph, at: Native) -> Pass:
    """The pass with the extents that are fixed, in the file and by `size`, where it has fields for them."""
    made: Any = pass_
    known = {field.name for field in dataclasses.fields(made)}
    if "own" in known:
        made = dataclasses.replace(made, own=fixed_extents(graph))
    if "sized" in known and at.size is not None and not at.assumed:
        made = dataclasses.replace(made, sized=fixed_extents(graph, given(graph, at)))
    return cast(Pass, made)


def given(graph: gs.Graph, at: Native) -> dict[str, tuple[Any, ...]]:
    """Shapes of the inputs with what `size` says; the batch as it is."""
    shapes = {}
    for tensor in graph.inputs:
        if tensor.name in at.inputs and tensor.shape is not None and len(tensor.shape) == len(at.inputs[tensor.name]):
            pairs = enumerate(zip(tensor.shape, at.inputs[tensor.name], strict=True))
            batch = len(tensor.shape) > 1
            shapes[tensor.name] = tuple(
                own if (isinstance(own, int) and own > 0) or (batch and not place) else size
                for place, (own, size) in pairs
            )
    return shapes


def fixed(result: PassResult, at: Native) -> Shapes:
    """Fix the inputs of a result that holds at the given size alone; their shapes, {} where nothing had to be fixed."""
    if not result.evidence.get(FIXES_SIZE):
        return {}
    shapes = given(result.graph, at)
    changed: dict[str, tuple[Any, ...]] = {}
    for tensor in result.graph.inputs:
        wanted = shapes.get(tensor.name)
        if wanted is not None and tuple(tensor.shape) != wanted:
            tensor.shape = list(wanted)
            changed[tensor.name] = wanted
    return changed
