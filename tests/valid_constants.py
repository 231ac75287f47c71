"""Valid models whose weights are stored in the ways that files have for them."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from valid_parts import CLASSES, Array, body, info, made, tensors, weights


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
