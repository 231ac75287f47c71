"""Which groups `groups` finds: unequal blocks, groups within groups, one channel each, and quantized ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from groups_nets import assert_equal, blocks, conv, equal, group_counts, ops, planted, rewrite, stem
from groups_planted import assert_idempotent
from helpers import Net


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
