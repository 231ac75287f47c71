"""`fcn --dense` and `--upsample`, and the passes behind them, on models that are unlike those of the other tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from cli_models import run
from onnx import TensorProto

import convrewrite as cr
from convrewrite import models
from nets import Net

LENET = str(models.lenet5_path())


def evaluate(path: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, feeds)


def scores(net: Net, classes: int = 5) -> str:
    x = net.node("Conv", "x", net.const(net.rng.standard_normal((4, 2, 5, 5)) / 7), strides=[2, 2])
    return str(net.Gemm(net.Flatten(net.Relu(x)), net.const(net.rng.standard_normal((4 * 36, classes)) / 9)))


@pytest.mark.parametrize("op", ["LogSoftmax", "Softmax", "Sigmoid"])
def test_each_output_has_its_own_final_operator_behind(tmp_path: Path, op: str) -> None:
    """Only what a Softmax or LogSoftmax gives is moved by --softmax last; against numpy, pixel by pixel of one row."""
    net = Net(1, 2, 16, 16)
    logits = scores(net)
    second = net.node(op, scores(net, 3), **({} if op == "Sigmoid" else {"axis": 1}))
    onnx.save(net.model(net.Softmax(logits, axis=1), second), tmp_path / "m.onnx")
    done = run("fcn", "m.onnx", "o.onnx", "--upsample", "bilinear", "--softmax", "last", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    image = np.random.default_rng(0).random((1, 2, 16, 18), np.float32)
    pixels = evaluate(tmp_path / "o.onnx", {"x": image})[1]
    left, right = (evaluate(tmp_path / "m.onnx", {"x": image[..., i : i + 16]})[1][0] for i in (0, 2))
    share = 0.25  # pixel 8 lies a quarter of the way from the centre of the first window, 7.5, to the second, 9.5
    if op == "Sigmoid":
        want = left * (1 - share) + right * share
    else:
        ahead = [np.log(v) if op == "Softmax" else v for v in (left, right)]
        mixed = ahead[0] * (1 - share) + ahead[1] * share
        want = np.exp(mixed) / np.exp(mixed).sum()
        want = want if op == "Softmax" else np.log(want)
    np.testing.assert_allclose(pixels[0, :, 8, 8], want, atol=1e-5)


@pytest.mark.parametrize("opset", [7, 9, 10, 13])
def test_a_product_with_open_rows_in_an_old_operator_set(tmp_path: Path, opset: int) -> None:
    net = Net("b", "t", 16, opset=opset)
    onnx.save(net.model(net.MatMul("x", net.ints(16, 4))), tmp_path / "m.onnx")
    cr.transform(tmp_path / "m.onnx", "fc-to-conv", size=(6,)).save(tmp_path / "o.onnx")
    x = np.random.default_rng(0).integers(-3, 4, (2, 5, 16)).astype(np.float32)
    np.testing.assert_array_equal(*(evaluate(tmp_path / name, {"x": x})[0] for name in ("m.onnx", "o.onnx")))


def test_bfloat16_is_refused(tmp_path: Path) -> None:
    net = Net(1, 2, 4, 4, opset=17)
    flat = net.Cast(net.Flatten("x"), to=TensorProto.BFLOAT16)
    weight = onnx.helper.make_tensor("w", TensorProto.BFLOAT16, [32, 3], np.ones(96).tolist())
    net.initializers["w"] = weight
    model = net.model(net.Cast(net.MatMul(flat, "w"), to=TensorProto.FLOAT), shapes={})
    onnx.save(model, tmp_path / "m.onnx")
    done = run("fcn", "m.onnx", "o.onnx", cwd=tmp_path)
    assert done.returncode == 3
    assert b"bfloat16" in done.stderr


@pytest.mark.parametrize("name", ["dense", "upsample"])
def test_steps_of_fcn_are_no_passes_of_transform(tmp_path: Path, name: str) -> None:
    done = run("transform", name, LENET, "o.onnx", cwd=tmp_path)
    assert done.returncode == 2
    assert b"is a step of fcn" in done.stderr


def test_a_converted_model_and_what_is_left_to_do(tmp_path: Path) -> None:
    """Its batch is opened, its operator set raised; a size is not applied to it, and that is said."""
    assert run("fcn", LENET, "c.onnx", cwd=tmp_path).returncode == 0
    done = run("fcn", "c.onnx", "b.onnx", "--dynamic-batch", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert evaluate(tmp_path / "b.onnx", {"image": np.zeros((3, 1, 32, 36), np.float32)})[0].shape == (3, 11, 1, 2)
    done = run("fcn", "c.onnx", "d.onnx", "--dense", "--size", "64x64", cwd=tmp_path)
    assert done.returncode == 2
    assert b"--size fixes the input of what fcn converts" in done.stderr
    done = run("fcn", "c.onnx", "e.onnx", "--opset", "19", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert onnx.load(tmp_path / "e.onnx").opset_import[0].version == 19
