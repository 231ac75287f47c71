"""Fully convolutional forms of other kinds: vectors, outputs that pass through, float16, large maps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from convrewrite.engine.windows import OutputGrid
from convrewrite.errors import UsageError
from helpers import verify
from verified_pairs import FLOAT, Pair, make_model, pair, swap_hw, with_weight


def with_vector(pad: int) -> Pair:
    """Beside the image a vector enters the head; one output depends on the vector alone, one is a flattened map."""
    base = pair(pad=pad, final="")
    window, (height, width) = base.window, base.cut[0].size
    rng = np.random.default_rng(9)
    extra = {"v3": rng.standard_normal((3, 6)).astype(np.float32)}

    def extend(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
        result = onnx.ModelProto()
        result.CopyFrom(model)
        batch = "N"
        result.graph.input.append(helper.make_tensor_value_info("vector", FLOAT, [batch, 3]))
        result.graph.node.extend(nodes)
        for name in ("sum", "twice", "map"):
            result.graph.output.append(onnx.ValueInfoProto(name=name))
        result.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in extra.items())
        result.graph.initializer.append(numpy_helper.from_array(np.array([2, 3]), "axes"))
        return result

    node = helper.make_node
    shared = [node("MatMul", ["vector", "v3"], ["mv"]), node("Add", ["vector", "vector"], ["twice"])]
    original = [*shared, node("Add", ["prob", "mv"], ["sum"]), node("Flatten", ["features"], ["map"])]
    converted = [
        *shared,
        node("Unsqueeze", ["mv", "axes"], ["mv4"]),
        node("Add", ["prob", "mv4"], ["sum"]),
        node("Identity", ["features"], ["map"]),
    ]
    grids = {
        **window.outputs,
        "sum": window.outputs["prob"],
        "map": OutputGrid((2, 2), (height, width), ("N", "CHW")),
    }
    return Pair(
        extend(base.original, original),
        extend(base.converted, converted),
        replace(window, outputs=grids),
        base.cut,
    )


@pytest.mark.parametrize("pad", [0, 1])
def test_a_vector_input_and_outputs_of_other_kinds(tmp_path, pad):
    both = with_vector(pad)
    result = both.verify(tmp_path)
    assert result.passed, result.message()
    assert {case.output for case in result.cases if case.status == "passed"} == {"prob", "sum", "twice", "map"}
    for name, change in (("v3", lambda w: w[:, ::-1]), ("w3", swap_hw)):
        faulty = replace(both, converted=with_weight(both.converted, name, change))
        assert faulty.verify(tmp_path).verdict == "failed"


def test_a_map_in_a_wrong_layout_fails(tmp_path):
    both = with_vector(0)
    grids = {**both.window.outputs, "map": replace(both.window.outputs["map"], layout=("N", "HWC"))}
    assert replace(both, window=replace(both.window, outputs=grids)).verify(tmp_path).verdict == "failed"


@pytest.mark.parametrize("pad", [0, 1])
def test_an_unbatched_image(tmp_path, pad):
    both = pair(pad=pad, final="")

    def unbatch(model: onnx.ModelProto, squeeze: bool) -> onnx.ModelProto:
        result = onnx.ModelProto()
        result.CopyFrom(model)
        del result.graph.input[0].type.tensor_type.shape.dim[0]
        result.graph.initializer.append(numpy_helper.from_array(np.array([0]), "zero"))
        result.graph.node[0].input[0] = "batched"
        result.graph.node.insert(0, helper.make_node("Unsqueeze", ["image", "zero"], ["batched"]))
        if squeeze:
            result.graph.node[-1].output[0] = "scores"
            result.graph.node.append(helper.make_node("Squeeze", ["scores", "zero"], ["prob"]))
        return result

    grid = replace(both.window.outputs["prob"], layout=("C",))
    window = replace(both.window, axes="CHW", outputs={"prob": grid})
    result = replace(
        both, original=unbatch(both.original, True), converted=unbatch(both.converted, False), window=window
    ).verify(tmp_path)
    assert result.passed, result.message()


@pytest.mark.parametrize("pad", [0, 1])
def test_float16(tmp_path, pad):
    def halve(model: onnx.ModelProto) -> onnx.ModelProto:
        result = onnx.ModelProto()
        result.CopyFrom(model)
        for tensor in result.graph.initializer:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
        for value in [*result.graph.input, *result.graph.output]:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
        return result

    both = pair(pad=pad)
    half = replace(both, original=halve(both.original), converted=halve(both.converted))
    result = half.verify(tmp_path)
    assert result.passed, result.message()
    swapped = replace(half, converted=with_weight(half.converted, "w3", swap_hw))
    assert swapped.verify(tmp_path).verdict == "failed"


def test_a_scale_that_overflows_the_original_is_left_out(tmp_path):
    """Exp of pixels in 0..255 is Inf in the original itself: that scale proves nothing, the others do."""
    model = make_model(
        [("Mul", ["image", "w"], ["m"], {}), ("Exp", ["m"], ["prob"], {})],
        {"image": [1, 4]},
        {"prob": FLOAT},
        {"w": np.array([1, 2, 3, 4], np.float32)},
    )
    onnx.save(model, tmp_path / "a.onnx")
    result = verify(tmp_path / "a.onnx", tmp_path / "a.onnx")
    assert result.passed
    onnx.save(with_weight(model, "w", lambda w: w * np.float32(1.001)), tmp_path / "b.onnx")
    assert verify(tmp_path / "a.onnx", tmp_path / "b.onnx").verdict == "failed"


def test_progress_is_told(tmp_path):
    calls: list[tuple[str, int, int]] = []
    pair().verify(tmp_path, progress=lambda *call: calls.append(call))
    assert calls
    assert all(0 <= done <= total for _, done, total in calls)


def test_verify_knows_a_fully_convolutional_form_by_its_metadata(tmp_path):
    both = pair(batch=1)
    entry = both.converted.metadata_props.add()
    entry.key, entry.value = "convrewrite.window", both.window.to_json()
    onnx.save(both.original, tmp_path / "a.onnx")
    onnx.save(both.converted, tmp_path / "b.onnx")
    result = verify(tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert result.passed
    assert any("every window of" in case.name for case in result.cases)
    assert verify(tmp_path / "b.onnx", tmp_path / "b.onnx", size=(20, 20)).passed


@pytest.mark.parametrize("pad", [0, 1])
def test_a_converted_model_of_the_native_size_alone(tmp_path, pad):
    result = pair(pad=pad, fixed=(12, 10)).verify(tmp_path)
    assert result.passed
    assert [case.name for case in result.cases if case.status == "skipped"] == ["larger images"]


@pytest.mark.parametrize("pad", [0, 1])
def test_a_large_map_is_compared_on_a_part_of_its_windows(tmp_path, monkeypatch, pad):
    monkeypatch.setattr("convrewrite.verification.subjects.CROP_PIXELS", 12 * 10 * 20)
    result = pair(pad=pad, fixed=(100, 90)).verify(tmp_path)
    assert result.passed
    assert any("of 1,845 windows" in case.note for case in result.cases)


@pytest.mark.parametrize("content", [b"", b"hello world", None])
def test_a_file_that_is_no_model_is_a_usage_error(tmp_path, content):
    if content is not None:
        (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(UsageError):
        verify(tmp_path / "a.onnx", tmp_path / "a.onnx")
