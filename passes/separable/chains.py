"""Chains of two and of three convolutions: a kernel cut in two or in three along its axes.

    Pair    x ── A, I -> R ── B, R -> O ── y
            W[o, i, a, b]  ~  sum_r  F2[o, r, b] F1[r, i, a]
            the truncated SVD of the (I a) x (O b) matrix: the best of its rank, and the error is the tail

    Triple  x ── A, I -> R1 ── M, R1 -> R2 ── B, R2 -> O ── y
            W[o, i, a, m, b]  ~  sum_rs  F3[o, s, b] F2[s, r, m] F1[r, i, a]
            F1 and F3 span the R1 and R2 leading directions U, V of the (I a) and the (O b) side; F2 = U^T W V

With spatial axes on both sides these are the separable kernels of Jaderberg et al. (BMVC 2014); with all of them on one
side of a pair, the channel reductions of Zhang et al. (PAMI 2016); with all of them in the middle of a triple, the
Tucker-2 form of Kim et al. (ICLR 2016); one axis in each, the tensor train of Oseledets (2011), taken from both ends.

The error of a triple. U and V are orthogonal, so the full core U^T W V has the norm of W, and cutting it to R1 x R2
leaves out exactly the energy of the entries beyond. One pass over the core gives the error of all pairs of ranks.
It is at most sqrt(2) times that of the best factors of those ranks. Groups share their ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import numpy as np

from convrewrite.passes.separable.decomposition import Decomposition, relative
from convrewrite.passes.separable.factors import Array, Factor, Factorization, Rank, Stage
from convrewrite.passes.separable.grouped import Axes, Grouped, Side, checked
from convrewrite.passes.separable.lazy import lazy
from convrewrite.passes.separable.spectra import NOISE, TRUST, Bank, canonical, suffix_sums


@final
class Pair(Decomposition):
    """Two convolutions: the first owns the axes `first`, the second all others."""

    def __init__(self, form: str, name: str, weight: Grouped, first: Axes) -> None:
        self.form, self.name = form, name
        self._weight = weight
        self._first = first
        self._second = tuple(axis for axis in weight.axes if axis not in first)
        rows = weight.inputs_each * weight.size(first)
        columns = weight.outs_each * weight.size(self._second)
        sides: tuple[Side, ...] = ("g", ("i", *first), ("o", *self._second))
        gram = None
        if not first and rows <= columns:
            gram = lambda: weight.input_gram  # noqa: E731
        elif not self._second and columns <= rows:
            gram = lambda: weight.output_gram  # noqa: E731
        self._bank = Bank((weight.group, rows, columns), lambda: weight.sorted_into(*sides), gram)
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
        weight, between = self._weight, self._weight.group * number
        first = Stage(between, weight.inputs, weight.extents(self._first), weight.group)
        return ((first, Stage(weight.out, between, weight.extents(self._second), weight.group)),)

    def build(self, rank: Rank) -> Factorization:
        ((first, second),) = self.layout(rank)
        weight = self._weight
        left, right = self._bank.factors(rank[0])
        one = left.swapaxes(1, 2).reshape(first.weight_shape)
        two = right.reshape(weight.group, rank[0], weight.outs_each, -1).swapaxes(1, 2).reshape(second.weight_shape)
        return Factorization(self.form, self.name, rank, ((Factor(one, weight.group), Factor(two, weight.group)),))


@dataclass(frozen=True)
class _Side:
    """The directions of one side of W, largest energy first.

    Attributes:
        basis: [g, p, n], orthonormal columns with canonical signs.
        spectrum: [n], root of their energy. tails: [n + 1], root of the energy that the first of them leave out.
    """

    basis: Array
    spectrum: Array
    tails: Array


def _side(grams: Array, most: int) -> _Side:
    squares, vectors = np.linalg.eigh(grams)
    basis = vectors[:, :, ::-1][:, :, :most]
    signs = np.stack([canonical(one) for one in basis])
    energy = np.maximum(squares[:, ::-1][:, :most], 0.0).sum(axis=0)
    return _Side(basis * signs[:, None], np.sqrt(energy), np.sqrt(suffix_sums(energy)))


@final
class Triple(Decomposition):
    """Three convolutions: the first owns the axes `first`, the last owns `last`, the middle one all others."""

    def __init__(self, form: str, name: str, weight: Grouped, first: Axes = (), last: Axes = ()) -> None:
        self.form, self.name = form, name
        self._weight = weight
        self._first, self._last = first, last
        self._middle = tuple(axis for axis in weight.axes if axis not in first and axis not in last)
        rows, columns = weight.inputs_each * weight.size(first), weight.outs_each * weight.size(last)
        cells = weight.size(self._middle)
        self.full = (min(rows, cells * columns), min(columns, cells * rows))

    def _slices(self) -> list[Array]:
        """The matrices [g, I a, O b], one for each cell of the middle kernel."""
        slices = self._weight.sorted_into(self._middle, "g", ("i", *self._first), ("o", *self._last))
        return list(slices)

    @lazy
    def _sides(self) -> tuple[_Side, _Side]:
        """The (I a) side and the (O b) side."""
        if not self._first and not self._last:
            return _side(self._weight.input_gram, self.full[0]), _side(self._weight.output_gram, self.full[1])
        rows: Array | float = 0.0
        columns: Array | float = 0.0
        for cell in self._slices():
            exact = np.asarray(cell, np.float64)
            rows = rows + exact @ exact.swapaxes(1, 2)
            columns = columns + exact.swapaxes(1, 2) @ exact
        return _side(np.asarray(rows), self.full[0]), _side(np.asarray(columns), self.full[1])

    def _cut(self, rank: Rank) -> tuple[Array, Array]:
        """U [g, I a, R1] and V [g, O b, R2]."""
        rows, columns = self._sides
        return rows.basis[:, :, : rank[0]], columns.basis[:, :, : rank[1]]

    def _core(self, rank: Rank) -> Iterator[Array]:
        """U^T W V, [g, R1, R2], for each cell of the middle kernel."""
        u, v = self._cut(rank)
        for cell in self._slices():
            yield u.swapaxes(1, 2) @ np.asarray(cell, np.float64) @ v

    @lazy
    def _energy(self) -> Array:
        """[R1, R2]: squared entries of the full core, added over cells and groups."""
        energy = np.zeros(self.full)
        for cell in self._core(self.full):
            energy += np.sum(np.square(cell), axis=0)
        return energy

    @lazy
    def _errors(self) -> Array:
        """[R1 + 1, R2 + 1]: energy outside the corner R1 x R2 of the core, as a root. Only small squares are added."""
        below = suffix_sums(self._energy.sum(axis=1))[:, None]
        beside = np.zeros((self.full[0] + 1, self.full[1] + 1))
        beside[1:, :-1] = np.cumsum(np.cumsum(self._energy[:, ::-1], axis=1)[:, ::-1], axis=0)
        errors: Array = np.sqrt(below + beside)
        return errors

    def error(self, rank: Rank) -> float:
        norm = float(self._errors[0, 0])
        return relative(max(float(self._errors[checked(rank, self.full)]), NOISE * norm), norm)

    def within(self, rank: Rank, tol: float) -> bool:
        """What one side leaves out alone may decide it, which spares the core."""
        sides = zip(self._sides, checked(rank, self.full), strict=True)
        least = max(relative(float(side.tails[number]), float(side.tails[0])) for side, number in sides)
        return least <= max(1.01 * tol, TRUST) and self.error(rank) <= tol

    @property
    def spectra(self) -> tuple[Array, ...]:
        rows, columns = self._sides
        return rows.spectrum, columns.spectrum

    def layout(self, rank: Rank) -> tuple[tuple[Stage, ...], ...]:
        one, two = checked(rank, self.full)
        weight, group = self._weight, self._weight.group
        first = Stage(group * one, weight.inputs, weight.extents(self._first), group)
        middle = Stage(group * two, group * one, weight.extents(self._middle), group)
        return ((first, middle, Stage(weight.out, group * two, weight.extents(self._last), group)),)

    def build(self, rank: Rank) -> Factorization:
        (stages,) = self.layout(rank)
        u, v = self._cut(rank)
        core = np.stack(list(self._core(rank)), axis=3)
        noise = NOISE * float(self._errors[0, 0])
        rows, columns = (_roots(np.linalg.norm(core, axis=axes), noise) for axes in ((2, 3), (1, 3)))
        core = _divided(_divided(core, rows[:, :, None, None]), columns[:, None, :, None])
        first = (u * rows[:, None]).swapaxes(1, 2)
        middle = core.swapaxes(1, 2)
        last = (v * columns[:, None]).reshape(*v.shape[:1], self._weight.outs_each, -1, rank[1]).swapaxes(2, 3)
        weights = (part.reshape(stage.weight_shape) for part, stage in zip((first, middle, last), stages, strict=True))
        chain = tuple(Factor(np.ascontiguousarray(weight), self._weight.group) for weight in weights)
        return Factorization(self.form, self.name, rank, (chain,))


def _roots(values: Array, noise: float) -> Array:
    """Square roots, and 0 for what is only rounding."""
    roots: Array = np.sqrt(np.where(values > noise, values, 0.0))
    return roots


def _divided(values: Array, by: Array) -> Array:
    """values / by, and 0 where `by` is."""
    return np.divide(values, by, out=np.zeros_like(values), where=by > 0)
