"""When two paths are one file: by device and inode, which sees links of both kinds, other spellings and other cases.

A path that does not exist yet is its folder's inode and its name.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Hashable, Iterator
from pathlib import Path

Identity = Hashable


def identity(path: str | Path) -> Identity:
    """What two paths have in common where they are, or would become, one file."""
    path = Path(path)
    found = _inode(path)
    if found is not None:
        return found
    real = _real(path)
    folder = _inode(real.parent)
    return str(real) if folder is None else (*folder, _folded(real))


def folders(path: str | Path) -> Iterator[Identity]:
    """The identities of the folders above a path, links followed, from the nearest on."""
    for folder in _real(Path(path)).parents:
        found = _inode(folder)
        if found is not None:
            yield found


def _real(path: Path) -> Path:
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError):  # a loop of links, a zero byte
        return path.absolute()


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _folded(path: Path) -> str:
    """The name of a path that does not exist; in one case where its folder, tried by its own name, knows no other."""
    folder = path.parent
    other = folder.with_name(folder.name.swapcase()) if folder.name else folder
    folds = sys.platform == "win32" or (other != folder and _inode(other) == _inode(folder))
    return path.name.casefold() if folds else path.name
