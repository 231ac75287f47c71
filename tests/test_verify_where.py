"""`verify --where`: inner tensors are held against what the verdict holds the outputs against."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from convrewrite.verification import Verification
from helpers import Net, verify

Array = np.ndarray[Any, Any]


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def located(folder: Path, a: onnx.ModelProto, b: onnx.ModelProto, **how: Any) -> tuple[Verification, Any]:
    onnx.save(a, folder / "a.onnx")
    onnx.save(b, folder / "b.onnx")
    found = verify(folder / "a.onnx", folder / "b.onnx", where=True, **how)
    assert found.divergence is not None
    return found, found.divergence


def chain(dtype: Any = np.float32, *, change: float = 1.0, step: float = 0.0, reorder: bool = False) -> onnx.ModelProto:
    """Conv, Relu, Conv, Relu, Gemm (`conv one` to `scores`) in that type inside, with float32 ends.

    Args:
        change: factor of channel 1 of `conv two`, whose values are a ten-thousandth of the others.
        step: of a quantization of `relu one`. reorder: `conv one` is a sum of two.
    """
    net = Net("N", 3, 9, 8)

    def const(values: Array) -> str:
        return net.const(values, dtype=dtype)

    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    x = net.Cast("x", to=kind) if dtype != np.float32 else "x"
    weight, bias = 0.3 * normal(1, 6, 3, 3, 3), const(normal(2, 6))
    if reorder:
        first, second = net.Split(x, net.const([1, 2]), outputs=2, axis=1)
        one, two = net.Conv(first, const(weight[:, :1])), net.Conv(second, const(weight[:, 1:]), bias)
        x = net.node("Add", two, one, outputs=["conv one"])
    else:
        x = net.node("Conv", x, const(weight), bias, outputs=["conv one"])
    x = net.node("Relu", x, outputs=["relu one"])
    if step:
        parts = (net.const(np.float32(step)), net.const(np.asarray(0), dtype=np.uint8))
        x = net.node("QuantizeLinear", x, *parts, outputs=["steps one"])
        x = net.node("DequantizeLinear", x, *parts, outputs=["numbers one"])
    weight = 0.2 * normal(3, 4, 6, 3, 3)
    weight[1] *= 1e-4 * change
    x = net.node("Conv", x, const(weight), outputs=["conv two"])
    x = net.Flatten(net.node("Relu", x, outputs=["relu two"]))
    end = net.node("Gemm", x, const(0.2 * normal(4, 5, 80)), const(normal(5, 5)), transB=1, outputs=["scores"])
    return net.model(net.node("Cast", end, outputs=["y"], to=TensorProto.FLOAT))


@pytest.mark.parametrize("turned", [False, True], ids=["float32 first", "float16 first"])
def test_a_twin_of_another_precision_agrees_inside_too(tmp_path: Path, turned: bool) -> None:
    """Inner tensors of both types are compared, at the tolerance of the coarser one."""
    pair = (chain(), chain(np.float16))
    found, where = located(tmp_path, *(pair[::-1] if turned else pair), twins=True)
    assert found.verdict == "verified", str(found)
    assert not where.tensor, str(where)
    assert where.compared >= 6


def test_a_wrong_twin_is_located(tmp_path: Path) -> None:
    wrong = chain(np.float16)
    bias = next(t for t in wrong.graph.initializer if list(t.dims) == [6])
    bias.CopyFrom(onnx.numpy_helper.from_array((1.2 * normal(2, 6)).astype(np.float16), bias.name))
    found, where = located(tmp_path, chain(), wrong, twins=True)
    assert found.verdict == "failed"
    assert where.tensor == "conv one"


def test_a_failure_in_one_part_is_located(tmp_path: Path) -> None:
    """Channel 1 of `conv two` is 1e-4 of the others: off by a thousandth of itself, it is off by 1e-7 of the whole."""

    def small(change: float) -> onnx.ModelProto:
        model = chain(change=change)
        node = next(node for node in model.graph.node if node.output[0] == "relu two")
        del model.graph.node[list(model.graph.node).index(node) + 1 :], model.graph.output[:]
        model.graph.output.append(onnx.helper.make_tensor_value_info("relu two", TensorProto.FLOAT, None))
        return model

    found, where = located(tmp_path, small(1.0), small(1.001))
    assert found.verdict == "failed"
    assert where.tensor == "conv two"
    assert where.error < 1e-5
    assert re.search(r"by \[[0:], 1, [0-9:]+, [0-9:]+\]", str(where)), str(where)
    assert found.to_dict()["where"]["part"]


def test_a_tolerance_of_the_user_is_for_the_whole(tmp_path: Path) -> None:
    found, where = located(tmp_path, chain(), chain(change=1.001), tolerance=1e-4)
    assert found.verdict == "verified"
    assert not where.tensor, str(where)


@pytest.mark.parametrize("beside", [1.0, 1.000001], ids=["equal steps", "other steps"])
def test_the_steps_of_a_quantized_model_are_no_difference(tmp_path: Path, beside: float) -> None:
    """Another order of the first sum moves a few integers by one step; integers are compared as numbers."""
    found, where = located(tmp_path, chain(step=1 / 8), chain(step=beside / 8, reorder=True))
    assert found.verdict == "verified", str(found)
    assert not where.tensor, str(where)
    assert where.compared >= 8


def test_a_fault_below_a_step_is_located_without_the_steps(tmp_path: Path) -> None:
    """Scores that are off by less than what a step moves: only without the steps do the models differ."""
    other = chain(step=1 / 8)
    bias = next(t for t in other.graph.initializer if list(t.dims) == [5])
    bias.CopyFrom(onnx.numpy_helper.from_array(normal(5, 5) + np.float32(1e-3), bias.name))
    found, where = located(tmp_path, chain(step=1 / 8), other)
    assert found.verdict == "failed", str(found)
    assert where.tensor == "scores", str(where)
