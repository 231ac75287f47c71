"""Sums of short chains of depthwise convolutions.

    Decoupled   x ─┬─ k, each channel ── 1x1 ─┬─ + ── y     W[o, i, k] ~ sum_r  P_r[o, i] D_r[i, k]
                   └─ k, each channel ── 1x1 ─┘
                or the pointwise one first:                 W[o, i, k] ~ sum_r  D_r[o, k] P_r[o, i]

    Filters     x ─┬─ kh x 1 ── 1 x kw ─┬─ + ── y           W[o, h, w] ~ sum_r  u_r[o, h] v_r[o, w]
                   └─ kh x 1 ── 1 x kw ─┘

Decoupled is "network decoupling" (Guo et al., BMVC 2018): the SVD of one matrix for each channel; r of its terms are r
branches. Filters is for convolutions whose filters see one channel: the SVD of each filter.

In three dimensions a filter is first cut in two, W[a, m] = sum_r s_r u_r[a] V_r[m], and each V_r is cut again. All the
terms u_r (x) u'_rt (x) v'_rt of a filter are orthogonal: keeping the r largest leaves out the squares of the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np

from convrewrite.passes.separable.decomposition import Decomposition, relative
from convrewrite.passes.separable.factors import Array, Factor, Factorization, Rank, Stage
from convrewrite.passes.separable.grouped import Axes, Grouped, checked
from convrewrite.passes.separable.lazy import lazy
from convrewrite.passes.separable.spectra import NOISE, Bank, canonical, suffix_sums


@final
class Decoupled(Decomposition):
    """r branches of a depthwise and a pointwise convolution, in either order."""

    def __init__(self, form: str, name: str, weight: Grouped, pointwise_first: bool) -> None:
        self.form, self.name = form, name
        self._weight = weight
        self._pointwise_first = pointwise_first
        cells = weight.size(weight.axes)
        if pointwise_first:
            shape = weight.out, weight.inputs_each, cells
            self._bank = Bank(shape, lambda: weight.sorted_into("go", "i", weight.axes))
        else:
            shape = weight.inputs, cells, weight.outs_each
            self._bank = Bank(shape, lambda: weight.sorted_into("gi", weight.axes, "o"))
        self.full = (self._bank.full,)

    def error(self, rank: Rank) -> float:
        (number,) = checked(rank, self.full)
        return relative(self._bank.tail(number), self._bank.norm)

    def within(self, rank: Rank, tol: float) -> bool:
        (number,) = checked(rank, self.full)
        return self._bank.tail_within(number, tol * self._bank.norm)

    @property
    def spectra(self) -> tuple[Array, ...]:
        return (self._bank.spectrum,)

    def layout(self, rank: Rank) -> tuple[tuple[Stage, ...], ...]:
        (number,) = checked(rank, self.full)
        weight = self._weight
        pointwise = Stage(weight.out, weight.inputs, weight.extents(()), weight.group)
        channels = weight.out if self._pointwise_first else weight.inputs
        depthwise = Stage(channels, channels, weight.kernel, channels)
        return ((pointwise, depthwise) if self._pointwise_first else (depthwise, pointwise),) * number

    def build(self, rank: Rank) -> Factorization:
        layout = self.layout(rank)
        left, right = self._bank.factors(rank[0])
        one = left.transpose(2, 0, 1)
        two = right.transpose(1, 0, 2)
        if not self._pointwise_first:
            two = two.reshape(rank[0], self._weight.group, -1, self._weight.outs_each).swapaxes(2, 3)
        branches = []
        for number, stages in enumerate(layout):
            weights = one[number].reshape(stages[0].weight_shape), two[number].reshape(stages[1].weight_shape)
            pairs = zip(weights, stages, strict=True)
            branches.append(tuple(Factor(np.ascontiguousarray(weight), stage.group) for weight, stage in pairs))
        return Factorization(self.form, self.name, rank, tuple(branches))


@dataclass(frozen=True)
class _Terms:
    """Rank-one terms of each filter, largest first: sizes [O, T], and unit vectors [O, T, cells] for each part."""

    sizes: Array
    vectors: tuple[Array, ...]


@final
class Filters(Decomposition):
    """r branches of depthwise chains; the stages own the axes of `parts`, in this order.

    The first stage makes the channels of a depthwise convolution with a multiplier; the others keep them.
    """

    def __init__(self, form: str, name: str, weight: Grouped, parts: tuple[Axes, ...]) -> None:
        self.form, self.name = form, name
        self._weight = weight
        self._parts = parts
        self._flat = tuple(axis for axis in weight.axes if not any(axis in part for part in parts))  # of extent 1
        extents = [weight.size(part) for part in parts]
        self.full = (math.prod(min(n, math.prod(extents[at + 1 :])) for at, n in enumerate(extents[:-1])),)

    @lazy
    def _terms(self) -> _Terms:
        filters = np.asarray(self._weight.sorted_into(("g", "o", "i", *self._flat), *self._parts), np.float64)
        terms = _expanded(filters)
        order = np.argsort(-terms.sizes, axis=1, kind="stable")
        sizes = np.take_along_axis(terms.sizes, order, axis=1)
        return _Terms(sizes, tuple(np.take_along_axis(v, order[:, :, None], axis=1) for v in terms.vectors))

    @lazy
    def _tails(self) -> Array:
        return np.sqrt(suffix_sums(np.sum(np.square(self._terms.sizes), axis=0)))

    def error(self, rank: Rank) -> float:
        (number,) = checked(rank, self.full)
        norm = float(self._tails[0])
        return relative(max(float(self._tails[number]), NOISE * norm), norm)

    @property
    def spectra(self) -> tuple[Array, ...]:
        return (np.sqrt(np.sum(np.square(self._terms.sizes), axis=0)),)

    def layout(self, rank: Rank) -> tuple[tuple[Stage, ...], ...]:
        (number,) = checked(rank, self.full)
        weight = self._weight
        first = Stage(weight.out, weight.inputs, weight.extents(self._parts[0]), weight.inputs)
        rest = (Stage(weight.out, weight.out, weight.extents(part), weight.out) for part in self._parts[1:])
        return ((first, *rest),) * number

    def build(self, rank: Rank) -> Factorization:
        noise = NOISE * float(self._tails[0])
        sizes = np.where(self._terms.sizes > noise, self._terms.sizes, 0.0) ** (1 / len(self._parts))
        branches = []
        for number, stages in enumerate(self.layout(rank)):
            weights = [sizes[:, number, None] * vectors[:, number] for vectors in self._terms.vectors]
            pairs = zip(weights, stages, strict=True)
            branches.append(tuple(Factor(weight.reshape(stage.weight_shape), stage.group) for weight, stage in pairs))
        return Factorization(self.form, self.name, rank, tuple(branches))


def _expanded(filters: Array) -> _Terms:
    """Orthogonal rank-one terms of each filter of [O, a, b, ...], by an SVD for each cut. Each sign is canonical."""
    count, rows = filters.shape[:2]
    left, sizes, right = np.linalg.svd(filters.reshape(count, rows, -1), full_matrices=False)
    signs = np.stack([canonical(vectors) for vectors in left])
    left, right = (left * signs[:, None]).swapaxes(1, 2), right * signs[:, :, None]
    if filters.ndim == 3:
        return _Terms(sizes, (left, right))
    inner = _expanded(right.reshape(-1, *filters.shape[2:]))
    each = inner.sizes.shape[1]
    vectors = [np.repeat(left, each, axis=1), *(v.reshape(count, -1, v.shape[2]) for v in inner.vectors)]
    return _Terms((sizes[:, :, None] * inner.sizes.reshape(count, -1, each)).reshape(count, -1), tuple(vectors))
