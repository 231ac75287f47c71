"""`run --check` where git ignores the outputs: a clone has none of them, and the lock file says what is right."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from checked_projects import OUTPUT, Run, changed_model, changed_step, committed, step_removed
from onnx import numpy_helper
from run_projects import git

from convrewrite import model_io, models


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
