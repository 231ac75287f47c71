"""`fcn --stride`, `--dense`, `--upsample`, `--softmax`, `--opset`: from file to file, on real and built models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from cli_models import run

import convrewrite as cr
from convrewrite import models, pipeline
from convrewrite.engine.windows import Window
from convrewrite.options import FcnOptions

LENET = str(models.lenet5_path())

SMALL = {
    "alexnet": {"width": 0.125, "size": 131},
    "vgg16": {"width": 0.0625, "size": 64},
    "resnet18": {"width": 0.125, "size": 64},
    "resnet50": {"width": 0.125, "size": 64},
    "mobilenet_v1": {"width": 0.125, "size": 64},
}
"""Options that make each builder fast."""


def evaluate(path: str | Path, image: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: image})[0]


@pytest.mark.parametrize(
    ("stride", "words"), [((1, 1), ["--dense"]), ((2, 4), ["--stride", "2x4"]), ((2, 2), ["--stride", "2"])]
)
def test_every_cell_is_the_original_on_its_crop(tmp_path: Path, stride: tuple[int, int], words: list[str]) -> None:
    """The trained LeNet-5, with crops cut here."""
    done = run("fcn", LENET, "o.onnx", *words, "--report", "r.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    window = Window.from_metadata({p.key: p.value for p in onnx.load(tmp_path / "o.onnx").metadata_props})
    assert window is not None
    assert (window.stride, window.coarse, window.equivalence) == (stride, (4, 4), "windows")
    image = np.random.default_rng(0).random((1, 1, 41, 44), np.float32)
    cells = evaluate(tmp_path / "o.onnx", image)
    assert cells.shape[2:] == window.positions((41, 44))
    for i, j in np.ndindex(*cells.shape[2:]):
        crop = image[..., i * stride[0] : i * stride[0] + 32, j * stride[1] : j * stride[1] + 32]
        np.testing.assert_allclose(cells[0, :, i, j], evaluate(LENET, crop)[0], atol=1e-5)
    report = json.loads((tmp_path / "r.json").read_text())
    assert {site["pass"] for site in report["sites"]} == {"fcn", "dense"}
    assert any("apart against the old map" in case["name"] for case in report["verify"]["cases"])
    again = run("verify", LENET, "o.onnx", cwd=tmp_path)
    assert again.returncode == 0, again.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_built_networks_become_denser(tmp_path: Path, name: str) -> None:
    """Padded ones against their own map: every fourth cell, in ONNX Runtime, beside what the command verifies."""
    onnx.save(models.build(name, **SMALL[name]), tmp_path / "m.onnx")
    for how, target in ((FcnOptions(), "coarse.onnx"), (FcnOptions(stride=8), "o.onnx")):
        outcome = pipeline.fcn(str(tmp_path / "m.onnx"), str(tmp_path / target), how).check()
        assert outcome.verification is not None
        assert outcome.verification.verdict == "verified"
    window = outcome.window
    assert window is not None
    size = [w + 40 for w in window.size]
    image = np.random.default_rng(0).standard_normal((1, 3, *size)).astype(np.float32)
    dense, coarse = evaluate(tmp_path / "o.onnx", image), evaluate(tmp_path / "coarse.onnx", image)
    np.testing.assert_allclose(dense[:, :, ::4, ::4], coarse, rtol=1e-3, atol=1e-5 * float(np.abs(coarse).max()))
    assert dense[0, 0].size > 8 * coarse[0, 0].size
    done = run("verify", "m.onnx", "o.onnx", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_corpus_model_becomes_dense(corpus_model: Path, tmp_path: Path) -> None:
    """Each model that fcn converts is verified at a finer stride, or refused by name; none fails."""
    outcome = pipeline.fcn(str(corpus_model), str(tmp_path / "c.onnx"), FcnOptions(verify=False))
    if outcome.error is not None:
        assert outcome.exit_code == 3
        return
    assert outcome.window is not None
    half = tuple(s // 2 if s % 2 == 0 else s for s in outcome.window.stride)
    original = onnx.load(corpus_model)
    own = next(entry.version for entry in original.opset_import if entry.domain in ("", "ai.onnx"))
    constant = any(node.op_type == "ConstantOfShape" for node in original.graph.node)  # weights that say nothing
    opset = None if own >= 13 else 13
    for upsample in ("", "bilinear"):
        how = FcnOptions(stride=half, upsample=upsample, opset=opset, verify=not constant)
        made = pipeline.fcn(str(corpus_model), str(tmp_path / "o.onnx"), how)
        told = str(made.error)
        assert made.error is None or made.exit_code == 3 or "cannot bring the model to opset" in told, told


def test_a_model_that_is_convolutional_already(tmp_path: Path) -> None:
    assert run("fcn", LENET, "a.onnx", cwd=tmp_path).returncode == 0
    done = run("fcn", "a.onnx", "b.onnx", "--dense", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    direct = cr.fcn(LENET, stride=1)
    image = np.random.default_rng(0).random((1, 1, 40, 45), np.float32)
    np.testing.assert_allclose(
        evaluate(tmp_path / "b.onnx", image), evaluate(direct.model.path or "", image), atol=1e-6
    )
    same = run("fcn", "b.onnx", "c.onnx", "--dense", cwd=tmp_path)
    assert same.returncode == 0
    assert b"nothing to do" in same.stderr
    assert (tmp_path / "b.onnx").read_bytes() == (tmp_path / "c.onnx").read_bytes()


def test_a_segmentation_net_without_windows(tmp_path: Path) -> None:
    """Never a classifier: its maps are compared with themselves."""
    from nets import Net

    net = Net(1, 3, 64, 48, opset=13)
    x = net.node("Conv", "x", net.const(net.rng.standard_normal((8, 3, 3, 3))), strides=[2, 2], pads=[1] * 4)
    x = net.MaxPool(net.Relu(x), kernel_shape=[2, 2], strides=[2, 2])
    onnx.save(
        net.model(net.node("Conv", x, net.const(net.rng.standard_normal((5, 8, 3, 3))), pads=[1] * 4)),
        tmp_path / "s.onnx",
    )
    done = run("fcn", "s.onnx", "o.onnx", "--stride", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    image = np.random.default_rng(0).standard_normal((1, 3, 64, 48)).astype(np.float32)
    got, want = evaluate(tmp_path / "o.onnx", image), evaluate(tmp_path / "s.onnx", image)
    np.testing.assert_allclose(got[:, :, ::2, ::2], want, atol=1e-4)
    refused = run("fcn", "s.onnx", "u.onnx", "--upsample", "bilinear", cwd=tmp_path)
    assert refused.returncode == 2
    assert b"which windows the cells stand for" in refused.stderr


@pytest.mark.parametrize(("words", "best"), [([], 0.999), (["--softmax", "last"], 0.999), (["--dense"], 0.999)])
def test_pixels_of_a_digit_are_that_digit(tmp_path: Path, words: list[str], best: float) -> None:
    """At the centre of a window the map has just the original's answer."""
    done = run("fcn", LENET, "o.onnx", "--upsample", "bilinear", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    digits, _ = models.digit_images()
    image = np.zeros((1, 1, 36, 40), np.float32)
    image[0, 0, 4:36, 8:40] = digits[3, 0]
    pixels = evaluate(tmp_path / "o.onnx", image)
    assert pixels.shape == (1, 11, 36, 40)
    around = pixels[0, :, 19:21, 23:25].mean(axis=(1, 2))  # the centre lies between four pixels
    cells = evaluate(LENET, image[..., 4:36, 8:40])[0]
    assert around.argmax() == cells.argmax()


def test_a_map_of_pixels_is_not_compared_with_a_classifier(tmp_path: Path) -> None:
    assert run("fcn", LENET, "o.onnx", "--upsample", "nearest", cwd=tmp_path).returncode == 0
    done = run("verify", LENET, "o.onnx", cwd=tmp_path)
    assert done.returncode == 2
    assert b"convert without --upsample to compare the cells" in done.stderr


def test_a_fixed_size(tmp_path: Path) -> None:
    done = run("fcn", LENET, "o.onnx", "--size", "64x48", "--dense", "--upsample", "nearest", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shape = onnx.load(tmp_path / "o.onnx").graph.output[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in shape] == [1, 11, 64, 48]


@pytest.mark.parametrize(
    ("words", "says", "code"),
    [
        (["--stride", "3"], "does not divide the model's own, 4x4; choose 1 or 2 or 4", 2),
        (["--stride", "1x1x1"], "has 2 spatial axes", 2),
        (["--stride", "2", "--dense"], "leave one of them out", 2),
        (["--softmax", "last"], "give --upsample", 2),
        (["--opset", "9"], "choose one from 13", 2),
        (["--opset", "99"], "choose one from 13", 2),
        (["--upsample", "cubic"], "cubic", 2),
        (["--stride", "0"], "--stride needs S or SxS", 2),
    ],
)
def test_bad_words(tmp_path: Path, words: list[str], says: str, code: int) -> None:
    done = run("fcn", LENET, "o.onnx", *words, cwd=tmp_path)
    assert done.returncode == code
    assert says in " ".join(done.stderr.decode().split())
    assert not (tmp_path / "o.onnx").exists()


def test_a_dilated_pool_asks_for_a_later_opset(tmp_path: Path) -> None:
    onnx.save(models.build("lenet5", opset=9), tmp_path / "m.onnx")
    refused = run("fcn", "m.onnx", "o.onnx", "--dense", cwd=tmp_path)
    assert refused.returncode == 3
    assert b"give --opset 10 or later" in refused.stderr
    done = run("fcn", "m.onnx", "o.onnx", "--dense", "--opset", "13", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert onnx.load(tmp_path / "o.onnx").opset_import[0].version == 13


def test_from_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(Path(LENET).read_bytes())
    text = (
        'models = ["m.onnx"]\noutput = "{name}-out.onnx"\n[[steps]]\npass = "fcn"\nstride = [2]\nupsample = "nearest"\n'
    )
    (tmp_path / "convrewrite.toml").write_text(text)
    done = run("run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert evaluate(tmp_path / "m-out.onnx", np.zeros((1, 1, 40, 50), np.float32)).shape == (1, 11, 40, 50)


@pytest.mark.parametrize("command", ["fc-to-conv", "conv-to-fc"])
def test_linear_forms_from_file_to_file(tmp_path: Path, command: str) -> None:
    source = LENET
    if command == "conv-to-fc":
        assert run("fc-to-conv", LENET, "c.onnx", cwd=tmp_path).returncode == 0
        source = str(tmp_path / "c.onnx")
    done = run(command, source, "o.onnx", "--report", "r.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["command"], report["outcome"], report["verify"]["verdict"]) == (command, "rewritten", "verified")
    ops = [node.op_type for node in onnx.load(tmp_path / "o.onnx").graph.node]
    assert ops.count("Gemm") == (0 if command == "fc-to-conv" else 3)
    again = run(command, "o.onnx", "p.onnx", cwd=tmp_path)
    assert again.returncode == 0
    assert b"nothing to do" in again.stderr


@pytest.mark.parametrize("kind", ["float16", "classes", "two outputs", "vector beside the image"])
def test_pixels_of_other_models(tmp_path: Path, kind: str) -> None:
    """Against an interpolation by hand of what the converted model gives, by plain indexing in numpy."""
    from nets import Net

    dtype = np.float16 if kind == "float16" else np.float32
    net = Net(1, 3, 31, 31, opset=13, dtype=dtype)
    vector = net.input("v", 1, 4) if kind.startswith("vector") else ""
    x = net.node("Conv", "x", net.const(net.rng.standard_normal((6, 3, 3, 3)) / 5), strides=[2, 2])
    x = net.Flatten(net.MaxPool(x, kernel_shape=[3, 3], strides=[2, 2]))
    x = net.Concat(x, vector, axis=1) if vector else x
    scores = [net.Gemm(x, net.const(net.rng.standard_normal((6 * 49 + 4 * bool(vector), 5)) / 9))]
    if kind == "two outputs":
        scores.append(net.Gemm(x, net.const(net.rng.standard_normal((6 * 49, 3)) / 9)))
    if kind == "classes":
        scores = [net.ArgMax(scores[0], axis=1, keepdims=0)]
    onnx.save(net.model(*scores), tmp_path / "m.onnx")
    mode = "nearest" if kind == "classes" else "bilinear"
    assert run("fcn", "m.onnx", "cells.onnx", cwd=tmp_path).returncode == 0
    done = run("fcn", "m.onnx", "pixels.onnx", "--upsample", mode, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 3, 41, 44)).astype(dtype)}
    feeds |= {"v": np.ones((1, 4), np.float32)} if vector else {}
    cells, pixels = (
        ort.InferenceSession(str(tmp_path / name), providers=["CPUExecutionProvider"]).run(None, feeds)
        for name in ("cells.onnx", "pixels.onnx")
    )
    for coarse, fine in zip(cells, pixels, strict=True):
        assert fine.dtype == coarse.dtype
        assert fine.shape == (*coarse.shape[:2], 41, 44)
        want = coarse.astype(np.float64)
        for axis, extent in ((2, 41), (3, 44)):
            at = np.clip((np.arange(extent) - 15) / 4, 0, coarse.shape[axis] - 1)  # windows of 31 pixels, 4 apart
            low = np.ceil(at - 0.5).astype(int) if mode == "nearest" else np.floor(at).astype(int)
            share = np.zeros(extent) if mode == "nearest" else at - low
            share = share.reshape(-1, *[1] * (3 - axis))
            high = np.minimum(low + 1, coarse.shape[axis] - 1)
            want = want.take(low, axis) * (1 - share) + want.take(high, axis) * share
        np.testing.assert_allclose(fine, want, atol=1e-2 if kind == "float16" else 1e-5)
