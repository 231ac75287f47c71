"""Temporary files and folders of processes that were killed, known by their names and by a lock.

    .convrewrite-<16 hex digits>.onnx     a file beside the one that it is to become
    convrewrite-<16 hex digits>-xxxxxxxx  a folder among the system's temporary ones
    .convrewrite-<16 hex digits>-xxxxxxxx a folder beside a model, of which the weights have a file of their own

A process holds an advisory lock (flock) on each of them for as long as it needs it. The system drops the lock when the
process ends, however it ends: one that nobody holds is left over, and the next process that works in its folder removes
it. Where there are no such locks (Windows, some network file systems), nothing is removed.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import secrets
import shutil
import stat
import tempfile
import weakref
from pathlib import Path
from typing import Any

from convrewrite.system import board

fcntl: Any = None
with contextlib.suppress(ImportError):  # Windows
    fcntl = importlib.import_module("fcntl")

FILE = re.compile(r"\.convrewrite-[0-9a-f]{16}(\..*)?", re.DOTALL)
FOLDER = re.compile(r"\.?convrewrite-[0-9a-f]{16}-[a-z0-9_]{8}")
LONGEST_SUFFIX = 32

GIVEN = {"original.onnx": "the original model", "a.onnx": "model a", "b.onnx": "model b"}
"""What to call models that were not made here, but given without a path: they lie in a folder for the while."""

_held: dict[str, int | None] = {}
"""Handles that hold the locks, by path; None where there are no locks."""

_swept: set[str] = set()


def hidden_name(suffix: str) -> str:
    """A name for a temporary file. A long suffix is left out: the name must not be longer than systems allow."""
    return f".convrewrite-{secrets.token_hex(8)}{suffix if len(suffix) <= LONGEST_SUFFIX else ''}"


def shown(path: str | Path) -> str:
    """What to call a model in messages: nobody knows the hidden name under which it lies until it is checked."""
    name, folder = Path(path).name, Path(path).parent.name
    if FOLDER.fullmatch(folder) and name in GIVEN:
        return GIVEN[name]
    return "the rewritten model" if FILE.fullmatch(name) or FOLDER.fullmatch(folder) else str(path)


def create(path: Path, mode: int | None = None) -> None:
    """Make an empty file that nobody sweeps away while this process lives.

    Args:
        path: of the file. mode: of its permissions; by default what the umask leaves.

    Raises:
        FileExistsError: there is one already, or it was taken for a leftover in this very moment.
        OSError: it cannot be made.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else 0o600)
    if mode is not None and hasattr(os, "fchmod"):
        os.fchmod(handle, mode)
    _hold(str(path), handle)


def hold_folder(path: Path) -> bool:
    """Let nobody sweep a new folder away while this process lives; False where it was taken for a leftover just now."""
    if fcntl is None:
        return True
    try:
        _hold(str(path), os.open(path, os.O_RDONLY | os.O_DIRECTORY))
    except (FileExistsError, FileNotFoundError):
        return False
    return True


def release(path: Path) -> None:
    """Release the lock on a file."""
    handle = _held.pop(str(path), None)
    if handle is not None:
        os.close(handle)


def is_held(path: Path) -> bool:
    """Whether this process has made the file, and not dropped it yet."""
    return str(path) in _held


def _hold(path: str, handle: int) -> None:
    board.mine().add_folder(os.path.dirname(os.path.abspath(path)))
    if fcntl is None:
        os.close(handle)  # it would keep the file from being renamed
        _held[path] = None
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # another process is about to remove it
        os.close(handle)
        raise FileExistsError(f"{path} was taken for a leftover") from None
    except OSError:  # without locks, nobody sweeps either
        pass
    if not os.fstat(handle).st_nlink or not os.path.lexists(path):
        os.close(handle)
        raise FileExistsError(f"{path} was swept away")
    _held[path] = handle


class Scratch(tempfile.TemporaryDirectory[str]):
    """A temporary folder that goes with the object, or with the next process where this one is killed."""

    def __init__(self) -> None:
        sweep(tempfile.gettempdir())
        super().__init__(prefix=f"convrewrite-{secrets.token_hex(8)}-")
        if not hold_folder(Path(self.name)):
            self.__init__()  # type: ignore[misc]
            return
        weakref.finalize(self, release, Path(self.name))

    def cleanup(self) -> None:
        """Remove the folder and all that is in it."""
        super().cleanup()
        release(Path(self.name))


def sweep(folder: str | Path, *, again: bool = False) -> None:
    """Remove what killed processes of this user left in a folder; once per process and folder, or `again`."""
    folder = os.path.abspath(folder)
    if fcntl is None or (folder in _swept and not again):
        return
    _swept.add(folder)
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if FILE.fullmatch(entry.name) or FOLDER.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    _remove_if_left(entry)


def _remove_if_left(entry: os.DirEntry[str]) -> None:
    status = entry.stat(follow_symlinks=False)
    is_folder = stat.S_ISDIR(status.st_mode)
    named = FOLDER if is_folder else FILE
    if status.st_uid != os.geteuid() or not named.fullmatch(entry.name):
        return
    if not is_folder and not stat.S_ISREG(status.st_mode):
        return
    handle = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where it is in use
        if is_folder:
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            os.unlink(entry.path)
    finally:
        os.close(handle)
