"""The largest output hides no other: a fault in a small class, row, cell or box is found, and no rounding is one.

Every network is written down twice by hand, the second time with a fault, or with the same sums in another order.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cli_models import call
from onnx import numpy_helper

import convrewrite as cr
from convrewrite.errors import CheckFailed
from convrewrite.verification import Verification
from helpers import Net, run, verify

Array = np.ndarray[Any, Any]
Change = Callable[[Array], Array]

LARGE = 1e7


def check(folder: Path, a: onnx.ModelProto, b: onnx.ModelProto, **options: Any) -> Verification:
    onnx.save(a, folder / "a.onnx")
    onnx.save(b, folder / "b.onnx")
    return verify(folder / "a.onnx", folder / "b.onnx", **options)


def same(values: Array) -> Array:
    return values


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def on_axis(values: Array, axis: int, rank: int) -> Array:
    """A vector that runs along one axis."""
    shape = [1] * rank
    shape[axis] = values.size
    return values.reshape(shape).astype(np.float32)


# Faults -------------------------------------------------------------------------------------------------------------


def small_gone(factors: Array) -> Array:
    """All but the first are 0."""
    return np.where(np.arange(factors.size) > 0, 0.0, factors)


def one_off(factors: Array) -> Array:
    """One of the small ones is off by a thousandth."""
    return np.where(np.arange(factors.size) == 2, 1.001 * factors, factors)


SHAPES = {
    "classes": ((6, 5), 1),
    "classes of one image": ((1, 5), 1),
    "channels of a map": ((1, 5, 4, 3), 1),
    "channels last": ((1, 4, 3, 5), 3),
    "tokens and classes": ((2, 7, 5), 2),
    "boxes and scores": ((1, 5, 40), 1),
    "rows": ((1, 2, 5, 3), 2),
    "columns": ((1, 2, 3, 5), 3),
    "no batch": ((5,), 0),
    "images of a batch": ((5, 3), 0),
}
"""The shape of an output, and the axis along which its magnitude differs."""


@pytest.mark.parametrize("fault", [small_gone, one_off])
@pytest.mark.parametrize(("shape", "axis"), SHAPES.values(), ids=SHAPES.keys())
def test_a_fault_in_a_small_part_is_found(tmp_path: Path, shape: tuple[int, ...], axis: int, fault: Change) -> None:
    factors = np.array([LARGE, 1.0, 0.5, 2.0, 1.5])

    def model(change: Change) -> onnx.ModelProto:
        net = Net(*shape)
        return net.model(net.Mul(net.Tanh("x"), net.const(on_axis(change(factors), axis, len(shape)))))

    assert check(tmp_path, model(same), model(same)).passed
    found = check(tmp_path, model(same), model(fault))
    assert found.verdict == "failed", "it is 2e-07 of the largest output"
    worst = found.worst
    assert worst is not None
    assert worst.channel is not None
    assert worst.error is not None
    assert worst.error < 1e-5
    assert worst.place[axis] in range(5)
    assert str(worst.channel) in found.message()
    with pytest.raises(CheckFailed, match="of its own largest value"):
        found.check()


@pytest.mark.parametrize("fault", [0.0, 1.01])
@pytest.mark.parametrize("step", [2, 3, 4])
def test_small_cells_between_large_ones_are_judged_by_themselves(tmp_path: Path, step: int, fault: float) -> None:
    """DepthToSpace lays channels out in turns; along no axis and in no line are the small ones alone."""
    diagonal = np.arange(step * step).reshape(step, step) % (step + 1) == 0  # of a block: channels that are large
    large = np.where(diagonal.ravel(), LARGE, 1.0)

    def model(factor: float) -> onnx.ModelProto:
        net = Net(1, 3, 8, 8)
        kernels = normal(4, step * step, 3, 3, 3) * np.where(large > 1, large, factor)[:, None, None, None]
        return net.model(net.DepthToSpace(net.Conv("x", net.const(kernels.astype(np.float32))), blocksize=step))

    assert check(tmp_path, model(1.0), model(1.0)).passed
    found = check(tmp_path, model(1.0), model(fault))
    assert found.verdict == "failed"
    assert found.worst is not None
    assert "::" in str(found.worst.channel), "every n-th cell of two axes"


def classes(change: Change = same, *, split: bool = False) -> onnx.ModelProto:
    """Conv, Relu, Flatten, Gemm to 5 classes, the first of which is large; `change` sees the last bias."""
    net = Net("N", 3, 6, 6)
    features = net.Flatten(net.Relu(net.Conv("x", net.const(normal(1, 3, 3, 3, 3)))))
    factors = np.array([LARGE, 1.0, 1.0, 1.0, 1.0], np.float32)[:, None]
    weight, bias = normal(2, 5, 48) * factors, change(normal(3, 5) * factors[:, 0])
    if not split:
        return net.model(net.Gemm(features, net.const(weight), net.const(bias), transB=1))
    parts = net.Split(features, net.const([20, 28]), outputs=2, axis=1)
    first = net.Gemm(parts[0], net.const(weight[:, :20]), transB=1)
    return net.model(net.Add(net.Gemm(parts[1], net.const(weight[:, 20:]), net.const(bias), transB=1), first))


def test_a_bias_of_a_small_class_is_found_and_another_order_of_the_sum_is_not(tmp_path: Path) -> None:
    """A thousandth of the bias, which is a thousandth of the class."""
    honest = check(tmp_path, classes(), _renamed(classes(split=True)))
    assert honest.passed, honest.message()
    found = check(tmp_path, classes(), _renamed(classes(one_off, split=True)))
    assert found.verdict == "failed"
    assert found.worst is not None
    assert str(found.worst.channel) == "[:, 2]"


def _renamed(model: onnx.ModelProto) -> onnx.ModelProto:
    """Another way to the same output: its name is the original's."""
    name = classes().graph.output[0].name
    for node in model.graph.node:
        node.output[:] = [name if n == model.graph.output[0].name else f"other/{n}" for n in node.output]
        known = {t.name for t in model.graph.initializer} | {"x"}
        node.input[:] = [n if n in known else f"other/{n}" for n in node.input]
    model.graph.output[0].name = name
    return model


def test_one_cell_is_found(tmp_path: Path) -> None:
    """Small in all its channels, beside large cells in its row and its column."""
    scale = np.ones((1, 1, 5, 4))
    scale[..., 2, 1] = 1e-7

    def model(factor: float) -> onnx.ModelProto:
        net, values = Net(1, 3, 5, 4), scale.copy()
        values[..., 2, 1] *= factor
        return net.model(net.Mul(net.Tanh("x"), net.const(values)))

    found = check(tmp_path, model(1.0), model(1.01))
    assert found.verdict == "failed"
    assert found.worst is not None
    assert str(found.worst.channel) == "[0, :, 2, 1]"


def test_a_small_second_output_is_found(tmp_path: Path) -> None:
    def model(factor: float) -> onnx.ModelProto:
        net = Net(2, 3, 5, 4)
        large = net.Mul(net.Tanh("x"), net.const(LARGE))
        return net.model(large, net.Mul(net.Tanh("x"), net.const(np.full((1, 1, 5, 4), factor))))

    found = check(tmp_path, model(1.0), model(1.0001))
    assert [case.status for case in found.cases] == ["passed", "failed"]


@pytest.mark.parametrize("name", ["windows", "batches"])
def test_a_small_class_of_a_map_is_found(tmp_path: Path, name: str) -> None:
    """In the fully convolutional form, and in one that was opened to any batch."""
    model = classes()
    if name == "batches":
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, tmp_path / "a.onnx")
    result = cr.fcn(cr.load(tmp_path / "a.onnx"), dynamic_batch=name == "batches")
    result.save(tmp_path / "b.onnx")
    wrong = onnx.load(tmp_path / "b.onnx")
    (bias,) = [t for t in wrong.graph.initializer if list(t.dims) == [5]]
    bias.CopyFrom(numpy_helper.from_array(one_off(numpy_helper.to_array(bias)).astype(np.float32), bias.name))
    onnx.save(wrong, tmp_path / "wrong.onnx")
    with pytest.raises(CheckFailed, match=r"\[:, 2\] .* of its own largest value"):
        cr.verify(tmp_path / "a.onnx", tmp_path / "wrong.onnx")


# What is no fault ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_a_class_whose_terms_cancel_may_round(tmp_path: Path, seed: int) -> None:
    """Its value is a millionth of its terms, so another order of the sum moves it by more than 1e-5 of itself."""
    rng = np.random.default_rng(seed)
    half = rng.standard_normal((4, 60)).astype(np.float32)
    weight = np.concatenate([half, half], axis=1)
    weight[1:, 60:] = -half[1:] * np.float32(1.0 + 1e-5)
    order = rng.permutation(120)

    def model(permuted: bool) -> onnx.ModelProto:
        net = Net(3, 60)
        twice = net.Concat(net.Tanh("x"), net.Tanh("x"), axis=1)
        x = net.Gather(twice, net.const(order.tolist()), axis=1) if permuted else net.Identity(twice)
        y = net.MatMul(x, net.const((weight[:, order] if permuted else weight).T))
        return net.model(net.node("Identity", y, outputs=["y"]))

    plain, other = model(False), model(True)
    x = {"x": rng.standard_normal((3, 60)).astype(np.float32)}
    want, got = (run(each, x)["y"][:, 1:] for each in (plain, other))
    assert (np.abs(got - want).max(axis=0) > 1e-5 * np.abs(want).max(axis=0)).any(), "nothing to tell from a fault"
    found = check(tmp_path, plain, other)
    assert found.passed, found.message()


def test_a_class_whose_terms_cancel_is_still_judged(tmp_path: Path) -> None:
    """Rounding explains a ten-thousandth of it, and no tenth."""
    half = normal(5, 4, 60)
    weight = np.concatenate([half, half], axis=1)
    weight[1, 60:] = -half[1] * np.float32(1.0 + 1e-2)

    def model(factor: float) -> onnx.ModelProto:
        net = Net(3, 60)
        values = weight.copy()
        values[1] *= np.float32(factor)
        twice = net.Concat(net.Tanh("x"), net.Tanh("x"), axis=1)
        return net.model(net.MatMul(twice, net.const(values.T)))

    assert check(tmp_path, model(1.0), model(1.1)).verdict == "failed"


def test_a_channel_that_is_0_is_held_against_the_whole(tmp_path: Path) -> None:
    """A dead Relu: what is 1e-8 where 0 was has no magnitude of its own to be held against."""

    def model(least: float) -> onnx.ModelProto:
        net = Net(2, 3, 5, 4)
        bias = net.const(np.array([0.0, -1e9, 0.0]).reshape(1, 3, 1, 1))
        return net.model(net.Max(net.Add(net.Tanh("x"), bias), net.const(least)))

    assert check(tmp_path, model(0.0), model(1e-8)).passed
    assert check(tmp_path, model(0.0), model(1e-3)).verdict == "failed"


def test_the_tolerance_of_the_user_is_for_the_whole(tmp_path: Path) -> None:
    """`--max-output-error` is max|a-b|/max|b|, as its help says; the worst part is told of."""
    found = check(tmp_path, classes(), classes(one_off), tolerance=1e-4)
    assert found.passed
    case = found.cases[0]
    assert case.channel is not None
    assert str(case.channel) == "[:, 2]"
    assert case.channel.error > 1e-4
    assert "[:, 2]" in str(case)


# How it is told -----------------------------------------------------------------------------------------------------


def test_text_report_and_page_name_the_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(classes(), tmp_path / "a.onnx")
    onnx.save(classes(one_off), tmp_path / "b.onnx")
    report, page = tmp_path / "r.json", tmp_path / "p.html"
    files = (tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert call(monkeypatch, "verify", *files, "--report", report, "--html", page) == 1
    case = json.loads(report.read_text())["verify"]["cases"][0]
    assert case["error"] < case["tolerance"]
    assert case["status"] == "failed"
    assert case["channel"]["part"] == "[:, 2]"
    assert case["channel"]["error"] > case["channel"]["tolerance"] >= 9 * case["channel"]["noise"] > 0
    assert case["channel"]["place"][1] == 2
    assert "[:, 2]" in page.read_text()
    assert f"worst part: {classes().graph.output[0].name}[:, 2]" in capsys.readouterr().out
