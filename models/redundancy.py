"""How well the kernels of a network can be factorised: what each form discards, at a given cost.

    spatial   kh x 1, then 1 x kw: the kernel [O, I, kh, kw] as the matrix (I kh) x (O kw);
              of a depthwise kernel the kh x kw matrix of each channel
    channel   kh x kw to R channels, then 1 x 1: the kernel as the matrix O x (I kh kw)

A form of rank R keeps R singular values of each matrix. Its error is the tail: the root of the sum of the squares of
the others, relative to that of all of them. A BatchNormalization that follows scales the rows of its kernel, so it is
multiplied in first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

__all__ = ["Tail", "fold", "forms", "tails", "unfold"]

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Kernel:
    """The constant weight [O, I/g, kh, kw] of a Conv, BatchNormalization multiplied in."""

    name: str
    weight: Doubles
    groups: int
    stride: int


@dataclass(frozen=True)
class Tail:
    """The error of one form of one kernel, at half the multiplications of the layer and at no more than all of them."""

    kernel: str
    form: str
    half_rank: int
    half: float
    even_rank: int
    even: float

    def __str__(self) -> str:
        """One row of the table that the training scripts print."""
        half, even = (
            f"{error:.4f} (rank {rank})" for error, rank in ((self.half, self.half_rank), (self.even, self.even_rank))
        )
        return f"{self.kernel:<9} {self.form:<8} {half:<18} {even}"


def forms(groups: int) -> tuple[str, ...]:
    """The forms of a kernel: a depthwise one has no channels to reduce."""
    return ("spatial",) if groups > 1 else ("spatial", "channel")


def unfold(weight: Any, groups: int, form: str) -> Any:
    """The matrices of a form, stacked along the first axis, of a numpy array or a torch tensor [O,I/g,kh,kw]."""
    channels, incoming, height, width = weight.shape
    if groups > 1:
        return weight.reshape(-1, height, width)
    if form == "channel":
        return weight.reshape(1, channels, incoming * height * width)
    return weight.swapaxes(0, 1).swapaxes(1, 2).reshape(1, incoming * height, channels * width)


def fold(matrices: Any, shape: tuple[int, ...], groups: int, form: str) -> Any:
    """The inverse of ``unfold``; ``shape`` is that of the weight."""
    channels, incoming, height, width = shape
    if groups > 1 or form == "channel":
        return matrices.reshape(shape)
    return matrices.reshape(incoming, height, channels, width).swapaxes(1, 2).swapaxes(0, 1)


def _kernels(model: onnx.ModelProto) -> Iterator[_Kernel]:
    """Every square kernel larger than 1 x 1, in the order of the nodes; groups only as depthwise ones."""
    values = {tensor.name: tensor for tensor in model.graph.initializer}
    norms = {node.input[0]: node for node in model.graph.node if node.op_type == "BatchNormalization"}
    for node in model.graph.node:
        if node.op_type != "Conv":
            continue
        weight = numpy_helper.to_array(values[node.input[1]]).astype(np.float64)
        if weight.shape[2:] == (1, 1):
            continue
        attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        norm = norms.get(node.output[0])
        if norm is not None:
            scale, variance = (numpy_helper.to_array(values[norm.input[i]]).astype(np.float64) for i in (1, 4))
            epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
            weight *= (scale / np.sqrt(variance + epsilon))[:, None, None, None]
        yield _Kernel(node.name, weight, attributes.get("group", 1), attributes.get("strides", [1])[0])


def tails(model: onnx.ModelProto) -> list[Tail]:
    """The tails of every kernel in every form that it has."""
    result = []
    for kernel in _kernels(model):
        channels, incoming, height, width = kernel.weight.shape
        # A stride is split too: the first factor, strided along rows only, still computes every column.
        first = incoming * height * kernel.stride
        costs = {
            "spatial": first + (width if kernel.groups > 1 else channels * width),
            "channel": incoming * height * width + channels,
        }
        whole = incoming * height * width * (1 if kernel.groups > 1 else channels)
        for form in forms(kernel.groups):
            squares = np.square(np.linalg.svd(unfold(kernel.weight, kernel.groups, form), compute_uv=False))
            ranks = [int(whole * share // costs[form]) for share in (0.5, 1.0)]
            half, even = (float(np.sqrt(squares[:, rank:].sum() / squares.sum())) for rank in ranks)
            result.append(Tail(kernel.name, form, ranks[0], half=half, even_rank=ranks[1], even=even))
    return result
