"""What was found faster on which device, kept in a file, so that a second run on it decides the same without timing.

    {"schema": "convrewrite.timings/1", "devices": {"cpu: AMD EPYC, 2 threads, onnxruntime 1.31.1": {"<key>": {...}}}}

A key names operators, attributes and shapes of both contestants; weights and names do not count.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any

from convrewrite.errors import UsageError
from convrewrite.running import runtime
from convrewrite.system import stored_json
from convrewrite.system.atomic import discard, publish, refuse_target, temporary_beside, write_durably, write_errors
from convrewrite.text import parameter
from convrewrite.timing import Bench

SCHEMA = "convrewrite.timings/1"

ANY = "any"
"""In the place of a device: what was decided elsewhere holds here, where no time was taken here."""


@dataclass(frozen=True)
class Decision:
    """The decision on one pair: `timing`'s verdict, the speedup with its interval, milliseconds before and after."""

    verdict: str
    speedup: float
    low: float
    high: float
    before_ms: float
    after_ms: float

    @classmethod
    def read(cls, entry: Any) -> Decision:
        """What JSON has of one. Raises ValueError where it is anything else."""
        try:
            made = cls(**entry)
        except TypeError:
            raise ValueError("a timing is not as it was written") from None
        verdict, *numbers = astuple(made)
        plain = all(isinstance(n, int | float) and not isinstance(n, bool) and abs(n) < 1e300 for n in numbers)
        if not isinstance(verdict, str) or not plain:
            raise ValueError("a timing is not as it was written")
        return made

    @classmethod
    def of(cls, found: Bench) -> Decision:
        """The decision that the measurements of one size lead to."""
        cell = found.cells[0]
        speedup = cell.comparison.speedup
        return cls(
            cell.comparison.verdict,
            round(speedup.median, 4),
            round(speedup.low, 4),
            high=round(speedup.high, 4),
            before_ms=round(cell.a.seconds * 1e3, 5),
            after_ms=round(cell.b.seconds * 1e3, 5),
        )

    def __str__(self) -> str:
        interval = f"{self.speedup:.2f}x ({self.low:.2f} to {self.high:.2f})"
        return f"{interval}, {self.before_ms:.3g} ms to {self.after_ms:.3g} ms"


@dataclass
class Decisions:
    """Timings by device and key; `path` is where they are kept, if anywhere.

    Attributes:
        made: how many were added since they were read.
    """

    path: Path | None = None
    made: int = 0
    _by_device: dict[str, dict[str, Decision]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path | None) -> Decisions:
        """Read a file of timings; one that is not there yet is empty. Raises UsageError for anything else."""
        if path is None:
            return cls()
        path = refuse_target(Path(path))
        if not path.exists():
            return cls(path)
        try:
            data = stored_json.read(path)
            if data["schema"] != SCHEMA:
                raise ValueError(f"its schema is {data['schema']!r}")
            devices = {
                str(name): {str(key): Decision.read(entry) for key, entry in entries.items()}
                for name, entries in data["devices"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = getattr(error, "strerror", None) or "it is no file of timings"
            raise UsageError(
                f"cannot read {path}: {reason}", remedy=f"give {parameter('timings')} another path"
            ) from None
        return cls(path, 0, devices)

    def get(self, device: str, key: str) -> Decision | None:
        """The timing on record for this device, or for any device where this one has none."""
        known = self._by_device.get(device, {}).get(key)
        return self._by_device.get(ANY, {}).get(key) if known is None else known

    def put(self, device: str, key: str, decision: Decision) -> None:
        """Put one timing on record."""
        self._by_device.setdefault(device, {})[key] = decision
        self.made += 1

    def save(self) -> None:
        """Write the file, whole or not at all, where there is one and something is new."""
        if self.path is None or not self.made:
            return
        devices: dict[str, Any] = {
            name: {key: asdict(entry) for key, entry in sorted(entries.items())}
            for name, entries in sorted(self._by_device.items())
        }
        text = json.dumps({"schema": SCHEMA, "devices": devices}, indent=2) + "\n"
        temporary = temporary_beside(self.path, ".json")
        try:
            with write_errors(self.path):
                write_durably(temporary, [text.encode()])
                publish(temporary, self.path)
        finally:
            discard(temporary)


def device(provider: str, threads: int) -> str:
    """What timings depend on, in words: provider, processor, threads, ONNX Runtime."""
    version = f"onnxruntime {runtime.library().__version__}"
    if provider != "cpu":
        return f"{provider}: {_gpu()}, {version}"
    return f"cpu: {_processor()}, {threads} threads, {version}"


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _gpu() -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "GPU"
    command = [tool, "--query-gpu=name", "--format=csv,noheader"]
    try:
        names = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return "GPU"
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    place = int(first) if first.isdecimal() else 0
    return names[min(place, len(names) - 1)].strip() if names else "GPU"
