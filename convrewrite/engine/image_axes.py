"""Which input of a graph is the image, and which of its axes are spatial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_graphsurgeon as gs

from convrewrite.engine.windows import ELEMENTWISE

Shape = tuple[int, ...]


def image_input(graph: gs.Graph, shapes: Mapping[str, Shape]) -> str | None:
    """The first input with a batch, channels and one to three spatial axes."""
    return next((t.name for t in graph.inputs if len(shapes.get(t.name, ())) in (3, 4, 5)), None)


def spatial_dims(graph: gs.Graph, shapes: Mapping[str, Shape], image: str) -> tuple[int, ...]:
    """Dimensions of an image input that are its spatial axes."""
    source = next(tensor for tensor in graph.inputs if tensor.name == image)
    rank = len(shapes[image])
    first = 1 if channels_last(source, shapes) else 2
    return tuple(range(first, first + rank - 2))


def open_axes_of(dims: Sequence[int | None], size: Sequence[int]) -> tuple[int, ...]:
    """The part of a size of the whole image that belongs to the open axes; () where its fixed axes contradict it.

        1x3x16x?, 16x32   ->   32           1x16x?x3, 16x32   ->   32          1x3x16x?, 20x32   ->   ()

    Args:
        dims: of an input, None where they are open. size: one extent per spatial axis; they stand last, or ahead of
            the channels.
    """
    free = {axis for axis, dim in enumerate(dims) if dim is None}
    for first in range(len(dims) - len(size), -1, -1):
        block = range(first, first + len(size))
        if free <= {*block} and all(dims[axis] in (None, wanted) for axis, wanted in zip(block, size, strict=True)):
            return tuple(wanted for axis, wanted in zip(block, size, strict=True) if axis in free)
    return ()


def channels_last(source: gs.Tensor, shapes: Mapping[str, Shape]) -> bool:
    """Whether the first thing done to the image, element-wise operators aside, is to move its channels forward."""
    batch, *rest = shapes[source.name]
    rank = len(rest) + 1
    todo, seen = list(source.outputs), set()
    while todo:
        node = todo.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if node.op == "Transpose":
            return list(node.attrs.get("perm", ())) == [0, rank - 1, *range(1, rank - 1)]
        if node.op == "Reshape":  # of one channel, whose place is then only a matter of words
            return rest[-1] == 1 and shapes.get(node.outputs[0].name) == (batch, 1, *rest[:-1])
        if node.op in ELEMENTWISE:
            todo.extend(reader for tensor in node.outputs for reader in tensor.outputs)
    return False
