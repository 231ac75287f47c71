"""Axes as products of atoms: what a Reshape does to the meaning of a tensor."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from convrewrite.engine.axes import Atom, Layout, atoms, extent, large, letters, only, regroup, shape, substitute

N, C, H, W = Atom("N", 2), Atom("C", 6), Atom("H", 3), Atom("W", 5)
MAP: Layout = ((N,), (C,), (H,), (W,))


def test_flatten_keeps_the_order_of_memory() -> None:
    grouped = regroup(MAP, (2, 90))
    assert grouped == (((N,), (C, H, W)), {})


def test_flatten_of_channels_last() -> None:
    turned = ((N,), (H,), (W,), (C,))
    assert regroup(turned, (2, 90)) == (((N,), (H, W, C)), {})


def test_axes_of_extent_one_come_and_go() -> None:
    one = Atom("H", 1)
    grouped = regroup(((N,), (C,), (one,), ()), (2, 1, 6))
    assert grouped == (((N,), (), (C,)), {})


def test_channels_are_split() -> None:
    grouped = regroup(MAP, (2, 2, 3, 3, 5))
    assert grouped is not None
    layout, splits = grouped
    front, back = splits[C]
    assert layout == ((N,), (front,), (back,), (H,), (W,))
    assert (front.letter, front.extent, back.letter, back.extent) == ("C", 2, "C", 3)


def test_channels_are_split_into_three() -> None:
    grouped = regroup(((Atom("C", 24),),), (2, 3, 4))
    assert grouped is not None
    layout, splits = grouped
    (factors,) = splits.values()
    assert [a.extent for a in factors] == [2, 3, 4]
    assert atoms(layout) == factors


def test_part_of_the_channels_joins_the_map() -> None:
    grouped = regroup(MAP, (2, 2, 45))
    assert grouped is not None
    assert [[a.letter for a in axis] for axis in grouped[0]] == [["N"], ["C"], ["C", "H", "W"]]


@pytest.mark.parametrize("new", [(2, 6, 5, 3), (2, 6, 3, 5, 2), (2, 6, 15, 2), (5, 36), (7,)])
def test_rows_are_not_split(new: tuple[int, ...]) -> None:
    assert regroup(MAP, new) is None


def test_part_of_the_channels_joins_the_batch() -> None:
    grouped = regroup(MAP, (4, 45))
    assert grouped is not None
    assert [[a.letter for a in axis] for axis in grouped[0]] == [["N", "C"], ["C", "H", "W"]]


def test_batch_may_join_but_not_split() -> None:
    assert regroup(MAP, (1, 180)) == (((), (N, C, H, W)), {})
    assert regroup(((Atom("N", 4),), (C,)), (2, 12)) is None


def test_shuffle_back_is_the_identity() -> None:
    """Reshape to groups, Transpose, Reshape, and the inverse: the channels are in their old order."""
    first = regroup(MAP, (2, 2, 3, 3, 5))
    assert first is not None
    groups, splits = first
    turned = tuple(groups[i] for i in (0, 2, 1, 3, 4))
    second = regroup(turned, (2, 6, 3, 5))
    assert second is not None
    shuffled, more = second
    assert not more
    assert shuffled[1] == splits[C][::-1]
    third = regroup(shuffled, (2, 3, 2, 3, 5))
    assert third is not None
    back = regroup(tuple(third[0][i] for i in (0, 2, 1, 3, 4)), (2, 6, 3, 5))
    assert back is not None
    assert back[0] == substitute(MAP, splits)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_regroup_is_what_numpy_does(order: tuple[int, ...]) -> None:
    """Wherever regroup gives an answer, taking the new axes apart gives back the old tensor."""
    layout = tuple(MAP[i] for i in order)
    values = np.arange(math.prod(shape(layout))).reshape(shape(layout))
    for cut in range(1, 4):
        new = (math.prod(values.shape[:cut]), math.prod(values.shape[cut:]))
        grouped = regroup(layout, new)
        assert grouped is not None
        assert shape(grouped[0]) == new
        apart = values.reshape(new).reshape([a.extent for a in atoms(grouped[0])])
        np.testing.assert_array_equal(apart, values)


def test_questions() -> None:
    assert letters(((N,), (C, H), (), (Atom("W", 1),))) == ("N", "CH", "", "W")
    assert letters(((Atom("C", 2), Atom("C", 3)),)) == ("C",)
    assert extent((C, H)) == 18
    assert shape(MAP) == (2, 6, 3, 5)
    assert large((C, H, Atom("W", 1))) == (H,)
    assert only((C, Atom("C", 1)), "C")
    assert only((), "C")
    assert not only((C, H), "C")
    assert H.spatial
    assert not N.spatial
    assert Atom("H", 3) != H
