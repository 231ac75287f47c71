"""What layers cost: multiply-accumulates, parameters and bytes moved, counted from shapes alone.

A MAC is one multiplication with its addition (2 FLOPs), of the operators that multiply by matrices or kernels:

    Conv            output cells x C/g x prod(kernel)          k x k on an R x R map, M to N: k^2 R^2 M N
    ConvTranspose   input cells x M/g x prod(kernel)
    Gemm, MatMul    output cells x the contracted extent
    Einsum          the product of the extents of all its letters
    LSTM, GRU, RNN  directions x steps x batch x gates x hidden x (input + hidden)

and their quantized and fused forms. Pools, activations, normalisations and other element-wise operators count nothing,
as in the literature. Those of subgraphs (If, Loop, Scan) are not known, since it is not known how often they run; their
parameters count. Padding counts in full. Bytes moved are what a layer must at least read and write: its inputs, weights
included, once each, and its outputs once; what caches and fusion spare or blocking adds is not in it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from convrewrite.engine.graph import infer_shapes
from convrewrite.engine.layers import LinearLayer
from convrewrite.engine.operators import chosen
from convrewrite.engine.skeletons import held_tensor, is_tensor
from convrewrite.engine.tensors import producer, subgraphs
from convrewrite.text import counted

Shape = tuple[int, ...]

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
CONVS = chosen("convolution integer-convolution DeformConv") | {"FusedConv", "NhwcFusedConv"}
PRODUCTS = chosen("MatMul integer-matrix") | {"FusedMatMul"}
GEMMS = frozenset("Gemm FusedGemm".split())
WEIGHTED = CONVS | PRODUCTS | GEMMS | frozenset(GATES) | {"ConvTranspose", "Einsum"}
"""Operators that have MACs."""

FIXED_SIZES = dict.fromkeys(chosen("extents search NonZero"), 8)
FIXED_SIZES |= dict.fromkeys(chosen("ConvInteger MatMulInteger"), 4)
FIXED_SIZES |= dict.fromkeys(chosen("Equal Greater GreaterOrEqual Less LessOrEqual Not And Or Xor IsNaN IsInf"), 1)
"""Bytes per entry of what these give, whatever they take."""

QUANTIZED = {"QLinearConv": (0, 3), "QLinearMatMul": (0, 3)}
"""Where data and weight stand among the inputs; the others have them first."""

STORED = {
    "DequantizeLinear": (0,),
    "QLinearConv": (3, 8),
    "QLinearMatMul": (3,),
    "ConvInteger": (1,),
    "MatMulInteger": (1,),
    "QGemm": (3, 6),
}
"""Where operators read weights and biases that are stored as integers."""


@dataclass(frozen=True)
class LayerCost:
    """One node.

    Attributes:
        name: of its first output, which is unique in a graph. op: its operator.
        output: shape of the first output; None where it is not known.
        macs: None where they do not follow from the shapes that are known.
        parameters: entries of its floating-point constants, those that its subgraphs read or hold included; a constant
            that nodes share counts at each of them.
        bytes_moved: inputs and outputs, each once; None where a shape or type is not known.
    """

    name: str
    op: str
    output: Shape | None
    macs: int | None
    parameters: int
    bytes_moved: int | None

    @property
    def flops(self) -> int | None:
        """Floating-point operations: two for each multiply-accumulate."""
        return None if self.macs is None else 2 * self.macs

    @property
    def intensity(self) -> float | None:
        """FLOPs per byte moved: where it is low, memory sets the time and fewer MACs change little."""
        return None if self.flops is None or not self.bytes_moved else self.flops / self.bytes_moved


@dataclass(frozen=True)
class Costs:
    """The layers of a graph. It prints itself as a table.

    Attributes:
        layers: every node, in order.
        parameters: of the graph and its subgraphs: a shared constant counts once.
        uncounted: how many subgraphs have layers whose MACs are not counted.
    """

    layers: tuple[LayerCost, ...]
    parameters: int
    uncounted: int = 0

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all layers whose shapes are known."""
        return sum(layer.macs or 0 for layer in self.layers)

    @property
    def bytes_moved(self) -> int:
        """Bytes read and written by all layers whose shapes are known."""
        return sum(layer.bytes_moved or 0 for layer in self.layers)

    @property
    def unknown(self) -> tuple[str, ...]:
        """Names of the layers whose MACs could not be counted."""
        return tuple(layer.name for layer in self.layers if layer.macs is None)

    def __str__(self) -> str:
        """The layers that have MACs or parameters, and the sum over all."""
        header = ("layer", "op", "output", "MACs", "parameters", "bytes moved", "FLOPs/byte")
        shown = [layer for layer in self.layers if layer.macs != 0 or layer.parameters]
        rows = [header, *map(_row, shown)]
        rows.append(("all", "", "", f"{self.macs:,}", f"{self.parameters:,}", f"{self.bytes_moved:,}", ""))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(c.rjust(w) if i > 2 else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
            for row in rows
        ]
        return "\n".join([*lines, *([told_uncounted(self.uncounted)] if self.uncounted else [])])


def _row(layer: LayerCost) -> tuple[str, ...]:
    def number(value: float | None, form: str = ",") -> str:
        return "?" if value is None else f"{value:{form}}"

    output = "?" if layer.output is None else "x".join(map(str, layer.output))
    figures = number(layer.macs), f"{layer.parameters:,}", number(layer.bytes_moved), number(layer.intensity, ".1f")
    return layer.name, layer.op, output, *figures


def count(graph: gs.Graph, input_shapes: Mapping[str, Sequence[int]] | None = None, *, strict: bool = True) -> Costs:
    """Costs of every layer.

    Args:
        graph: it is not changed, and no weight is read.
        input_shapes: by name of the graph input; by default the graph's own, as far as they are numbers.
        strict: raise where the graph does not run at these shapes; else count what is known of them.

    Raises:
        onnx.shape_inference.InferenceError: see `strict`.
    """
    given = {name: tuple(shape) for name, shape in (input_shapes or {}).items()}
    for tensor in graph.inputs:
        own = _static(tensor)
        if own is not None:
            given.setdefault(tensor.name, own)
    shapes, sizes = infer_shapes(graph, given, strict=strict), item_sizes(graph)
    layers = tuple(layer_cost(node, shapes, sizes) for node in graph.nodes)
    return Costs(layers, parameters(graph), uncounted(graph))


def layer_cost(node: gs.Node, shapes: Mapping[str, Shape], sizes: Mapping[str, int]) -> LayerCost:
    """The cost of one node, given the shape and the bytes per entry of each tensor."""
    constants = {t.name: t for t in node.inputs if isinstance(t, gs.Constant)}
    inner = _used([node]) if subgraphs(node) else {}
    return LayerCost(
        name=node.outputs[0].name if node.outputs else node.name,
        op=node.op,
        output=_shape(node.outputs, 0, shapes),
        macs=_macs(node, shapes),
        parameters=sum(inner.values()) or sum(math.prod(t.shape) for t in constants.values() if _is_float(t)),
        bytes_moved=_bytes_moved(node, shapes, sizes),
    )


def macs(node: gs.Node, shapes: Mapping[str, Shape]) -> int:
    """MACs of one node; 0 for operators without multiplications by weights, or where a shape is unknown."""
    return _macs(node, shapes) or 0


def graph_macs(graph: gs.Graph, shapes: Mapping[str, Shape]) -> int:
    """MACs of all nodes of a graph at the given shapes."""
    return sum(macs(node, shapes) for node in graph.nodes)


def parameters(graph: gs.Graph) -> int:
    """Entries of all floating-point constants that some node or output uses, and of all weights stored as integers."""
    return sum(_used(graph.nodes).values())


def uncounted(graph: gs.Graph) -> int:
    """How many subgraphs, at any depth, have layers whose MACs are not counted."""
    inner = [sub for node in graph.nodes for sub in subgraphs(node)]
    return sum(any(node.op in WEIGHTED for node in sub.nodes) + uncounted(sub) for sub in inner)


def told_uncounted(number: int) -> str:
    """The words for that; empty where there are none."""
    return "" if not number else f"{counted(number, 'subgraph')} {'is' if number == 1 else 'are'} not counted"


def _used(nodes: Sequence[gs.Node]) -> dict[tuple[str, int], int]:
    """Entries of each constant with parameters that nodes or their subgraphs read or hold; each counts once.

    Subgraphs may have constants of their own under one name, and copies of outer ones, whose stored values are one.
    """
    used: dict[tuple[str, int], gs.Constant] = {}
    stored: set[tuple[str, int]] = set()
    todo = [*nodes]
    while todo:
        node = todo.pop()
        todo += [inner for sub in subgraphs(node) for inner in sub.nodes]
        places = STORED.get(node.op, ())
        for place, tensor in enumerate(node.inputs):
            constant = tensor if isinstance(tensor, gs.Constant) else _held_by(tensor)
            if constant is not None:
                key = tensor.name, id(constant._values)
                used[key] = constant
                stored |= {key} if place in places else set()
        held = held_tensor(node)
        if held is not None:
            used[node.outputs[0].name, id(held._values)] = held
        given = [tensor for sub in subgraphs(node) for tensor in sub.outputs if isinstance(tensor, gs.Constant)]
        used.update(((tensor.name, id(tensor._values)), tensor) for tensor in given)
    return {key: math.prod(c.shape) for key, c in used.items() if _is_float(c) or key in stored}


def _held_by(tensor: gs.Tensor) -> gs.Constant | None:
    """The constant that a Constant node gives."""
    made = producer(tensor)
    return None if made is None else held_tensor(made)


def _macs(node: gs.Node, shapes: Mapping[str, Shape]) -> int | None:
    """None where a shape is not known."""
    if node.op not in WEIGHTED:
        return None if any(map(_weighs, subgraphs(node))) else 0
    if node.op == "Einsum":
        return _einsum(node, shapes)
    places = QUANTIZED.get(node.op, (0, 1))
    output = _shape(node.outputs, 0, shapes)
    data, weight = (_shape(node.inputs, place, shapes) for place in places)
    if data is None or weight is None:
        return None
    if node.op in GATES:
        # W [directions, gates * hidden, input]; a recurrent weight [directions, gates * hidden, hidden] beside it
        directions, rows, incoming = weight
        steps_and_batch = data[0] * data[1]
        return directions * steps_and_batch * rows * (incoming + rows // GATES[node.op])
    if node.op == "ConvTranspose":
        return math.prod(data) * math.prod(weight[1:])
    if output is None:
        return None
    if node.op in CONVS:
        channels_last = node.op == "NhwcFusedConv"
        per_cell = math.prod(weight[1:]) if not channels_last else math.prod(weight) // max(1, output[-1])
        return math.prod(output) * per_cell
    return math.prod(output) * data[LinearLayer.from_node(node, weight=1, stored=weight).axis] if data else None


def _weighs(graph: gs.Graph) -> bool:
    """Whether a subgraph, at any depth, has layers with MACs."""
    return any(node.op in WEIGHTED or any(map(_weighs, subgraphs(node))) for node in graph.nodes)


def _einsum(node: gs.Node, shapes: Mapping[str, Shape]) -> int | None:
    """Naive evaluation; an ellipsis is not followed."""
    terms = str(node.attrs.get("equation", "")).replace(" ", "").partition("->")[0].split(",")
    extents: dict[str, int] = {}
    for index, term in enumerate(terms):
        shape = _shape(node.inputs, index, shapes)
        if shape is None or not re.fullmatch("[A-Za-z]*", term) or len(shape) != len(term):
            return None
        for letter, extent in zip(term, shape, strict=True):
            extents[letter] = max(extent, extents.get(letter, 1))
    return math.prod(extents.values()) if len(terms) > 1 else 0


def _bytes_moved(node: gs.Node, shapes: Mapping[str, Shape], sizes: Mapping[str, int]) -> int | None:
    total = 0
    tensors = {t.name: t for t in (*node.inputs, *node.outputs) if t.name}
    for name, tensor in tensors.items():
        shape = shapes.get(name) or _static(tensor)
        if shape is None or name not in sizes:
            return None
        total += math.prod(shape) * sizes[name]
    return total


def item_sizes(graph: gs.Graph) -> dict[str, int]:
    """Bytes per entry by tensor name; where the file lists no type, what the operator makes of its inputs' types."""
    sizes: dict[str, int] = {}
    for tensor in (*graph.tensors().values(), *graph.inputs):
        if tensor.dtype is not None and is_tensor(tensor):
            sizes[tensor.name] = _item_size(tensor.dtype)
    for node in graph.nodes:
        size = _made(node, sizes)
        for tensor in node.outputs:
            if size is not None and tensor.name:
                sizes.setdefault(tensor.name, size)
    return sizes


def _made(node: gs.Node, sizes: Mapping[str, int]) -> int | None:
    """Bytes per entry of what a node gives."""
    if node.op in FIXED_SIZES:
        return FIXED_SIZES[node.op]
    if node.op == "Cast" and "to" in node.attrs:
        return _item_size(node.attrs["to"])
    last = node.op in ("QuantizeLinear", "QLinearConv", "QLinearMatMul") and len(node.inputs) > 2
    place = {"DequantizeLinear": 1, "Where": 1, "QLinearConv": 7, "QLinearMatMul": 7}.get(node.op, 2 if last else 0)
    held = held_tensor(node)
    if held is not None:
        return _item_size(held.dtype)
    if node.op == "ConstantOfShape":
        value = node.attrs.get("value")
        return _item_size(value.dtype) if isinstance(value, gs.Constant) else 4
    return sizes.get(node.inputs[place].name) if place < len(node.inputs) else None


def _item_size(dtype: Any) -> int:
    kind = onnx.helper.tensor_dtype_to_np_dtype(dtype) if isinstance(dtype, int) else dtype
    return int(np.dtype(kind).itemsize)


def _shape(tensors: Sequence[gs.Tensor], index: int, shapes: Mapping[str, Shape]) -> Shape | None:
    if index >= len(tensors):
        return None
    known = shapes.get(tensors[index].name)
    return known if known is not None else _static(tensors[index])


def _static(tensor: gs.Tensor) -> Shape | None:
    shape = tensor.shape
    return tuple(shape) if shape is not None and all(isinstance(dim, int) for dim in shape) else None


def _is_float(constant: gs.Constant) -> bool:
    return str(constant.dtype).startswith(("float", "bfloat"))
