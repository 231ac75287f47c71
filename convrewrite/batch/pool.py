"""Several models at a time, each in a process of its own: one that dies takes no other with it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from convrewrite.batch.words import KEYS
from convrewrite.batch.work import publish
from convrewrite.errors import ConvrewriteError, UsageError
from convrewrite.running.runtime import one_line
from convrewrite.system import atomic, leftovers
from convrewrite.system.board import Board
from convrewrite.system.children import environment
from convrewrite.system.endings import unanswered
from convrewrite.text import told as in_words

COMMAND = [sys.executable, "-P", "-m", "convrewrite.batch.worker"]

LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

DEFAULT_LIMIT = 3600.0
"""Seconds for one model."""

Started = Callable[[int], None]

Judge = Callable[[int, dict[str, Any]], dict[str, Any]]
"""Takes what a process says of the task with that index, and gives what holds; what then fails is not written."""


def run_all(
    tasks: Sequence[Mapping[str, Any]],
    jobs: int,
    threads: int,
    started: Started,
    limit: float = DEFAULT_LIMIT,
    judge: Judge = lambda index, facts: facts,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Run tasks, so many at a time; yields the index and the result of each as it ends.

    Args:
        tasks: as `work.do` takes them. jobs: processes at a time. threads: of linear algebra, for each.
        started: called with the index of each as it begins. limit: seconds for each, after which it is ended.
        judge: has the last word on each result, before its model is given its place.

    Leaving early (Ctrl-C) ends the processes that run.
    """
    running: set[subprocess.Popen[bytes]] = set()
    stopped = threading.Event()

    def one(index: int) -> dict[str, Any]:
        if stopped.is_set():
            return {"status": "error", "exit_code": 130, "message": "interrupted"}
        started(index)
        began = time.monotonic()
        task = tasks[index]
        facts = _run(task, threads, limit, running, finish=lambda told: publish(judge(index, told), task["target"]))
        return {**facts, "seconds": round(time.monotonic() - began, 3)}

    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(one, index): index for index in range(len(tasks))}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            stopped.set()
            for worker in list(running):
                end(worker)


def _run(
    task: Mapping[str, Any],
    threads: int,
    limit: float,
    running: set[subprocess.Popen[bytes]],
    *,
    finish: Callable[[dict[str, Any]], dict[str, Any]],
) -> dict[str, Any]:
    with atomic.scratch() as scratch, contextlib.ExitStack() as files:
        folder = Path(scratch)
        (folder / "made").mkdir()
        (folder / "task").write_text(json.dumps({**task, "folder": str(folder / "made")}), encoding="ascii")
        watched = Board.make(folder / "board")
        asked = files.enter_context(open(folder / "task", "rb"))
        answer, told = (files.enter_context(open(folder / name, "w+b")) for name in ("answer", "told"))
        worker = subprocess.Popen(
            COMMAND,
            stdin=asked,
            stdout=answer,  # a file: whoever still has a pipe open keeps its reader waiting
            stderr=told,
            env={**environment(folder / "board"), **dict.fromkeys(LIMITS, str(threads))},
            start_new_session=True,
        )
        running.add(worker)
        error: ConvrewriteError | None = None
        try:
            worker.wait(limit)
        except subprocess.TimeoutExpired:
            meanwhile = f" while it was {watched.activity}" if watched.activity else ""
            error = UsageError(f"timed out after {limit:g} s{meanwhile}", remedy="raise 'timeout', or leave it out")
        finally:
            end(worker)
            running.discard(worker)
        facts = None
        with contextlib.suppress(ValueError):
            answer.seek(0)
            facts = json.load(answer)
        if facts is not None:
            return finish(facts)
        for other in watched.folders:
            leftovers.sweep(other, again=True)
        told.seek(0)
        lines = told.read().decode("utf-8", "replace").splitlines()
        last = [line for line in lines if line.strip()][-1:]
        said = one_line(last[0]) if last else ""
        remedy = "try fewer jobs, or this model alone"
        error = error or unanswered("its process", worker.returncode, watched, said, remedy=remedy)
    return {"status": "error", "exit_code": error.exit_code, "message": in_words(error.text, KEYS)}


def end(worker: subprocess.Popen[bytes]) -> None:
    """End a process, and what it has started and left behind."""
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(worker.pid, signal.SIGKILL)  # it leads a session of its own
    if worker.poll() is None:
        with contextlib.suppress(OSError):
            worker.kill()
        worker.wait()
