"""What the benchmarks share: interleaved timing, models, the machine's description, tables.

How to time two models is a lesson of its own. Two sessions with private thread pools disturb each other, so all share
one pool; contestants take turns, so that a slow minute hits each of them; and the same thing is timed against itself
beside them (A/A), because a difference inside that spread is no difference.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from convrewrite import __version__
from convrewrite.models import build
from convrewrite.pipeline.report import versions as installed

ROOT = Path(__file__).resolve().parent.parent

CONVERT = (sys.executable, "-m", "convrewrite", "fcn", "{source}", "{target}", "--no-verify")
"""The public way to convert a model; verification is switched off because it is not what is timed."""

PACKAGES = ("convrewrite", "numpy", "onnx", "onnx-graphsurgeon", "onnxruntime-gpu", "onnxruntime")


def verdict(met: bool) -> str:
    """The word for a goal."""
    return "met" if met else "missed"


# Timing

Clock = Callable[[], float]
Measure = Callable[[], float]
"""Runs something and returns the seconds it took (for one unit of work)."""

PRIME_BELOW = 0.05
"""A call shorter than this many seconds is run once untimed before a measurement."""


def interleave(
    contestants: Mapping[str, Measure], seconds: float, at_least: int, clock: Clock = time.perf_counter
) -> dict[str, list[float]]:
    """Measure A B C A B C ... until `seconds` have passed, `at_least` rounds in any case; a round is never cut."""
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    start, rounds = clock(), 0
    while rounds < at_least or clock() - start < seconds:
        for name, measure in contestants.items():
            samples[name].append(measure())
        rounds += 1
    return samples


def repeated(
    call: Callable[[], object], at_least: float, prime_below: float = PRIME_BELOW, clock: Clock = time.perf_counter
) -> Measure:
    """Measure a call by repeating it for `at_least` seconds: the seconds per call.

    A call that takes less than `prime_below` seconds is run once untimed before each measurement, because the caches
    are full of what the other contestant left there; on a longer one that makes no difference.
    """
    estimates: list[float] = []

    def measure() -> float:
        if not estimates or estimates[-1] < prime_below:
            call()
        calls, start = 0, clock()
        while True:
            call()
            calls += 1
            elapsed = clock() - start
            if elapsed >= at_least:
                break
        estimates.append(elapsed / calls)
        return estimates[-1]

    return measure


# Models


def save_model(name: str, path: Path, width: float = 1.0) -> None:
    """Build an architecture of convrewrite.models, let it take any number of images, write it."""
    onnx.save(any_batch(build(name, width=width)), path)


def any_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, which then takes any number of images; it is changed in place."""
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del model.graph.value_info[:]
    return model


def convert(source: Path, target: Path) -> None:
    """Convert a model through the command line."""
    run_quietly([part.format(source=source, target=target) for part in CONVERT])


def run_quietly(command: Sequence[str]) -> None:
    """Run a command from the repository root; its output is shown only where it fails."""
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nfailed with exit code {done.returncode}:\n{done.stderr.strip()}")


def environment() -> dict[str, str]:
    """The environment for child processes: the checkout first, so that they run this convrewrite."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


# Where it was measured


def machine() -> dict[str, Any]:
    """Processor, number of its cores that this process may use, and system."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": cpu_name(), "cores": cores, "system": platform.system(), "architecture": platform.machine()}


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's own name where the system tells it, else its architecture."""
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip().lower() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter; those that are not installed are left out."""
    found = installed(PACKAGES)
    found.setdefault("convrewrite", __version__)  # a checkout on PYTHONPATH
    return found


def provenance(report: Mapping[str, Any]) -> str:
    """One line for below a table: where, with what and when it was measured."""
    where, used = report["machine"], report["versions"]
    runtime = used.get("onnxruntime-gpu") or used.get("onnxruntime", "")
    parts = [
        f"{where['cpu']}, {report.get('threads', where['cores'])} threads",
        f"convrewrite {used['convrewrite']}",
        f"ONNX Runtime {runtime} (CPU)",
        f"onnx {used['onnx']}",
        f"Python {used['python']}",
    ]
    if report.get("date"):
        parts.append(report["date"])
    return "Measured on " + "; ".join(parts) + "."


# What a benchmark writes


def add_options(parser: argparse.ArgumentParser, *, table: bool = False) -> None:
    """The options of every benchmark: when it was measured and where the result goes; with `table`, how it is shown."""
    parser.add_argument("--date", default="", help="to record with the results")
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    if table:
        parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")


def head(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """What every result begins with."""
    return {
        "benchmark": name,
        "date": options.date,
        "rehearsal": options.quick,
        "machine": machine(),
        "versions": versions(),
    }


def keep(data: Mapping[str, Any], target: Path | None) -> None:
    """Write a result as JSON, if it is to go anywhere."""
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


# Tables


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table with aligned columns: the first to the left, the others to the right."""
    body = [list(row) for row in rows]
    if any(len(row) != len(header) for row in body):
        raise ValueError(f"a row does not have the {len(header)} cells of the header")
    widths = [max(3, *(len(row[i]) for row in [list(header), *body])) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "| " + " | ".join(padded) + " |"

    rule = [("-" * w) if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(header), line(rule), *map(line, body)])
