"""The names of classes, one per line of a text file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from convrewrite.errors import UsageError

LARGEST = 16 << 20
"""Bytes of such a file."""

EXAMPLE = "write one name per line, in the order of the model's classes"


def read_labels(path: str | Path) -> tuple[str, ...]:
    """The names, by the number of their class; of several that are equal each has its number, so that they differ.

    The text is UTF-8, with or without a byte order mark, or UTF-16 with one; lines end as on any system, and empty ones
    at the end count for nothing.

    Raises:
        UsageError: it cannot be read, is no text, names nothing, or has an empty line among the others.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}", remedy=EXAMPLE) from None
    if len(content) > LARGEST:
        raise UsageError(f"{path} has more than {LARGEST:,} bytes", remedy=EXAMPLE)
    try:
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{path} is no text in UTF-8 or UTF-16", remedy=EXAMPLE) from None
    if "\0" in text:  # UTF-16 without its mark, UTF-32, or no text at all
        raise UsageError(f"{path} is no text in UTF-8", remedy=EXAMPLE)
    names = [line.strip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    while names and not names[-1]:
        names.pop()
    if not names:
        raise UsageError(f"{path} names no classes", remedy=EXAMPLE)
    if "" in names:
        raise UsageError(f"line {names.index('') + 1} of {path} is empty", remedy="each class needs a name")
    times = Counter(names)
    told = [name if times[name] == 1 else f"{name} ({number})" for number, name in enumerate(names)]
    if len(set(told)) < len(told):  # a name looks like one that has its number
        told = [f"{name} ({number})" for number, name in enumerate(names)]
    return tuple(told)


def fitting(names: Sequence[str], classes: int, output: str, path: str) -> Sequence[str]:
    """The names themselves. Raises UsageError where there are more or fewer than the output has classes."""
    if len(names) == classes:
        return names
    lines = "1 class" if len(names) == 1 else f"{len(names):,} classes"
    raise UsageError(f"{path} names {lines}, and output '{output}' has {classes:,}", remedy=EXAMPLE)
