"""`convrewrite run --check`: what makes it fail, and that it changes nothing under version control."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from checked_projects import OUTPUT, Run, changed_model, changed_step, committed, step_removed
from cli_models import flat_input, save, snapshot
from run_projects import git

from convrewrite import models


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
    """With allow_refused the run passes, and leaves the output of the former model where it is; both name it."""
    (project / "convrewrite.toml").write_text(
        'models = ["models/*.onnx"]\nallow_refused = true\n[[steps]]\npass = "fcn"\n', encoding="utf-8"
    )
    committed(project, run)
    save(flat_input(), project / "models" / "lenet5.onnx")
    code, said = run()
    assert code == 0, said
    assert (project / OUTPUT).is_file()
    assert f"\n{OUTPUT} is from an earlier run, and 'models/lenet5.onnx' is refused now; delete it\n" in said
    code, said = run("--check")
    assert (code, "its output is there, and nothing would be written" in said) == (1, True), said
    assert f"; delete {OUTPUT}" in said
    assert "from an earlier run" not in said
    (project / OUTPUT).unlink()
    assert run("--check")[0] == 0
    assert "from an earlier run" not in run()[1]
