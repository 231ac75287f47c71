"""`convrewrite separable` through the command line: exit codes, files, pipes, the report, what it says."""

from __future__ import annotations

import subprocess
from pathlib import Path

import cli_models
import numpy as np
import pytest
from cli_models import COMMAND, save

from convrewrite import models, timing
from convrewrite.acceptance import Decision, Faster
from helpers import Net
from traded_nets import LENET, read, redundant, run, same


def test_exact_kernels_are_rewritten_and_verified(tmp_path: Path) -> None:
    source, target, told = save(redundant(), tmp_path / "in.onnx"), tmp_path / "out.onnx", tmp_path / "r.json"
    result = run("separable", source, target, "--report", told)
    assert result.returncode == 0, result.stderr
    assert same(source, target) < 2e-6
    data = read(told)
    assert (data["outcome"], data["verify"]["verdict"]) == ("rewritten", "verified")
    assert {site["equivalence"] for site in data["sites"]} == {"reassociated"}
    assert data["output"]["macs"] < data["input"]["macs"]
    assert not any(case["status"] == "stated" for case in data["verify"]["cases"])
    assert "fewer multiply-accumulates" in result.stderr


def test_an_accepted_error_is_stated_and_not_called_equal(tmp_path: Path) -> None:
    """`--tol 1e-4` on kernels with a tail of 1e-4: exit code 0, and what it cost."""
    source, target, told = save(redundant(0.9e-4), tmp_path / "in.onnx"), tmp_path / "out.onnx", tmp_path / "r.json"
    result = run("separable", source, target, "--tol", "1e-4", "--report", told)
    assert result.returncode == 0, result.stderr
    data = read(told)
    assert {site["equivalence"] for site in data["sites"]} == {"approximate"}
    for site in data["sites"]:
        assert 0.5e-4 < site["error"] <= 1e-4
    (stated,) = [case for case in data["verify"]["cases"] if case["status"] == "stated"]
    assert stated["name"] == "the original itself"
    assert stated["tolerance"] is None
    assert stated["error"] == pytest.approx(same(source, target), rel=10)
    assert 1e-6 < stated["error"] < 1e-2
    assert stated["top1_agreement"] is not None
    assert "the original itself" in result.stderr
    assert "outputs moved by" in result.stderr
    assert "equivalent" not in result.stderr


def test_pipes(tmp_path: Path) -> None:
    source = save(redundant(), tmp_path / "in.onnx")
    run("separable", source, tmp_path / "out.onnx", "--tol", "1e-4")
    with source.open("rb") as file:
        done = subprocess.run([*COMMAND, "separable", "--tol", "1e-4"], stdin=file, capture_output=True, check=True)
    assert done.stdout == (tmp_path / "out.onnx").read_bytes()
    fed = subprocess.run([*COMMAND, "separable", "-", "-"], input=done.stdout, capture_output=True, check=True)
    assert fed.stdout == done.stdout, "idempotent on its own output"


def test_nothing_to_do_copies_the_file_and_says_what_it_would_take(tmp_path: Path) -> None:
    target, told = tmp_path / "out.onnx", tmp_path / "r.json"
    result = run("separable", LENET, target, "--tol", "1e-4", "--report", told)
    assert result.returncode == 0
    assert target.read_bytes() == LENET.read_bytes()
    assert "would need" in result.stderr
    assert "half from --tol" in result.stderr
    data = read(told)
    assert data["outcome"] == "unchanged"
    needed = min(site["tol_pays"] for site in data["sites"])
    again = run("separable", LENET, target, "--tol", f"{1.01 * needed:.4f}", "--report", told)
    assert read(told)["outcome"] == "rewritten", again.stderr


def test_a_bad_trade_is_called_one(tmp_path: Path) -> None:
    result = run("separable", LENET, tmp_path / "out.onnx", "--tol", "0.6", "--accept", "always", "--only", "c1")
    assert result.returncode == 0, result.stderr
    assert "a bad trade" in result.stderr


def test_the_outputs_error_can_be_bounded(tmp_path: Path) -> None:
    source, target, told = save(redundant(0.05), tmp_path / "in.onnx"), tmp_path / "out.onnx", tmp_path / "r.json"
    words = ["separable", source, target, "--tol", "0.2", "--report", told]
    assert run(*words).returncode == 0
    free = [case["error"] for case in read(told)["verify"]["cases"] if case["status"] == "stated"]
    assert run(*words, "--max-output-error", "1").returncode == 0
    assert all(case["status"] == "passed" for case in read(told)["verify"]["cases"])
    result = run(*words, "--max-output-error", f"{free[0] / 3:.1e}", "--verbose")
    assert result.returncode == 0, result.stderr
    data = read(told)
    errors = (
        [case["error"] for case in data["verify"]["cases"] if case["name"].startswith("the original itself")]
        if data["verify"]
        else []
    )
    assert all(error <= free[0] / 3 for error in errors)
    tight = run(*words, "--max-output-error", "1e-9")
    assert tight.returncode == 0
    assert target.read_bytes() == source.read_bytes()
    assert "accept/over-budget" in tight.stderr
    assert "the bound is" in tight.stderr


def test_an_open_size_is_assumed_and_named(tmp_path: Path) -> None:
    source = save(redundant(size=("h", "w"), dense=True), tmp_path / "in.onnx")
    assert run("separable", source, tmp_path / "out.onnx").returncode == 0
    assert same(source, tmp_path / "out.onnx", (1, 16, 20, 31)) < 2e-6
    given = run("separable", source, tmp_path / "given.onnx", "--size", "20x24")
    assert given.returncode == 0
    assert f"{20 * 24 * 16 * 16 * 9:,}" not in given.stderr
    fast = run("separable", source, tmp_path / "fast.onnx", "--accept", "faster")
    assert fast.returncode == 2
    assert "--size" in fast.stderr


def test_a_size_that_does_not_fit(tmp_path: Path) -> None:
    source = save(redundant(), tmp_path / "in.onnx")
    result = run("separable", source, tmp_path / "out.onnx", "--size", "99x99")
    assert result.returncode == 2
    assert "--size" in result.stderr


@pytest.mark.parametrize("whole", [timing.FASTER, timing.NO_DIFFERENCE])
def test_the_whole_model_must_be_faster_too(whole: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers are timed for real elsewhere; here each is called faster."""
    from convrewrite.pipeline import trading

    monkeypatch.setattr(Faster, "_time", lambda self, a, b: Decision(timing.FASTER, 2.0, 1.9, 2.1, 2.0, 1.0))
    monkeypatch.setattr(trading._Run, "whole", lambda self, result, staged, target: whole == timing.FASTER)
    source, target, told = save(redundant(), tmp_path / "in.onnx"), tmp_path / "out.onnx", tmp_path / "r.json"
    assert cli_models.call(monkeypatch, "separable", source, target, "--accept", "faster", "--report", told) == 0
    data = read(told)
    if whole == timing.FASTER:
        assert data["outcome"] == "rewritten"
    else:
        assert target.read_bytes() == source.read_bytes()
        assert {site["reason"] for site in data["sites"]} == {"accept/whole-not-faster"}
        assert all(site["macs_after"] == site["macs_before"] for site in data["sites"])


@pytest.mark.slow
def test_timings_are_reused(tmp_path: Path) -> None:
    """A large planted layer, timed for real: rewritten, and decided the same from the file alone."""
    net = Net(1, 64, 40, 40, seed=1)
    column, row = net.rng.standard_normal((2, 64, 7)), net.rng.standard_normal((64, 2, 7))
    weight = np.einsum("rih,orw->oihw", column, row) / 60
    source = save(net.model(net.Relu(net.Conv("x", net.const(weight), pads=[3] * 4))), tmp_path / "in.onnx")
    timings, told = tmp_path / "timings.json", tmp_path / "r.json"
    words = ["separable", source, tmp_path / "out.onnx", "--accept", "faster", "--timings", timings, "--report", told]
    first = run(*words)
    assert first.returncode == 0, first.stderr
    assert read(told)["bench"]["verdict"] == "faster"
    kept, made = timings.read_bytes(), (tmp_path / "out.onnx").read_bytes()
    assert run(*words).returncode == 0
    assert timings.read_bytes() == kept
    assert (tmp_path / "out.onnx").read_bytes() == made
    assert read(told)["bench"] is None, "nothing was timed"


def test_real_inputs_fit_the_factors(tmp_path: Path) -> None:
    source, told = save(redundant(0.3), tmp_path / "in.onnx"), tmp_path / "r.json"
    rng = np.random.default_rng(0)
    smooth = np.cumsum(np.cumsum(rng.standard_normal((8, 16, 14, 13)), axis=2), axis=3) / 20
    np.savez(tmp_path / "d.npz", x=smooth.astype(np.float32))
    words = ["separable", source, tmp_path / "out.onnx", "--tol", "0.5", "--form", "spatial", "--report", told]
    words += ["--data", tmp_path / "d.npz"]
    errors = {}
    for fit in ("weights", "responses"):
        done = run(*words, "--fit", fit)
        assert done.returncode == 0, done.stderr
        data = read(told)
        assert all(site["error"] <= 0.5 for site in data["sites"])
        assert all((site["response_error"] is not None) == (fit == "responses") for site in data["sites"])
        errors[fit] = next(case["error"] for case in data["verify"]["cases"] if case["status"] == "stated")
    assert errors["responses"] < errors["weights"]


def test_data_with_nan(tmp_path: Path) -> None:
    source = save(redundant(0.1), tmp_path / "in.onnx")
    values = np.zeros((2, 16, 14, 13), np.float32)
    values[1, 3, 2, 1] = np.nan
    np.savez(tmp_path / "d.npz", x=values)
    result = run("separable", source, tmp_path / "out.onnx", "--tol", "0.3", "--data", tmp_path / "d.npz")
    assert result.returncode == 2
    assert "'x'" in result.stderr
    assert "sample 1" in result.stderr


def test_a_looser_tolerance_saves_no_less_under_the_same_bound(tmp_path: Path) -> None:
    macs = []
    for tol in ("0.003", "0.3"):
        words = ["--tol", tol, "--max-output-error", "1e-3", "--report", tmp_path / "r.json"]
        assert run("separable", models.trained_path("digits_vgg"), tmp_path / "out.onnx", *words).returncode == 0
        macs.append(read(tmp_path / "r.json")["output"]["macs"])
    assert macs[1] <= macs[0]


def test_the_tolerance_in_the_table_is_enough(tmp_path: Path) -> None:
    done = run("separable", LENET, tmp_path / "out.onnx", "--tol", "1e-4")
    row = next(line for line in done.stderr.splitlines() if "c3" in line)
    needed = row.split()[row.split().index("c3") + 1]
    run("separable", LENET, tmp_path / "out.onnx", "--tol", needed, "--report", tmp_path / "r.json")
    assert read(tmp_path / "r.json")["outcome"] == "rewritten"


def test_data_that_does_not_fit(tmp_path: Path) -> None:
    source = save(redundant(), tmp_path / "in.onnx")
    np.savez(tmp_path / "d.npz", other=np.zeros((1, 16, 14, 13), np.float32))
    result = run("separable", source, tmp_path / "out.onnx", "--data", tmp_path / "d.npz")
    assert result.returncode == 2
    assert "'x'" in result.stderr
