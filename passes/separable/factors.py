"""The factors of a convolution, and the kernel that a chain of them amounts to.

    x ── k1, C -> R ── k2, R -> O ── y       W~[o, i, (a, b)] = sum_r  F2[o, r, b] F1[r, i, a]

A chain is convolutions in a row, without bias. Each spatial axis of the kernel is owned by one stage of the chain, and
the other stages have extent 1 there, so that kernels compose by products and never by sums over shifts. Stride,
dilation and padding of an axis go to its owner. Branches are chains of one input whose results are added.

Weights are float64 and laid out as ONNX has them, [out, in / group, *kernel].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Rank = tuple[int, ...]


@dataclass(frozen=True)
class Stage:
    """A convolution of a chain, without its numbers.

    Attributes:
        out, inputs: channels of the whole convolution, not of a group.
        kernel: extents; 1 on every axis that another stage of the chain owns.
        group: the number of groups.
    """

    out: int
    inputs: int
    kernel: tuple[int, ...]
    group: int = 1

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of the weight: [out, inputs / group, *kernel]."""
        return (self.out, self.inputs // self.group, *self.kernel)


@dataclass(frozen=True)
class Factor:
    """A convolution of a chain: its weight, float64 [out, inputs / group, *kernel], and its groups."""

    weight: Array
    group: int

    @property
    def stage(self) -> Stage:
        """The same convolution, without its weights."""
        out, inputs, *kernel = self.weight.shape
        return Stage(out, inputs * self.group, tuple(kernel), self.group)


@dataclass(frozen=True)
class Factorization:
    """A convolution written as chains whose results are added.

    Attributes:
        form, name, rank: which decomposition this is, and at which rank (see `Decomposition`).
        branches: the chains; in each, the factor that meets the input comes first.
    """

    form: str
    name: str
    rank: Rank
    branches: tuple[tuple[Factor, ...], ...]

    def dense(self) -> Array:
        """W~ [O, I / g, *kernel], the one kernel that does the same; g is the group of the original."""
        return sum_of([composed(branch) for branch in self.branches]).weight


def composed(chain: tuple[Factor, ...]) -> Factor:
    """The one convolution that does what the chain does."""
    result = chain[0]
    for factor in chain[1:]:
        result = _then(result, factor)
    return result


def sum_of(terms: list[Factor]) -> Factor:
    """The one convolution that does what several of the same input and output do when added."""
    group = math.gcd(*(term.group for term in terms))
    return Factor(sum(ungrouped(term, group).weight for term in terms), group)  # type: ignore[arg-type]


def ungrouped(factor: Factor, group: int) -> Factor:
    """The same convolution with fewer groups, a divisor of its own: zeros where groups did not meet."""
    parts = factor.group // group
    if parts == 1:
        return factor
    out, inputs, *kernel = factor.weight.shape
    blocks = factor.weight.reshape(group, parts, out // factor.group, inputs, *kernel)
    wide = np.zeros((group, parts, out // factor.group, parts, inputs, *kernel))
    for part in range(parts):
        wide[:, part, :, part] = blocks[:, part]
    return Factor(wide.reshape(out, parts * inputs, *kernel), group)


def _then(first: Factor, second: Factor) -> Factor:
    """Two convolutions in a row, as one."""
    group = math.gcd(first.group, second.group)
    if _elementwise(second) and first.weight.shape[0] == second.weight.shape[0]:
        return Factor(first.weight * second.weight, first.group)
    if _elementwise(first):
        inputs = first.weight.reshape(second.group, 1, -1, *first.weight.shape[2:])
        weight = inputs * second.weight.reshape(second.group, -1, *second.weight.shape[1:])
        return Factor(weight.reshape(-1, *weight.shape[2:]), second.group)
    one, two = ungrouped(first, group).weight, ungrouped(second, group).weight
    kernel = [max(a, b) for a, b in zip(one.shape[2:], two.shape[2:], strict=True)]
    outputs = two.reshape(group, two.shape[0] // group, two.shape[1], -1).swapaxes(2, 3)
    left = outputs.reshape(group, -1, two.shape[1])
    right = one.reshape(group, two.shape[1], -1)
    # [g, O/g, *second kernel, I/g, *first kernel]: the owner of each axis is one of the two, the other has extent 1.
    product = (left @ right).reshape(two.shape[0], *two.shape[2:], *one.shape[1:])
    rank = len(kernel)
    order = [0, 1 + rank, *(place for axis in range(rank) for place in (1 + axis, 2 + rank + axis))]
    return Factor(product.transpose(order).reshape(two.shape[0], one.shape[1], *kernel), group)


def _elementwise(factor: Factor) -> bool:
    """A depthwise convolution without multiplier: channel c of the output sees only channel c of the input."""
    return bool(factor.weight.shape[1] == 1 and factor.weight.shape[0] == factor.group)
