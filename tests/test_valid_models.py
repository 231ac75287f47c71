"""What the ONNX checker and ONNX Runtime accept goes through every command: nothing crashes, and no file is blamed.

The oracle is ONNX Runtime on the file as it was and as it was written.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import valid_nets
import valid_parts
from cli_models import call
from onnx import TensorProto, helper, numpy_helper

from convrewrite import model_io

IMAGE = np.random.default_rng(7).standard_normal((1, 3, 14, 12)).astype(np.float32)

REFUSED_BY_FCN = {
    "zipmap": "'p'",
    "sequence_output": "'y' and 'p'",
    "optional_output": "'scores'",
    "sequence_inside": "SplitToSequence 'parts'",
    "optional_inside": "Optional 'maybe'",
    "function_in_a_branch": "If 'y'",
    "branches_with_weights": "If 'y'",
    "loop_with_weights": "Loop 'looped'",
    "microsoft_operator": "Gelu 'y'",
}
"""Models that `fcn` refuses, and what its message names: where to cut, or the node without a rule."""


def leaves(value: Any) -> Iterator[Any]:
    """The arrays, strings and keys of what ONNX Runtime gives for an output."""
    if isinstance(value, dict):
        for key in sorted(value):
            yield key
            yield np.asarray(value[key])
    elif isinstance(value, list):
        yield len(value)
        for part in value:
            yield from leaves(part)
    else:
        yield value


def outputs(path: Path, image: np.ndarray = IMAGE) -> list[list[Any]]:
    """Every output of a model, flat."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [list(leaves(value)) for value in session.run(None, {"x": image})]


def assert_equal(got: list[list[Any]], want: list[list[Any]], tolerance: float = 1e-5) -> None:
    """The same structure, and numbers within a tolerance of each output's largest."""
    assert [len(output) for output in got] == [len(output) for output in want]
    for ours, theirs in zip(got, want, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            if isinstance(b, np.ndarray) and b.dtype.kind == "f":
                assert a.shape == b.shape
                assert a.dtype == b.dtype
                np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * float(np.abs(b).max()))
            else:
                assert np.array_equal(a, b)


@pytest.fixture(params=sorted(valid_nets.ALL))
def named(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """A model and its file."""
    path = tmp_path / "in.onnx"
    path.write_bytes(valid_nets.ALL[request.param]().SerializeToString())
    return request.param, path


def test_a_model_is_one_that_the_checker_and_the_runtime_accept(named: tuple[str, Path]) -> None:
    name, path = named
    if name != "no_shape":  # which ONNX Runtime alone accepts
        onnx.checker.check_model(str(path))
    assert outputs(path)


def test_a_rewritten_model_gives_what_it_gave(
    named: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    name, path = named
    out = path.with_name("out.onnx")
    assert call(monkeypatch, "separable", path, out, "--tol", "1e-4", "--accept", "always") == 0, capfd.readouterr().err
    assert "not valid" not in capfd.readouterr().err
    convs = [node for node in model_io.load(out).graph.nodes if node.op == "Conv"]
    assert len(convs) == 2, "the kernels are outer products: two convolutions in the place of one"
    assert_equal(outputs(out), outputs(path), 2e-2 if name == "half_inside" else 1e-4)


def test_every_layer_is_listed(
    named: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    _, path = named
    assert call(monkeypatch, "inspect", path) == 0
    shown = capfd.readouterr()
    assert "Conv 64" in shown.out + shown.err


def test_fcn_converts_or_says_where_to_cut(
    named: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    name, path = named
    out = path.with_name("out.onnx")
    code = call(monkeypatch, "fcn", path, out)
    told = capfd.readouterr().err
    if name in REFUSED_BY_FCN:
        assert code == 3
        assert REFUSED_BY_FCN[name] in told
        assert not out.exists()
        return
    assert code == 0, told
    native, moved = (output[0] for output in (outputs(out)[0], outputs(path)[0]))
    assert_equal([[native.reshape(moved.shape)]], [[moved]], 2e-2 if name == "half_inside" else 1e-4)
    larger = np.pad(IMAGE, [(0, 0), (0, 0), (0, 3), (0, 3)])
    cells = outputs(out, larger)[0][0]
    shifted = outputs(path, np.ascontiguousarray(larger[:, :, 3:, 3:]))[0][0]
    if name != "squeeze_by_shape":  # whose pool has stride 1, and these three pixels are three cells
        assert_equal([[cells[:, :, 1, 1]]], [[shifted]], 2e-2 if name == "half_inside" else 1e-4)
    else:
        assert_equal([[cells[:, :, 3, 3]]], [[shifted]], 1e-4)


@pytest.mark.parametrize("name", ["constant_forms", "optional_inside", "sequence_inside", "functions"])
def test_a_batch_is_opened_beside_outputs_that_have_none(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    path.write_bytes(valid_nets.ALL[name]().SerializeToString())
    code = call(monkeypatch, "transform", "open-batch", path, out)
    assert code in (0, 3), capfd.readouterr().err
    if code == 0:
        two = np.concatenate([IMAGE, IMAGE[..., ::-1]])
        want = outputs(path)[0][0], outputs(path, np.ascontiguousarray(IMAGE[..., ::-1]))[0][0]
        assert_equal([[outputs(out, two)[0][0]]], [[np.concatenate(want)]])


def test_nothing_to_do_copies_byte_for_byte(
    named: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    _, path = named
    out = path.with_name("out.onnx")
    assert call(monkeypatch, "conv-to-fc", path, out) == 0, capfd.readouterr().err
    assert out.read_bytes() == path.read_bytes()


def test_constants_may_lie_in_files_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("constant_nodes", "branches_with_weights"):
        model = valid_nets.ALL[name]()
        path, out = tmp_path / f"{name}.onnx", tmp_path / f"{name}-out.onnx"
        attributes = [attribute for node in model.graph.node for attribute in node.attribute]
        held = [a.t for a in attributes if a.HasField("t")] + [t for a in attributes for t in a.g.initializer]
        with path.with_suffix(".bin").open("wb") as data:
            for tensor in held:
                raw = tensor.raw_data
                tensor.ClearField("raw_data")
                tensor.data_location = TensorProto.EXTERNAL
                for key, value in (("location", f"{name}.bin"), ("offset", data.tell()), ("length", len(raw))):
                    tensor.external_data.add(key=key, value=str(value))
                data.write(raw)
        assert held
        path.write_bytes(model.SerializeToString())
        assert call(monkeypatch, "separable", path, out, "--tol", "1e-4", "--accept", "always") == 0
        assert_equal(outputs(out), outputs(path), 1e-4)


def test_a_default_that_becomes_a_constant_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    path.write_bytes(valid_nets.defaults_as_inputs().SerializeToString())
    assert call(monkeypatch, "separable", path, out, "--tol", "1e-4", "--accept", "always", "--only", "a") == 0
    told = capfd.readouterr().err
    line = next(line for line in told.splitlines() if line.startswith("warning"))
    left = {info.name for info in onnx.load(out).graph.input}
    gone = {info.name for info in onnx.load(path).graph.input} - left
    assert gone == {name for name in "wbfc" if f"'{name}'" in line}
    assert "w" in gone
    assert {"x", "f", "c"} <= left, "the head was left alone: a caller may still replace its weights"
    other = {"x": IMAGE, "c": np.zeros(5, np.float32)}
    before, after = (
        ort.InferenceSession(p, providers=["CPUExecutionProvider"]).run(None, other)[0] for p in (path, out)
    )
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-4)


def test_no_default_no_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Below IR version 4 an initializer must be listed, and nobody can replace it."""
    for ir, listed in ((9, False), (3, True)):
        model = valid_parts.made(valid_parts.body(), valid_parts.tensors(valid_parts.weights()), ir=ir, opset=8)
        if listed:
            model.graph.input.extend(valid_parts.info(t.name, *t.dims) for t in model.graph.initializer)
        path = tmp_path / "in.onnx"
        path.write_bytes(model.SerializeToString())
        assert call(monkeypatch, "separable", path, tmp_path / "out.onnx", "--tol", "1e-4", "--accept", "always") == 0
        told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning")]
        assert told == ["warning    1 layer became dearer, in multiply-accumulates: 'y' by 25"], (
            "of the costs, no default"
        )


def test_a_model_in_doubles_gets_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    values = valid_parts.weights(np.float64)
    doubles = [valid_parts.info("x", 1, 3, 14, 12, kind=TensorProto.DOUBLE)]
    ends = [valid_parts.info("y", 1, 5, kind=TensorProto.DOUBLE)]
    direct = valid_parts.made(valid_parts.body(), valid_parts.tensors(values), inputs=doubles, outputs=ends)
    casts = [helper.make_node("Cast", ["x"], ["d"], to=TensorProto.DOUBLE), *valid_parts.body("d", "e")]
    casts.append(helper.make_node("Cast", ["e"], ["y"], to=TensorProto.FLOAT))
    constants = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value, name))
        for name, value in values.items()
    ]
    for model in (direct, valid_parts.made([*constants, *casts], [])):
        path = tmp_path / "in.onnx"
        path.write_bytes(model.SerializeToString())
        onnx.checker.check_model(model)
        for command in (["fcn", path, tmp_path / "out.onnx"], ["verify", path, path]):
            assert call(monkeypatch, *command) == 2
            assert "convert it" in capfd.readouterr().err
        assert not (tmp_path / "out.onnx").exists()
