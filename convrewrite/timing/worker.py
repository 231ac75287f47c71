"""The process that runs models to time them: `python -m convrewrite.timing.worker`, a task on standard input.

A process of its own, because ONNX Runtime's shared pool of threads is process-wide, and private pools of two sessions
disturb each other (the same model against itself: 0.66 to 1.69 times; with one pool 0.99 to 1.02). It is also what the
kernel ends first where memory runs out, so that the parent lives to tell which sizes ran.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from convrewrite.errors import ConvrewriteError, UsageError
from convrewrite.running import runtime
from convrewrite.running.installed import OLDEST
from convrewrite.running.runtime import BoundRun, RunFailed, Session
from convrewrite.running.sampling import InputSpec, Scale, random_array
from convrewrite.system import children
from convrewrite.timing.protocol import Part, Subject, Task
from convrewrite.timing.statistics import MIN_SETS

Emit = Callable[..., None]

SAMPLE_SECONDS = 0.01
"""A measurement repeats a short run for so long, and is the median of the runs."""
SAMPLED_RUNS = 3
PRIME_BELOW = 0.05
"""A run shorter than this is done once untimed before: the caches hold what the other contestant left there."""
STABLE = 0.05
"""Warm-up ends where a run is within this share of the one before."""
MIN_ROUNDS = 3
PROFILED_RUNS = 5


@dataclass
class Contestant:
    """A session with its inputs in place, and the seconds that its work takes."""

    session: Session
    parts: Sequence[tuple[BoundRun, int]]
    known: dict[int, float] = field(default_factory=dict)

    def measure(self) -> float:
        """Seconds of the whole work now: the median run of every part, times its count."""
        return sum(self._median(i, bound, count) * count for i, (bound, count) in enumerate(self.parts))

    def _median(self, index: int, bound: BoundRun, count: int) -> float:
        if self.known.get(index, 0.0) < PRIME_BELOW:
            bound.run()
        runs: list[float] = []
        start = now = time.perf_counter()
        while now - start < SAMPLE_SECONDS or len(runs) < min(count, SAMPLED_RUNS):
            bound.run()
            before, now = now, time.perf_counter()
            runs.append(now - before)
        self.known[index] = statistics.median(runs)
        return self.known[index]

    def warm_up(self, budget: float) -> float:
        """Measure until two measurements in a row agree or the budget in seconds is spent; the last one."""
        start, before, last = time.perf_counter(), 0.0, self.measure()
        while abs(last - before) > STABLE * last and time.perf_counter() - start < budget:
            before, last = last, self.measure()
        return last


def feeds(session: Session, part: Part, seed: int) -> dict[str, Any]:
    """Random inputs of those shapes; the models' own types."""
    rng = np.random.default_rng(seed)
    found = {}
    for info in session.inputs:
        if info.name not in part.shapes:
            raise UsageError(f"{session.label} wants an input '{info.name}', which the file does not list")
        shape = part.shapes[info.name]
        if info.dtype.kind == "f":
            found[info.name] = rng.random(shape, dtype=np.float32).astype(info.dtype, copy=False)
        else:
            found[info.name] = random_array(rng, InputSpec(info.name, info.dtype, shape), Scale("0..1"))
    return found


class Stage:
    """Makes sessions and contestants as a task says."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def session(self, subject: Subject, profile: Path | None = None) -> Session:
        """Open a session that uses the shared thread pool."""
        task = self.task
        return runtime.open_session(
            subject.path, task.provider, tf32=task.tf32, shared_threads=True, verbose=task.verbose, profile=profile
        )

    def contestant(self, session: Session, way: Sequence[Part]) -> Contestant:
        """Open a session and put its inputs on its device."""
        return Contestant(session, [(session.bind(feeds(session, p, self.task.seed)), p.count) for p in way])

    def fastest(self, subject: Subject) -> int:
        """The number of the way that takes the least time, in a session that is not used further."""
        if len(subject.ways) == 1:
            return 0
        session, budget = self.session(subject), self.task.seconds / 10
        return min(range(len(subject.ways)), key=lambda i: self.contestant(session, subject.ways[i]).warm_up(budget))


def time_models(task: Task, emit: Emit) -> None:
    """Sets of fresh sessions, rounds in random order, until the seconds are spent; one event per set."""
    if task.second is None:
        raise ValueError("nothing to compare with")
    stage, order = Stage(task), random.Random(task.seed)
    ways = {"first": stage.fastest(task.first), "second": stage.fastest(task.second)}
    subjects = {"first": task.first, "again": task.first, "second": task.second}
    spent, sets, finished = 0.0, task.sets, 0
    while finished < sets:
        began = time.perf_counter()
        contestants: dict[str, Contestant] = {}
        for name in order.sample(list(subjects), 3):
            way = subjects[name].ways[ways["second" if name == "second" else "first"]]
            contestants[name] = stage.contestant(stage.session(subjects[name]), way)
        if not finished:
            emit("ready", ways=ways, **_placement(contestants["first"].session, contestants["second"].session))
        share = (task.seconds - spent) / (sets - finished)
        round_seconds = sum(contestants[name].warm_up(share / 10) for name in order.sample(list(subjects), 3))
        if time.perf_counter() - began > 2 * share:  # making sessions is what costs: fewer sets, longer ones
            sets = max(finished + 1, min(sets, MIN_SETS + 1))
            share = (task.seconds - spent) / (sets - finished)
        least = MIN_ROUNDS if round_seconds < share / 2 else 1
        seconds: dict[str, list[float]] = {name: [] for name in subjects}
        start, rounds = time.perf_counter(), 0
        while rounds < least or time.perf_counter() - start < share:
            for name in order.sample(list(subjects), 3):
                seconds[name].append(contestants[name].measure())
            rounds += 1
        spent += time.perf_counter() - start
        finished += 1
        emit("set", finished=finished, sets=sets, **seconds)
        contestants.clear()
        gc.collect()


def measure_memory(task: Task, emit: Emit) -> None:
    """How far the resident memory of this process grows at most while it loads the model and runs it twice."""
    stage = Stage(task)
    before = resident("VmRSS")
    session = stage.session(task.first)
    bound = session.bind(feeds(session, task.first.ways[0][0], task.seed))
    bound.run()
    bound.run()
    peak = resident("VmHWM")
    emit("memory", bytes=None if before is None or peak is None else max(0, peak - before))


def profile(task: Task, emit: Emit) -> None:
    """Seconds per node and run, from ONNX Runtime's own profile after a warm-up run."""
    session = Stage(task).session(task.first, Path(task.folder) / "profile")
    feed = feeds(session, task.first.ways[0][0], task.seed)
    for _ in range(PROFILED_RUNS + 1):
        session.run(feed)
    path = session.end_profile()
    events = json.loads(path.read_text(encoding="utf-8"))
    path.unlink(missing_ok=True)
    emit("profile", nodes=node_seconds(events))


def node_seconds(events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Median seconds per node over the runs but the first, the most expensive first."""
    runs: dict[tuple[str, str, str], list[float]] = {}
    for event in events:
        args = event.get("args", {})
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            key = (name.removesuffix("_kernel_time"), str(args.get("op_name", "")), str(args.get("provider", "")))
            runs.setdefault(key, []).append(float(event["dur"]) / 1e6)
    nodes = [
        {"name": name, "op": op, "provider": provider, "seconds": statistics.median(seconds[1:] or seconds)}
        for (name, op, provider), seconds in runs.items()
    ]
    return sorted(nodes, key=lambda node: -float(str(node["seconds"])))


def resident(entry: str) -> int | None:
    """VmRSS (now) or VmHWM (highest so far) of this process in bytes; None where the system does not tell."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{entry}:"):
                return int(line.split()[1]) * 1024
    return None


def _placement(first: Session, second: Session) -> dict[str, Any]:
    return {
        "provider": first.provider,
        "tf32": first.tf32 or second.tf32,
        "nodes": [first.nodes, second.nodes],
        "warnings": [warning for warning in (first.warning, second.warning) if warning],
    }


WORK: dict[str, Callable[[Task, Emit], None]] = {"time": time_models, "memory": measure_memory, "profile": profile}


def main() -> None:
    """Read a task from standard input, measure it, and write the result."""
    children.die_with(os.getppid())
    out = _claim_stdout()

    def emit(event: str, **facts: Any) -> None:
        print(json.dumps({"event": event, **facts}), file=out, flush=True)

    with contextlib.suppress(OSError):  # where memory runs out, end this process and not the parent
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="utf-8")
    try:
        task = Task.from_json(sys.stdin.readline())
        _share_threads(task.threads)
        WORK[task.kind](task, emit)
    except ConvrewriteError as error:
        ran = isinstance(error, RunFailed)
        emit("error", exit_code=error.exit_code, message=error.message, remedy=error.remedy, ran=ran)
    except MemoryError:
        emit("error", exit_code=2, message="out of memory", remedy=None, ran=True)
    except (BrokenPipeError, KeyboardInterrupt):
        os._exit(1)  # the parent is gone, or going


def _share_threads(threads: int) -> None:
    """Let all sessions of this process share that many threads. Raises UsageError where ONNX Runtime is too old."""
    ort = runtime.library()
    if not hasattr(ort, "set_global_thread_pool_sizes"):
        raise UsageError(
            f"ONNX Runtime {ort.__version__} cannot time models that share their threads",
            remedy=f"install {'.'.join(map(str, OLDEST))} or later",
        )
    ort.set_global_thread_pool_sizes(threads, 1)


def _claim_stdout() -> TextIO:
    """Standard output for the events alone; what libraries print goes to standard error."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return out


if __name__ == "__main__":
    main()
