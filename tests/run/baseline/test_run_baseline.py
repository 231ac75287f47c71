"""`convrewrite run --baseline`: is a model larger, slower or less accurate than it was elsewhere?"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from cli_models import snapshot
from compared_projects import CONFIG, REPORT, Run, commit
from run_projects import git

from convrewrite import models
from convrewrite.batch import baseline
from convrewrite.pipeline import report

SCHEMA = json.loads((Path(baseline.__file__).with_name("run.schema.json")).read_text(encoding="utf-8"))


def told(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.validate(data, SCHEMA)
    for model in data["models"]:
        for step in model.get("steps", ()):
            plain = {name: value for name, value in step.items() if name != "step"}
            jsonschema.validate(plain, json.loads(report.SCHEMA_FILE.read_text(encoding="utf-8")))
    return data


# From end to end ------------------------------------------------------------------------------------------------------


def test_a_branch_is_held_against_main(project: Path, run: Run) -> None:
    """A smaller tolerance leaves more MACs: worse than on main, and not written. A larger one is better."""
    assert run()[0] == 0
    commit(project)
    output = (project / "optimized" / "lenet5.onnx").read_bytes()
    macs = told(project / "report.json")["models"][0]["macs"]

    code, page, said = run("--baseline", "main", "--markdown", "-")
    assert code == 0, said
    assert f"against main ({git(project, 'rev-parse', 'HEAD')[:10]}): 1 as before" in said
    assert "| models/lenet5.onnx | same |" in page
    assert "| models/lenet5.onnx | unchanged" not in page

    (project / "convrewrite.toml").write_text(CONFIG.replace("0.6", "0.3"), encoding="utf-8")
    code, page, said = run("--baseline", "main", "--markdown", "-")
    assert code == 1, said
    assert "worse than main" in said
    assert "more MACs" in said
    assert "where that is meant, raise the limit under [baseline]" in said
    assert (project / "optimized" / "lenet5.onnx").read_bytes() == output, "as with every gate, it is not written"
    data = told(project / "report.json")
    (found,) = data["baseline"]["models"]
    (change,) = (change for change in found["changes"] if change["figure"] == "macs")
    assert found["standing"] == "worse"
    assert (change["before"], change["now"]) == (macs, data["models"][0]["macs"])
    assert change["by"] == pytest.approx(data["models"][0]["macs"] / macs - 1)
    assert [(step["step"], step["now"]["pass"]) for step in found["steps"]] == [(1, "separable")]
    assert f"{macs:,} -&gt; {change['now']:,} ({change['by']:+.1%})" in page
    assert "step 2: separable" in page

    allowed = "[baseline]\nmax_more_macs = 9\nmax_more_parameters = 9\nmax_more_bytes = 9\n"
    allowed += "max_more_error = 9\nmax_less_agreement = 1\n"
    (project / "convrewrite.toml").write_text(CONFIG.replace("0.6", "0.3") + allowed, encoding="utf-8")
    code, page, said = run("--baseline", "main", "--reports", str(project.parent / "all"))
    assert code == 0, said
    assert "1 worse within the limits" in said
    assert (project / "optimized" / "lenet5.onnx").read_bytes() != output
    html = (project.parent / "all" / "convrewrite-report.html").read_text(encoding="utf-8")
    assert 'id="baseline"' in html
    assert "1 worse within the limits" in html
    assert {path.name for path in (project.parent / "all").iterdir()} == {
        "report.json",
        "convrewrite-report.html",
        "convrewrite-report.md",
        "convrewrite-junit.xml",
    }
    assert told(project / "report.json")["exit_code"] == 1, "with --reports the file's own report is left alone"

    kept = project.parent / "kept.json"
    shutil.copy(project.parent / "all" / "report.json", kept)
    shutil.copy(models.trained_path("digits_dw7"), project / "models")
    (project / "models" / "lenet5.onnx").unlink()
    code, page, said = run("--baseline", str(kept), "--markdown", "-")
    assert code == 0, said
    assert "1 new, 1 removed" in said
    assert "| models/lenet5.onnx | removed |" in page


def test_what_is_unchanged_is_compared_too(project: Path, run: Run) -> None:
    """A model that the lock file knows is not done again, and still has to be no worse than elsewhere."""
    assert run()[0] == 0
    shutil.copy(project / "report.json", project.parent / "base.json")
    data = json.loads((project.parent / "base.json").read_text())
    data["models"][0]["macs"] //= 2
    (project.parent / "base.json").write_text(json.dumps(data))
    code, _, said = run("--baseline", str(project.parent / "base.json"))
    assert (code, "100.0% more MACs" in said) == (1, True), said
    assert "max_more_macs is 0.01" in said


def test_a_baseline_before_convrewrite_and_one_without_a_lock(project: Path, run: Run) -> None:
    shutil.copy(project / "convrewrite.toml", project.parent)
    (project / "convrewrite.toml").unlink()
    commit(project)
    git(project, "tag", "before")
    shutil.copy(project.parent / "convrewrite.toml", project)
    commit(project)
    code, _, said = run("--baseline", "before")
    assert (code, "1 new" in said) == (0, True), said
    code, _, said = run("--baseline", "main")
    assert code == 2
    assert "there is no convrewrite.lock at main" in said
    assert len(said.strip().splitlines()) == 1


def test_the_limits_are_no_reason_to_do_a_model_again(project: Path, run: Run) -> None:
    assert run()[0] == 0
    (project / "convrewrite.toml").write_text(CONFIG + "[baseline]\nmax_slowdown = 0.2\n", encoding="utf-8")
    assert "as before" in run()[2]


# Where results go -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["--markdown", "models/lenet5.onnx"],
        ["--markdown", "convrewrite.toml"],
        ["--markdown", "report.json"],
        ["--markdown", "base.json", "--baseline", "base.json"],
        ["--reports", "models", "--markdown", "models/convrewrite-report.md"],
    ],
)
def test_what_options_write_is_nothing_that_is_read(project: Path, run: Run, words: list[str]) -> None:
    (project / "base.json").write_text(json.dumps(REPORT))
    before = snapshot(project)
    code, _, said = run(*words)
    assert (code, "would overwrite" in said) == (2, True), said
    assert snapshot(project) == before
