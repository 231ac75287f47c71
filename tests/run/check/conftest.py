"""A project under version control, and `run` in it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from checked_projects import CONFIG, Run
from cli_models import call
from run_projects import git

from convrewrite import models


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one model, everything that a run makes committed."""
    folder = tmp_path / "project"
    (folder / "models").mkdir(parents=True)
    shutil.copy(models.trained_path("lenet5"), folder / "models")
    (folder / "convrewrite.toml").write_text(CONFIG, encoding="utf-8")
    monkeypatch.chdir(folder)
    git(folder, "init", "-q")
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """`convrewrite run` with more words: its exit code, and what it says."""

    def called(*words: str) -> tuple[int, str]:
        code = call(monkeypatch, "run", *words)
        return code, capfd.readouterr().err

    return called
