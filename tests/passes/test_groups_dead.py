"""`groups` and dead channels: left out where they are made and read, exactly, or left alone with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from convrewrite.acceptance import smaller
from convrewrite.engine.rewrite import Kernels, PassResult, Site
from convrewrite.passes.groups import Groups
from groups_nets import assert_equal, conv, equal, group_counts, ops, planted, rewrite, stem
from helpers import Array, Net

DEAD = [1, 4, 9]


def without(weight: Array, rows: list[int] | None = None, columns: list[int] | None = None) -> Array:
    """The weight with zeros for these channels."""
    weight = weight.copy()
    weight[rows or []] = 0
    weight[:, columns or []] = 0
    return weight


def channels(model: onnx.ModelProto) -> list[tuple[int, int]]:
    """(out, in per group) of the convolutions in order."""
    shapes = {t.name: t.dims for t in model.graph.initializer}
    return [tuple(shapes[n.input[1]][:2]) for n in model.graph.node if n.op_type == "Conv"]


def head(net: Net, x: str, count: int, **attrs: Any) -> onnx.ModelProto:
    """A convolution without padding behind x."""
    return net.model(conv(net, x, net.numbers_of(5, count, 3, 3) + 0.0, pads=[0] * 4, **attrs))


def site_of(result: PassResult, outcome: str) -> Site:
    (site,) = (s for s in result.sites if s.outcome == outcome and s.reason != "groups/no-structure")
    return site


def dead_outputs(middle: Callable[[Net, str], str], bias: bool = True, padded: bool = False) -> onnx.ModelProto:
    """A convolution with rows of zeros and biases on them, `middle`, and one that reads it."""
    net = Net(2, 3, 9, 12)
    weight = without(net.numbers_of(12, 3, 3, 3), rows=DEAD)
    x = net.Conv("x", net.const(weight), *([net.const(np.arange(12) - 5.0)] if bias else []), pads=[1] * 4, name="dead")
    y = middle(net, str(x))
    return net.model(conv(net, y, net.numbers_of(5, 12, 3, 3), pads=[1 if padded else 0] * 4))


def _norm(net: Net, x: str) -> str:
    vectors = [net.ints(12), net.ints(12), net.ints(12), net.const(np.full(12, 0.25))]
    return str(net.BatchNormalization(x, *vectors, epsilon=0.0))


MIDDLES: dict[str, Callable[[Net, str], str]] = {
    "plain": lambda net, x: x,
    "relu": lambda net, x: net.Relu(x),
    "norm": _norm,
    "norm-relu": lambda net, x: net.Relu(_norm(net, x)),
    "prelu": lambda net, x: net.PRelu(x, net.ints(12, 1, 1)),
    "scale": lambda net, x: net.Mul(net.ints(1, 12, 1, 1), x),
    "bias": lambda net, x: net.Relu(net.Add(x, net.ints(12, 1, 1))),
    "pool": lambda net, x: net.MaxPool(net.Relu(x), kernel_shape=[2, 2], pads=[1, 1, 0, 0]),
    "clip": lambda net, x: net.Clip(x, net.const(np.float32(-2)), net.const(np.float32(3))),
    "square": lambda net, x: net.Mul(x, x),
    "depthwise": lambda net, x: conv(net, x, net.numbers_of(12, 1, 3, 3), group=12, pads=[0] * 4),
}


@pytest.mark.parametrize("kind", MIDDLES)
def test_dead_outputs_become_a_bias(kind: str) -> None:
    model = dead_outputs(MIDDLES[kind])
    result, made = rewrite(model, judge=smaller)
    site = site_of(result, "rewritten")
    assert "without 3 output channels" in site.detail
    assert site.macs_after == site.macs_before // 12 * 9
    assert site.params_after == 9 * 27 + 9
    assert channels(made)[0] == (9, 3)
    assert channels(made)[-1] == (5, 9)
    assert sorted(ops(made)) == sorted(ops(model))
    assert_equal(model, made)
    assert not rewrite(made)[0].changed


def test_a_sigmoid_of_the_bias() -> None:
    model = dead_outputs(lambda net, x: net.Sigmoid(x))
    result, made = rewrite(model)
    assert channels(made) == [(9, 3), (5, 9)]
    assert site_of(result, "rewritten").equivalence == "reassociated"
    assert_equal(model, made, error=1e-5)


def test_a_sigmoid_without_a_bias_is_still_one_half() -> None:
    model = dead_outputs(lambda net, x: net.Sigmoid(x), bias=False)
    _, made = rewrite(model)
    assert channels(made) == [(9, 3), (5, 9)]
    assert_equal(model, made, error=1e-5)


def test_zero_may_go_in_front_of_padding() -> None:
    """Behind the Relu, biases -4, -1 and 4 are 0, 0 and 4: two go, one stays."""
    model = dead_outputs(lambda net, x: net.Relu(x), padded=True)
    result, made = rewrite(model)
    assert "without 2 output channels" in site_of(result, "rewritten").detail
    assert channels(made) == [(10, 3), (5, 10)]
    assert_equal(model, made)


def test_another_constant_stays_in_front_of_padding() -> None:
    model = dead_outputs(lambda net, x: x, padded=True)
    result, made = rewrite(model)
    site = site_of(result, "declined")
    assert site.reason == "groups/dead-in-padding"
    assert "Conv" in site.detail
    assert channels(made) == channels(model)


@pytest.mark.parametrize("kind", ["average", "depthwise"])
def test_padding_on_the_way_counts_too(kind: str) -> None:
    def middle(net: Net, x: str) -> str:
        if kind == "average":
            return str(net.AveragePool(x, kernel_shape=[2, 2], pads=[1, 0, 0, 0], count_include_pad=1))
        return conv(net, x, net.numbers_of(12, 1, 3, 3) + 3, group=12, pads=[1] * 4)

    model = dead_outputs(middle)
    result, made = rewrite(model)
    assert not result.changed
    assert site_of(result, "declined").reason == "groups/dead-kept"
    assert channels(made) == channels(model)


def test_inputs_that_nobody_reads_are_not_made() -> None:
    net = Net(1, 3, 9, 12)
    x = net.Relu(conv(net, "x", net.numbers_of(12, 3, 3, 3)))
    weight = net.const(without(net.numbers_of(5, 12, 3, 3), columns=DEAD))
    model = net.model(net.Conv(x, weight, pads=[1] * 4))
    result, made = rewrite(model, judge=smaller)
    assert "without 3 input channels" in site_of(result, "rewritten").detail
    assert channels(made) == [(9, 3), (5, 9)]
    assert_equal(model, made)


def test_inputs_that_another_reads_stay() -> None:
    net = Net(1, 3, 9, 12)
    x = net.Relu(conv(net, "x", net.numbers_of(12, 3, 3, 3)))
    one = conv(net, x, without(net.numbers_of(5, 12, 3, 3), columns=DEAD))
    other = conv(net, x, net.numbers_of(5, 12, 3, 3))
    model = net.model(net.Add(one, other))
    result, made = rewrite(model)
    assert "groups/dead-kept" in {s.reason for s in result.sites}
    assert channels(made) == channels(model)
    both = [1, 4]
    net = Net(1, 3, 9, 12)
    x = net.Relu(conv(net, "x", net.numbers_of(12, 3, 3, 3)))
    one = conv(net, x, without(net.numbers_of(5, 12, 3, 3), columns=DEAD))
    other = conv(net, x, without(net.numbers_of(5, 12, 3, 3), columns=both))
    model = net.model(net.Add(one, other))
    _, made = rewrite(model)
    assert channels(made) == [(10, 3), (5, 10), (5, 10)]
    assert_equal(model, made)


def test_dead_inputs_of_the_model_stay() -> None:
    net = Net(1, 12, 9, 12)
    model = net.model(conv(net, "x", without(net.numbers_of(5, 12, 3, 3), columns=DEAD)))
    result, _ = rewrite(model)
    assert site_of(result, "declined").reason == "groups/dead-kept"
    assert "input or an output" in site_of(result, "declined").detail


def test_dead_in_all_branches_of_a_residual_add() -> None:
    def net_of(second: list[int]) -> onnx.ModelProto:
        net = Net(1, 3, 9, 12)
        x = conv(net, "x", without(net.numbers_of(12, 3, 3, 3), rows=DEAD))
        y = conv(net, net.Relu(x), without(net.numbers_of(12, 12, 3, 3), rows=second), pads=[1] * 4)
        return head(net, net.Relu(net.Add(x, y)), 12)

    model = net_of(DEAD)
    made = rewrite(model)[1]
    assert all(rows in (12, 9, 5, 11, 10) for rows, _ in channels(made))
    assert_equal(model, made)
    model = net_of([])
    assert_equal(model, rewrite(model)[1])


@pytest.mark.parametrize("kind", ["gemm", "plain-gemm", "matmul"])
def test_into_a_classifier(kind: str) -> None:
    net = Net(2, 3, 4, 6)
    weight = without(net.numbers_of(12, 3, 3, 3), rows=DEAD)
    x = net.Flatten(net.Conv("x", net.const(weight), net.const(np.arange(12) - 5.0), pads=[1] * 4))
    if kind == "matmul":
        y = net.MatMul(x, net.ints(12 * 24, 5))
    elif kind == "gemm":
        y = net.Gemm(x, net.ints(5, 12 * 24), net.ints(5), transB=1, alpha=2.0, beta=0.5)
    else:
        y = net.Gemm(x, net.ints(12 * 24, 5))
    model = net.model(y)
    result, made = rewrite(model)
    if kind == "matmul":
        assert not result.changed, "there is no bias that could take the constants"
    else:
        assert channels(made) == [(9, 3)]
    assert_equal(model, made)


def test_through_a_concat() -> None:
    net = Net(1, 3, 9, 12)
    one = net.Relu(conv(net, "x", without(net.numbers_of(12, 3, 3, 3), rows=DEAD)))
    other = net.Relu(conv(net, "x", without(net.numbers_of(4, 3, 3, 3), rows=[2])))
    model = head(net, net.Concat(other, one, axis=1), 16)
    _, made = rewrite(model)
    assert channels(made) == [(9, 3), (3, 3), (5, 12)] or channels(made) == [(3, 3), (9, 3), (5, 12)]
    assert_equal(model, made)


def test_the_reader_may_have_no_bias() -> None:
    net = Net(1, 3, 9, 12)
    x = conv(net, "x", without(net.numbers_of(12, 3, 3, 3), rows=DEAD))
    y = conv(net, x, without(net.numbers_of(6, 12, 3, 3), rows=[2]), bias=False, pads=[0] * 4)
    model = head(net, y, 6, bias=False)
    _, made = rewrite(model)
    assert channels(made) == [(9, 3), (6, 9), (5, 6)] or channels(made)[0] == (9, 3)
    assert_equal(model, made)


def test_all_channels_dead_leaves_one() -> None:
    net = Net(1, 3, 9, 12)
    x = net.Relu(conv(net, "x", np.zeros((12, 3, 3, 3))))
    model = head(net, x, 12)
    _, made = rewrite(model)
    assert channels(made) == [(1, 3), (5, 1)]
    assert_equal(model, made)
    assert not rewrite(made)[0].changed


def test_groups_behind_dead_channels() -> None:
    """The dead channels go first; what is left divides by two."""
    net = Net(1, 3, 9, 12)
    x = net.Relu(conv(net, "x", net.numbers_of(35, 3, 1, 1, bound=1)))
    inner = planted(net.rng, equal(2, 32))
    weight = np.insert(np.insert(inner, [3, 7, 20], 0, axis=0), [0, 5, 32], 0, axis=1)
    y = net.Relu(conv(net, x, weight))
    model = head(net, y, 35)
    result, made = rewrite(model)
    (site,) = result.outcome("rewritten")
    assert "without 3 input and 3 output channels, 2 groups of 16x16" in site.detail
    assert group_counts(made) == [1, 2, 1]
    assert channels(made) == [(32, 3), (32, 16), (5, 32)]
    assert ops(made) == ops(model)
    assert_equal(model, made)
    assert not rewrite(made)[0].changed


def test_dead_channels_that_stay_fill_groups_up() -> None:
    net = Net(1, 32, 9, 12)
    weight = planted(net.rng, [(16, 15), (16, 14)], rows=np.arange(32), columns=np.arange(29))
    weight = np.insert(weight, [15, 29, 29], 0, axis=1)
    model = net.model(conv(net, "x", weight))
    _, made = rewrite(model)
    assert group_counts(made) == [2]
    assert_equal(model, made)


def test_approximate_groups_behind_dead_channels_are_stated_whole() -> None:
    net = Net(1, 3, 8, 12)
    x = net.Relu(conv(net, "x", net.rng.standard_normal((35, 3, 1, 1))))
    inner = planted(net.rng, equal(2, 32)) + 0.02 * net.rng.standard_normal((32, 32, 3, 3))
    weight = np.insert(np.insert(inner, [3, 7, 20], 0, axis=0), [0, 5, 32], 0, axis=1)
    model = head(net, net.Relu(conv(net, x, weight, bias=False)), 35)
    result, _ = rewrite(model, Groups(tol=0.1))
    (site,) = (s for s in result.outcome("rewritten") if s.error > 0)
    kept, _ = result.evidence_of(Kernels).made[site.anchor]()
    assert kept.shape == weight.shape
    assert np.linalg.norm(weight - kept) / np.linalg.norm(weight) == pytest.approx(site.error, rel=1e-4)


# What follows from a channel that is gone ----------------------------------------------------------------------------


def test_what_only_a_lost_channel_read_goes_too() -> None:
    """The last convolution does not read channel 5, which alone reads channel 2 of the first one."""
    net = Net(1, 3, 9, 12)
    x = net.Relu(conv(net, "x", net.numbers_of(8, 3, 3, 3)))
    weight = without(np.abs(net.numbers_of(8, 8, 3, 3)) + 1, columns=[2])
    weight[5, 2] = 1
    y = net.Relu(conv(net, x, weight))
    last = net.const(without(net.numbers_of(5, 8, 3, 3), columns=[5]))
    model = net.model(net.Conv(y, last, pads=[1] * 4))
    result, made = rewrite(model)
    assert "without 1 input channels and 1 in front of them" in site_of(result, "rewritten").detail
    assert channels(made) == [(7, 3), (7, 7), (5, 7)]
    assert_equal(model, made)
    assert not rewrite(made)[0].changed


def test_what_reads_nothing_but_constants_is_constant() -> None:
    """Row 4 of the second convolution reads channel 1 alone, which is dead; both end in a sum."""
    net = Net(1, 3, 9, 12)
    x = net.Relu(net.Conv("x", net.const(without(net.numbers_of(8, 3, 1, 1), rows=[1])), net.const(np.ones(8))))
    weight = np.abs(net.numbers_of(8, 8, 1, 1)) + 1
    weight[1] = 0
    weight[1, 1] = 3
    y = net.Add(x, conv(net, x, weight))
    model = head(net, y, 8)
    _, made = rewrite(model)
    assert channels(made) == [(7, 3), (7, 7), (5, 7)]
    assert_equal(model, made)
    assert not rewrite(made)[0].changed


@pytest.mark.parametrize("side", ["input", "output", "in front"])
def test_a_dead_channel_that_a_group_needs_is_kept(side: str) -> None:
    """63 channels do not divide by four: the dead one fills its group up instead, which saves more than it costs."""
    net = Net(1, 3, 8, 12)
    first = stem(net, 64, 3, 1, 1)
    weight = planted(net.rng, equal(4, 64))
    if side == "in front":
        first[17] = 0
    else:
        weight = without(weight, **{"columns" if side == "input" else "rows": [17]})
    model = head(net, net.Relu(conv(net, net.Relu(conv(net, "x", first)), weight)), 64)
    result, made = rewrite(model)
    (site,) = result.outcome("rewritten")
    assert "4 groups of 16x16" in site.detail
    assert ops(made) == ops(model)
    assert_equal(model, made)
    assert not rewrite(made)[0].changed
    if side == "in front":
        assert "divides into faster groups" in site_of(result, "declined").detail


@pytest.mark.parametrize("batch", [1, "batch"])
@pytest.mark.parametrize("target", ["image", "own", "count", "shape"])
def test_a_flatten_that_is_computed(batch: int | str, target: str) -> None:
    """As exporters write x.view(x.size(0), -1): no channel may go where their number is part of the target."""
    net = Net(batch, 3, 4, 6)
    weight = without(net.numbers_of(12, 3, 3, 3), rows=DEAD)
    x = net.Relu(net.Conv("x", net.const(weight), net.const(np.arange(12) - 5.0), pads=[1] * 4))
    if target == "shape":
        shape = net.Shape(x)
        rest = [net.ReduceProd(net.Slice(shape, net.const([1]), net.const([4])), keepdims=1)]
    else:
        shape = net.Shape("x" if target == "image" else x)
        rest = [net.const([12 * 24 if target == "count" else -1])]
    count = net.Unsqueeze(net.Gather(shape, net.const(0)), net.const([0]))
    y = net.Gemm(net.Reshape(x, net.Concat(count, *rest, axis=0)), net.ints(12 * 24, 5), net.ints(5))
    model = net.model(y, shapes={y: [batch, 5]})
    result, made = rewrite(model)
    assert result.changed == (target in ("image", "own"))
    assert channels(made) == ([(9, 3)] if result.changed else [(12, 3)])
    assert_equal(model, made)
