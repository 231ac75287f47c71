"""SIGTERM ends a command within seconds: as on Ctrl-C, so that temporary files go, or else at once.

The main thread may be deep in a library, or wait on leaving for a thread that is. The system tells another thread of
the signal as well, which gives the main one a while and then ends the process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from types import FrameType

GRACE = 5.0
"""Seconds to leave in good order."""

_watched = threading.Event()


def on_sigterm() -> None:
    """Let SIGTERM end this process so; of no effect where this is not its main thread."""
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGTERM, _terminate)
        if not _watched.is_set():
            told, tell = os.pipe()
            os.set_blocking(tell, False)
            signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
            if hasattr(os, "register_at_fork"):  # what ends a child is told to the child alone
                os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
            threading.Thread(target=_watch, args=(told,), daemon=True, name="sigterm").start()
            _watched.set()


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _watch(told: int) -> None:
    while numbers := os.read(told, 64):
        if signal.SIGTERM in numbers:
            time.sleep(GRACE)
            os._exit(128 + signal.SIGTERM)
