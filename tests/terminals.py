"""A command on a terminal of some width, as a person sees it."""

from __future__ import annotations

import os
import pty
import re
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class Shown:
    """What came: all of it, with what moves the cursor; and the exit code."""

    raw: str
    code: int

    @property
    def lines(self) -> list[str]:
        """What stays on the screen, line by line, without colours."""
        return [ESCAPES.sub("", line.rpartition("\r")[2]) for line in self.raw.replace("\r\n", "\n").split("\n")]

    @property
    def widest(self) -> int:
        return max(map(len, self.lines))


def on_terminal(*words: str, columns: int = 80, variables: Mapping[str, str] | None = None) -> Shown:
    """Run `convrewrite` on a terminal: both streams are it."""
    pid, terminal = pty.fork()
    if pid == 0:
        kept = {name: text for name, text in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}
        sys.stdin.close()
        os.set_inheritable(0, True)
        _resize(columns)
        command = [sys.executable, "-m", "convrewrite", *words]
        os.execve(sys.executable, command, {**kept, "TERM": "xterm-256color", **(variables or {})})
    parts = []
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        parts.append(part)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    return Shown(b"".join(parts).decode(), os.waitstatus_to_exitcode(status))


def _resize(columns: int) -> None:
    import fcntl
    import termios

    fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
