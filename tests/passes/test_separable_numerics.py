"""Factors of convolutions: planted ranks are found, stated errors are true errors, and oracles agree.

Weights are planted by composing random factors by hand-written correlation, and errors are compared with numpy's SVD of
matrices that are written out here.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from separable_factors import CASES, convolved, kernel_of, named, normal, planted_rank, ranks, run, true_error


@pytest.mark.parametrize(("shape", "group", "name"), CASES)
def test_a_planted_rank_is_found_and_exact(shape: tuple[int, ...], group: int, name: str) -> None:
    rank = planted_rank(named(np.zeros(shape), group, name))
    weight = kernel_of(named(np.zeros(shape), group, name).layout(rank), shape, group, seed=1)
    made = named(weight, group, name)
    assert made.smallest(1e-12) == [rank]
    assert made.error(rank) < 1e-13
    assert true_error(weight, made, rank) < 1e-13


@pytest.mark.parametrize("noise", [1e-2, 1e-5, 1e-7, 1e-9])
@pytest.mark.parametrize(("shape", "group", "name"), CASES)
def test_the_stated_error_of_planted_noise_is_the_true_one(
    shape: tuple[int, ...], group: int, name: str, noise: float
) -> None:
    rank = planted_rank(named(np.zeros(shape), group, name))
    weight = kernel_of(named(np.zeros(shape), group, name).layout(rank), shape, group, seed=1)
    weight += noise * np.linalg.norm(weight) / math.sqrt(weight.size) * normal(shape, seed=2)
    made = named(weight, group, name)
    stated = made.error(rank)
    assert stated == pytest.approx(true_error(weight, made, rank), rel=0.01)
    assert 0.05 * noise < stated < 1.5 * noise


@pytest.mark.parametrize(("shape", "group", "name"), CASES)
def test_every_rank_builds_what_its_layout_and_its_error_say(shape: tuple[int, ...], group: int, name: str) -> None:
    weight = normal(shape).astype(np.float32)
    made = named(weight, group, name)
    for rank in ranks(made):
        factors = made.build(rank)
        assert (factors.form, factors.name, factors.rank) == (made.form, name, rank)
        assert tuple(tuple(factor.stage for factor in branch) for branch in factors.branches) == made.layout(rank)
        assert all(factor.weight.dtype == np.float64 for branch in factors.branches for factor in branch)
        assert factors.dense().shape == shape
        assert made.error(rank) == pytest.approx(true_error(weight, made, rank), rel=1e-6, abs=3e-14)


@pytest.mark.parametrize(("shape", "group", "name"), CASES)
def test_the_chain_computes_what_its_dense_kernel_does(shape: tuple[int, ...], group: int, name: str) -> None:
    made = named(normal(shape), group, name)
    factors = made.build(planted_rank(made))
    image = normal((shape[1] * group, *(extent + 2 for extent in shape[2:])), seed=3)
    np.testing.assert_allclose(run(image, factors), convolved(image, factors.dense(), group), atol=1e-12)


@pytest.mark.parametrize(("shape", "group", "name"), CASES)
def test_the_axes_are_shared_out_among_the_stages(shape: tuple[int, ...], group: int, name: str) -> None:
    for branch in named(np.zeros(shape), group, name).layout(planted_rank(named(np.zeros(shape), group, name))):
        owners = np.array([stage.kernel for stage in branch])
        assert tuple(owners.max(axis=0)) == shape[2:]
        assert (owners > 1).sum(axis=0).max() <= 1
        assert (branch[0].inputs, branch[-1].out) == (shape[1] * group, shape[0])
        assert all(one.out == two.inputs for one, two in itertools.pairwise(branch))


BY_HAND = {
    "vertical-horizontal": lambda w: [w.transpose(1, 2, 0, 3).reshape(w.shape[1] * w.shape[2], -1)],
    "horizontal-vertical": lambda w: [w.transpose(1, 3, 0, 2).reshape(w.shape[1] * w.shape[3], -1)],
    "channel-out": lambda w: [w.reshape(w.shape[0], -1)],
    "channel-in": lambda w: [w.swapaxes(0, 1).reshape(w.shape[1], -1)],
    "depthwise-pointwise": lambda w: [w[:, i].reshape(w.shape[0], -1) for i in range(w.shape[1])],
    "pointwise-depthwise": lambda w: [w[o].reshape(w.shape[1], -1) for o in range(w.shape[0])],
    "depthwise-vertical-horizontal": lambda w: [w[o, 0] for o in range(w.shape[0])],
}


@pytest.mark.parametrize("name", BY_HAND)
def test_errors_are_the_tails_of_the_matrices_written_out(name: str) -> None:
    shape, group = ((10, 1, 4, 5), 10) if name == "depthwise-vertical-horizontal" else ((8, 6, 3, 4), 1)
    weight = normal(shape)
    made = named(weight, group, name)
    values = np.array([np.linalg.svd(matrix, compute_uv=False) for matrix in BY_HAND[name](weight)])
    assert made.full == (values.shape[1],)
    for rank in range(1, values.shape[1]):
        tail = np.sqrt(np.sum(values[:, rank:] ** 2)) / np.linalg.norm(weight)
        assert made.error((rank,)) == pytest.approx(tail, rel=1e-9)
    np.testing.assert_allclose(made.spectra[0], np.sqrt(np.sum(values**2, axis=0)), rtol=1e-9)


def test_groups_are_matrices_side_by_side() -> None:
    weight = normal((9, 4, 3, 5))
    made = named(weight, 3, "vertical-horizontal")
    blocks = weight.reshape(3, 3, 4, 3, 5)
    values = [np.linalg.svd(b.transpose(1, 2, 0, 3).reshape(12, 15), compute_uv=False) for b in blocks]
    for rank in range(1, 12):
        tail = math.sqrt(sum(np.sum(v[rank:] ** 2) for v in values)) / np.linalg.norm(weight)
        assert made.error((rank,)) == pytest.approx(tail, rel=1e-9)


def test_tucker_is_the_projection_on_the_leading_directions() -> None:
    """HOSVD: exactly that of tensorly, and at most sqrt(2) times the error of its iterated best."""
    tensorly = pytest.importorskip("tensorly")
    decomposition = pytest.importorskip("tensorly.decomposition")
    weight = normal((8, 6, 3, 4))
    made = named(weight, 1, "tucker")
    bases = [np.linalg.svd(tensorly.unfold(weight, mode))[0] for mode in (0, 1)]
    for rank in [(2, 3), (4, 4), (5, 7), (6, 2)]:
        cut = [basis[:, :number] for basis, number in zip(bases, reversed(rank), strict=True)]
        core = tensorly.tenalg.multi_mode_dot(weight, [basis.T for basis in cut], modes=[0, 1])
        projected = tensorly.tenalg.multi_mode_dot(core, cut, modes=[0, 1])
        error = np.linalg.norm(weight - projected) / np.linalg.norm(weight)
        assert made.error(rank) == pytest.approx(error, rel=1e-9)
        np.testing.assert_allclose(made.build(rank).dense(), projected, atol=1e-12)
        (core, factors), _ = decomposition.partial_tucker(weight, (rank[1], rank[0]), modes=[0, 1], init="svd")
        best = np.linalg.norm(weight - tensorly.tenalg.multi_mode_dot(core, factors, modes=[0, 1]))
        assert best * (1 - 1e-9) <= error * np.linalg.norm(weight) <= math.sqrt(2) * best


def test_one_branch_of_a_volume_is_near_the_best_rank_one_term() -> None:
    tensorly = pytest.importorskip("tensorly")
    decomposition = pytest.importorskip("tensorly.decomposition")
    weight = normal((1, 1, 3, 4, 5))
    error = named(weight, 1, "depthwise-depth-vertical-horizontal").error((1,))
    best = tensorly.cp_to_tensor(decomposition.parafac(weight[0, 0], rank=1, n_iter_max=300, init="svd"))
    least = np.linalg.norm(weight[0, 0] - best) / np.linalg.norm(weight)
    assert least * (1 - 1e-6) <= error <= 1.1 * least
