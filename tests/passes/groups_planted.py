"""Nets with planted groups, for the tests of `groups`."""

from __future__ import annotations

import numpy as np
import onnx

from convrewrite.passes.groups import Groups
from groups_nets import conv, equal, ops, planted, rewrite, stem
from helpers import Net


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


def lrn(net: Net, x: str, channels: int) -> str:
    return str(net.LRN(net.Relu(x), size=5, alpha=1.0, beta=1.0, bias=1.0))


# Within a tolerance ---------------------------------------------------------------------------------------------------


def noisy(groups: int, noise: float, chain: int = 1) -> onnx.ModelProto:
    net = Net(1, 3, 8, 12)
    x = net.Relu(conv(net, "x", net.rng.standard_normal((64, 3, 1, 1))))
    for _ in range(chain):
        weight = planted(net.rng, equal(groups, 64)) + noise * net.rng.standard_normal((64, 64, 3, 3))
        x = net.Relu(conv(net, x, weight))
    return net.model(conv(net, x, net.rng.standard_normal((3, 64, 1, 1))))


def assert_idempotent(model: onnx.ModelProto, pass_: Groups | None = None) -> None:
    again, same = rewrite(model, pass_)
    assert not again.changed, again
    assert ops(same) == ops(model)
