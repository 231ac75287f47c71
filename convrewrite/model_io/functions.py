"""Model-local functions become the nodes that they stand for: passes, costs and reasons speak of operators.

    a = my.Block(x, w)                           a_conv = Conv(x, w)
    Block(p, q) { Relu(Conv(p, q)) }     ==>     a = Relu(a_conv)

The inlining is onnx's own, after what it does not do by itself: default values of attributes are written into the
calls, and a function that was written for another version of the operator set takes the model's where its operators
did not change between the two. A function that cannot be inlined stays one; to a pass it is a custom operator.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx
import onnx.inliner
from onnx import FunctionProto, ModelProto, NodeProto

DEFAULT_DOMAIN = ("", "ai.onnx")


def inlined(model: ModelProto) -> ModelProto:
    """The model without local functions, as far as they can be inlined; itself where it has none."""
    if not model.functions:
        return model
    copy = ModelProto()
    copy.CopyFrom(model)
    functions = {(f.domain, f.name, f.overload): f for f in copy.functions}
    for nodes in (copy.graph.node, *(function.node for function in copy.functions)):
        for node in _all_nodes(nodes):
            function = functions.get((node.domain, node.op_type, node.overload))
            if function is not None:
                _write_defaults(node, function)
    for function in copy.functions:
        _take_opset(function, copy)
    try:
        return onnx.inliner.inline_local_functions(copy)
    except Exception:  # the inliner raises what its C++ throws
        return model


def _all_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in [attribute.g, *attribute.graphs] if attribute.HasField("g") else attribute.graphs:
                yield from _all_nodes(graph.node)


def _write_defaults(node: NodeProto, function: FunctionProto) -> None:
    given = {attribute.name for attribute in node.attribute}
    node.attribute.extend(default for default in function.attribute_proto if default.name not in given)


def _take_opset(function: FunctionProto, model: ModelProto) -> None:
    """Declare the function for the model's version of the operator set, where its operators mean the same there."""
    wanted = next((entry.version for entry in model.opset_import if entry.domain in DEFAULT_DOMAIN), None)
    for entry in function.opset_import:
        if entry.domain in DEFAULT_DOMAIN and wanted is not None and entry.version != wanted:
            ops = {node.op_type for node in _all_nodes(function.node) if node.domain in DEFAULT_DOMAIN}
            if all(_since(op, entry.version) == _since(op, wanted) is not None for op in ops):
                entry.version = wanted


def _since(op: str, version: int) -> int | None:
    """The version of the operator set that an operator's meaning is from; None where it is not there."""
    try:
        return int(onnx.defs.get_schema(op, version, "").since_version)
    except onnx.defs.SchemaError:
        return None
