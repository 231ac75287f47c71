"""The README and the documentation cannot rot: their commands run as they stand, in a fresh environment, and their text
is what these print."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from documented import ROOT, shell

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [README, *(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").rglob("*.md")))]


def block(kind: str, name: str) -> str:
    """The fenced block that follows a marker such as <!-- command: main -->; a name has one block in all pages."""
    found = [
        text for page in PAGES for text in re.findall(rf"<!-- {kind}: {name} -->\n```\w+\n(.*?)```", page, re.DOTALL)
    ]
    assert len(set(found)) == 1, f"{len(found)} blocks {kind}: {name}"
    return found[0]


COMMANDS = list(dict.fromkeys(name for page in PAGES for name in re.findall(r"<!-- command: (\w+) -->", page)))


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git would clone, with files that are not committed yet."""
    target = tmp_path_factory.mktemp("clone") / "convrewrite"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        source = ROOT / name
        if source.is_symlink() or source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name, follow_symlinks=False)
    return target


@pytest.fixture(scope="module")
def main_run(clone: Path) -> subprocess.CompletedProcess[str]:
    """The first of the two commands, in a fresh virtual environment."""
    return run(block("command", "main"), clone)


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return shell(command, folder, COLUMNS="80")


@pytest.mark.network
def test_the_main_command_converts_the_committed_model(clone: Path, main_run: subprocess.CompletedProcess[str]) -> None:
    assert main_run.returncode == 0, main_run.stderr
    assert (clone / "lenet5-any-size.onnx").is_file()
    assert "verified" in main_run.stderr


@pytest.mark.network
def test_the_main_command_prints_what_the_readme_shows(main_run: subprocess.CompletedProcess[str]) -> None:
    printed = [line.rstrip() for line in main_run.stderr.splitlines()]
    for line in block("output", "main").splitlines():
        assert line in printed


@pytest.mark.network
@pytest.mark.parametrize("name", ["separable", "inspect", "run"])
def test_it_prints_what_the_readme_shows(name: str, clone: Path, main_run: subprocess.CompletedProcess[str]) -> None:
    assert main_run.returncode == 0, main_run.stderr
    (clone / "digits-ci.toml").unlink(missing_ok=True)  # init does not write over what is there
    done = run(block("command", name), clone)
    printed = [line.rstrip() for line in (done.stderr + done.stdout).splitlines()]
    for line in block("output", name).splitlines():
        assert line in printed


@pytest.mark.network
@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("main", "tests")])
def test_every_other_command_runs(name: str, clone: Path, main_run: subprocess.CompletedProcess[str]) -> None:
    assert main_run.returncode == 0, main_run.stderr
    (clone / "digits-ci.toml").unlink(missing_ok=True)
    result = run(block("command", name), clone)
    assert result.returncode == 0, result.stderr


@pytest.mark.network
def test_every_window_of_the_canvas_is_compared(clone: Path, main_run: subprocess.CompletedProcess[str]) -> None:
    result = run(block("command", "verify"), clone)
    line = next(text for text in result.stdout.splitlines() if text.strip().startswith("every window of 256x256"))
    error, tolerance, _ = map(float, line.split()[-3:])
    assert error <= tolerance == 1e-5


def test_the_test_command_is_what_ci_runs() -> None:
    command = block("command", "tests")
    assert "pytest" in command
    assert "<!-- command: $1 -->" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_commands_are_two_lines_and_the_links_lead_somewhere() -> None:
    assert all(len(block("command", name).strip().splitlines()) == 1 for name in ("main", "tests"))
    here = README.replace("https://raw.githubusercontent.com/convrewrite/convrewrite/main/", "")
    for target in re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", here):
        assert (ROOT / target).exists(), f"README.md links to {target}"


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 140
    assert "goal" not in README, "goals are of the benchmarks"
