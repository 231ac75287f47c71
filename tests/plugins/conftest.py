"""A model, and a package with a pass."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from plugin_packages import TOY, package

from convrewrite import models


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model, and a package that brings the pass `scale`."""
    shutil.copy(models.lenet5_path(), tmp_path / "m.onnx")
    package(tmp_path / "site", "toy", {"scale": "Scale"}, TOY)
    return tmp_path
