"""How a rank is searched for, what counts as rounding, and what has no answer."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import HANGS

from convrewrite.engine.convsite import rounding
from convrewrite.passes.separable.decomposition import answers, bisect, highest_corners, lowest_corners
from convrewrite.passes.separable.factors import Array
from convrewrite.passes.separable.forms import FORMS, decompositions
from convrewrite.passes.separable.lazy import lazy
from convrewrite.passes.separable.spectra import Bank, Matrix
from separable_factors import CASES, WEIGHTS, kernel_of, named, normal, planted_rank, ranks, true_error


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
