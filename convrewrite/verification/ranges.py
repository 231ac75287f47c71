"""Which integers an input takes, read from the graph: indices stay below what they index, pixels are 0..255.

ids -> Reshape -> Gather(table [1000, 64])      0..999
image -> Cast(float) -> Conv                    0..255
anything else                                   by type (see `sampling.random_array`)
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto

from convrewrite.engine.operators import chosen

_FOLLOWED = chosen("Identity reshape transpose Expand Slice Split Concat Dropout")
_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16})
_INDEXED = frozenset({"Gather", "GatherElements", "ScatterElements"})

PIXELS = 256


def integer_limits(model: onnx.ModelProto) -> dict[str, int]:
    """The bound that the values of an integer input must stay below, where its use in the graph says so."""
    graph = model.graph
    users: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
    for node in graph.node:
        for index, name in enumerate(node.input):
            users.setdefault(name, []).append((node, index))
    shapes = _shapes(graph)
    found = {}
    for value in graph.input:
        kind = value.type.tensor_type.elem_type
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)) if kind else np.dtype("object")
        if dtype.kind not in "iu":
            continue
        ends = list(_ends(value.name, users, shapes))
        if ends and None not in ends:
            found[value.name] = min(end for end in ends if end is not None)
        elif any(end is not None and end != PIXELS for end in ends):
            found[value.name] = min(end for end in ends if end is not None and end != PIXELS)
        if value.name in found:
            found[value.name] = min(found[value.name], 2 ** (8 * dtype.itemsize - (dtype.kind == "i")))
    return found


def _shapes(graph: onnx.GraphProto) -> dict[str, list[int]]:
    """Shapes of the weights, and whatever else the file states."""
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and (value := [a.t for a in node.attribute if a.name == "value"]):
            shapes[node.output[0]] = list(value[0].dims)
    for info in [*graph.value_info, *graph.input]:
        if info.type.tensor_type.HasField("shape"):
            shapes.setdefault(info.name, [dim.dim_value for dim in info.type.tensor_type.shape.dim])
    return shapes


def _ends(
    name: str, users: dict[str, list[tuple[onnx.NodeProto, int]]], shapes: dict[str, list[int]]
) -> Iterator[int | None]:
    """A limit for each use of a tensor, layout operators followed; None for a use that says nothing."""
    todo, seen = [name], {name}
    while todo:
        for node, index in users.get(todo.pop(), []):
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            cast = attributes.get("to") if node.op_type == "Cast" else None
            if node.op_type in _INDEXED and index == 1:
                dims, axis = shapes.get(node.input[0], []), int(attributes.get("axis", 0))
                yield dims[axis] or None if -len(dims) <= axis < len(dims) else None
            elif node.op_type == "GatherND" and index == 1:
                yield min((dim for dim in shapes.get(node.input[0], []) if dim), default=None)
            elif cast in _FLOATS:
                yield PIXELS
            elif cast is not None or (node.op_type in _FOLLOWED and (index == 0 or node.op_type == "Concat")):
                todo.extend(output for output in node.output if output and output not in seen)
                seen.update(node.output)
            else:
                yield None
