"""A page of each command, for the tests that read them and those that open them in a browser."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from cli_models import run

from convrewrite import models

LENET = str(models.lenet5_path())

NAMES = ("fcn", "separable", "groups", "inspect", "bench")


def make_pages(at: Path) -> Path:
    """Write them into a folder."""
    images, _ = models.digit_images()
    np.savez(at / "digits.npz", image=images[:16])
    vgg = str(models.trained_path("digits_vgg"))
    commands = (
        ["fcn", LENET, str(at / "any.onnx"), "--html", str(at / "fcn.html"), "--data", str(at / "digits.npz")],
        ["separable", vgg, str(at / "s.onnx"), "--tol", "0.3", "--html", str(at / "separable.html")],
        ["groups", vgg, str(at / "g.onnx"), "--tol", "0.9", "--into", "2", "--html", str(at / "groups.html")],
        ["inspect", LENET, "--html", str(at / "inspect.html")],
        ["bench", vgg, str(at / "s.onnx"), "--seconds", "1", "--html", str(at / "bench.html")],
    )
    for command in commands:
        done = run(*command, "--quiet")
        assert done.returncode == 0, done.stderr
    return at
