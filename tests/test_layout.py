"""Tables on terminals of some width."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from convrewrite.text import layout
from convrewrite.text.layout import Table

ROWS = [
    ("layer", "max error", "what came of it"),
    ("a/long/name/of/a/layer/that/an/exporter/wrote/Conv_output_0", "1.0e-05", "failed"),
    ("c1", "12.5", "passed, and this cell says a good deal more than that"),
]
TABLE = Table(ROWS, right={1}, folds={0: 12, 2: 10}, verdict=2)


def texts(table: Table, width: int = 0) -> list[str]:
    return [line.plain for line in table.lines(width)]


def test_without_a_width_each_row_is_one_line() -> None:
    lines = texts(TABLE)
    assert len(lines) == len(ROWS)
    for row, line in zip(ROWS, lines, strict=True):
        assert all(cell in line for cell in row)


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_a_table_fits_and_loses_nothing(width: int) -> None:
    lines = texts(TABLE, width)
    assert max(map(len, lines)) <= width
    assert sorted("".join("".join(ROWS[0] + ROWS[1] + ROWS[2]).split())) == sorted("".join("".join(lines).split()))


def test_a_wide_terminal_is_used() -> None:
    whole = max(map(len, texts(TABLE)))
    assert texts(TABLE, whole) == texts(TABLE)
    assert len(texts(TABLE, whole - 1)) > len(texts(TABLE))


def test_columns_are_left_out_in_their_order_where_nothing_else_helps() -> None:
    table = Table([("layer", "stride", "pads"), ("c1", "2x2x2", "0x0x0")], spare=(2, 1))
    assert texts(table, 18) == ["layer  stride", "c1     2x2x2"]
    assert table.dropped(18) == ["pads"]
    assert texts(table, 8) == ["layer", "c1"]
    assert table.dropped(8) == ["pads", "stride"]
    assert table.dropped(80) == table.dropped(0) == []


@pytest.mark.parametrize("seed", range(40))
def test_no_line_is_wider_than_the_terminal(seed: int) -> None:
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(list("abc"), rng.integers(1, 9))) for _ in range(200)]
    rows = [[" ".join(rng.choice(words, rng.integers(1, 8))) for _ in range(4)] for _ in range(5)]
    width = int(rng.integers(50, 90))
    assert max(map(len, texts(Table(rows, folds=dict.fromkeys(range(4), 10)), width))) <= width


def test_the_word_that_judges_has_a_colour_on_a_terminal_alone() -> None:
    def shown(**how: object) -> str:
        console = Console(file=io.StringIO(), width=200, **how)  # type: ignore[arg-type]
        layout.show(console, TABLE.lines())
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()

    assert "\x1b[1;31mfailed" in shown(force_terminal=True, color_system="standard")
    assert "\x1b[" not in shown(force_terminal=False)
    assert "\x1b[31m" not in shown(force_terminal=True, no_color=True)


def test_a_pipe_that_takes_colours_has_no_width() -> None:
    assert layout.width_of(Console(file=io.StringIO(), width=80, force_terminal=True)) == 0


@pytest.mark.parametrize(
    ("width", "parts"), [(0, ["give --size 32x32 and go on"]), (20, ["give --size 32x32", "  and go on"])]
)
def test_words_of_a_line_stay_whole(width: int, parts: list[str]) -> None:
    assert layout.folded("give --size 32x32 and go on", width) == parts
