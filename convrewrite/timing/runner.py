"""`bench`: which cells there are, one worker process for each, and what the results mean together."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from convrewrite.errors import CheckFailed, ConvrewriteError, Interrupted, UsageError
from convrewrite.options import BenchOptions
from convrewrite.running.installed import check_installation
from convrewrite.system import atomic
from convrewrite.text import by, counted, parameter
from convrewrite.timing.process import CellFailed, Event, events
from convrewrite.timing.protocol import Part, Subject, Task
from convrewrite.timing.result import Bench, Cell, Cost, Missed
from convrewrite.timing.statistics import NO_DIFFERENCE, Comparison, Rounds, compare
from convrewrite.timing.subjects import Candidate, Size, casts, check_inputs, extents, shapes_at, sliding

Progress = Callable[[str, int, int], None]

DEFAULT = BenchOptions()


@dataclass(frozen=True)
class Plan:
    """One cell to measure: `subjects` and images per model in the order A, B; `twice` is the one with the A/A pair."""

    size: Size
    batches: tuple[int, ...]
    subjects: tuple[Subject, Subject]
    macs: tuple[tuple[int | None, ...], tuple[int | None, ...]]
    images: int
    elements: int
    twice: int = 0
    windows: int = 0
    limit: float | None = None

    @property
    def label(self) -> str:
        """The size and batch as text, as in `Cell.label`."""
        batch = "" if self.windows else f", batch {self.batches[0]}"
        return f"{by(self.size)}{batch}".removeprefix(", ")


@dataclass
class Findings:
    """The measurements of all cells so far."""

    cells: list[Cell] = field(default_factory=list)
    missed: list[Missed] = field(default_factory=list)
    ready: Event = field(default_factory=dict)


def bench(a: str | Path, b: str | Path, options: BenchOptions = DEFAULT) -> Bench:
    """Time two models against each other; `statistics` tells when one is called faster.

    The inputs must agree in name, type and shape. Every cell (a size with a batch) has a worker process of its own, so
    that sessions of the caller are not disturbed, and a cell that dies costs that cell alone; larger ones are then not
    tried, if it was memory that ran out. Ctrl-C keeps what was measured.

    Args:
        a, b: model files. With `windows`, a is the original and b what `fcn` made of it.
        options: `seconds` are those of the rounds per cell; making sessions and warming up come on top, and a slow
            model takes longer: five sets of one round at least. With `windows`, `batches` are those tried for the
            original (1, 8, 32 by default). `min_speedup` is a gate on the *median* of every cell, with the interval in
            the message; gating on its lower end would fail a true speedup on a noisy day. A verdict of no difference
            counts as 1, so that 1 means "not slower". A cell that could not be measured misses the gate.

    Returns:
        What was found. Where a cell failed, the gate was missed or Ctrl-C came, `error` says so and `check` raises it.

    Raises:
        UsageError: the models or the options do not fit, or no session could be made.
    """
    check_installation()
    pair = Candidate.read(a), Candidate.read(b)
    plans = sorted(_plans(*pair, options), key=lambda plan: plan.elements)
    used = options.threads or cores()
    task = Task(
        "time",
        plans[0].subjects[0],
        provider=options.provider,
        tf32=options.tf32,
        threads=used,
        seconds=options.seconds,
        sets=options.sets,
        seed=options.seed,
        verbose=options.verbose,
    )
    found = Findings()
    error: ConvrewriteError | None = None
    try:
        too_large = math.inf
        for number, plan in enumerate(plans):
            if plan.elements >= too_large:
                found.missed.append(Missed(plan.label, "not tried, since a smaller size ran out of memory"))
                continue
            try:
                tell = _teller(options.progress, plan.label, number, len(plans))
                _measure(plan, task, found, options, tell=tell)
            except CellFailed as failure:
                found.missed.append(Missed(plan.label, failure.message))
                too_large = plan.elements if failure.memory else too_large
    except KeyboardInterrupt:
        error = Interrupted(
            f"interrupted; {sum(c.complete for c in found.cells)} of {counted(len(plans), 'size')} were measured"
        )
    except UsageError as failure:
        if not found.cells:
            raise
        error = failure
    result = Bench(
        a=str(a),
        b=str(b),
        provider=found.ready.get("provider", ""),
        tf32=bool(found.ready.get("tf32", options.tf32)),
        threads=used,
        seconds=options.seconds,
        cells=tuple(found.cells),
        missed=tuple(found.missed),
        nodes=tuple(found.ready.get("nodes", ())),
        warnings=(*casts(*pair), *found.ready.get("warnings", ())),
    )
    return replace(result, error=error or _failure(result, options.min_speedup))


def _plans(a: Candidate, b: Candidate, options: BenchOptions) -> Iterator[Plan]:
    """The cells. Raises UsageError where one does not fit, before any is run."""
    wanted: list[Size | None] = list(options.sizes) or [None]
    if options.windows:
        for size in wanted:
            yield _windows_plan(a, b, size, options.batches)
        return
    check_inputs(a, b)
    for size in wanted:
        for batch in options.batches or (None,):
            shapes = shapes_at(a, b, size, batch)
            shape, window = shapes[a.image.name], b.window or a.window
            extent, images = extents(shape, window.axes if window is not None else "")
            yield Plan(
                extent,
                (images,),
                (Subject.plain(a.path, shapes), Subject.plain(b.path, shapes)),
                macs=((a.macs(shapes),), (b.macs(shapes),)),
                images=images,
                elements=math.prod(shape),
            )


def _windows_plan(original: Candidate, fcn: Candidate, size: Size | None, batches: Sequence[int]) -> Plan:
    work = sliding(original, fcn, size, batches)
    macs = tuple(_way_macs(original, way) for way in work.original.ways)
    return Plan(
        work.size,
        work.batches,
        (work.original, Subject.plain(fcn.path, work.image)),
        macs=(macs, (fcn.macs(work.image),)),
        images=1,
        elements=math.prod(work.size),
        twice=1,
        windows=work.windows,
        limit=work.limit,
    )


def _way_macs(model: Candidate, way: Sequence[Part]) -> int | None:
    counts = [(model.macs(part.shapes), part.count) for part in way]
    return sum((macs or 0) * count for macs, count in counts) if all(macs for macs, _ in counts) else None


def _measure(
    plan: Plan, task: Task, found: Findings, options: BenchOptions, *, tell: Callable[[int, int], None]
) -> None:
    """Measure one cell, and add it to what was found; of an interrupted one, what there is."""
    bytes_used = [
        _once(replace(task, kind="memory", first=s)).get("bytes") if options.memory else None for s in plan.subjects
    ]
    timed = replace(task, first=plan.subjects[plan.twice], second=plan.subjects[1 - plan.twice])
    done: list[Rounds] = []
    nodes: list[tuple[dict[str, Any], ...]] = [(), ()]
    ready: Event = {}
    complete = False
    try:
        for event in events(timed):
            if event["event"] == "ready":
                ready = event
            elif event["event"] == "set":
                done.append(Rounds(*(tuple(event[name]) for name in ("first", "again", "second"))))
                tell(event["finished"], event["sets"])
        complete = True
        if options.profile:
            with atomic.scratch() as folder:
                profiled = [replace(task, kind="profile", first=s, folder=folder) for s in plan.subjects]
                nodes = [tuple(_once(one).get("nodes", ())) for one in profiled]
    finally:
        if done:
            found.ready = ready if plan.twice == 0 else {**ready, "nodes": ready["nodes"][::-1]}
            found.cells.append(_cell(plan, compare(done, task.seed), ready, bytes_used, nodes=nodes, complete=complete))


def _once(task: Task) -> Event:
    """What a worker tells that has one thing to tell."""
    return {name: value for event in events(task) for name, value in event.items()}


def _cell(
    plan: Plan,
    found: Comparison,
    ready: Event,
    memory: Sequence[int | None],
    nodes: Sequence[tuple[dict[str, Any], ...]],
    complete: bool,
) -> Cell:
    way = ready["ways"]["second"] if plan.windows else 0
    seconds = (found.first, found.second)
    if plan.twice:
        seconds, found = seconds[::-1], _seen_from_the_other(found)
    a, b = (
        Cost(
            seconds[i],
            plan.images,
            plan.macs[i][way if plan.windows and i == 0 else 0],
            memory=memory[i],
            nodes=nodes[i],
        )
        for i in (0, 1)
    )
    return Cell(
        size=plan.size,
        batch=plan.batches[way],
        a=a,
        b=b,
        comparison=found,
        complete=complete,
        windows=plan.windows,
        limit=plan.limit,
    )


def _seen_from_the_other(found: Comparison) -> Comparison:
    """The same comparison, where `first` is B."""
    swapped = {"faster": "slower", "slower": "faster"}
    verdict = swapped.get(found.verdict, found.verdict)
    return replace(found, speedup=found.speedup.inverse(), verdict=verdict)


def _failure(result: Bench, min_speedup: float | None) -> ConvrewriteError | None:
    """What the result fails for, if it does."""
    if result.missed:
        first, others = result.missed[0], len(result.missed) - 1
        more = f" (and {others} more)" if others else ""
        ran = f"; measured: {'; '.join(cell.label for cell in result.cells)}" if result.cells else ""
        return CellFailed(f"could not measure {first.label}{more}: {first.reason}{ran}")
    for cell in result.cells if min_speedup is not None else ():
        got = cell.comparison.speedup
        held = got.median if cell.comparison.verdict != NO_DIFFERENCE else max(got.median, 1.0)
        if min_speedup is not None and held < min_speedup:
            return CheckFailed(
                f"the speedup at {cell.label} is {got.text()}, below {parameter('min_speedup', f'{min_speedup:g}')} "
                f"({cell.comparison.verdict}; A/A {cell.comparison.control.low:.2f} to "
                f"{cell.comparison.control.high:.2f})"
            )
    return None


def _teller(progress: Progress | None, label: str, number: int, total: int) -> Callable[[int, int], None]:
    def tell(done: int, sets: int) -> None:
        if progress is not None:
            progress(f"timing at {label}", number * sets + done, total * sets)

    return tell


def cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
