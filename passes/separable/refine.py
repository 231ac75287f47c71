"""Factors that are right on the data: the error of the response is made small, not that of the weight.

    x~ [D]  a patch of the layer's input in the rewritten network;  y [O]  what the original layer gave there
    minimise  E |y - W~ x~ - b|^2     subject to     |W - W~| <= tol |W|

With b = E y - W~ E x~ only centred moments matter, S = E x~ x~^T and C = E y x~^T:

    E |y - W~ x~ - b|^2  =  E |y - W x~ - b|^2  -  2 tr (W~ - W) (C - W S)^T  +  tr (W~ - W) S (W~ - W)^T

W~ is linear in each factor, so each in turn is a linear least-squares problem: alternating least squares (`rounds`,
`squares`). The bound is kept by a penalty lambda |W - W~|^2, which adds lambda I to S and lambda W to C; lambda is
bisected, and at infinity nothing moves. A little of it is always there, so that directions without data keep W.

A chain also starts from whitened directions. Where its first stage owns all axes, that is the exact optimum, the
principal components of the response (Zhang et al., "Accelerating Very Deep Convolutional Networks", PAMI 2016, without
the nonlinearity). The result is local for the other forms, and never worse than the start.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from convrewrite.passes.separable.decomposition import relative
from convrewrite.passes.separable.factors import Array, Factorization
from convrewrite.passes.separable.rounds import improved, whitened

SMALL = 1024  # entries of a patch up to which threads of the linear algebra cost more than they bring
_RIDGE = 1e-8  # of the mean second moment: the penalty that is always there
_DECADES = (-3.0, 4.0)  # of the mean second moment: where the penalty is looked for
_HALVINGS = 5
_UNSEEN = 1e-13  # of the response: what earlier layers changed is a difference of sums, and below this it is rounding
_STALLED = 1e-3  # a round that lowers the error by less is the last


@dataclass(frozen=True)
class Moments:
    """The moments of the inputs and outputs of one convolution, over all positions of the data.

    A patch holds the D = I / g * prod(kernel) numbers that one filter sees, in the order of weight[o].ravel(). The
    patches x~ are those of the rewritten network. The response y is that of the original layer, without its bias, to
    the input that it has in the original network.

    Attributes:
        second: [g, D, D], covariance of the patches: E (x~ - E x~)(x~ - E x~)^T, for each group.
        cross: [O, D], E (y - E y)(x~ - E x~)^T, each output with the patches of its group.
        response: E |y - E y|^2, summed over the channels; makes errors relative.
        input_mean: [g, D], E x~. response_mean: [O], E y.
    """

    second: Array
    cross: Array
    response: float
    input_mean: Array
    response_mean: Array


@dataclass(frozen=True)
class Refined:
    """Factors fitted to data.

    Attributes:
        factorization: of the form and rank of the start; it may be the start itself.
        bias_shift: [O], E y - W~ E x~: to be added to the layer's own bias, so that the mean response is right.
        response_error: sqrt(E |y - W~ x~ - bias_shift|^2 / E |y - E y|^2); 0 where the response is constant. What
            comes from earlier layers is seen down to 3e-7.
        response_error_start: the same for the start, with its own bias shift.
        weight_error: |W - W~| / |W|.
    """

    factorization: Factorization
    bias_shift: Array
    response_error: float
    response_error_start: float
    weight_error: float


def refine(start: Factorization, weight: Array, group: int, moments: Moments, tol: float, rounds: int = 4) -> Refined:
    """Fit the factors to data.

    Args:
        start: factors of the weight, within `tol`.
        weight: [O, I / group, *kernel], the original.
        tol: bound of |W - W~| / |W|, which is kept whatever the data say.
        rounds: of alternating least squares, for each penalty that is tried (six at most where the bound is met).

    Returns:
        Never a larger response error than that of the start with its bias shift. Deterministic. Needs about 4 times
        the memory of `moments.second`.
    """
    with threadpool_limits(1 if moments.second.shape[-1] <= SMALL else None):
        return _refine(start, weight, group, moments, tol=tol, rounds=rounds)


def _refine(start: Factorization, weight: Array, group: int, moments: Moments, tol: float, rounds: int) -> Refined:
    problem = _Problem(np.asarray(weight, np.float64), group, moments)
    best, floor = start, problem.response_error(start)
    low, high = _DECADES
    free = _attempt(start, problem, 0.0, rounds)
    tried = [free]
    if problem.weight_error(free) > tol:
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            tried.append(_attempt(start, problem, 10**middle, rounds))
            if problem.weight_error(tried[-1]) <= tol:
                high = middle
            else:
                low = middle
    error = floor
    for factors in tried:
        found = problem.response_error(factors)
        if found < error and problem.weight_error(factors) <= tol:
            best, error = factors, found
    return Refined(
        best, problem.bias_shift(best), error, response_error_start=floor, weight_error=problem.weight_error(best)
    )


def _attempt(start: Factorization, problem: _Problem, penalty: float, rounds: int) -> Factorization:
    """The best that the rounds find with this penalty, in units of the mean second moment."""
    second, cross = problem.penalised(_RIDGE + penalty)
    group = problem.group
    firsts = [start, whitened(start, group, second, cross)]
    swept = [improved(factors, group, second, cross) for factors in firsts if factors is not None]
    best, least = min(((f, problem.objective(f, penalty)) for f in swept), key=lambda pair: pair[1])
    for _ in range(rounds - 1):
        factors = improved(best, group, second, cross)
        error = problem.objective(factors, penalty)
        stalled = error >= least * (1 - _STALLED)
        if error < least:
            best, least = factors, error
        if stalled:
            break
    return best


class _Problem:
    """A weight and its moments."""

    def __init__(self, weight: Array, group: int, moments: Moments) -> None:
        size = weight[0].size
        shapes = (group, size, size), (len(weight), size), (group, size), (len(weight),)
        given = moments.second, moments.cross, moments.input_mean, moments.response_mean
        for array, shape in zip(given, shapes, strict=True):
            if array.shape != shape:
                raise ValueError(f"moments of shape {array.shape} where the weight asks for {shape}")
            if not np.isfinite(array).all():
                raise ValueError("the moments hold NaN or infinity")
        self.group = group
        self._weight = weight
        self._flat = weight.reshape(group, -1, size)
        self._moments = moments
        self._mean: float = float(np.einsum("gii->", moments.second)) / (group * size)
        cross = moments.cross.reshape(self._flat.shape)
        seen = self._flat @ moments.second
        # What is left if W stays: the input has changed, but the weight has not.
        self._slope = cross - seen
        kept = moments.response - 2 * float(np.vdot(self._flat, cross)) + float(np.vdot(self._flat, seen))
        self._kept: float = kept if kept > _UNSEEN * moments.response else 0.0

    def penalised(self, penalty: float) -> tuple[Array, Array]:
        """S + penalty I and C + penalty W, in units of the mean second moment (1 where there is none)."""
        amount = penalty * (self._mean or 1.0)
        second = self._moments.second.copy()
        np.einsum("gii->gi", second)[...] += amount
        return second, self._moments.cross + amount * self._weight.reshape(self._moments.cross.shape)

    def objective(self, factors: Factorization, penalty: float) -> float:
        """The squared response error plus the penalty."""
        change = self._change(factors)
        return self._squared(change) + penalty * self._mean * float(np.vdot(change, change))

    def response_error(self, factors: Factorization) -> float:
        """The relative error of the response, after the bias shift."""
        return math.sqrt(relative(self._squared(self._change(factors)), self._moments.response))

    def weight_error(self, factors: Factorization) -> float:
        """The relative error of the weight, |W - W~| / |W|."""
        return relative(float(np.linalg.norm(self._change(factors))), float(np.linalg.norm(self._weight)))

    def bias_shift(self, factors: Factorization) -> Array:
        """The shift of the bias, E y - W~ E x~."""
        dense = factors.dense().reshape(self._flat.shape)
        shift: Array = self._moments.response_mean - (dense @ self._moments.input_mean[:, :, None]).ravel()
        return shift

    def _change(self, factors: Factorization) -> Array:
        """W~ - W, [g, O / g, D]."""
        change: Array = factors.dense().reshape(self._flat.shape) - self._flat
        return change

    def _squared(self, change: Array) -> float:
        linear = 2 * float(np.vdot(change, self._slope))
        squared = self._kept - linear + float(np.vdot(change, change @ self._moments.second))
        return max(squared, 0.0)
