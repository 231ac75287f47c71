"""A quantized model without its quantization: the float surrogate, which has to agree as tightly as any float model.

    x -> QuantizeLinear -> q -> MaxPool -> DequantizeLinear -> y      Q: 8 bits, scale s, zero point z
    x -> Max(low) -> Min(high)  -> MaxPool -> Identity ---> y         low, high: the range of Q, (-z..255 - z) * s

One pair does not loosen the whole model then: only the steps are gone, and the range stays (a Relu may be hidden in
it). What rounding to steps does to the outputs is measured where the steps are: `dithered` moves what every
QuantizeLinear is given by up to half a step. Constants that are stored as integers stay what they are.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from convrewrite.engine.operators import MOVING
from convrewrite.verification import exposure

Array = np.ndarray[Any, Any]

_PASSES = MOVING | {"Dropout", "MaxPool"}
"""Operators that do the same to the integers as to the numbers that these stand for."""


class NoSurrogate(Exception):
    """The quantization cannot be taken out; the message names the operator."""


def remove_rounding(model: onnx.ModelProto) -> None:
    """Take the steps out of a model, in place. Raises NoSurrogate; the model is then of no use."""
    graph = model.graph
    moving = exposure.moving_tensors(graph)
    constants = _constants(graph)
    stands: set[str] = set()  # tensors of integers that hold floats from here on
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] in moving:
            nodes += _limited(node, constants)
            stands.add(node.output[0])
        elif node.op_type == "DequantizeLinear" and node.input[0] in stands:
            nodes.append(helper.make_node("Identity", [node.input[0]], list(node.output), name=node.name))
        elif stands & exposure.reads(node):
            first = node.op_type in _PASSES and node.input[0] in stands
            if not first or (node.op_type == "Concat" and not set(node.input) <= stands):
                raise NoSurrogate(f"{node.op_type} '{node.name or node.output[0]}' computes with integers")
            stands.update(node.output)
            nodes.append(node)
        else:
            nodes.append(node)
    for node in nodes:
        if node.op_type == "DynamicQuantizeLinear":
            raise NoSurrogate(f"{node.op_type} '{node.name or node.output[0]}' finds its steps while it runs")
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    del graph.value_info[:]
    for value in graph.output:
        if value.name in stands:
            value.type.tensor_type.elem_type = TensorProto.FLOAT


def parameters(model: onnx.ModelProto) -> Counter[tuple[bytes, ...]]:
    """Scale and zero point of every QuantizeLinear of an activation."""
    moving, constants = exposure.moving_tensors(model.graph), _constants(model.graph)
    found: Counter[tuple[bytes, ...]] = Counter()
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] in moving:
            parts = [constants.get(name) for name in node.input[1:] if name]
            found[tuple(b"" if part is None else part.dtype.char.encode() + part.tobytes() for part in parts)] += 1
    return found


def dithered(model: onnx.ModelProto) -> None:
    """Move what every rounding of activations is given by up to half a step, at random, in place."""
    graph = model.graph
    moving, constants = exposure.moving_tensors(graph), _constants(graph)
    seeds = itertools.count(1)
    nodes: list[onnx.NodeProto] = []
    for original in graph.node:
        node = onnx.NodeProto()
        node.CopyFrom(original)
        if node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear") and node.input[0] in moving:
            nodes += _dither(node, constants, next(seeds))
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _dither(node: onnx.NodeProto, constants: dict[str, Array], seed: int) -> Iterator[onnx.NodeProto]:
    """The nodes ahead of a rounding, whose operand becomes theirs."""
    x, name = node.input[0], f"{node.output[0]}/dither"
    dynamic = node.op_type == "DynamicQuantizeLinear"
    step = constants.get(node.input[1]) if not dynamic else None
    if step is None and not dynamic:
        return
    if dynamic:  # 255 steps between the least and the largest number
        yield helper.make_node("ReduceMax", [x], [f"{name}/high"], keepdims=0)
        yield helper.make_node("ReduceMin", [x], [f"{name}/low"], keepdims=0)
        yield helper.make_node("Sub", [f"{name}/high", f"{name}/low"], [f"{name}/range"])
    low = -0.5 / 255 if step is None else -0.5 * float(step.min())
    draw: dict[str, Any] = {"low": low, "high": -low, "seed": float(seed), "dtype": TensorProto.FLOAT}
    yield helper.make_node("RandomUniformLike", [x], [f"{name}/draw"], **draw)
    away = f"{name}/draw"
    if dynamic:
        yield helper.make_node("Mul", [away, f"{name}/range"], [f"{name}/scaled"])
        away = f"{name}/scaled"
    if step is not None and step.dtype != np.float32:
        yield helper.make_node("Cast", [away], [f"{name}/cast"], to=helper.np_dtype_to_tensor_dtype(step.dtype))
        away = f"{name}/cast"
    yield helper.make_node("Add", [x, away], [name])
    node.input[0] = name


def _limited(node: onnx.NodeProto, constants: dict[str, Array]) -> list[onnx.NodeProto]:
    """A QuantizeLinear without its steps: the range of its integers is left."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    scale = constants.get(node.input[1])
    zero = constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros((), np.uint8)
    if scale is None or zero is None or attributes.get("block_size") or zero.dtype.kind not in "iu":
        raise NoSurrogate(f"QuantizeLinear '{node.name or node.output[0]}' has steps that the file does not say")
    bounds = np.iinfo(zero.dtype)
    ends = [(end - zero.astype(np.float64)) * scale.astype(np.float64) for end in (bounds.min, bounds.max)]
    if scale.size > 1:  # a step per channel: the widest of their ranges
        ends = [np.asarray(ends[0].min()), np.asarray(ends[1].max())]
    name = f"{node.output[0]}/range"
    tensors = [numpy_helper.from_array(end.reshape(()).astype(scale.dtype)) for end in ends]
    made = [helper.make_node("Constant", [], [f"{name}/{i}"], value=tensor) for i, tensor in enumerate(tensors)]
    made.append(helper.make_node("Max", [node.input[0], f"{name}/0"], [name], name=f"{name}/low{exposure.RANGE}"))
    made.append(helper.make_node("Min", [name, f"{name}/1"], [node.output[0]], name=f"{name}/high{exposure.RANGE}"))
    return made


def _constants(graph: onnx.GraphProto) -> dict[str, Array]:
    """Small constants by name; large ones may be marks here (see `Sketch`)."""
    tensors = {t.name: t for t in graph.initializer}
    for node in graph.node:
        values = [a.t for a in node.attribute if a.name == "value"] if node.op_type == "Constant" else []
        tensors.update(zip(node.output, values, strict=False))
    wanted = {name for node in graph.node if node.op_type == "QuantizeLinear" for name in node.input[1:]}
    found = {}
    for name in wanted & tensors.keys():
        with contextlib.suppress(ValueError):  # a mark
            found[name] = numpy_helper.to_array(tensors[name])
    return found
