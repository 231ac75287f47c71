"""Processes that this one starts: they import this very convrewrite, and end with it, also where it is killed.

What strangers start in them (passes of other packages) neither holds them up nor outlives them: `leave`, `end_orphans`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from convrewrite.system import board

SECONDS = 0.5
"""How often a process looks after its parent, where the system does not tell."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def environment(board_path: str | Path | None = None) -> dict[str, str]:
    """A child's environment: it imports this very convrewrite, and notes on the board at that path."""
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


def adopt_orphans() -> None:
    """Become the parent of the processes that this one's children leave behind, where the system can (Linux)."""
    if sys.platform == "linux":
        _control(_PR_SET_CHILD_SUBREAPER, 1)


def end_orphans() -> None:
    """End by SIGKILL all children that this process has, also by `adopt_orphans`, where Linux lists them."""
    listed = Path(f"/proc/self/task/{os.getpid()}/children")
    with contextlib.suppress(OSError, ValueError):  # no such file; none is left to wait for
        while found := [int(word) for word in listed.read_text(encoding="ascii").split()]:
            for child in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            for child in found:
                os.waitpid(child, 0)


def leave(code: int) -> NoReturn:
    """End this process now, with what it has printed: no thread that somebody left behind is waited for."""
    for number in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, number):
            with contextlib.suppress(ValueError):  # not in the main thread
                signal.signal(getattr(signal, number), signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # None, closed, or nobody reads it: its writers have told that
            stream.flush()
    os._exit(code)


@contextlib.contextmanager
def no_fork_returns() -> Iterator[None]:
    """Run code of strangers; a process that it forks ends where it would come back, and does none of our work."""
    me = os.getpid()
    try:
        yield
    finally:
        if os.getpid() != me:
            os._exit(0)


def _ask_the_kernel() -> bool:
    return _control(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _control(option: int, value: int) -> bool:
    with contextlib.suppress(OSError, AttributeError):
        return int(ctypes.CDLL(None).prctl(option, value, 0, 0, 0)) == 0
    return False


def _look(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(SECONDS)
    _end()


def _end() -> None:
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
