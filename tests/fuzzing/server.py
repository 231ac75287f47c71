"""A process that forks workers with limits: what kills or stops a worker is one case's fault, and it has a number.

python -m fuzzing.server MODELS FIRST STOP STEP [slow]      one line of JSON per case on standard output
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

MEMORY = 2 << 30
"""Bytes that a worker may take beyond those that it has when it starts: mappings count, so nothing hides."""

SHARE = 150
"""Cases of one worker: what the libraries keep of each must not add up to the limit."""

CPU_SECONDS = 60
WALL_SECONDS = 300
"""Of one case. The machine may be busy with other things: it is the time of the processor that tells a hang."""


def main() -> None:
    """Serve the cases of a range."""
    for module in ("fuzzing.checks", "convrewrite.pipeline", "convrewrite.inspection", "convrewrite.passes"):
        importlib.import_module(module)  # once, ahead of the forks; none starts a thread
    models, numbers = Path(sys.argv[1]), range(*map(int, sys.argv[2:5]))
    slow = "slow" in sys.argv[5:]
    place = 0
    while place < len(numbers):
        place += _worker(models, numbers[place : place + SHARE], slow)


def _worker(models: Path, numbers: range, slow: bool) -> int:
    """Fork one, and pass on what it says; how many cases are done with when it has ended."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        _serve(models, numbers, slow, folder, write)
    os.close(write)
    done = 0
    try:
        with os.fdopen(read, "rb") as said:
            os.set_blocking(said.fileno(), False)
            done = _watched(child, said, numbers)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return done


def _watched(child: int, said: IO[bytes], numbers: range) -> int:
    """Pass on lines until the worker ends; end it where one case takes too long."""
    done, buffer, stopped = 0, b"", ""
    began, used = time.monotonic(), _cpu(child)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        *lines, buffer = (buffer + (said.read() or b"")).split(b"\n")
        for line in lines:
            print(line.decode(), flush=True)
        done += len(lines)
        if ended:
            break
        if lines:
            began, used = time.monotonic(), _cpu(child)
        spent, waited = _cpu(child) - used, time.monotonic() - began
        if not stopped and (spent > CPU_SECONDS or waited > WALL_SECONDS):
            stopped = f"hang: {spent:.0f} s of the processor, {waited:.0f} s in all"
            os.kill(child, signal.SIGKILL)
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what it has started
    if done < len(numbers):
        fault = stopped or f"died: status {status}, signal {status & 127}"
        print(json.dumps({"case": numbers[done], "fault": fault}), flush=True)
        done += 1
    return done


def _cpu(process: int) -> float:
    """Seconds of the processor that a process has used; 0 where the system does not say."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _serve(models: Path, numbers: range, slow: bool, folder: Path, write: int) -> None:
    """The worker: case after case."""
    from fuzzing.cases import case
    from fuzzing.checks import faults

    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.setsid()
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    for number in numbers:
        place = folder / str(number)
        place.mkdir()
        began = time.process_time()
        try:
            fault = faults(case(number, models, slow=slow), place)
        except BaseException as error:  # of the command, past its own last resort, or of the fuzzer
            fault = f"escaped: {type(error).__name__}: {str(error)[:200]}"
        shutil.rmtree(place, ignore_errors=True)
        answer = {"case": number, "fault": fault, "seconds": round(time.process_time() - began, 2)}
        os.write(write, json.dumps(answer).encode() + b"\n")
    os._exit(0)


if __name__ == "__main__":
    main()
