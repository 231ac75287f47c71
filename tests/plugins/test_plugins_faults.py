"""Passes of other packages that do not behave: each is named, and brings no command down with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_models import COMMAND
from plugin_packages import APPLY, CONFIG, ENDS, TOY, broken, call
from processes import HANGS, is_alive, leftovers, wait_until_dead

CANDIDATES = "        yield from [node"


@pytest.mark.parametrize("at", [ENDS, APPLY, CANDIDATES], ids=["plan", "apply", "candidates"])
@pytest.mark.parametrize("line", ["sys.exit(0)", "sys.exit('bye')", "1 / 0"])
def test_what_a_pass_raises_is_its_own_fault(folder: Path, line: str, at: str) -> None:
    broken(folder, line, at)
    done = call(folder, "transform", "scale", "m.onnx", "o.onnx", "--report", "r.json")
    assert done.returncode == 70, done.stderr
    said = done.stderr.strip().splitlines()
    assert len(said) == 1
    assert said[0].startswith("internal error: pass 'scale' of toy failed in the ")
    assert ("SystemExit" if "exit" in line else "ZeroDivisionError") in said[0]
    assert "tell its authors" in said[0]
    assert json.loads((folder / "r.json").read_text())["exit_code"] == 70
    assert not (folder / "o.onnx").exists()


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        ("os._exit(0)", 70, "ended with 0"),
        ("os._exit(3)", 70, "ended with 3"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 2, "SIGKILL"),
        ("os.abort()", 2, "SIGABRT"),
    ],
)
def test_a_pass_that_ends_the_process_is_named(folder: Path, line: str, code: int, says: str) -> None:
    broken(folder, line)
    before = sorted(os.listdir(folder))
    done = call(folder, "transform", "scale", "m.onnx", "o.onnx")
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "by pass 'scale' of toy" in done.stderr
    assert sorted(os.listdir(folder)) == before


def test_a_pass_that_ends_the_process_as_it_is_imported(folder: Path) -> None:
    for line, code, says in (
        ("import sys; sys.exit(0)", 2, "does not load: SystemExit"),
        ("import os; os._exit(0)", 70, "while it was importing pass 'scale' of package toy"),
    ):
        (folder / "site" / "toy.py").write_text(f"{line}\n{TOY}")
        done = call(folder, "transform", "scale", "m.onnx", "o.onnx")
        assert done.returncode == code, done.stderr
        assert says in done.stderr


RENAMES = "graph.outputs[0].name = 'other'"


LOOPS = "plan.payload.inputs[0] = plan.payload.outputs[0]"


BREAKS = "plan.payload.op = 'NoSuchOperator'"


UNTIED = "plan.payload.outputs.clear()"


NONSENSE = "plan.payload.attrs['pads'] = object()"


@pytest.mark.parametrize("line", [RENAMES, LOOPS, BREAKS, UNTIED, NONSENSE])
def test_whatever_comes_of_a_pass_is_reported_to_its_authors(folder: Path, line: str) -> None:
    broken(folder, line, APPLY)
    (folder / "convrewrite.toml").write_text(
        CONFIG.replace("BY", "1e-7").replace('pass = "fcn"\n[[steps]]\n', "") + '[reports]\njson = "run.json"\n'
    )
    for words, report in (
        (["transform", "scale", "m.onnx", "o.onnx", "--report", "r.json"], "r.json"),
        (["run"], "run.json"),
    ):
        done = call(folder, *words)
        assert done.returncode == 70, done.stderr
        assert "please report" not in done.stderr
        assert "Traceback" not in done.stderr
        found = json.loads((folder / report).read_text())
        message = found.get("message") or found["models"][0]["message"]
        assert message in " ".join(done.stderr.split()) or words == ["run"]
        assert "pass 'scale' of " in message
        assert "authors" in message
        assert not (folder / "o.onnx").exists()


def test_no_pass_of_another_package_is_blamed_for_what_the_project_does(folder: Path) -> None:
    """The passes of others are installed, but not asked for."""
    script = "from convrewrite.cli import app as cli; from convrewrite import pipeline; pipeline.fcn = None; cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "fcn", "m.onnx", "o.onnx"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder / "site")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 70
    assert "please report it with what this prints: convrewrite fcn m.onnx o.onnx --debug" in done.stderr
    assert "scale" not in done.stderr


def test_a_pass_that_hangs_leaves_or_dies_is_a_row_of_its_model_in_a_run(folder: Path) -> None:
    config = CONFIG.replace("BY", "1e-7").replace('pass = "fcn"\n[[steps]]\n', "")
    for line, code, says in (
        ("time.sleep(3600)", 2, "s while it was in the plan of"),
        ("os._exit(0)", 70, "by pass 'scale' of toy"),
        ("sys.exit(0)", 70, "pass 'scale' of toy failed in the plan"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 2, "SIGKILL, perhaps for want of memory, while it was in the plan of"),
    ):
        broken(folder, line)
        reports = '[reports]\njson = "r.json"\n'
        for seconds in (8, 120) if "sleep" in line else (3600,):  # a busy machine has not begun after 8
            (folder / "convrewrite.toml").write_text(f"timeout = {seconds}\n" + config + reports)
            done = call(folder, "run")
            assert done.returncode == code, done.stderr
            (row,) = json.loads((folder / "r.json").read_text())["models"]
            if "while" in row["message"]:
                break
        assert "sleep" not in line or f"timed out after {seconds} s" in row["message"]
        assert (row["status"], row["exit_code"]) == ("error", code)
        assert says in row["message"]
        assert list((folder / "out").iterdir()) == []


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for processes as Linux lists them")
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_the_workers_of_a_run_end_with_it(folder: Path, sent: signal.Signals) -> None:
    broken(folder, "open('pid', 'w').write(str(os.getpid())); time.sleep(600)")
    config = CONFIG.replace("BY", "1e-7").replace('pass = "fcn"\n[[steps]]\n', "")
    (folder / "convrewrite.toml").write_text(config)
    (folder / "tmp").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(folder / "site"), "TMPDIR": str(folder / "tmp")}
    with subprocess.Popen([*COMMAND, "run", "-q"], cwd=folder, env=environment, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + HANGS
        while not (folder / "pid").exists() or not (folder / "pid").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        worker = int((folder / "pid").read_text())
        assert is_alive(worker)
        process.send_signal(sent)
    assert process.returncode == (-signal.SIGKILL if sent == signal.SIGKILL else 128 + signal.SIGTERM)
    assert wait_until_dead(worker)
    assert call(folder, "transform", "fcn", "m.onnx", "o.onnx", TMPDIR=str(folder / "tmp")).returncode == 0
    assert leftovers(folder) == []
