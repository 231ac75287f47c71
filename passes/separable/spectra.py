"""Singular values of many matrices at once, fast, with tails that are right.

    M M^T = U diag(s^2) U^T        tail(R)^2 = s[R]^2 + s[R+1]^2 + ...        M ~ U_R (U_R^T M)

Values come from the Gram matrix of the shorter side in float64, which costs a fifth of a singular value decomposition.
It blurs singular values below sqrt(eps) = 1.5e-8 of the largest, so a tail is read from it only above `TRUST` times the
norm. A smaller one is looked for where nothing blurs it: the clear directions are removed, E = M - U U^T M is formed,
and its own Gram matrix is taken. (Deflation: each round reaches four digits further, and |E| is exact.)

The errors of several matrices add up by their squares. Only small squares are summed, never 1 - kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import scipy.linalg

from convrewrite.passes.separable.factors import Array
from convrewrite.passes.separable.lazy import lazy

TRUST = 2e-5  # of the norm: tails above it are read from the Gram matrix, within 0.5 % for 4096 values
CLEAR = 1e-4  # of the norm: directions above it are known to 1e-12 of the norm from the Gram matrix
NOISE = 64 * float(np.finfo(np.float64).eps)  # of the norm: 1.4e-14; what is below is rounding
_SLAB = 1 << 22  # numbers converted to float64 at a time


class Bank:
    """Matrices [b, p, q] that are truncated at one common rank.

    Args:
        shape: (b, p, q). matrices: makes the array, of any float type; it is not kept.
        gram: gives the Gram matrices of the shorter side, where something else needs them too.
    """

    def __init__(
        self, shape: tuple[int, int, int], matrices: Callable[[], Array], gram: Callable[[], Array] | None = None
    ) -> None:
        self.shape = shape
        self.full = min(shape[1:])
        self._matrices = matrices
        self._gram = gram or self._own_gram

    def _own_gram(self) -> Array:
        bank = self._matrices()
        return grams(bank if self.shape[1] <= self.shape[2] else bank.swapaxes(1, 2))

    @lazy
    def _gram_values(self) -> Array:
        """Singular values [b, full], largest first, blurred below 1.5e-8 of the largest."""
        squares = np.linalg.eigvalsh(self._gram())
        values: Array = np.sqrt(np.maximum(squares[:, ::-1], 0.0))
        return values

    @property
    def spectrum(self) -> Array:
        """[full]: root of the sum over the matrices of the squared singular values, largest first."""
        spectrum: Array = np.sqrt(np.sum(np.square(self._gram_values), axis=0))
        return spectrum

    @lazy
    def _gram_tails(self) -> Array:
        return np.sqrt(suffix_sums(np.square(self.spectrum)))

    @lazy
    def norm(self) -> float:
        """The Frobenius norm of all matrices together."""
        return float(self._gram_tails[0])

    def _each(self) -> Iterator[Matrix]:
        noise = NOISE * self.norm / np.sqrt(self.shape[0])
        for matrix, values in zip(self._matrices(), self._gram_values, strict=True):
            yield Matrix(np.asarray(matrix, np.float64), values, noise)

    @lazy
    def _exact(self) -> list[Matrix]:
        return list(self._each())

    def tail(self, rank: int) -> float:
        """Frobenius norm of what rank `rank` leaves out, within 1 %, and never below `NOISE` of the norm."""
        blurred = float(self._gram_tails[rank])
        if blurred >= TRUST * self.norm:
            return blurred
        left_out = 0.0 if rank == self.full else float(np.linalg.norm([one.tail(rank) for one in self._exact]))
        return max(left_out, NOISE * self.norm)

    def tail_within(self, rank: int, bound: float) -> bool:
        """Whether tail(rank) <= bound, without looking closer than the bound asks."""
        if self._gram_tails[rank] < TRUST * self.norm:
            if bound >= TRUST * self.norm or bound < NOISE * self.norm:
                return bound >= NOISE * self.norm
            if rank < self.full and np.linalg.norm([one.ceiling(rank) for one in self._exact]) <= bound:
                return True
        return self.tail(rank) <= bound

    def factors(self, rank: int) -> tuple[Array, Array]:
        """(left [b, p, rank], right [b, rank, q]) of the best approximation, each with the roots of the values."""
        count, rows, columns = self.shape
        left, right = np.empty((count, rows, rank)), np.empty((count, rank, columns))
        for place, matrix in enumerate(self._exact if "_exact" in self.__dict__ else self._each()):
            left[place], right[place] = balanced(*matrix.vectors(rank))
        return left, right


class Matrix:
    """One matrix [p, q], float64, by deflation.

    Args:
        values: its singular values from the Gram matrix, largest first; computed where absent.
        noise: Frobenius norm below which there is only rounding.
    """

    def __init__(self, matrix: Array, values: Array | None = None, noise: float = 0.0) -> None:
        self._flipped = matrix.shape[0] > matrix.shape[1]
        self._wide = matrix.T if self._flipped else matrix
        self._noise = noise
        self._norm = float(np.linalg.norm(self._wide))
        if values is not None:
            self._values = values

    @lazy
    def _values(self) -> Array:
        squares = np.linalg.eigvalsh(grams(self._wide[None])[0])[::-1]
        values: Array = np.sqrt(np.maximum(squares, 0.0))
        return values

    @lazy
    def _clear(self) -> int:
        return int(np.count_nonzero(self._values >= CLEAR * self._norm))

    def tail(self, rank: int) -> float:
        """Frobenius norm of what rank `rank` leaves out."""
        if self._norm <= self._noise or rank <= 0:
            return self._norm
        blurred = float(np.linalg.norm(self._values[rank:]))
        if blurred >= TRUST * self._norm:
            return blurred
        return self._residual.tail(rank - self._clear)

    def ceiling(self, rank: int) -> float:
        """An upper bound of tail(rank), without the values of what the clear directions leave."""
        if self._norm <= self._noise or rank < self._clear:
            return self._norm
        return self._residual._norm

    def vectors(self, rank: int) -> tuple[Array, Array, Array]:
        """(left [p, rank], values [rank], right [rank, q]); zeros where there is nothing but rounding."""
        if self._norm <= self._noise:
            rows, columns = self._wide.shape
            found = np.zeros((rows, rank)), np.zeros(rank), np.zeros((rank, columns))
        elif rank <= self._clear:
            left = self._top if rank == self._clear and "_top" in self.__dict__ else self._directions(rank)
            found = _split(left, left.T @ self._wide)
        else:
            head = _split(self._top, self._top.T @ self._wide)
            rest = self._residual.vectors(rank - self._clear)
            found = np.hstack([head[0], rest[0]]), np.hstack([head[1], rest[1]]), np.vstack([head[2], rest[2]])
        left, values, right = found
        return (right.T, values, left.T) if self._flipped else found

    @lazy
    def _top(self) -> Array:
        return self._directions(self._clear)

    @lazy
    def _residual(self) -> Matrix:
        """What the clear directions leave. It is never flipped: it is as wide as this one."""
        left = self._top
        return Matrix(self._wide - left @ (left.T @ self._wide), noise=self._noise)

    def _directions(self, count: int) -> Array:
        """The first `count` eigenvectors of the Gram matrix, [p, count]."""
        gram = grams(self._wide[None])[0]
        size = len(gram)
        if size > 64 and 2 * count < size:
            _, found = scipy.linalg.eigh(gram, driver="evr", subset_by_index=[size - count, size - 1])
        else:
            _, found = np.linalg.eigh(gram)
        directions: Array = found[:, ::-1][:, :count]
        return directions


def grams(bank: Array) -> Array:
    """M M^T in float64 for each M of [b, p, q], converted slab by slab: [b, p, p]."""
    count, rows, columns = bank.shape
    result = np.empty((count, rows, rows))
    together = max(1, _SLAB // max(1, rows * columns))
    width = max(1, _SLAB // max(1, rows))
    for start in range(0, count, together):
        total: Array | float = 0.0
        for at in range(0, columns, width):
            slab = np.asarray(bank[start : start + together, :, at : at + width], np.float64)
            total = total + slab @ slab.swapaxes(1, 2)
        result[start : start + together] = total
    return result


def suffix_sums(squares: Array) -> Array:
    """What is left out at rank 0, 1, ..., n: [n + 1], the last is 0. Small numbers are added first."""
    sums = np.zeros(len(squares) + 1)
    sums[:-1] = np.cumsum(squares[::-1])[::-1]
    return sums


def canonical(vectors: Array) -> Array:
    """-1 or 1 for each column [p, r]: the sign that makes its largest entry positive; of equals, the first."""
    sizes = np.abs(vectors)
    first = np.argmax(sizes >= (1 - 1e-6) * sizes.max(axis=0), axis=0)
    signs: Array = np.where(np.take_along_axis(vectors, first[None], axis=0)[0] < 0, -1.0, 1.0)
    return signs


def balanced(left: Array, values: Array, right: Array) -> tuple[Array, Array]:
    """Each side with the roots of the values and canonical signs, so that both are well scaled in float16 too."""
    scale = np.sqrt(values) * canonical(left)
    return left * scale, right * scale[:, None]


def _split(left: Array, product: Array) -> tuple[Array, Array, Array]:
    """U and U^T M as unit vectors and values."""
    values = np.linalg.norm(product, axis=1)
    right = np.divide(product, values[:, None], out=np.zeros_like(product), where=values[:, None] > 0)
    return left, values, right
