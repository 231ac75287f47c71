"""What a release is made from: workflows and forms that follow their schemas, one version, one address, an sdist that
builds. That the workflows do what they say, only the service that runs them can show; what they call is run here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import convrewrite

ROOT = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
VERSION: str = PROJECT["version"]
ADDRESS: str = PROJECT["urls"]["Source"]

FORMS = ROOT / ".github" / "ISSUE_TEMPLATE"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SCHEMAS = {
    "github-workflows": WORKFLOWS,
    "github-issue-forms": [FORMS / "bug.yml", FORMS / "feature.yml"],
    "github-issue-config": [FORMS / "config.yml"],
    "github-actions": [ROOT / "action.yml"],
    "dependabot": [ROOT / ".github" / "dependabot.yml"],
    "citation-file-format": [ROOT / "CITATION.cff"],
}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_it_follows_its_schema(schema: str) -> None:
    pytest.importorskip("check_jsonschema")
    assert SCHEMAS[schema]
    words = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        f"vendor.{schema}",
        *map(str, SCHEMAS[schema]),
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_schema_finds_a_slip(tmp_path: Path) -> None:
    pytest.importorskip("check_jsonschema")
    text = (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    (tmp_path / "tests.yml").write_text(text.replace("runs-on:", "run-on:", 1))
    words = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows"]
    assert subprocess.run([*words, tmp_path / "tests.yml"], capture_output=True, check=False).returncode == 1


def steps(workflow: Path) -> list[dict[str, Any]]:
    jobs = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_the_shell_of_a_workflow_is_sound(workflow: Path) -> None:
    """It parses, what it calls is there, its extras exist, and no text of strangers is pasted into it."""
    for step in steps(workflow):
        script = step.get("run", "")
        plain = re.sub(r"\$\{\{ matrix\.\w+ \}\}", "word", script)
        assert "${{" not in plain, "give it through env"
        assert subprocess.run(["bash", "-n", "-c", plain], check=False).returncode == 0, script
        for path in re.findall(r"\.ci/[\w-]+", script):
            assert (ROOT / path).is_file(), path
        for extras in re.findall(r"\.\[([\w,]+)\]", script):
            assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"]), extras
        if "uses" in step:
            assert re.fullmatch(r"[\w.-]+/[\w.-]+@(v\d+|release/v\d+)", step["uses"]), step["uses"]


def test_the_fast_tests_are_there() -> None:
    listed = (ROOT / ".ci" / "fast-tests").read_text(encoding="utf-8").split()
    assert len(listed) == len(set(listed)) > 10
    assert [name for name in listed if not (ROOT / name).is_file()] == []


def test_every_python_that_is_named_is_tested() -> None:
    tests = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))
    matrix = tests["jobs"]["fast"]["strategy"]["matrix"]
    named = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", line)]
    assert matrix["python"] == named
    assert {name.partition("-")[0] for name in matrix["os"]} == {"ubuntu", "macos", "windows"}


def named_step(workflow: str, name: str) -> str:
    (script,) = [step["run"] for step in steps(ROOT / ".github" / "workflows" / workflow) if step.get("name") == name]
    return str(script)


def run_step(script: str, folder: Path, tag: str) -> int:
    for name in ("pyproject.toml", "CHANGELOG.md"):
        shutil.copy(ROOT / name, folder)
    python = f"python() {{ '{sys.executable}' \"$@\"; }}\n"
    words = ["bash", "-eo", "pipefail", "-c", python + script]
    environment = {**os.environ, "GITHUB_REF_NAME": tag}
    return subprocess.run(words, cwd=folder, env=environment, check=False, capture_output=True).returncode


@pytest.mark.parametrize("name", ["the tag is the version", "the changelog has a section of it"])
def test_only_the_version_is_published(name: str, tmp_path: Path) -> None:
    script = named_step("publish.yml", name)
    assert run_step(script, tmp_path, f"v{VERSION}") == 0
    assert run_step(script, tmp_path, "v9.9.9") != 0


def test_the_notes_are_one_section_of_the_changelog(tmp_path: Path) -> None:
    run_step(named_step("publish.yml", "the changelog has a section of it"), tmp_path, f"v{VERSION}")
    notes = (tmp_path / "notes.md").read_text(encoding="utf-8")
    assert "### Added" in notes
    assert not re.search("^## ", notes, re.MULTILINE)


def test_the_version_is_one() -> None:
    source = Path(convrewrite.__file__).read_text(encoding="utf-8")
    assert f'__version__ = "{VERSION}"' in source
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == VERSION
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert next(name for name in headings if name != "Unreleased") == VERSION
    for line in re.findall(
        r"(?:convrewrite@v|rev: v)([\d.]+\d)", (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
    ):
        assert line == VERSION


def test_the_address_is_one() -> None:
    """So that moving the repository is one search for it."""
    owner = ADDRESS.removeprefix("https://github.com/")
    texts = [
        ROOT / "README.md",
        ROOT / "CITATION.cff",
        ROOT / "CHANGELOG.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "mkdocs.yml",
    ]
    texts += [*(ROOT / "docs").glob("*.md"), *(ROOT / ".github").rglob("*.*")]
    found = [
        (str(path.relative_to(ROOT)), address)
        for path in texts
        for address in re.findall(r"github\.com/([\w.-]+/convrewrite)\b", path.read_text(encoding="utf-8"))
    ]
    assert [pair for pair in found if pair[1] != owner] == []


def test_the_bug_report_asks_for_what_helps() -> None:
    form = yaml.safe_load((FORMS / "bug.yml").read_text(encoding="utf-8"))
    text = str(form["body"])
    assert "convrewrite --version -v" in text
    assert "--report report.json" in text
