"""Models that the ONNX checker and ONNX Runtime accept, each with something that real files have and few tools expect.

All are one classifier [1, 3, 14, 12] -> [1, 5]: a convolution whose kernels are outer products (`separable` replaces it
without an error), Relu, MaxPool, and a fully connected head. What differs is how the file says it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]

OUTPUTS, HIDDEN, CLASSES = 64, 64 * 4 * 3, 5


def weights(dtype: Any = np.float32) -> dict[str, Array]:
    """Kernels `w` [64, 3, 3, 3] of outer products, head `f` [5, 768]: both beyond 1,024 entries."""
    numbers = np.random.default_rng(0)
    column, row = numbers.standard_normal((2, OUTPUTS, 3, 3))
    kernels = np.einsum(
        "oci,ocj->ocij", column[:, :1] * numbers.standard_normal((OUTPUTS, 3, 1)), row[:, :1].repeat(3, 1)
    )
    return {
        "w": (kernels / 4).astype(dtype),
        "b": numbers.standard_normal(OUTPUTS).astype(dtype),
        "f": (numbers.standard_normal((CLASSES, HIDDEN)) / 30).astype(dtype),
        "c": numbers.standard_normal(CLASSES).astype(dtype),
    }


def body(image: str = "x", result: str = "y", **names: str) -> list[onnx.NodeProto]:
    """The nodes of the classifier; `names` of its weights, where they are others."""
    w, b, f, c = (names.get(name, name) for name in "wbfc")
    return [
        helper.make_node("Conv", [image, w, b], ["a"], "conv"),
        helper.make_node("Relu", ["a"], ["r"], "relu"),
        helper.make_node("MaxPool", ["r"], ["m"], "pool", kernel_shape=[3, 3], strides=[3, 3]),
        helper.make_node("Flatten", ["m"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", f, c], [result], "head", transB=1),
    ]


def info(name: str, *shape: int | str | None, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    """A declared tensor."""
    return helper.make_tensor_value_info(name, kind, list(shape))


def tensors(values: dict[str, Array]) -> list[onnx.TensorProto]:
    """Initializers."""
    return [numpy_helper.from_array(value, name) for name, value in values.items()]


def made(
    nodes: list[onnx.NodeProto],
    initializers: list[onnx.TensorProto],
    *,
    inputs: list[onnx.ValueInfoProto] | None = None,
    outputs: list[onnx.ValueInfoProto] | None = None,
    opset: int = 17,
    ir: int = 9,
    domains: dict[str, int] | None = None,
    functions: list[onnx.FunctionProto] | None = None,
) -> onnx.ModelProto:
    """A model around these nodes."""
    graph = helper.make_graph(
        nodes, "net", inputs or [info("x", 1, 3, 14, 12)], outputs or [info("y", 1, CLASSES)], initializers
    )
    opsets = [helper.make_opsetid(name, version) for name, version in {"": opset, **(domains or {})}.items()]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir, functions=functions or [])


def plain() -> onnx.ModelProto:
    """Nothing special."""
    return made(body(), tensors(weights()))


# Constants -----------------------------------------------------------------------------------------------------------


def constant_nodes() -> onnx.ModelProto:
    """Every weight in the field `value` of a Constant node, as Paddle and silero export them."""
    held = [
        helper.make_node("Constant", [], [name], name, value=numpy_helper.from_array(value, name))
        for name, value in weights().items()
    ]
    return made([*held, *body()], [])


def constant_forms() -> onnx.ModelProto:
    """Weights as `value_floats`, shapes as `value_ints`, numbers as `value_float` and `value_int`, and strings."""
    values = weights()
    nodes = [
        helper.make_node("Constant", [], ["w1"], value_floats=values["w"].reshape(-1).tolist()),
        helper.make_node("Constant", [], ["ws"], value_ints=list(values["w"].shape)),
        helper.make_node("Reshape", ["w1", "ws"], ["w"]),
        helper.make_node("Constant", [], ["b"], value_floats=values["b"].tolist()),
        helper.make_node("Constant", [], ["half"], value_float=0.5),
        helper.make_node("Constant", [], ["one"], value_int=1),
        helper.make_node("Constant", [], ["names"], value_strings=["a", "b"]),
        helper.make_node("Constant", [], ["version"], value_string="3"),
        *body(result="scores"),
        helper.make_node("Mul", ["scores", "half"], ["y"]),
        helper.make_node("Identity", ["names"], ["labels"]),
        helper.make_node("Identity", ["version"], ["made_by"]),
        helper.make_node("Cast", ["one"], ["count"], to=TensorProto.FLOAT),
    ]
    outputs = [
        info("y", 1, CLASSES),
        info("labels", 2, kind=TensorProto.STRING),
        info("made_by", kind=TensorProto.STRING),
        info("count"),
    ]
    return made(nodes, tensors({"f": values["f"], "c": values["c"]}), outputs=outputs)


def _sparse(name: str, value: Array) -> onnx.SparseTensorProto:
    places = np.flatnonzero(value).astype(np.int64)
    values = numpy_helper.from_array(value.reshape(-1)[places], name)
    return helper.make_sparse_tensor(values, numpy_helper.from_array(places, f"{name}_places"), list(value.shape))


def sparse_constants() -> onnx.ModelProto:
    """The kernels as `sparse_value` of a Constant node, the head as a sparse initializer."""
    values = weights()
    values["w"][::2] = 0
    values["f"][:, ::3] = 0
    held = helper.make_node("Constant", [], ["w"], sparse_value=_sparse("w", values["w"]))
    model = made([held, *body()], tensors({"b": values["b"], "c": values["c"]}))
    model.graph.sparse_initializer.append(_sparse("f", values["f"]))
    return model


def defaults_as_inputs() -> onnx.ModelProto:
    """Initializers that are inputs as well, from IR version 4 on: values that a caller may replace."""
    model = made(body(), tensors(weights()))
    model.graph.input.extend(info(t.name, *t.dims) for t in model.graph.initializer)
    return model


# Types and shapes ----------------------------------------------------------------------------------------------------


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


# Functions and subgraphs ---------------------------------------------------------------------------------------------


def functions() -> onnx.ModelProto:
    """Layers as local functions, one inside another, one with an attribute that has a default, one of another opset."""
    opset, own = helper.make_opsetid("", 17), helper.make_opsetid("own", 1)
    later = helper.make_opsetid("", 18)
    leaky = helper.make_node("LeakyRelu", ["p"], ["q"])
    leaky.attribute.add(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    act = helper.make_function("own", "Act", ["p"], ["q"], [leaky], [later], [], [helper.make_attribute("slope", 0.25)])
    block_nodes = [
        helper.make_node("Conv", ["p", "k", "s"], ["t"]),
        helper.make_node("Act", ["t"], ["q"], domain="own"),
    ]
    block = helper.make_function("own", "Block", ["p", "k", "s"], ["q"], block_nodes, [opset, own])
    nodes = [helper.make_node("Block", ["x", "w", "b"], ["a"], domain="own"), *body()[2:]]
    nodes[1].input[0] = "a"
    nodes.append(helper.make_node("Act", ["y"], ["z"], domain="own", slope=0.5))
    outputs = [info("y", 1, CLASSES), info("z", 1, CLASSES)]
    return made(nodes, tensors(weights()), outputs=outputs, domains={"own": 1}, functions=[block, act])


def _choice(
    condition: str,
    result: str,
    then: list[onnx.NodeProto],
    other: list[onnx.NodeProto],
    held: list[onnx.TensorProto] | None = None,
) -> onnx.NodeProto:
    """An If; `held` are initializers of its other branch."""
    branches = [
        helper.make_graph(nodes, "branch", [], [onnx.ValueInfoProto(name=nodes[-1].output[0])], own)
        for nodes, own in ((then, []), (other, held or []))
    ]
    return helper.make_node("If", [condition], [result], then_branch=branches[0], else_branch=branches[1])


def function_in_a_branch() -> onnx.ModelProto:
    """A local function that is called inside of an If."""
    act = helper.make_function(
        "own", "Act", ["p"], ["q"], [helper.make_node("Relu", ["p"], ["q"])], [helper.make_opsetid("", 17)]
    )
    nodes = [
        *body(result="scores"),
        helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0),
        helper.make_node("Greater", ["top", "limit"], ["bright"]),
        _choice(
            "bright",
            "y",
            [helper.make_node("Act", ["scores"], ["o1"], domain="own")],
            [helper.make_node("Neg", ["scores"], ["o2"])],
        ),
    ]
    values = weights() | {"limit": np.array(0.5, np.float32)}
    return made(nodes, tensors(values), domains={"own": 1}, functions=[act])


def branches_with_weights() -> onnx.ModelProto:
    """An If by value: one branch reads a large outer weight, the other has one of its own."""
    values = weights()
    own = numpy_helper.from_array(values["f"][::-1].copy(), "mine")
    nodes = [
        *body()[:-1],
        helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0),
        helper.make_node("Greater", ["top", "limit"], ["bright"]),
        _choice(
            "bright",
            "y",
            [helper.make_node("Gemm", ["flat", "f", "c"], ["o1"], transB=1)],
            [helper.make_node("Gemm", ["flat", "mine", "c"], ["o2"], transB=1)],
            [own],
        ),
    ]
    return made(nodes, tensors(values | {"limit": np.array(0.5, np.float32)}))


def loop_with_weights() -> onnx.ModelProto:
    """A Loop whose body adds a large outer weight three times."""
    step = helper.make_graph(
        [
            helper.make_node("Add", ["carried", "plane"], ["next"]),
            helper.make_node("Identity", ["go"], ["going"]),
        ],
        "step",
        [info("i", kind=TensorProto.INT64), info("go", kind=TensorProto.BOOL), info("carried", 1, OUTPUTS, 12, 10)],
        [info("going", kind=TensorProto.BOOL), info("next", 1, OUTPUTS, 12, 10)],
    )
    nodes = body()
    nodes.insert(2, helper.make_node("Loop", ["three", "yes", "r"], ["looped"], body=step))
    nodes[3].input[0] = "looped"
    more = {
        "plane": np.random.default_rng(1)
        .standard_normal((1, OUTPUTS, 1, 1))
        .repeat(120, 3)
        .reshape(1, OUTPUTS, 12, 10),
        "three": np.array(3, np.int64),
        "yes": np.array(True),
    }
    more["plane"] = more["plane"].astype(np.float32)
    return made(nodes, tensors(weights() | more))


def squeeze_by_shape() -> onnx.ModelProto:
    """PyTorch's `squeeze`: an If on whether an axis has one entry, around a Squeeze, once for each of two axes."""
    values = weights()
    values["f"] = values["f"][:, :OUTPUTS].copy() * 10
    nodes = [*body()[:2], helper.make_node("GlobalAveragePool", ["r"], ["pooled3"])]
    for axis in (3, 2):
        source, result = f"pooled{axis}", f"pooled{axis - 1}"
        nodes += [
            helper.make_node("Shape", [source], [f"shape{axis}"]),
            helper.make_node("Gather", [f"shape{axis}", f"place{axis}"], [f"extent{axis}"]),
            helper.make_node("Equal", [f"extent{axis}", "one"], [f"is_one{axis}"]),
            _choice(
                f"is_one{axis}",
                result,
                [helper.make_node("Squeeze", [source, f"axis{axis}"], ["o1"])],
                [helper.make_node("Identity", [source], ["o1"])],
            ),
        ]
    nodes.append(helper.make_node("Gemm", ["pooled1", "f", "c"], ["y"], transB=1))
    for axis in (3, 2):
        values |= {f"place{axis}": np.array(axis, np.int64), f"axis{axis}": np.array([axis], np.int64)}
    return made(nodes, tensors(values | {"one": np.array(1, np.int64)}))


# Beside the graph ----------------------------------------------------------------------------------------------------


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
