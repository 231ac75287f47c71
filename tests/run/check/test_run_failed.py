"""What the reports and the lock file of `run` keep of a model that fails or is gone."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
from checked_projects import CONFIG, Run
from cli_models import save

from convrewrite import models
from helpers import Net


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
