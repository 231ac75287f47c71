"""One round of alternating least squares on the factors of any form, and where to start.

Weights are cut into the arrays of one group or of one filter, for `squares`, and put together again. All problems are
given by the second moment S [g, D, D] of the patches and by C [O, D], for which the best dense kernel T has T S = C.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import scipy.linalg

from convrewrite.passes.separable import squares
from convrewrite.passes.separable.factors import Array, Factor, Factorization


def improved(factors: Factorization, group: int, second: Array, cross: Array) -> Factorization:
    """Improve each factor once, with the others held fixed."""
    if _filters(factors):
        branches = _per_filter(factors, group, second, cross)
    elif factors.form == "depthwise":
        branches = _decoupled(factors, group, second, cross)
    else:
        branches = (_chain(factors.branches[0], group, second, cross),)
    return replace(factors, branches=tuple(rebalanced(branch) for branch in branches))


def whitened(factors: Factorization, group: int, second: Array, cross: Array) -> Factorization | None:
    """Another start for a chain: the directions that matter most to the response. None for other forms.

    With B the second moment of what the first stage sees, and M the best dense kernel T as a matrix of the first
    stage's side by the rest, the first stage is B^(-1/2) U for the leading U of B^(1/2) M. If the last of three stages
    is 1 x 1, it takes the principal components of the response, T S T^T. The others follow by least squares.
    """
    if factors.form == "depthwise" or _filters(factors):
        return None
    (chain,) = factors.branches
    found = [
        _whitened_group(weights, second[number], one)
        for number, (weights, one) in enumerate(zip(_by_group(chain, group), _rows(cross, group), strict=True))
    ]
    return replace(factors, branches=(_joined(found, chain),))


def rebalanced(chain: tuple[Factor, ...]) -> tuple[Factor, ...]:
    """The same chain, where what enters and what leaves a channel between two stages has the same norm."""
    weights = [factor.weight for factor in chain]
    for place in range(len(chain) - 1):
        one, two = weights[place], weights[place + 1]
        blocks = two.reshape(chain[place + 1].group, -1, *two.shape[1:])
        ahead = np.linalg.norm(one.reshape(len(one), -1), axis=1)
        behind = np.sqrt(np.sum(np.square(blocks).reshape(*blocks.shape[:3], -1), axis=(1, 3))).ravel()
        alive = (ahead > 0) & (behind > 0)
        scale = np.sqrt(np.divide(behind, ahead, out=np.zeros_like(ahead), where=alive))
        back = np.divide(1.0, scale, out=np.zeros_like(scale), where=alive)
        weights[place] = one * scale.reshape(-1, *(1,) * (one.ndim - 1))
        spread = back.reshape(len(blocks), 1, two.shape[1], *(1,) * (two.ndim - 2))
        weights[place + 1] = (blocks * spread).reshape(two.shape)
    return tuple(Factor(weight, factor.group) for weight, factor in zip(weights, chain, strict=True))


def _filters(factors: Factorization) -> bool:
    """Chains that filter single channels: all stages but the first are depthwise."""
    first, second = factors.branches[0][:2]
    if factors.form != "depthwise" or first.weight.shape[1] > 1:
        return False
    return second.group == len(second.weight) and math.prod(first.weight.shape[2:]) > 1 < math.prod(
        second.weight.shape[2:]
    )


def _chain(chain: tuple[Factor, ...], group: int, second: Array, cross: Array) -> tuple[Factor, ...]:
    groups = zip(_by_group(chain, group), second, _rows(cross, group), strict=True)
    return _joined([squares.sweep_chain(weights, metric, rows) for weights, metric, rows in groups], chain)


def _decoupled(factors: Factorization, group: int, second: Array, cross: Array) -> tuple[tuple[Factor, ...], ...]:
    stages = [
        np.stack([branch[stage].weight.reshape(len(branch[stage].weight), -1) for branch in factors.branches], axis=1)
        for stage in (0, 1)
    ]
    pointwise_first = math.prod(factors.branches[0][0].weight.shape[2:]) == 1
    sweep = squares.sweep_pointwise_first if pointwise_first else squares.sweep_depthwise_first
    problems = zip(*(np.split(values, group) for values in stages), second, _rows(cross, group), strict=True)
    swept = zip(*(sweep(*problem) for problem in problems), strict=True)
    return _shaped([np.concatenate(values).swapaxes(0, 1) for values in swept], factors)


def _per_filter(factors: Factorization, group: int, second: Array, cross: Array) -> tuple[tuple[Factor, ...], ...]:
    stages = [[branch[stage].weight for branch in factors.branches] for stage in range(len(factors.branches[0]))]
    kernel = np.max([weights[0].shape[2:] for weights in stages], axis=0)
    at = np.indices(kernel).reshape(len(kernel), -1)
    places = []
    for weights in stages:
        own = [axis if extent > 1 else None for axis, extent in enumerate(weights[0].shape[2:])]
        clamped = [at[axis] if axis is not None else np.zeros_like(at[0]) for axis in own]
        places.append(np.ravel_multi_index(clamped, weights[0].shape[2:]))
    parts = [np.stack([weight.reshape(len(weight), -1) for weight in weights]) for weights in stages]
    each = len(cross) // group
    for o, row in enumerate(cross):
        found = squares.sweep_filter([part[:, o] for part in parts], places, second[o // each], row)
        for part, values in zip(parts, found, strict=True):
            part[:, o] = values
    return _shaped(parts, factors)


def _shaped(stages: list[Array], like: Factorization) -> tuple[tuple[Factor, ...], ...]:
    """Arrays [r, channels, ...], one for each stage, as the factors of r branches."""
    return tuple(
        tuple(
            Factor(np.ascontiguousarray(values[number]).reshape(factor.weight.shape), factor.group)
            for values, factor in zip(stages, branch, strict=True)
        )
        for number, branch in enumerate(like.branches)
    )


def _whitened_group(chain: list[Array], second: Array, cross: Array) -> list[Array]:
    first, last = chain[0], chain[-1]
    kernel = np.max([weight.shape[2:] for weight in chain], axis=0)
    extents = (first.shape[1], *kernel)
    own = [axis for axis, extent in enumerate(first.shape[2:]) if extent > 1]
    rest = [axis for axis in range(len(kernel)) if axis not in own]
    order = [0, *(1 + axis for axis in (*own, *rest))]
    rows = first[0].size
    best = squares.solved(second, cross.T)
    matrix = best.reshape(*extents, -1).transpose(*order, len(extents)).reshape(rows, -1)
    metric = second.reshape(*extents, *extents).transpose(*order, *(len(extents) + axis for axis in order))
    metric = np.einsum("rqsq->rs", metric.reshape(rows, len(second) // rows, rows, -1))
    result = list(chain)
    result[0] = _leading(metric, matrix, len(first)).T.reshape(first.shape)
    if len(chain) == 3 and math.prod(last.shape[2:]) == 1:
        response = best.T @ cross.T
        vectors = scipy.linalg.eigh((response + response.T) / 2, check_finite=False)[1]
        result[-1] = vectors[:, ::-1][:, : last.shape[1]].reshape(last.shape)
    for place in range(1, len(chain)):
        result[place] = squares.link(result, place, second, cross)
    return result


def _leading(metric: Array, matrix: Array, rank: int) -> Array:
    """B^(-1/2) U [p, rank] for the leading left vectors U of B^(1/2) M, from the Gram matrix of the shorter side."""
    if matrix.shape[1] <= matrix.shape[0]:
        gram = matrix.T @ metric @ matrix
        vectors = scipy.linalg.eigh((gram + gram.T) / 2, check_finite=False)[1]
        leading: Array = matrix @ vectors[:, ::-1][:, :rank]
    else:
        scale = np.trace(metric) / len(metric)
        root = np.linalg.cholesky(metric + 1e-12 * scale * np.eye(len(metric)))
        product = root.T @ matrix
        vectors = np.linalg.eigh(product @ product.T)[1][:, ::-1][:, :rank]
        leading = scipy.linalg.solve_triangular(root.T, vectors, check_finite=False)
    norms = np.linalg.norm(leading, axis=0)
    unit: Array = np.divide(leading, norms, out=np.zeros_like(leading), where=norms > 0)
    return unit


def _by_group(chain: tuple[Factor, ...], group: int) -> list[list[Array]]:
    """The weights of the chain of each group; all stages have the groups of the original."""
    cut = [np.split(factor.weight, group) for factor in chain]
    return [list(weights) for weights in zip(*cut, strict=True)]


def _joined(groups: list[list[Array]], like: tuple[Factor, ...]) -> tuple[Factor, ...]:
    stages = zip(*groups, strict=True)
    return tuple(Factor(np.concatenate(stage), factor.group) for stage, factor in zip(stages, like, strict=True))


def _rows(cross: Array, group: int) -> list[Array]:
    return list(np.split(cross, group))
