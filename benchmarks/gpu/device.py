"""What it was measured on: the device's name, its driver and memory, and the CUDA libraries."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
from collections.abc import Callable

from benchmarks import common


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
