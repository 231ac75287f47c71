"""Nets with planted groups: block-diagonal kernels whose channels were put in another order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from convrewrite import model_io
from convrewrite.engine.rewrite import PassResult, accept_all, run_pass
from convrewrite.passes.groups import Groups
from helpers import Array, Net, run


def blocks(rng: np.random.Generator, shapes: Sequence[tuple[int, int]], kernel: Sequence[int], bound: int = 1) -> Array:
    """A kernel [O, I, *k] of integers with blocks of those (out, in) shapes along its diagonal, none of them zero."""
    weight = np.zeros((sum(o for o, _ in shapes), sum(i for _, i in shapes), *kernel), np.float32)
    row = column = 0
    for out, inputs in shapes:
        block = rng.integers(-bound, bound + 1, (out, inputs, *kernel)).astype(np.float32)
        block.reshape(out, inputs, -1)[:, :, 0] = 1  # connected, whatever the rest is
        weight[row : row + out, column : column + inputs] = block
        row, column = row + out, column + inputs
    return weight


def planted(
    rng: np.random.Generator,
    shapes: Sequence[tuple[int, int]],
    kernel: Sequence[int] = (3, 3),
    rows: Array | None = None,
    columns: Array | None = None,
) -> Array:
    """The same with its channels in another order: channel c of the blocks is channel rows[c], columns[c] of it."""
    weight = blocks(rng, shapes, kernel)
    rows = rng.permutation(weight.shape[0]) if rows is None else rows
    columns = rng.permutation(weight.shape[1]) if columns is None else columns
    mixed = np.zeros_like(weight)
    mixed[np.ix_(rows, columns)] = weight
    return mixed


def stem(net: Net, *shape: int) -> Array:
    """A dense kernel of -1, 0 and 1 in which no channel is dead."""
    weight = net.numbers_of(*shape, bound=1)
    weight.reshape(*shape[:2], -1)[:, :, 0] = 1
    return weight


def equal(groups: int, channels: int) -> list[tuple[int, int]]:
    """Shapes of that many equal square groups."""
    return [(channels // groups, channels // groups)] * groups


def conv(net: Net, x: str, weight: Array, *, bias: bool = True, **attrs: Any) -> str:
    """A Conv with that weight, as large on its output as on its input unless told otherwise."""
    pads = {} if "pads" in attrs or "auto_pad" in attrs else {"pads": [k // 2 for k in weight.shape[2:]] * 2}
    return str(net.node("Conv", x, net.const(weight), *([net.ints(weight.shape[0])] if bias else []), **(pads | attrs)))


def rewrite(
    model: onnx.ModelProto, pass_: Groups | None = None, judge: Any = accept_all
) -> tuple[PassResult, onnx.ModelProto]:
    """The pass over a model, written and read again; the input is checked to be untouched."""
    loaded = model_io.load(model.SerializeToString())
    before = model_io.to_bytes(loaded)
    result = run_pass(pass_ or Groups(), loaded.graph, judge=judge)
    assert model_io.to_bytes(loaded) == before, "the input was changed"
    made = onnx.load_model_from_string(model_io.to_bytes(model_io.Model(result.graph, model.ir_version)))
    onnx.checker.check_model(made, full_check=True)
    return result, made


def feeds_of(model: onnx.ModelProto, seed: int = 0, integers: bool = True) -> dict[str, Array]:
    """Values for the inputs of a model."""
    rng = np.random.default_rng(seed)
    constants = {tensor.name for tensor in model.graph.initializer}
    feeds = {}
    for info in model.graph.input:
        if info.name not in constants:
            dims = [d.dim_value or 3 for d in info.type.tensor_type.shape.dim]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
            feeds[info.name] = (rng.integers(-2, 3, dims) if integers else rng.standard_normal(dims)).astype(dtype)
    return feeds


def assert_equal(before: onnx.ModelProto, after: onnx.ModelProto, error: float = 0.0) -> None:
    """Both give the same in ONNX Runtime: bit for bit on integers, unless an error is allowed."""
    feeds = feeds_of(before, integers=error == 0)
    got = run(after, feeds)
    for name, want in run(before, feeds).items():
        assert np.isfinite(want).all()
        if error == 0:
            assert np.abs(want).max() < 2**24, "not exact in float32"
            np.testing.assert_array_equal(got[name], want)
        else:
            assert got[name].shape == want.shape
            assert np.abs(got[name] - want).max() <= error * np.abs(want).max()


def ops(model: onnx.ModelProto) -> list[str]:
    """Operators in order."""
    return [node.op_type for node in model.graph.node]


def group_counts(model: onnx.ModelProto) -> list[int]:
    """Groups of the convolutions in order."""
    return [
        next((a.i for a in node.attribute if a.name == "group"), 1)
        for node in model.graph.node
        if node.op_type == "Conv"
    ]
