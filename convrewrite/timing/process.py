"""Runs a worker process and reads its events; turns every way in which it can end into one line.

A worker that dies takes nothing with it: what it told before has been read. Ctrl-C reaches this process alone, which
then ends the worker.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any, TextIO

from convrewrite.errors import ConvrewriteError, UsageError
from convrewrite.running.runtime import one_line
from convrewrite.system import children
from convrewrite.system.endings import signal_name
from convrewrite.timing.protocol import Task

COMMAND = [sys.executable, "-P", "-m", "convrewrite.timing.worker"]

Event = dict[str, Any]


class CellFailed(ConvrewriteError):
    """One size could not be measured; `memory` says whether for want of memory."""

    exit_code = 2

    def __init__(self, message: str, *, memory: bool = False) -> None:
        super().__init__(message)
        self.memory = memory


def events(task: Task) -> Iterator[Event]:
    """The events of a worker, as they come.

    Raises:
        UsageError: the worker could not begin: a model that does not load, a provider that is not obtained.
        CellFailed: it began and did not finish.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        worker = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if task.verbose else errors,
            text=True,
            encoding="utf-8",
            env=children.environment(),
            start_new_session=True,
        )
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):
                worker.stdin.write(task.to_json() + "\n")
                worker.stdin.close()
            for line in worker.stdout:
                with contextlib.suppress(json.JSONDecodeError):  # cut off in the middle of a line
                    event: Event = json.loads(line)
                    if event["event"] == "error":
                        raise _told(event)
                    yield event
            code = worker.wait()
        finally:
            worker.kill()
            worker.wait()
            worker.stdout.close()
        if code:
            raise _died(code, errors)


def _told(event: Event) -> ConvrewriteError:
    if not event.get("ran"):
        return UsageError(event["message"], remedy=event.get("remedy"))
    memory = bool(re.search(r"alloc|out of memory", event["message"], re.IGNORECASE))
    return CellFailed(event["message"], memory=memory)


def _died(code: int, errors: TextIO) -> CellFailed:
    killed = -getattr(signal, "SIGKILL", 9)
    if code == killed:
        return CellFailed("out of memory, most likely: its process was killed", memory=True)
    errors.seek(0)
    lines = [line for line in errors.read().splitlines() if line.strip()]
    said = f" ({one_line(lines[-1])})" if lines else ""
    name = signal_name(code)
    how = f"was ended by {name}" if name else f"ended with exit code {code}"
    return CellFailed(f"its process {how}{said}")
