"""What the tests of `run --check` share: settings, and what happens to a project between two runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from run_projects import TWO_STEPS, git

CONFIG = TWO_STEPS + 'html = "report.html"\n'


OUTPUT = Path("optimized/lenet5.onnx")


Run = Callable[..., tuple[int, str]]


def committed(project: Path, run: Run) -> None:
    assert run()[0] == 0
    git(project, "add", "-A")
    git(project, "commit", "-q", "-m", "all")


def changed_step(project: Path) -> None:
    text = CONFIG.replace("tol = 0.6", "tol = 0.3")
    (project / "convrewrite.toml").write_text(text, encoding="utf-8")


def step_removed(project: Path) -> None:
    text = CONFIG.replace('[[steps]]\npass = "separable"\ntol = 0.6\n', "")
    (project / "convrewrite.toml").write_text(text, encoding="utf-8")


def scaled(path: Path, factor: float) -> None:
    """The same network with its largest tensor of weights times a factor."""
    model = onnx.load(path)
    tensor = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    values = (numpy_helper.to_array(tensor).astype(np.float64) * factor).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    path.write_bytes(model.SerializeToString())


def changed_model(project: Path) -> None:
    scaled(project / "models" / "lenet5.onnx", 1.01)
