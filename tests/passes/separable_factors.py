"""Decompositions of planted kernels, and what they are in dense form."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import scipy.signal

from convrewrite.passes.separable.decomposition import Decomposition
from convrewrite.passes.separable.factors import Array, Factor, Factorization, Rank, Stage
from convrewrite.passes.separable.forms import decompositions

# [O, I / g, *kernel] and g: every dimension, dense, grouped, depthwise, with a multiplier, with axes of extent 1.
WEIGHTS = [
    ((6, 5, 3, 4), 1),
    ((8, 4, 3, 3), 2),
    ((9, 2, 4, 3), 3),
    ((5, 1, 4, 5), 5),
    ((12, 1, 5, 3), 6),
    ((4, 1, 3, 3), 1),
    ((1, 6, 3, 3), 1),
    ((7, 5, 1, 1), 1),
    ((6, 4, 1, 1), 2),
    ((6, 4, 3, 1), 1),
    ((7, 4, 5), 1),
    ((6, 4, 5), 2),
    ((6, 1, 7), 6),
    ((6, 4, 3, 2, 4), 1),
    ((6, 3, 3, 2, 4), 2),
    ((6, 1, 3, 2, 4), 3),
    ((6, 4, 3, 1, 4), 1),
    ((6, 4, 1, 3, 4), 1),
    ((4, 1, 1, 3, 2), 4),
]


CASES = [
    pytest.param(shape, group, made.name, id=f"{'x'.join(map(str, shape))}-g{group}-{made.name}")
    for shape, group in WEIGHTS
    for made in decompositions(np.zeros(shape), group)
]


def normal(shape: Sequence[int], seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(tuple(shape))


def named(weight: Array, group: int, name: str) -> Decomposition:
    (made,) = [made for made in decompositions(weight, group) if made.name == name]
    return made


def true_error(weight: Array, made: Decomposition, rank: Rank) -> float:
    exact = weight.astype(np.float64)
    return float(np.linalg.norm(exact - made.build(rank).dense()) / np.linalg.norm(exact))


def ranks(made: Decomposition) -> list[Rank]:
    return list(itertools.product(*(range(1, most + 1) for most in made.full)))


def convolved(image: Array, weight: Array, group: int) -> Array:
    """What a convolution does to [channels, *map], one filter and one channel at a time, without padding."""
    out, inputs = weight.shape[:2]
    maps = []
    for o in range(out):
        first = o // (out // group) * inputs
        seen = [scipy.signal.correlate(image[first + i], weight[o, i], mode="valid") for i in range(inputs)]
        maps.append(np.sum(seen, axis=0))
    return np.stack(maps)


def run(image: Array, factors: Factorization) -> Array:
    results = []
    for branch in factors.branches:
        value = image
        for factor in branch:
            value = convolved(value, factor.weight, factor.group)
        results.append(value)
    return np.asarray(np.sum(results, axis=0))


def kernel_of(stages: Sequence[Sequence[Stage]], shape: Sequence[int], group: int, seed: int) -> Array:
    """The kernel of random factors, read off from what they do to impulses."""
    rng = np.random.default_rng(seed)
    branches = tuple(tuple(Factor(rng.standard_normal(s.weight_shape), s.group) for s in branch) for branch in stages)
    inputs = shape[1] * group
    weight = np.zeros(shape)
    room = [2 * extent - 1 for extent in shape[2:]]
    center = [extent - 1 for extent in shape[2:]]
    outs_each = shape[0] // group
    for channel in range(inputs):
        impulse = np.zeros((inputs, *room))
        impulse[(channel, *center)] = 1.0
        response = run(impulse, Factorization("", "", (), branches))
        mirrored = np.flip(response, axis=tuple(range(1, response.ndim)))
        block, inside = divmod(channel, shape[1])
        outs = slice(block * outs_each, (block + 1) * outs_each)
        weight[outs, inside] = mirrored[outs]
    return weight


def planted_rank(made: Decomposition) -> Rank:
    """A rank below the full one that random factors of that rank have."""
    if made.name.startswith("depthwise-") and "pointwise" not in made.name:
        return (1,)
    return tuple(max(1, most // 2) for most in made.full)
