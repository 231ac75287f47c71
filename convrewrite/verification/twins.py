"""Two models of one function in different precisions: a float32 model and its float16 twin.

    inputs     drawn once, as the narrower of the two types, and cast for each: both see the same numbers
    outputs    compared in the wider type, at the tolerance of the coarser one that is computed with on either side
    rounding   the original shaken as if it computed in the coarser type

A model with float32 ends that computes in float16 counts as float16. Integers of two widths are drawn in the narrower.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto

from convrewrite.errors import UsageError
from convrewrite.running.runtime import TensorInfo

EPS = {
    "float64": float(np.finfo(np.float64).eps),
    "float32": float(np.finfo(np.float32).eps),
    "float16": float(np.finfo(np.float16).eps),
    "bfloat16": 2.0**-7,
}
"""The distance from 1 to the next number."""

_NAMES: dict[int, str] = {
    TensorProto.DOUBLE: "float64",
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
}


@dataclass(frozen=True)
class Across:
    """The precisions of the original and of the rewritten model."""

    original: str
    rewritten: str

    @property
    def eps(self) -> float:
        """The machine epsilon of the coarser type."""
        return max(EPS[self.original], EPS[self.rewritten])

    def __str__(self) -> str:
        if self.original == self.rewritten:
            return f"both models compute in {self.original}, with other types at their ends: inputs were cast for each"
        coarse = max((self.original, self.rewritten), key=EPS.__getitem__)
        return (
            f"the original computes in {self.original}, the other model in {self.rewritten}: the same inputs were cast "
            f"for each, and the tolerance is that of {coarse}"
        )


def across(a: onnx.ModelProto, b: onnx.ModelProto) -> Across | None:
    """How two models differ in precision, inside or at their ends; None where they do not."""
    found = Across(computed_in(a), computed_in(b))
    return None if found.original == found.rewritten and _ends(a.graph) == _ends(b.graph) else found


def _ends(graph: onnx.GraphProto) -> dict[str, int]:
    return {value.name: value.type.tensor_type.elem_type for value in [*graph.input, *graph.output]}


def computed_in(model: onnx.ModelProto) -> str:
    """The coarsest floating-point type of a model's weights, ends and casts; float32 where it has none."""
    graph = model.graph
    kinds = {value.type.tensor_type.elem_type for value in [*graph.input, *graph.output]}
    kinds |= {tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to":
                kinds.add(attribute.i)
            elif node.op_type == "Constant" and attribute.name == "value" and attribute.t.dims:
                kinds.add(attribute.t.data_type)
    names = [_NAMES[kind] for kind in kinds if kind in _NAMES]
    return max(names, key=EPS.__getitem__, default="float32")


def narrower(a: TensorInfo, b: TensorInfo) -> np.dtype[np.generic]:
    """The type that inputs of one name are drawn in. Raises UsageError where no number is the same in both."""
    if a.kind == b.kind:
        return a.dtype
    pair = sorted((a.dtype, b.dtype), key=lambda dtype: dtype.itemsize)
    alike = pair[0].kind == pair[1].kind == "f" or (pair[0].kind in "iu" and pair[1].kind in "iu")
    if alike and np.can_cast(pair[0], pair[1]):
        return pair[0]
    raise UsageError(
        f"input '{a.name}' is {a.kind} in one model and {b.kind} in the other",
        remedy="models of other precision are compared where both inputs are floats that ONNX Runtime takes from numpy "
        "(float16, float32, float64), or integers of which one type holds the other; give one of them a Cast",
    )
