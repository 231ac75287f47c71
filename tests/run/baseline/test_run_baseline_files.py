"""What a baseline of `run` may be: a report, a lock file, or a commit that has one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli_models import snapshot
from compared_projects import FACTS, LOCK, REPORT, Run, commit
from run_projects import git

from convrewrite.batch import baseline, changes, repository
from convrewrite.batch.baseline import Baseline, Figures
from convrewrite.batch.settings import Settings
from convrewrite.errors import UsageError
from convrewrite.options import ChangeOptions

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
    ("content", "why"),
    [
        (b"", "it is empty"),
        (b"hello", "it is no JSON from line 1, column 1 on"),
        (b'{"schema":\n  convrewrite}', "it is no JSON from line 2, column 3 on"),
        (b"\xff\xfe{}", "it is no text in UTF-8"),
        (b'{"models": %s}' % (b"9" * 6000), "it holds a number of 6,000 digits"),
        (b'{"schema": "convrewrite.report/1"}', "it is the report of one command, and not of run"),
        (
            b'{"schema": "convrewrite.run/2"}',
            "its schema is convrewrite.run/2, where convrewrite.run/1 and convrewrite.lock/1 are read",
        ),
    ],
)
def test_why_a_file_is_no_baseline_is_told_without_words_of_python(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(UsageError) as told:
        read(tmp_path, str(tmp_path / "f"))
    assert f"f is no report and no lock file of run ({why}); give what" in str(told.value)


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
