"""`separable` where it refuses, fails, or is asked for what cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cli_models
import numpy as np
import onnx
import pytest
from cli_models import constant_output, save, snapshot, with_nan

from helpers import Net
from helpers import run as run_model
from traded_nets import read, redundant, run, same

# Refusals and failures ----------------------------------------------------------------------------------------------


def test_nan_weights_are_refused(tmp_path: Path) -> None:
    source = save(with_nan("Conv"), tmp_path / "in.onnx")
    before = snapshot(tmp_path)
    result = run("separable", source, tmp_path / "out.onnx")
    assert result.returncode == 3
    assert "NaN" in result.stderr
    assert "separable/nan-weight" in result.stderr
    assert snapshot(tmp_path) == before


def test_weights_from_an_input_are_refused(tmp_path: Path) -> None:
    net = Net(1, 4, 9, 9)
    weight = net.input("W", 8, 4, 3, 3)
    source = save(net.model(net.Conv("x", weight)), tmp_path / "in.onnx")
    result = run("separable", source, tmp_path / "out.onnx")
    assert result.returncode == 3
    assert "'W'" in result.stderr


def test_a_model_without_layers_is_copied(tmp_path: Path) -> None:
    net = Net(1, 16)
    source = save(net.model(net.Relu("x")), tmp_path / "in.onnx")
    result = run("separable", source, tmp_path / "out.onnx")
    assert result.returncode == 0
    assert "nothing to do: no linear layer and no convolution; copied" in result.stderr
    assert (tmp_path / "out.onnx").read_bytes() == source.read_bytes()


def low_rank_head() -> onnx.ModelProto:
    """Two fully connected layers of rank 4, and a transposed convolution ahead of them."""
    net = Net(2, 8, 3, 4)
    kernel = np.einsum("ih,ow->iohw", net.rng.standard_normal((8, 3)), net.rng.standard_normal((6, 3)))
    x = net.node("ConvTranspose", "x", net.const(kernel), outputs=["up"], name="up", strides=[2, 2])
    x = net.Flatten(net.Relu(x))
    wide = net.rng.standard_normal((378, 4)) @ net.rng.standard_normal((4, 32))
    x = net.node("Gemm", x, net.const(wide), net.const(net.rng.standard_normal(32)), outputs=["hidden"], name="hidden")
    last = net.rng.standard_normal((32, 4)) @ net.rng.standard_normal((4, 16))
    return net.model(net.node("MatMul", net.Relu(x), net.const(last), outputs=["scores"], name="scores"))


def test_a_head_of_low_rank_is_factored(tmp_path: Path) -> None:
    source, target, told = save(low_rank_head(), tmp_path / "in.onnx"), tmp_path / "out.onnx", tmp_path / "r.json"
    result = run("separable", source, target, "--report", told)
    assert result.returncode == 0, result.stderr
    report = read(told)
    assert [(s["op"], s["outcome"]) for s in report["sites"]] == [
        ("ConvTranspose", "rewritten"),
        ("Gemm", "rewritten"),
        ("MatMul", "rewritten"),
    ]
    assert [(s["form"], s["rank"]) for s in report["sites"][1:]] == [("channel", [4])] * 2
    assert report["verify"]["verdict"] == "verified"
    assert report["output"]["macs"] < report["input"]["macs"]
    again = run("separable", target, tmp_path / "again.onnx")
    assert again.returncode == 0
    assert (tmp_path / "again.onnx").read_bytes() == target.read_bytes()


@pytest.mark.parametrize(("words", "kept"), [(["--only", "hidden"], "Gemm"), (["--form", "spatial"], "ConvTranspose")])
def test_layers_are_chosen_by_name_and_form(
    words: list[str], kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, told = save(low_rank_head(), tmp_path / "in.onnx"), tmp_path / "r.json"
    assert cli_models.call(monkeypatch, "separable", source, tmp_path / "out.onnx", *words, "--report", told) == 0
    assert [s["op"] for s in read(told)["sites"] if s["outcome"] == "rewritten"] == [kept]


def test_a_vacuous_verification_fails(tmp_path: Path) -> None:
    model = constant_output()
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 4:
            low = np.outer(np.arange(1, 5), np.arange(1, 28)).reshape(4, 3, 3, 3).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(low, tensor.name))
    source = save(model, tmp_path / "in.onnx")
    result = run("separable", source, tmp_path / "out.onnx")
    assert result.returncode == 1
    assert "--data" in result.stderr
    assert not (tmp_path / "out.onnx").exists()
    assert run("separable", source, tmp_path / "out.onnx", "--no-verify").returncode == 0


@pytest.mark.parametrize(
    "words",
    [
        ("--tol", "-1"),
        ("--tol", "nan"),
        ("--tol", "much"),
        ("--form", "diagonal"),
        ("--accept", "nicer"),
        ("--fit", "nothing"),
        ("--max-output-error", "-1"),
        ("--only", "no-such-name"),
        ("--size", "large"),
        ("--timings", "."),
        ("--provider", "cuda"),
    ],
    ids=" ".join,
)
def test_usage(words: tuple[str, ...], tmp_path: Path) -> None:
    source = save(redundant(), tmp_path / "in.onnx")
    before = snapshot(tmp_path)
    result = run("separable", source, tmp_path / "out.onnx", *words)
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert snapshot(tmp_path) == before


def test_a_rewrite_in_place(tmp_path: Path) -> None:
    source = save(redundant(), tmp_path / "in.onnx")
    before = tmp_path / "before.onnx"
    before.write_bytes(source.read_bytes())
    assert run("separable", source, source).returncode == 0
    assert same(before, source) < 2e-6
    assert source.read_bytes() != before.read_bytes()


def test_the_command_of_a_failure_repeats_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A planted fault in the factors: not equal to the kernels that it claims, so nothing is written."""
    from convrewrite.passes.separable import emission as module
    from convrewrite.passes.separable.emission import Replacement

    honest = Replacement.reconstruction

    def lying(self: Replacement) -> Any:
        weight, shift = honest(self)
        return weight * np.float32(1.001), shift

    monkeypatch.setattr(module.Replacement, "reconstruction", lying)
    source, target = save(redundant(0.05), tmp_path / "in.onnx"), tmp_path / "out.onnx"
    words = ["--tol", "0.2", "--form", "spatial"]
    assert cli_models.call(monkeypatch, "separable", source, target, *words) == 1
    assert not target.exists()
    text = capsys.readouterr().err
    assert "not equivalent" in text
    assert "convrewrite separable" in text
    assert "--tol 0.2 --form spatial" in text


def test_the_error_that_is_stated_is_the_worst_over_all_samples(tmp_path: Path) -> None:
    """Of three samples, the one that is furthest off: by numpy on what ONNX Runtime gives."""
    source, target, told = save(redundant(0.1), tmp_path / "in.onnx"), tmp_path / "out.onnx", tmp_path / "r.json"
    rng = np.random.default_rng(4)
    samples = rng.standard_normal((3, 16, 14, 13)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=samples)
    words = ["--tol", "0.3", "--data", tmp_path / "d.npz", "--fit", "weights", "--report", told]
    assert run("separable", source, target, *words).returncode == 0
    (stated,) = [case for case in read(told)["verify"]["cases"] if case["status"] == "stated"]
    errors = []
    for sample in samples:
        want, got = (next(iter(run_model(onnx.load(p), {"x": sample[None]}).values())) for p in (source, target))
        errors.append(float(np.abs(got - want).max() / np.abs(want).max()))
    assert stated["error"] == pytest.approx(max(errors), rel=1e-3)
    assert max(errors) > 1.02 * errors[0] or max(errors) == errors[0]
