"""The command `fcn` on forms that exporters write, each of which was converted wrongly once, or not at all."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from convrewrite import model_io, pipeline
from convrewrite.errors import Refused
from convrewrite.models import lenet5_path
from convrewrite.options import FcnOptions
from convrewrite.pipeline.outcome import Outcome

CPU = FcnOptions(provider="cpu")


def save(path: Path, nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], opset: int = 13) -> Path:
    """A model on images [N, 3, 8, 10] that gives `y` [N, 5]."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 10])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def weights(*shape: int) -> np.ndarray:
    return (np.random.default_rng(sum(shape)).standard_normal(shape) / 4).astype(np.float32)


def converted(source: Path) -> Outcome:
    return pipeline.fcn(str(source), str(source.with_name("out.onnx")), CPU)


def test_a_gate_whose_reshape_reads_the_batch_runs_at_any_batch(tmp_path: Path) -> None:
    """x * sigmoid(W mean(x)).view(b, c, 1, 1), as squeeze-and-excite is written with a dynamic batch."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Shape", ["c"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"], axis=0),
        helper.make_node("GlobalAveragePool", ["c"], ["mean"]),
        helper.make_node("Concat", ["batch", "channels"], ["flat"], axis=0),
        helper.make_node("Reshape", ["mean", "flat"], ["vector"]),
        helper.make_node("Gemm", ["vector", "gate"], ["g"], transB=1),
        helper.make_node("Sigmoid", ["g"], ["s"]),
        helper.make_node("Concat", ["batch", "ones"], ["spread"], axis=0),
        helper.make_node("Reshape", ["s", "spread"], ["factor"]),
        helper.make_node("Mul", ["c", "factor"], ["scaled"]),
        helper.make_node("GlobalAveragePool", ["scaled"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["f"]),
        helper.make_node("Gemm", ["f", "v"], ["y"], transB=1),
    ]
    constants = {
        "w": weights(4, 3, 3, 3),
        "gate": weights(4, 4),
        "v": weights(5, 4),
        "zero": np.array([0], np.int64),
        "channels": np.array([4], np.int64),
        "ones": np.array([4, 1, 1], np.int64),
    }
    source = save(tmp_path / "in.onnx", nodes, constants)
    assert converted(source).check().status == "rewritten"
    image = np.random.default_rng(0).standard_normal((3, 3, 8, 10)).astype(np.float32)
    sessions = [
        ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for path in (source, source.with_name("out.onnx"))
    ]
    want, got = (session.run(None, {"x": image})[0] for session in sessions)
    np.testing.assert_allclose(got.reshape(want.shape), want, rtol=1e-5, atol=1e-6)


def test_a_factor_of_the_image_size_is_not_frozen(tmp_path: Path) -> None:
    """x / (sum over the whole image / its number of pixels): the count belongs to the native size alone."""
    nodes = [
        helper.make_node("ReduceSum", ["x", "axes"], ["sum"], keepdims=1),
        helper.make_node("Size", ["x"], ["count"]),
        helper.make_node("Cast", ["count"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["sum", "number"], ["mean"]),
        helper.make_node("Sub", ["x", "mean"], ["centred"]),
        helper.make_node("Conv", ["centred", "w"], ["c"]),
        helper.make_node("Flatten", ["c"], ["f"]),
        helper.make_node("Gemm", ["f", "v"], ["y"], transB=1),
    ]
    constants = {"w": weights(4, 3, 3, 3), "v": weights(5, 4 * 6 * 8), "axes": np.array([1, 2, 3], np.int64)}
    outcome = converted(save(tmp_path / "in.onnx", nodes, constants))
    assert isinstance(outcome.error, Refused)
    assert "Div" in str(outcome.error)


def test_statistics_of_a_flattened_map_are_refused(tmp_path: Path) -> None:
    """LayerNormalization over the flattened features, written out: each window has its own mean."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Flatten", ["c"], ["f"]),
        helper.make_node("ReduceMean", ["f"], ["mean"], axes=[-1]),
        helper.make_node("Sub", ["f", "mean"], ["centred"]),
        helper.make_node("Gemm", ["centred", "v"], ["y"], transB=1),
    ]
    outcome = converted(save(tmp_path / "in.onnx", nodes, {"w": weights(4, 3, 3, 3), "v": weights(5, 4 * 6 * 8)}))
    assert isinstance(outcome.error, Refused)
    assert "ReduceMean" in str(outcome.error)


def test_an_empty_list_of_axes_is_read(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("ReduceMax", ["x"], ["max"], keepdims=1),
        helper.make_node("Div", ["c", "max"], ["scaled"]),
        helper.make_node("Flatten", ["scaled"], ["f"]),
        helper.make_node("Gemm", ["f", "v"], ["y"], transB=1),
    ]
    nodes[1].attribute.append(onnx.AttributeProto(name="axes", type=onnx.AttributeProto.INTS))
    source = save(tmp_path / "in.onnx", nodes, {"w": weights(4, 3, 3, 3), "v": weights(5, 4 * 6 * 8)})
    assert converted(source).exit_code in (0, 3)  # a batch beyond one has no maximum of its own here


def test_a_map_that_is_halved_runs_at_any_size(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Resize", ["x", "", "scales"], ["half"], mode="nearest"),
        helper.make_node("Conv", ["half", "w"], ["c"]),
        helper.make_node("Flatten", ["c"], ["f"]),
        helper.make_node("Gemm", ["f", "v"], ["y"], transB=1),
    ]
    scales = np.array([1, 1, 0.5, 0.5], np.float32)
    constants = {"w": weights(4, 3, 3, 3), "v": weights(5, 4 * 2 * 3), "scales": scales}
    outcome = converted(save(tmp_path / "in.onnx", nodes, constants)).check()
    assert outcome.window is not None
    assert outcome.window.stride == (2, 2)


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no symbolic links here")
def test_a_symbolic_link_is_written_through(tmp_path: Path) -> None:
    real, link = tmp_path / "real.onnx", tmp_path / "link.onnx"
    real.write_bytes(b"old")
    link.symlink_to(real)
    model_io.save(model_io.load(lenet5_path()), link)
    assert link.is_symlink()
    assert onnx.load(real).graph.node


def test_windows_that_were_not_compared_are_not_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convrewrite.verification.subjects.CROP_PIXELS", 32 * 32 * 20)
    source, target = str(lenet5_path()), str(tmp_path / "out.onnx")
    outcome = pipeline.fcn(source, target, FcnOptions(provider="cpu", size=(64, 80))).check()
    assert outcome.verification is not None
    names = {case.name for case in outcome.verification.cases}
    assert any(re.fullmatch(r"\d+ of 117 windows of 64x80", name) for name in names)
    assert not any(name.startswith("every window") for name in names)
