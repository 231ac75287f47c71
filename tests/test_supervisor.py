"""A command whose process dies: one line that says why, an exit code that is no signal, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_models import plain, run, save, snapshot
from onnx import helper
from processes import HANGS, is_alive, leftovers, start, wait_until_dead

from convrewrite.cli import supervisor
from convrewrite.system.board import SIZE, Board
from helpers import Net

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no fork and no such signals")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save(plain(), tmp_path / "in.onnx")


def dividing(dividend: int, divisor: int, op: str = "Div") -> onnx.ModelProto:
    """A classifier whose scores wait for a division of integers: what it divides by is not known before it runs."""
    net = Net(1, 3, 10, 8, opset=17)
    model = net.model(net.fc(net.Flatten(net.Relu(net.conv("x", 4, 3, 3))), 5))
    scores, shown = model.graph.output[0].name, "waiting"
    # the difference of two equal indices is 0 for every input, and no constant folding finds that out
    lines = [
        ("ArgMax", [scores], "first", {"axis": 1, "keepdims": 0}),
        ("Neg", [scores], "negative", {}),
        ("ArgMin", ["negative"], "other", {"axis": 1, "keepdims": 0}),
        ("Sub", ["first", "other"], "nothing", {}),
        ("Add", ["nothing", "dividend"], "above", {}),
        ("Add", ["nothing", "divisor"], "below", {}),
        (op, ["above", "below"], "quotient", {}),
        ("Cast", ["quotient"], "number", {"to": onnx.TensorProto.FLOAT}),
        ("Mul", ["number", "zero"], "none", {}),
        ("Add", [scores, "none"], shown, {}),
    ]
    model.graph.node.extend(helper.make_node(kind, inputs, [to], **how) for kind, inputs, to, how in lines)
    values = {"dividend": np.array([dividend]), "divisor": np.array([divisor]), "zero": np.zeros(1, np.float32)}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in values.items())
    model.graph.output[0].name = shown
    onnx.checker.check_model(model, full_check=True)
    return model


SMALLEST = -(2**63)


@pytest.mark.skipif(os.uname().machine not in ("x86_64", "AMD64"), reason="other processors divide without a trap")
@pytest.mark.parametrize("op", ["Div", "Mod"])
def test_a_division_of_integers_that_ends_onnx_runtime(op: str, source: Path, tmp_path: Path) -> None:
    """The oracle is ONNX Runtime in a process of its own: it dies of the model itself."""
    model = save(dividing(SMALLEST, -1, op), tmp_path / "crash.onnx")
    script = "import sys, numpy, onnxruntime as o; s = o.InferenceSession(sys.argv[1]);"
    script += "s.run(None, {'x': numpy.zeros((1, 3, 10, 8), numpy.float32)})"
    alone = subprocess.run([sys.executable, "-c", script, str(model)], capture_output=True, check=False)
    assert alone.returncode == -signal.SIGFPE
    before = snapshot(tmp_path)
    done = run("verify", model, model)
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: the command was ended by SIGFPE")
    assert f"running {model} in ONNX Runtime" in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1
    done = run("transform", "fcn", model, tmp_path / "out.onnx")
    assert done.returncode in (2, 3)
    assert snapshot(tmp_path) == before


SIGNALS = ["SIGSEGV", "SIGABRT", "SIGKILL"]


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_in_the_middle_is_one_line(name: str, source: Path, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    script = f"os.kill(os.getpid(), signal.{name})"
    words = ("fcn", source, tmp_path / "out.onnx", "--report", tmp_path / "r.json")
    with start(tmp_path, script, *words) as process:
        _, text = process.communicate(timeout=HANGS)
    lines = text.strip().splitlines()[1:]
    assert process.returncode == 2
    assert len(lines) == 1
    assert lines[0].startswith(f"error: the command was ended by {name}")
    assert ";" in lines[0]  # with a remedy
    report = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert (report["command"], report["outcome"], report["exit_code"]) == ("fcn", "error", 2)
    assert name in report["message"]
    (tmp_path / "r.json").unlink()
    assert snapshot(tmp_path) == before
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("action", ["os._exit(0)", "sys.exit('bye')"])
def test_an_end_that_nobody_ordered_is_never_success(action: str, source: Path, tmp_path: Path) -> None:
    with start(tmp_path, action, "fcn", source, tmp_path / "out.onnx") as process:
        _, text = process.communicate(timeout=HANGS)
    assert process.returncode == 70, text
    assert "internal error: " in text
    assert "Traceback" not in text
    assert not (tmp_path / "out.onnx").exists()
    assert leftovers(tmp_path) == []


def test_dying_after_the_work_is_done_changes_nothing(source: Path, tmp_path: Path) -> None:
    """As where a driver crashes while the interpreter is taken down."""
    target = tmp_path / "out.onnx"
    action = "import atexit; atexit.register(os.abort); return real(*args, **kwargs)"
    with start(tmp_path, action, "fcn", source, target) as process:
        process.communicate(timeout=HANGS)
    assert target.exists() == (process.returncode == 0)
    assert process.returncode == 0


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_native_code_that_hears_nothing_ends_within_seconds(name: str, code: int, source: Path, tmp_path: Path) -> None:
    """`sum` over a long range holds the interpreter, so that no handler of Python's runs."""
    before = snapshot(tmp_path)
    with start(tmp_path, "sum(range(10**13))", "fcn", source, tmp_path / "out.onnx") as process:
        assert process.stderr is not None
        child = int(process.stderr.readline())
        began = time.monotonic()
        process.send_signal(getattr(signal, name))
        text = process.stderr.read()
        process.wait(timeout=HANGS)
    assert process.returncode == code
    assert time.monotonic() - began < supervisor.GRACE + HANGS / 10
    assert text == ""
    assert not is_alive(child)
    assert snapshot(tmp_path) == before
    assert leftovers(tmp_path) == []


def test_a_command_that_is_killed_takes_its_child_along(source: Path, tmp_path: Path) -> None:
    with start(tmp_path, "time.sleep(600)", "fcn", source, tmp_path / "out.onnx") as process:
        assert process.stderr is not None
        child = int(process.stderr.readline())
        assert child != process.pid
        process.kill()
        process.wait(timeout=HANGS)
        assert wait_until_dead(child)
    assert leftovers(tmp_path) != []  # nobody was left to remove them
    assert run("fcn", source, tmp_path / "out.onnx", env={"TMPDIR": str(tmp_path / "tmp")}).returncode == 0
    assert leftovers(tmp_path) == []


def test_without_the_kernels_help_a_thread_looks_after_the_parent(tmp_path: Path) -> None:
    script = (
        "import os, subprocess, sys, time\n"
        "if sys.argv[1:]:\n"
        "    from convrewrite.system import children\n"
        "    children._ask_the_kernel = lambda: False\n"
        "    children.SECONDS = 0.05\n"
        "    children.die_with(int(sys.argv[1]))\n"
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(600)\n"
        "subprocess.Popen([sys.executable, sys.orig_argv[1], str(os.getpid())])\n"
        "time.sleep(600)\n"
    )
    path = tmp_path / "parent.py"
    path.write_text(script, encoding="utf-8")
    with subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert is_alive(child)
        process.kill()
        assert wait_until_dead(child)


NO_FORK = "del os.fork"


def test_where_there_is_no_fork_the_interpreter_starts_again(source: Path, tmp_path: Path) -> None:
    script = f"import os, sys\n{NO_FORK}\nfrom convrewrite.cli import app as cli\ncli.main()"

    def call(*words: str | Path) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-c", script, *map(str, words)]
        environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
        return subprocess.run(command, input=source.read_bytes(), capture_output=True, env=environment, check=False)

    (tmp_path / "tmp").mkdir()
    done = call("fcn", "-", "-", "--quiet")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == run("fcn", source, "-").stdout
    assert call("fcn", source).returncode == 2
    crash = save(dividing(SMALLEST, -1), tmp_path / "crash.onnx")
    done = call("verify", crash, crash)
    assert done.returncode == 2
    assert b"SIGFPE" in done.stderr
    assert leftovers(tmp_path) == []


def test_a_file_that_is_cut_short_while_it_is_read(tmp_path: Path) -> None:
    """The weights are truncated after the model was read, so that whoever looks at them gets a SIGBUS."""
    weights = np.ones((64, 64, 3, 3), np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", 1, [1, 64, 8, 8])],
        [helper.make_tensor_value_info("y", 1, [1, 64, 6, 6])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "in.onnx"
    onnx.save(model, path, save_as_external_data=True, location="in.data", size_threshold=0)
    before = (
        "from convrewrite import model_io\nreal = model_io.load\n"
        f"def load(source):\n    made = real(source)\n    os.truncate({str(tmp_path / 'in.data')!r}, 0)\n"
        "    return made\nmodel_io.load = load"
    )
    with start(tmp_path, "", "separable", path, tmp_path / "out.onnx", "--tol", "0.1", before=before) as process:
        _, text = process.communicate(timeout=HANGS)
    assert process.returncode == 2
    assert "SIGBUS" in text
    assert "cut short" in text
    assert len(text.strip().splitlines()) == 1
    assert not (tmp_path / "out.onnx").exists()
    assert leftovers(tmp_path) == []


# The board ----------------------------------------------------------------------------------------------------------


def test_a_board_keeps_what_fits_and_nothing_by_half(tmp_path: Path) -> None:
    path = tmp_path / "board"
    written = Board.make(path)
    seen = Board.at(path)
    assert (seen.code, seen.activity, seen.facts, seen.folders) == (None, "", {}, [])
    written.code, written.activity, written.facts = 0, "reading", {"report": "r.json"}
    written.add_folder("/a")
    written.add_folder("/b\udcff")
    written.add_folder("/a")
    assert (seen.code, seen.activity, seen.facts) == (0, "reading", {"report": "r.json"})
    assert seen.folders == ["/a", "/b\udcff"]
    written.add_folder("/" + "c" * SIZE)
    assert seen.folders == ["/a", "/b\udcff"]
    written.facts = {"report": "r" * SIZE}
    assert seen.facts == {"report": "r.json"}
    written.activity = "x" * SIZE
    assert 0 < len(seen.activity) <= 300
    assert seen.facts == {"report": "r.json"}
