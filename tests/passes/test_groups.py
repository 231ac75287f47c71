"""`groups` on planted kernels: found, exact, absorbed into the layers around; and left alone where it should be.

The oracle is ONNX Runtime on the original model. Weights and inputs are small integers, so that every sum is exact in
float32 and the comparison is bit for bit, whatever the order of the terms.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from convrewrite import model_io
from convrewrite.cli.words import FLAGS
from convrewrite.engine.convsite import read_site
from convrewrite.engine.rewrite import Declined, Kernels, PassResult, Plan, Refusal
from convrewrite.errors import ConvrewriteError
from convrewrite.passes.groups import Groups
from convrewrite.passes.groups.packing import Layout
from convrewrite.text import told
from groups_nets import assert_equal, blocks, conv, equal, feeds_of, group_counts, ops, planted, rewrite, stem
from helpers import Net, run


def residual(groups: int = 2, channels: int = 32, units: int = 2, norm: bool = False) -> onnx.ModelProto:
    """A stem, residual units of two planted 3x3 convolutions, and a head; every sum is of integers."""
    net = Net(1, 3, 8, 12, seed=groups + units)
    rng = net.rng
    trunk = rng.permutation(channels)
    x = net.Relu(conv(net, "x", stem(net, channels, 3, 3, 3)))
    for _ in range(units):
        inner = rng.permutation(channels)
        y = conv(net, x, planted(rng, equal(groups, channels), rows=inner, columns=trunk))
        if norm:
            vectors = [net.ints(channels), net.ints(channels), net.ints(channels), net.const(np.full(channels, 0.25))]
            y = net.BatchNormalization(y, *vectors, epsilon=0.0)
        y = conv(net, net.Relu(y), planted(rng, equal(groups, channels), rows=trunk, columns=inner))
        x = net.Clip(net.Add(x, y), net.const(np.float32(-8)), net.const(np.float32(8)))
    return net.model(net.fc(net.Flatten(net.GlobalMaxPool(x)), 5))


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


def assert_idempotent(model: onnx.ModelProto, pass_: Groups | None = None) -> None:
    again, same = rewrite(model, pass_)
    assert not again.changed, again
    assert ops(same) == ops(model)


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


def _lrn(net: Net, x: str, channels: int) -> str:
    return str(net.LRN(net.Relu(x), size=5, alpha=1.0, beta=1.0, bias=1.0))


def _shuffle(net: Net, x: str, channels: int) -> str:
    spread = net.Reshape(x, net.const([1, 2, channels // 2, 8, 12]))
    return str(net.Reshape(net.Transpose(spread, perm=[0, 2, 1, 3, 4]), net.const([1, channels, 8, 12])))


FIXED: dict[str, Any] = {
    "lrn": _lrn,
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
    x = _lrn(net, conv(net, "x", stem(net, 32, 3, 3, 3)), 32)
    y = conv(net, x, planted(net.rng, equal(2, 32), rows=straight, columns=straight))
    y = _lrn(net, y, 32)
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


@pytest.mark.parametrize(
    "shapes", [[(48, 48), (16, 16)], [(32, 32), (16, 16), (16, 16)], [(40, 24), (8, 24), (16, 16)]]
)
def test_unequal_blocks_stand_side_by_side(shapes: list[tuple[int, int]]) -> None:
    net = Net(1, 3, 8, 12)
    x = net.Relu(conv(net, "x", stem(net, sum(i for _, i in shapes), 3, 1, 1)))
    y = net.Relu(conv(net, x, planted(net.rng, shapes)))
    model = net.model(conv(net, y, stem(net, 3, sum(o for o, _ in shapes), 1, 1)))
    result, made = rewrite(model)
    (site,) = result.outcome("rewritten")
    assert "Gather" not in ops(made)
    assert site.macs_after < site.macs_before
    assert_equal(model, made)
    assert_idempotent(made)


def test_grouped_convolutions_are_split_further() -> None:
    net = Net(1, 3, 8, 12)
    x = net.Relu(conv(net, "x", stem(net, 64, 3, 1, 1)))
    halves = np.concatenate([planted(net.rng, equal(2, 32)) for _ in range(2)])
    y = net.Relu(conv(net, x, halves, group=2))
    model = net.model(conv(net, y, stem(net, 3, 64, 1, 1)))
    result, made = rewrite(model)
    assert len(result.outcome("rewritten")) == 1
    assert group_counts(made) == [1, 4, 1]
    assert ops(made) == ops(model)
    assert_equal(model, made)


def test_one_channel_per_group_is_depthwise() -> None:
    net = Net(1, 3, 8, 12)
    x = net.Relu(conv(net, "x", stem(net, 48, 3, 1, 1)))
    y = net.Relu(conv(net, x, planted(net.rng, [(1, 1)] * 48)))
    model = net.model(conv(net, y, stem(net, 3, 48, 1, 1)))
    _, made = rewrite(model)
    assert group_counts(made) == [1, 48, 1]
    assert ops(made) == ops(model)
    assert_equal(model, made)


def test_a_grouped_neighbour_takes_an_order_within_its_groups() -> None:
    net = Net(1, 32, 8, 12)
    rng = net.rng
    y = net.Relu(conv(net, "x", blocks(rng, equal(2, 32), (1, 1))[:, :16].copy() + 1, group=2))
    inside = np.concatenate([rng.permutation(16), 16 + rng.permutation(16)])
    y = net.Relu(conv(net, y, planted(rng, equal(2, 32), columns=inside)))
    y = net.Clip(y, net.const(np.float32(0)), net.const(np.float32(1)))
    model = net.model(conv(net, y, stem(net, 3, 32, 1, 1)))
    _, made = rewrite(model)
    assert group_counts(made) == [2, 2, 1]
    assert "Gather" not in ops(made)
    assert_equal(model, made)


@pytest.mark.parametrize("counts", [(8, 4, 2), (2, 4, 8), (4, 2, 4), (2, 4, 2)], ids=str)
def test_groups_within_groups(counts: tuple[int, ...]) -> None:
    """Groups that hold several groups of the next layer, or of the one before, any of them: they move as a whole."""
    net = Net(1, 3, 6, 8, seed=sum(counts))
    rng, channels = net.rng, 128
    x = net.Relu(conv(net, "x", stem(net, channels, 3, 1, 1)))
    leaves = rng.permutation(channels)  # position in a tree of halves -> channel
    for count in counts:
        size = channels // count
        tree = leaves.reshape(count, size)[rng.permutation(count)]
        rows = rng.permutation(channels)
        weight = planted(rng, equal(count, channels), (1, 1), rows=rows, columns=tree.ravel())
        x = net.Clip(conv(net, x, weight), net.const(np.float32(-3)), net.const(np.float32(3)))
        order = np.argsort([int(np.flatnonzero(leaves == t[0])[0]) for t in tree])
        leaves = rows.reshape(count, size)[order].ravel()
    model = net.model(conv(net, x, stem(net, 3, channels, 1, 1)))
    result, made = rewrite(model)
    assert ops(made) == ops(model), result
    assert len(result.outcome("rewritten")) == len(counts)
    assert_equal(model, made)


def test_quantized_weights_stay_quantized() -> None:
    net = Net(1, 3, 8, 12)

    def quantized(weight: Any) -> str:
        count = weight.shape[0]
        scale = net.const(np.exp2(net.rng.integers(0, 2, count)))
        zero = net.const(np.zeros(count), dtype=np.int8)
        return str(net.DequantizeLinear(net.const(weight, dtype=np.int8), scale, zero, axis=0))

    x = net.Relu(net.Conv("x", quantized(stem(net, 32, 3, 1, 1))))
    y = net.Relu(net.Conv(x, quantized(planted(net.rng, equal(2, 32))), net.ints(32), pads=[1] * 4))
    model = net.model(net.Conv(y, quantized(stem(net, 3, 32, 1, 1))))
    _, made = rewrite(model)
    assert group_counts(made) == [1, 2, 1]
    kinds = [t.data_type for t in made.graph.initializer if len(t.dims) == 4]
    assert kinds == [onnx.TensorProto.INT8] * 3
    assert_equal(model, made)


# Within a tolerance ---------------------------------------------------------------------------------------------------


def noisy(groups: int, noise: float, chain: int = 1) -> onnx.ModelProto:
    net = Net(1, 3, 8, 12)
    x = net.Relu(conv(net, "x", net.rng.standard_normal((64, 3, 1, 1))))
    for _ in range(chain):
        weight = planted(net.rng, equal(groups, 64)) + noise * net.rng.standard_normal((64, 64, 3, 3))
        x = net.Relu(conv(net, x, weight))
    return net.model(conv(net, x, net.rng.standard_normal((3, 64, 1, 1))))


@pytest.mark.parametrize("groups", [2, 4])
def test_blocks_that_are_almost_there(groups: int) -> None:
    model = noisy(groups, 0.02)
    result, made = rewrite(model, Groups(tol=0.1, into=groups))
    (site,) = result.outcome("rewritten")
    assert site.equivalence == "approximate"
    assert 0.01 < site.error <= 0.1
    assert group_counts(made) == [1, groups, 1]
    assert ops(made) == ops(model)
    kept, _ = result.evidence_of(Kernels).made[site.anchor]()
    assert_equal(with_weight(model, site.anchor, kept), made, error=1e-5)
    before = weight_of(model, site.anchor)
    assert np.linalg.norm(before - kept) / np.linalg.norm(before) == pytest.approx(site.error, rel=1e-5)


def test_the_evidence_of_a_chain_is_in_the_original_order() -> None:
    """The first rewrite moves the columns of the second convolution before that is planned."""
    model = noisy(2, 0.02, chain=2)
    result, made = rewrite(model, Groups(tol=0.1))
    reference = model
    assert len(result.outcome("rewritten")) == 2
    for anchor, kernel in result.evidence_of(Kernels).made.items():
        reference = with_weight(reference, anchor, kernel()[0])
    assert_equal(reference, made, error=1e-5)


def weight_of(model: onnx.ModelProto, anchor: str) -> Any:
    (node,) = (n for n in model.graph.node if anchor in n.output)
    return onnx.numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == node.input[1]))


def with_weight(model: onnx.ModelProto, anchor: str, weight: Any) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    (node,) = (n for n in changed.graph.node if anchor in n.output)
    stored = next(t for t in changed.graph.initializer if t.name == node.input[1])
    assert weight.dtype == np.float32
    stored.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(weight), stored.name))
    return changed


def test_the_tolerance_that_it_would_take() -> None:
    model = noisy(2, 0.02)
    result, _ = rewrite(model)
    (site,) = (s for s in result.sites if s.macs_before > 64 * 64 * 8 * 12)
    assert site.reason == "groups/no-structure"
    assert site.tol_pays is not None
    printed = told(site.detail, FLAGS).rpartition("--tol ")[2]
    assert rewrite(model, Groups(tol=float(printed)))[0].changed, "the printed one suffices"
    assert rewrite(model, Groups(tol=site.tol_pays * 1.001))[0].changed
    assert not rewrite(model, Groups(tol=site.tol_pays * 0.9))[0].changed


# Reasons --------------------------------------------------------------------------------------------------------------


def reasons(result: PassResult) -> set[str]:
    return {site.reason for site in result.sites}


def test_no_structure() -> None:
    net = Net(1, 4, 8, 12)
    assert reasons(rewrite(net.model(net.conv("x", 4, 3, 3)))[0]) == {"groups/no-structure"}


def test_already_grouped() -> None:
    """What a tolerance allows once, it does not allow again."""
    model = noisy(4, 0.04)
    at = {groups: rewrite(model, Groups(tol=1.0, into=groups))[0].outcome("rewritten")[-1].error for groups in (2, 4)}
    assert at[2] < at[4]
    tol = 0.5 * (at[2] + at[4])
    _, made = rewrite(model, Groups(tol=tol))
    assert group_counts(made)[1] == 2
    again, same = rewrite(made, Groups(tol=tol))
    assert not again.changed
    assert "groups/already-grouped" in reasons(again)
    assert group_counts(same)[1] == 2


def test_not_grouped() -> None:
    net = Net(1, 4, 8, 12)
    assert reasons(rewrite(net.model(net.conv("x", 4, 3, 3)), Groups(expand="dense"))[0]) == {"groups/not-grouped"}


def test_no_such_number() -> None:
    net = Net(1, 4, 8, 12)
    assert reasons(rewrite(net.model(net.conv("x", 4, 3, 3)), Groups(into=3))[0]) == {"groups/no-such-number"}


def test_public_order() -> None:
    net = Net(1, 16, 8, 12)
    model = net.model(conv(net, "x", planted(net.rng, equal(2, 16), (1, 1))))
    result, made = rewrite(model)
    assert reasons(result) == {"groups/public-order"}
    assert "input or an output" in result.sites[0].detail
    assert ops(made) == ["Conv"]


def test_order_fixed() -> None:
    net = Net(1, 3, 8, 12)
    x = _lrn(net, conv(net, "x", stem(net, 16, 3, 1, 1)), 16)
    y = net.Relu(conv(net, x, planted(net.rng, equal(2, 16), (1, 1))))
    result, _ = rewrite(net.model(conv(net, y, stem(net, 3, 16, 1, 1))))
    (site,) = (s for s in result.sites if s.reason != "groups/no-structure")
    assert site.reason == "groups/order-fixed"
    assert "LRN" in site.detail


def test_tied_channels() -> None:
    """A residual unit whose convolution mixes the order: input and output groups do not match."""
    net = Net(1, 3, 8, 12)
    x = net.Relu(conv(net, "x", stem(net, 16, 3, 1, 1)))
    y = net.Add(x, conv(net, x, planted(net.rng, equal(2, 16), (1, 1))))
    result, _ = rewrite(net.model(conv(net, y, stem(net, 3, 16, 1, 1))))
    assert "groups/tied-channels" in reasons(result)


def test_unknown_shape() -> None:
    """With maps of unknown size, nobody knows which features behind a Reshape are one channel."""
    net = Net(1, 3, "height", "width")
    x = net.Relu(conv(net, "x", stem(net, 16, 3, 1, 1)))
    y = net.Relu(conv(net, x, planted(net.rng, equal(2, 16), (1, 1))))
    z = net.Gemm(net.Reshape(y, net.const([1, 16 * 9])), net.ints(16 * 9, 5))
    result, _ = rewrite(net.model(z))
    assert "groups/unknown-shape" in reasons(result)


def test_unknown_rank() -> None:
    net = Net(1, 4, 5, 5, 5, 5)
    weight = onnx.numpy_helper.from_array(np.ones((2, 4, 1, 1, 1, 1), np.float32), "w")
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"])
    y = onnx.helper.make_tensor_value_info("y", 1, [1, 2, 5, 5, 5, 5])
    graph = onnx.helper.make_graph([node], "g", net.inputs, [y], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    assert reasons(rewrite(model)[0]) == {"groups/unknown-rank"}


def test_weight_type() -> None:
    net = Net(1, 4, 9, 9)
    graph = model_io.load(net.model(net.conv("x", 8, 3, 3)).SerializeToString()).graph
    (node,) = graph.nodes
    node.inputs[1].values = np.ones((8, 4, 3, 3), np.int32)
    refusal = read_site(graph, node, "groups")
    assert isinstance(refusal, Refusal)
    assert refusal.reason.code == "groups/weight-type"


def test_weight_not_constant() -> None:
    net = Net(1, 4, 8, 12)
    weight = net.input("w", 4, 4, 3, 3)
    result, _ = rewrite(net.model(net.Conv("x", weight)))
    assert reasons(result) == {"groups/weight-not-constant"}
    assert result.sites[0].outcome == "refused"


def test_nan_weight() -> None:
    net = Net(1, 4, 8, 12)
    result, _ = rewrite(net.model(net.Conv("x", net.const(np.full((4, 4, 1, 1), np.nan)))))
    assert reasons(result) == {"groups/nan-weight"}
    assert Groups.reasons["groups/nan-weight"].whole


def test_only_legal_plans_are_offered_to_the_judge() -> None:
    offered: list[Plan] = []

    def judge(graph: Any, plan: Plan) -> Declined:
        offered.append(plan)
        return Declined(Groups.reasons["groups/no-structure"], "by the test")

    model = residual(4, 64)
    result, made = rewrite(model, judge=judge)
    assert not result.changed
    assert len({plan.sites[0].anchor for plan in offered}) == 4
    assert len(offered) >= 8, "two groups of 32 are offered too"
    assert run(made, feeds_of(model)).keys() == run(model, feeds_of(model)).keys()


def test_every_reason_has_its_test() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_groups*.py"))
    assert all(f'"{code}"' in text for code in Groups.reasons)


def test_the_same_input_gives_the_same_bytes() -> None:
    one, two = (rewrite(noisy(4, 0.02, 2), Groups(tol=0.1))[1] for _ in range(2))
    assert one.SerializeToString(deterministic=True) == two.SerializeToString(deterministic=True)


def test_a_claimed_kernel_that_is_too_far_off_is_an_internal_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an approximate rewrite is verified against is itself held against the original's kernel."""
    result, _ = rewrite(noisy(4, 0.02, 2), Groups(tol=0.1))
    assert result.evidence_of(Kernels).made
    for kernel in result.evidence_of(Kernels).made.values():
        assert np.any(kernel()[0])
    monkeypatch.setattr(Layout, "mask", lambda self, rows, columns: np.eye(rows, columns, dtype=bool))
    for kernel in result.evidence_of(Kernels).made.values():
        with pytest.raises(ConvrewriteError, match=r"are off by .*, not by"):
            kernel()
