"""Which extents inside a graph are the same whatever its open inputs are given.

    image ["N", 3, "H", "W"] -> Conv -> [N, 64, ?, ?] -> GlobalAveragePool -> [N, 64, 1, 1]
                                           |                                      |
                                  follow the image                       1 x 1 for every image

What is decided at one size holds for all only where it rests on such extents. They are found by shape inference with
the open axes left open, never by trying some sizes: floor(224 / 32) is floor(225 / 32), too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import onnx_graphsurgeon as gs

from convrewrite.graph import SAME_SHAPE, skeleton

OpenShape = tuple[int | None, ...]
"""Extents, None where they are open."""

FIXES_SIZE = "fixes_size"
"""The evidence of a plan that holds at the given size alone, so that the input has to be fixed at it."""


def fixed_extents(graph: gs.Graph, inputs: Mapping[str, Sequence[Any]] | None = None) -> dict[str, OpenShape]:
    """Shapes of all tensors of known rank; {} where the graph contradicts itself.

    Args:
        graph: it is not changed. Shapes that the file lists for tensors other than the inputs are not believed.
        inputs: shapes that replace those of the named inputs; all that is no positive number is open.
    """
    given = {t.name: t.shape for t in graph.inputs if t.shape is not None} | dict(inputs or {})
    symbols = {
        name: [dim if isinstance(dim, str) or (isinstance(dim, int) and dim > 0) else None for dim in dims]
        for name, dims in given.items()
    }
    model = skeleton(graph, symbols)
    for info in model.graph.output:
        info.type.tensor_type.ClearField("shape")
    for node in model.graph.node:
        if node.op_type in SAME_SHAPE and not node.domain:
            node.CopyFrom(onnx.helper.make_node("Identity", node.input[:1], node.output[:1], node.name))
    try:
        inferred = onnx.shape_inference.infer_shapes(model, check_type=False, strict_mode=False, data_prop=True).graph
    except onnx.shape_inference.InferenceError:
        return {}
    shapes: dict[str, OpenShape] = {}
    for info in (*inferred.value_info, *inferred.output, *inferred.input):
        kind = info.type.tensor_type
        if kind.HasField("shape"):
            shapes[info.name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim)
    return shapes
