"""Tables and lines that fit a terminal; where there is none, each row and each fact is one line, whole.

    Table(rows, right={1}, folds={0: 16})       wide enough: as text.columns has it
                                                narrower: words of the header below each other, then cells that may fold
                                                narrower still: the columns of `spare` go, the first one first

A line is `rich.text.Text`: a console that shows colours shows those of the verdicts, any other the plain words.
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from convrewrite.text import terminal

GAP = 2
"""Columns between two cells."""

STYLES = {
    **dict.fromkeys(("verified", "faster", "rewritten", "would rewrite", "done"), "green"),
    **dict.fromkeys(("failed", "FAILED", "slower", "vacuous", "error"), "bold red"),
    **dict.fromkeys(("refused", "skipped", "SKIPPED", "no difference", "not reproducible"), "yellow"),
}
"""Colours of the words that judge."""


@dataclass(frozen=True)
class Table:
    """Rows whose cells stand below each other, safe for a terminal.

    Attributes:
        rows: the first is the header where `headed`; all of one length. right: columns that end at one place.
        folds: columns whose cells may take several lines, with the least width that leaves them readable.
        spare: columns that are left out where nothing else helps, the first one first.
        verdict: the column whose words have colours.
    """

    rows: Sequence[Sequence[str]]
    right: Collection[int] = ()
    folds: Mapping[int, int] = field(default_factory=dict)
    spare: Sequence[int] = ()
    verdict: int | None = None
    headed: bool = True

    def lines(self, width: int = 0) -> list[Text]:
        """The table in at most `width` columns, as far as its words allow it; 0 is no limit."""
        rows = [[terminal(cell) for cell in row] for row in self.rows]
        whole = [max(cell_len(row[i]) for row in rows) for i in range(len(rows[0]))]
        if not width or sum(whole) + GAP * (len(whole) - 1) <= width:
            return self._set(rows, whole)
        least = [self._least(i, [row[i] for row in rows]) for i in range(len(whole))]
        if self.spare and sum(least) + GAP * (len(least) - 1) > width:
            return self.without(self.spare[0]).lines(width)
        widths = list(least)
        while sum(widths) + GAP * (len(widths) - 1) < width and widths != whole:
            narrow = [i for i in range(len(widths)) if widths[i] < whole[i]]
            widths[max(narrow, key=lambda i: whole[i] / widths[i])] += 1
        return self._set(rows, widths)

    def dropped(self, width: int) -> list[str]:
        """The headings of the columns that a table of that width leaves out."""
        table, gone = self, []
        while width and table.spare and table._narrowest() > width:
            gone.append(table.rows[0][table.spare[0]])
            table = table.without(table.spare[0])
        return gone

    def without(self, column: int) -> Table:
        """The table without one of its columns."""

        def after(i: int) -> int:
            return i - (i > column)

        return replace(
            self,
            rows=[[cell for i, cell in enumerate(row) if i != column] for row in self.rows],
            right={after(i) for i in self.right if i != column},
            folds={after(i): least for i, least in self.folds.items() if i != column},
            spare=[after(i) for i in self.spare if i != column],
            verdict=None if self.verdict in (None, column) else after(self.verdict or 0),
        )

    def _narrowest(self) -> int:
        least = [self._least(i, [terminal(row[i]) for row in self.rows]) for i in range(len(self.rows[0]))]
        return sum(least) + GAP * (len(least) - 1)

    def _least(self, column: int, cells: Sequence[str]) -> int:
        """How narrow a column may become: the words of its header, and its cells where these may not fold."""
        head = max((cell_len(word) for word in cells[0].split()), default=0) if self.headed else 0
        body = max((cell_len(cell) for cell in cells[int(self.headed) :]), default=0)
        return max(head, min(body, self.folds.get(column, body)))

    def _set(self, rows: Sequence[Sequence[str]], widths: Sequence[int]) -> list[Text]:
        lines = []
        for number, row in enumerate(rows):
            cells = [_folded(cell, width) for cell, width in zip(row, widths, strict=True)]
            high = max(map(len, cells))
            above = self.headed and number == 0  # a header stands directly over its column
            cells = [[""] * (high - len(parts)) + parts if above else parts for parts in cells]
            for line in range(high):
                made = Text()
                for i, (parts, width) in enumerate(zip(cells, widths, strict=True)):
                    part = parts[line] if line < len(parts) else ""
                    style = STYLES.get(row[i], "") if i == self.verdict else ""
                    room = " " * (width - cell_len(part))
                    made.append(room if i in self.right else "").append(part, style or None)
                    made.append("" if i in self.right else room).append(" " * GAP if i < len(widths) - 1 else "")
                made.rstrip()
                lines.append(made)
        return lines


def _folded(cell: str, width: int) -> list[str]:
    """A cell in pieces of at most that width; the later ones keep its own indent, and one step more."""
    if cell_len(cell) <= width:
        return [cell]
    indent = " " * (len(cell) - len(cell.lstrip()))
    words = cell.strip()
    return textwrap.wrap(words, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False) or [""]


def folded(line: str, width: int, indent: str = "  ") -> list[str]:
    """The line in pieces of at most that width, where its words allow it; the later ones are indented.

    Words stay whole: a path or an option that is cut cannot be copied. 0 is no limit.
    """
    if not width or cell_len(line) <= width:
        return [line]
    return textwrap.wrap(
        line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False, drop_whitespace=True
    ) or [""]


def width_of(console: Console) -> int:
    """Columns of the terminal that a console writes to; 0 where it is a file or a pipe, also one that takes colours."""
    isatty = getattr(console.file, "isatty", None)
    try:
        real = bool(isatty and isatty())
    except ValueError:  # closed
        real = False
    return console.width if real else 0


def show(console: Console, lines: Sequence[Text | str]) -> None:
    """Print lines as they are: nothing in them is markup, and nothing folds them again."""
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
