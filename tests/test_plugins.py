"""Passes of other packages: found by their entry point, run like the project's own, and never trusted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_models import COMMAND, run
from processes import HANGS, is_alive, leftovers, wait_until_dead

from convrewrite import models

TOY = '''\
"""scale: multiplies the weight of the first convolution.

Before      Conv W
After       Conv W (1 + by)
"""
from dataclasses import dataclass
from typing import ClassVar
import numpy as np
import onnx_graphsurgeon as gs
from convrewrite.rewrite import Declined, Pass, Plan, Reason, Site, option

DONE = Reason("scale/done", "it is scaled already", "nothing")


@dataclass(frozen=True)
class Scale(Pass):
    name: ClassVar[str] = "scale"
    reasons: ClassVar[dict] = {DONE.code: DONE}
    by: float = option(0.0)
    claim: str = option("exact")
    unmarked: int = 0

    def candidates(self, graph):
        yield from [node for node in graph.nodes if node.op == "Conv"][:1]

    def plan(self, context, node):
        if "scaled" in node.inputs[1].name:
            return Declined(DONE, node.name)
        site = Site("scale", node.outputs[0].name, "Conv", "rewritten", detail="scaled", equivalence=self.claim)
        return [Plan((site,), node)]

    def apply(self, graph, plan):
        weight = plan.payload.inputs[1]
        plan.payload.inputs[1] = gs.Constant(
            weight.name + ".scaled", np.asarray(weight.values * np.float32(1 + self.by), np.float32)
        )
'''

BROKEN = "import nothing_of_that_name\n"
NO_PASS = "class Scale:\n    name = 'scale'\n"
OLDER = TOY.replace("class Scale(Pass)", "class Scale").replace("plan(self, context, node)", "plan(self, graph, node)")


def package(folder: Path, name: str, entries: dict[str, str], source: str) -> None:
    """An installed package, as far as entry points see it."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(source)
    info = folder / f"{name}-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
    lines = [f"{entry} = {name}:{what}" for entry, what in entries.items()]
    (info / "entry_points.txt").write_text("\n".join(["[convrewrite.passes]", *lines, ""]))


def call(folder: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    done = run(*words, cwd=folder, env={"PYTHONPATH": str(folder / "site"), **more})
    return subprocess.CompletedProcess(words, done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model, and a package that brings the pass `scale`."""
    shutil.copy(models.lenet5_path(), tmp_path / "m.onnx")
    package(tmp_path / "site", "toy", {"scale": "Scale"}, TOY)
    return tmp_path


def weight(path: Path) -> np.ndarray:
    return next(
        onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer if t.name.startswith("c1.weight")
    )


def test_explain_lists_and_explains_it(folder: Path) -> None:
    listed = call(folder, "explain").stdout
    assert "  scale: multiplies the weight" in listed
    assert "  scale/done\n      it is scaled already" in listed
    assert "Conv W (1 + by)" in call(folder, "explain", "scale").stdout
    assert "it is scaled already" in call(folder, "explain", "scale/done").stdout


def test_it_runs_and_is_verified(folder: Path) -> None:
    done = call(folder, "transform", "scale", "m.onnx", "o.onnx", "--report", "r.json", "--html", "p.html")
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / "r.json").read_text())
    assert (report["command"], report["outcome"], report["verify"]["verdict"]) == ("scale", "rewritten", "verified")
    np.testing.assert_array_equal(weight(folder / "o.onnx"), weight(folder / "m.onnx"))
    assert "scaled" in (folder / "p.html").read_text()


def test_a_pass_that_lies_is_found_out(folder: Path) -> None:
    """It says that the result is exact, and moves a weight by a thousandth."""
    done = call(folder, "transform", "scale", "m.onnx", "o.onnx", "--set", "by=0.001")
    assert done.returncode == 1
    assert "not equivalent" in done.stderr
    assert "convrewrite transform scale m.onnx o.onnx --set by=0.001" in done.stderr
    assert not (folder / "o.onnx").exists()


def test_an_approximate_pass_is_stated_and_never_called_equivalent(folder: Path) -> None:
    words = (
        "transform",
        "scale",
        "m.onnx",
        "o.onnx",
        "--set",
        "by=0.5",
        "--set",
        "claim=approximate",
        "--report",
        "r.json",
    )
    done = call(folder, *words)
    assert done.returncode == 0, done.stderr
    verify = json.loads((folder / "r.json").read_text())["verify"]
    assert verify["verdict"] != "verified"
    assert {case["status"] for case in verify["cases"]} == {"stated"}
    assert max(case["error"] for case in verify["cases"]) > 0.01
    np.testing.assert_allclose(weight(folder / "o.onnx"), 1.5 * weight(folder / "m.onnx"), rtol=1e-6)


CONFIG = """\
models = ["m.onnx"]
output = "out/{name}.onnx"
[[steps]]
pass = "fcn"
[[steps]]
pass = "scale"
claim = "approximate"
by = BY
[gates]
max_output_error = 1e-4
"""


@pytest.mark.parametrize(("by", "code"), [("1e-7", 0), ("1e-2", 1)])
def test_a_weight_that_is_perturbed_between_steps_misses_the_gate(folder: Path, by: str, code: int) -> None:
    (folder / "convrewrite.toml").write_text(CONFIG.replace("BY", by))
    done = call(folder, "run")
    assert done.returncode == code, done.stderr
    assert (folder / "out" / "m.onnx").exists() == (code == 0)
    assert ("gate max_output_error" in done.stderr) == (code == 1)


def test_another_version_of_the_package_is_another_run(folder: Path) -> None:
    (folder / "convrewrite.toml").write_text(CONFIG.replace("BY", "1e-7"))
    assert "as before" not in call(folder, "run").stderr
    assert "as before" in call(folder, "run").stderr
    metadata = folder / "site" / "toy-1.5.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("1.5", "1.6"))
    assert "as before" not in call(folder, "run").stderr


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (CONFIG.replace("BY", "1").replace("claim", "clam"), "did you mean 'claim'?"),
        (CONFIG.replace("BY", "1").replace('"scale"', '"scal"'), "there is no pass 'scal' (did you mean 'scale'?)"),
    ],
)
def test_mistakes_in_a_step_name_the_nearest_right_word(folder: Path, config: str, says: str) -> None:
    (folder / "convrewrite.toml").write_text(config)
    done = call(folder, "run")
    assert done.returncode == 2
    assert says.replace("(", "").replace(")", "").split("did")[0].strip() in done.stderr
    assert "did you mean" in done.stderr


@pytest.mark.parametrize(
    ("entries", "source", "says"),
    [
        ({"fcn": "Scale"}, TOY, "one of convrewrite's own"),
        ({"scale": "Scale"}, TOY, "two passes called 'scale', of other and toy"),
        ({"bad": "Scale"}, BROKEN, "does not load: ModuleNotFoundError"),
        ({"bad": "Scale"}, NO_PASS, "it has no candidates, plan, apply, reasons"),
        ({"bad": "Scale"}, TOY, "its own name is 'scale'"),
        ({"bad": "Scale"}, OLDER.replace('"scale"', '"bad"'), "written for an older convrewrite; inherit from"),
        ({"bad": "Scale"}, TOY.replace("def apply", "def do"), "it has no apply"),
    ],
    ids=["own name", "two", "broken", "no pass", "other name", "older", "abstract"],
)
def test_what_is_no_pass_is_told_in_one_line(folder: Path, entries: dict[str, str], source: str, says: str) -> None:
    package(folder / "site", "other", entries, source)
    done = call(folder, "transform", next(iter(entries)), "m.onnx", "o.onnx")
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2
    assert "Traceback" not in done.stderr
    done = call(folder, "fcn", "m.onnx", "ok.onnx")  # the project's own commands do not mind
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("entries", "source", "says"),
    [
        ({"fcn": "Scale"}, TOY, "one of convrewrite's own"),
        ({"bad": "Scale"}, BROKEN, "does not load: ModuleNotFoundError"),
        ({"bad": "Scale"}, NO_PASS, "it has no candidates, plan, apply, reasons"),
        ({"bad": "Scale"}, TOY, "its own name is 'scale'"),
        ({"bad": "Scale"}, OLDER.replace('"scale"', '"bad"'), "written for an older convrewrite"),
        ({"bad": "Nothing"}, TOY, "does not load: AttributeError"),
        (
            {"bad": "Scale"},
            TOY.replace('"scale"', '"bad"').replace("{DONE.code: DONE}", "[DONE]"),
            "no mapping of codes",
        ),
        ({"bad": "Scale"}, TOY.replace('"scale"', '"bad"').replace("{DONE.code: DONE}", "{'x': 'y'}"), "no mapping"),
    ],
)
def test_explain_lists_the_others_where_one_is_broken(
    folder: Path, entries: dict[str, str], source: str, says: str
) -> None:
    package(folder / "site", "other", entries, source)
    (name,) = entries
    done = call(folder, "explain")
    assert (done.returncode, done.stderr) == (0, "")
    assert "  scale: multiplies the weight" in done.stdout
    assert "  scale/done\n      it is scaled already" in done.stdout
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(f"  {name}: broken: ")]
    assert says in line
    assert call(folder, "explain", "fcn/flat-input").returncode == 0
    assert call(folder, "explain", "scale").returncode == 0
    assert call(folder, "explain", "fcn").returncode == 0
    assert call(folder, "transform", "scale", "m.onnx", "o.onnx").returncode == 0
    if name != "fcn":
        done = call(folder, "explain", name)
        assert (done.returncode, done.stdout) == (2, "")
        assert says in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("scale", "m.onnx", "o.onnx", "--set", "bye=1"), "did you mean 'by'?"),
        (("scale", "m.onnx", "o.onnx", "--set", "by"), "is no setting"),
        (("scale", "m.onnx", "o.onnx", "--set", "by=much"), "does not take by='much'; input should be a valid number"),
        (("scale", "m.onnx", "o.onnx", "--set", "claim=1"), "does not take claim=1; input should be a valid string"),
        (("scale", "m.onnx", "o.onnx", "--set", "unmarked=1"), "the field 'unmarked' of pass 'scale' is no option"),
        (("separable", "m.onnx", "o.onnx", "--set", "form=round"), "'channel' or 'tucker'"),
        (("fcn", "m.onnx", "o.onnx", "--set", "size=64"), "input should be a valid tuple"),
        (("skale", "m.onnx", "o.onnx"), "did you mean 'scale'?"),
        (("fcn", "m.onnx", "o.onnx", "--set", "tol=1"), "has no option 'tol'"),
    ],
)
def test_bad_words(folder: Path, words: tuple[str, ...], says: str) -> None:
    done = call(folder, "transform", *words)
    assert done.returncode == 2
    assert says in done.stderr


def test_the_projects_own_passes_run_by_name_too(folder: Path) -> None:
    done = call(folder, "transform", "fcn", "m.onnx", "o.onnx", "--set", "size=[64, 64]")
    assert done.returncode == 0, done.stderr
    shape = onnx.load(folder / "o.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in shape] == [1, 1, 64, 64]
    done = call(folder, "transform", "separable", "m.onnx", "s.onnx", "--set", "tol=0.3")
    assert done.returncode == 0, done.stderr
    assert "approximate" in done.stderr


# Passes that do not behave ------------------------------------------------------------------------------------------

ENDS = '        if "scaled" in node.inputs[1].name:'
"""The first line of the toy's plan, before which a test has something happen."""


def broken(folder: Path, line: str, at: str = ENDS) -> None:
    """Let the toy do something before one of its lines."""
    indent = at[: len(at) - len(at.lstrip())]
    source = TOY.replace(at, f"{indent}{line}\n{at}").replace(
        "import numpy", "import os, sys, time, signal\nimport numpy"
    )
    (folder / "site" / "toy.py").write_text(source)


APPLY = "        weight = plan.payload.inputs[1]"
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
