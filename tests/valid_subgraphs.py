"""Valid models with local functions, branches and loops."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from valid_parts import CLASSES, OUTPUTS, body, choice, info, made, tensors, weights


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


def function_in_a_branch() -> onnx.ModelProto:
    """A local function that is called inside of an If."""
    act = helper.make_function(
        "own", "Act", ["p"], ["q"], [helper.make_node("Relu", ["p"], ["q"])], [helper.make_opsetid("", 17)]
    )
    nodes = [
        *body(result="scores"),
        helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0),
        helper.make_node("Greater", ["top", "limit"], ["bright"]),
        choice(
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
        choice(
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
            choice(
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
