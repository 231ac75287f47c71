"""The lines of .gitignore that a project needs: reports are made anew by every run, and are not worth a commit."""

from __future__ import annotations

import os
import re
from pathlib import Path

from convrewrite.batch import repository
from convrewrite.batch.settings import Settings
from convrewrite.errors import UsageError
from convrewrite.system import atomic
from convrewrite.text import parameter

NAME = ".gitignore"

HEADING = "# reports of convrewrite run"

LARGEST = 1 << 20
"""Bytes of a .gitignore."""


def missing(settings: Settings, folder: Path) -> list[str]:
    """The lines that would have git ignore every report, without those that it ignores already.

    Raises:
        UsageError: .gitignore cannot be read.
    """
    wanted = settings.reports
    named = [path for path in (wanted.json_, wanted.junit, wanted.markdown, wanted.html) if path is not None]
    paths = {os.path.relpath(folder / path, folder): folder / path for path in sorted(named)}
    known = {line.strip() for line in _read(folder / NAME).decode("utf-8", "replace").splitlines()}
    ignored = repository.ignored(list(paths.values()))
    lines = {_line(name): path for name, path in paths.items()}
    return [line for line, path in lines.items() if line not in known and path not in ignored]


def _line(name: str) -> str:
    """A pattern for that one file: from the folder of .gitignore on, with nothing in it that stands for more."""
    plain = re.sub(r"([\\*?\[\]])", r"\\\1", name.replace(os.sep, "/"))
    return "/" + re.sub(" +$", lambda spaces: "\\ " * len(spaces[0]), plain)


def check(folder: Path) -> None:
    """Raise UsageError where the .gitignore of a folder cannot be read, or could not be written."""
    _read(folder / NAME)
    atomic.check_target(folder / NAME, parameter("gitignore"), ())


def add(lines: list[str], folder: Path) -> None:
    """Append lines to .gitignore, in the way its own lines end. Raises UsageError where it cannot be written."""
    if not lines:
        return
    path = folder / NAME
    content = _read(path)
    end = b"\r\n" if b"\r\n" in content else b"\n"
    before = content if not content or content.endswith(b"\n") else content + end
    known = HEADING.encode() in content.splitlines()
    added = [line.encode() for line in ([] if known else [HEADING]) + lines]
    atomic.write_whole(path, [before, *(line + end for line in added)], NAME)


def _read(path: Path) -> bytes:
    try:
        if not path.exists():
            return b""
        if not path.is_file() or path.stat().st_size > LARGEST:
            raise UsageError(f"{path} is no plain file of lines", remedy="move it away")
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
