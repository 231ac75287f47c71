"""What `size` fixes: where a rewrite holds at that size alone, the input of the file that is written takes no other.

    image ["N", 3, "H", "W"]  size 32x32  ->  ["N", 3, 32, 32]

The batch stays as it is. A rewrite that rests on no size leaves the input open.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_graphsurgeon as gs

from convrewrite.engine.rewrite import FixedSize, PassResult
from convrewrite.pipeline.native import Native

Shapes = Mapping[str, tuple[Any, ...]]


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
    if not result.evidence_of(FixedSize):
        return {}
    shapes = given(result.graph, at)
    changed: dict[str, tuple[Any, ...]] = {}
    for tensor in result.graph.inputs:
        wanted = shapes.get(tensor.name)
        if wanted is not None and tuple(tensor.shape) != wanted:
            tensor.shape = list(wanted)
            changed[tensor.name] = wanted
    return changed
