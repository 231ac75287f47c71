"""`fcn --dynamic-batch` and `transform open-batch`: from file to file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from cli_models import run

import convrewrite as cr
from convrewrite import model_io, models
from convrewrite.engine.rewrite import run_pass
from convrewrite.passes.open_batch import OpenBatch
from exported import NETWORKS
from nets import Net


def evaluate(path: Path, image: np.ndarray) -> list[np.ndarray]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: image})


def cases(report: Path) -> list[str]:
    return [case["name"] for case in json.loads(report.read_text())["verify"]["cases"]]


def test_a_baked_batch(tmp_path: Path) -> None:
    """CNTK's Reshape says [1, 128]."""
    source = tmp_path / "m.onnx"
    onnx.save(NETWORKS["cntk-matmul"].model(), source)
    done = run("fcn", "m.onnx", "o.onnx", "--dynamic-batch", "--report", "r.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "two batches at once" in cases(tmp_path / "r.json")
    image = np.random.default_rng(0).random((5, 1, 28, 28), np.float32) * 255
    (got,) = evaluate(tmp_path / "o.onnx", image)
    want = np.concatenate([evaluate(source, image[i : i + 1])[0] for i in range(5)])
    np.testing.assert_allclose(got.reshape(want.shape), want, rtol=1e-4, atol=1e-4 * float(np.abs(want).max()))
    assert evaluate(tmp_path / "o.onnx", np.zeros((2, 1, 40, 34), np.float32))[0].shape[0] == 2
    again = run("verify", "m.onnx", "o.onnx", "--report", "v.json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "two batches at once" in cases(tmp_path / "v.json")


def test_a_detector_that_fcn_refuses(tmp_path: Path) -> None:
    """Its outputs list positions, each image its own: `transform` opens the batch all the same."""
    source = tmp_path / "m.onnx"
    onnx.save(NETWORKS["pytorch-detector"].model(), source)
    done = run("transform", "open-batch", "m.onnx", "o.onnx", "--report", "r.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "two batches at once" in cases(tmp_path / "r.json")
    image = np.random.default_rng(0).random((3, 3, 24, 32), np.float32)
    together = evaluate(tmp_path / "o.onnx", image)
    for i in range(3):
        for got, want in zip(together, evaluate(source, image[i : i + 1]), strict=True):
            np.testing.assert_allclose(got[i : i + 1], want, atol=1e-5)


def test_with_everything_else(tmp_path: Path) -> None:
    """Dense, to pixels, the size fixed: four images at once are the classifier on each of their crops."""
    words = ["--dynamic-batch", "--dense", "--upsample", "nearest", "--size", "48x40", "--opset", "17"]
    done = run("fcn", str(models.lenet5_path()), "o.onnx", *words, "--report", "r.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {site["pass"] for site in json.loads((tmp_path / "r.json").read_text())["sites"]} == {
        "open-batch",
        "fcn",
        "dense",
        "upsample",
    }
    image = np.random.default_rng(0).random((4, 1, 48, 40), np.float32)
    (pixels,) = evaluate(tmp_path / "o.onnx", image)
    assert pixels.shape == (4, 11, 48, 40)
    crop = image[:, :, 7:39, 5:37]
    want = np.concatenate([evaluate(models.lenet5_path(), crop[i : i + 1])[0] for i in range(4)])
    np.testing.assert_allclose(pixels[:, :, 7 + 16, 5 + 16], want, atol=1e-4)


def test_a_model_that_is_convolutional_already(tmp_path: Path) -> None:
    """Nothing is left for `fcn` but the batch."""
    net = Net(1, 3, 20, 24)
    y = net.conv("x", 4, 3, 3, strides=[2, 2], pads=[1, 1, 1, 1])
    y = net.Resize(y, "", "", net.const([1, 4, 20, 24]), mode="nearest")
    onnx.save(net.model(net.conv(y, 2, 3, 3)), tmp_path / "m.onnx")
    plain = run("fcn", "m.onnx", "copy.onnx", cwd=tmp_path)
    assert b"nothing to do" in plain.stderr
    done = run("fcn", "m.onnx", "o.onnx", "--dynamic-batch", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert b"any number of images" in done.stderr
    image = np.random.default_rng(0).standard_normal((2, 3, 20, 24)).astype(np.float32)
    want = np.concatenate([evaluate(tmp_path / "m.onnx", image[i : i + 1])[0] for i in range(2)])
    np.testing.assert_allclose(evaluate(tmp_path / "o.onnx", image)[0], want, atol=1e-4)
    again = run("fcn", "o.onnx", "p.onnx", "--dynamic-batch", cwd=tmp_path)
    assert (again.returncode, b"its batch is open already" in again.stderr) == (0, True)


def test_a_batch_that_cannot_be_opened(tmp_path: Path) -> None:
    net = Net(2, 3, 20, 24)
    onnx.save(net.model(net.reduce("ReduceMax", net.conv("x", 4, 3, 3), [0])), tmp_path / "m.onnx")
    done = run("fcn", "m.onnx", "o.onnx", "--dynamic-batch", cwd=tmp_path)
    assert done.returncode == 3
    assert b"[open-batch/mixed]" in done.stderr
    assert not (tmp_path / "o.onnx").exists()


def test_a_model_that_mixes_its_images_is_found(tmp_path: Path) -> None:
    """Its shapes are right and one image gives the same: only two at once show it."""
    nets = Net(1, 3, 8, 8), Net("batch", 3, 8, 8)
    for net, name in zip(nets, ("a.onnx", "b.onnx"), strict=True):
        y = net.conv("x", 4, 3, 3)
        if name == "b.onnx":
            mean = net.reduce("ReduceMean", y, [0])
            y = net.Add(y, net.Mul(net.Sub(y, mean), net.const(0.01)))
        onnx.save(net.model(net.node("Relu", y, outputs=["y"])), tmp_path / name)
    done = run("verify", "a.onnx", "b.onnx", cwd=tmp_path)
    assert done.returncode == 1
    assert b"two batches at once" in done.stdout


@pytest.mark.parametrize("symbolic", [False, True])
def test_the_api_and_the_ci_step_take_it(tmp_path: Path, symbolic: bool) -> None:
    net = Net("N" if symbolic else 1, 1, 12, 12)
    y = net.Reshape(net.conv("x", 4, 5, 5), net.const([-1, 256]))
    onnx.save(net.model(net.Gemm(y, net.ints(256, 3))), tmp_path / "m.onnx")
    made = cr.fcn(tmp_path / "m.onnx", dynamic_batch=True)
    assert not isinstance(made.model.graph.inputs[0].shape[0], int)
    text = 'models = ["m.onnx"]\noutput = "{name}-out.onnx"\n[[steps]]\npass = "fcn"\ndynamic_batch = true\n'
    (tmp_path / "convrewrite.toml").write_text(text)
    done = run("run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert evaluate(tmp_path / "m-out.onnx", np.zeros((3, 1, 12, 13), np.float32))[0].shape[0] == 3


def quantized(op: str) -> onnx.ModelProto:
    """A layer of ONNX Runtime's own between the quantization of its input and that of its result."""
    net = Net(1, 6)
    scale, zero = net.const(0.1), net.const(0, dtype=np.uint8)
    x = net.QuantizeLinear("x", scale, zero)
    if op == "QGemm":
        weight, bias = net.const(np.ones((6, 4)), dtype=np.int8), net.const(np.zeros(4), dtype=np.int32)
        words = [x, scale, zero, weight, scale, net.const(0, dtype=np.int8), bias, scale, zero]
    else:
        words = [x, scale, zero, scale, zero]
    y = net.node(op, *words, outputs=["quantized"], name="layer", domain="com.microsoft")
    made = net.node("DequantizeLinear", y, scale, zero, outputs=["y"])
    infos = [onnx.helper.make_tensor_value_info(made, onnx.TensorProto.FLOAT, [1, 4 if op == "QGemm" else 6])]
    model = net._proto(infos)
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    return model


@pytest.mark.parametrize(
    ("op", "reason", "words"),
    [
        ("QGemm", "open-batch/no-shape", "finds no shape behind QGemm 'layer' of the domain 'com.microsoft'"),
        ("QLinearSigmoid", "open-batch/no-shape", "behind QLinearSigmoid 'layer' of the domain 'com.microsoft'"),
        ("QLinearTanh", "open-batch/no-rule", "QLinearTanh 'layer' has no rule"),
    ],
)
def test_a_layer_whose_shape_is_not_known_is_named(op: str, reason: str, words: str) -> None:
    graph = model_io.load(quantized(op).SerializeToString()).graph
    (site,) = run_pass(OpenBatch(), graph).sites
    assert (site.outcome, site.reason) == ("refused", reason), site
    assert words in site.detail
    assert "batch" not in site.remedy


def test_the_site_is_named_after_the_input() -> None:
    """Not after a constant that the file has first."""
    net = Net(1, 3, 8, 8)
    bias = net.node("Constant", outputs=["bias"], value=onnx.numpy_helper.from_array(np.ones(4, np.float32)))
    y = net.Relu(net.Conv("x", net.ints(4, 3, 3, 3), bias))
    (site,) = run_pass(OpenBatch(), model_io.load(net.model(y).SerializeToString()).graph).sites
    assert (site.outcome, site.anchor, site.op) == ("rewritten", "x", "Conv")
