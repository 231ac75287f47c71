"""fcn on an NVIDIA GPU: verified on the CUDA provider, then timed against the original and against every window.

    python -m benchmarks.gpu                              one command; writes benchmarks/results/DEVICE.json
    python -m benchmarks.gpu --render benchmarks/results/DEVICE.json
    python -m benchmarks.gpu --provider cpu --quick       a rehearsal without a GPU; its file is no result

It needs `convrewrite[cuda]` and a checkout on PYTHONPATH, runs unattended within `--minutes`, and saves what it has
after every measurement; what does not fit into the time is left out, and said to be. Inputs and outputs stay on the
device while it times. TF32 is off unless `--tf32` says otherwise; verification never uses it. Exit code 1 where a model
fails its verification, 2 where the provider is not usable here, 130 after Ctrl-C; the file holds what was measured.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import common
from convrewrite import model_io, pipeline, runtime
from convrewrite.errors import CheckFailed, ConvrewriteError, Interrupted
from convrewrite.models import lenet5_path
from convrewrite.outcome import Options
from convrewrite.passes.fcn import Fcn
from convrewrite.timing import Cell, bench
from convrewrite.verification import Verification
from convrewrite.windows import Window

SCHEMA = "convrewrite.gpu/1"
RESULTS = Path(__file__).resolve().parent / "results"
MODELS = {"alexnet": "AlexNet", "resnet18": "ResNet-18", "mobilenet_v1": "MobileNetV1", "vgg16": "VGG-16"}
"""The slowest last: it gets the time that the others left."""
HEADER = ("model", "image", "what", "original, ms", "fcn, ms", "speedup", "limit by FLOPs", "A/A", "verdict")
WINDOW_BATCHES = (1, 8, 32, 64)
"""Batchings of the original over all windows; the fastest counts."""


@dataclass(frozen=True)
class Job:
    """One thing to time: at the native size with a batch (`positions` 0), or on an image of positions x positions."""

    positions: int = 0
    batch: int = 1

    @property
    def label(self) -> str:
        """In words."""
        windows = f"{self.positions}x{self.positions} windows"
        return windows if self.positions else f"native size, batch {self.batch}"


JOBS = (Job(batch=1), Job(positions=9), Job(positions=5), Job(batch=8), Job(positions=17))
"""The most telling first: where time is short, the last are left out."""
GRACE = 20.0
"""Seconds beyond the time after which even a measurement that hangs is cut off."""
QUICK_JOBS = (Job(batch=1), Job(positions=3))


@dataclass
class Budget:
    """Shares the time until `end` out: every model gets an equal part of what is left when its turn comes."""

    end: float
    clock: Callable[[], float] = time.monotonic
    _until: float = 0.0
    _longest: float = 0.0

    def begin(self, models_left: int) -> None:
        """A model's turn: it and `models_left` - 1 others share the rest."""
        now = self.clock()
        self._until = now + max(0.0, self.end - now) / models_left
        self._longest = 0.0

    @contextlib.contextmanager
    def job(self) -> Iterator[None]:
        """Remember how long a job takes."""
        start = self.clock()
        yield
        self._longest = max(self._longest, self.clock() - start)

    @property
    def allows(self) -> bool:
        """Whether one more job as long as the longest so far ends in time."""
        now = self.clock()
        return now < self._until and now + self._longest <= self._until


@dataclass
class Plan:
    """What is run: `width` is a factor on channels, `folder` is for models, `target` is the result file."""

    provider: str
    tf32: bool
    seconds: float
    sets: int
    width: float
    models: Sequence[str]
    jobs: Sequence[Job]
    folder: Path
    target: Path
    budget: Budget
    report: dict[str, Any] = field(default_factory=dict)

    def save(self) -> None:
        """Write what there is; a file is there whole or not at all."""
        part = self.target.with_suffix(".part")
        part.write_text(json.dumps(self.report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        part.replace(self.target)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    chosen = _parser().parse_args(arguments)
    if chosen.render is not None:
        print(markdown(json.loads(chosen.render.read_text(encoding="utf-8"))))
        return 0
    try:
        provider = runtime.open_session(lenet5_path(), chosen.provider).provider
    except ConvrewriteError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    device = describe(provider)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="convrewrite-gpu-"))
        results = chosen.out or (Path(tempfile.mkdtemp(prefix="convrewrite-rehearsal-")) if chosen.quick else RESULTS)
        results.mkdir(parents=True, exist_ok=True)
        plan = Plan(
            provider=provider,
            tf32=chosen.tf32,
            seconds=0.1 if chosen.quick else chosen.seconds,
            sets=2 if chosen.quick else 5,
            width=0.125 if chosen.quick else 1.0,
            models=chosen.models,
            jobs=QUICK_JOBS if chosen.quick else JOBS,
            folder=Path(folder),
            target=results / f"{slug(device['name'])}.json",
            budget=Budget(time.monotonic() + 60 * chosen.minutes),
        )
        plan.report = {
            "schema": SCHEMA,
            "rehearsal": chosen.quick,
            "date": chosen.date,
            "provider": provider,
            "tf32": chosen.tf32 and provider != "cpu",
            "device": device,
            "machine": common.machine(),
            "versions": {**common.versions(), **nvidia_packages()},
            "complete": False,
            "models": [],
        }
        with _at_most(60 * chosen.minutes + GRACE):
            code = run(plan)
    print(f"written to {plan.target}" + (" (a rehearsal, and no result)" if chosen.quick else ""), file=sys.stderr)
    print(markdown(plan.report))
    return code


def run(plan: Plan) -> int:
    """Verify and time every model; the exit code."""
    code = 0
    try:
        for number, name in enumerate(plan.models):
            plan.budget.begin(len(plan.models) - number)
            entry: dict[str, Any] = {"model": name, "verify": None, "cells": [], "missed": [], "error": ""}
            plan.report["models"].append(entry)
            try:
                _one_model(plan, name, entry)
            except ConvrewriteError as error:
                entry["error"] = str(error)
            failed = bool(entry["error"]) or not entry["verify"]["passed"]
            code = max(code, CheckFailed.exit_code if failed else 0)
            verdict = entry["error"] or entry["verify"]["verdict"]
            print(f"{name}: {verdict}, {len(entry['cells'])} measurements", file=sys.stderr, flush=True)
            plan.save()
        plan.report["complete"] = True
    except KeyboardInterrupt:
        code = Interrupted.exit_code
        print("interrupted, or out of time", file=sys.stderr, flush=True)
    plan.save()
    return code


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Cut off as Ctrl-C does; nothing where the system has no alarm."""
    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def _one_model(plan: Plan, name: str, entry: dict[str, Any]) -> None:
    """Convert, verify and time one model; `entry` holds what is known at any time."""
    original, converted = plan.folder / f"{name}.onnx", plan.folder / f"{name}_fcn.onnx"
    try:
        common.save_model(name, original, plan.width)
        pipeline.fcn(str(original), str(converted), Fcn(), Options(plan.provider, verify=False)).check()
        compared = pipeline.compare(str(original), str(converted), None, Options(plan.provider))
        if compared.verification is None:
            compared.check()
        else:
            entry["verify"] = summary(compared.verification)
        plan.save()
        for job in plan.jobs:
            if not plan.budget.allows:
                entry["missed"].append({"job": job.label, "reason": "no time left"})
                continue
            with plan.budget.job():
                _measure(plan, original, converted, job, entry)
            plan.save()
    finally:
        original.unlink(missing_ok=True)
        converted.unlink(missing_ok=True)


def _measure(plan: Plan, original: Path, converted: Path, job: Job, entry: dict[str, Any]) -> None:
    """Time one job; what fails is recorded as missed, and the others go on."""
    size = [_image_size(converted, job.positions)] if job.positions else []
    found = bench(
        original,
        converted,
        sizes=size,
        batches=WINDOW_BATCHES if job.positions else (job.batch,),
        windows=bool(job.positions),
        provider=plan.provider,
        tf32=plan.tf32,
        seconds=plan.seconds,
        sets=plan.sets,
        memory=False,
    )
    entry["missed"] += [{"job": job.label, "reason": missed.reason} for missed in found.missed]
    entry["warnings"] = list(dict.fromkeys([*entry.get("warnings", []), *found.warnings]))
    if found.provider not in ("", plan.provider):
        entry["error"] = f"it was timed on {found.provider}, not on {plan.provider}"
    entry["cells"] += [{"job": job.label, "tf32": found.tf32, **timed(cell)} for cell in found.cells]
    if isinstance(found.error, Interrupted):
        raise KeyboardInterrupt


def _image_size(converted: Path, positions: int) -> tuple[int, ...]:
    """The smallest image with so many windows per axis."""
    window = Window.from_metadata(model_io.load(converted).metadata)
    assert window is not None
    return window.image_size((positions,) * len(window.size))


def timed(cell: Cell) -> dict[str, Any]:
    """One measurement in the result file."""
    return {
        "size": list(cell.size),
        "batch": cell.batch,
        "windows": cell.windows,
        "original_seconds": cell.a.seconds,
        "fcn_seconds": cell.b.seconds,
        "speedup": cell.comparison.speedup.to_dict(),
        "control": cell.comparison.control.to_dict(),
        "verdict": cell.comparison.verdict,
        "limit": cell.limit,
        "sets": cell.comparison.sets,
        "complete": cell.complete,
    }


def summary(found: Verification) -> dict[str, Any]:
    """The verification in the result file: the verdict, its worst case, where the nodes ran."""
    return {
        "verdict": found.verdict,
        "passed": found.passed,
        "message": found.message(),
        "worst": None if found.worst is None else found.worst.to_dict(),
        "nodes": {model: dict(counts) for model, counts in found.nodes.items()},
        "warnings": list(found.warnings),
    }


def describe(provider: str, query: Callable[[], str] | None = None) -> dict[str, str]:
    """Name, driver and memory of the device, the first of several."""
    if provider == "cpu":
        return {"name": common.cpu_name()}
    try:
        first = (query or _nvidia_smi)().strip().splitlines()[0]
        name, driver, memory = (part.strip() for part in first.split(","))
    except (OSError, IndexError, ValueError, subprocess.SubprocessError):
        return {"name": "NVIDIA GPU"}
    return {"name": name, "driver": driver, "memory": memory}


def _nvidia_smi() -> str:
    command = "nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader".split()
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout


def nvidia_packages() -> dict[str, str]:
    """Versions of the CUDA libraries that came as Python packages."""
    found = {str(d.metadata["Name"]).lower(): d.version for d in importlib.metadata.distributions()}
    return {name: version for name, version in sorted(found.items()) if name.startswith("nvidia-")}


def slug(name: str) -> str:
    """A file name: `NVIDIA H200 NVL` is nvidia_h200_nvl."""
    return re.sub(r"\W+", "_", name.lower()).strip("_") or "device"


def markdown(report: Mapping[str, Any]) -> str:
    """The table of a result for `benchmarks/README.md`, its verifications, and where it was measured."""
    rows = [_row(entry, cell) for entry in report["models"] for cell in entry["cells"]]
    parts = [common.table(HEADER, rows)] if rows else ["Nothing was measured."]
    parts += [_verified(entry) for entry in report["models"]]
    parts += [
        f"{_title(entry)}, {missed['job']}: not measured, {missed['reason']}."
        for entry in report["models"]
        for missed in entry["missed"]
    ]
    return "\n\n".join([*parts, _provenance(report)])


def _row(entry: Mapping[str, Any], cell: Mapping[str, Any]) -> tuple[str, ...]:
    speedup, control = cell["speedup"], cell["control"]
    what = f"{cell['windows']} windows in batches of {cell['batch']}" if cell["windows"] else f"batch {cell['batch']}"
    return (
        _title(entry),
        "x".join(map(str, cell["size"])),
        what,
        f"{cell['original_seconds'] * 1e3:.3g}",
        f"{cell['fcn_seconds'] * 1e3:.3g}",
        f"{speedup['median']:.2f} ({speedup['low']:.2f} to {speedup['high']:.2f})",
        "-" if cell["limit"] is None else f"{cell['limit']:.1f}",
        f"{control['low']:.2f} to {control['high']:.2f}",
        cell["verdict"] + ("" if cell["complete"] else ", incomplete"),
    )


def _verified(entry: Mapping[str, Any]) -> str:
    if entry["error"]:
        return f"{_title(entry)}: {entry['error']}."
    found = entry["verify"]
    if found is None:
        return f"{_title(entry)}: not verified."
    worst = found["worst"] or {"error": None}
    known = worst["error"] is not None and worst["tolerance"] is not None
    figures = f" (largest error {worst['error']:.1e}, tolerance {worst['tolerance']:.1e})" if known else ""
    fallen = "".join(f" {line}." for line in found["warnings"])
    return f"{_title(entry)}: {found['verdict']}{figures}.{fallen}"


def _title(entry: Mapping[str, Any]) -> str:
    return MODELS[entry["model"]]


def _provenance(report: Mapping[str, Any]) -> str:
    used, device = report["versions"], report["device"]
    parts = [
        device["name"] + (f" (driver {device['driver']})" if "driver" in device else ""),
        f"provider {report['provider']}, TF32 {'on' if report['tf32'] else 'off'}",
        f"convrewrite {used['convrewrite']}",
        f"ONNX Runtime {used.get('onnxruntime-gpu') or used.get('onnxruntime', '?')}",
        *(f"{name} {used[name]}" for name in used if re.match(r"nvidia-cud(nn|a-runtime)", name)),
        f"Python {used['python']}",
        *([report["date"]] if report["date"] else []),
    ]
    head = "Rehearsed, which is no result, on " if report["rehearsal"] else "Measured on "
    rest = "" if report["complete"] else " The run was not finished."
    return f"{head}{'; '.join(parts)}.{rest}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--provider", choices=("cuda", "tensorrt", "cpu"), default="cuda")
    parser.add_argument("--tf32", action="store_true", help="let CUDA round float32 factors while timing")
    parser.add_argument("--quick", action="store_true", help="a rehearsal: narrow models, few measurements")
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=tuple(MODELS), metavar="NAME")
    parser.add_argument("--minutes", type=float, default=7.5, help="for everything (default: 7.5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of rounds per measurement (default: 2)")
    parser.add_argument("--date", default="", help="the date to state")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for the result (default: benchmarks/results)")
    parser.add_argument("--render", type=Path, metavar="FILE", help="print the table of a result; measure nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
