"""What is no model, or is wrong in itself, is one line with exit code 2."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from convrewrite.errors import UsageError
from convrewrite.model_io import load, to_bytes
from stored_models import FLOAT, info, mlp, model_of, refusal, weight

pytestmark = pytest.mark.usefixtures("small_chunks")


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"", "the file is empty"),
        (b"just some text, no model at all\n", "not an ONNX model"),
        (b"\x89PNG\r\n\x1a\n" + bytes(64), "not an ONNX model"),
        (np.random.default_rng(0).bytes(10_000), "not an ONNX model"),
        (b"\x08\x08", "holds no readable graph"),
        (mlp().SerializeToString()[:-1], "truncated"),
        (mlp().SerializeToString()[:9000], "truncated"),
        (mlp().SerializeToString() + b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "truncated"),
    ],
    ids="empty text png random no-graph one-byte-short half-a-file huge-length".split(),
)
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes, fragment: str) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    assert fragment in refusal(path)
    assert fragment in refusal(content)
    assert str(path) in refusal(path)


def test_a_path_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert "it is a folder" in refusal(tmp_path)
    assert "No such file" in refusal(tmp_path / "missing.onnx")
    (tmp_path / "file").write_bytes(b"1")
    assert "Not a directory" in refusal(tmp_path / "file" / "model.onnx")


def renamed_input(model: ModelProto) -> ModelProto:
    model.graph.node[0].input[0] = "nowhere"
    return model


def without_opset(model: ModelProto) -> ModelProto:
    del model.opset_import[:]
    model.opset_import.add(domain="com.example", version=1)
    return model


def short_weight(model: ModelProto) -> ModelProto:
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]
    return model


def floats_missing(model: ModelProto) -> ModelProto:
    model.graph.initializer[1].CopyFrom(TensorProto(name="b", data_type=FLOAT, dims=[1 << 40], float_data=[1.0]))
    return model


def negative_dimension(model: ModelProto) -> ModelProto:
    model.graph.initializer[0].dims[:] = [-64, -64]
    return model


def binary_name(model: ModelProto) -> bytes:
    return bytes(model.SerializeToString()).replace(b"\x0a\x01x\x0a\x01w", b"\x0a\x01\xff\x0a\x01w")


CYCLE = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Add", ["a", "x"], ["b"])]


@pytest.mark.parametrize(
    ("model", "fragment"),
    [
        (renamed_input(mlp()), "nowhere"),
        (model_of([helper.make_node("NoSuchOperator", ["x"], ["y"])]), "NoSuchOperator"),
        (model_of(CYCLE, outputs=[info("b")]), "cycle"),
        (without_opset(mlp()), "no opset of the default domain; 7 to"),
        (mlp(opset=999), "opset 999 is newer"),
        (mlp(ir_version=999), "ir_version"),
        (mlp(inputs=[info("x", (0, 64))]), "input 'x' has a dimension of size 0"),
        (mlp(outputs=[]), "no outputs"),
        (short_weight(mlp()), "tensor 'w' has 16,380 bytes of data"),
        (floats_missing(mlp()), "tensor 'b' has 1 value "),
        (negative_dimension(mlp()), "negative dimension"),
        (binary_name(mlp()), "is not text in UTF-8"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_model_that_is_wrong_is_refused(tmp_path: Path, model: ModelProto | bytes, fragment: str) -> None:
    content = model if isinstance(model, bytes) else model.SerializeToString()
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    assert fragment in refusal(path)


def test_an_old_opset_is_left_to_the_passes() -> None:
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], opset=6, ir_version=3)
    assert load(model.SerializeToString()).opset == 6


SMALL_FILE = mlp(value_info=[info("h")]).SerializeToString()


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_damaged_files_load_or_are_refused(data: st.DataObject) -> None:
    content = bytearray(SMALL_FILE)
    weights = SMALL_FILE.index(struct.pack("<f", numpy_helper.to_array(weight("w"))[0, 0]))
    # Damage to the weights' bytes changes numbers only: aim at all else.
    places = [*range(weights), *range(weights + 64 * 64 * 4, len(SMALL_FILE))]
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.sampled_from(places))] ^= 1 << data.draw(st.integers(0, 7))
    cut = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    try:
        model = load(bytes(content[:cut]))
    except UsageError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        to_bytes(model)
        model.skeleton()
        for tensor in model.graph.tensors().values():
            if isinstance(tensor, gs.Constant):
                np.asarray(tensor.values)
