"""Several models at a time, each in a process of its own: one that dies takes no other with it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from convrewrite.errors import ConvrewriteError, UsageError
from convrewrite.runtime import one_line
from convrewrite.timing.process import environment

COMMAND = [sys.executable, "-P", "-m", "convrewrite.batch.worker"]

LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

Started = Callable[[int], None]


def run_all(
    tasks: Sequence[Mapping[str, Any]], jobs: int, threads: int, started: Started
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Run tasks, so many at a time; yields the index and the result of each as it ends.

    Args:
        tasks: as `work.do` takes them. jobs: processes at a time. threads: of linear algebra, for each.
        started: called with the index of each as it begins.

    Leaving early (Ctrl-C) ends the processes that run.
    """
    running: set[subprocess.Popen[str]] = set()
    stopped = threading.Event()

    def one(index: int) -> dict[str, Any]:
        if stopped.is_set():
            return {"status": "error", "exit_code": 130, "message": "interrupted"}
        started(index)
        began = time.monotonic()
        return {**_run(tasks[index], threads, running), "seconds": round(time.monotonic() - began, 3)}

    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(one, index): index for index in range(len(tasks))}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            stopped.set()
            for worker in list(running):
                worker.kill()


def _run(task: Mapping[str, Any], threads: int, running: set[subprocess.Popen[str]]) -> dict[str, Any]:
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as told:
        worker = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=told,
            text=True,
            encoding="utf-8",
            env={**environment(), **dict.fromkeys(LIMITS, str(threads))},
            start_new_session=True,
        )
        running.add(worker)
        try:
            answer, _ = worker.communicate(json.dumps(task))
        finally:
            running.discard(worker)
        try:
            result: dict[str, Any] = json.loads(answer)
            return result
        except ValueError:
            told.seek(0)
            error = _died(worker.returncode, told.read())
    return {"status": "error", "exit_code": error.exit_code, "message": str(error)}


def _died(code: int, told: str) -> ConvrewriteError:
    """Why a process left no answer."""
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        why = ", perhaps for want of memory" if -code == signal.SIGKILL else ""
        return UsageError(f"its process was ended by {name}{why}", remedy="try fewer jobs, or this model alone")
    last = [line for line in told.splitlines() if line.strip()][-1:]
    return ConvrewriteError(f"its process ended with {code}: {one_line(last[0]) if last else 'without a word'}")
