"""A repository with one model, and `run` in it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cli_models import call
from compared_projects import CONFIG, Run
from run_projects import git

from convrewrite import models


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
