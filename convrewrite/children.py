"""Processes that this one starts: they import this very convrewrite, and end with it, also where it is killed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

from convrewrite import board

SECONDS = 0.5
"""How often a process looks after its parent, where the system does not tell."""

_PR_SET_PDEATHSIG = 1


def environment(board_path: str | Path | None = None) -> dict[str, str]:
    """Of a child: it imports this very convrewrite, wherever it was found, and notes into the board at that path."""
    here = str(Path(__file__).resolve().parents[1])
    made = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))}
    return made if board_path is None else {**made, board.VARIABLE: str(board_path)}


def die_with(parent: int) -> None:
    """End this process by SIGKILL as soon as its parent ends.

    Linux sends the signal by itself; elsewhere a thread looks. (Windows gives a process no new parent, so there it
    lives on until it has done its work.) To be called first: a parent may be gone already.

    Args:
        parent: the id of the process that started this one.
    """
    if not (sys.platform == "linux" and _ask_the_kernel()):
        threading.Thread(target=_look, args=(parent,), daemon=True).start()
    elif os.getppid() != parent:
        _end()


def _ask_the_kernel() -> bool:
    with contextlib.suppress(OSError, AttributeError):
        return int(ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)) == 0
    return False


def _look(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(SECONDS)
    _end()


def _end() -> None:
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
