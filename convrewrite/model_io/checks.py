"""What makes a file that parses no usable model: the ONNX checker on its skeleton, and what that lets pass."""

from __future__ import annotations

import onnx
from onnx import GraphProto, ModelProto

from convrewrite.engine.skeletons import tolerant
from convrewrite.errors import UsageError
from convrewrite.model_io.attributes import impossible_attribute
from convrewrite.model_io.protofile import marked
from convrewrite.model_io.protograph import tensors

DEFAULT_DOMAIN = ("", "ai.onnx")


def dangling_input(graph: GraphProto) -> str:
    """Which node of the main graph reads a tensor that nothing computes; empty where none does."""
    made = {info.name for info in (*graph.input, *graph.initializer)} | {""}
    made |= {tensor.values.name for tensor in graph.sparse_initializer}
    made |= {name for node in graph.node for name in node.output}
    for node in graph.node:
        for name in node.input:
            if name not in made:
                label = node.name or next(iter(node.output), "")
                return f"{node.op_type} '{label}' reads '{name}', which no node computes"
    return ""


def refuse_unusable(proto: ModelProto, label: str) -> None:
    """Refuse models that the ONNX checker accepts and this program cannot use."""
    versions = [opset.version for opset in proto.opset_import if opset.domain in DEFAULT_DOMAIN]
    newest = onnx.defs.onnx_opset_version()
    if not versions:
        raise UsageError(f"{label}: declares no opset of the default domain; 7 to {newest} are supported")
    if max(versions) > newest:
        raise UsageError(
            f"{label}: opset {max(versions)} is newer than the installed onnx package; 7 to {newest} are supported"
        )
    if not proto.graph.output:
        raise UsageError(f"{label}: the graph has no outputs")
    fault = impossible_attribute(proto.graph)
    if fault:
        raise UsageError(f"{label}: not a valid ONNX model: {fault}")
    initializers = {tensor.name for tensor in proto.graph.initializer}
    for place, info in enumerate(proto.graph.input):
        kind = info.type.tensor_type
        if info.name in initializers:
            continue
        for axis, dim in enumerate(kind.shape.dim):
            if dim.HasField("dim_value") and dim.dim_value == 0:
                raise UsageError(
                    f"{label}: input '{info.name}' has a dimension of size 0",
                    remedy="where it stands for any number, give it a name: "
                    f"model.graph.input[{place}].type.tensor_type.shape.dim[{axis}].dim_param = 'N'",
                )
        if info.type.HasField("tensor_type") and not kind.HasField("shape"):
            raise UsageError(
                f"{label}: input '{info.name}' has no shape, not even a number of axes",
                remedy=f"write one into the file, such as: model.graph.input[{place}].CopyFrom(onnx.helper."
                f"make_tensor_value_info('{info.name}', {kind.elem_type}, ['N', 3, 'H', 'W']))",
            )


def drop_meaningless(graph: GraphProto) -> None:
    """Clear fields that mean nothing where they stand, as ONNX Runtime does, and that others stumble over.

    Segments of a tensor are not implemented anywhere; outside of a function an attribute has nothing to refer to.
    """
    for tensor in tensors(graph):
        tensor.ClearField("segment")
    for node in graph.node:
        for attribute in node.attribute:
            attribute.ClearField("ref_attr_name")
            if attribute.HasField("g"):
                drop_meaningless(attribute.g)


def run_checker(proto: ModelProto) -> None:
    """The ONNX checker on the skeleton: there, large tensors are empty, which it accepts for any type.

    Tolerated, because real files have it: an empty graph name, outputs without a shape, and below IR version 4
    initializers that are not listed as inputs (a save lists them).
    """
    copy = tolerant(proto)
    if copy.ir_version < 4:
        listed = {info.name for info in copy.graph.input}
        for tensor in copy.graph.initializer:
            if tensor.name not in listed:
                added = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
                copy.graph.input.append(added)
    for tensor in tensors(copy.graph):
        if marked(tensor.raw_data) is not None:
            tensor.ClearField("raw_data")
            tensor.dims[:] = [0]
    onnx.checker.check_model(copy)
