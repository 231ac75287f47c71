"""The table of a rewrite that costs something: each figure belongs to one comparison, and every figure stands in it."""

from __future__ import annotations

import re

import numpy as np
import pytest
from cli_models import run, save

from convrewrite.verification import Case
from convrewrite.verification.stated import EQUAL, NAME
from helpers import Net


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What `separable` says of a nearly separable kernel under a saturated Softmax, with an open batch."""
    folder = tmp_path_factory.mktemp("table")
    net = Net("N", 8, 9, 8, seed=3)
    weight = np.einsum("rih,orw->oihw", net.rng.standard_normal((2, 8, 3)), net.rng.standard_normal((16, 2, 3)))
    weight += 0.05 * weight.std() * net.rng.standard_normal(weight.shape)
    maps = net.Relu(net.node("Conv", "x", net.const(weight), pads=[1, 1, 1, 1]))
    scores = net.Gemm(net.Flatten(net.GlobalAveragePool(maps)), net.const(net.rng.standard_normal((16, 5)) * 9))
    source = save(net.model(net.Softmax(scores, axis=1)), folder / "in.onnx")
    done = run("separable", source, folder / "out.onnx", "--tol", "0.2", "--provider", "cpu")
    assert done.returncode == 0, done.stderr
    return done.stderr.decode().splitlines()


def rows(told: list[str]) -> list[tuple[str, list[str]]]:
    """Every row of the table: its name, and what stands in the columns (max error, tolerance, ...)."""
    first = next(i for i, line in enumerate(told) if line.startswith("verified"))
    last = next(i for i, line in enumerate(told) if line.startswith("wrote"))
    found = (re.match(r"\s+(.*?)\s{2,}(\S+\s+.*)", line) for line in told[first + 1 : last])
    return [(row[1], row[2].split()) for row in found if row is not None]


def test_a_row_and_its_worst_part_are_of_one_comparison(told: list[str]) -> None:
    """A distance that is stated has no tolerance, and neither has its part; what is judged has one in both lines."""
    judged = ""
    names = []
    for name, figures in rows(told):
        if not name.startswith("worst part"):
            names.append(name)
            assert name.startswith((EQUAL, NAME)), name
            judged = figures[1]
        assert (figures[1] == "-") == (judged == "-"), (name, figures)
    assert {f"{whose}, other extents of N" for whose in (EQUAL, NAME)} <= set(names)
    assert len(names) == len(set(names))


def test_the_outputs_move_by_a_figure_of_the_table(told: list[str]) -> None:
    moved = re.search(r"outputs moved by (\S+) of the largest", told[-1])
    assert moved is not None
    stated = [figures[0] for name, figures in rows(told) if name.startswith(NAME)]
    assert moved[1] in stated
    assert float(moved[1]) == max(map(float, stated))


def test_the_worst_of_what_is_stated_is_the_largest() -> None:
    small, large = (Case("it", name, error=error, status="stated") for name, error in (("a", 1e-9), ("b", 1e-2)))
    assert max((small, large), key=lambda case: case.badness) is large
