"""What a pass of another package leaves running, a process or a thread, holds no command up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from cli_models import COMMAND
from plugin_packages import APPLY, CONFIG, broken, call
from processes import HANGS, wait_until_dead

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a pass forks")

LONG = 3600
"""Seconds that are longer than any test waits."""

SLEEPS = f"open('left', 'w').write(str(os.getpid())); time.sleep({LONG})"

LEFT = {
    "a process": f'(os.fork() == 0) and exec("{SLEEPS}")',
    "a session": f'(os.fork() == 0) and exec("os.setsid(); {SLEEPS}")',
    "a thread": f"__import__('threading').Thread(target=lambda: time.sleep({LONG})).start()",
    "multiprocessing": (
        f"__import__('multiprocessing').get_context('fork').Process(target=time.sleep, args=({LONG},)).start()"
    ),
}

RUN = (
    f"timeout = {HANGS}\n"
    + CONFIG.replace("BY", "1e-7").replace('pass = "fcn"\n[[steps]]\n', "")
    + '[reports]\njson = "r.json"\n'
)


def row(folder: Path) -> dict[str, object]:
    (found,) = json.loads((folder / "r.json").read_text())["models"]
    return dict(found)


@pytest.mark.parametrize("line", LEFT.values(), ids=LEFT)
def test_a_command_ends_after_its_work(folder: Path, line: str) -> None:
    broken(folder, line, APPLY)
    began = time.monotonic()
    done = call(folder, "transform", "scale", "m.onnx", "o.onnx")
    assert time.monotonic() - began < LONG / 3
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\nwrote ") == 1
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    if (folder / "left").exists():
        assert wait_until_dead(int((folder / "left").read_text()))


@pytest.mark.parametrize("line", LEFT.values(), ids=LEFT)
def test_a_model_of_a_run_is_done_where_its_process_has_answered(folder: Path, line: str) -> None:
    broken(folder, line, APPLY)
    (folder / "convrewrite.toml").write_text(RUN)
    began = time.monotonic()
    done = call(folder, "run")
    assert time.monotonic() - began < LONG / 3
    assert done.returncode == 0, done.stderr
    assert row(folder)["status"] == "rewritten"
    assert (folder / "out" / "m.onnx").exists()
    assert "Traceback" not in done.stderr
    if (folder / "left").exists():
        assert wait_until_dead(int((folder / "left").read_text()))


def test_a_fork_that_comes_back_does_not_do_the_work_again(folder: Path) -> None:
    """The process that the pass was given hangs; the one that it made would go on, and write the model."""
    broken(folder, f"os.fork() and time.sleep({LONG})", APPLY)
    for seconds in (15, 120):  # a busy machine has not begun after 15
        (folder / "convrewrite.toml").write_text(RUN.replace(str(HANGS), str(seconds)))
        done = call(folder, "run")
        assert done.returncode == 2, done.stderr
        if "while" in str(row(folder)["message"]):
            break
    assert f"timed out after {seconds} s while it was in the apply" in str(row(folder)["message"])
    assert list((folder / "out").iterdir()) == []
    for line in ("os.fork()", "os.fork() or (lambda: 1 / 0)()", "os.fork() or sys.exit(0)"):
        broken(folder, line, APPLY)
        done = call(folder, "transform", "scale", "m.onnx", "o.onnx")
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("\nwrote ") == 1
        assert "failed in the" not in done.stderr


def test_a_row_that_is_no_success_has_no_output(folder: Path) -> None:
    """A thread ends the process at the very moment when the output would be there, and the answer is not yet."""
    ends = "__import__('convrewrite.batch.worker').batch.worker.json.dump = lambda *a, **k: os._exit(0)"
    broken(folder, ends, APPLY)
    (folder / "convrewrite.toml").write_text(RUN)
    done = call(folder, "run")
    assert done.returncode == 70, done.stderr
    assert row(folder)["status"] == "error"
    assert list((folder / "out").iterdir()) == []


def test_a_signal_after_the_work_prints_nothing(folder: Path) -> None:
    broken(folder, LEFT["a thread"], APPLY)
    words = [*COMMAND, "transform", "scale", "m.onnx", "o.onnx"]
    environment = {**os.environ, "PYTHONPATH": str(folder / "site")}
    with subprocess.Popen(words, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith("wrote"):
                process.send_signal(signal.SIGTERM)
        assert process.wait(HANGS) in (0, 128 + signal.SIGTERM)
    assert not any("Traceback" in line or "ignored" in line for line in lines), lines
