"""Constants that are stored quantized stay so: a rewrite moves their integers, and the scales keep their axis.

    q [K, F] int8 ── DequantizeLinear(axis=0) ── W [K, F]     ->     q [K, C, h, w] ── DequantizeLinear(axis=0) ── W'

What a rearrangement does to the integers it does to the scales, spread to their shape. Where the result still changes
along one axis only, it is that of the new DequantizeLinear; elsewhere the constant has to be folded to floats.
Source: https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite.engine.graph import Constants, producer

Array = np.ndarray[Any, Any]
Arrange = Callable[[Array], Array]
"""Changes the axes of values and their order, and nothing else."""


@dataclass(frozen=True)
class Stored:
    """A constant as a DequantizeLinear reads it, (values - zero) * scale.

    Attributes:
        values: integers. scale: one number [], or one for each entry of `axis`. zero: of the values' type, shaped as
        the scale; None where it is 0. attrs: of the node, but for the axis.
    """

    values: Array
    scale: Array
    zero: Array | None
    axis: int | None
    attrs: dict[str, Any]

    @classmethod
    def read(cls, tensor: gs.Tensor, constants: Constants) -> Stored | None:
        """What a constant is stored as, also behind a Transpose; None where that is not integers of whole bytes."""
        node = producer(tensor)
        if isinstance(tensor, gs.Constant) or node is None:
            return None
        if node.op == "Identity":
            return cls.read(node.inputs[0], constants)
        if node.op == "Transpose":
            inner = cls.read(node.inputs[0], constants)
            return inner and inner.arranged(lambda values: values.transpose(node.attrs.get("perm")))
        if node.op != "DequantizeLinear" or node.domain or node.attrs.get("block_size"):
            return None
        values, scale, zero = (constants.value(t) for t in (*node.inputs, None)[:3])
        if values is None or scale is None or values.dtype.kind not in "iu":
            return None
        if zero is None and len(node.inputs) > 2 and node.inputs[2].name:
            return None
        attrs = {name: value for name, value in node.attrs.items() if name not in ("axis", "block_size")}
        if scale.size == 1:
            return cls(values, scale.reshape(()), None if zero is None else zero.reshape(()), axis=None, attrs=attrs)
        return cls(values, scale, zero, axis=int(node.attrs.get("axis", 1)) % values.ndim, attrs=attrs)

    def arranged(self, arrange: Arrange) -> Stored | None:
        """The constant with its values rearranged; None where the scales would then run along several axes."""
        values = arrange(self.values)
        if self.axis is None:
            return replace(self, values=values)
        parts = [self.scale] if self.zero is None else [self.scale, self.zero]
        lines = [_along_one(arrange(self._spread(part))) for part in parts]
        places = {line[0] for line in lines if line is not None and line[1].size > 1}
        if any(line is None for line in lines) or len(places) > 1:
            return None
        axis = places.pop() if places else None
        shape = () if axis is None else (values.shape[axis],)
        scale, *zero = (
            np.broadcast_to(line[1].reshape(shape if line[1].size > 1 else ()), shape) for line in lines if line
        )
        return replace(self, values=values, scale=scale, zero=zero[0] if zero else None, axis=axis)

    def times(self, factor: float) -> Stored:
        """Multiplied by a number, which goes into the scale."""
        return self if factor == 1.0 else replace(self, scale=self.scale * self.scale.dtype.type(factor))

    def node(self, result: gs.Variable, constant: Callable[[str, Array], gs.Constant]) -> gs.Node:
        """The node that gives `result`; `constant` makes its inputs, given a name and values."""
        parts = {"stored": self.values, "scale": self.scale, "zero": self.zero}
        inputs = [constant(f"{result.name}/{name}", part) for name, part in parts.items() if part is not None]
        attrs = self.attrs if self.axis is None else {**self.attrs, "axis": self.axis}
        result.dtype = self.scale.dtype
        return gs.Node("DequantizeLinear", result.name, dict(attrs), inputs, outputs=[result])

    @property
    def finite(self) -> bool:
        """Whether all scales are finite numbers."""
        return bool(np.all(np.isfinite(self.scale)))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the constant."""
        return tuple(self.values.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the dequantized values."""
        return np.dtype(self.scale.dtype)

    def _spread(self, line: Array) -> Array:
        shape = [1] * self.values.ndim
        shape[self.axis or 0] = line.size
        return np.broadcast_to(line.reshape(shape), self.values.shape)


def read(tensor: gs.Tensor, constants: Constants) -> Array | Stored | None:
    """The value of a constant, as it is stored; None where it depends on an input."""
    stored = Stored.read(tensor, constants)
    return constants.value(tensor) if stored is None else stored


def rearranged(value: Array | Stored, arrange: Arrange, factor: float = 1.0) -> Array | Stored | None:
    """The value with its axes changed, times a number; None where its scales do not bear that."""
    if isinstance(value, Stored):
        moved = value.arranged(arrange)
        return moved and moved.times(factor)
    changed = arrange(value)
    return np.ascontiguousarray(changed if factor == 1.0 else changed * value.dtype.type(factor))


def _along_one(spread: Array) -> tuple[int, Array] | None:
    """The one axis along which values change, and the values along it; None where they change along several."""
    first = spread[(0,) * spread.ndim]
    changing = [axis for axis in range(spread.ndim) if not _constant_along(spread, axis)]
    if len(changing) > 1:
        return None
    if not changing:
        return 0, np.reshape(first, 1)
    axis = changing[0]
    return axis, spread[tuple(slice(None) if a == axis else 0 for a in range(spread.ndim))]


def _constant_along(spread: Array, axis: int) -> bool:
    if spread.strides[axis] == 0 or spread.shape[axis] == 1:
        return True
    return bool(np.array_equal(np.broadcast_to(spread.take([0], axis), spread.shape), spread))
