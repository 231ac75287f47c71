"""Factors fitted to data: better on the response, within the bound on the weight, and checked on the samples."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import scipy.optimize

from convrewrite.passes.separable import squares
from convrewrite.passes.separable.decomposition import Decomposition
from convrewrite.passes.separable.factors import Array, Factor, Factorization
from convrewrite.passes.separable.forms import decompositions
from convrewrite.passes.separable.refine import Moments, Refined, refine
from convrewrite.passes.separable.rounds import rebalanced

WEIGHTS = [
    ((10, 8, 3, 3), 1),
    ((8, 4, 3, 3), 2),
    ((8, 1, 4, 5), 8),
    ((8, 1, 3, 5), 4),
    ((6, 4, 3, 2, 3), 1),
    ((4, 1, 3, 2, 3), 4),
    ((8, 6, 5), 1),
    ((10, 8, 1, 1), 1),
]
CASES = [
    pytest.param(shape, group, made.name, id=f"{'x'.join(map(str, shape))}-g{group}-{made.name}")
    for shape, group in WEIGHTS
    for made in decompositions(np.zeros(shape), group)
]
ANY = 100.0  # a bound on the weight that nothing meets


@dataclass(frozen=True)
class Data:
    """Patches [N, g, D] in the rewritten network, the original's responses [N, O], and their moments."""

    patches: Array
    responses: Array
    moments: Moments

    def error(self, factors: Factorization, shift: Array) -> float:
        """The relative response error, sample by sample."""
        count, group, size = self.patches.shape
        weight = factors.dense().reshape(group, -1, size)
        answers = np.einsum("ngd,god->ngo", self.patches, weight).reshape(count, -1) + shift
        spread = self.responses - self.responses.mean(axis=0)
        return float(np.linalg.norm(self.responses - answers) / np.linalg.norm(spread))


def data_of(weight: Array, group: int, *, count: int = 3000, drift: float = 0.0, seed: int = 0) -> Data:
    """Smooth maps of correlated channels, rectified; `drift` is what earlier layers changed."""
    rng = np.random.default_rng(seed)
    inputs = weight.shape[1] * group
    maps = rng.standard_normal((count, inputs, *weight.shape[2:]))
    for axis in range(2, maps.ndim):
        maps = maps + 0.5 * np.cumsum(maps, axis=axis)
    mixed = rng.standard_normal((inputs, inputs)) * np.logspace(0, -2, inputs)
    maps = np.maximum(np.einsum("ij,nj...->ni...", mixed, maps) + 0.3, 0.0)
    original = maps.reshape(count, group, -1)
    patches = original + drift * original.std() * rng.standard_normal(original.shape)
    kernels = weight.reshape(group, weight.shape[0] // group, -1)
    responses = np.einsum("ngd,god->ngo", original, kernels).reshape(count, -1)
    patch, response = patches - patches.mean(axis=0), responses - responses.mean(axis=0)
    cross = np.einsum("ngo,ngd->god", response.reshape(count, group, -1), patch).reshape(weight.shape[0], -1) / count
    moments = Moments(
        second=np.einsum("ngd,nge->gde", patch, patch) / count,
        cross=cross,
        response=float(np.sum(response**2)) / count,
        input_mean=patches.mean(axis=0),
        response_mean=responses.mean(axis=0),
    )
    return Data(patches, responses, moments)


def weight_of(shape: tuple[int, ...], seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def named(weight: Array, group: int, name: str) -> Decomposition:
    (made,) = [made for made in decompositions(weight, group) if made.name == name]
    return made


def half(made: Decomposition) -> Factorization:
    return made.build(tuple(max(1, most // 2) for most in made.full))


def weight_error(weight: Array, factors: Factorization) -> float:
    return float(np.linalg.norm(weight - factors.dense()) / np.linalg.norm(weight))


def optimum(data: Data, shape: tuple[int, ...]) -> float:
    """The relative response error of the best dense kernel, by least squares on the samples."""
    count, group, _ = data.patches.shape
    response = (data.responses - data.responses.mean(axis=0)).reshape(count, group, -1)
    left = 0.0
    for number in range(group):
        patches = data.patches[:, number] - data.patches[:, number].mean(axis=0)
        best = np.linalg.lstsq(patches, response[:, number], rcond=None)[0]
        left += float(np.sum((response[:, number] - patches @ best) ** 2))
    assert response.shape[1] * response.shape[2] == shape[0]
    return math.sqrt(left / float(np.sum(response**2)))


def same_layout(one: Factorization, two: Factorization) -> bool:
    stages = [[[factor.stage for factor in branch] for branch in factors.branches] for factors in (one, two)]
    return stages[0] == stages[1] and (one.form, one.name, one.rank) == (two.form, two.name, two.rank)


@pytest.mark.parametrize("drift", [0.0, 0.05])
@pytest.mark.parametrize(("shape", "group", "name"), CASES)
def test_the_response_error_falls(shape: tuple[int, ...], group: int, name: str, drift: float) -> None:
    weight = weight_of(shape)
    data = data_of(weight, group, drift=drift)
    start = half(named(weight, group, name))
    before = [factor.weight.copy() for branch in start.branches for factor in branch]
    result = refine(start, weight, group, data.moments, ANY)
    # Rank-one filters and few channels leave the data little room.
    assert result.response_error < (0.99 if shape[1] == 1 else 0.9) * result.response_error_start
    assert result.response_error == pytest.approx(data.error(result.factorization, result.bias_shift), rel=1e-6)
    answers = np.einsum("gd,god->go", data.moments.input_mean, start.dense().reshape(group, -1, math.prod(shape[1:])))
    shift = data.moments.response_mean - answers.ravel()
    assert result.response_error_start == pytest.approx(data.error(start, shift), rel=1e-6)
    assert result.weight_error == pytest.approx(weight_error(weight, result.factorization), rel=1e-9)
    assert same_layout(result.factorization, start)
    after = [factor.weight for branch in start.branches for factor in branch]
    assert all((old == new).all() for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize("slack", [1.0, 1.001, 1.05, 1.5])
@pytest.mark.parametrize(("shape", "group", "name"), CASES)
def test_the_bound_on_the_weight_holds(shape: tuple[int, ...], group: int, name: str, slack: float) -> None:
    weight = weight_of(shape)
    data = data_of(weight, group, count=600, drift=0.05)
    start = half(named(weight, group, name))
    tol = slack * weight_error(weight, start)
    result = refine(start, weight, group, data.moments, tol)
    assert weight_error(weight, result.factorization) <= tol
    assert result.response_error <= result.response_error_start
    if slack >= 1.05 and shape[1] > 1:
        assert result.response_error < 0.97 * result.response_error_start


@pytest.mark.parametrize(("shape", "group", "name"), CASES)
def test_a_full_rank_reaches_the_optimum_without_bound(shape: tuple[int, ...], group: int, name: str) -> None:
    weight = weight_of(shape)
    data = data_of(weight, group, drift=0.2)
    made = named(weight, group, name)
    result = refine(made.build(made.full), weight, group, data.moments, ANY)
    assert result.response_error == pytest.approx(optimum(data, shape), rel=1e-3)
    assert result.response_error < result.response_error_start


def test_channel_out_is_reduced_rank_regression() -> None:
    """The exact optimum: the leading directions of the fitted responses, written out on the samples."""
    weight = weight_of((10, 6, 3, 3))
    data = data_of(weight, 1, drift=0.1)
    patches = data.patches[:, 0] - data.patches[:, 0].mean(axis=0)
    response = data.responses - data.responses.mean(axis=0)
    fitted = patches @ np.linalg.lstsq(patches, response, rcond=None)[0]
    _, values, right = np.linalg.svd(fitted, full_matrices=False)
    for rank in (2, 5, 8):
        best = np.linalg.norm(response - fitted @ right[:rank].T @ right[:rank]) / np.linalg.norm(response)
        result = refine(named(weight, 1, "channel-out").build((rank,)), weight, 1, data.moments, ANY)
        assert result.response_error == pytest.approx(best, rel=1e-5)
    assert (np.diff(values) <= 0).all()


@pytest.mark.parametrize(
    "name", ["vertical-horizontal", "channel-in", "tucker", "depthwise-pointwise", "pointwise-depthwise"]
)
def test_descent_from_the_result_gains_little(name: str) -> None:
    """A general minimiser over all factors at once, with numerical slopes of the error on the moments."""
    weight = weight_of((5, 4, 3, 2))
    data = data_of(weight, 1, drift=0.1)
    made = named(weight, 1, name)
    result = refine(made.build(tuple(min(2, most) for most in made.full)), weight, 1, data.moments, ANY, rounds=30)
    found = result.factorization
    sizes = [factor.weight.size for branch in found.branches for factor in branch]

    def error(numbers: Array) -> float:
        parts = iter(np.split(numbers, np.cumsum(sizes)[:-1]))
        branches = tuple(
            tuple(Factor(next(parts).reshape(factor.weight.shape), factor.group) for factor in branch)
            for branch in found.branches
        )
        change = replace(found, branches=branches).dense().reshape(len(weight), -1)
        linear = 2 * np.vdot(change, data.moments.cross)
        squared = data.moments.response - linear + np.vdot(change, change @ data.moments.second[0])
        return float(squared / data.moments.response)

    numbers = np.concatenate([factor.weight.ravel() for branch in found.branches for factor in branch])
    better = scipy.optimize.minimize(error, numbers, method="L-BFGS-B", options={"maxiter": 50})
    assert math.sqrt(better.fun) > 0.97 * result.response_error


@pytest.mark.parametrize(("shape", "group", "name"), CASES)
def test_moments_of_few_samples_do_no_harm(shape: tuple[int, ...], group: int, name: str) -> None:
    """Fewer samples than numbers in a patch, and a channel that is always 0: the moments have no inverse."""
    weight = weight_of(shape)
    data = data_of(weight, group, count=5)
    moments = replace(data.moments, second=data.moments.second.copy(), cross=data.moments.cross.copy())
    moments.second[:, 0], moments.second[:, :, 0], moments.cross[:, 0] = 0.0, 0.0, 0.0
    start = half(named(weight, group, name))
    result = refine(start, weight, group, moments, ANY)
    assert all(np.isfinite(factor.weight).all() for branch in result.factorization.branches for factor in branch)
    assert result.response_error <= result.response_error_start
    assert result.weight_error < 20


@pytest.mark.parametrize(("shape", "group", "name"), CASES)
def test_nothing_to_fit(shape: tuple[int, ...], group: int, name: str) -> None:
    """No data at all, and a weight of zeros: the start stays."""
    size = math.prod(shape[1:])
    none = Moments(
        np.zeros((group, size, size)), np.zeros((shape[0], size)), 0.0, np.zeros((group, size)), np.zeros(shape[0])
    )
    weight = weight_of(shape)
    result = refine(half(named(weight, group, name)), weight, group, none, ANY)
    assert (result.response_error, result.response_error_start) == (0.0, 0.0)
    assert not result.bias_shift.any()
    zeros = np.zeros(shape)
    start = half(named(zeros, group, name))
    result = refine(start, zeros, group, data_of(zeros, group, count=50).moments, 0.0)
    assert (result.response_error, result.weight_error) == (0.0, 0.0)
    assert result.factorization is start


def test_the_bias_makes_the_mean_response_right() -> None:
    weight = weight_of((8, 6, 3, 3))
    data = data_of(weight, 1, drift=0.3)
    result = refine(half(named(weight, 1, "channel-in")), weight, 1, data.moments, ANY)
    dense = result.factorization.dense().reshape(8, -1)
    answers = data.patches[:, 0] @ dense.T + result.bias_shift
    np.testing.assert_allclose(answers.mean(axis=0), data.responses.mean(axis=0), atol=1e-10)


def test_small_errors_are_not_lost_in_the_response() -> None:
    """A weight that is low-rank to 1e-6: the error on the data is of that order, and is stated to 1 %."""
    rng = np.random.default_rng(4)
    first, second = rng.standard_normal((6, 5, 3, 1)), rng.standard_normal((8, 6, 1, 3))
    exact = Factorization("spatial", "vertical-horizontal", (6,), ((Factor(first, 1), Factor(second, 1)),))
    weight = exact.dense() + 1e-6 * rng.standard_normal((8, 5, 3, 3))
    data = data_of(weight, 1)
    result = refine(named(weight, 1, "vertical-horizontal").build((6,)), weight, 1, data.moments, ANY)
    assert 1e-9 < result.response_error <= result.response_error_start < 1e-5
    assert result.response_error == pytest.approx(data.error(result.factorization, result.bias_shift), rel=0.01)


def test_the_same_data_give_the_same_bytes() -> None:
    weight = weight_of((8, 6, 3, 3))
    data = data_of(weight, 1)
    results: list[Refined] = [
        refine(half(named(weight, 1, "vertical-horizontal")), weight, 1, data.moments, 0.7) for _ in range(2)
    ]
    one, two = ([f.weight.tobytes() for f in result.factorization.branches[0]] for result in results)
    assert one == two


def test_moments_of_another_layer_are_refused() -> None:
    weight = weight_of((8, 6, 3, 3))
    moments = data_of(weight, 1, count=50).moments
    start = half(named(weight, 1, "channel-out"))
    with pytest.raises(ValueError, match="moments of shape"):
        refine(start, weight, 1, replace(moments, cross=moments.cross[:-1]), ANY)
    with pytest.raises(ValueError, match="NaN"):
        refine(start, weight, 1, replace(moments, cross=np.full_like(moments.cross, np.nan)), ANY)


@pytest.mark.parametrize(("shape", "group", "name"), CASES)
def test_rebalancing_changes_scales_and_nothing_else(shape: tuple[int, ...], group: int, name: str) -> None:
    factors = half(named(weight_of(shape), group, name))
    skewed = tuple(
        tuple(Factor(factor.weight * (1e4 if place else 1e-4), factor.group) for place, factor in enumerate(branch))
        for branch in factors.branches
    )
    even = replace(factors, branches=tuple(rebalanced(branch) for branch in skewed))
    scale = 1e4 ** (len(skewed[0]) - 2)
    np.testing.assert_allclose(even.dense() / scale, factors.dense(), rtol=1e-9, atol=1e-9)
    largest = [max(float(np.abs(f.weight).max()) for f in branch) for branch in even.branches]
    assert max(largest) < 1e3 * scale


def test_systems_without_inverse() -> None:
    rng = np.random.default_rng(0)
    half_rank = rng.standard_normal((8, 4))
    system = half_rank @ half_rank.T
    right = system @ rng.standard_normal((8, 3))
    np.testing.assert_allclose(system @ squares.solved(system, right), right, atol=1e-6)
    assert not squares.solved(np.zeros((3, 3)), np.ones((3, 1))).any()
