"""What the tests of `apply` share: a model, an image, and the command."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from apply_images import LENET, SIZE, fork_workers
from cli_models import call

import convrewrite as cr


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """LeNet-5 for images of any size, for `apply`."""
    fork_workers()
    path = tmp_path_factory.mktemp("models") / "any.onnx"
    cr.fcn(LENET, verify=False).save(path)
    return str(path)


@pytest.fixture(scope="session")
def pixels() -> np.ndarray:
    """An image of 8 bits."""
    return np.random.default_rng(0).integers(0, 256, SIZE).astype(np.uint8)


@pytest.fixture(scope="session")
def whole(model: str, pixels: np.ndarray) -> np.ndarray:
    """One pass over the whole image."""
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": (pixels / np.float32(255))[None, None].astype(np.float32)})[0][0]


@pytest.fixture
def apply(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """`convrewrite apply` in this process, with the test's folder as the current one: exit code and standard error."""
    monkeypatch.chdir(tmp_path)

    def applied(*words: str) -> subprocess.CompletedProcess[bytes]:
        capfd.readouterr()
        code = call(monkeypatch, "apply", *words)
        return subprocess.CompletedProcess(words, code, b"", capfd.readouterr().err.encode())

    return applied
