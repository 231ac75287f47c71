"""Whole conversions of nets whose outputs or trunks are unusual: rewritten, verified, published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from convrewrite import pipeline
from convrewrite.engine.windows import Window
from convrewrite.options import FcnOptions


def net(path: Path, head: list[onnx.NodeProto], constants: dict[str, np.ndarray], outputs: list[int | str]) -> Path:
    """Conv 3x3 on an 8 x 10 image, Flatten, Gemm to 20 features `g`, and a head on them that computes `y`."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((4, 3, 3, 3)) / 4, "v": rng.standard_normal((20, 4 * 6 * 8)) / 8}
    values = {name: value.astype(np.float32) for name, value in weights.items()} | constants
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Flatten", ["c"], ["f"]),
        helper.make_node("Gemm", ["f", "v"], ["g"], transB=1),
        *head,
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 10])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, outputs)],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


SPLIT = np.array([-1, 10, 2], np.int64)
RESHAPE = helper.make_node("Reshape", ["g", "s"], ["r"])
HEADS = {
    "two class axes": ([helper.make_node("Reshape", ["g", "s"], ["y"])], ["N", 10, 2]),
    "two class axes, turned": ([RESHAPE, helper.make_node("Transpose", ["r"], ["y"], perm=[0, 2, 1])], ["N", 2, 10]),
    "Softmax over one of two": ([RESHAPE, helper.make_node("Softmax", ["r"], ["y"], axis=2)], ["N", 10, 2]),
    "Softmax over the other": ([RESHAPE, helper.make_node("Softmax", ["r"], ["y"], axis=1)], ["N", 10, 2]),
}


@pytest.mark.parametrize("name", HEADS)
def test_outputs_with_two_channel_axes_are_verified(name: str, tmp_path: Path) -> None:
    head, shape = HEADS[name]
    source = net(tmp_path / "in.onnx", head, {"s": SPLIT}, shape)
    outcome = pipeline.fcn(str(source), str(tmp_path / "out.onnx"), FcnOptions(provider="cpu")).check()
    assert outcome.verification is not None
    assert outcome.verification.verdict == "verified"
    assert outcome.window is not None
    assert outcome.window.equivalence == "windows"
    assert outcome.window.outputs["y"].channels == tuple(shape[1:])
    assert Window.from_json(outcome.window.to_json()) == outcome.window


def test_a_slice_with_a_baked_end_is_held_against_its_own_features(tmp_path: Path) -> None:
    """The original's trunk cuts at row 5 whatever the size; the converted one counts from the far border."""
    rng = np.random.default_rng(1)
    values = {
        "w": (rng.standard_normal((4, 3, 3, 3)) / 4).astype(np.float32),
        "v": (rng.standard_normal((7, 4 * 5 * 8)) / 8).astype(np.float32),
        "starts": np.array([0], np.int64),
        "ends": np.array([5], np.int64),
        "axes": np.array([2], np.int64),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Slice", ["c", "starts", "ends", "axes"], ["cut"]),
        helper.make_node("Flatten", ["cut"], ["f"]),
        helper.make_node("Gemm", ["f", "v"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 10])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 7])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), source)
    outcome = pipeline.fcn(str(source), str(target), FcnOptions(provider="cpu")).check()
    assert outcome.verification is not None
    cases = [case for case in outcome.verification.cases if case.name.startswith("original's trunk and head")]
    assert cases
    assert all(case.status == "passed" for case in cases)
    assert all("features of the converted model" in case.note for case in cases)
