"""How coarsely a model computes on the way to each of its values, whatever the type of its ends.

    x float32 ── Cast float16 ── Conv ── Gemm ── Cast float32 ── y      y is float32, and as exact as float16

A model that was converted to half precision with its ends kept looks like one of float32 from outside. An equal sum in
another order still differs by units in the last place of float16.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import TensorProto

NARROW: dict[int, float] = {
    TensorProto.FLOAT16: 2.0**-10,
    TensorProto.BFLOAT16: 2.0**-7,
}
"""The unit in the last place of 1, by type."""

EXACT = frozenset({"Cast", "CastLike", "DequantizeLinear"})
"""Operators that give another type than their constants have."""


def roundings(model: onnx.ModelProto) -> dict[str, float]:
    """The coarsest unit in the last place that a value was rounded to on its way, by name; none for float32 throughout.

    Values that only constants lead to do not count: a weight that is stored in half precision is what it is.
    """
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    constant = set(types)
    units = {i.name: NARROW.get(i.type.tensor_type.elem_type, 0.0) for i in model.graph.input if i.name not in constant}
    for node in model.graph.node:
        names = [name for name in node.input if name]
        if all(name in constant for name in names):
            constant.update(node.output)
            types.update(dict.fromkeys(node.output, _given_type(node, (types.get(name, 0) for name in names))))
            continue
        unit = max(units.get(name, 0.0) for name in names)
        if node.op_type == "Cast":
            unit = max(unit, NARROW.get(_given_type(node, ()), 0.0))
        elif node.op_type not in EXACT:
            unit = max([unit, *(NARROW.get(types.get(name, 0), 0.0) for name in names)])
        units.update(dict.fromkeys(node.output, unit))
    return {name: unit for name, unit in units.items() if unit}


def _given_type(node: onnx.NodeProto, types: Iterable[int]) -> int:
    """The type of what a node gives, if it is told by an attribute or is that of the first input."""
    for attribute in node.attribute:
        if attribute.name == "to" and node.op_type == "Cast":
            return int(attribute.i)
        if attribute.name == "value" and node.op_type == "Constant":
            return int(attribute.t.data_type)
    return next(iter(types), 0)
