"""What a process tells the one that watches it: memory that both see, and that outlives a crash.

    child   with doing("running in.onnx in ONNX Runtime"): ...      dies by SIGFPE
    parent  board.activity  ->  "running in.onnx in ONNX Runtime"

The child also names the folders in which it makes temporary files, facts that the parent needs to end in its place, and
its exit code once it ended by itself. Nothing is sent and nothing waits: a note is a copy of a few bytes. A process
that nobody watches notes into a board of its own.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VARIABLE = "CONVREWRITE_BOARD"
"""Names the file of the board to a process that was not forked."""

SIZE = 1 << 16
_CODE, _ACTIVITY, _STRANGERS, _FACTS, _FOLDERS = (
    0,
    64,
    1536,
    2048,
    16384,
)  # where each part begins; it ends where the next does
_LONGEST = 300  # characters of an activity


class Board:
    """The memory. Whoever reads does so after the writer has ended, so nothing locks."""

    def __init__(self, memory: mmap.mmap | bytearray) -> None:
        self._memory = memory

    @classmethod
    def shared(cls) -> Board:
        """A board in memory that a child forked later shares."""
        return cls(mmap.mmap(-1, SIZE))

    @classmethod
    def at(cls, path: str | Path) -> Board:
        """A board in a file that `make` has made, for a child that is a new program."""
        with open(path, "r+b") as file:
            return cls(mmap.mmap(file.fileno(), SIZE))

    @classmethod
    def make(cls, path: str | Path) -> Board:
        """A board in a new file; where no file can be made, a board that nobody else sees."""
        with contextlib.suppress(OSError):
            Path(path).write_bytes(bytes(SIZE))  # written, not only sized: a full disk shows now, not as a SIGBUS
            return cls.at(path)
        return cls(bytearray(SIZE))

    @property
    def code(self) -> int | None:
        """The exit code that the process has ended with by itself; None where it did not come to that."""
        done, code = struct.unpack_from("<?i", self._memory, _CODE)
        return code if done else None

    @code.setter
    def code(self, code: int) -> None:
        struct.pack_into("<?i", self._memory, _CODE, True, code)

    @property
    def activity(self) -> str:
        """What the process was about to do; empty where it has not said."""
        return self._read(_ACTIVITY, _STRANGERS)

    @activity.setter
    def activity(self, text: str) -> None:
        self._write(_ACTIVITY, _STRANGERS, text[:_LONGEST])

    @property
    def strangers(self) -> str:
        """Whose code the process has loaded beside the project's: passes of other packages; empty where none."""
        return self._read(_STRANGERS, _FACTS)

    def add_stranger(self, name: str) -> None:
        """Record a process that is not this program's own."""
        known = self.strangers
        if name not in known.split(" or "):
            self._write(_STRANGERS, _FACTS, " or ".join(filter(None, [known, name])))

    @property
    def facts(self) -> dict[str, Any]:
        """What the parent needs to end in the place of its child."""
        try:
            return dict(json.loads(self._read(_FACTS, _FOLDERS) or "{}"))
        except ValueError:  # it died while it wrote them
            return {}

    @facts.setter
    def facts(self, facts: dict[str, Any]) -> None:
        self._write(_FACTS, _FOLDERS, json.dumps(facts))

    @property
    def folders(self) -> list[str]:
        """Those in which the process has made temporary files."""
        return list(filter(None, self._read(_FOLDERS, SIZE).split("\0")))

    def add_folder(self, folder: str) -> None:
        """Record a folder by its absolute path."""
        known = self.folders
        if folder not in known:
            self._write(_FOLDERS, SIZE, "\0".join([*known, folder]))

    def _read(self, begin: int, end: int) -> str:
        (length,) = struct.unpack_from("<I", self._memory, begin)
        return bytes(self._memory[begin + 4 : min(begin + 4 + length, end)]).decode("utf-8", "surrogateescape")

    def _write(self, begin: int, end: int, text: str) -> None:
        """What does not fit is left out as a whole: a path that was cut names another folder."""
        data = text.encode("utf-8", "surrogateescape")
        if len(data) <= end - begin - 4:
            struct.pack_into("<I", self._memory, begin, 0)  # no half of a text, should it end here
            self._memory[begin + 4 : begin + 4 + len(data)] = data
            struct.pack_into("<I", self._memory, begin, len(data))


_own = Board(bytearray(SIZE))


def mine() -> Board:
    """The board that this process writes to."""
    return _own


def join(board: Board | None = None) -> Board:
    """Note into this board from now on; without one, into that which the environment names, if it does.

    The name is taken out of the environment: what this process starts has a board of its own.
    """
    global _own  # noqa: PLW0603
    path = os.environ.pop(VARIABLE, None)
    if board is None and path is not None:
        with contextlib.suppress(OSError, ValueError):
            board = Board.at(path)
    _own = board or _own
    return _own


@contextlib.contextmanager
def doing(text: str) -> Iterator[None]:
    """Note on the board what this process does while the context lasts."""
    before = _own.activity
    _own.activity = text
    try:
        yield
    finally:
        _own.activity = before
