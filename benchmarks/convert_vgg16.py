"""Converting VGG-16 (553 MB) without verification, against reading and writing it with the onnx package.

    python -m benchmarks.convert_vgg16 --out benchmarks/results/convert_vgg16.json --date 2026-01-31

Each repetition is a fresh process, start of the interpreter and imports included; the two take turns, with
`onnx.load` and `onnx.save` a second time as the A/A pair. For each: wall time, and peak resident memory as the kernel
counts it for that child (mapped pages of the file included). The input is in the page cache, the output is new each
time, and what is still to be written to the disk is flushed between repetitions, outside the time. `convrewrite`
flushes its own output before it renames it, inside its time; `onnx.save` leaves that to the system.

A child counts the memory of the process that started it, up to its own start: so the model is built in a process
apart, and this one stays small. Needs `os.wait4`: Linux or macOS.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.common import CONVERT
from convrewrite.timing.statistics import Estimate, estimate, ratios, tells_apart

NAME = "convert_vgg16"
COPY = (
    sys.executable,
    "-c",
    "import sys, onnx; onnx.save(onnx.load(sys.argv[1]), sys.argv[2])",
    "{source}",
    "{target}",
)
BUILD = (
    sys.executable,
    "-c",
    "import sys, pathlib; from benchmarks import common; "
    "common.save_model('vgg16', pathlib.Path(sys.argv[1]), float(sys.argv[2]))",
)
LABELS = {"convert": "convrewrite fcn --no-verify", "copy": "onnx.load + onnx.save", "again": "the same again (A/A)"}
TIME_GOAL, MEMORY_GOAL = 1.5, 1.0
MIB = 2**20


def measure(command: Sequence[str], source: Path, target: Path) -> tuple[float, int]:
    """Wall seconds and peak resident bytes of one fresh process; its output is checked for size, then deleted."""
    target.unlink(missing_ok=True)
    os.sync()
    filled = [part.format(source=source, target=target) for part in command]
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        process = subprocess.Popen(
            filled, cwd=common.ROOT, env=common.environment(), stdout=subprocess.DEVNULL, stderr=errors
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            text = errors.read().decode(errors="replace").strip()
            raise SystemExit(f"{' '.join(filled)}\nfailed with exit code {process.returncode}:\n{text}")
    if target.stat().st_size < 0.99 * source.stat().st_size:
        raise SystemExit(f"{target.name} is smaller than the model that was converted")
    target.unlink()
    return seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def repeat(source: Path, target: Path, rounds: int) -> tuple[dict[str, list[float]], dict[str, list[int]]]:
    """Seconds and bytes per contestant and round, after one round that is not counted."""
    commands = {"copy": COPY, "convert": CONVERT, "again": COPY}
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    peaks: dict[str, list[int]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            elapsed, peak = measure(command, source, target)
            if number:
                seconds[name].append(elapsed)
                peaks[name].append(peak)
    return seconds, peaks


def report(
    seconds: Mapping[str, Sequence[float]],
    peaks: Mapping[str, Sequence[int]],
    model_bytes: int,
    *,
    rehearsal: bool = False,
    date: str = "",
) -> dict[str, Any]:
    """What `--out` writes."""
    time_ratio = estimate(ratios(seconds["convert"], seconds["copy"]))
    memory = {name: estimate(values) for name, values in peaks.items()}
    memory_ratio = memory["convert"].median / memory["copy"].median
    return {
        "benchmark": NAME,
        "date": date,
        "rehearsal": rehearsal,
        "machine": common.machine(),
        "versions": common.versions(),
        "model_bytes": model_bytes,
        "seconds": {name: asdict(estimate(values)) for name, values in seconds.items()},
        "peak_bytes": {name: asdict(value) for name, value in memory.items()},
        "again": asdict(estimate(ratios(seconds["again"], seconds["copy"]))),
        "time_ratio": asdict(time_ratio),
        "memory_ratio": memory_ratio,
        "time_goal_met": time_ratio.median <= TIME_GOAL,
        "memory_goal_met": memory_ratio <= MEMORY_GOAL,
    }


def goals(data: Mapping[str, Any]) -> list[str]:
    """The two ratios and the goals in words."""
    ratio, again = Estimate(**data["time_ratio"]), Estimate(**data["again"])
    unclear = "" if tells_apart(ratio.median, again) else ", inside the A/A spread: no difference"
    if data["rehearsal"]:
        return [
            f"A rehearsal: the goals are for the whole model. Time {ratio.text()}, memory {data['memory_ratio']:.2f}."
        ]
    return [
        f"Time: {ratio.text()} of onnx.load + onnx.save{unclear} "
        f"(goal {TIME_GOAL} at most: {common.verdict(data['time_goal_met'])}); A/A {again.text()}.",
        f"Peak memory: {data['memory_ratio']:.2f} of onnx.load + onnx.save "
        f"(goal {MEMORY_GOAL} at most: {common.verdict(data['memory_goal_met'])}).",
    ]


def markdown(data: Mapping[str, Any]) -> str:
    """The table and what belongs below it."""
    rows = []
    what = "VGG-16, an eighth of its channels" if data["rehearsal"] else "VGG-16"
    for name, label in LABELS.items():
        seconds, peak = Estimate(**data["seconds"][name]), Estimate(**data["peak_bytes"][name])
        rows.append([label, seconds.text(), f"{peak.median / MIB:.0f}"])
    header = [f"{what}, {data['model_bytes'] / 1e6:.0f} MB", "seconds", "peak memory, MiB"]
    count = data["seconds"]["convert"]["count"]
    below = f"Medians of {count} fresh processes each (with their interval), start of Python included."
    return "\n".join([common.table(header, rows), "", *goals(data), below, common.provenance(data)])


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(prog=f"python -m benchmarks.{NAME}", description=__doc__.partition("\n")[0])
    options.add_argument("--rounds", type=int, default=7, help="repetitions; default: 7")
    options.add_argument("--quick", action="store_true", help="a rehearsal: an eighth of the channels, 3 repetitions")
    common.add_options(options, table=True)
    options.add_argument("--folder", help="for 1.2 GB of models; default: the system's temporary folder")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    options = parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="convrewrite-bench-") as folder:
        source, target = Path(folder, "vgg16.onnx"), Path(folder, "result.onnx")
        common.run_quietly([*BUILD, str(source), "0.125" if options.quick else "1"])
        seconds, peaks = repeat(source, target, 3 if options.quick else max(3, options.rounds))
        data = report(seconds, peaks, source.stat().st_size, rehearsal=options.quick, date=options.date)
    print(markdown(data) if options.markdown else "\n".join(goals(data)))
    common.keep(data, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
