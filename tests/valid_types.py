"""Valid models whose types or shapes are unusual, unknown or stale."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper
from valid_parts import CLASSES, OUTPUTS, body, info, made, plain, tensors, weights


def _labels(outputs: list[str]) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Softmax", ["scores"], ["p"], axis=1),
        helper.make_node("ZipMap", ["p"], outputs, "zip", domain="ai.onnx.ml", classlabels_strings=list("abcde")),
    ]


def zipmap() -> onnx.ModelProto:
    """A sequence of maps from class to score, as scikit-learn's and CustomVision's exporters give."""
    kind = helper.make_sequence_type_proto(
        helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    )
    nodes = [*body(result="scores"), *_labels(["y"])]
    outputs = [helper.make_value_info("y", kind)]
    return made(nodes, tensors(weights()), outputs=outputs, domains={"ai.onnx.ml": 1})


def _sequence(shape: list[int] | None = None) -> onnx.TypeProto:
    return helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, shape))


def sequence_output() -> onnx.ModelProto:
    """A list of tensors, and a tensor beside it."""
    nodes = [
        *body(),
        helper.make_node("Softmax", ["y"], ["p"], axis=1),
        helper.make_node("SequenceConstruct", ["y", "p"], ["both"]),
    ]
    outputs = [info("y", 1, CLASSES), helper.make_value_info("both", _sequence())]
    return made(nodes, tensors(weights()), outputs=outputs)


def sequence_inside() -> onnx.ModelProto:
    """The image is split into a list and joined again: only tensors outside."""
    nodes = [
        helper.make_node("SplitToSequence", ["x"], ["parts"], axis=1),
        helper.make_node("ConcatFromSequence", ["parts"], ["image"], axis=1),
        *body("image"),
    ]
    return made(nodes, tensors(weights()))


def optional_inside() -> onnx.ModelProto:
    """An optional value between the trunk and the head, and one that holds nothing (its type is an attribute)."""
    nodes = [
        *body(result="scores"),
        helper.make_node("Optional", ["scores"], ["maybe"]),
        helper.make_node("OptionalGetElement", ["maybe"], ["y"]),
        helper.make_node("Optional", [], ["nothing"], type=helper.make_tensor_type_proto(TensorProto.FLOAT, [1])),
        helper.make_node("OptionalHasElement", ["nothing"], ["has"]),
    ]
    outputs = [info("y", 1, CLASSES), info("has", kind=TensorProto.BOOL)]
    return made(nodes, tensors(weights()), outputs=outputs, opset=18)


def optional_output() -> onnx.ModelProto:
    """An optional value as an output."""
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [1, CLASSES]))
    nodes = [*body(result="scores"), helper.make_node("Optional", ["scores"], ["y"])]
    return made(nodes, tensors(weights()), outputs=[helper.make_value_info("y", kind)], opset=18)


def no_shape() -> onnx.ModelProto:
    """An output whose type has no shape."""
    kind = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    return made(body(), tensors(weights()), outputs=[kind])


def minus_one() -> onnx.ModelProto:
    """An unknown batch, written as -1."""
    return made(body(), tensors(weights()), inputs=[info("x", -1, 3, 14, 12)], outputs=[info("y", -1, CLASSES)])


def nameless_dimension() -> onnx.ModelProto:
    """An unknown batch with an empty name."""
    return made(body(), tensors(weights()), inputs=[info("x", "", 3, 14, 12)], outputs=[info("y", "", CLASSES)])


def stale_shapes() -> onnx.ModelProto:
    """Shapes of another input size beside the nodes."""
    model = plain()
    model.graph.value_info.extend([info("a", 1, OUTPUTS, 20, 20), info("m", 1, OUTPUTS, 9, 9), info("flat", 1, 99)])
    return model


def stale_output() -> onnx.ModelProto:
    """An output that is declared with another number of classes than it has; ONNX Runtime warns, and runs."""
    return made(body(), tensors(weights()), outputs=[info("y", 1, CLASSES + 2)])


def half_inside() -> onnx.ModelProto:
    """float16 between ends of float32, with a stale type for the output."""
    values = {name: value.astype(np.float16) for name, value in weights().items()}
    nodes = [
        helper.make_node("Cast", ["x"], ["image"], to=TensorProto.FLOAT16),
        *body("image", "scores"),
        helper.make_node("Cast", ["scores"], ["y"], to=TensorProto.FLOAT),
    ]
    model = made(nodes, tensors(values))
    model.graph.value_info.append(info("y", 1, CLASSES, kind=TensorProto.FLOAT16))
    return model


def narrow_weights() -> onnx.ModelProto:
    """Kernels of bfloat16 and a head of four bits, each turned into float32 by a node."""
    values = weights()
    head = np.clip(np.round(values["f"] * 60), -8, 7)
    held = [
        helper.make_tensor("w0", TensorProto.BFLOAT16, values["w"].shape, values["w"].reshape(-1)),
        helper.make_tensor("f0", TensorProto.INT4, head.shape, head.astype(int).reshape(-1)),
        *tensors({"b": values["b"], "c": values["c"], "scale": np.array(1 / 60, np.float32)}),
    ]
    nodes = [
        helper.make_node("Cast", ["w0"], ["w"], to=TensorProto.FLOAT),
        helper.make_node("DequantizeLinear", ["f0", "scale"], ["f"]),
        *body(),
    ]
    return made(nodes, held, opset=21, ir=10)


def float8_weights() -> onnx.ModelProto:
    """Kernels of float8."""
    values = weights()
    stored = helper.make_tensor("w0", TensorProto.FLOAT8E4M3FN, values["w"].shape, values["w"].reshape(-1))
    nodes = [helper.make_node("Cast", ["w0"], ["w"], to=TensorProto.FLOAT), *body()]
    return made(nodes, [stored, *tensors({name: values[name] for name in "bfc"})], opset=19)
