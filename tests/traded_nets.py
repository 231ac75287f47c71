"""Nets that a pass can trade something for, and how the command is run on them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import cli_models
import jsonschema
import numpy as np
import onnx

from convrewrite import models
from convrewrite.pipeline import report
from helpers import Net
from helpers import run as run_model

SCHEMA = json.loads(report.SCHEMA_FILE.read_text(encoding="utf-8"))


LENET = models.lenet5_path()


def redundant(
    noise: float = 0.0, *, size: tuple[int | str, int | str] = (14, 13), dense: bool = False
) -> onnx.ModelProto:
    """Two convolutions of spatial rank two with a BatchNormalization between them, and class scores."""
    net = Net(1, 16, *size, seed=3)
    x = "x"
    for name in ("one", "two"):
        column, row = net.rng.standard_normal((2, 16, 3)), net.rng.standard_normal((24 if name == "two" else 16, 2, 3))
        weight = np.einsum("rih,orw->oihw", column, row)
        weight += noise * np.linalg.norm(weight) * _unit(net.rng, weight.shape)
        x = net.node("Conv", x, net.const(weight / 20), outputs=[name], name=name, pads=[1, 1, 1, 1])
        if name == "one":
            x = net.BatchNormalization(x, *(net.const(net.rng.uniform(0.5, 2, 16)) for _ in range(4)))
        x = net.Relu(x)
    return net.model(x if dense else net.Flatten(net.GlobalAveragePool(x)))


def _unit(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    values = rng.standard_normal(shape)
    return values / np.linalg.norm(values)


def run(*words: object) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, its text decoded."""
    done = cli_models.run(*map(str, words))
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout, done.stderr.decode())  # type: ignore[arg-type]


def read(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(SCHEMA).validate(data)
    return data


def same(a: Path, b: Path, shape: tuple[int, ...] = (1, 16, 14, 13)) -> float:
    """Largest difference of the outputs in ONNX Runtime, relative to the largest output."""
    feeds = {"x": np.random.default_rng(9).standard_normal(shape).astype(np.float32)}
    want, got = (next(iter(run_model(onnx.load(path), feeds).values())) for path in (a, b))
    return float(np.abs(got - want).max() / np.abs(want).max())
