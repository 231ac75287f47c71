"""What `fcn` asks of a graph before it walks: the image among the inputs, its axes, what rules it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
import onnx_graphsurgeon as gs

from convrewrite.engine.graph import live_nodes, producer, skeleton, subgraph_tensors, subgraphs
from convrewrite.engine.image_axes import channels_last
from convrewrite.engine.operators import chosen
from convrewrite.engine.skeletons import is_tensor
from convrewrite.errors import UsageError
from convrewrite.text import by, parameter

LAYOUTS = {
    2: ("NL", "HW"),
    3: ("NCL", "NLC", "CHW", "HWC", "NHW"),
    4: ("NCHW", "NHWC"),
    5: ("NCDHW", "NDHWC"),
}
"""Meanings of an input's axes by rank, tried in this order."""

COLLAPSING = chosen("Flatten Reshape Squeeze global-pool reduction matrix")


def not_a_tensor(graph: gs.Graph) -> str:
    """Which output is a sequence, map or optional, and the tensors that it is made of; empty where none is."""
    output = next((output for output in graph.outputs if not is_tensor(output)), None)
    if output is None:
        return ""
    inferred = onnx.shape_inference.infer_shapes(skeleton(graph)).graph
    others = {i.name for i in (*inferred.value_info, *inferred.output) if not i.type.HasField("tensor_type")}
    todo, makers, found = [output], [], []
    while todo:
        node = producer(todo.pop(0))
        if node is not None:
            makers.append(node.op)
            read = [t for t in node.inputs if t.name and not isinstance(t, gs.Constant)]
            todo += [t for t in read if t.name in others]
            found += [
                f"'{t.name}'" for t in read if t.name not in others and getattr(producer(t), "op", "") != "Constant"
            ]
    made = f"{' and '.join(dict.fromkeys(makers))} makes it of {' and '.join(dict.fromkeys(found))}"
    return f"output '{output.name}' is no tensor: {made if found else 'it is not made of tensors'}"


def choice_by_value(graph: gs.Graph, image: gs.Variable) -> gs.Node | None:
    """A node whose subgraphs read the image itself, and that no shape turns into one of its branches."""
    inputs = {tensor.name for tensor in graph.inputs}
    for node in live_nodes(graph):
        if any(tensor.name == image.name for tensor in subgraph_tensors(node)):
            todo, seen = list(node.inputs[:1]), set[str]()
            while todo:
                tensor = todo.pop()
                made = producer(tensor)
                if node.op != "If" or tensor.name in inputs:
                    return node
                if made is not None and made.op not in ("Shape", "Size") and tensor.name not in seen:
                    seen.add(tensor.name)
                    todo += made.inputs
    return None


def only_channels_open(image: gs.Variable) -> bool:
    """Whether a channel axis without a number is what keeps every reading of the input's axes from being tried."""
    open_axes = [
        {letter for letter, dim in zip(axes, image.shape, strict=True) if not isinstance(dim, int)} - {"N"}
        for axes in likely(image)
    ]
    return open_axes[:1] == [{"C"}] or (bool(open_axes) and all("C" in letters for letters in open_axes))


def half_open(image: gs.Variable) -> tuple[int | None, ...]:
    """The extents of the spatial axes, None for those that are open; () where all are open, or all fixed."""
    for axes in likely(image):
        dims = [d if isinstance(d, int) else None for d, letter in zip(image.shape, axes, strict=True) if letter != "N"]
        spatial = [dim for dim, letter in zip(dims, axes.replace("N", ""), strict=True) if letter != "C"]
        if dims.count(None) == spatial.count(None):  # the channels are fixed
            return tuple(spatial) if 0 < spatial.count(None) < len(spatial) else ()
    return ()


def whole(image: gs.Variable, extents: Sequence[int]) -> tuple[int, ...]:
    """One number as the extent of every spatial axis, or of those that are open where others are fixed."""
    counts = spatial_axes(image)
    if len(extents) != 1:
        return tuple(extents)
    if dims := half_open(image):
        return tuple(extents[0] if dim is None else dim for dim in dims)
    return tuple(extents) * (max(counts) if len(counts) == 1 else 1)


def check_window(image: gs.Variable, window: Sequence[int]) -> None:
    """Raise UsageError where the window contradicts an axis that is fixed beside open ones."""
    dims = half_open(image)
    if len(dims) == len(window) and any(dim not in (None, extent) for dim, extent in zip(dims, window, strict=True)):
        own = by("?" if dim is None else dim for dim in dims)
        wanted = tuple(extent if dim is None else dim for dim, extent in zip(dims, window, strict=True))
        raise UsageError(
            f"{parameter('window', tuple(window))} does not fit: input '{image.name}' is fixed at {own}",
            remedy=f"give {parameter('window', wanted)}",
        )


def likely(image: gs.Variable) -> list[str]:
    """The meanings of the axes, those with the channels last ahead where the first operator moves them."""
    found = list(LAYOUTS.get(len(image.shape), ()))
    dims = tuple(dim if isinstance(dim, int) else 0 for dim in image.shape)
    return sorted(found, key=lambda axes: axes[-1] != "C") if channels_last(image, {image.name: dims}) else found


def image_input(graph: gs.Graph) -> gs.Variable | None:
    """The input that is an image: of three axes or more, or the only one of two.

    A mask [N, H, W] may come ahead of the image [N, C, H, W] that it belongs to.
    """
    shaped = [t for t in graph.inputs if t.shape is not None]
    images = [t for t in shaped if len(t.shape) >= 3]
    if images and len(images[0].shape) == 3:
        images = [*other_images(graph, images[0]), *images]
    flat = [t for t in shaped if len(t.shape) == 2]
    found: gs.Variable | None = images[0] if images else (flat[0] if len(flat) == 1 else None)
    return found


def other_images(graph: gs.Graph, image: gs.Variable) -> list[gs.Variable]:
    """Inputs beside the image that have rows and columns as well, and that an output needs."""
    read = {tensor.name for node in live_nodes(graph) for tensor in (*node.inputs, *subgraph_tensors(node))}
    rivals = [t for t in graph.inputs if t.name != image.name and t.name in read and len(t.shape or ()) >= 4]
    return [t for t in rivals if sum(d != 1 for d in t.shape[1:]) > 1]


def beside(graph: gs.Graph, image: gs.Variable, axes: str, native: Sequence[int]) -> dict[str, str]:
    """The further inputs that an output needs and that have the image's rows and columns, with their axes.

        image [N, 3, H, W], mask [N, 1, H, W]   ->   {mask: NCHW}       mask [N, H, W]   ->   {mask: NHW}

    Whether both mean the same place is another question: they do where they meet on a map.
    """
    own = dict(zip(axes, image.shape, strict=True))
    sizes = dict(zip(axes, native, strict=True))
    spatial = {letter for letter in axes if letter not in "NC"}
    if all(sizes[letter] == 1 for letter in spatial):
        return {}
    read = {tensor.name for node in live_nodes(graph) for tensor in (*node.inputs, *subgraph_tensors(node))}
    found: dict[str, str] = {}
    for tensor in graph.inputs:
        if tensor.name == image.name or tensor.name not in read or not tensor.shape:
            continue
        layouts = sorted(LAYOUTS.get(len(tensor.shape), ()), key=lambda letters: (letters != axes, "N" not in letters))
        for letters in layouts:
            if {*letters} - {*"NC"} == spatial and _on_grid(dict(zip(letters, tensor.shape, strict=True)), own, sizes):
                found[tensor.name] = letters
                break
    return found


def _on_grid(
    dims: Mapping[str, int | str | None], own: Mapping[str, int | str | None], native: Mapping[str, int]
) -> bool:
    """Whether an input with these axes has the image's batch, and its extents at the native size."""
    if "N" in dims:  # without one, all images share it
        mine, its = own.get("N", 1), dims["N"]
        if isinstance(mine, int) != isinstance(its, int) or (isinstance(mine, int) and mine != its):
            return False
    fixed = [(letter, dim) for letter, dim in dims.items() if letter not in "NC" and isinstance(dim, int)]
    return isinstance(dims.get("C", 1), int) and all(dim == native[letter] for letter, dim in fixed)


def convolutional_already(graph: gs.Graph, image: gs.Variable) -> bool:
    """Whether every output keeps the image's axes: nothing on the way collapses them."""
    reached = {image.name}
    for node in graph.nodes:
        if any(t.name in reached for t in (*node.inputs, *subgraph_tensors(node))):
            if _collapses(node):
                return False
            reached.update(t.name for t in node.outputs if t.name)
    return any(t.name in reached for t in graph.outputs) and any(
        isinstance(d, str) or d is None or d > 1 for t in graph.outputs for d in (t.shape or ())[2:]
    )


def _collapses(node: gs.Node) -> bool:
    """Whether a node, or one in its subgraphs, collapses a map."""
    return node.op in COLLAPSING or any(_collapses(inner) for graph in subgraphs(node) for inner in graph.nodes)


def spatial_axes(image: gs.Variable) -> set[int]:
    """How many spatial axes an input of that rank may have."""
    return {len(axes) - sum(axes.count(letter) for letter in "NC") for axes in LAYOUTS.get(len(image.shape), ())}
