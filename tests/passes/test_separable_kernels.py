"""Kernels that lectures name, and the ranks that they are known to have."""

from __future__ import annotations

import math

import numpy as np
import pytest

from convrewrite.passes.separable.factors import Array
from separable_factors import named


# Kernels of the lectures.
def gaussian(size: int, sigma: float) -> Array:
    at = np.arange(size) - size // 2
    row = np.exp(-(at**2) / (2 * sigma**2))
    return np.outer(row, row)


def gabor(size: int, sigma: float, angle: float) -> Array:
    at = np.arange(size) - size // 2
    along = at[:, None] * math.sin(angle) + at[None] * math.cos(angle)
    return gaussian(size, sigma) * np.cos(1.1 * along)


SOBEL = np.outer([1.0, 2.0, 1.0], [1.0, 0.0, -1.0])


@pytest.mark.parametrize(
    ("kernel", "rank"),
    [
        (SOBEL, 1),
        (np.ones((7, 5)), 1),
        (gaussian(9, 2.0), 1),
        (gabor(11, 3.0, 0.0), 1),
        (gabor(11, 3.0, math.pi / 4), 2),
        (np.array([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]), 2),
        (np.eye(5), 5),
    ],
    ids=["sobel", "box", "gaussian", "gabor-0", "gabor-45", "laplace", "diagonal"],
)
def test_the_kernels_of_the_lectures(kernel: Array, rank: int) -> None:
    for weight, group in ((kernel[None, None], 1), (np.repeat(kernel[None, None], 4, axis=0), 4)):
        for name in ("depthwise-vertical-horizontal", "depthwise-horizontal-vertical"):
            assert named(weight, group, name).smallest(1e-12) == [(rank,)]


def test_sobel_is_six_numbers() -> None:
    factors = named(SOBEL[None, None], 1, "vertical-horizontal").build((1,))
    vertical, horizontal = (factor.weight.ravel() for factor in factors.branches[0])
    assert vertical.size + horizontal.size == 6
    np.testing.assert_allclose(vertical / vertical[0], [1, 2, 1], atol=1e-14)
    np.testing.assert_allclose(horizontal / horizontal[0], [1, 0, -1], atol=1e-14)


def test_both_sobels_are_one_branch_but_rank_two() -> None:
    weight = np.stack([SOBEL, SOBEL.T])[:, None]
    assert named(weight, 1, "depthwise-vertical-horizontal").smallest(1e-12) == [(1,)]
    assert named(weight, 1, "vertical-horizontal").smallest(1e-12) == [(2,)]
