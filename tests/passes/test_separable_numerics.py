"""Factors of convolutions: planted ranks are found, stated errors are true errors, and oracles agree.

Weights are planted by composing random factors by hand-written correlation, and errors are compared with numpy's SVD of
matrices that are written out here.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import HANGS

from convrewrite.engine.convsite import rounding
from convrewrite.passes.separable.decomposition import Decomposition, answers, bisect, highest_corners, lowest_corners
from convrewrite.passes.separable.factors import Array, Factor, Factorization, Rank, Stage
from convrewrite.passes.separable.forms import FORMS, decompositions
from convrewrite.passes.separable.lazy import lazy
from convrewrite.passes.separable.spectra import Bank, Matrix

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


@st.composite
def weights(draw: st.DrawFn) -> tuple[Array, int]:
    group = draw(st.integers(1, 3))
    shape = [group * draw(st.integers(1, 4)), draw(st.integers(1, 4)), *draw(st.lists(st.integers(1, 4), max_size=3))]
    shape += [draw(st.integers(1, 4))] * (len(shape) == 2)
    weight = normal(shape, seed=draw(st.integers(0, 1 << 30)))
    return (weight * 10.0 ** draw(st.integers(-6, 6))).astype(draw(st.sampled_from(["float32", "float64"]))), group


@settings(deadline=None, max_examples=60)
@given(weights(), st.sampled_from([0.0, 1e-10, 0.01, 0.1, 0.3, 0.6]))
def test_errors_are_true_and_monotone_and_ranks_are_minimal(drawn: tuple[Array, int], tol: float) -> None:
    weight, group = drawn
    for made in decompositions(weight, group):
        errors = {rank: made.error(rank) for rank in ranks(made)}
        for rank, error in errors.items():
            assert error == pytest.approx(true_error(weight, made, rank), rel=0.01, abs=3e-14)
            assert made.within(rank, tol) == (error <= tol)
            below = [tuple(np.subtract(rank, step)) for step in np.eye(len(rank), dtype=int)]
            assert all(errors[less] >= error * (1 - 1e-12) for less in below if min(less) >= 1)
        good = {rank for rank, error in errors.items() if error <= tol}
        minimal = [r for r in good if not any(o != r and all(np.less_equal(o, r)) for o in good)]
        assert sorted(made.smallest(tol)) == sorted(minimal)
        budget = sum(made.full) // 2
        inside = [rank for rank in errors if sum(rank) <= budget]
        maximal = [r for r in inside if not any(o != r and all(np.greater_equal(o, r)) for o in inside)]
        assert sorted(made.largest(lambda rank, most=budget: sum(rank) <= most)) == sorted(maximal)  # type: ignore[misc]
        fitting = [rank for rank in minimal if sum(rank) <= budget]
        assert sorted(made.smallest(tol, lambda rank, most=budget: sum(rank) <= most)) == sorted(fitting)  # type: ignore[misc]


def test_searches_on_staircases() -> None:
    assert [bisect(9, lambda n, at=at: n >= at) for at in (1, 5, 9)] == [1, 5, 9]  # type: ignore[misc]
    assert lowest_corners((4, 6), lambda a, b: a * b >= 6) == [(1, 6), (2, 3), (3, 2)]
    assert highest_corners((4, 6), lambda a, b: a * b <= 6) == [(1, 6), (2, 3), (3, 2), (4, 1)]
    assert highest_corners((4, 6), lambda a, b: False) == []


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (90, 200)])
def test_small_tails_are_right_far_below_the_reach_of_a_gram_matrix(shape: tuple[int, int]) -> None:
    """Twelve digits of spectrum; a Gram matrix loses everything below the eighth."""
    size = min(shape)
    values = np.logspace(0, -12, size)
    left, right = (np.linalg.qr(normal((n, size), seed=n))[0] for n in shape)
    matrix = Matrix((left * values) @ right.T)
    bank = Bank((1, *shape), lambda: ((left * values) @ right.T)[None])
    for rank in range(1, size):
        tail = float(np.linalg.norm(values[rank:]))
        if tail > 1e-11:
            assert matrix.tail(rank) == pytest.approx(tail, rel=0.01)
            assert bank.tail(rank) == pytest.approx(tail, rel=0.01)
            one, two = bank.factors(rank)
            built = np.linalg.norm((left * values) @ right.T - one[0] @ two[0])
            assert built == pytest.approx(tail, rel=0.01)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_weights_that_were_rounded_are_low_rank_to_rounding(dtype: str) -> None:
    exact = kernel_of(named(np.zeros((24, 20, 3, 3)), 1, "vertical-horizontal").layout((6,)), (24, 20, 3, 3), 1, 5)
    weight = exact.astype(dtype)
    made = named(weight, 1, "vertical-horizontal")
    assert made.smallest(rounding(dtype)) == [(6,)]
    assert 0 < made.error((6,)) < rounding(dtype)
    assert made.error((6,)) == pytest.approx(true_error(weight, made, (6,)), rel=0.01)


def test_what_counts_as_rounding() -> None:
    assert rounding(np.float32) == pytest.approx(9.5e-7, rel=0.01)
    assert rounding(np.float16) == pytest.approx(7.8e-3, rel=0.01)
    assert rounding("float64") == 1e-13


@pytest.mark.parametrize(("shape", "group"), WEIGHTS)
def test_a_weight_of_zeros_has_factors_of_zeros(shape: tuple[int, ...], group: int) -> None:
    for made in decompositions(np.zeros(shape, np.float32), group):
        assert made.error(made.full) == 0
        assert made.smallest(0.0) == [tuple(1 for _ in made.full)]
        assert all(not factor.weight.any() for branch in made.build(made.full).branches for factor in branch)


@pytest.mark.parametrize(("shape", "group", "name"), CASES)
def test_directions_without_energy_become_zeros(shape: tuple[int, ...], group: int, name: str) -> None:
    """So that a rank may be rounded up to a block of channels at no cost in error."""
    rank = planted_rank(named(np.zeros(shape), group, name))
    weight = kernel_of(named(np.zeros(shape), group, name).layout(rank), shape, group, seed=1)
    made = named(weight, group, name)
    more = tuple(min(most, number + 1) for most, number in zip(made.full, rank, strict=True))
    for branch, smaller in zip(made.build(more).branches, made.build(rank).branches, strict=False):
        assert all(np.isfinite(factor.weight).all() for factor in branch)
        for factor, exact in zip(branch, smaller, strict=True):
            largest = max(1.0, float(np.abs(exact.weight).max()))
            assert np.abs(factor.weight).max() <= largest * (1 + 1e-6)
    assert true_error(weight, made, more) < 1e-13


@pytest.mark.parametrize(("shape", "group", "name"), CASES)
def test_the_same_weight_gives_the_same_bytes(shape: tuple[int, ...], group: int, name: str) -> None:
    weight = normal(shape).astype(np.float32)
    rank = planted_rank(named(weight, group, name))
    one, two = (named(weight.copy(), group, name).build(rank) for _ in range(2))
    pairs = zip(itertools.chain(*one.branches), itertools.chain(*two.branches), strict=True)
    assert all(a.weight.tobytes() == b.weight.tobytes() for a, b in pairs)


def test_the_sign_of_a_factor_is_that_of_its_largest_entry() -> None:
    weight = normal((8, 6, 3, 3))
    first = named(weight, 1, "vertical-horizontal").build((7,)).branches[0][0].weight.reshape(7, -1)
    assert (first.max(axis=1) == np.abs(first).max(axis=1)).all()
    flipped = named(-weight, 1, "vertical-horizontal").build((7,)).branches[0][0].weight.reshape(7, -1)
    np.testing.assert_allclose(flipped, first, atol=1e-12)


def test_factors_are_scaled_alike() -> None:
    one, two = named(1e-4 * normal((16, 16, 3, 3)), 1, "vertical-horizontal").build((20,)).branches[0]
    np.testing.assert_allclose(
        np.linalg.norm(one.weight.reshape(20, -1), axis=1),
        np.linalg.norm(two.weight.swapaxes(0, 1).reshape(20, -1), axis=1),
        rtol=1e-9,
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_no_input(bad: float) -> None:
    weight = normal((4, 3, 3, 3))
    weight[1, 2, 0, 0] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        decompositions(weight, 1)


def test_questions_that_have_no_answer() -> None:
    with pytest.raises(ValueError, match="no convolution"):
        decompositions(np.zeros(4), 1)
    with pytest.raises(ValueError, match="no convolution"):
        decompositions(np.zeros((4, 3, 3)), 3)
    with pytest.raises(ValueError, match="no such form: fourier"):
        decompositions(np.zeros((4, 3, 3)), 1, ("fourier",))
    made = decompositions(normal((4, 3, 3)), 1)[0]
    for rank in ((0,), (99,), (1, 1)):
        with pytest.raises(ValueError, match="rank"):
            made.error(rank)


def test_forms_are_chosen_and_names_are_unique() -> None:
    for shape, group in WEIGHTS:
        names = [made.name for made in decompositions(normal(shape), group)]
        assert len(names) == len(set(names))
        for form in FORMS:
            both = {"depthwise"} if form == "spatial" else set()  # filters on one channel are found as either
            assert {made.form for made in decompositions(normal(shape), group, (form,))} <= {form} | both
    assert [made.name for made in decompositions(normal((7, 5, 1, 1)), 1)] == ["channel"]
    assert decompositions(normal((5, 1, 1, 1)), 5) == []


def test_many_at_once_are_the_same() -> None:
    weight = normal((12, 10, 3, 3))
    alone, together = decompositions(weight, 1), decompositions(weight, 1)
    answers(together, lambda made: made.error(made.full), workers=2)
    for one, two in zip(alone, together, strict=True):
        np.testing.assert_allclose(one.spectra[0], two.spectra[0], rtol=1e-12)


def test_a_far_weight_is_refused_without_a_closer_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """What planning a trained network at a small tolerance costs: Gram matrices, and nothing with vectors."""

    def closer(*_: Any) -> None:
        raise AssertionError("looked closer")

    monkeypatch.setattr(Matrix, "__init__", closer)
    for made in decompositions(normal((32, 32, 3, 3)), 1, ("channel", "depthwise", "spatial")):
        assert made.smallest(1e-6, lambda rank, most=made.full[0] // 2: rank[0] <= most) == []  # type: ignore[misc]
        assert made.smallest(1e-4)


def test_lazy_values_are_computed_once_and_threads_do_not_wait_for_each_other() -> None:
    """functools.cached_property had one lock for all instances until Python 3.12."""
    barrier = threading.Barrier(2, timeout=HANGS)

    class Counted:
        calls = 0

        @lazy
        def value(self) -> int:
            self.calls += 1
            barrier.wait()
            return self.calls

    instances = [Counted(), Counted()]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda one: one.value, instances)) == [1, 1]
    assert [one.value for one in instances] == [1, 1]
