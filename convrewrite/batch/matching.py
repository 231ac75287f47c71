"""The files that a glob means; a folder that is reached in several ways counts once, so that loops end.

models/**/*.onnx     with models/again -> models: every model once, under the path without links
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator
from pathlib import Path

ANY_DEPTH = "**"
_MAGIC = re.compile(r"[*?[]")


def matching(folder: Path, pattern: str) -> list[Path]:
    """The paths that a pattern matches below a folder, sorted; those of one file in one folder once.

    As in a shell, `*` and `**` leave hidden names out. A link to a file is a file of its own: it may be there to have
    the result under that name, too.
    """
    path = Path(pattern)
    start = Path(path.anchor) if path.is_absolute() else folder
    parts = path.parts[1:] if path.is_absolute() else path.parts
    found: dict[tuple[str, str], Path] = {}
    for match in sorted(_walk(start, parts), key=_plainness):
        found.setdefault((os.path.realpath(match.parent), match.name), match)
    return sorted(found.values())


def _plainness(match: Path) -> tuple[bool, int, str]:
    """The path without links first, then the shortest."""
    return str(match.parent) != os.path.realpath(match.parent), len(match.parts), str(match)


def _walk(folder: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    """What the rest of a pattern matches below a folder."""
    if not parts:
        if os.path.lexists(folder):
            yield folder
    elif parts[0] == ANY_DEPTH:
        for below in _folders(folder):
            yield from _walk(below, parts[1:]) if len(parts) > 1 else (below / name for name in _names(below, "*"))
    elif not _MAGIC.search(parts[0]):
        yield from _walk(folder / parts[0], parts[1:])
    else:
        for name in _names(folder, parts[0]):
            if len(parts) == 1 or (folder / name).is_dir():
                yield from _walk(folder / name, parts[1:])


def _folders(top: Path) -> Iterator[Path]:
    """A folder and all below it, each once: nearest first, and under its own name before that of a link."""
    seen: set[str] = set()
    level = [top]
    while level:
        fresh: list[Path] = []
        for folder in sorted(level, key=os.path.islink):
            real = os.path.realpath(folder)
            if real not in seen:
                seen.add(real)
                fresh.append(folder)
        yield from fresh
        level = [folder / name for folder in fresh for name in _names(folder, "*") if (folder / name).is_dir()]


def _names(folder: Path, pattern: str) -> list[str]:
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    hidden = pattern.startswith(".")
    return sorted(name for name in fnmatch.filter(names, pattern) if hidden or not name.startswith("."))
