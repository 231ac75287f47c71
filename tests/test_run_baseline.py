"""`convrewrite run --baseline`: is a model larger, slower or less accurate than it was elsewhere?"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from cli_models import call, snapshot

from convrewrite import models
from convrewrite.batch import baseline, changes, repository
from convrewrite.batch.baseline import Baseline, Figures
from convrewrite.batch.settings import Settings
from convrewrite.errors import UsageError
from convrewrite.options import ChangeOptions
from convrewrite.pipeline import report

CONFIG = """\
models = ["models/*.onnx"]
[[steps]]
pass = "groups"
[[steps]]
pass = "separable"
tol = 0.6
[reports]
json = "report.json"
"""

SCHEMA = json.loads((Path(baseline.__file__).with_name("run.schema.json")).read_text(encoding="utf-8"))

Run = Callable[..., tuple[int, str, str]]


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *who, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """`convrewrite run` with more words: its exit code, standard output and standard error."""

    def called(*words: str) -> tuple[int, str, str]:
        code = call(monkeypatch, "run", *words)
        return code, *capfd.readouterr()

    return called


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one model."""
    folder = tmp_path / "project"
    (folder / "models").mkdir(parents=True)
    shutil.copy(models.trained_path("lenet5"), folder / "models")
    (folder / "convrewrite.toml").write_text(CONFIG, encoding="utf-8")
    git(folder, "init", "-q")
    monkeypatch.chdir(folder)
    return folder


def commit(folder: Path) -> None:
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "some")


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


# What a baseline may be -----------------------------------------------------------------------------------------------

FACTS: dict[str, Any] = {
    "status": "rewritten",
    "exit_code": 0,
    "message": "",
    "macs": 1000,
    "macs_left": 0.5,
    "parameters": 100,
    "bytes": 500,
    "output_error": 1e-3,
    "top1_agreement": 0.99,
    "speedup": {"median": 2.0, "low": 1.9, "high": 2.1},
    "device": "cpu: x",
    "source": "0" * 64,
    "by_step": [{"pass": "separable", "rewritten": 2, "macs": 1000, "parameters": 100, "bytes": 500}],
}
REPORT = {"schema": "convrewrite.run/1", "versions": {}, "exit_code": 0, "models": [{"model": "a", **FACTS}]}
LOCK = {
    "schema": "convrewrite.lock/1",
    "models": {"a": {"key": "0" * 64, "output": "1" * 64, "result": FACTS}},
    "timings": {},
}
SETTINGS = Settings.model_validate({"models": ["a"], "steps": [{"pass": "groups"}]})


def read(folder: Path, given: str) -> Baseline:
    return baseline.read(given, SETTINGS, folder, folder / "convrewrite.toml")


@pytest.mark.parametrize("content", [REPORT, LOCK])
def test_a_report_and_a_lock_say_the_same(tmp_path: Path, content: Any) -> None:
    (tmp_path / "f").write_text(json.dumps(content))
    found = read(tmp_path, str(tmp_path / "f"))
    assert found.models == {"a": Figures.model_validate({k: v for k, v in FACTS.items() if k in Figures.model_fields})}


def test_older_files_are_read_for_what_they_have(tmp_path: Path) -> None:
    """As of 0.1.0: no MACs of the whole, no steps in short, no device; the report has its steps in full."""
    new = ("macs", "device", "source", "by_step")
    old = {name: value for name, value in FACTS.items() if name not in new}
    lock = {**LOCK, "models": {"a": {"key": "0" * 64, "output": "1" * 64, "result": old}}}
    (tmp_path / "lock").write_text(json.dumps(lock))
    steps = [{"command": "separable", "output": {"macs": 7, "parameters": 8, "bytes": 9, "path": ""}}]
    (tmp_path / "report").write_text(json.dumps({**REPORT, "models": [{"model": "a", "steps": steps, **old}]}))
    figures = read(tmp_path, str(tmp_path / "lock")).models["a"]
    assert (figures.macs, figures.macs_left, figures.bytes) == (None, 0.5, 500)
    assert figures.by_step is None
    (step,) = read(tmp_path, str(tmp_path / "report")).models["a"].by_step or ()
    assert (step.name, step.macs, step.parameters, step.bytes) == ("separable", 7, 8, 9)
    found = changes.compare("a", {**FACTS, "macs_left": 0.6}, figures, ChangeOptions())
    (change,) = (change for change in found.changes if change.option == "max_more_macs")
    assert (change.figure, change.verdict) == ("macs_left", "worse")


BAD = {
    "no JSON": "hello",
    "binary": "\0\1",
    "a list": "[]",
    "no schema": "{}",
    "NaN": json.dumps(REPORT).replace("0.99", "NaN"),
    "infinity": json.dumps(REPORT).replace("0.99", "1e999"),
    "a name twice": json.dumps(REPORT)[:-1] + ', "models": []}',
    "deep": "[" * 100_000,
    "one command": json.dumps({"schema": "convrewrite.report/1"}),
    "another version": json.dumps({**REPORT, "schema": "convrewrite.run/2"}),
    "schema is a list": json.dumps({**REPORT, "schema": ["convrewrite.run/1"]}),
    "no models": json.dumps({"schema": "convrewrite.run/1"}),
    "models is a number": json.dumps({**REPORT, "models": 7}),
    "a model is text": json.dumps({**REPORT, "models": ["a"]}),
    "no exit code": json.dumps({**REPORT, "models": [{"model": "a"}]}),
    "macs is text": json.dumps(REPORT).replace("1000", '"1000"'),
    "macs is negative": json.dumps(REPORT).replace("1000", "-1"),
    "speedup is a number": json.dumps({**REPORT, "models": [{**REPORT["models"][0], "speedup": 2.0}]}),  # type: ignore[index]
    "damaged lock": json.dumps({**LOCK, "models": {"a": {}}}),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_no_run_has_written(tmp_path: Path, name: str) -> None:
    (tmp_path / "f").write_text(BAD[name])
    with pytest.raises(UsageError, match=r"is no report and no lock file of run .*; give what convrewrite run has"):
        read(tmp_path, str(tmp_path / "f"))


@pytest.mark.parametrize(
    "given",
    [
        "--upload-pack=touch pwned",
        "--output=pwned",
        "-h",
        "nothing",
        "main:convrewrite.toml",
        "HEAD^{tree}",
        "main..main",
        "main --all",
        "$(touch pwned)",
        "a\nb",
        "*",
        "..",
        ".",
        "a" * 5000,
        "\x1b[31m",
    ],
)
def test_what_is_no_ref_and_no_file(project: Path, given: str) -> None:
    commit(project)
    before = snapshot(project)
    with pytest.raises(UsageError, match="is no file, and no commit that git knows in"):
        read(project, given)
    assert snapshot(project) == before
    assert not (project / "pwned").exists()


def test_a_ref_on_the_command_line_that_looks_like_an_option(project: Path, run: Run) -> None:
    commit(project)
    code, _, said = run("--baseline=--upload-pack=touch pwned")
    assert (code, "is no file, and no commit" in said) == (2, True), said
    assert len(said.strip().splitlines()) == 1
    assert not (project / "pwned").exists()


def test_no_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="is no file, and no commit that git knows"):
        read(tmp_path, "main")
    (tmp_path / "f").write_text(json.dumps(REPORT))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read(tmp_path, str(tmp_path / "f")).models, "a file needs no git"


def lock_at(folder: Path, content: Any) -> None:
    (folder / "convrewrite.lock").write_text(content if isinstance(content, str) else json.dumps(content))
    commit(folder)


def test_refs_of_every_kind(project: Path) -> None:
    lock_at(project, LOCK)
    git(project, "tag", "-a", "v1", "-m", "v1")
    git(project, "branch", "feature/x")
    (project / "convrewrite.lock").write_text("changed since")
    for given in (
        "main",
        "v1",
        "feature/x",
        "HEAD",
        "HEAD~0",
        "main@{0}",
        git(project, "rev-parse", "--short", "HEAD"),
    ):
        found = read(project, given)
        assert found.models["a"].macs == 1000
        assert found.commit == git(project, "rev-parse", "HEAD")
    sub = project / "sub"
    sub.mkdir()
    shutil.copy(project / "convrewrite.toml", sub)
    lock_at(sub, LOCK)
    assert read(sub, "main").models.keys() == {"a"}
    assert read(sub, "main").file == "convrewrite.lock"


def test_a_file_does_not_take_the_place_of_a_branch(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pull request could bring a file of that name, and be compared with it."""
    lock_at(project, LOCK)
    (project / "main").write_text(json.dumps(REPORT))
    with pytest.raises(UsageError, match=r"is a git ref, and a file as well; write \./main for the file"):
        read(project, "main")
    assert read(project, "./main").commit is None
    assert read(project, "refs/heads/main").commit is not None


def test_a_damaged_lock_of_a_commit(project: Path) -> None:
    lock_at(project, "no lock")
    with pytest.raises(UsageError, match=r"main:convrewrite\.lock is no report and no lock file"):
        read(project, "main")


def test_a_lock_that_is_a_link_or_a_folder_or_a_pointer(project: Path) -> None:
    (project / "convrewrite.lock").symlink_to("/etc/passwd")
    commit(project)
    with pytest.raises(UsageError, match="is no plain file"):
        read(project, "main")
    (project / "convrewrite.lock").unlink()
    (project / "convrewrite.lock").mkdir()
    (project / "convrewrite.lock" / "x").write_text("x")
    commit(project)
    with pytest.raises(UsageError, match="is no plain file"):
        read(project, "main")
    shutil.rmtree(project / "convrewrite.lock")
    lock_at(project, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(UsageError, match="is a pointer of Git LFS"):
        read(project, "main")


def test_a_shallow_clone_says_how_to_fetch(project: Path) -> None:
    lock_at(project, LOCK)
    git(project, "checkout", "-q", "-b", "change")
    clone = project.parent / "clone"
    words = ["clone", "-q", "--depth", "1", "--branch", "change", f"file://{project}", str(clone)]
    git(project, *words)
    with pytest.raises(UsageError, match=r"this clone is shallow: git fetch origin main, then name FETCH_HEAD"):
        read(clone, "origin/main")
    git(clone, "fetch", "-q", "--depth", "1", "origin", "main")
    assert read(clone, "FETCH_HEAD").models["a"].macs == 1000
    git(clone, "fetch", "-q", "--depth", "1", "origin", "main:refs/remotes/origin/main")
    with pytest.raises(UsageError, match="did you mean origin/main"):
        read(clone, "main")


def test_names_are_no_patterns_and_no_settings_of_the_user_matter(project: Path) -> None:
    git(project, "config", "alias.rev-parse", "!touch pwned")
    git(project, "config", "diff.x.textconv", "touch pwned; true")
    (project / ".gitattributes").write_text("* diff=x\n")
    (project / "[a]*.json").write_text("{}")
    commit(project)
    found = repository.commit(project, "main")
    assert found is not None
    assert found.read("[a]*.json") == b"{}"
    assert found.read("[a].json") is None
    assert found.read("*.json") is None
    assert found.read("../outside") is None
    assert not (project / "pwned").exists()


# Which changes fail ---------------------------------------------------------------------------------------------------

LIMITS = ChangeOptions()


def compared(allowed: ChangeOptions = LIMITS, **now: Any) -> changes.Comparison:
    return changes.compare("a", {**FACTS, **now}, Figures.model_validate(_figures(FACTS)), allowed)


def _figures(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name in Figures.model_fields}


def speed(low: float, median: float, high: float) -> dict[str, Any]:
    return {"median": median, "low": low, "high": high}


@pytest.mark.parametrize(
    ("now", "standing", "worse"),
    [
        ({}, "same", []),
        ({"macs": 1010}, "allowed", []),
        ({"macs": 1011}, "worse", ["macs"]),
        ({"macs": 900}, "better", []),
        ({"parameters": 102}, "worse", ["parameters"]),
        ({"bytes": 506}, "worse", ["bytes"]),
        ({"bytes": 505, "macs": 900}, "allowed", []),
        ({"output_error": 1.09e-3}, "allowed", []),
        ({"output_error": 1.2e-3}, "worse", ["output_error"]),
        ({"output_error": 1e-9}, "better", []),
        ({"top1_agreement": 0.986}, "allowed", []),
        ({"top1_agreement": 0.98}, "worse", ["top1_agreement"]),
        ({"top1_agreement": 1.0}, "better", []),
        ({"speedup": speed(1.0, 1.85, 2.0)}, "same", []),  # the intervals meet: nothing is known
        ({"speedup": speed(1.85, 1.86, 1.87)}, "allowed", []),  # 1.9 / 1.87: 1.6 % at least
        ({"speedup": speed(1.0, 1.5, 1.7)}, "worse", ["speedup"]),
        ({"speedup": speed(2.2, 2.5, 2.7)}, "better", []),
        ({"speedup": speed(0.1, 0.2, 0.3), "device": "cpu: y"}, "same", []),
        ({"speedup": speed(0.1, 0.2, 0.3), "device": None}, "same", []),
        ({"speedup": speed(0.1, 0.2, 0.3), "source": "1" * 64}, "same", []),
        ({"speedup": speed(-0.1, 0.2, 0.3)}, "same", []),
        ({"speedup": None}, "same", []),
        ({"macs": 2000, "bytes": 5000}, "worse", ["macs", "bytes"]),
    ],
)
def test_which_changes_fail(now: dict[str, Any], standing: str, worse: list[str]) -> None:
    found = compared(**now)
    assert found.standing == standing
    assert [change.figure for change in found.changes if change.verdict == "worse"] == worse


@pytest.mark.parametrize(
    ("now", "note"),
    [
        ({"device": "cpu: y"}, "times are not compared: there on cpu: x, here on cpu: y"),
        ({"device": None}, "times are not compared: the device is not recorded here"),
        ({"speedup": None}, "times are not compared: nothing was timed here"),
        ({"source": "1" * 64}, "the original is another file than there"),
    ],
)
def test_why_something_is_not_compared(now: dict[str, Any], note: str) -> None:
    assert note in compared(**now).notes


def test_rounding_is_no_error() -> None:
    """1e-7 and 5e-6 are both what sums in another order cost."""
    before = Figures.model_validate({**_figures(FACTS), "output_error": 1e-7})
    assert changes.compare("a", {**FACTS, "output_error": 5e-6}, before, ChangeOptions()).standing == "same"
    assert changes.compare("a", {**FACTS, "output_error": 5e-5}, before, ChangeOptions()).standing == "worse"
    assert changes.compare("a", {**FACTS, "output_error": math.nan}, before, ChangeOptions()).standing == "same"


def test_limits() -> None:
    assert compared(ChangeOptions(max_more_macs=0.0), macs=1001).standing == "worse"
    assert compared(ChangeOptions(max_more_macs=1.0), macs=2000).standing == "allowed"
    assert compared(ChangeOptions(max_slowdown=0.5), speedup=speed(1.0, 1.5, 1.7)).standing == "allowed"
    with pytest.raises(UsageError):
        ChangeOptions(max_slowdown=-0.1)


def test_models_that_fail() -> None:
    """What fails now fails anyway; what failed there is no measure."""
    assert compared(exit_code=1, macs=900).standing == "failed"
    before = Figures.model_validate({**_figures(FACTS), "exit_code": 1})
    assert changes.compare("a", {**FACTS, "macs": 2000}, before, ChangeOptions()).standing == "not compared"
    assert changes.compare("a", FACTS, None, ChangeOptions()).standing == "new"
    assert changes.compare("a", {"exit_code": 2, "status": "error"}, before, ChangeOptions()).standing == "failed"
    found = changes.against(Baseline("main", models={"b": before}), {"a": FACTS}, ChangeOptions())
    assert [(model.model, model.standing) for model in found.models] == [("a", "new"), ("b", "removed")]
    failed = {**FACTS, "exit_code": 1, "message": "m"}
    assert changes.judged("a", failed, Baseline("main", models={"a": before}), ChangeOptions()) == failed


def test_steps_that_came_and_went() -> None:
    one, other = FACTS["by_step"][0], {**FACTS["by_step"][0], "pass": "groups"}
    found = compared(by_step=[other, one]).steps
    assert [(s.step, s.before and s.before.name, s.now and s.now.name) for s in found] == [
        (0, "separable", "groups"),
        (1, None, "separable"),
    ]
    assert compared(by_step=[]).steps[0].now is None
    assert compared().steps == ()


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
