"""Files that appear whole or not at all: written under a temporary name, made durable, renamed.

temporary = temporary_beside(target, ".onnx")     an empty file that no other process takes for a leftover
try:
    write_durably(temporary, content)
    publish(temporary, target)                    with the mode and the owner of the file that it replaces
finally:
    discard(temporary)
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from convrewrite.errors import UsageError
from convrewrite.system import leftovers
from convrewrite.system.identity import identity


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
    discard(temporary_beside(refuse_target(Path(target)), Path(target).suffix))


def same_path(a: str | Path, b: str | Path) -> bool:
    """Whether two paths lead, or would lead, to one file."""
    return identity(a) == identity(b)


def temporary_beside(target: Path, suffix: str) -> Path:
    """Make an empty file under a hidden name in the folder of the target: only there a rename is atomic.

    It is locked until `publish` or `discard`, and no more open to others than the file that it is to replace. What
    killed processes left in the folder goes now.

    Raises:
        UsageError: there can be no file.
    """
    leftovers.sweep(target.parent)
    mode = _mode(target)
    with write_errors(target):
        while True:
            path = target.with_name(leftovers.hidden_name(suffix))
            with suppress(FileExistsError):
                leftovers.create(path, None if mode is None else mode | stat.S_IRUSR | stat.S_IWUSR)
                return path


def publish(temporary: Path, target: Path) -> None:
    """Give a temporary file its name; it takes the mode of the file that it replaces, and its owner where it may.

    Raises:
        OSError: it cannot be renamed.
    """
    with suppress(OSError):
        old = target.stat()
        if hasattr(os, "chown") and (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
            with suppress(OSError):  # to give a file away is a right of the superuser
                os.chown(temporary, old.st_uid, old.st_gid)
        temporary.chmod(stat.S_IMODE(old.st_mode) & 0o777)
    temporary.replace(target)
    leftovers.release(temporary)


def _mode(path: Path) -> int | None:
    """The permissions of a file that is there."""
    try:
        return stat.S_IMODE(path.stat().st_mode) & 0o777
    except OSError:
        return None


def discard(path: Path) -> None:
    """Remove a file that must not stay, if it is there."""
    with suppress(OSError):
        path.unlink()
    leftovers.release(path)


def scratch() -> leftovers.Scratch:
    """A temporary folder, as a context manager: its path as text. Raises UsageError where there can be none."""
    with write_errors("temporary files"):
        return leftovers.Scratch()


def write_durably(path: Path, content: Iterable[bytes | memoryview]) -> None:
    """Write a file of `temporary_beside`, or a new one, and make it durable."""
    with open(path, "r+b" if leftovers.is_held(path) else "xb") as file:
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
            publish(temporary, path)
    finally:
        discard(temporary)


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
