"""How often `bench A A` calls a model faster or slower than itself, while another process keeps one core busy.

    python -m benchmarks.aa_false_alarms

prints one line per run and the count. The goal is at most 1 of 20: the design allows 1 in 100. Exit code 1 where more
were seen.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx

from convrewrite.models import build
from convrewrite.options import BenchOptions
from convrewrite.timing import NO_DIFFERENCE, Bench, bench

BUSY = Path(__file__).with_name("busy.py")
MODEL, OPTIONS = "resnet18", {"width": 0.25, "size": 64}
"""A small net: the shorter a run, the more a burst of other work weighs."""
ALLOWED = 0.05


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes that keep a core busy each."""
    running = [subprocess.Popen([sys.executable, str(BUSY)]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def line(number: int, result: Bench) -> str:
    """One run in words."""
    cell = result.cells[0]
    found = cell.comparison
    spread = f"A/A {found.control.low:.3f} to {found.control.high:.3f}"
    speedup = found.speedup.text(digits=3)
    return f"{number:3}  {cell.a.seconds * 1e3:.3f} ms  {speedup}  {spread}  p {found.p:.3f}  {found.verdict}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, count."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.aa_false_alarms", description=(__doc__ or "").partition("\n")[0]
    )
    options.add_argument("--runs", type=int, default=20)
    options.add_argument("--seconds", type=float, default=5.0, help="of rounds per run; default: 5")
    options.add_argument("--busy", type=int, default=1, help="processes that keep a core busy; default: 1")
    chosen = options.parse_args(arguments)
    alarms = 0
    with tempfile.TemporaryDirectory(prefix="convrewrite-aa-") as folder, busy(chosen.busy):
        path = Path(folder) / "model.onnx"
        onnx.save(build(MODEL, **OPTIONS), path)
        for number in range(1, chosen.runs + 1):
            how = BenchOptions(seconds=chosen.seconds, provider="cpu", memory=False, seed=number)
            result = bench(path, path, how).check()
            alarms += result.verdict != NO_DIFFERENCE
            print(line(number, result), flush=True)
    met = alarms <= ALLOWED * chosen.runs
    print(f"{alarms} of {chosen.runs} runs called a model faster or slower than itself: {'met' if met else 'missed'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
