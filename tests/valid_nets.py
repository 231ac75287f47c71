"""Models that the ONNX checker and ONNX Runtime accept, each with something that real files have and few tools expect.

All are the classifier of `valid_parts`. What differs is how the file says it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper, numpy_helper
from valid_constants import constant_forms, constant_nodes, defaults_as_inputs, sparse_constants
from valid_parts import CLASSES, body, info, made, plain, tensors, weights
from valid_subgraphs import branches_with_weights, function_in_a_branch, functions, loop_with_weights, squeeze_by_shape
from valid_types import (
    float8_weights,
    half_inside,
    minus_one,
    nameless_dimension,
    narrow_weights,
    no_shape,
    optional_inside,
    optional_output,
    sequence_inside,
    sequence_output,
    stale_output,
    stale_shapes,
    zipmap,
)


def microsoft_operator() -> onnx.ModelProto:
    """An operator of ONNX Runtime's own, a domain that nothing uses, and nodes without names."""
    nodes = [*body(result="scores"), helper.make_node("Gelu", ["scores"], ["y"], domain="com.microsoft")]
    return made(nodes, tensors(weights()), domains={"com.microsoft": 1, "org.example.unused": 3})


def annotated() -> onnx.ModelProto:
    """Metadata on the model, the graph and nodes, doc strings, a quantization annotation, a trace of training."""
    model = made(body(), tensors(weights()), opset=21, ir=10)
    model.metadata_props.add(key="author", value="someone")
    model.graph.metadata_props.add(key="stage", value="3")
    model.graph.node[1].metadata_props.add(key="layer", value="act")
    model.graph.node[1].doc_string = "the activation"
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.1, np.float32), "step"))
    note = model.graph.quantization_annotation.add(tensor_name="r")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="step")
    return model


def trained() -> onnx.ModelProto:
    """With the description of a training step."""
    model = plain()
    training = model.training_info.add()
    training.initialization.CopyFrom(helper.make_graph([], "start", [], []))
    training.algorithm.CopyFrom(helper.make_graph([], "step", [], []))
    return model


def left_out_outputs() -> onnx.ModelProto:
    """Optional outputs that are not there: a Dropout's mask, the second of a MaxPool, and an empty name behind one."""
    nodes = body()
    nodes[2].output.append("")
    nodes.insert(4, helper.make_node("Dropout", ["flat"], ["kept", ""]))
    nodes[5].input[0] = "kept"
    return made(nodes, tensors(weights()))


def handed_through() -> onnx.ModelProto:
    """The image and a weight are outputs too."""
    outputs = [info("y", 1, CLASSES), info("x", 1, 3, 14, 12), info("c", CLASSES)]
    return made(body(), tensors(weights()), outputs=outputs)


ALL: dict[str, Callable[[], onnx.ModelProto]] = {
    build.__name__: build
    for build in (
        plain,
        constant_nodes,
        constant_forms,
        sparse_constants,
        defaults_as_inputs,
        zipmap,
        sequence_output,
        sequence_inside,
        optional_inside,
        optional_output,
        no_shape,
        minus_one,
        nameless_dimension,
        stale_shapes,
        stale_output,
        half_inside,
        narrow_weights,
        float8_weights,
        functions,
        function_in_a_branch,
        branches_with_weights,
        loop_with_weights,
        squeeze_by_shape,
        microsoft_operator,
        annotated,
        trained,
        left_out_outputs,
        handed_through,
    )
}
