"""Models in the QDQ form: the integers of a fully connected layer are moved, and stay integers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

import convrewrite as cr
from convrewrite import model_io
from convrewrite.engine.graph import Constants
from convrewrite.engine.quantized import Stored
from convrewrite.engine.rewrite import Pass, run_pass
from convrewrite.errors import CheckFailed
from convrewrite.passes.conv_to_fc import ConvToFc
from convrewrite.passes.fc_to_conv import FcToConv
from helpers import Net, check_lifted, convert
from nets import Array, run

SCALES = {
    "per-tensor": ((), 0),
    "per-channel": ((4,), 0),
    "per-feature": ((24,), 1),
}
"""Shapes of the scales of a weight [4, 24], and the axis that they go along."""


def stored(net: Net, values: Array, scales: tuple[int, ...], axis: int, *, zero: bool = True) -> str:
    """A constant of int8 behind DequantizeLinear; scales are powers of two, so that sums stay exact."""
    scale = net.const(np.exp2(net.rng.integers(-1, 2, scales or ())).astype(np.float32))
    points = [net.const(net.rng.integers(-1, 2, scales or ()), dtype=np.int8)] if zero else []
    attrs = {"axis": axis} if scales else {}
    return str(net.DequantizeLinear(net.const(values, dtype=np.int8), scale, *points, **attrs))


def fc(net: Net, x: str, form: str, scales: tuple[int, ...], axis: int, **options: Any) -> str:
    """A fully connected layer [4, 24] whose weight is stored as `form` says."""
    values = net.rng.integers(-2, 3, (4, 24))
    if form == "gemm":
        return str(net.Gemm(x, stored(net, values, scales, axis, **options), net.ints(4), transB=1, alpha=2.0))
    if form == "matmul":
        turned = (1 - axis) if scales else axis
        return str(net.Add(net.MatMul(x, stored(net, values.T, scales, turned, **options)), net.ints(4)))
    weight = net.Transpose(stored(net, values, scales, axis, **options), perm=[1, 0])
    return str(net.MatMul(x, weight))


def weights(model: onnx.ModelProto, op: str) -> list[tuple[Array, int | None]]:
    """Weight and axis of every node `op` whose weight comes through DequantizeLinear; the weight is what is stored."""
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    makers = {node.output[0]: node for node in model.graph.node}
    found = []
    for node in model.graph.node:
        maker = makers.get(node.input[1]) if node.op_type == op else None
        if maker is not None and maker.op_type == "DequantizeLinear":
            axis = next((a.i for a in maker.attribute if a.name == "axis"), None)
            found.append((values[maker.input[0]], axis))
    return found


@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize("form", ["gemm", "matmul", "transposed"])
@pytest.mark.parametrize("scales", ["per-tensor", "per-channel"])
def test_fcn_moves_the_integers(scales: str, form: str, zero: bool) -> None:
    net = Net("batch", 2, 6, 8, opset=19)
    features = net.Flatten(net.MaxPool(net.conv("x", 2, 3, 3), kernel_shape=[1, 1], strides=[1, 2]))
    model = net.model(fc(net, features, form, *SCALES[scales], zero=zero))
    check_lifted(model)
    ((kernel, axis),) = weights(convert(model)[1], "Conv")
    assert kernel.dtype == np.int8
    assert kernel.shape == (4, 2, 4, 3)
    assert axis == (0 if scales == "per-channel" else None)


def test_scales_that_go_along_rows_and_columns_are_folded() -> None:
    """One scale for each feature: on a map of 4 x 3 cells no axis of a kernel has them."""
    net = Net(1, 2, 6, 8, opset=19)
    features = net.Flatten(net.MaxPool(net.conv("x", 2, 3, 3), kernel_shape=[1, 1], strides=[1, 2]))
    model = net.model(fc(net, features, "gemm", *SCALES["per-feature"]))
    check_lifted(model)
    assert weights(convert(model)[1], "Conv") == []


def test_scales_that_go_along_the_features_of_a_cell_are_kept() -> None:
    net = Net(1, 2, 6, 8, opset=19)
    features = net.Flatten(net.GlobalMaxPool(net.conv("x", 24, 3, 3)))
    model = net.model(fc(net, features, "gemm", *SCALES["per-feature"]))
    check_lifted(model)
    ((kernel, axis),) = weights(convert(model)[1], "Conv")
    assert (kernel.shape, axis) == ((4, 24, 1, 1), 1)


def test_a_bias_of_whole_numbers_stays_one() -> None:
    net = Net(1, 2, 6, 8, opset=19)
    features = net.Flatten(net.GlobalMaxPool(net.conv("x", 24, 3, 3)))
    scale = net.const(np.float32([0.5, 1, 2, 0.25]))
    bias = net.DequantizeLinear(net.const(np.arange(4), dtype=np.int32), scale, axis=0)
    weight = stored(net, net.rng.integers(-2, 3, (4, 24)), (4,), 0)
    model = net.model(net.Gemm(features, weight, bias, transB=1))
    check_lifted(model)
    made = convert(model)[1]
    conv = made.graph.node[-1]
    (maker,) = [node for node in made.graph.node if node.output[0] == conv.input[2]]
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    assert (maker.op_type, values[maker.input[0]].dtype) == ("DequantizeLinear", np.int32)


def test_a_scale_that_is_no_number_is_refused() -> None:
    net = Net(1, 2, 6, 8, opset=19)
    features = net.Flatten(net.GlobalMaxPool(net.conv("x", 24, 3, 3)))
    weight = net.DequantizeLinear(net.const(np.ones((4, 24)), dtype=np.int8), net.const(np.float32(np.nan)))
    result, _ = convert(net.model(net.Gemm(features, weight, transB=1)))
    assert [site.reason for site in result.sites] == ["fcn/not-finite"]


@pytest.mark.parametrize("form", ["gemm", "matmul", "transposed"])
@pytest.mark.parametrize("scales", SCALES)
def test_there_and_back_as_convolutions(scales: str, form: str) -> None:
    net = Net(3, 24)
    model = net.model(fc(net, "x", form, *SCALES[scales]))
    as_conv = applied(model, FcToConv())
    ((kernel, _),) = weights(as_conv, "Conv")
    assert (kernel.dtype, kernel.shape) == (np.int8, (4, 24, 1, 1))
    as_fc = applied(as_conv, ConvToFc())
    ((matrix, _),) = weights(as_fc, "Gemm")
    assert (matrix.dtype, matrix.shape) == (np.int8, (4, 24))
    x = net.rng.integers(-3, 4, (3, 24)).astype(np.float32)
    want = run(model, {"x": x}).values()
    for made in (as_conv, as_fc):
        for one, other in zip(want, run(made, {"x": x}).values(), strict=True):
            np.testing.assert_array_equal(one, other)


def applied(model: onnx.ModelProto, pass_: Pass) -> onnx.ModelProto:
    loaded = model_io.load(model.SerializeToString())
    result = run_pass(pass_, loaded.graph)
    assert result.changed
    return onnx.load_from_string(model_io.to_bytes(replace(loaded, graph=result.graph)))


@pytest.mark.parametrize("shape", [(6, 2, 2), (3, 8), (24,), (2, 3, 4)])
@pytest.mark.parametrize("axis", [0, 1])
def test_the_scales_follow_the_integers(axis: int, shape: tuple[int, ...]) -> None:
    """Whatever the new axes, the meaning is moved, or nothing is said."""
    net = Net(1, 1)
    name = stored(net, net.rng.integers(-9, 10, (6, 4)), (6, 4)[axis : axis + 1], axis)
    graph = model_io.load(net.model(net.Identity(name)).SerializeToString()).graph
    tensor = graph.tensors()[name]
    before = Stored.read(tensor, Constants(graph))
    assert before is not None
    after = before.arranged(lambda values: values.reshape(shape))
    if after is None:
        assert axis == 1 or shape == (24,) or shape[0] not in (6,)
        return
    spread = np.ones(len(shape), int)
    if after.axis is not None:
        spread[after.axis] = -1
    assert after.zero is not None
    got = (after.values.astype(np.float32) - after.zero.reshape(spread)) * after.scale.reshape(spread)
    want = Constants(graph).value(tensor)
    assert want is not None
    np.testing.assert_array_equal(got, want.reshape(shape))


class Digits(CalibrationDataReader):
    """Random images to calibrate with."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.rest = [rng.random((1, 1, 32, 32)).astype(np.float32) for _ in range(4)]

    def get_next(self) -> Any:
        return {"image": self.rest.pop()} if self.rest else None


@pytest.fixture(scope="module", params=[False, True], ids=["per-tensor", "per-channel"])
def lenet(request: Any, tmp_path_factory: Any) -> Path:
    """The trained LeNet-5, quantized by ONNX Runtime's own tool."""
    path = Path(tmp_path_factory.mktemp("qdq")) / "lenet5.qdq.onnx"
    source = Path(__file__).parents[2] / "models" / "lenet5.onnx"
    how = {"per_channel": request.param, "activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize_static(source, path, Digits(), quant_format=QuantFormat.QDQ, **how)
    return path


@pytest.mark.parametrize("options", [{}, {"stride": 1}])
def test_a_quantized_classifier_takes_any_size(lenet: Path, options: dict[str, Any]) -> None:
    model = cr.load(lenet)
    result = cr.fcn(model, **options)
    found = cr.verify(model, result.model)
    assert found.passed
    assert any("quantized" in line for line in found.warnings)
    floats = [case for case in found.cases if case.error is not None]
    assert floats
    assert all(case.error == 0.0 for case in floats), "the integers are the same, and so are the sums"
    kernels = weights(onnx.load_from_string(model_io.to_bytes(result.model)), "Conv")
    assert [kernel.dtype for kernel, _ in kernels] == [np.int8] * 5


def test_a_planted_fault_is_found(lenet: Path, tmp_path: Path) -> None:
    """One weight of the head moved by eight steps."""
    result = cr.fcn(cr.load(lenet))
    proto = onnx.load_from_string(model_io.to_bytes(result.model))
    (name,) = [
        t.name
        for t in proto.graph.initializer
        if list(t.dims) == [11, 84, 1, 1] and t.data_type == onnx.TensorProto.INT8
    ]
    tensor = next(t for t in proto.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor).copy()
    values[:, :20] = np.clip(values[:, :20].astype(int) + 8, -127, 127)
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    onnx.save(proto, tmp_path / "wrong.onnx")
    with pytest.raises(CheckFailed, match="not equivalent"):
        cr.verify(cr.load(lenet), cr.load(tmp_path / "wrong.onnx"))
