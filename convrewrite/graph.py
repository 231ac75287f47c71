"""Questions that passes ask of a graph: its native shapes, its constants, its image input.

Nothing here changes a graph. Weights stay lazy: a constant is read only when its value is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
import onnx_graphsurgeon as gs
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_dequantize_linear import DequantizeLinear_19

from convrewrite.skeletons import held_tensor, node_proto, skeleton, unique_name, values_of

__all__ = [
    "Constants",
    "Shape",
    "add_types",
    "all_finite",
    "infer_shapes",
    "live_nodes",
    "producer",
    "skeleton",
    "subgraph_tensors",
    "subgraphs",
    "unique_name",
    "values_of",
]

Shape = tuple[int, ...]

OpenShape = tuple[int | None, ...]
"""Extents, None where they follow an open axis of an input, or are not known."""

SAME_SHAPE = frozenset({"GroupNormalization"})
"""Operators that keep the shape of their input, and for which onnx has no shape inference."""


_NEVER_CONSTANT = frozenset({"Multinomial", "Bernoulli", "Shape", "Size"})


def all_finite(constant: gs.Constant) -> bool:
    """Whether a constant of floating-point numbers holds neither NaN nor infinity; a large one is read in parts."""
    stored = constant._values
    parts = stored.pieces() if hasattr(stored, "pieces") else iter([np.asarray(values_of(constant))])
    return all(bool(np.isfinite(part.sum(dtype=np.float64))) for part in parts if part.dtype.kind == "f")


def producer(tensor: gs.Tensor) -> gs.Node | None:
    """The node that computes a tensor, or None for graph inputs and initializers."""
    return tensor.inputs[0] if tensor.inputs else None


def computed_from_constants(tensor: gs.Tensor, most: int = 64) -> bool:
    """Whether a tensor is a constant, or nodes compute it from constants alone; False beyond `most` nodes.

    Nothing is computed, and the walk is short: weights come from a few nodes, activations from many.
    """
    todo, seen = [tensor], set[int]()
    while todo:
        current = todo.pop()
        if isinstance(current, gs.Constant) or not current.name:
            continue
        node = producer(current)
        if node is None or node.op in _NEVER_CONSTANT or node.op.startswith("Random") or subgraphs(node):
            return False
        if id(node) not in seen:
            seen.add(id(node))
            todo.extend(node.inputs)
        if len(seen) > most:
            return False
    return True


def subgraphs(node: gs.Node) -> list[gs.Graph]:
    """The subgraphs of a node (If, Loop, Scan)."""
    values = [v for value in node.attrs.values() for v in (value if isinstance(value, list) else [value])]
    return [value for value in values if isinstance(value, gs.Graph)]


def subgraph_tensors(node: gs.Node) -> Iterator[gs.Tensor]:
    """Tensors that the subgraphs of a node read from outside of them."""
    for subgraph in subgraphs(node):
        own = {t.name for t in subgraph.inputs} | {t.name for inner in subgraph.nodes for t in inner.outputs}
        read = [t for inner in subgraph.nodes for t in (*inner.inputs, *subgraph_tensors(inner))]
        yield from (t for t in (*read, *subgraph.outputs) if t.name not in own)


def has_fixed_inputs(graph: gs.Graph) -> bool:
    """Whether all extents of the graph's inputs are numbers: what was assumed for open ones must not be baked in."""
    return all(t.shape is not None and all(isinstance(d, int | np.integer) for d in t.shape) for t in graph.inputs)


def live_nodes(graph: gs.Graph) -> list[gs.Node]:
    """The nodes that the graph's outputs need, in order."""
    read = {tensor.name for tensor in graph.outputs}
    live: list[gs.Node] = []
    for node in reversed(graph.nodes):
        if any(tensor.name in read for tensor in node.outputs):
            read.update(tensor.name for tensor in (*node.inputs, *subgraph_tensors(node)) if tensor.name)
            live.append(node)
    return live[::-1]


def _elem_type_of(value: np.ndarray[Any, Any]) -> int:
    return int(onnx.helper.np_dtype_to_tensor_dtype(value.dtype))


def add_types(graph: gs.Graph) -> set[str]:
    """Tell the tensors of which the file lists no type the one that follows; returns their names."""
    bare = {n: t for n, t in graph.tensors().items() if isinstance(t, gs.Variable) and n and t.dtype is None}
    if not bare:
        return set()
    inferred = onnx.shape_inference.infer_shapes(skeleton(graph), check_type=False, strict_mode=False).graph
    for info in (*inferred.value_info, *inferred.output):
        if info.name in bare and info.type.tensor_type.elem_type:
            bare[info.name].dtype = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
    return set(bare)


def infer_shapes(
    graph: gs.Graph, input_shapes: Mapping[str, Sequence[int]], *, strict: bool = True
) -> dict[str, Shape]:
    """Shapes of all tensors that follow from the given input shapes; tensors of unknown shape are left out.

    Args:
        graph: it is not changed. input_shapes: by name of the input.
        strict: raise where an operator contradicts its input shapes; else what follows from it is not known.

    Raises:
        onnx.shape_inference.InferenceError: see `strict`.
    """
    model = skeleton(graph, input_shapes)
    _with_same_shapes(model)
    shapes = _inferred(model, strict=strict)
    for name, tensor in graph.tensors().items():
        if isinstance(tensor, gs.Constant):
            shapes[name] = tuple(tensor.shape)
    while _fold_shape_inputs(graph, model, shapes):
        shapes.update(_inferred(model, strict=strict))
    return shapes


def _with_same_shapes(model: onnx.ModelProto) -> None:
    """Put an Identity in the place of operators that keep a shape, and for which onnx has no shape inference."""
    for node in model.graph.node:
        if node.op_type in SAME_SHAPE and not node.domain:
            node.CopyFrom(onnx.helper.make_node("Identity", node.input[:1], node.output[:1], node.name))


def fixed_extents(graph: gs.Graph, inputs: Mapping[str, Sequence[Any]] | None = None) -> dict[str, OpenShape]:
    """Which extents are the same whatever the open axes of the inputs are given; {} where the graph contradicts itself.

    What is decided at one size holds for all only where it rests on such extents. They are found by shape inference
    with the open axes left open, never by trying some sizes: floor(224 / 32) is floor(225 / 32), too.

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
    _with_same_shapes(model)
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


def _inferred(model: onnx.ModelProto, *, strict: bool) -> dict[str, Shape]:
    inferred = onnx.shape_inference.infer_shapes(model, check_type=False, strict_mode=strict, data_prop=True).graph
    shapes: dict[str, Shape] = {}
    for info in [*inferred.value_info, *inferred.output, *inferred.input]:
        if info.type.tensor_type.HasField("shape"):
            dims = info.type.tensor_type.shape.dim
            if all(dim.HasField("dim_value") for dim in dims):
                shapes[info.name] = tuple(dim.dim_value for dim in dims)
    return shapes


def _fold_shape_inputs(graph: gs.Graph, model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> bool:
    """Give shape inference the values that its own data propagation missed; False where there were none."""
    constants = Constants(graph, shapes)
    known = {tensor.name for tensor in model.graph.initializer}
    progress = False
    for node, proto in zip(graph.nodes, model.graph.node, strict=True):
        if all(output.name in shapes for output in node.outputs if output.name):
            continue
        for index, tensor in enumerate(node.inputs):
            if index and tensor.name and not isinstance(tensor, gs.Constant):
                folded = f"{tensor.name}/folded"
                value = constants.value(tensor) if proto.input[index] != folded else None
                if value is not None:
                    if folded not in known:
                        model.graph.initializer.append(onnx.numpy_helper.from_array(value, folded))
                        known.add(folded)
                    proto.input[index] = folded
                    progress = True
    return progress


class DequantizeLinear(DequantizeLinear_19):
    """The reference evaluator has this operator from opset 19 only; it means the same from 10 on."""

    op_domain = ""

    def _run(self, *inputs: Any, axis: int = 1, **_: Any) -> Any:
        """`_` holds the attributes that later opsets added."""
        return super()._run(*inputs, axis=axis)  # type: ignore[misc]


class Constants:
    """Values of the tensors of one graph that do not depend on its inputs, folded only when asked for.

    A tensor that depends on the shape of another but not on its values (Shape, Size) counts as constant where
    `shapes` knows that shape.
    """

    def __init__(self, graph: gs.Graph, shapes: Mapping[str, Shape] | None = None) -> None:
        self._graph = graph
        self._shapes = dict(shapes or {})
        self._values: dict[str, np.ndarray[Any, Any] | None] = {}

    def value(self, tensor: gs.Tensor | None) -> np.ndarray[Any, Any] | None:
        """The value of a tensor, or None where it depends on the values of a graph input (or is absent)."""
        if tensor is None or not tensor.name:
            return None
        if isinstance(tensor, gs.Constant):
            return values_of(tensor)
        if tensor.name not in self._values:
            self._values[tensor.name] = self._fold(tensor)
        return self._values[tensor.name]

    def depends_on_shape(self, tensor: gs.Tensor) -> bool:
        """Whether a constant tensor was computed from the shape of a tensor that is not constant."""
        return any(node.op in ("Shape", "Size") for node in self._ancestors(tensor) or ())

    def _ancestors(self, tensor: gs.Tensor) -> list[gs.Node] | None:
        """Nodes that compute a tensor from constants and known shapes, or None where it has another source."""
        found: dict[int, gs.Node] = {}
        pending = [tensor]
        while pending:
            current = pending.pop()
            if isinstance(current, gs.Constant) or not current.name:
                continue
            node = producer(current)
            if node is None or subgraphs(node):
                return None
            if id(node) in found:
                continue
            found[id(node)] = node
            if node.op in ("Shape", "Size"):
                if node.inputs[0].name not in self._shapes:
                    return None
            elif node.op.startswith(("Random", "Multinomial", "Bernoulli")):
                return None
            else:
                pending.extend(node.inputs)
        return list(found.values())

    def _fold(self, tensor: gs.Tensor) -> np.ndarray[Any, Any] | None:
        needed = self._ancestors(tensor)
        if needed is None:
            return None
        try:
            return self._computed(tensor, needed)
        except Exception:  # the evaluator raises what it likes on an operator that it lacks, or that is fed nonsense
            return None

    def _computed(self, tensor: gs.Tensor, needed: Sequence[gs.Node]) -> np.ndarray[Any, Any]:
        """The value of a tensor, given the nodes that compute it."""
        if len(needed) == 1 and (held := held_tensor(needed[0])) is not None:
            return values_of(held)
        members = {id(node) for node in needed}
        nodes: list[onnx.NodeProto] = []
        feeds: dict[str, np.ndarray[Any, Any]] = {}
        for node in self._graph.nodes:
            if id(node) not in members:
                continue
            held = held_tensor(node)
            if held is not None:
                feeds[node.outputs[0].name] = values_of(held)
                continue
            proto = node_proto(node)
            if node.op in ("Shape", "Size"):
                feeds[node.inputs[0].name] = np.broadcast_to(np.float32(0), self._shapes[node.inputs[0].name])
            feeds.update((t.name, values_of(t)) for t in node.inputs if isinstance(t, gs.Constant))
            nodes.append(proto)
        inputs = [onnx.helper.make_tensor_value_info(name, _elem_type_of(value), None) for name, value in feeds.items()]
        output = onnx.helper.make_tensor_value_info(tensor.name, onnx.TensorProto.UNDEFINED, None)
        opsets = [onnx.helper.make_opsetid("", self._graph.opset)]
        older: list[type[OpRun]] = [DequantizeLinear] if self._graph.opset < 19 else []
        small = onnx.helper.make_model(
            onnx.helper.make_graph(nodes, "constant", inputs, [output]), opset_imports=opsets
        )
        results: list[Any] = list(ReferenceEvaluator(small, new_ops=older).run(None, feeds))
        return np.asarray(results[0])
