"""A net of real numbers, node by node as PyTorch's two exporters write it.

The older exporter (`torchscript`) reads extents from tensors by Shape where the module does, keeps GlobalAveragePool,
and writes adaptive pools with the native extents; the newer one (`dynamo`) writes every extent as a number, pools by
ReduceMean, and has the batch alone from a Shape. Weights are drawn in the same order at every size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nets import Net

TORCHSCRIPT, DYNAMO = "torchscript", "dynamo"
EXPORTERS = (TORCHSCRIPT, DYNAMO)


class Torch(Net):
    """A net of real numbers, written by one of the exporters."""

    def __init__(self, exporter: str, *shape: int | str, seed: int = 0) -> None:
        super().__init__(*shape, opset=18 if exporter == TORCHSCRIPT else 20, seed=seed)
        self.exporter = exporter
        self.script = exporter == TORCHSCRIPT

    def real(self, *shape: int) -> str:
        return self.const(self.rng.standard_normal(shape).astype(np.float32) / 2)

    def conv2d(self, x: str, outputs: int, kernel: int, *, stride: int = 1, pad: int = 0, dilation: int = 1) -> str:
        weight = self.real(outputs, self.shape(x)[1], kernel, kernel)
        attrs = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4, "dilations": [dilation] * 2}
        return str(self.Conv(x, weight, self.real(outputs), **attrs))

    def linear(self, x: str, outputs: int) -> str:
        return str(self.Gemm(x, self.real(outputs, self.shape(x)[-1]), self.real(outputs), transB=1))

    def axes(self, op: str, x: str, axes: Sequence[int], **attrs: int) -> str:
        return str(self.node(op, x, self.const(list(axes)), **attrs))

    def mean(self, x: str, axes: Sequence[int], keepdims: int = 1) -> str:
        return self.axes("ReduceMean", x, axes, keepdims=keepdims)

    def adaptive_mean(self, x: str) -> str:
        return str(self.GlobalAveragePool(x)) if self.script else self.mean(x, [-1, -2])

    def batch(self, x: str) -> str:
        """The batch as a tensor [1], by Shape."""
        if self.script:
            first = self.Gather(self.Shape(x), self.const(np.asarray(0), dtype=np.int64), axis=0)
            return str(self.Unsqueeze(first, self.const([0])))
        return str(self.Shape(x, start=0, end=1))

    @property
    def open_batch(self) -> bool:
        return not self.inputs[0].type.tensor_type.shape.dim[0].dim_value

    def view(self, x: str, *dims: int) -> str:
        """Reshape to [batch, *dims]."""
        if self.script and self.open_batch:
            parts = [self.const([dim]) for dim in dims]
            return str(self.Reshape(x, self.Concat(self.batch(x), *parts, axis=0)))
        return str(self.Reshape(x, self.const([-1 if self.open_batch else 1, *dims])))

    def expand_as(self, gate: str, x: str) -> str:
        if self.script:
            return str(self.Expand(gate, self.Shape(x)))
        if self.open_batch:
            dims = [self.const([dim]) for dim in self.shape(x)[1:]]
            return str(self.Expand(gate, self.Concat(self.batch("x"), *dims, axis=0)))
        return str(self.Expand(gate, self.const(list(self.shape(x)))))
