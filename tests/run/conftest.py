"""Folders that `run` works in."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from run_projects import CONFIG, VGG

from convrewrite import models


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A folder with the three trained models and a file for them."""
    (tmp_path / "models").mkdir()
    for name in models.TRAINED:
        shutil.copy(models.trained_path(name), tmp_path / "models")
    (tmp_path / "convrewrite.toml").write_text(VGG, encoding="utf-8")
    return tmp_path


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one trained model, and a neighbour that it must leave alone."""
    folder = tmp_path / "project"
    (folder / "models").mkdir(parents=True)
    shutil.copy(models.lenet5_path(), folder / "models")
    (folder / "convrewrite.toml").write_text(CONFIG, encoding="utf-8")
    (tmp_path / "neighbour.txt").write_text("theirs", encoding="utf-8")
    monkeypatch.chdir(folder)
    return folder
