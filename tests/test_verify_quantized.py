"""One quantized node does not loosen a model: without its steps it has to agree as tightly as any other.

The networks are written by hand around QuantizeLinear, DequantizeLinear pairs; ONNX Runtime runs both.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from convrewrite.cli.words import FLAGS
from convrewrite.text import told
from convrewrite.verification import Verification, surrogate
from convrewrite.verification.comparison import ONE_STEP
from helpers import Net, run, verify

Array = np.ndarray[Any, Any]

STEP = 1.0 / 32


def check(folder: Path, a: onnx.ModelProto, b: onnx.ModelProto, **options: Any) -> Verification:
    onnx.save(a, folder / "a.onnx")
    onnx.save(b, folder / "b.onnx")
    return verify(folder / "a.onnx", folder / "b.onnx", **options)


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rounded(net: Net, x: str, step: float = STEP, zero: int = 128, kind: Any = np.uint8) -> str:
    """A pair around an activation."""
    parts = (net.const(np.float32(step)), net.const(np.asarray(zero), dtype=kind))
    return str(net.DequantizeLinear(net.QuantizeLinear(x, *parts), *parts))


def network(
    where: tuple[str, ...] = ("input",), *, tail: float = 0.0, middle: float = 0.0, reorder: bool = False, **pair: Any
) -> onnx.ModelProto:
    """Conv, Relu, Conv, Relu, Flatten, Gemm; rounded at some places.

    Args:
        where: "input", "middle", "output". tail, middle: added to the last bias and to the first.
        reorder: the last sum is taken in two parts. pair: other steps.
    """
    net = Net("N", 3, 8, 7)

    def at(name: str, x: str) -> str:
        return rounded(net, x, **pair) if name in where else x

    x = at("input", "x")
    x = net.Relu(net.Conv(x, net.const(0.3 * normal(1, 6, 3, 3, 3)), net.const(normal(2, 6) + np.float32(middle))))
    x = at("middle", x)
    x = net.Flatten(net.Relu(net.Conv(x, net.const(0.3 * normal(3, 4, 6, 3, 3)))))
    weight, bias = 0.2 * normal(4, 5, 48), net.const(normal(5, 5) + np.float32(tail))
    if reorder:
        first, second = net.Split(x, net.const([20, 28]), outputs=2, axis=1)
        y = net.Gemm(first, net.const(weight[:, :20]), bias, transB=1)
        y = net.Add(net.Gemm(second, net.const(weight[:, 20:]), transB=1), y)
    else:
        y = net.Gemm(x, net.const(weight), bias, transB=1)
    y = at("output", y)
    return net.model(net.node("Identity", y, outputs=["y"]))


@pytest.mark.parametrize("where", [("input",), ("middle",), ("input", "middle"), ("input", "middle", "output")])
def test_a_change_below_a_step_is_found(tmp_path: Path, where: tuple[str, ...]) -> None:
    """Three thousandths of the output, where one step of eight bits was tolerated throughout."""
    plain = network(where)
    peak = max(float(np.abs(run(plain, {"x": normal(k, 1, 3, 8, 7)})["y"]).max()) for k in range(3))
    assert check(tmp_path, plain, plain).passed
    honest = check(tmp_path, plain, network(where, reorder=True))
    assert honest.passed, honest.message()
    found = check(tmp_path, plain, network(where, tail=0.003 * peak))
    assert found.verdict == "failed"
    assert any("without quantization" in case.name for case in found.cases if case.status == "failed")


def test_a_bias_ahead_of_the_rounding_is_found(tmp_path: Path) -> None:
    """A tenth of a step: few numbers fall to the other side, and the rounding hides the rest."""
    found = check(tmp_path, network(("middle",)), network(("middle",), middle=STEP / 10))
    assert found.verdict == "failed"


@pytest.mark.parametrize(
    "pair", [{"step": STEP * 1.5}, {"zero": 140}, {"kind": np.int8, "zero": 12}], ids=["step", "zero point", "type"]
)
def test_other_steps_are_found(tmp_path: Path, pair: dict[str, Any]) -> None:
    found = check(tmp_path, network(("input", "middle")), network(("input", "middle"), **pair))
    assert found.verdict == "failed"


def test_a_pair_that_is_gone_is_found(tmp_path: Path) -> None:
    found = check(tmp_path, network(("input", "middle")), network(("input",)))
    assert found.verdict == "failed" or any("their scales or zero points differ" in w for w in found.warnings)


def test_numbers_on_the_other_side_of_a_step_are_no_fault(tmp_path: Path) -> None:
    """All activations lie in the middle between two steps, where another order of a sum decides: many steps at once."""

    def model(reorder: bool) -> onnx.ModelProto:
        net = Net(1, 40)
        weight = normal(1, 30, 40)
        ones = net.Add(net.Mul("x", net.const(0.0)), net.const(normal(2, 1, 40)))
        if reorder:
            first, second = net.Split(ones, net.const([13, 27]), outputs=2, axis=1)
            y = net.Add(net.MatMul(second, net.const(weight[:, 13:].T)), net.MatMul(first, net.const(weight[:, :13].T)))
        else:
            y = net.MatMul(ones, net.const(weight.T))
        exact = normal(2, 1, 40).astype(np.float64) @ weight.T.astype(np.float64)
        tie = net.const((STEP * (np.round(exact / STEP) + 0.5) - exact).astype(np.float32))
        y = rounded(net, net.Add(y, tie))
        out = net.Add(net.MatMul(y, net.const(normal(3, 30, 6))), net.MatMul("x", net.const(normal(4, 40, 6))))
        return net.model(net.node("Identity", out, outputs=["y"]))

    feeds = {"x": normal(9, 1, 40)}
    apart = run(model(True), feeds)["y"] - run(model(False), feeds)["y"]
    assert np.abs(apart).max() > 3 * STEP, "no number fell to the other side"
    found = check(tmp_path, model(False), model(True))
    assert found.passed, found.message()
    assert any("without quantization" in case.name for case in found.cases), "which shows that it is no fault"


@pytest.mark.parametrize("seed", range(3))
def test_an_output_of_three_steps_may_be_one_step_off(tmp_path: Path, seed: int) -> None:
    """One step is a third of the largest value there; ties make every other element fall to the other side."""

    def model(reorder: bool, step: float = 1.0) -> onnx.ModelProto:
        net = Net(1, 90)
        weight = np.random.default_rng(seed).standard_normal((40, 90)).astype(np.float32)
        ones = net.Add(net.Mul("x", net.const(0.0)), net.const(normal(2, 1, 90)))
        if reorder:
            first, second = net.Split(ones, net.const([33, 57]), outputs=2, axis=1)
            y = net.Add(net.MatMul(second, net.const(weight[:, 33:].T)), net.MatMul(first, net.const(weight[:, :33].T)))
        else:
            y = net.MatMul(ones, net.const(weight.T))
        exact = normal(2, 1, 90).astype(np.float64) @ weight.T.astype(np.float64)
        tie = net.const((np.random.default_rng(seed).integers(-3, 3, (1, 40)) + 0.5 - exact).astype(np.float32))
        moving = net.MatMul(
            net.Clip(net.Mul("x", net.const(1e9)), net.const(-1.0), net.const(1.0)),
            net.const(np.eye(90, 40, dtype=np.float32)),
        )
        y = net.Mul(net.Add(net.Add(y, tie), moving), net.const(step))
        y = rounded(net, y, step, 128)
        return net.model(net.node("Identity", y, outputs=["y"]))

    feeds = {"x": np.abs(normal(9, 1, 90))}
    want, got = (run(model(reorder), feeds)["y"] for reorder in (False, True))
    assert np.abs(got - want).max() == 1.0
    assert np.abs(want).max() <= 5.0
    found = check(tmp_path, model(False), model(True))
    assert found.passed, found.message()


def test_steps_that_are_found_while_it_runs_are_named(tmp_path: Path) -> None:
    """No float surrogate: one step is tolerated, and the report says at which operator it failed."""

    def model(tail: float) -> onnx.ModelProto:
        net = Net("N", 12)
        q, scale, zero = net.DynamicQuantizeLinear("x", outputs=3, name="dynamic")
        weight = net.const(np.random.default_rng(0).integers(-9, 9, (12, 5)), dtype=np.int8)
        y = net.Cast(net.MatMulInteger(q, weight, zero), to=onnx.TensorProto.FLOAT)
        return net.model(net.Add(net.Mul(y, scale), net.const(np.float32(tail))))

    found = check(tmp_path, model(0.0), model(0.0))
    assert found.passed
    assert any("DynamicQuantizeLinear 'dynamic'" in line or "MatMulInteger" in line for line in found.warnings)
    assert all(case.tolerance is None or case.tolerance >= ONE_STEP for case in found.cases)
    assert check(tmp_path, model(0.0), model(1.0)).verdict == "failed"


def test_quantized_weights_do_not_round(tmp_path: Path) -> None:
    """A pair around a constant is a constant: no step is tolerated for it."""

    def model(factor: float) -> onnx.ModelProto:
        net = Net("N", 12)
        weight = rounded(net, net.const(normal(1, 12, 5)))
        return net.model(net.Mul(net.MatMul("x", weight), net.const(np.float32(factor))))

    found = check(tmp_path, model(1.0), model(1.0))
    assert found.passed
    assert not found.warnings
    assert check(tmp_path, model(1.0), model(1.0001)).verdict == "failed"


# The surrogate itself -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "zero", "kind"), [(STEP, 128, np.uint8), (0.1, 0, np.uint8), (0.02, -3, np.int8)])
def test_what_is_left_of_a_pair_is_its_range(step: float, zero: int, kind: Callable[..., Any]) -> None:
    net = Net("N", 50)
    pair = (net.const(np.float32(step)), net.const(np.asarray(zero), dtype=kind))
    q = net.MaxPool(net.Reshape(net.QuantizeLinear("x", *pair), net.const([-1, 1, 50])), kernel_shape=[1])
    model = net.model(net.DequantizeLinear(net.Reshape(q, net.const([-1, 50])), *pair))
    x = 20 * normal(0, 4, 50)
    (want,) = run(model, {"x": x}).values()
    surrogate.remove_rounding(model)
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in model.graph.node}
    (got,) = run(model, {"x": x}).values()
    info = np.iinfo(kind)
    low, high = (np.float32((end - zero) * np.float64(np.float32(step))) for end in (info.min, info.max))
    np.testing.assert_array_equal(got, np.clip(x, low, high))
    assert np.abs(got - want).max() <= step * 0.5001


def test_dither_moves_by_half_a_step_at_most() -> None:
    net = Net("N", 500)
    model = net.model(rounded(net, "x"))
    surrogate.dithered(model)
    x = normal(0, 4, 500)
    (got,) = run(model, {"x": x}).values()
    assert STEP / 2 < np.abs(got - x).max() <= STEP * 1.0001
    for node in model.graph.node:
        assert node.op_type in {"RandomUniformLike", "Add", "QuantizeLinear", "DequantizeLinear"}


def test_integers_that_are_computed_with_cannot_be_taken_out() -> None:
    net = Net("N", 8)
    pair = (net.const(np.float32(STEP)), net.const(np.asarray(128), dtype=np.uint8))
    q = net.QuantizeLinear("x", *pair)
    y = net.DequantizeLinear(net.node("Add", q, q, name="twice"), *pair)
    model = net._proto([helper.make_tensor_value_info(y, onnx.TensorProto.FLOAT, ["N", 8])])
    with pytest.raises(surrogate.NoSurrogate, match="Add 'twice' computes with integers"):
        surrogate.remove_rounding(model)


def test_scales_and_zero_points_are_counted() -> None:
    one, two = network(("input",)), network(("input", "middle"))
    assert surrogate.parameters(one) != surrogate.parameters(two)
    assert surrogate.parameters(one) == surrogate.parameters(network(("middle",)))
    (key,) = surrogate.parameters(one)
    assert np.frombuffer(key[0][1:], np.float32) == np.float32(STEP)
    assert numpy_helper is not None


@pytest.mark.parametrize("turned", [False, True], ids=["float first", "quantized first"])
def test_one_model_that_rounds_is_named(tmp_path: Path, turned: bool) -> None:
    pair = [network(()), network(("input",))]
    found = check(tmp_path, *(pair[::-1] if turned else pair))
    (line,) = [line for line in found.warnings if "counts as a difference" in line]
    assert line.startswith("the original is quantized" if turned else "the other model is quantized")
    assert "--max-output-error" in told(line, FLAGS)
    alike = check(tmp_path, network(("input",)), network(("input",), reorder=True))
    assert not any("counts as a difference" in line for line in alike.warnings)


def test_weights_that_are_stored_as_integers_are_named(tmp_path: Path) -> None:
    weight = 0.3 * normal(1, 5, 12)
    scale = float(np.abs(weight).max() / 127)

    def model(stored: bool) -> onnx.ModelProto:
        net = Net(1, 12)
        kept = net.const(np.rint(weight / scale), dtype=np.int8) if stored else ""
        matrix = net.DequantizeLinear(kept, net.const(np.float32(scale))) if stored else net.const(weight)
        return net.model(net.node("Gemm", "x", matrix, outputs=["y"], transB=1))

    found = check(tmp_path, model(False), model(True))
    assert found.verdict == "failed"
    assert any("stores its weights as integers" in line for line in found.warnings)
    assert not any("as a difference" in line for line in check(tmp_path, model(True), model(False)).warnings)
