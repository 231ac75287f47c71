"""One fully convolutional pass against classifying every window, on the CPU.

    python -m benchmarks.fcn_vs_windows --out benchmarks/results/fcn_vs_windows.json --date 2026-01-31

For each model and each number of windows: seconds of the pass, seconds of the best batching of the original over all
crops, the speedup, and the limit that the arithmetic sets: multiply-accumulates of all crops over those of the pass.
`windows_worker` measures, one process per model. Exit code 1 where outputs disagree; a missed goal is only printed,
since a busy machine misses it too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks import common
from benchmarks.windows_worker import Cell, Task
from convrewrite.timing.statistics import geometric_mean, tells_apart

NAME = "fcn_vs_windows"
MODELS = {
    "alexnet": "AlexNet",
    "vgg16": "VGG-16",
    "resnet18": "ResNet-18",
    "mobilenet_v1": "MobileNetV1",
    "lenet5": "LeNet-5",
}
POSITIONS = (5, 9, 17)
CELL_GOAL, MEAN_GOAL = 0.85, 0.97
"""Least share of the limit: in every cell, and as the geometric mean."""
HEADER = (
    "model",
    "windows",
    "image",
    "one pass, ms",
    "all windows, ms",
    "batch",
    "speedup",
    "limit by FLOPs",
    "share of limit",
    "A/A",
)


def measure(task: Task) -> Iterator[Cell]:
    """The cells of one model, as its process delivers them."""
    command = [sys.executable, "-m", "benchmarks.windows_worker", json.dumps(asdict(task))]
    with subprocess.Popen(
        command, cwd=common.ROOT, env=common.environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield Cell.from_dict(json.loads(line))
    if process.returncode:
        raise SystemExit(f"the process that measures {task.model} failed with exit code {process.returncode}")


def summary(cells: Sequence[Cell]) -> dict[str, Any]:
    """The figures that the goals are about."""
    smallest = min(cells, key=lambda cell: cell.share)
    mean = geometric_mean(cell.share for cell in cells)
    return {
        "geometric_mean": mean,
        "smallest": smallest.share,
        "smallest_cell": f"{MODELS[smallest.model]}, {smallest.positions}x{smallest.positions}",
        "mean_goal_met": mean >= MEAN_GOAL,
        "cell_goal_met": smallest.share >= CELL_GOAL,
    }


def report(cells: Sequence[Cell], *, threads: int = 2, rehearsal: bool = False, date: str = "") -> dict[str, Any]:
    """What `--out` writes."""
    return {
        "benchmark": NAME,
        "date": date,
        "rehearsal": rehearsal,
        "machine": common.machine(),
        "threads": threads,
        "versions": common.versions(),
        "cells": [asdict(cell) for cell in cells],
        "summary": summary(cells),
    }


def row(cell: Cell) -> list[str]:
    """One line of the table."""
    sampled = "*" if cell.timed < cell.batches else ""
    unclear = "" if tells_apart(cell.speedup.median, cell.again) else " (no difference)"
    return [
        MODELS[cell.model],
        f"{cell.positions}x{cell.positions}",
        "x".join(map(str, cell.image)),
        f"{cell.fcn.median * 1e3:.2f}",
        f"{cell.sliding.median * 1e3:.1f}{sampled}",
        str(min(cell.batch, cell.windows)),
        f"{cell.speedup.median:.1f}x ({cell.speedup.low:.1f} to {cell.speedup.high:.1f}){unclear}",
        f"{cell.limit:.1f}x",
        f"{cell.share:.2f}",
        f"{cell.again.low:.2f} to {cell.again.high:.2f}",
    ]


def goals(figures: dict[str, Any]) -> list[str]:
    """The goals in words."""
    return [
        f"Geometric mean of the share of the limit: {figures['geometric_mean']:.3f} "
        f"(goal {MEAN_GOAL}: {common.verdict(figures['mean_goal_met'])}).",
        f"Smallest share: {figures['smallest']:.3f}, {figures['smallest_cell']} "
        f"(goal {CELL_GOAL}: {common.verdict(figures['cell_goal_met'])}).",
    ]


def markdown(data: dict[str, Any]) -> str:
    """The table and what belongs below it."""
    cells = [Cell.from_dict(cell) for cell in data["cells"]]
    lines = [common.table(HEADER, map(row, cells)), "", *goals(data["summary"])]
    lines.append(
        "Times are medians, intervals hold the median 95 times in 100; A/A is the pass against itself. "
        "The windows are cut out beforehand, and the batch is the best of 1, 8 and 32, the last one smaller."
    )
    if any(cell.timed < cell.batches for cell in cells):
        lines.append(
            "\\* timed on whole batches (three or more per round) and scaled to their number; "
            "the last, smaller batch was timed as it is and added."
        )
    lines.append(common.provenance(data))
    return "\n".join(lines)


def checks(cell: Cell) -> str:
    """How the outputs of a cell were compared."""
    what = f"{cell.compared} windows" if cell.equivalence == "windows" else "the native size"
    return f"outputs agree to {cell.error:.1e} on {what}" if cell.correct else f"OUTPUTS DISAGREE on {what}"


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(prog=f"python -m benchmarks.{NAME}", description=__doc__.partition("\n")[0])
    options.add_argument("--models", nargs="+", choices=tuple(MODELS), default=None, help="default: all five")
    options.add_argument("--positions", nargs="+", type=int, default=None, help="windows per axis; default: 5 9 17")
    options.add_argument("--seconds", type=float, default=None, help="of measuring per cell; default: 20")
    options.add_argument("--rounds", type=int, default=None, help="at least so many per cell; default: 6")
    options.add_argument("--threads", type=int, default=2, help="in the one pool of threads; default: 2")
    options.add_argument("--quick", action="store_true", help="a rehearsal: LeNet-5, 5x5, a second; no figures")
    common.add_options(options, table=True)
    options.add_argument("--folder", help="for up to 1.2 GB of models; default: the system's temporary folder")
    return options


def tasks(options: argparse.Namespace) -> list[Task]:
    """One per model; what was not given depends on --quick."""
    quick = options.quick
    seconds = options.seconds if options.seconds is not None else (0.5 if quick else 20.0)
    rounds = options.rounds if options.rounds is not None else (3 if quick else 6)
    positions = tuple(options.positions or ((5,) if quick else POSITIONS))
    models = options.models or (("lenet5",) if quick else tuple(MODELS))
    return [Task(model, positions, seconds, rounds, options.threads, options.folder) for model in models]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    options = parser().parse_args(arguments)
    cells: list[Cell] = []
    for task in tasks(options):
        for cell in measure(task):
            cells.append(cell)
            named = zip(HEADER[3:], row(cell)[3:], strict=True)
            figures = ", ".join(f"{name} {value}" for name, value in named)
            print(f"{MODELS[cell.model]} {cell.positions}x{cell.positions}: {figures}; {checks(cell)}", flush=True)
            if cell.timed < cell.batches:
                print(f"  (* {cell.timed} of {cell.batches} whole batches timed per round and scaled)", flush=True)
    data = report(cells, threads=options.threads, rehearsal=options.quick, date=options.date)
    print(*goals(data["summary"]), sep="\n")
    if options.markdown:
        print(f"\n{markdown(data)}")
    common.keep(data, options.out)
    return 0 if all(cell.correct for cell in cells) else 1


if __name__ == "__main__":
    sys.exit(main())
