"""What the benchmarks share: statistics, interleaved timing, models, the machine's description, tables.

How to time two models is a lesson of its own. Two sessions with private thread pools disturb each other, so all share
one pool; contestants take turns, so that a slow minute hits each of them; and the same thing is timed against itself
beside them (A/A), because a difference inside that spread is no difference.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from convrewrite.models import build

ROOT = Path(__file__).resolve().parent.parent

CONVERT = (sys.executable, "-m", "convrewrite", "fcn", "{source}", "{target}", "--no-verify")
"""The public way to convert a model; verification is switched off because it is not what is timed."""

PACKAGES = ("convrewrite", "numpy", "onnx", "onnx-graphsurgeon", "onnxruntime-gpu", "onnxruntime")


# Statistics


@dataclass(frozen=True)
class Estimate:
    """The median of some samples, and an interval that holds the true median 95 times in 100."""

    median: float
    low: float
    high: float
    count: int

    def text(self, unit: float = 1.0, digits: int = 2) -> str:
        """`12.3 (12.1 to 12.6)`, in the given unit."""
        median, low, high = (f"{value / unit:.{digits}f}" for value in (self.median, self.low, self.high))
        return f"{median} ({low} to {high})"


def estimate(samples: Sequence[float]) -> Estimate:
    """Median with its order-statistics interval, which assumes nothing about the distribution.

    The number of samples below the true median is binomial(n, 1/2), so the k-th smallest and the k-th largest sample
    enclose it with probability 1 - 2 P(X < k). Below six samples not even the extremes reach 95 %: they are given.
    """
    if not samples:
        raise ValueError("no samples")
    ordered = sorted(samples)
    count, k, tail = len(ordered), 0, 0.0
    while k < count // 2:
        tail += math.comb(count, k) / 2**count
        if tail > 0.025:
            break
        k += 1
    first = max(k - 1, 0)
    return Estimate(statistics.median(ordered), ordered[first], ordered[count - 1 - first], count)


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Ratio per round: what slows a whole round down cancels."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def geometric_mean(values: Iterable[float]) -> float:
    """The mean for ratios: twice as fast and half as fast cancel."""
    return statistics.geometric_mean(values)


def tells_apart(ratio: float, spread: Estimate) -> bool:
    """Whether a ratio lies outside what the same thing against itself shows (A/A, in either direction)."""
    low, high = min(spread.low, 1 / spread.high), max(spread.high, 1 / spread.low)
    return not low <= ratio <= high


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
    model = build(name, width=width)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del model.graph.value_info[:]
    onnx.save(model, path)


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
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if "convrewrite" not in found:
        from convrewrite import __version__

        found["convrewrite"] = __version__
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
