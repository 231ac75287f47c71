"""The stringly attributes of layers, read once into frozen records, with the arithmetic of their output sizes.

Sources: the ONNX operator pages of Conv, AveragePool, MaxPool, LpPool, Gemm, MatMul and Slice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite.engine.graph import Constants, computed_from_constants
from convrewrite.engine.operators import chosen, is_standard

Ints = tuple[int, ...]
Array = np.ndarray[Any, Any]

END = np.iinfo(np.int32).max
"""An end of a Slice from which on it means the last cell."""


def _auto_pads(auto_pad: str, size: int, reach: int, stride: int) -> tuple[int, int]:
    """Explicit (begin, end) pads of SAME_UPPER or SAME_LOWER along one axis: output = ceil(size / stride)."""
    total = max((math.ceil(size / stride) - 1) * stride + reach - size, 0)
    small, large = total // 2, total - total // 2
    return (small, large) if auto_pad == "SAME_UPPER" else (large, small)


@dataclass(frozen=True)
class Sliding:
    """What a convolution and a pooling have in common: a kernel that slides over the spatial axes.

    Attributes (one entry per spatial axis of the operator):
        kernel, strides, dilations: in cells. begin, end: explicit zero padding, auto_pad resolved at `size`.
        size: native extents of the input. ceil_mode: pools may end on a partly filled window.
    """

    size: Ints
    kernel: Ints
    strides: Ints
    dilations: Ints
    begin: Ints
    end: Ints
    ceil_mode: bool = False

    @classmethod
    def read(cls, attrs: Mapping[str, Any], kernel: Sequence[int], size: Sequence[int]) -> Sliding:
        """Read the attributes of a Conv or pool with that kernel on a map of that native size."""
        rank = len(size)
        strides = tuple(attrs.get("strides") or (1,) * rank)
        dilations = tuple(attrs.get("dilations") or (1,) * rank)
        pads = tuple(attrs.get("pads") or (0,) * (2 * rank))
        begin, end = pads[:rank], pads[rank:]
        auto_pad = attrs.get("auto_pad") or "NOTSET"
        if auto_pad == "VALID":
            begin = end = (0,) * rank
        elif auto_pad != "NOTSET":
            quads = zip(size, kernel, strides, dilations, strict=True)
            pairs = [_auto_pads(auto_pad, n, (k - 1) * d + 1, s) for n, k, s, d in quads]
            begin, end = tuple(p[0] for p in pairs), tuple(p[1] for p in pairs)
        ceil_mode = bool(attrs.get("ceil_mode", 0))
        begin, end = tuple(begin), tuple(end)
        return cls(tuple(size), tuple(kernel), strides, dilations, begin=begin, end=end, ceil_mode=ceil_mode)

    @property
    def reach(self) -> Ints:
        """Cells from the first to the last tap of the kernel: (kernel - 1) * dilation + 1."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    @property
    def output(self) -> Ints:
        """The spatial extents of the output at the native size."""
        return tuple(self._output(axis, self.ceil_mode) for axis in range(len(self.size)))

    def _output(self, axis: int, ceil_mode: bool) -> int:
        padded = self.size[axis] + self.begin[axis] + self.end[axis]
        steps = (padded - self.reach[axis]) / self.strides[axis]
        count = (math.ceil(steps) if ceil_mode else math.floor(steps)) + 1
        if ceil_mode and (count - 1) * self.strides[axis] >= self.size[axis] + self.begin[axis]:
            count -= 1  # a window that would start in the trailing padding is left out
        return count

    def last_cell(self, axis: int) -> int:
        """Index of the last input cell that a native window touches (it lies in the padding at >= size)."""
        return (self.output[axis] - 1) * self.strides[axis] - self.begin[axis] + self.reach[axis] - 1

    def sees_padding(self, axis: int) -> bool:
        """Whether a native window covers a padded cell, or one beyond the map (ceil_mode), along an axis."""
        return self.begin[axis] > 0 or self.last_cell(axis) >= self.size[axis]

    def covers_map(self, axis: int) -> bool:
        """Whether the one native window along an axis contains every cell of the map."""
        tight = self.dilations[axis] == 1 or self.kernel[axis] == 1
        return self.output[axis] == 1 and tight and self.last_cell(axis) >= self.size[axis] - 1

    def trimmed(self) -> Sliding:
        """Without trailing pads that no native window sees, and without a ceil_mode that has no effect."""
        rank = range(len(self.size))
        full = all(self._output(axis, True) == self._output(axis, False) for axis in rank)
        end = tuple(max(0, min(self.end[a], self.last_cell(a) - self.size[a] + 1)) for a in rank)
        candidate = replace(self, end=end, ceil_mode=self.ceil_mode and not full)
        return candidate if candidate.output == self.output else replace(self, ceil_mode=candidate.ceil_mode)

    def attributes(self, old: Mapping[str, Any], *, pool: bool) -> dict[str, Any]:
        """The attributes of a node with this geometry; whatever else `old` says is kept."""
        attrs = {key: value for key, value in old.items() if key not in ("auto_pad", "pads", "ceil_mode")}
        attrs["kernel_shape"] = list(self.kernel)
        attrs["strides"] = list(self.strides)
        if any(d != 1 for d in self.dilations) or "dilations" in old:
            attrs["dilations"] = list(self.dilations)
        attrs["pads"] = [*self.begin, *self.end]
        if pool and self.ceil_mode:
            attrs["ceil_mode"] = 1
        return attrs


@dataclass(frozen=True)
class Spreading:
    """What a ConvTranspose does to the spatial axes: it spreads each cell over its kernel, and crops what comes out.

    Cell p of the input adds to the cells  p * stride + tap * dilation - begin  of the output, for every tap.

    Attributes (one entry per spatial axis):
        kernel, strides, dilations: in cells. begin: cells that are cropped ahead. output: extents.
    """

    kernel: Ints
    strides: Ints
    dilations: Ints
    begin: Ints
    output: Ints

    @classmethod
    def read(cls, attrs: Mapping[str, Any], kernel: Sequence[int], size: Sequence[int]) -> Spreading:
        """Read the attributes of a ConvTranspose with that kernel on a map of that size.

        Where the output's extents are given, by `output_shape` or by an auto_pad of SAME, the crop follows from them;
        an odd cell goes ahead but for SAME_UPPER, as in ONNX Runtime.
        """
        rank = len(size)
        strides = tuple(attrs.get("strides") or (1,) * rank)
        dilations = tuple(attrs.get("dilations") or (1,) * rank)
        more = tuple(attrs.get("output_padding") or (0,) * rank)
        pads = tuple(attrs.get("pads") or (0,) * (2 * rank))
        auto_pad = attrs.get("auto_pad") or "NOTSET"
        wanted = tuple(attrs.get("output_shape") or ())[-rank:]
        quads = zip(size, kernel, strides, dilations, more, strict=True)
        whole = [(n - 1) * s + a + (k - 1) * d + 1 for n, k, s, d, a in quads]
        if not wanted and auto_pad.startswith("SAME"):  # it crops, and adds nothing where a kernel reaches less far
            wanted = tuple(min(n * s, w) for n, s, w in zip(size, strides, whole, strict=True))
        if wanted:
            crops = [max(0, w - out) for w, out in zip(whole, wanted, strict=True)]
            begin = tuple(c // 2 if auto_pad == "SAME_UPPER" else c - c // 2 for c in crops)
            return cls(tuple(kernel), strides, dilations, begin=begin, output=tuple(wanted))
        if auto_pad == "VALID":
            pads = (0,) * (2 * rank)
        output = tuple(w - a - b for w, a, b in zip(whole, pads[:rank], pads[rank:], strict=True))
        return cls(tuple(kernel), strides, dilations, begin=pads[:rank], output=output)


@dataclass(frozen=True)
class ConvLayer:
    """A Conv node with a weight [O, I/g, *kernel]."""

    weight: Ints
    sliding: Sliding

    @classmethod
    def from_node(cls, node: gs.Node, weight: Sequence[int], size: Sequence[int]) -> ConvLayer:
        """Read a node whose weight has that shape, on a map of that native size."""
        kernel = tuple(node.attrs.get("kernel_shape") or weight[2:])
        return cls(tuple(weight), Sliding.read(node.attrs, kernel, size))

    @property
    def out_channels(self) -> int:
        """The number of output channels."""
        return self.weight[0]


@dataclass(frozen=True)
class TransposedLayer:
    """A ConvTranspose node with a weight [I, O/g, *kernel]."""

    weight: Ints
    group: int
    spreading: Spreading

    @classmethod
    def from_node(cls, node: gs.Node, weight: Sequence[int], size: Sequence[int]) -> TransposedLayer:
        """Read a node whose weight has that shape, on a map of that native size."""
        kernel = tuple(node.attrs.get("kernel_shape") or weight[2:])
        return cls(tuple(weight), int(node.attrs.get("group", 1)), Spreading.read(node.attrs, kernel, size))

    @property
    def out_channels(self) -> int:
        """The number of output channels."""
        return self.weight[1] * self.group


@dataclass(frozen=True)
class PoolLayer:
    """The attributes of an AveragePool, MaxPool or LpPool node."""

    op: str
    sliding: Sliding
    count_include_pad: bool

    @classmethod
    def from_node(cls, node: gs.Node, size: Sequence[int]) -> PoolLayer:
        """Read the attributes of a node whose input map has this native size."""
        sliding = Sliding.read(node.attrs, tuple(node.attrs["kernel_shape"]), size)
        return cls(node.op, sliding, bool(node.attrs.get("count_include_pad", 0)))

    def over_whole_map(self, axes: Sequence[int]) -> tuple[PoolLayer, float]:
        """The pool whose kernel is the native map on the given axes, at stride 1 without pads.

        Returns:
            (the pool, the factor that an AveragePool which counted its padding must be multiplied by).
        """
        s = self.sliding

        def changed(values: Ints, new: Sequence[int]) -> Ints:
            return tuple(new[a] if a in axes else value for a, value in enumerate(values))

        ones, zeros = (1,) * len(s.size), (0,) * len(s.size)
        sliding = replace(
            s,
            kernel=changed(s.kernel, s.size),
            strides=changed(s.strides, ones),
            dilations=changed(s.dilations, ones),
            begin=changed(s.begin, zeros),
            end=changed(s.end, zeros),
            ceil_mode=s.ceil_mode and len(axes) < len(s.size),
        )
        counted = math.prod(
            min(s.kernel[a], s.size[a] + s.begin[a] + s.end[a]) if s.ceil_mode else s.kernel[a] for a in axes
        )
        cells = math.prod(s.size[a] for a in axes)
        factor = cells / counted if self.op == "AveragePool" and self.count_include_pad else 1.0
        return replace(self, sliding=sliding), factor


LINEAR = chosen("matrix")
"""Operators that are linear layers where one factor is constant."""


@dataclass(frozen=True)
class LinearLayer:
    """A Gemm or MatMul with a constant factor, as y[..., k] = sum_f x[..., f] * weight[f, k] (+ bias[k]).

    A constant on the left, y[..., k, n] = sum_f weight[k, f] x[..., f, n], is one too.

    Attributes:
        data: index of the node's input that is contracted. axis: its contracted axis, from the end (-1 or -2).
        weight: index of the node's constant input. rows_are_outputs: the constant is stored as [K, F], not [F, K].
        output_axis: the axis of the result that stands for the outputs, from the end.
        stored: shape of the constant, () where it is not known: a matrix with any number of ones before it, a vector,
            or a stack of matrices, which is no layer.
        bias: index of what is added, or None. alpha, beta: scalar factors of product and bias.
    """

    data: int
    axis: int
    weight: int
    rows_are_outputs: bool
    output_axis: int = -1
    stored: Ints = ()
    bias: int | None = None
    alpha: float = 1.0
    beta: float = 1.0

    @classmethod
    def from_node(
        cls, node: gs.Node, *, weight: int, stored: Sequence[int] | None = None, rank: int | None = None
    ) -> LinearLayer:
        """Read a Gemm or MatMul (also fused) whose constant factor is its input number `weight` (0 or 1).

        Args:
            stored: shape of the constant; that of the tensor where it is an initializer, by default.
            rank: axes of the data; 2 or more where nobody says so, here or in the graph.
        """
        data = 1 - weight
        if stored is None:
            stored = node.inputs[weight].shape if isinstance(node.inputs[weight], gs.Constant) else ()
        flipped = bool(node.attrs.get("transA" if data == 0 else "transB", 0))
        stored_flipped = bool(node.attrs.get("transB" if weight == 1 else "transA", 0))
        bias = 2 if len(node.inputs) > 2 and node.inputs[2].name else None
        alpha, beta = node.attrs.get("alpha", 1.0), node.attrs.get("beta", 1.0)
        rows = (weight == 1) == stored_flipped
        vector = data == 1 and (len(node.inputs[data].shape or (0, 0)) if rank is None else rank) == 1
        axis, made = (-1 if vector or (data == 0) != flipped else -2), (-1 if vector or data == 0 else -2)
        layer = cls(data, axis, weight, rows, output_axis=made, stored=tuple(stored))
        return replace(layer, bias=bias, alpha=alpha, beta=beta)

    @classmethod
    def of(cls, node: gs.Node) -> LinearLayer | None:
        """The layer that a node is; None where it is another operator, or where not just one factor is constant.

        A constant of unknown shape, since nodes compute it, has `stored` ().
        """
        if node.op not in LINEAR or not is_standard(node):
            return None
        known = [computed_from_constants(tensor) for tensor in node.inputs[:2]]
        return cls.from_node(node, weight=known.index(True)) if sum(known) == 1 else None

    @property
    def is_matrix(self) -> bool:
        """Whether the constant is one matrix, with any number of ones before it."""
        return len(self.stored) >= 2 and all(size == 1 for size in self.stored[:-2])

    @property
    def outputs(self) -> int:
        """The number of output features, K; 1 where the weight is a vector."""
        if len(self.stored) < 2:
            return 1
        return self.stored[-2 if self.rows_are_outputs else -1]

    @property
    def inputs(self) -> int:
        """The number of input features, F."""
        return self.stored[-1 if len(self.stored) < 2 or self.rows_are_outputs else -2]

    def matrix(self, stored: Array) -> Array:
        """The stored constant as [K, F], outputs first: a view where possible, times alpha where that is not 1."""
        matrix = stored[:, None] if stored.ndim == 1 else stored.reshape(stored.shape[-2:])
        matrix = matrix if self.rows_are_outputs else matrix.T
        return matrix if self.alpha == 1.0 else (matrix * np.asarray(self.alpha, matrix.dtype))

    def laid_out(self, matrix: Array, *, ones: bool = True) -> Array:
        """A matrix [outputs, inputs] of any extents as the node stores its constant: the reverse, without alpha.

        Args:
            ones: with those in front that the constant has.
        """
        plain = matrix if self.rows_are_outputs else matrix.T
        return plain.reshape(*(1,) * (len(self.stored) - 2 if ones else 0), *plain.shape)

    def spread(self, vector: Array) -> Array:
        """One number for each output, [K], shaped so that it can be added to the result."""
        return vector if self.output_axis == -1 else vector[:, None]

    def vector(self, added: Sequence[int]) -> bool:
        """Whether a constant of that shape, added to the result, is one number for each output, or one for all."""
        size = math.prod(added)
        if size == 1 or self.output_axis == -1:
            return size == 1 or (size == self.outputs and tuple(added[-1:]) == (self.outputs,))
        return size == self.outputs and tuple(added[-2:]) == (self.outputs, 1)

    def rows(self, data: Sequence[int]) -> int:
        """Vectors that it multiplies, given the shape of its data."""
        return math.prod(data) // max(1, data[self.axis])

    def add_behind(self, node: gs.Node) -> tuple[gs.Node, gs.Tensor] | None:
        """The Add right behind the layer that alone reads its result, and what it adds: a constant, before or after.

        Whether that is a vector is another question; one with more axes than the result is none.
        """
        result = node.outputs[0]
        readers = list(result.outputs)
        if len(readers) != 1 or readers[0].op != "Add" or readers[0].attrs.get("broadcast"):
            return None
        (add,) = readers
        others = [tensor for tensor in add.inputs if tensor is not result]
        if len(others) != 1 or not computed_from_constants(others[0]) or not add.outputs[0].name:
            return None
        return add, others[0]


@dataclass(frozen=True)
class AxisSlice:
    """What a Slice keeps of one axis: each `step`-th cell from `start` on, up to the last or not."""

    start: int
    step: int
    to_the_end: bool


def every(node: gs.Node, constants: Constants, rank: int) -> dict[int, AxisSlice] | None:
    """What a Slice keeps of each axis that it names; None where it counts from the end, backwards or is not constant.

    Source: https://onnx.ai/onnx/operators/onnx__Slice.html
    """
    given: list[Any] = [node.attrs.get(name) for name in ("starts", "ends", "axes", "steps")]
    for place in range(4):
        if given[place] is None and len(node.inputs) > place + 1 and node.inputs[place + 1].name:
            given[place] = constants.value(node.inputs[place + 1])
            if given[place] is None:
                return None
    if given[0] is None or given[1] is None:
        return None
    starts, ends = ([int(v) for v in np.ravel(given[i])] for i in (0, 1))
    axes = list(range(len(starts))) if given[2] is None else [int(v) % rank for v in np.ravel(given[2])]
    steps = [1] * len(starts) if given[3] is None else [int(v) for v in np.ravel(given[3])]
    if min(*starts, 0) < 0 or min(*steps, 1) < 1:
        return None
    return {a: AxisSlice(s, k, e >= END) for a, s, e, k in zip(axes, starts, ends, steps, strict=True)}
