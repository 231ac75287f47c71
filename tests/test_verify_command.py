"""`convrewrite verify` from the command line: options, exit codes, the case that is kept, one line for bad input."""

from __future__ import annotations

import json
import re
import shlex

import numpy as np
import onnx
import pytest
import typer
from onnx import numpy_helper
from typer.testing import CliRunner

from convrewrite import pipeline, verification
from convrewrite.cli import app as cli
from convrewrite.cli import verify as verify_command
from convrewrite.cli.words import FLAGS
from convrewrite.errors import ConvrewriteError, UsageError
from convrewrite.models import build
from convrewrite.options import FcnOptions, VerifyOptions
from convrewrite.running import runtime
from convrewrite.text import told


@pytest.fixture
def folder(tmp_path):
    """a.onnx, the same network; b.onnx, with a conv scaled by 1.001; fcn.onnx, its convolutional form; bad.onnx."""
    model = build("lenet5")
    onnx.save(model, tmp_path / "a.onnx")
    for tensor in model.graph.initializer:
        if tensor.name == "c3.weight":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.001), tensor.name))
    onnx.save(model, tmp_path / "b.onnx")
    pipeline.fcn(str(tmp_path / "a.onnx"), str(tmp_path / "fcn.onnx"), FcnOptions(provider="cpu")).check()
    converted = onnx.load(tmp_path / "fcn.onnx")
    for tensor in converted.graph.initializer:
        if tensor.name == "c3.weight":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.001), tensor.name))
    onnx.save(converted, tmp_path / "bad.onnx")
    return tmp_path


def verify(*words: object):
    """Exit code and what was printed, the error's line last."""
    app = typer.Typer()
    verify_command.register(app, cli._run)
    result = CliRunner().invoke(app, [str(word) for word in words])
    error = result.exception
    if isinstance(error, ConvrewriteError):
        return error.exit_code, f"{result.output}{told(error.text, FLAGS)}"
    assert error is None or isinstance(error, SystemExit), error
    return result.exit_code, result.output


def test_the_same_model_passes(folder):
    code, text = verify(folder / "a.onnx", folder / "a.onnx")
    assert code == 0
    assert "verified" in text


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_is_not_there_is_exit_2_with_cause_and_mend(folder, provider):
    code, text = verify(folder / "a.onnx", folder / "a.onnx", "--provider", provider)
    if code == 0:
        pytest.skip(f"{provider} works here")
    assert code == 2
    assert f"provider '{provider}' cannot be used here: " in text
    assert 'pip install "convrewrite[cuda]"' in text


def test_the_figures_and_the_place(folder):
    code, text = verify(folder / "a.onnx", folder / "b.onnx", "--where")
    assert code == 1
    for word in ("x own noise", "rms ratio", "same class", "'c3' (Conv", "not equivalent"):
        assert word in text
    assert "x own noise" not in verify(folder / "a.onnx", folder / "b.onnx", "--quiet")[1]


@pytest.mark.parametrize(("a", "b"), [("a", "b"), ("a", "bad")])
def test_the_failing_case_is_kept_and_its_command_replays_it(folder, a, b):
    kept = folder / "a case.npz"
    code, text = verify(folder / f"{a}.onnx", folder / f"{b}.onnx", "--save-failing", kept)
    assert code == 1
    replay = next(line for line in text.splitlines() if "replay" in line).partition("with: ")[2]
    words = shlex.split(replay)
    assert words[:2] == ["convrewrite", "verify"]
    code, again = verify(*words[2:])
    assert code == 1
    assert "not equivalent" in again
    code, again = verify(folder / "a.onnx", folder / ("a.onnx" if b == "b" else "fcn.onnx"), *words[4:])
    assert "not equivalent" not in again


def test_a_failure_on_a_larger_image_is_kept_whole(folder):
    """Only a window away from the origin fails: the kept image is the larger one."""
    model = onnx.load(folder / "fcn.onnx")
    entry = next(e for e in model.metadata_props if e.key == "convrewrite.window")
    entry.value = json.dumps(json.loads(entry.value) | {"stride": [8, 4]})
    onnx.save(model, folder / "stride.onnx")
    kept = folder / "case.npz"
    code, text = verify(folder / "a.onnx", folder / "stride.onnx", "--save-failing", kept)
    assert code == 1, text
    with np.load(kept) as arrays:
        assert max(arrays["image"].shape) > 32
    code, text = verify(folder / "a.onnx", folder / "stride.onnx", "--data", kept)
    assert code == 1
    assert "the data's own image" in text or "not equivalent" in text
    code, text = verify(folder / "a.onnx", folder / "fcn.onnx", "--data", kept, "--report", folder / "r.json")
    names = [case["name"] for case in json.loads((folder / "r.json").read_text())["verify"]["cases"]]
    assert any(name.startswith("every window of") for name in names)
    assert code in (0, 1)
    assert "not equivalent" not in text


def test_nothing_failed_so_nothing_is_kept(folder):
    code, text = verify(folder / "a.onnx", folder / "a.onnx", "--save-failing", folder / "case.npz")
    assert code == 0
    assert "was not written" in text
    assert not (folder / "case.npz").exists()
    assert verify(folder / "a.onnx", folder / "a.onnx", "--save-failing", folder / "no" / "case.npz")[0] == 2


def test_the_report_holds_the_new_fields(folder):
    code, _ = verify(folder / "a.onnx", folder / "b.onnx", "--where", "--report", folder / "r.json")
    assert code == 1
    report = json.loads((folder / "r.json").read_text())["verify"]
    assert {"rms_ratio", "cosine", "max_absolute", "top1_agreement"} <= set(report["cases"][0])
    assert report["nodes"]["rewritten"] in ({"cpu": 13}, {})  # {}: ONNX Runtime below 1.24 does not say
    assert report["tf32"] is False
    assert report["warnings"] == []
    assert report["where"]["tensor"] == "c3"


@pytest.mark.parametrize("sizes", [["--size", "40x36,48x48"], ["--size", "40x36", "--size", "48x48"]])
def test_a_fully_convolutional_form_at_several_sizes(folder, sizes):
    code, text = verify(folder / "a.onnx", folder / "fcn.onnx", *sizes, "--verbose")
    assert code == 0, text
    assert "every window of 40x36" in text
    assert "every window of 48x48" in text
    assert "nodes of the rewritten" in text


def test_tolerances(folder):
    args = folder / "a.onnx", folder / "b.onnx"
    assert verify(*args, "--max-output-error", "0.1")[0] == 0
    assert verify(*args, "--max-output-error", "probabilities=0.1")[0] == 0
    assert verify(*args, "--max-output-error", "1e-9", "--max-output-error", "probabilities=0.1")[0] == 0
    for bad in ("x", "probabilities=", "nan", "-1", "other=0.1"):
        assert verify(*args, "--max-output-error", bad)[0] == 2, bad


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--size", "16x16"], "--size 16x16 does not fit"),
        (["--batch", "2"], "fixed batch 1"),
        (["--shape", "image=1x1x16x16"], "does not fit"),
        (["--shape", "image"], "not a shape"),
        (["--images", "nosuch"], "no such folder"),
        (["--mean", "0.5"], "belong to --images"),
        (["--images", ".", "--std", "nan"], "not a list of numbers"),
        (["--images", ".", "--data", "x.npz"], "exclude each other"),
        (["--reference", "torch"], "torch"),
        (["--data", "nosuch.npz"], "cannot read"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(folder, words, text):
    code, said = verify(folder / "a.onnx", folder / "a.onnx", *words)
    assert code == 2
    assert text in said


@pytest.mark.parametrize("words", [["--reference", "onnx"], ["--shape", "image=1x1x32x32"]])
def test_a_fully_convolutional_form_takes_no_other_reference(folder, words):
    code, text = verify(folder / "a.onnx", folder / "fcn.onnx", *words)
    assert code == 2
    assert "window by window" in text


def test_arrays_that_do_not_fit(folder):
    np.savez(folder / "other.npz", other=np.zeros((1, 1, 32, 32), np.float32))
    np.savez(folder / "type.npz", image=np.zeros((1, 1, 32, 32), np.int32))
    np.savez(folder / "shape.npz", image=np.zeros((1, 3, 32, 32), np.float32))
    for name, text in [("other", "no array 'image'"), ("type", "is int32"), ("shape", "has shape 1x3x32x32")]:
        code, said = verify(folder / "a.onnx", folder / "a.onnx", "--data", folder / f"{name}.npz")
        assert code == 2
        assert text in said


def test_the_reference_evaluator(folder):
    code, text = verify(folder / "a.onnx", folder / "a.onnx", "--reference", "onnx")
    assert code == 0, text
    model = onnx.load(folder / "a.onnx")
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    relu.op_type, relu.domain = "Gelu", "com.microsoft"
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, folder / "custom.onnx")
    with pytest.raises(UsageError, match="reference evaluator cannot run"):
        verification.verify(folder / "custom.onnx", folder / "custom.onnx", VerifyOptions(reference="onnx"))


def test_memory_that_runs_out_on_a_large_image_names_what_ran(folder, monkeypatch):
    real = runtime.Session.run

    def run(self, feeds, outputs=None):
        if feeds["image"].shape[2] >= 48:
            with self._failing():
                raise RuntimeError("Failed to allocate memory for requested buffer of size 1")
        return real(self, feeds, outputs)

    monkeypatch.setattr(runtime.Session, "run", run)
    report = folder / "r.json"
    code, text = verify(folder / "a.onnx", folder / "fcn.onnx", "--size", "40x36,48x48", "--report", report)
    assert code == 2
    assert "allocate memory" in text
    assert "it ran at 32x32, 40x36" in text
    found = json.loads(report.read_text())["verify"]
    assert found["verdict"] == "skipped"
    assert any(case["name"] == "every window of 40x36" for case in found["cases"])


def test_a_folder_with_a_broken_image(folder):
    pil = pytest.importorskip("PIL.Image")
    images = folder / "images"
    images.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3)).astype(np.uint8)
        pil.fromarray(pixels).save(images / f"{number}.jpg")
    words = "--mean", "0.5", "--std", "0.25", "--samples", "2"
    code, text = verify(folder / "a.onnx", folder / "fcn.onnx", "--images", images, *words)
    assert code == 0, text
    assert verify(folder / "a.onnx", folder / "b.onnx", "--images", images)[0] == 1
    (images / "1.jpg").write_bytes(b"no image")
    code, text = verify(folder / "a.onnx", folder / "a.onnx", "--images", images)
    assert code == 2
    assert "cannot read the image" in text
    assert "1.jpg" in text


def test_a_batch_of_a_fully_convolutional_form(folder):
    model = onnx.load(folder / "a.onnx")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    onnx.save(model, folder / "free.onnx")
    pipeline.fcn(str(folder / "free.onnx"), str(folder / "free_fcn.onnx"), FcnOptions(provider="cpu")).check()
    code, text = verify(folder / "free.onnx", folder / "free_fcn.onnx", "--batch", "2", "--where")
    assert code == 0, text
    assert "where: all" in text
    code, text = verify(folder / "a.onnx", folder / "fcn.onnx", "--batch", "2")
    assert code == 2
    assert "fixed batch 1" in text


def images_in(path):
    """A folder of three images."""
    pil = pytest.importorskip("PIL.Image")
    path.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3)).astype(np.uint8)
        pil.fromarray(pixels).save(path / f"{number}.png")
    return path


def repeated(text):
    """The words of the command that a failure says to repeat it with."""
    words = shlex.split(text.rpartition("repeat it with: ")[2])
    assert words[:2] == ["convrewrite", "verify"]
    return words[2:]


@pytest.mark.parametrize("b", ["b", "bad"])
@pytest.mark.parametrize("how", ["random", "data", "images"])
def test_the_printed_command_repeats_the_failure_with_every_option(folder, b, how):
    data, images = folder / "my data.npz", folder / "my images"
    np.savez(data, image=np.random.default_rng(0).random((4, 1, 32, 32)).astype(np.float32))
    given = {
        "random": ["--seed", "7", "--samples", "2"],
        "data": ["--data", data],
        "images": ["--images", images, "--mean", "0.5", "--std", "0.25", "--layout", "NCHW", "--samples", "2"],
    }[how]
    if how == "images":
        images_in(images)
    more = ["--max-output-error", "1.23456789e-6", "--max-output-error", "probabilities=1e-7", "--provider", "cpu"]
    more += ["--where", *(["--size", "40x36,48x48"] if b == "bad" else ["--batch", "1", "--reference", "onnx"])]
    words = [folder / "a.onnx", folder / f"{b}.onnx", *given, *more]
    code, text = verify(*words, "--report", folder / "r.json")
    assert code == 1, text
    again = repeated(text)
    assert {str(word) for word in words} <= {*again}
    code, second = verify(*again)
    assert code == 1
    assert second == text
    command = json.loads((folder / "r.json").read_text())["verify"]["command"]
    assert shlex.split(command)[2:] == again


def pooled(path):
    """A network of any size, padded; its classes follow from the mean of the map."""
    values = np.random.default_rng(0).standard_normal((4, 1, 3, 3)).astype(np.float32)
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 13]> net (float[N, 1, H, W] image) => (float[N, 4, 1, 1] y)'
        "{ c = Conv <pads = [1, 1, 1, 1]> (image, w) r = Relu(c) y = GlobalAveragePool(r) }"
    )
    model.graph.initializer.append(numpy_helper.from_array(values, "w"))
    onnx.save(model, path)
    return path


BEYOND = "40000000x40000000"
"""An image that no machine can hold."""


@pytest.mark.parametrize("kind", ["plain", "fcn"])
def test_an_image_beyond_all_memory_keeps_what_ran(folder, kind):
    models = [folder / "a.onnx", folder / "fcn.onnx"] if kind == "fcn" else [pooled(folder / "p.onnx")] * 2
    report = folder / "r.json"
    code, text = verify(*models, "--size", f"40x36,{BEYOND}", "--report", report)
    assert code == 2, text
    assert "not enough memory" in text
    assert "40x36)" in text.splitlines()[-1]
    assert any("40x36" in case["name"] for case in json.loads(report.read_text())["verify"]["cases"])


@pytest.mark.parametrize("kind", ["plain", "fcn"])
def test_ctrl_c_keeps_what_ran(folder, monkeypatch, kind):
    real = runtime.Session.run

    def run(self, feeds, outputs=None):
        if feeds["image"].shape[2] >= 48:
            raise KeyboardInterrupt
        return real(self, feeds, outputs)

    monkeypatch.setattr(runtime.Session, "run", run)
    models = [folder / "a.onnx", folder / "bad.onnx"] if kind == "fcn" else [pooled(folder / "p.onnx")] * 2
    report, kept = folder / "r.json", folder / "case.npz"
    code, text = verify(*models, "--size", "40x36,48x48", "--report", report, "--save-failing", kept)
    assert code == 130, text
    assert text.splitlines()[-1].startswith("interrupted (")
    found = json.loads(report.read_text())
    assert found["exit_code"] == 130
    assert any("40x36" in case["name"] for case in found["verify"]["cases"])
    assert found["verify"]["verdict"] == ("failed" if kind == "fcn" else "skipped")
    assert kept.exists() == (kind == "fcn")


@pytest.mark.parametrize(
    ("option", "target"),
    [
        ("--save-failing", "a.onnx"),
        ("--save-failing", "b.onnx"),
        ("--save-failing", "data.npz"),
        ("--report", "data.npz"),
        ("--report", "case.npz"),
    ],
)
def test_what_was_given_is_not_overwritten(folder, option, target):
    np.savez(folder / "data.npz", image=np.random.default_rng(0).random((4, 1, 32, 32)).astype(np.float32))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    words = [folder / "a.onnx", folder / "b.onnx", "--data", folder / "data.npz"]
    words += ["--save-failing", folder / "case.npz"] if option == "--report" else []
    code, text = verify(*words, option, folder / target)
    assert code == 2
    assert f"{option} would overwrite" in text
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("size", [None, (48, 48)], ids=["any size", "one size"])
def test_the_form_ahead_of_its_original_says_to_swap_the_two(folder, size):
    pipeline.fcn(str(folder / "a.onnx"), str(folder / "form.onnx"), FcnOptions(size=size, provider="cpu")).check()
    code, text = verify(folder / "form.onnx", folder / "a.onnx")
    assert code in (1, 2)
    assert "swap the two" in text
    assert "swap" not in verify(folder / "a.onnx", folder / "form.onnx")[1]


def test_a_failure_names_one_seed(folder):
    """The inputs are told by their place among those of the seed that the command repeats."""
    code, text = verify(folder / "a.onnx", folder / "b.onnx", "--seed", "7", "--samples", "5")
    assert code == 1
    assert set(re.findall(r"seed (\d+)", text)) == {"7"}, text
    assert re.search(r"inputs [1-5]\); repeat it with: .* --seed 7", text), text
