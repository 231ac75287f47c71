"""What the tests of `run` share: files of settings, the command, what it has made, and git."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import cli_models
import pytest

VGG = """
models = ["models/*.onnx"]
[[steps]]
pass = "separable"
tol = 0.01
[gates]
max_output_error = 0.05
[reports]
json = "report.json"
junit = "junit.xml"
markdown = "report.md"
"""


STEPS = '[[steps]]\npass = "separable"\ntol = 0.01\n'


CONFIG = 'models = ["models/*.onnx"]\n' + STEPS


TWO_STEPS = """\
models = ["models/*.onnx"]
[[steps]]
pass = "groups"
[[steps]]
pass = "separable"
tol = 0.6
[reports]
json = "report.json"
"""


def call(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    done = cli_models.run(*words, cwd=folder, env=environment)
    return subprocess.CompletedProcess(words, done.returncode, done.stdout.decode(), done.stderr.decode())


def told(folder: Path) -> dict[str, Any]:
    data = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert data["schema"] == "convrewrite.run/1"
    return {Path(entry["model"]).stem: entry for entry in data["models"]}


def outputs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "optimized").glob("*"))}


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *who, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def run_in_process(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = cli_models.call(monkeypatch, *words)
    return code, capfd.readouterr().err
