"""Text from strangers, made safe for where it goes: names in models, paths, and messages that quote them.

    terminal         a line on a terminal or in the log of a CI: nothing moves the cursor, nothing begins a command
    markdown_cell    a cell of a Markdown table, and the page of a job
    html             text of a page, ahead of the escaping that the template does
    xml              text and attributes of XML 1.0 (JUnit)
    github_output    one output of a GitHub step
    file_name        one part of a path that is made out of a name
    json_text        a report as JSON
    enough           a tolerance, rounded up to two digits
    as_line         what an error says
    by, columns      extents, and rows whose cells stand below each other

What cannot be shown is made visible as Python would write it (a newline as `\\n`, a byte that is no UTF-8 as `\\xff`),
so that two names that differ look different, and text that was made safe stays as it is if that happens again.
Sources: the Unicode standard (bidirectional controls: UAX 9), XML 1.0 section 2.2, GitHub Flavored Markdown, "Workflow
commands for GitHub Actions", Microsoft's "Naming Files, Paths, and Namespaces".
"""

from __future__ import annotations

import decimal
import hashlib
import json
import re
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape
from typing import Any

_SURROGATES = re.compile("[\ud800-\udfff]")
_SPACING = "\t\n"
_INVISIBLE = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0 and C1: the escape sequences of terminals
    "\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff"  # no width, line separators, directions
    "\ud800-\udfff\ufffe\uffff]"
)
_COMMAND = re.compile(r"^(\s*):(?=:)")
_LOG_COMMAND = re.compile(r"#(?=#(?:\[|vso\[|teamcity\[))")
_MARKUP = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])")
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)")

LONGEST_NAME = 200
"""Bytes of a part of a path: file systems take 255, and suffixes and hidden names are added to it."""


def visible(text: str, keep: str = "") -> str:
    """The text with what cannot be seen, or moves what is around it, written as an escape; `keep` stays as it is."""
    return _INVISIBLE.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def _escape(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return char.encode("unicode_escape", "surrogatepass").decode()


def terminal(text: str) -> str:
    """One line, for a terminal and for the log of a CI.

    A line that begins with `::` is a command to GitHub, one with `##[` or `##vso[` is one to it or to Azure.
    """
    return _LOG_COMMAND.sub("\\\\x23", _COMMAND.sub("\\1\\\\x3a", visible(text)))


def counted(number: int, noun: str) -> str:
    """A number with its noun, in the plural where it is not one: "1 model", "1,000 models", "2 axes", "2 entries"."""
    many = re.sub("axis$", "axe", re.sub("y$", "ie", noun))
    return f"{number:,} {noun if number == 1 else f'{many}s'}"


def by(extents: Iterable[object], sign: str = "x") -> str:
    """Extents as they are written: "224x224"."""
    return sign.join(map(str, extents))


def columns(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Rows whose cells stand below each other, safe for a terminal; `right` are columns that end at one place."""
    rows = [[terminal(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def as_line(what: object) -> str:
    """What an error says, or any other text, with its lines and spaces as one line."""
    return " ".join(str(what).split())


def shortened(text: str, longest: int = 2000) -> str:
    """The text, its middle left out where it is long."""
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]} ... {text[-half:]}"


def markdown_cell(text: str) -> str:
    """A cell of a table in Markdown: plain text, whatever it holds."""
    plain = _MARKUP.sub(lambda found: f"\\{found[0]}", terminal(text))
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def html(text: str) -> str:
    """Text of a page, which the template escapes after this."""
    return visible(text, keep=_SPACING)


def xml(text: str) -> str:
    """Text or the value of an attribute in XML 1.0, which the writer escapes after this."""
    return visible(text, keep=_SPACING)


def github_output(name: str, value: str) -> str:
    """The lines that set one output of a GitHub step.

    A value of several lines stands between two lines that nobody can guess. The file is written with the error
    handler `surrogateescape`, so that a path keeps its bytes.
    """
    if not re.search("[\r\n]", value):
        return f"{name}={value}\n"
    delimiter = f"end_{secrets.token_hex(16)}"
    return f"{name}<<{delimiter}\n{value}\n{delimiter}\n"


def file_name(text: str) -> str:
    """One part of a path, on every system: no separator, no control character, no device, not too long.

    A name that is fine stays as it is; one that is cut keeps apart from others by a hash of the whole.
    """
    name = re.sub(r"[\x00-\x1f\x7f/\\:]", "_", text)
    if not name.strip(". "):
        name = "_" * max(1, len(name))
    if _RESERVED.match(name):
        name = f"_{name}"
    stored = name.encode(errors="surrogatepass")
    if len(stored) > LONGEST_NAME:
        digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:12]
        name = f"{stored[: LONGEST_NAME - 13].decode(errors='ignore')}-{digest}"
    return name


def json_text(data: Any, indent: int | None = 2) -> str:
    """A report as JSON that every reader takes: ASCII, no lone surrogates, no numbers that JSON has no word for.

    Raises:
        ValueError: a number is infinite or none.
    """
    return json.dumps(_unicode(data), indent=indent, allow_nan=False) + "\n"


def _unicode(value: Any) -> Any:
    if isinstance(value, str):
        return _SURROGATES.sub(lambda found: _escape(found[0]), value)
    if isinstance(value, Mapping):
        return {_unicode(key): _unicode(entry) for key, entry in value.items()}
    return [_unicode(entry) for entry in value] if isinstance(value, list | tuple) else value


_UP = decimal.Context(prec=2, rounding=decimal.ROUND_CEILING)


def enough(tol: float | None) -> str:
    """A tolerance in two digits, rounded up: whoever gives what is printed gives enough.

    "0" for None and 0. Sums of one and the same kernel differ in their last bits, so what lies within 1e-12 below two
    digits takes the next ones too.
    """
    if not tol:
        return "0"
    return f"{float(_UP.create_decimal(decimal.Decimal(tol * (1.0 + 1e-12)))):.2g}"


class Printed:
    """Mixin for results whose `str` is a table: notebooks show that table."""

    def _repr_html_(self) -> str:
        """What Jupyter shows: the same text, in a fixed font."""
        return f"<pre>{escape(str(self))}</pre>"
