"""What `fcn` asks of a graph before it walks: the image among the inputs, its axes, what rules it out."""

from __future__ import annotations

import onnx
import onnx_graphsurgeon as gs

from convrewrite.engine.graph import live_nodes, producer, skeleton, subgraph_tensors, subgraphs
from convrewrite.engine.operators import chosen
from convrewrite.engine.skeletons import is_tensor

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
    readings = [dict(zip(axes, image.shape, strict=True)) for axes in LAYOUTS.get(len(image.shape), ())]
    open_axes = [
        {letter for letter, dim in reading.items() if not isinstance(dim, int)} - {"N"} for reading in readings
    ]
    return {"C"} in open_axes or (bool(open_axes) and all("C" in letters for letters in open_axes))


def image_input(graph: gs.Graph) -> gs.Variable | None:
    """The input that is an image: of three axes or more, or the only one of two."""
    shaped = [t for t in graph.inputs if t.shape is not None]
    images = [t for t in shaped if len(t.shape) >= 3]
    flat = [t for t in shaped if len(t.shape) == 2]
    found: gs.Variable | None = images[0] if images else (flat[0] if len(flat) == 1 else None)
    return found


def other_images(graph: gs.Graph, image: gs.Variable) -> list[gs.Variable]:
    """Inputs beside the image that have rows and columns as well, and that an output needs."""
    read = {tensor.name for node in live_nodes(graph) for tensor in (*node.inputs, *subgraph_tensors(node))}
    rivals = [t for t in graph.inputs if t.name != image.name and t.name in read and len(t.shape or ()) >= 4]
    return [t for t in rivals if sum(d != 1 for d in t.shape[1:]) > 1]


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
