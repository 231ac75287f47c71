"""`groups` on planted kernels: found, exact, absorbed into the layers around; and left alone where it should be.

The oracle is ONNX Runtime on the original model. Weights and inputs are small integers, so that every sum is exact in
float32 and the comparison is bit for bit, whatever the order of the terms.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest

from groups_nets import assert_equal, conv, equal, group_counts, ops, planted, rewrite, stem
from groups_planted import assert_idempotent, lrn, residual
from helpers import Net


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
@pytest.mark.parametrize("groups", [2, 4, 8])
def test_a_residual_net_is_regrouped_without_a_gather(groups: int, norm: bool) -> None:
    model = residual(groups, channels=16 * groups, norm=norm)
    result, made = rewrite(model)
    rewritten = result.outcome("rewritten")
    assert len(rewritten) == 4
    assert {site.equivalence for site in rewritten} == {"reassociated"}
    assert {site.error for site in rewritten} == {0.0}
    assert group_counts(made) == [1, *[groups] * 4]
    assert ops(made) == ops(model), "nothing was put in"
    assert_equal(model, made)
    assert_idempotent(made)


def test_the_sites_say_what_was_saved() -> None:
    model = residual(2)
    result, made = rewrite(model)
    cells, taps = 8 * 12, 9
    for site in result.outcome("rewritten"):
        assert site.macs_before == 32 * 32 * taps * cells
        assert site.macs_after == site.macs_before // 2
        assert site.params_before == 32 * 32 * taps + 32
        assert site.params_after == 32 * 32 * taps // 2 + 32
        assert "2 groups of 16x16" in site.detail
    sizes = [math.prod(tensor.dims) for tensor in made.graph.initializer]
    before = [math.prod(tensor.dims) for tensor in model.graph.initializer]
    assert sum(before) - sum(sizes) == 4 * 32 * 32 * taps // 2
    (left,) = result.outcome("declined")
    assert left.reason == "groups/no-structure"
    assert left.tol_pays is None, "three channels cannot be divided by two"


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
def test_a_chain(length: int, bias: bool) -> None:
    net = Net(2, 3, 9, 12)
    x = net.Relu(conv(net, "x", stem(net, 64, 3, 1, 1)))
    order = net.rng.permutation(64)
    for _ in range(length):
        new = net.rng.permutation(64)
        weight = planted(net.rng, equal(4, 64), (3, 1), rows=new, columns=order)
        x = net.Clip(conv(net, x, weight, bias=bias), net.const(np.float32(-2)), net.const(np.float32(2)))
        order = new
    model = net.model(conv(net, x, stem(net, 4, 64, 1, 1)))
    result, made = rewrite(model)
    assert len(result.outcome("rewritten")) == length
    assert group_counts(made) == [1, *[4] * length, 1]
    assert ops(made) == ops(model)
    assert_equal(model, made)
    assert_idempotent(made)


GEOMETRY: list[dict[str, Any]] = [
    {"strides": [2, 1], "pads": [1, 1, 1, 1]},
    {"dilations": [2, 2], "pads": [2, 2, 2, 2]},
    {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"auto_pad": "VALID"},
    {"pads": [0, 1, 2, 0]},
]


@pytest.mark.parametrize("attrs", GEOMETRY, ids=str)
def test_the_geometry_stays(attrs: dict[str, Any]) -> None:
    net = Net(1, 3, 11, 14)
    x = net.Relu(conv(net, "x", stem(net, 32, 3, 1, 1)))
    y = conv(net, x, planted(net.rng, [(32, 16)] * 2), **attrs)
    model = net.model(conv(net, net.Relu(y), stem(net, 3, 64, 1, 1)))
    result, made = rewrite(model)
    assert len(result.outcome("rewritten")) == 1
    assert group_counts(made) == [1, 2, 1]
    assert_equal(model, made)


@pytest.mark.parametrize(("kernel", "extents"), [((5,), (19,)), ((3, 3, 1), (5, 6, 7))])
def test_other_ranks(kernel: tuple[int, ...], extents: tuple[int, ...]) -> None:
    net = Net(1, 3, *extents)
    ones = (1,) * len(kernel)
    x = net.Relu(conv(net, "x", stem(net, 32, 3, *ones)))
    y = conv(net, x, planted(net.rng, equal(2, 32), kernel))
    model = net.model(conv(net, net.Relu(y), stem(net, 3, 32, *ones)))
    result, made = rewrite(model)
    assert group_counts(made) == [1, 2, 1]
    assert len(result.outcome("rewritten")) == 1
    assert ops(made) == ops(model)
    assert_equal(model, made)


def test_inception_like() -> None:
    """Planted convolutions inside of branches that are joined, and behind the join, within one branch each."""
    net = Net(1, 3, 8, 12)
    rng = net.rng
    x = net.Relu(conv(net, "x", stem(net, 16, 3, 3, 3)))
    ends, orders = [], []
    for _ in range(2):
        first, second = rng.permutation(64), rng.permutation(64)
        y = net.Clip(conv(net, x, net.numbers_of(64, 16, 1, 1, bound=1)), "", net.const(np.float32(3)))
        y = conv(net, y, planted(rng, equal(2, 64), rows=second, columns=first))
        ends.append(net.Clip(y, net.const(np.float32(-1)), net.const(np.float32(1))))
        orders.append(second)
    joined = net.Concat(*ends, axis=1)
    columns = np.concatenate([orders[0], 64 + orders[1]])
    y = conv(net, joined, planted(rng, equal(4, 128), (1, 1), columns=columns))
    model = net.model(conv(net, net.Relu(y), stem(net, 2, 128, 1, 1)))
    result, made = rewrite(model)
    assert sorted(group_counts(made)) == [1, 1, 1, 1, 2, 2, 4]
    assert sorted(ops(made)) == sorted(ops(model))
    assert len(result.outcome("rewritten")) == 3
    assert_equal(model, made)
    assert_idempotent(made)


def around(middle: Any, groups: int = 2, channels: int = 32, seed: int = 0, opset: int = 13) -> onnx.ModelProto:
    """stem, `middle`, planted 3x3, `middle`, head."""
    net = Net(1, 3, 8, 12, seed=seed, opset=opset)
    x = middle(net, conv(net, "x", stem(net, channels, 3, 1, 1)), channels)
    y = middle(net, conv(net, x, planted(net.rng, equal(groups, channels))), channels)
    return net.model(conv(net, y, stem(net, 3, channels, 1, 1)))


def _depthwise(net: Net, x: str, channels: int) -> str:
    return conv(net, x, net.numbers_of(channels, 1, 3, 3, bound=1), group=channels)


def _quantized(net: Net, x: str, channels: int) -> str:
    scale = net.const(np.exp2(net.rng.integers(-1, 2, channels)))
    zero = net.const(net.rng.integers(-3, 4, channels), dtype=np.int8)
    return str(net.DequantizeLinear(net.QuantizeLinear(x, scale, zero, axis=1), scale, zero, axis=1))


PASSED: dict[str, Any] = {
    "relu": lambda net, x, c: net.Relu(x),
    "bias": lambda net, x, c: net.Add(x, net.ints(c, 1, 1)),
    "scaled": lambda net, x, c: net.Mul(net.ints(1, c, 1, 1), x),
    "scalar": lambda net, x, c: net.Add(x, net.const(np.float32(2))),
    "prelu": lambda net, x, c: net.PRelu(x, net.ints(c, 1, 1)),
    "pool": lambda net, x, c: net.MaxPool(x, kernel_shape=[2, 2], strides=[1, 1]),
    "padded": lambda net, x, c: net.Pad(x, net.const([0, 0, 1, 0, 0, 0, 0, 2])),
    "depthwise": _depthwise,
    "quantized": _quantized,
    "gated": lambda net, x, c: net.Mul(x, net.Sign(net.conv(net.GlobalMaxPool(x), c, 1, 1))),
    "transposed": lambda net, x, c: net.Transpose(x, perm=[0, 1, 3, 2]),
    "resized": lambda net, x, c: net.Resize(x, "", net.const(np.array([1, 1, 2, 1.0]))),
    "sliced": lambda net, x, c: net.Slice(x, net.const([1]), net.const([6]), net.const([2])),
    "upconv": lambda net, x, c: net.ConvTranspose(x, net.const(stem(net, c, c, 2, 2)), net.ints(c), strides=[2, 2]),
    "sum": lambda net, x, c: net.Sum(x, net.Relu(x), net.Neg(x)),
    "tied": lambda net, x, c: net.Where(net.Greater(x, net.ints(c, 1, 1)), x, net.ints(1, c, 1, 1)),
}


@pytest.mark.parametrize("kind", PASSED)
def test_the_order_runs_through(kind: str) -> None:
    model = around(PASSED[kind])
    result, made = rewrite(model)
    (site,) = result.outcome("rewritten")
    assert "Gather" not in ops(made), site.detail
    assert sorted(ops(made)) == sorted(ops(model))
    assert_equal(model, made)
    assert_idempotent(made)


@pytest.mark.parametrize("batch", [2, "batch"])
@pytest.mark.parametrize("kind", ["flatten", "reshape", "computed", "matmul", "deep"])
def test_the_order_runs_into_a_classifier(kind: str, batch: int | str) -> None:
    net = Net(batch, 3, 4, 6)
    x = net.Relu(conv(net, "x", stem(net, 32, 3, 1, 1)))
    y = net.Relu(conv(net, x, planted(net.rng, equal(2, 32))))
    if kind == "flatten":
        z = net.fc(net.Relu(net.Flatten(y)), 5)
    elif kind == "reshape":
        z = net.Gemm(net.Reshape(y, net.const([0, -1])), net.ints(32 * 24, 5))
    elif kind == "computed":
        count = net.Unsqueeze(net.Gather(net.Shape(y), net.const(0)), net.const([0]))
        z = net.Gemm(net.Reshape(y, net.Concat(count, net.const([-1]), axis=0)), net.ints(32 * 24, 5))
    elif kind == "matmul":
        flat = net.Squeeze(net.GlobalMaxPool(y), net.const([2, 3]))
        z = net.Add(net.MatMul(flat, net.ints(32, 5)), net.ints(5))
    else:
        z = net.fc(net.Flatten(net.Reshape(y, net.const([0, 64, 3, 4]))), 5)
    model = net.model(z, shapes={z: [batch, 5]})
    result, made = rewrite(model)
    assert len(result.outcome("rewritten")) == 1
    assert sorted(ops(made)) == sorted(ops(model))
    assert_equal(model, made)


def test_a_gate_of_gemms() -> None:
    """Squeeze and excitation: the channels come back through two Gemms and are multiplied."""
    net = Net(1, 3, 8, 12)
    x = net.Relu(conv(net, "x", stem(net, 32, 3, 1, 1)))
    squeezed = net.Flatten(net.GlobalMaxPool(x))
    gate = net.Clip(net.fc(net.Relu(net.fc(squeezed, 4)), 32), net.const(np.float32(0)), net.const(np.float32(1)))
    gated = net.Mul(x, net.Reshape(gate, net.const([1, 32, 1, 1])))
    y = net.Relu(conv(net, gated, planted(net.rng, equal(2, 32))))
    model = net.model(conv(net, y, stem(net, 3, 32, 1, 1)))
    result, made = rewrite(model)
    assert len(result.outcome("rewritten")) == 1
    assert ops(made) == ops(model)
    assert_equal(model, made)


def test_shared_weights_are_not_edited() -> None:
    """Two convolutions and a vector share initializers; each gets its own."""
    net = Net(1, 3, 8, 12)
    first, vector = net.const(stem(net, 32, 3, 1, 1)), net.ints(32)
    weight = net.const(planted(net.rng, equal(2, 32)))
    x = net.Relu(net.Conv("x", first, vector))
    y = net.Relu(net.Conv(x, weight, vector, pads=[1] * 4))
    z = net.Clip(
        net.Conv(y, net.ints(32, 32, 1, 1, bound=1), vector), net.const(np.float32(-1)), net.const(np.float32(1))
    )
    z = net.Relu(net.Conv(z, weight, vector, pads=[1] * 4))
    other = net.Relu(net.Conv("x", first, vector))
    both = net.Concat(z, other, axis=1)
    model = net.model(conv(net, both, stem(net, 3, 64, 1, 1)))
    result, made = rewrite(model)
    assert len(result.outcome("rewritten")) == 2
    assert "Gather" not in ops(made)
    assert_equal(model, made)


def test_the_public_order_never_changes() -> None:
    """The planted convolution reads the model's input and gives its output; a Gather pays on both sides."""
    net = Net(1, 64, 8, 12)
    model = net.model(conv(net, "x", planted(net.rng, equal(2, 64))))
    result, made = rewrite(model)
    (site,) = result.sites
    assert site.outcome == "rewritten"
    assert site.detail.endswith("2 Gather")
    assert ops(made) == ["Gather", "Conv", "Gather"]
    assert_equal(model, made)
    assert_idempotent(made)


def test_groups_in_order_need_no_gather() -> None:
    net = Net(1, 64, 8, 12)
    weight = planted(net.rng, equal(2, 64), rows=np.arange(64), columns=np.arange(64))
    model = net.model(conv(net, "x", weight))
    _, made = rewrite(model)
    assert ops(made) == ["Conv"]
    assert group_counts(made) == [2]
    assert_equal(model, made)


def _shuffle(net: Net, x: str, channels: int) -> str:
    spread = net.Reshape(x, net.const([1, 2, channels // 2, 8, 12]))
    return str(net.Reshape(net.Transpose(spread, perm=[0, 2, 1, 3, 4]), net.const([1, channels, 8, 12])))


FIXED: dict[str, Any] = {
    "lrn": lrn,
    "shuffle": _shuffle,
    "slice": lambda net, x, c: net.Concat(
        net.Slice(x, net.const([0]), net.const([5]), net.const([1])),
        net.Slice(x, net.const([5]), net.const([c]), net.const([1])),
        axis=1,
    ),
    "split": lambda net, x, c: net.Concat(*net.node("Split", x, outputs=2, axis=1), axis=1),
    "gather": lambda net, x, c: net.Gather(x, net.const(list(range(c))[::-1]), axis=1),
    "softmax": lambda net, x, c: net.Softmax(x, axis=1),
    "cumsum": lambda net, x, c: net.CumSum(x, net.const(1)),
}


@pytest.mark.parametrize("kind", FIXED)
def test_what_depends_on_the_order_gets_a_gather(kind: str) -> None:
    model = around(FIXED[kind], channels=64)
    result, made = rewrite(model)
    (site,) = result.outcome("rewritten")
    assert site.detail.endswith("2 Gather")
    assert ops(made).count("Gather") == ops(model).count("Gather") + 2
    assert_equal(model, made, error=1e-5 if kind in ("lrn", "softmax") else 0.0)
    assert_idempotent(made)


def test_alexnets_towers() -> None:
    """LRN between two convolutions whose groups are in order already: nothing has to move."""
    net = Net(1, 3, 8, 12)
    straight = np.arange(32)
    x = lrn(net, conv(net, "x", stem(net, 32, 3, 3, 3)), 32)
    y = conv(net, x, planted(net.rng, equal(2, 32), rows=straight, columns=straight))
    y = lrn(net, y, 32)
    y = conv(net, y, planted(net.rng, equal(2, 32), rows=straight, columns=straight))
    model = net.model(y)
    _, made = rewrite(model)
    assert group_counts(made) == [1, 2, 2]
    assert ops(made) == ops(model)
    assert_equal(model, made, error=1e-5)


def test_group_normalization_stops_the_order() -> None:
    """As exporters write it: the channels of a group become one."""
    net = Net(1, 3, 8, 12)
    x = conv(net, "x", stem(net, 64, 3, 1, 1))
    grouped = net.Reshape(x, net.const([1, 4, -1]))
    x = net.Reshape(net.InstanceNormalization(grouped, net.ints(4), net.ints(4)), net.const([1, 64, 8, 12]))
    y = conv(net, x, planted(net.rng, equal(2, 64)))
    model = net.model(conv(net, net.Relu(y), stem(net, 3, 64, 1, 1)))
    result, made = rewrite(model)
    (site,) = result.outcome("rewritten")
    assert site.detail.endswith("1 Gather")
    assert_equal(model, made, error=1e-4)
