"""The numerics of `groups`: components, how they pack, and the blocks that keep the most energy."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convrewrite.engine import timemodel
from convrewrite.engine.convsite import rounding
from convrewrite.passes.groups.clustering import best_groups, cocluster, error_of_layout, needed_tol
from convrewrite.passes.groups.detection import kernel_norms, spread, structure
from convrewrite.passes.groups.offers import offers
from convrewrite.passes.groups.packing import Layout, equal_groups, layouts, pack, unequal_groups
from groups_nets import blocks, equal, planted
from helpers import Array

EXACT = rounding(np.dtype(np.float32))


def shapes_of(layout: Layout) -> list[tuple[int, tuple[int, int]]]:
    return [(len(part.groups), part.shape) for part in layout.parts]


def test_norms_of_a_grouped_kernel_are_those_of_the_dense_one() -> None:
    weight = np.random.default_rng(0).standard_normal((6, 2, 3, 5))
    dense = spread(weight, 3)
    assert dense.shape == (6, 6, 3, 5)
    np.testing.assert_allclose(kernel_norms(weight, 3), kernel_norms(dense))
    np.testing.assert_allclose(kernel_norms(dense), np.linalg.norm(dense.reshape(6, 6, -1), axis=2))


def test_components_and_dead_channels() -> None:
    weight = planted(np.random.default_rng(1), [(2, 3), (4, 1), (1, 1)], rows=np.arange(7), columns=np.arange(5))
    weight = np.insert(np.insert(weight, 2, 0, axis=0), [0, 5], 0, axis=1)
    found = structure(kernel_norms(weight))
    assert [c.shape for c in found.components] == [(2, 3), (4, 1), (1, 1)]
    assert found.dead_outputs.tolist() == [2]
    assert found.dead_inputs.tolist() == [0, 6]
    assert found.error == 0.0


def test_what_is_below_rounding_counts_as_zero() -> None:
    rng = np.random.default_rng(2)
    weight = planted(rng, equal(2, 16)).astype(np.float64)
    noise = rng.standard_normal(weight.shape)
    assert len(structure(kernel_norms(weight + 1e-10 * noise), 0.0, EXACT).components) == 2
    assert len(structure(kernel_norms(weight + 1e-5 * noise), 0.0, EXACT).components) == 1
    found = structure(kernel_norms(weight + 1e-3 * noise), 0.01, EXACT)
    assert len(found.components) == 2
    assert 0 < found.error <= 0.01


def test_a_weak_output_channel_is_not_noise() -> None:
    """A BatchNormalization may make it large again: what counts is its own norm."""
    weight = blocks(np.random.default_rng(3), equal(2, 16), (3, 3))
    weight[3] *= 1e-12
    found = structure(kernel_norms(weight), 0.0, EXACT)
    assert len(found.components) == 2
    assert not len(found.dead_outputs)


@pytest.mark.parametrize("groups", [2, 4, 6])
def test_equal_groups(groups: int) -> None:
    rng = np.random.default_rng(groups)
    weight = planted(rng, [(32, 16)] * groups)
    first = layouts(structure(kernel_norms(weight)), 9)[0]
    assert shapes_of(first) == [(groups, (32, 16))]
    assert error_of_layout(kernel_norms(weight), first) == 0.0
    permuted = weight[first.outputs][:, first.inputs]
    assert not permuted[:32, 16:].any()
    assert not permuted[32:, :16].any()


def test_small_components_share_a_group() -> None:
    weight = planted(np.random.default_rng(5), equal(16, 64))
    made = layouts(structure(kernel_norms(weight)), 9)
    assert shapes_of(made[0]) == [(4, (16, 16))], "groups of 16 are faster than groups of 4"
    assert {len(layout.parts[0].groups) for layout in made} == {2, 4, 8, 16}


def test_depthwise_is_found() -> None:
    weight = planted(np.random.default_rng(6), equal(64, 64))
    assert shapes_of(layouts(structure(kernel_norms(weight)), 9)[0]) == [(64, (1, 1))]


def test_dead_channels_fill_groups_up() -> None:
    weight = planted(np.random.default_rng(7), [(14, 16), (16, 13)], rows=np.arange(30), columns=np.arange(29))
    weight = np.pad(weight, ((0, 2), (0, 3), (0, 0), (0, 0)))
    layout = equal_groups(structure(kernel_norms(weight)), 2)
    assert layout is not None
    assert shapes_of(layout) == [(2, (16, 16))]
    assert sorted(layout.outputs) == list(range(32))
    assert error_of_layout(kernel_norms(weight), layout) == 0.0


def test_unequal_components_stand_side_by_side() -> None:
    weight = planted(np.random.default_rng(8), [(48, 32), *[(16, 16)] * 3, (16, 16)])
    found = structure(kernel_norms(weight))
    assert equal_groups(found, 2) is None or equal_groups(found, 4) is None
    layout = unequal_groups(found, 9)
    assert layout is not None
    assert shapes_of(layout) == [(4, (16, 16)), (1, (48, 32))]


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=9), st.data())
@settings(max_examples=80, deadline=None)
def test_packing_finds_what_was_packed(shapes: list[tuple[int, int]], data: st.DataObject) -> None:
    groups = data.draw(st.integers(1, 4))
    where = [data.draw(st.integers(0, groups - 1)) for _ in shapes]
    loads = [
        tuple(sum(s[a] for s, w in zip(shapes, where, strict=True) if w == g) for a in (0, 1)) for g in range(groups)
    ]
    room = max(load[0] for load in loads), max(load[1] for load in loads)
    packed = pack(shapes, groups, room)
    assert packed is not None, "there is one way at least"
    assert sorted(number for members in packed for number in members) == list(range(len(shapes)))
    for members in packed:
        assert sum(shapes[m][0] for m in members) <= room[0]
        assert sum(shapes[m][1] for m in members) <= room[1]


@pytest.mark.parametrize(("groups", "room"), [(3000, (1, 1)), (2, (1500, 1500)), (1, (3000, 3000))])
def test_thousands_of_components_are_packed_without_recursion(groups: int, room: tuple[int, int]) -> None:
    """A depthwise convolution has as many components as channels; 960 of them were too many."""
    packed = pack([(1, 1)] * 3000, groups, room)
    assert packed is not None
    assert sorted(number for members in packed for number in members) == list(range(3000))
    assert {len(members) for members in packed} == {3000 // groups}


@pytest.mark.parametrize(
    ("out", "inputs", "groups"), [(64, 64, 2), (64, 32, 4), (48, 48, 3), (256, 256, 8), (640, 640, 4)]
)
def test_blocks_under_noise(out: int, inputs: int, groups: int) -> None:
    rng = np.random.default_rng(out + groups)
    rows, columns = rng.permutation(out), rng.permutation(inputs)
    clean = planted(rng, [(out // groups, inputs // groups)] * groups, (1, 1), rows, columns)
    norms = kernel_norms(clean + 0.1 * rng.standard_normal(clean.shape))
    layout = best_groups(norms, groups)
    assert layout is not None
    sizes = {tuple(sorted(group.outputs)) for group in layout.parts[0].groups}
    want = {tuple(sorted(rows[g * out // groups : (g + 1) * out // groups])) for g in range(groups)}
    assert sizes == want
    mask = kernel_norms(clean) > 0
    assert error_of_layout(norms, layout) <= np.linalg.norm(norms[~mask]) / np.linalg.norm(norms) + 1e-12


def test_no_block_is_better_than_the_best_of_all() -> None:
    """On 6 x 6, all divisions into two halves can be tried."""
    rng = np.random.default_rng(11)
    for _ in range(20):
        norms = np.abs(rng.standard_normal((6, 6)))
        halves = [list(h) for h in itertools.combinations(range(6), 3)]

        def kept(rows: list[int], columns: list[int], energy: Array) -> float:
            other = [[i for i in range(6) if i not in part] for part in (rows, columns)]
            return float(energy[np.ix_(rows, columns)].sum() + energy[np.ix_(*other)].sum())

        best = max(kept(a, b, np.square(norms)) for a in halves for b in halves)
        error = needed_tol(norms)
        assert error is not None
        found = (1 - error**2) * np.square(norms).sum()
        assert 0.85 * best <= found <= best + 1e-9


@given(st.integers(2, 5), st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_blocks_are_balanced(groups: int, out: int, inputs: int, seed: int) -> None:
    energy = np.random.default_rng(seed).random((groups * out, groups * inputs)) ** 4
    rows, columns = cocluster(energy, groups)
    assert np.bincount(rows, minlength=groups).tolist() == [out] * groups
    assert np.bincount(columns, minlength=groups).tolist() == [inputs] * groups


def test_groups_are_divided_within_themselves() -> None:
    rng = np.random.default_rng(12)
    halves = np.concatenate([planted(rng, equal(2, 32)) for _ in range(2)])
    norms = kernel_norms(halves + 0.01 * rng.standard_normal(halves.shape), 2)
    layout = best_groups(norms, 4, 2)
    assert layout is not None
    assert error_of_layout(norms, layout) < 0.03
    assert best_groups(norms, 3, 2) is None
    assert needed_tol(norms, 2) == pytest.approx(error_of_layout(norms, layout))


def test_offers_are_ranked_and_within_the_tolerance() -> None:
    rng = np.random.default_rng(13)
    weight = planted(rng, equal(4, 64)) + 0.01 * rng.standard_normal((64, 64, 3, 3))
    norms = kernel_norms(weight)
    assert offers(norms, 9, EXACT) == []
    found = offers(norms, 9, EXACT, tol=0.05)
    assert [shapes_of(o.layout) for o in found] == [[(4, (16, 16))], [(2, (32, 32))]]
    assert all(0 < o.error <= 0.05 for o in found)
    times = [o.layout.time(9) for o in found]
    assert times == sorted(times)
    assert times[-1] < timemodel.grouped(64, 64, 1, 9)
    assert [shapes_of(o.layout) for o in offers(norms, 9, EXACT, tol=0.05, into=2)] == [[(2, (32, 32))]]


def resnet50() -> list[tuple[int, int, int]]:
    shapes, inputs = [(64, 3, 7)], 64
    for inner, units in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for unit in range(units):
            shapes += [(inner, inputs, 1), (inner, inner, 3), (4 * inner, inner, 1)]
            shapes += [(4 * inner, inputs, 1)] if unit == 0 else []
            inputs = 4 * inner
    return shapes


def test_all_kernels_of_a_resnet_take_seconds() -> None:
    rng = np.random.default_rng(14)
    weights = [rng.standard_normal((o, i, k, k), dtype=np.float32) for o, i, k in resnet50()]
    start = time.thread_time()
    for weight in weights:
        norms = kernel_norms(weight)
        assert offers(norms, weight.shape[2] ** 2, EXACT) == []
        needed = needed_tol(norms)
        assert needed is None or needed > 0.4
    assert time.thread_time() - start < 3, "the benchmark times it properly; this is a guard, on any machine"
