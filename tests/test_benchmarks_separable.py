"""The logic of the benchmarks of `separable`: what is planted, goals, tables. Nothing here asserts on a time."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

sys.path.append(str(Path(__file__).resolve().parent.parent))  # benchmarks/ is not installed

from benchmarks import planted, separable, trade_off
from convrewrite import models

ESTIMATE = {"median": 4.0, "low": 3.9, "high": 4.1, "count": 8}
CONTROL = {"median": 1.0, "low": 0.99, "high": 1.01, "count": 8}


def rank_of(weight: np.ndarray[Any, Any]) -> int:
    """Spatial rank, by numpy on the matrix written out by hand."""
    out, inputs, height, width = weight.shape
    matrix = weight.transpose(1, 2, 0, 3).reshape(inputs * height, out * width).astype(np.float64)
    values = np.linalg.svd(matrix, compute_uv=False)
    return int(np.count_nonzero(values > 1e-5 * values[0]))


def test_spatial_rank_is_planted() -> None:
    assert rank_of(planted.spatial(np.random.default_rng(0), 24, 16, (3, 5), 7)) == 7


def test_depthwise_and_decoupled_ranks_are_planted() -> None:
    rng = np.random.default_rng(0)
    for kernel in planted.depthwise(rng, 5, (7, 7))[:, 0]:
        assert np.linalg.matrix_rank(kernel, tol=1e-4 * np.linalg.norm(kernel)) == 1
    weight = planted.decoupled(rng, 12, 6, (5, 5), 2)
    for channel in range(6):
        matrix = weight[:, channel].reshape(12, 25)
        assert np.linalg.matrix_rank(matrix, tol=1e-4 * np.linalg.norm(matrix)) == 2


def test_half_the_break_even_rank() -> None:
    """64 channels, 3x3: 9 * 64 * 64 MACs break even at a rank of 96."""
    model = planted.with_spatial_rank(models.build("vgg16", width=1.0, size=32, classes=2), 0.5)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    second = [node for node in model.graph.node if node.op_type == "Conv"][1]
    assert rank_of(numpy_helper.to_array(weights[second.input[1]])) == 48


def test_a_trunk_ends_where_it_is_told() -> None:
    model = planted.trunk(models.build("vgg16", width=0.125, size=32, classes=2), "pool5")
    assert [value.name for value in model.graph.output] == ["pool5"]
    assert not any(node.op_type == "Gemm" for node in model.graph.node)
    onnx.checker.check_model(model)


@pytest.mark.parametrize("layer", separable.LAYERS, ids=lambda layer: layer.label)
def test_ranks_are_whole_blocks(layer: separable.Layer) -> None:
    assert layer.form != "spatial" or layer.rank % 16 == 0


def a_row(share: float, ratio: float = 4.0, goal: float | None = 0.8) -> dict[str, Any]:
    return {
        "layer": "layer",
        "made": "vertical-horizontal, rank 16",
        "map": 56,
        "ratio": ratio,
        "share": share,
        "goal": goal,
        "met": goal is None or share >= goal,
        "before_ms": 4.0,
        "after_ms": 1.0,
        "speedup": {**ESTIMATE, "median": share * ratio},
        "control": CONTROL,
        "verdict": "faster",
    }


def results(**more: Any) -> dict[str, Any]:
    machine = {"cpu": "A CPU", "cores": 2, "system": "Linux", "architecture": "x86_64"}
    versions = {"python": "3.11", "convrewrite": "0.1.0", "onnx": "1.23", "onnxruntime-gpu": "1.31"}
    data = {"date": "2026-01-31", "rehearsal": False, "machine": machine, "versions": versions, "layers": [a_row(0.9)]}
    return data | more


def test_goals_are_said_to_be_met_or_missed() -> None:
    assert "0.90" in separable.goals(results())[0]
    assert separable.goals(results())[0].endswith("met).")
    assert "missed" in separable.goals(results(layers=[a_row(0.9), a_row(0.7)]))[0]
    beyond = separable.goals(results(layers=[a_row(0.9), a_row(0.5, ratio=8.0, goal=None)]))
    assert "missed" not in "".join(beyond)
    planning = {"kernels": 13, "seconds": 4.2, "bytes": 1 << 20, "met": False}
    assert "missed" in separable.goals(results(planning=planning))[-1]
    slower = [{"model": "a", "tol": 0.3, "sites": 1, "of": 2, "verdict": "slower", "speedup": ESTIMATE}]
    assert "1 of 1 models slower" in separable.goals(results(accepted=slower))[-1]
    assert "missed" in separable.goals(results(accepted=slower))[-1]


def test_tables_have_a_row_per_layer_and_model() -> None:
    unchanged = {"model": "plain", "tol": 0.3, "sites": 0, "of": 2}
    text = separable.markdown(results(accepted=[unchanged]))
    assert text.count("| layer ") == 2
    assert "unchanged" in text
    assert "Measured on A CPU" in text


def test_the_trade_off_is_a_table_and_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        {"kind": kind, "tol": tol, "sites": 2, "of": 6, "macs": [100, 50], "correct": 440, "digits": 445}
        | {"milliseconds": [2.0, 1.0], "speedup": ESTIMATE, "control": CONTROL, "verdict": "faster"}
        for tol in (0.01, 0.1)
        for kind in trade_off.KINDS
    ]
    data = results(points=points, before=441)
    text = trade_off.markdown(data)
    assert "50%" in text
    assert "98.9%" in text
    path = tmp_path / "trade_off.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    monkeypatch.setattr(trade_off, "RESULTS", path)
    assert trade_off.main(["--draw", str(tmp_path / "picture.png")]) == 0
    assert (tmp_path / "picture.png").stat().st_size > 10_000
