"""The Toeplitz matrix of one layer of a model, and the check that it is that layer: conv(x) = T x in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import scipy.sparse

from convrewrite.engine.graph import values_of
from convrewrite.engine.layers import Sliding
from convrewrite.errors import CheckFailed, UsageError
from convrewrite.inspection.toeplitz import entries, toeplitz
from convrewrite.model_io import Model
from convrewrite.pipeline.native import native
from convrewrite.running import runtime
from convrewrite.text import counted, parameter

TOLERANCE = {"float16": 1e-2, "float32": 1e-5, "float64": 1e-12}
"""Of max|conv(x) - T x| / max|conv(x)|, by the type of the weight."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class LayerMatrix:
    """A convolution of a model, on an input of one size.

    Attributes:
        name: of the convolution's output. weight: kernel [O, I/g, *kernel]. group: g. sliding: its geometry.
    """

    name: str
    weight: Array
    group: int
    sliding: Sliding

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the matrix: (output cells, input cells), channels included."""
        cells, pixels = int(np.prod(self.sliding.output)), int(np.prod(self.sliding.size))
        return self.weight.shape[0] * cells, self.weight.shape[1] * self.group * pixels

    def __str__(self) -> str:
        rows, columns = self.shape
        size = "x".join(map(str, self.sliding.size))
        bound = entries(self.weight, self.sliding)
        return f"T of {self.name} on {size}: {rows:,} x {columns:,}, up to {counted(bound, 'entry')}"

    def build(self) -> scipy.sparse.csr_array:
        """The matrix. Raises UsageError where it is too large."""
        return toeplitz(self.weight, self.sliding, group=self.group)

    def error(self, matrix: scipy.sparse.csr_array, seed: int = 0) -> float:
        """max|conv(x) - T x| / max|conv(x)| for a random x, with ONNX Runtime's convolution.

        Raises:
            CheckFailed: it is more than rounding.
        """
        dtype = self.weight.dtype
        drawn = np.random.default_rng(seed).standard_normal((1, self.weight.shape[1] * self.group, *self.sliding.size))
        image = drawn.astype(dtype)
        attributes = {**self.sliding.attributes({}, pool=False), "group": self.group}
        node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], **attributes)
        infos = [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(dtype), shape)
            for name, shape in (("x", image.shape), ("y", None))
        ]
        weights = [onnx.numpy_helper.from_array(np.ascontiguousarray(self.weight), "w")]
        graph = onnx.helper.make_graph([node], "conv", infos[:1], infos[1:], initializer=weights)
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
        want = runtime.open_session(model.SerializeToString(), "cpu").run({"x": image})["y"].ravel().astype(float)
        got = matrix.astype(float) @ image.ravel().astype(float)
        error = float(np.abs(got - want).max() / max(np.abs(want).max(), np.finfo(float).tiny))
        if error > TOLERANCE.get(str(dtype), 1e-5):
            raise CheckFailed(f"T x is off from conv(x) of {self.name} by {error:.1e}")
        return error


def layer_matrix(model: Model, name: str, size: Sequence[int] | None = None) -> LayerMatrix:
    """Find a convolution, and the size of its input.

    Args:
        name: of a Conv node or of its output. size: extents of the layer's own input, one for all axes or one each;
            left out, what it is at the model's native size.

    Raises:
        UsageError: there is no such convolution, its weight is not constant, or the size does not fit.
    """
    node = next((n for n in model.graph.nodes if name in (n.name, *(t.name for t in n.outputs))), None)
    if node is None or node.op != "Conv":
        known = ", ".join(n.outputs[0].name for n in model.graph.nodes if n.op == "Conv")
        raise UsageError(f"there is no Conv named '{name}'", remedy=f"choose one of {known}" if known else None)
    if not isinstance(node.inputs[1], gs.Constant):
        raise UsageError(f"the weight of Conv '{name}' is not an initializer", remedy="fold constants first")
    weight = values_of(node.inputs[1])
    extents = _extents(model, node, weight.ndim - 2) if size is None else tuple(size)
    extents = extents * (weight.ndim - 2) if len(extents) == 1 else extents
    if len(extents) != weight.ndim - 2:
        raise UsageError(
            f"Conv '{name}' has {counted(weight.ndim - 2, 'spatial axis')}, and the size has {len(extents)}"
        )
    sliding = Sliding.read(node.attrs, weight.shape[2:], extents)
    if min(sliding.output) < 1:
        raise UsageError(f"the kernel of Conv '{name}' does not fit on {'x'.join(map(str, extents))}")
    return LayerMatrix(node.outputs[0].name, weight, int(node.attrs.get("group", 1)), sliding)


def _extents(model: Model, node: gs.Node, rank: int) -> tuple[int, ...]:
    shape = native(model, None).tensors.get(node.inputs[0].name, ())
    if len(shape) != rank + 2:
        raise UsageError("the size of the layer's input is not known", remedy=f"give it with {parameter('size')}")
    return tuple(shape[2:])
