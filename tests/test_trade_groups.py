"""`groups` as a command: found, undone, declined, and asked for what is not there."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_models import save

from convrewrite import models
from helpers import Net
from helpers import run as run_model
from traded_nets import read, run

# groups -------------------------------------------------------------------------------------------------------------


def blocks(*, dead: bool = False) -> onnx.ModelProto:
    """Two 3x3 convolutions in two blocks under permutations, between dense 1x1 ones; integer weights."""
    net = Net(1, 3, 12, 11, seed=6)
    labels = [net.rng.permutation(np.repeat([0, 1], 16)) for _ in range(3)]
    x = net.Relu(net.conv("x", 32, 1, 1))
    for name, (ins, outs) in zip(("one", "two"), itertools.pairwise(labels), strict=True):
        weight = net.rng.integers(1, 3, (32, 32, 3, 3)) * (outs[:, None] == ins[None, :])[:, :, None, None]
        if dead and name == "one":
            weight[5] = 0
        x = net.Relu(net.node("Conv", x, net.const(weight), outputs=[name], name=name))
    return net.model(net.Flatten(net.GlobalMaxPool(net.conv(x, 4, 1, 1))))


def test_groups_are_found_and_no_gather_is_left(tmp_path: Path) -> None:
    source, target, told = save(blocks(), tmp_path / "in.onnx"), tmp_path / "out.onnx", tmp_path / "r.json"
    result = run("groups", source, target, "--report", told)
    assert result.returncode == 0, result.stderr
    data = read(told)
    rewritten = [site for site in data["sites"] if site["outcome"] == "rewritten"]
    assert [site["anchor"] for site in rewritten] == ["one", "two"]
    assert all(2 * site["macs_after"] == site["macs_before"] for site in rewritten)
    made = onnx.load(target)
    assert not any(node.op_type == "Gather" for node in made.graph.node)
    feeds = {"x": np.random.default_rng(0).integers(-3, 4, (1, 3, 12, 11)).astype(np.float32)}
    want, got = (next(iter(run_model(onnx.load(p), feeds).values())) for p in (source, target))
    np.testing.assert_array_equal(got, want)
    assert run("groups", target, tmp_path / "again.onnx").returncode == 0
    assert (tmp_path / "again.onnx").read_bytes() == target.read_bytes()


def test_dead_channels_are_left_out(tmp_path: Path) -> None:
    source, target = save(blocks(dead=True), tmp_path / "in.onnx"), tmp_path / "out.onnx"
    assert run("groups", source, target).returncode == 0
    feeds = {"x": np.random.default_rng(0).integers(-3, 4, (1, 3, 12, 11)).astype(np.float32)}
    want, got = (next(iter(run_model(onnx.load(p), feeds).values())) for p in (source, target))
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * float(np.abs(want).max()))


def test_groups_expand_and_come_back(tmp_path: Path) -> None:
    source, dense, back = save(blocks(), tmp_path / "in.onnx"), tmp_path / "dense.onnx", tmp_path / "back.onnx"
    run("groups", source, tmp_path / "grouped.onnx")
    result = run("groups", tmp_path / "grouped.onnx", dense, "--expand", "dense")
    assert result.returncode == 0, result.stderr
    assert "usually slower" in result.stderr
    assert run("groups", dense, back).returncode == 0
    sizes = [sum(np.prod(t.dims) for t in onnx.load(p).graph.initializer) for p in (tmp_path / "grouped.onnx", back)]
    assert sizes[0] == sizes[1]


def test_groups_that_are_not_there_are_declined_with_what_they_would_take(tmp_path: Path) -> None:
    target, told = tmp_path / "out.onnx", tmp_path / "r.json"
    result = run("groups", models.trained_path("digits_vgg"), target, "--report", told)
    assert result.returncode == 0
    assert "would need" in result.stderr
    assert target.read_bytes() == models.trained_path("digits_vgg").read_bytes()
    needed = min(site["tol_pays"] for site in read(told)["sites"] if site["tol_pays"] is not None)
    words = ["--tol", f"{1.01 * needed:.4f}", "--report", told]
    assert run("groups", models.trained_path("digits_vgg"), target, *words).returncode == 0
    approximate = [site for site in read(told)["sites"] if site["equivalence"] == "approximate"]
    assert approximate
    assert all(site["error"] <= 1.01 * needed for site in approximate)


def test_groups_that_cannot_be_asked_for_are_explained(tmp_path: Path) -> None:
    result = run("groups", save(blocks(), tmp_path / "in.onnx"), tmp_path / "out.onnx", "--into", "7")
    assert result.returncode == 0
    assert "cannot be divided by the number of groups" in result.stderr


WRONG = [("--into", "1"), ("--expand", "sideways"), ("--tol", "-1"), ("--expand", "dense", "--tol", "0.1")]


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
def test_usage_of_groups(words: tuple[str, ...], tmp_path: Path) -> None:
    source = save(blocks(), tmp_path / "in.onnx")
    assert run("groups", source, tmp_path / "out.onnx", *words).returncode == 2
