"""Commands that are broken at a chosen point: a script replaces the check of `fcn`, with the output half written."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

HANGS = 600
"""Seconds after which a process hangs, however busy the machine may be."""

DRIVER = """
import ctypes, os, signal, sys, time
from convrewrite import verification
from convrewrite.cli import app as cli
def broken(*args, **kwargs):
    print(os.getpid(), file=sys.stderr, flush=True)
    {action}
real = verification.verify_fcn
verification.verify_fcn = broken
{before}
cli.main()
"""


def start(
    folder: Path, action: str, *words: str | Path, before: str = "", environment: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """The command, in which `action` happens in place of the check; its temporary files lie in `folder`/tmp."""
    (folder / "tmp").mkdir(exist_ok=True)
    script = DRIVER.format(action=action, before=before)
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, words)],
        env={**os.environ, "TMPDIR": str(folder / "tmp"), "COLUMNS": "80", **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def leftovers(folder: Path) -> list[str]:
    """What temporary files and folders there are below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "convrewrite-" in path.name)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_dead(pid: int, seconds: float = HANGS) -> bool:
    """Whether a process ends within that time."""
    end = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not is_alive(pid)
