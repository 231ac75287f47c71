"""Bad input: one clear line that says what is wrong, where, and what helps; the right exit code; no file touched."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_models import (
    attention,
    call,
    custom_operator,
    dangling,
    dynamic_channels,
    flat_input,
    flattened_map,
    generator,
    mean_image,
    of_opset,
    plain,
    run,
    save,
    snapshot,
    symbolic,
    unknown_to_runtime,
    with_nan,
    zero_size,
)
from onnx import helper

from convrewrite import model_io
from convrewrite.engine.windows import METADATA_KEY

CONTENT = plain().SerializeToString()


@dataclass(frozen=True)
class Bad:
    """An input, the exit code it must give, and words that the one line must have."""

    make: Callable[[Path], object]
    code: int
    words: tuple[str, ...]


def of(model: Callable[[], onnx.ModelProto]) -> Callable[[Path], object]:
    return lambda path: save(model(), path)


def with_external(location: str) -> Callable[[Path], object]:
    """A model whose weight says that its data is at `location`."""

    def make(path: Path) -> None:
        model = plain()
        tensor = next(t for t in model.graph.initializer if len(t.dims) == 4)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        (path.parent.parent / "secret.data").write_bytes(bytes(1 << 16))
        save(model, path)

    return make


def with_metadata(text: str) -> onnx.ModelProto:
    model = plain()
    model.metadata_props.add(key=METADATA_KEY, value=text)
    return model


def without_outputs() -> onnx.ModelProto:
    model = plain()
    del model.graph.output[:]
    return model


def of_wrong_type() -> onnx.ModelProto:
    """A weight of integers in a Conv of floats: the checker lets it pass, shape inference and runtime do not."""
    model = plain()
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    tensor = next(t for t in model.graph.initializer if t.name == node.input[1])
    values = onnx.numpy_helper.to_array(tensor).astype(np.int64)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return model


def of_unknown_operator() -> onnx.ModelProto:
    model = plain()
    model.graph.node[1].op_type = "Rellu"
    return model


def without_opset() -> onnx.ModelProto:
    model = plain()
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    return model


BAD = {
    "no file": Bad(lambda path: None, 2, ("No such file",)),
    "a folder": Bad(lambda path: path.mkdir(), 2, ("it is a folder",)),
    "an empty file": Bad(lambda path: path.touch(), 2, ("the file is empty",)),
    "a text file": Bad(lambda path: path.write_text("a model\n" * 99), 2, ("not an ONNX model",)),
    "random bytes": Bad(lambda path: path.write_bytes(np.random.default_rng(1).bytes(5000)), 2, ("not an ONNX model",)),
    "a truncated model": Bad(lambda path: path.write_bytes(CONTENT[: len(CONTENT) // 2]), 2, ("truncated",)),
    "one byte short": Bad(lambda path: path.write_bytes(CONTENT[:-1]), 2, ("truncated",)),
    "a picture": Bad(lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100)), 2, ("not an ONNX model",)),
    "a dangling tensor": Bad(of(dangling), 2, ("'nowhere'", "no node computes")),
    "an unknown operator": Bad(of(of_unknown_operator), 2, ("Rellu",)),
    "a weight of another type": Bad(of(of_wrong_type), 2, ("Conv",)),
    "no output": Bad(of(without_outputs), 2, ("no outputs",)),
    "no opset": Bad(of(without_opset), 2, ("no opset",)),
    "an opset too new": Bad(of(lambda: of_opset(99)), 2, ("opset 99", "7 to ")),
    "an opset too old": Bad(of(lambda: of_opset(6)), 3, ("opset 6", "version_converter")),
    "a size of zero": Bad(of(zero_size), 2, ("input 'x'", "size 0")),
    "external data that escapes": Bad(with_external("../secret.data"), 2, ("../secret.data", "escapes")),
    "external data with a root": Bad(with_external("/etc/passwd"), 2, ("/etc/passwd", "escapes")),
    "external data that is missing": Bad(with_external("weights.data"), 2, ("weights.data", "missing")),
    "an operator unknown to ONNX Runtime": Bad(of(unknown_to_runtime), 2, ("Conv", "ONNX Runtime")),
    "damaged metadata": Bad(of(lambda: with_metadata("{")), 2, (METADATA_KEY, "convert the original model again")),
    "metadata of no object": Bad(of(lambda: with_metadata("[1]")), 2, (METADATA_KEY,)),
    "NaN in the head": Bad(of(lambda: with_nan("Gemm")), 3, ("NaN", "repair")),
    "NaN in the trunk": Bad(of(lambda: with_nan("Conv")), 1, ("the original itself gives nan", "repair")),
    "open channels": Bad(of(dynamic_channels), 3, ("number of channels",)),
    "an open size": Bad(of(symbolic), 3, ("--window HxW",)),
    "a mean image": Bad(of(mean_image), 3, ("'mean_image'", "fcn/position-dependent-constant", "per channel")),
    "no head": Bad(of(flattened_map), 3, ("fcn/position-in-output",)),
    "a custom operator": Bad(of(custom_operator), 3, ("'com.example'", "fcn/custom-operator", "standard operators")),
    "a flat input": Bad(of(flat_input), 3, ("input 'x'", "fcn/flat-input", "[N, C, H, W]")),
    "a generator": Bad(of(generator), 3, ("fcn/",)),
    "attention": Bad(of(attention), 3, ("MatMul", "fcn/")),
}
PREFIXES = {1: "failed: ", 2: "error: ", 3: "refused: "}


def check_line(line: str, code: int, *words: str) -> None:
    """One clear line: what kind, no traceback, no Python, and the words."""
    assert line.startswith(PREFIXES[code]), line
    for word in words:
        assert word in line
    for noise in ("Traceback", "Error:", 'File "', "object at 0x", "None", "[ONNXRuntimeError]"):
        assert noise not in line
    assert len(line) < 700


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    bad = BAD[name]
    folder = tmp_path / "models"
    folder.mkdir()
    bad.make(folder / "in.onnx")
    (folder / "out.onnx").write_text("an older result")
    before = snapshot(tmp_path)
    for target in ("out.onnx", "new.onnx"):
        assert call(monkeypatch, "fcn", folder / "in.onnx", folder / target, "--quiet") == bad.code
        captured = capfd.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1, captured.err
        check_line(captured.err, bad.code, *bad.words)
        assert snapshot(tmp_path) == before
    assert {path.name for path in folder.iterdir()} <= {"in.onnx", "out.onnx"}


@pytest.mark.parametrize("name", ["a truncated model", "a mean image", "NaN in the trunk", "a text file"])
def test_the_process_itself_ends_so(name: str, tmp_path: Path) -> None:
    bad = BAD[name]
    bad.make(tmp_path / "in.onnx")
    result = run("fcn", tmp_path / "in.onnx", tmp_path / "out.onnx")
    lines = result.stderr.decode().splitlines()
    assert (result.returncode, result.stdout) == (bad.code, b"")
    check_line(lines[-1], bad.code, *bad.words)
    assert len(lines) == 1 or bad.code == 1
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize(
    "name", ["a folder", "an empty file", "a truncated model", "a dangling tensor", "a size of zero"]
)
def test_verify_takes_bad_input_as_well(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    good, wrong = save(plain(), tmp_path / "good.onnx"), tmp_path / "wrong.onnx"
    BAD[name].make(wrong)
    for words in ((good, wrong), (wrong, good)):
        assert call(monkeypatch, "verify", *words, "--quiet") == 2
        line = capfd.readouterr().err
        assert line.count("\n") == 1
        check_line(line, 2, *BAD[name].words)


def test_verify_wants_models_that_can_be_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    a, b = save(plain(), tmp_path / "a.onnx"), save(flat_input(), tmp_path / "b.onnx")
    assert call(monkeypatch, "verify", a, b, "--quiet") == 2
    check_line(capfd.readouterr().err, 2, "output", "a.onnx")
    assert call(monkeypatch, "verify", a, save(plain(batch=2), b), "--quiet") == 2
    check_line(capfd.readouterr().err, 2, "input 'x'", "1x3x16x12", "2x3x16x12")


# Targets ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save(plain(), tmp_path / "in.onnx")


def check_target(
    source: Path, target: Path | str, words: str, run_it: Callable[..., int], text: Callable[[], str]
) -> None:
    before = snapshot(source.parent)
    assert run_it("fcn", source, target, "--quiet") == 2
    line = text()
    assert line.count("\n") == 1
    check_line(line, 2, words, str(target))
    assert snapshot(source.parent) == before


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (".", "it is a folder"),
        ("missing/out.onnx", "No such file or directory"),
        ("file/out.onnx", "Not a directory"),
        ("socket", "it is no regular file"),
        ("x" * 300, "name too long"),
    ],
)
def test_a_target_that_cannot_be_is_one_line(
    target: str, words: str, source: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (source.parent / "file").write_text("a regular file")
    monkeypatch.chdir(source.parent)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        check_target(source, target, words, lambda *a: call(monkeypatch, *a), lambda: capfd.readouterr().err)


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(28, "No space left on device")])
def test_a_folder_that_cannot_be_written_is_one_line(
    error: OSError, source: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def denied(*args: object) -> None:
        raise error

    monkeypatch.setattr(model_io.writing, "write_durably", denied)
    target = source.with_name("out.onnx")
    check_target(source, target, error.strerror, lambda *a: call(monkeypatch, *a), lambda: capfd.readouterr().err)
    assert not target.exists()


def test_a_read_only_folder_is_one_line(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    if os.geteuid() == 0:
        folder = Path("/sys")  # permission bits do not hold root back; the kernel's own folder does
    result = run("fcn", source, folder / "out.onnx", "-q")
    check_line(result.stderr.decode(), 2, "Permission denied")
    assert result.returncode == 2


def test_a_rename_that_fails_leaves_the_old_file(
    source: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    target = source.with_name("out.onnx")
    target.write_text("an older result")

    def denied(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", denied)
    check_target(source, target, "Permission denied", lambda *a: call(monkeypatch, *a), lambda: capfd.readouterr().err)
    assert target.read_text() == "an older result"
