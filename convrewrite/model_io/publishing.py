"""Data files that go with a model: private until the model takes its place, and never in the place of another file.

    .convrewrite-<hex>-.../  written, run and verified here, under the names that they will have
      out.onnx
      out-4f1c....data
    out-4f1c....data         then, under a lock: moved here, unless the same bytes are here already
    out.onnx                 and last the model itself

A data file that was there before, or that another process put there, is neither replaced nor removed: models that name
it may be in use. What fails takes away only what it has just put there, while the lock keeps others from relying on it.
"""

from __future__ import annotations

import contextlib
import filecmp
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from convrewrite.errors import UsageError
from convrewrite.system import atomic, leftovers
from convrewrite.system.atomic import discard, same_path, sync_folder

if sys.platform != "win32":
    import fcntl

PATIENCE = 20.0
"""Seconds to wait for a process that publishes into the same folder; it takes milliseconds."""


@contextlib.contextmanager
def private_folder(target: Path) -> Iterator[Path]:
    """A hidden folder beside a target, which goes with all that is left in it."""
    leftovers.sweep(target.parent)
    folder = _new_folder(target.parent)
    while not leftovers.hold_folder(folder):
        folder = _new_folder(target.parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        leftovers.release(folder)


def _new_folder(parent: Path) -> Path:
    return Path(tempfile.mkdtemp(prefix=f"{leftovers.hidden_name('')}-", dir=parent))


def free_for(written: Path, path: Path) -> bool:
    """Whether a file may have this path: nothing is there, or a plain file of the same bytes."""
    if not os.path.lexists(path):
        return True
    return path.is_file() and not path.is_symlink() and filecmp.cmp(written, path, shallow=False)


def publish(model: tuple[Path, Path], data: Mapping[Path, Path]) -> None:
    """Move data files to their places, then the model to its own.

    Args:
        model: where it is, and where it goes. data: the same of each data file.

    Raises:
        UsageError: another file has come into the place of a data file. OSError: as the system says.
    """
    source, target = model
    with _locked(target.parent) if data else contextlib.nullcontext(False) as alone:
        made: list[Path] = []
        try:
            for written, path in data.items():
                if _moved(written, path):
                    made.append(path)
                if same_path(path, target):  # names that differ in case, where the file system knows no cases
                    raise UsageError(f"cannot write {target}: its data has that name", remedy="choose another name")
            atomic.publish(source, target)
        except BaseException:
            for path in made if alone else ():
                discard(path)
            raise
    for folder in {target.parent, *(path.parent for path in data.values())}:
        sync_folder(folder)


def _moved(written: Path, path: Path) -> bool:
    """Move a data file to its place; False where its bytes are there already."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))  # the place is ours, or another's
    except FileExistsError:
        if free_for(written, path):
            return False
        raise UsageError(
            f"cannot write {path}: another file has come there in the meantime", remedy="run it again"
        ) from None
    try:
        os.replace(written, path)
    except BaseException:
        discard(path)
        raise
    return True


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Be the only one who publishes into a folder; False where that cannot be had."""
    if sys.platform == "win32":
        yield False
    else:
        handle = os.open(folder, os.O_RDONLY)
        try:
            yield _lock(handle)
        finally:
            os.close(handle)


def _lock(handle: int) -> bool:
    deadline = time.monotonic() + PATIENCE
    while sys.platform != "win32":
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        except OSError:  # a file system without locks
            return False
        else:
            return True
    return False
