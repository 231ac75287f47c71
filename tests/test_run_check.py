"""`convrewrite run --check`: what makes it fail, and that it changes nothing under version control."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cli_models import call, flat_input, save, snapshot
from onnx import numpy_helper

from convrewrite import model_io, models
from helpers import Net

CONFIG = """\
models = ["models/*.onnx"]
[[steps]]
pass = "groups"
[[steps]]
pass = "separable"
tol = 0.6
[reports]
json = "report.json"
html = "report.html"
"""

OUTPUT = Path("optimized/lenet5.onnx")


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", *who, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one model, everything that a run makes committed."""
    folder = tmp_path / "project"
    (folder / "models").mkdir(parents=True)
    shutil.copy(models.trained_path("lenet5"), folder / "models")
    (folder / "convrewrite.toml").write_text(CONFIG, encoding="utf-8")
    monkeypatch.chdir(folder)
    git(folder, "init", "-q")
    return folder


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """`convrewrite run` with more words: its exit code, and what it says."""

    def called(*words: str) -> tuple[int, str]:
        code = call(monkeypatch, "run", *words)
        return code, capfd.readouterr().err

    return called


def committed(project: Path, run: Run) -> None:
    assert run()[0] == 0
    git(project, "add", "-A")
    git(project, "commit", "-q", "-m", "all")


def test_no_tracked_file_changes(project: Path, run: Run) -> None:
    """A hook that changes a tracked file fails by that alone."""
    committed(project, run)
    before = snapshot(project)
    code, said = run("--check")
    assert code == 0, said
    assert snapshot(project) == before
    assert git(project, "status", "--porcelain") == ""
    assert "report.json is not written with --check, since git tracks it" in said
    git(project, "rm", "-q", "--cached", "report.html")
    (project / "report.html").unlink()
    assert run("--check")[0] == 0
    assert (project / "report.html").is_file(), "git does not track this one"
    assert git(project, "diff", "--name-only") == ""


def test_outputs_of_the_step_name_written_reports_only(
    project: Path, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    committed(project, run)
    monkeypatch.setenv("GITHUB_OUTPUT", str(tmp_path / "output"))
    run("--check")
    assert "report=" not in (tmp_path / "output").read_text()


def test_a_link_to_a_tracked_file_is_followed(project: Path, run: Run) -> None:
    (project / "report.json").symlink_to("kept.json")
    committed(project, run)
    git(project, "rm", "-q", "--cached", "report.json")
    before = snapshot(project)
    assert run("--check")[0] == 0
    assert snapshot(project) == before


@pytest.mark.parametrize("missing", ["git", "safe"])
def test_where_git_cannot_be_asked_reports_that_are_there_stay(
    project: Path, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, missing: str
) -> None:
    committed(project, run)
    before = snapshot(project)
    (tmp_path / "bin").mkdir()
    if missing == "safe":
        script = tmp_path / "bin" / "git"
        script.write_text(
            "#!/bin/sh\necho \"fatal: detected dubious ownership in repository at '$PWD'\" >&2\nexit 128\n"
        )
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    else:
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    code, said = run("--check")
    assert code == 0, said
    assert snapshot(project) == before


def test_git_is_asked_about_the_project_though_a_hook_speaks_of_another(
    project: Path, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    committed(project, run)
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    before = snapshot(project)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git" / "index"))
    assert run("--check")[0] == 0
    assert snapshot(project) == before


def changed_step(project: Path) -> None:
    text = CONFIG.replace("tol = 0.6", "tol = 0.3")
    (project / "convrewrite.toml").write_text(text, encoding="utf-8")


def step_removed(project: Path) -> None:
    text = CONFIG.replace('[[steps]]\npass = "separable"\ntol = 0.6\n', "")
    (project / "convrewrite.toml").write_text(text, encoding="utf-8")


def scaled(path: Path, factor: float) -> None:
    """The same network with its largest tensor of weights times a factor."""
    model = onnx.load(path)
    tensor = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    values = (numpy_helper.to_array(tensor).astype(np.float64) * factor).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    path.write_bytes(model.SerializeToString())


def changed_model(project: Path) -> None:
    scaled(project / "models" / "lenet5.onnx", 1.01)


def foreign_output(project: Path) -> None:
    shutil.copy(models.trained_path("digits_dw7"), project / OUTPUT)


def no_output(project: Path) -> None:
    (project / OUTPUT).unlink()


def damaged_output(project: Path) -> None:
    (project / OUTPUT).write_bytes((project / OUTPUT).read_bytes()[:-100])


def empty_output(project: Path) -> None:
    (project / OUTPUT).write_bytes(b"")


def output_is_a_dangling_link(project: Path) -> None:
    (project / OUTPUT).unlink()
    (project / OUTPUT).symlink_to("gone.onnx")


@pytest.mark.parametrize(
    "change",
    [
        changed_step,
        step_removed,
        changed_model,
        foreign_output,
        no_output,
        damaged_output,
        empty_output,
        output_is_a_dangling_link,
    ],
)
def test_it_fails_where_a_run_would_write_something_else(project: Path, run: Run, change: Any) -> None:
    """Each with one line for the model, which says what to do."""
    committed(project, run)
    change(project)
    before = snapshot(project)
    code, said = run("--check")
    assert code == 1, said
    (line,) = (line for line in said.splitlines() if line.startswith("models/lenet5.onnx"))
    assert "run without --check, and commit the result" in line
    assert snapshot(project) == before


def lock_removed(project: Path) -> None:
    (project / "convrewrite.lock").unlink()


def lock_of_other_versions(project: Path) -> None:
    """As from another Python: the key of the model is another one there."""
    data = json.loads((project / "convrewrite.lock").read_text())
    data["models"]["models/lenet5.onnx"] |= {"key": "0" * 64, "output": "1" * 64}
    (project / "convrewrite.lock").write_text(json.dumps(data))


def reports_removed(project: Path) -> None:
    (project / "report.json").unlink()
    (project / "report.html").unlink()


@pytest.mark.parametrize("change", [lock_removed, lock_of_other_versions, reports_removed])
def test_it_judges_outputs_and_nothing_else(project: Path, run: Run, change: Any) -> None:
    committed(project, run)
    change(project)
    before = {name: digest for name, digest in snapshot(project).items() if not name.startswith("report")}
    code, said = run("--check")
    assert code == 0, said
    assert {name: digest for name, digest in snapshot(project).items() if not name.startswith("report")} == before


def test_an_output_of_a_model_that_is_refused_now(project: Path, run: Run) -> None:
    """With allow_refused the run passes, and leaves the output of the former model where it is."""
    (project / "convrewrite.toml").write_text(
        'models = ["models/*.onnx"]\nallow_refused = true\n[[steps]]\npass = "fcn"\n', encoding="utf-8"
    )
    committed(project, run)
    save(flat_input(), project / "models" / "lenet5.onnx")
    code, said = run()
    assert code == 0, said
    assert (project / OUTPUT).is_file()
    code, said = run("--check")
    assert (code, "its output is there, and nothing would be written" in said) == (1, True), said
    (project / OUTPUT).unlink()
    assert run("--check")[0] == 0


# Outputs that git ignores: a clone has none of them -------------------------------------------------------------------


@pytest.fixture
def ignoring(project: Path, run: Run) -> Path:
    """A clone of a repository that ignores what is made, but for the lock file."""
    (project / ".gitignore").write_text("/optimized/\n/report.*\n", encoding="utf-8")
    committed(project, run)
    assert "optimized" not in git(project, "ls-files")
    clone = project.parent / "clone"
    git(project, "clone", "-q", str(project), str(clone))
    assert not (clone / OUTPUT).exists()
    os.chdir(clone)
    return clone


def test_in_a_clone_the_lock_file_says_what_is_right(ignoring: Path, run: Run) -> None:
    code, said = run("--check")
    assert code == 0, said
    assert not (ignoring / OUTPUT).exists()
    assert git(ignoring, "status", "--porcelain") == ""


@pytest.mark.parametrize("change", [changed_step, step_removed, changed_model])
def test_in_a_clone_it_fails_where_the_lock_is_stale(ignoring: Path, run: Run, change: Any) -> None:
    change(ignoring)
    code, said = run("--check")
    assert (code, "the lock file records another network; run without --check, and commit the lock" in said) == (
        1,
        True,
    ), said
    assert run()[0] == 0
    assert run("--check")[0] == 0


def test_in_a_clone_without_a_lock_nothing_can_be_known(ignoring: Path, run: Run) -> None:
    (ignoring / "convrewrite.lock").unlink()
    code, said = run("--check")
    assert (code, "git ignores its output, and the lock file does not record it" in said) == (1, True), said


def test_last_digits_of_another_processor_pass_in_a_clone(ignoring: Path, run: Run) -> None:
    """The lock file was made elsewhere: another hash, sums that differ in their last digits."""
    path = ignoring / "convrewrite.lock"
    data = json.loads(path.read_text())
    entry = data["models"]["models/lenet5.onnx"]
    entry["output"] = "0" * 64
    sums = entry["result"]["fingerprint"]["sums"]
    entry["result"]["fingerprint"]["sums"] = [value + 1e-6 for value in sums]
    path.write_text(json.dumps(data))
    code, said = run("--check")
    assert code == 0, said
    entry["result"]["fingerprint"]["sums"] = [value + 1e-2 for value in sums]
    path.write_text(json.dumps(data))
    assert run("--check")[0] == 1


def test_a_stale_lock_is_seen_where_the_output_is_at_hand(ignoring: Path, run: Run) -> None:
    """On the machine of whoever commits the output is right, and the lock file, which others go by, is not."""
    stale = (ignoring / "convrewrite.lock").read_text()
    changed_step(ignoring)
    assert run()[0] == 0
    assert run("--check")[0] == 0
    (ignoring / "convrewrite.lock").write_text(stale)
    assert run("--check")[0] == 1


def test_an_output_that_git_ignores_only_now_is_recorded_anew(project: Path, run: Run) -> None:
    committed(project, run)
    path = project / "convrewrite.lock"
    assert "fingerprint" not in path.read_text()
    git(project, "rm", "-q", "-r", "--cached", "optimized")
    (project / ".gitignore").write_text("/optimized/\n", encoding="utf-8")
    code, said = run()
    assert (code, "as before" in said) == (0, False), said
    assert "fingerprint" in path.read_text()
    assert "as before" in run()[1]


@pytest.mark.parametrize("name", ["lenet5", "digits_vgg"])
def test_a_fingerprint_tells_networks_apart(tmp_path: Path, name: str) -> None:
    """It passes over the last digits of weights, and over nothing else: against the comparison of whole files."""
    path = tmp_path / "a.onnx"
    shutil.copy(models.trained_path(name), path)
    own = model_io.fingerprint(model_io.load(path))
    for factor, every, same in ((1 + 1e-7, 2, True), (1.01, 2, False), (-1.0, 2, False), (1.001, 1, False)):
        other = tmp_path / f"{factor}.onnx"
        model = onnx.load(path)
        tensor = next(t for t in model.graph.initializer if len(t.dims) == 4)
        values = numpy_helper.to_array(tensor).copy()
        values.flat[::every] *= np.float32(factor)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        onnx.save(model, other)
        found = model_io.load(other)
        assert model_io.same_network(model_io.load(path), found, 1e-5) is same
        assert model_io.recognized(own, model_io.fingerprint(found), 1e-5) is same
    model = onnx.load(path)
    model.graph.node[0].name += "another"
    onnx.save(model, path)
    assert not model_io.recognized(own, model_io.fingerprint(model_io.load(path)), 1e-5)


# What is kept of a model that fails -----------------------------------------------------------------------------------


def test_a_failed_row_keeps_its_macs(project: Path, run: Run) -> None:
    """In the table, in JSON, in the page."""
    assert run()[0] == 0
    good = json.loads((project / "report.json").read_text())["models"][0]
    (project / "convrewrite.toml").write_text(CONFIG + "markdown = 'r.md'\n[gates]\nmax_bytes = 10\n")
    code, said = run()
    assert code == 1
    failed = json.loads((project / "report.json").read_text())["models"][0]
    assert failed["status"] == "failed"
    assert 0 < good["macs"] < good["macs_before"]
    assert {name: failed[name] for name in ("macs", "macs_before", "macs_left")} == {
        name: good[name] for name in ("macs", "macs_before", "macs_left")
    }
    share = f"{good['macs'] / good['macs_before']:.0%}"
    (line,) = (line for line in said.splitlines() if line.startswith("models/lenet5.onnx"))
    assert line.split()[:3] == ["models/lenet5.onnx", "failed", share]
    assert f"| failed | {share} |" in (project / "r.md").read_text()
    assert re.search(f">{share}<", (project / "report.html").read_text())


def test_a_step_that_fails_keeps_its_macs(project: Path, run: Run) -> None:
    """Not a gate at the end, but the check of a step: the outputs of this model never change."""
    net = Net(1, 8, 12, 12)
    one = np.einsum("o,i,h,w->oihw", *(np.arange(1.0, n + 1) for n in (8, 8, 3, 3)))
    trunk = net.Mul(net.Conv("x", net.const(one)), net.const(np.zeros((1, 8, 1, 1))))
    save(net.model(trunk), project / "models" / "lenet5.onnx")
    assert run()[0] == 1
    failed = json.loads((project / "report.json").read_text())["models"][0]
    assert failed["macs_before"] == 8 * 8 * 9 * 10 * 10
    assert 0 < failed["macs"] < failed["macs_before"]
    assert failed["macs_left"] == failed["macs"] / failed["macs_before"]


def test_a_missed_gate_names_the_option_of_the_step(project: Path, run: Run) -> None:
    """`groups` changes nothing here, so that its option would not help."""
    text = CONFIG + "[gates]\nmax_output_error = 1e-6\n"
    (project / "convrewrite.toml").write_text(text)
    code, said = run()
    assert code == 1
    assert "(max_output_error = 1e-06 in the step 'separable' rewrites only as many layers as stay within it)" in said
    (project / "convrewrite.toml").write_text(text.replace("tol = 0.6", "tol = 0.6\nmax_output_error = 1e-6"))
    code, said = run()
    assert code == 0, said
    (project / "convrewrite.toml").write_text(CONFIG.replace("0.6", "0.0") + "[gates]\nmax_output_error = 0.0\n")
    assert "in the step" not in run()[1]


def test_the_lock_forgets_models_that_are_gone(project: Path, run: Run) -> None:
    shutil.copy(models.trained_path("digits_dw7"), project / "models")
    assert run()[0] == 0
    lock = project / "convrewrite.lock"
    assert set(json.loads(lock.read_text())["models"]) == {"models/lenet5.onnx", "models/digits_dw7.onnx"}
    (project / "models" / "digits_dw7.onnx").unlink()
    assert run()[0] == 0
    assert set(json.loads(lock.read_text())["models"]) == {"models/lenet5.onnx"}
