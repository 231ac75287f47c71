"""`convrewrite separable` through the command line: exit codes, files, pipes, the report, what it says."""

from __future__ import annotations

import itertools
import json
import subprocess
from pathlib import Path
from typing import Any

import cli_models
import jsonschema
import numpy as np
import onnx
import pytest
from cli_models import COMMAND, constant_output, save, snapshot, with_nan

from convrewrite import models, timing
from convrewrite.acceptance import Decision, Faster
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
