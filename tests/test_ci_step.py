"""The GitHub action and the pre-commit hook, as far as a machine without GitHub can run them.

The action's shell steps are run as they stand in action.yml, with the expressions that GitHub would fill in.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest
import yaml
from pre_commit.clientlib import load_manifest

from convrewrite import models

ROOT = Path(__file__).resolve().parent.parent
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())

CONFIG = """\
models = ["*.onnx"]
output = "out/{name}.onnx"
[[steps]]
pass = "fcn"
[gates]
max_output_error = MAX
min_speedup = 0.01
bench_seconds = 0.5
[reports]
json = "report.json"
html = "report.html"
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment of its own that sees the packages of this one, for the action to install into."""
    at = tmp_path_factory.mktemp("env")
    venv.create(at, system_site_packages=True, with_pip=False, symlinks=True)
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    site = next(at.glob("lib/python*/site-packages"))
    (site / "outer.pth").write_text(f"{packages}\n")
    left_out = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "tests", "benchmarks", "docs")
    shutil.copytree(ROOT, at / "action", symlinks=True, ignore=left_out)  # pip builds in the folder that it is given
    return at / "bin"


def run_steps(folder: Path, python: Path, **inputs: str) -> tuple[int, dict[str, str], str]:
    """Exit code of the first step that fails, the action's outputs, and the page of the job."""
    given = {name: str(spec["default"]) for name, spec in ACTION["inputs"].items()} | inputs
    output, page = folder.parent / "output", folder.parent / "summary"
    outputs: dict[str, str] = {}
    code = 0
    for step in ACTION["runs"]["steps"]:
        if "run" not in step:
            assert step["uses"].startswith("actions/setup-python@")
            continue
        output.write_text("")
        filled = {name: _filled(value, given) for name, value in step.get("env", {}).items()}
        environment = {
            **os.environ,
            **filled,
            "PATH": f"{python}{os.pathsep}{os.environ['PATH']}",
            "GITHUB_ACTION_PATH": str(python.parent / "action"),
            "GITHUB_OUTPUT": str(output),
            "GITHUB_STEP_SUMMARY": str(page),
            "PIP_NO_DEPS": "1",
            "PIP_NO_BUILD_ISOLATION": "0",  # pip reads it the other way round: this means without isolation
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        words = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        outputs |= {f"steps.{step['id']}.outputs.{k}": v for k, _, v in (x.partition("=") for x in _lines(output))}
        code = done.returncode
        if code:
            print(done.stdout, done.stderr)
            break
    told = {name: outputs.get(spec["value"].strip("${} "), "") for name, spec in ACTION["outputs"].items()}
    return code, told, page.read_text() if page.exists() else ""


def _filled(value: str, inputs: dict[str, str]) -> str:
    return re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda found: inputs[found[1]], value)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A folder with a model and a configuration."""
    folder = tmp_path / "repository"
    folder.mkdir()
    shutil.copy(models.lenet5_path(), folder / "lenet5.onnx")
    (folder / "convrewrite.toml").write_text(CONFIG.replace("MAX", "1e-3"))
    return folder


def test_the_action_says_what_it_takes_and_gives() -> None:
    assert set(ACTION["inputs"]) == {"config", "python-version", "extras", "arguments"}
    assert set(ACTION["outputs"]) == {"report", "html", "speedup"}
    assert ACTION["runs"]["using"] == "composite"
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step.get("run", ""), "an input inside of a script could run as one"


@pytest.mark.slow
def test_the_action_optimizes_and_tells(repository: Path, python: Path) -> None:
    code, outputs, page = run_steps(repository, python)
    assert code == 0
    assert (repository / "out" / "lenet5.onnx").is_file()
    assert Path(outputs["report"]).samefile(repository / "report.json")
    assert Path(outputs["html"]).samefile(repository / "report.html")
    assert float(outputs["speedup"]) > 0
    assert "| lenet5.onnx | rewritten |" in page


@pytest.mark.slow
def test_the_action_fails_where_a_gate_is_missed(repository: Path, python: Path) -> None:
    other = repository / "strict.toml"
    other.write_text(CONFIG.replace("MAX", "0.0").replace('"fcn"', '"separable"\ntol = 0.2'))
    code, outputs, page = run_steps(repository, python, config="strict.toml")
    assert code == 1
    assert not (repository / "out" / "lenet5.onnx").exists()
    assert outputs["report"]
    assert "gate max_output_error" in page


@pytest.mark.slow
def test_the_action_passes_arguments_on(repository: Path, python: Path) -> None:
    code, _, page = run_steps(repository, python, arguments="--check --jobs 1")
    assert code == 1
    assert "would be rewritten" in page
    assert not (repository / "out").exists()


def test_the_hook_is_a_valid_manifest_and_its_entry_runs(repository: Path) -> None:
    (hook,) = load_manifest(str(ROOT / ".pre-commit-hooks.yaml"))
    assert hook["id"] == "convrewrite"
    for name in ("a/b.onnx", "convrewrite.toml", "convrewrite.lock", "data/x.npz"):
        assert re.search(hook["files"], name)
    assert not re.search(hook["files"], "src/model.py")
    words = [sys.executable, "-m", *hook["entry"].split()]
    plain = (repository / "convrewrite.toml").read_text().replace("min_speedup = 0.01\n", "")
    (repository / "convrewrite.toml").write_text(plain)
    assert subprocess.run(words, cwd=repository, check=False, capture_output=True).returncode == 1
    made = subprocess.run([*words[:-1]], cwd=repository, check=False, capture_output=True)
    assert made.returncode == 0, made.stderr
    assert subprocess.run(words, cwd=repository, check=False, capture_output=True).returncode == 0
