"""Files that appear whole or not at all: written under a temporary name, made durable, renamed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from convrewrite.errors import UsageError
from convrewrite.identity import identity


def refuse_target(target: Path) -> Path:
    """The file that a path leads to: a rename onto a symbolic link would replace the link and leave its file stale.

    Raises:
        UsageError: it cannot become a file, or is a device that a rename would replace.
    """
    with write_errors(target):
        if target.is_dir():
            raise UsageError(f"cannot write {target}: it is a folder")
        if target.exists() and not target.is_file():
            raise UsageError(f"cannot write {target}: it is no regular file", remedy="use - for standard output")
        return Path(os.path.realpath(target)) if target.is_symlink() else target


def check_target(target: str | Path, option: str, taken: Iterable[str | Path]) -> None:
    """Raise UsageError where a file could not be written, or would replace one of those `taken`, before any work."""
    for other in taken:
        if same_path(target, other):
            raise UsageError(f"{option} would overwrite '{other}'", remedy="give it a path of its own")
    path = refuse_target(Path(target))
    probe = temporary_beside(path, path.suffix)
    with write_errors(target):
        probe.touch(exist_ok=False)
        probe.unlink()


def same_path(a: str | Path, b: str | Path) -> bool:
    """Whether two paths lead, or would lead, to one file."""
    return identity(a) == identity(b)


def temporary_beside(target: Path, suffix: str) -> Path:
    """A hidden name that is not taken, in the folder of the target: only there a rename is atomic."""
    return target.with_name(f".{secrets.token_hex(8)}{suffix}")


def discard(path: Path) -> None:
    """Remove a file that must not stay, if it is there."""
    with suppress(OSError):
        path.unlink()


def write_durably(path: Path, content: Iterable[bytes | memoryview]) -> None:
    """Write a new file and make it durable."""
    with open(path, "xb") as file:
        file.writelines(content)
        file.flush()
        os.fsync(file.fileno())


def write_whole(target: str | Path, content: Iterable[bytes | memoryview], suffix: str) -> None:
    """Write a file whole or not at all. Raises UsageError where the target cannot be written."""
    path = refuse_target(Path(target))
    temporary = temporary_beside(path, suffix)
    try:
        with write_errors(target):
            write_durably(temporary, content)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable, where the system knows how."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def write_errors(what: object) -> Iterator[None]:
    """Turn what the system says about writing `what` into one line: no such folder, no space left."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot write {what}: {error.strerror or error}") from error
