"""A message offers only what the reader has: options of that very command, and sizes that the model may run at."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_models import run
from onnx import TensorProto, helper, numpy_helper
from typer.main import get_command

import convrewrite as cr
from convrewrite.cli.app import app
from convrewrite.cli.words import FLAGS
from convrewrite.pipeline.steps import without_writing
from convrewrite.text import told
from convrewrite.verification.room import UNVERIFIED

COMMANDS = get_command(app).commands  # type: ignore[attr-defined]


def options(command: str) -> set[str]:
    return {word for param in COMMANDS[command].params for word in (*param.opts, *param.secondary_opts)}


def only_18(path: Path) -> Path:
    """An open input whose head fits 18x18 alone; its convolution has rank one."""
    rng = np.random.default_rng(0)
    factors = [rng.standard_normal(extent) for extent in (8, 3, 3, 3)]
    weights = {
        "w": np.einsum("o,i,h,w->oihw", *factors).astype(np.float32),
        "b": rng.standard_normal((5, 8 * 16 * 16)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="c"),
        helper.make_node("Flatten", ["c"], ["f"], name="f"),
        helper.make_node("Gemm", ["f", "b"], ["y"], name="g", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "only18",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", "W"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


@pytest.mark.parametrize(
    "words",
    [
        ("separable", "IN", "OUT", "--tol", "0.5"),
        ("separable", "IN", "OUT", "--tol", "0.5", "--max-output-error", "0.9"),
        ("separable", "IN", "OUT", "--accept", "faster"),
        ("fc-to-conv", "IN", "OUT"),
        ("transform", "separable", "IN", "OUT", "--set", "tol=0.5"),
        ("transform", "fcn", "IN", "OUT"),
        ("fcn", "IN", "OUT"),
        ("verify", "IN", "IN"),
        ("bench", "IN", "IN"),
    ],
    ids=" ".join,
)
def test_an_open_input_names_options_that_the_command_has(tmp_path: Path, words: tuple[str, ...]) -> None:
    source, target = only_18(tmp_path / "in.onnx"), tmp_path / "out.onnx"
    done = run(*(str({"IN": source, "OUT": target}.get(word, word)) for word in words))
    told = done.stderr.decode()
    assert done.returncode in (2, 3), told
    assert not target.exists()
    named = set(re.findall(r"--[a-z][a-z-]+", told))
    assert named, told
    assert named <= options(words[0]), told
    remedy = told.partition(";")[2]
    assert "224" not in remedy, f"it cannot run at that size: {told}"


def test_the_size_that_the_message_asks_for_does(tmp_path: Path) -> None:
    source, target = only_18(tmp_path / "in.onnx"), tmp_path / "out.onnx"
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(1).standard_normal((4, 3, 18, 18)).astype(np.float32))
    for how in (("--size", "18x18"), ("--data", tmp_path / "d.npz")):
        assert run("fc-to-conv", source, target, *how).returncode == 0
        assert run("verify", source, target, *how).returncode == 0


def test_an_open_model_goes_to_another_opset_without_a_size(tmp_path: Path) -> None:
    """The remedy was --size, which the command did not hand on, and --shape, which it does not have."""
    text = '<ir_version: 7, opset_import: ["": 13]> net (float[N,3,H,W] x) => (float[N,3,H,W] y) { y = Neg (x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "in.onnx")
    done = run("fcn", tmp_path / "in.onnx", tmp_path / "out.onnx", "--opset", "15")
    assert done.returncode == 0, done.stderr
    assert onnx.load(tmp_path / "out.onnx").opset_import[0].version == 15


def test_a_command_that_only_compares_offers_no_writing(tmp_path: Path) -> None:
    error = cr.UsageError("too large", remedy=f"use a machine with more memory{UNVERIFIED}")
    assert "--no-verify" not in options("verify")
    without_writing(error)
    assert str(error) == "too large; use a machine with more memory"


def test_every_option_that_a_reason_names_is_one() -> None:
    from convrewrite import pipeline, tiling

    every = set().union(*map(options, COMMANDS))
    remedies = [remedy for _, _, remedy in pipeline.reasons()] + [reason.remedy for reason in tiling.REASONS.values()]
    assert len(remedies) > 40
    for remedy in told(remedies, FLAGS):
        assert set(re.findall(r"--[a-z][a-z-]+", remedy)) <= every, remedy


def test_python_speaks_of_parameters(tmp_path: Path) -> None:
    source = only_18(tmp_path / "in.onnx")
    for call in (lambda: cr.separable(source, tol=0.5), lambda: cr.fcn(source), lambda: cr.verify(source, source)):
        with pytest.raises(cr.ConvrewriteError) as caught:
            call()
        assert "--" not in str(caught.value)
