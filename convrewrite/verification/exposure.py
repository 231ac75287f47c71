"""Temporary variants of a model that show what its outputs hide: tensors ahead of a final Softmax, trunk, head.

    ... -> Gemm -> z -> Softmax -> prob                      prob
    ... -> Gemm -> z -> Softmax -> Transpose -> prob   ==>   prob, and z -> Transpose -> (before prob)

A saturated Softmax gives (1, 0, 0) whatever happens ahead of it. So the tensor ahead of a final Softmax, LogSoftmax,
Sigmoid or ArgMax becomes an output of a copy. Layout operators between it and the output are repeated behind it:
it then has the very layout of the output, in the original and in the rewritten model alike.

Copies stay in memory, and are never written to disk.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from convrewrite.engine.operators import chosen
from convrewrite.errors import UsageError
from convrewrite.model_io import protofile
from convrewrite.model_io.functions import inlined

FINAL_OPS = chosen("softmax Sigmoid ArgMax")
"""Operators that hide differences of their operand."""

_TRANSPARENT_OPS = chosen("Identity Cast Dropout quantizer")
RANGE = "/range of the integers"
"""The names of nodes that stand for a QuantizeLinear end in it (see `surrogate`)."""

_LAYOUT_OPS = _TRANSPARENT_OPS | chosen("reshape transpose")


@dataclass(frozen=True)
class Probe:
    """A tensor that was made an output of a copy.

    Attributes:
        name: of the added graph output.
        output: the model's output that it lies ahead of. op: the operator between the two.
        axis, keepdims: of an ArgMax. straight: no layout operator lies between the ArgMax and the output.
        reordered: a Transpose lies between the ArgMax and the output.
    """

    name: str
    output: str
    op: str
    axis: int = 0
    keepdims: bool = True
    straight: bool = True
    reordered: bool = False


@dataclass(frozen=True)
class Sketch:
    """A model without its large weights, and where they lie: variants of it are made without parsing them.

    Attributes:
        model: large `raw_data` are marks (see `protofile`); external data stays external.
        payloads: what the marks stand for. inlined: the file has local functions, which `model` has not.
    """

    model: onnx.ModelProto
    payloads: list[protofile.Payload]
    inlined: bool = False

    def serialize(self, variant: onnx.ModelProto) -> bytes:
        """Serialize a variant of the model with its weights."""
        buffer = io.BytesIO()
        for chunk in protofile.chunks(protofile.splice(variant.SerializeToString(), self.payloads)):
            buffer.write(chunk)
        return buffer.getvalue()


def read_sketch(path: str | Path) -> Sketch:
    """Read a model without its weights. Raises UsageError where it is none."""
    try:
        skeleton, payloads = protofile.cut(protofile.MappedFile(Path(path)))
        model = onnx.load_model_from_string(skeleton)
        flat = inlined(model)
        return Sketch(flat, payloads, flat is not model)
    except OSError as error:
        raise UsageError(f"cannot read {path} ({error.strerror or type(error).__name__})") from None
    except Exception as error:  # protobuf raises several unrelated classes
        raise UsageError(f"cannot read {path} as an ONNX model ({type(error).__name__})") from None


def read_variant(path: str | Path, variant: Callable[[onnx.ModelProto], None] | None) -> Sketch:
    """Read a model without its weights and change it."""
    sketch = read_sketch(path)
    if variant is not None:
        variant(sketch.model)
    return sketch


def rounds_inside(model: onnx.ModelProto) -> bool:
    """Whether activations are rounded to integers: an integer kernel in the place of a float one rounds otherwise."""
    rounding = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear")]
    moving = moving_tensors(model.graph) if rounding else set()
    return any(node.input[0] in moving for node in rounding)


def holds_integers(model: onnx.ModelProto) -> bool:
    """Whether numbers are stored as integers: ONNX Runtime then has kernels for them that compute less accurately."""
    kinds = ("QuantizeLinear", "DynamicQuantizeLinear", "DequantizeLinear")
    return any(node.op_type in kinds for node in model.graph.node)


def last_steps(model: onnx.ModelProto) -> dict[str, float]:
    """The quantization step of each output that a DequantizeLinear gives."""
    makers = producers(model.graph)
    scales = {t.name: t for t in model.graph.initializer}
    found = {}
    for value in model.graph.output:
        node = makers.get(value.name)
        if node is not None and node.op_type == "DequantizeLinear" and node.input[1] in scales:
            found[value.name] = float(onnx.numpy_helper.to_array(scales[node.input[1]]).max())
    return found


def has_external_data(model: onnx.ModelProto) -> bool:
    """Whether some weight lies in a file of its own."""
    return any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer)


def input_names(graph: onnx.GraphProto) -> list[str]:
    """Names of the graph's inputs that are no initializers."""
    weights = {tensor.name for tensor in graph.initializer}
    return [value.name for value in graph.input if value.name not in weights]


def add_probes(model: onnx.ModelProto) -> tuple[Probe, ...]:
    """Make the tensor ahead of every final FINAL_OPS node an output of `model`, in place."""
    graph = model.graph
    makers = producers(graph)
    probes = []
    for output in [value.name for value in graph.output]:
        path: list[onnx.NodeProto] = []
        tensor = output
        while (node := makers.get(tensor)) is not None and _is_layout(node) and node.output[0] == tensor:
            path.append(node)
            tensor = node.input[0]
        if node is None or node.op_type not in FINAL_OPS or node.domain not in ("", "ai.onnx"):
            continue
        probe = _probe(output, node, path)
        repeated = [] if node.op_type == "ArgMax" else path
        graph.node.extend(_repeat(repeated, node.input[0], probe.name))
        graph.output.append(onnx.ValueInfoProto(name=probe.name))
        probes.append(probe)
    return tuple(probes)


def _is_transparent(node: onnx.NodeProto) -> bool:
    return node.op_type in _TRANSPARENT_OPS or node.name.endswith(RANGE)


def _is_layout(node: onnx.NodeProto) -> bool:
    return node.op_type in _LAYOUT_OPS or _is_transparent(node)


def _probe(output: str, node: onnx.NodeProto, path: Sequence[onnx.NodeProto]) -> Probe:
    """Describe the tensor ahead of `node`, which reaches the output over `path`."""
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return Probe(
        name=f"{output} (before {node.op_type})",
        output=output,
        op=node.op_type,
        axis=int(attributes.get("axis", 0)),
        keepdims=bool(attributes.get("keepdims", 1)),
        straight=all(_is_transparent(step) for step in path),
        reordered=any(step.op_type == "Transpose" for step in path),
    )


def _repeat(path: Sequence[onnx.NodeProto], start: str, end: str) -> list[onnx.NodeProto]:
    """Repeat the layout operators of `path` (output first) from tensor `start` to a tensor named `end`."""
    nodes = []
    steps = [node for node in reversed(path) if not _is_transparent(node)]
    tensor = start
    for index, node in enumerate(steps):
        clone = onnx.NodeProto()
        clone.CopyFrom(node)
        clone.name = f"{end}/{index}"
        clone.input[0], clone.output[0] = tensor, f"{end}/{index}"
        tensor = clone.output[0]
        nodes.append(clone)
    nodes.append(onnx.helper.make_node("Identity", [tensor], [end], name=f"{end}/out"))
    return nodes


def producers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """The node that computes each tensor, by the tensor's name."""
    return {name: node for node in graph.node for name in node.output if name}


def reads(node: onnx.NodeProto) -> set[str]:
    """Every tensor a node reads, those that its subgraphs capture included (and their inner names)."""
    names = set(node.input)
    for attribute in node.attribute:
        for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            for inner in graph.node:
                names |= reads(inner)
            names |= {value.name for value in graph.output}
    return names - {""}


def moving_tensors(graph: onnx.GraphProto) -> set[str]:
    """Tensors that depend on an input; the nodes stand in the order of computation, as the checker demands."""
    found = set(input_names(graph))
    for node in graph.node:
        if reads(node) & found:
            found.update(name for name in node.output if name)
    return found


def reached(
    graph: onnx.GraphProto, ends: Iterable[str], stops: Collection[str] = (), *, shapes: bool = True
) -> set[str]:
    """All tensors that `ends` depend on, not looking behind `stops`; without `shapes`, not behind a Shape node."""
    makers = producers(graph)
    seen: set[str] = set()
    todo = list(ends)
    while todo:
        tensor = todo.pop()
        if tensor in seen:
            continue
        seen.add(tensor)
        node = makers.get(tensor)
        if node is None or tensor in stops or (not shapes and node.op_type in ("Shape", "Size")):
            continue
        todo.extend(reads(node))
    return seen


def moving_outputs(model: onnx.ModelProto) -> set[str]:
    """The outputs that depend on the values (not only on the shapes) of some input."""
    inputs = set(input_names(model.graph))
    return {value.name for value in model.graph.output if reached(model.graph, [value.name], shapes=False) & inputs}


def open_dims(model: onnx.ModelProto, name: str, axes: Iterable[int]) -> None:
    """Make some dimensions of an input symbolic, in place, and forget every recorded intermediate shape."""
    for value in model.graph.input:
        if value.name == name:
            for axis in axes:
                value.type.tensor_type.shape.dim[axis].dim_param = f"open_{axis}"
    del model.graph.value_info[:]


def part(
    model: onnx.ModelProto,
    starts: Mapping[str, np.ndarray[Any, Any]],
    inputs: Collection[str],
    outputs: Sequence[str],
) -> onnx.ModelProto:
    """Cut the nodes between some tensors and some outputs out as a model of their own.

    Args:
        model: of a sketch; unchanged.
        starts: tensors that become inputs, each with an example of its value (for type and rank).
        inputs: of the model, that the part needs as well.
        outputs: tensors that become the outputs.
    """
    graph = model.graph
    needed = reached(graph, outputs, starts)
    nodes = [n for n in graph.node if any(name in needed and name not in starts for name in n.output)]
    result = onnx.ModelProto()
    result.ir_version = max(4, model.ir_version)  # from 4 on, weights need not be inputs as well
    result.opset_import.extend(model.opset_import)
    result.functions.extend(model.functions)
    result.graph.name = "part"
    result.graph.node.extend(nodes)
    result.graph.initializer.extend(t for t in graph.initializer if t.name in needed and t.name not in starts)
    result.graph.sparse_initializer.extend(t for t in graph.sparse_initializer if t.values.name in needed)
    result.graph.input.extend(value for value in graph.input if value.name in inputs and value.name not in starts)
    for name, example in starts.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(example.dtype)
        dims = [f"{name}_{axis}" for axis in range(example.ndim)]
        result.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, dims))
    known = {value.name: value for value in graph.output}
    result.graph.output.extend(onnx.ValueInfoProto(name=name) if name not in known else known[name] for name in outputs)
    for value in result.graph.output:
        if value.type.tensor_type.HasField("shape"):
            value.type.tensor_type.ClearField("shape")
    return result
