"""Trunks: what slides over the image ahead of the collapse, and whether each cell then equals the original's crop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from helpers import Net, check_lifted, run

Trunk = Callable[[Net], str]


def head(net: Net, map_: str, classes: int = 4) -> str:
    """The map flattened, and two fully connected layers."""
    return net.fc(net.Relu(net.fc(net.Flatten(map_), 5)), classes)


def inception(net: Net) -> str:
    """Branches of one size, joined over channels; no branch is padded."""
    x = net.Relu(net.conv("x", 3, 1, 1))
    wide = net.conv(x, 2, 3, 3)
    slow = net.conv(net.conv(x, 2, 1, 3), 3, 3, 1)
    pooled = net.MaxPool(x, kernel_shape=[3, 3], strides=[1, 1])
    return str(net.Concat(wide, slow, pooled, axis=1))


def shuffled(net: Net, x: str, groups: int, channels: int) -> str:
    """A channel shuffle with the map's sizes in its shapes; `channels` is how the last shape writes their number."""
    _, c, h, w = net.shape(x)
    apart = net.Reshape(x, net.const([1, groups, c // groups, h, w]))
    turned = net.Transpose(apart, perm=[0, 2, 1, 3, 4])
    return str(net.Reshape(turned, net.const([1, channels, h, w])))


def shuffle_net(net: Net) -> str:
    x = net.conv("x", 6, 3, 3, bound=1)
    x = shuffled(net, net.conv(x, 6, 1, 1, group=2), 2, 6)
    x = net.conv(x, 6, 3, 3, group=6, bound=1)
    return shuffled(net, net.conv(x, 6, 1, 1, group=3), 3, -1)


def cropped_residual(net: Net) -> str:
    """A residual of unpadded convolutions adds the middle of the map."""
    x = net.conv("x", 3, 3, 3)
    middle = net.Slice(x, net.const([1, 1]), net.const([-1, -1]), net.const([2, 3]))
    return str(net.Add(net.conv(x, 3, 3, 3), middle))


def split_and_concat(net: Net) -> str:
    left, right = net.Split(net.conv("x", 4, 3, 3), net.const([1, 3]), axis=1, outputs=2)
    return str(net.Concat(right, net.Relu(left), axis=1))


UNPADDED: dict[str, Trunk] = {
    "conv": lambda n: n.conv("x", 3, 3, 3),
    "conv-stride": lambda n: n.conv("x", 3, 3, 3, strides=[2, 3]),
    "conv-dilation": lambda n: n.conv("x", 3, 3, 2, dilations=[2, 3]),
    "conv-stride-dilation": lambda n: n.conv("x", 3, 2, 3, strides=[3, 2], dilations=[3, 1]),
    "conv-groups": lambda n: n.conv(n.conv("x", 4, 1, 1), 6, 3, 3, group=2),
    "conv-depthwise": lambda n: n.conv("x", 4, 3, 2, group=2),
    "conv-valid": lambda n: n.conv("x", 3, 3, 3, strides=[2, 2], auto_pad="VALID"),
    "conv-kernel-shape": lambda n: n.conv("x", 3, 3, 3, kernel_shape=[3, 3], pads=[0, 0, 0, 0]),
    "conv-no-bias": lambda n: n.conv("x", 3, 3, 3, bias=False),
    "conv-bias-as-add": lambda n: n.Add(n.conv("x", 3, 3, 3, bias=False), n.ints(3, 1, 1)),
    "conv-bias-as-add-rank-4": lambda n: n.Add(n.ints(1, 3, 1, 1), n.conv("x", 3, 3, 3)),
    "max-pool": lambda n: n.MaxPool(n.conv("x", 3, 2, 2), kernel_shape=[2, 3], strides=[2, 1]),
    "max-pool-ceil-full": lambda n: n.MaxPool(n.conv("x", 3, 2, 3), kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    "max-pool-dilated": lambda n: n.MaxPool(n.conv("x", 3, 2, 2), kernel_shape=[2, 2], dilations=[3, 2]),
    "average-pool": lambda n: n.AveragePool(n.conv("x", 3, 2, 2), kernel_shape=[2, 4], strides=[2, 3]),
    "unseen-trailing-pads": lambda n: n.conv("x", 3, 3, 2, strides=[3, 2], pads=[0, 0, 2, 1]),
    "unseen-same-pads": lambda n: n.conv("x", 3, 1, 1, strides=[2, 2], auto_pad="SAME_UPPER"),
    "relu-chain": lambda n: n.Relu(n.Neg(n.Relu(n.conv("x", 3, 3, 3)))),
    "prelu": lambda n: n.PRelu(n.conv("x", 3, 3, 3), n.ints(3, 1, 1)),
    "inception": inception,
    "shuffle-net": shuffle_net,
    "split-concat": split_and_concat,
    "space-to-depth": lambda n: n.conv(n.SpaceToDepth(n.conv("x", 2, 2, 3), blocksize=2), 3, 2, 2),
    "gather-channels": lambda n: n.Gather(n.conv("x", 3, 3, 3), n.const([2, 0]), axis=1),
    "slice-channels": lambda n: n.Slice(n.conv("x", 4, 3, 3), n.const([1]), n.const([3]), n.const([1])),
    "mean-over-channels": lambda n: n.reduce("ReduceMean", n.conv("x", 4, 3, 3), [1]),
    "identity-dropout": lambda n: n.Identity(n.Dropout(n.conv("x", 3, 3, 3), outputs=2)[0]),
    "equal-branches": lambda n: n.Add(n.conv("x", 3, 3, 3), n.MaxPool(n.conv("x", 3, 1, 1), kernel_shape=[3, 3])),
    "mask-by-image": lambda n: n.Where(n.Greater("x", n.const(np.float32(0))), "x", n.Neg("x")),
}


@pytest.mark.parametrize("trunk", UNPADDED)
def test_unpadded_trunk(trunk: str) -> None:
    net = Net(1, 2, 9, 12)
    check_lifted(net.model(head(net, UNPADDED[trunk](net))))


SQUARE = {"pads": [1, 1, 1, 1]}


def residual(net: Net) -> str:
    x = net.conv("x", 2, 3, 3, pads=[1, 1, 1, 1], strides=[2, 2], bound=1)
    x = net.Relu(net.Add(net.conv(net.Relu(net.conv(x, 2, 3, 3, bound=1, **SQUARE)), 2, 3, 3, bound=1, **SQUARE), x))
    short = net.conv(x, 3, 1, 1, strides=[2, 2], bound=1)
    return str(net.Relu(net.Add(net.conv(x, 3, 3, 3, strides=[2, 2], bound=1, **SQUARE), short)))


PADDED: dict[str, Trunk] = {
    "conv": lambda n: n.conv("x", 3, 3, 3, **SQUARE),
    "asymmetric": lambda n: n.conv("x", 3, 3, 4, pads=[0, 2, 1, 0], strides=[2, 2]),
    "residual": residual,
    "same-upper": lambda n: n.conv("x", 3, 3, 3, auto_pad="SAME_UPPER"),
    "same-upper-stride": lambda n: n.conv("x", 3, 3, 3, auto_pad="SAME_UPPER", strides=[2, 2]),
    "same-lower-stride": lambda n: n.conv("x", 3, 3, 4, auto_pad="SAME_LOWER", strides=[2, 3]),
    "same-pool": lambda n: n.MaxPool(n.conv("x", 3, 2, 2), kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    "same-average": lambda n: n.AveragePool(n.conv("x", 3, 3, 3), kernel_shape=[2, 2], auto_pad="SAME_LOWER"),
    "ceil-mode": lambda n: n.MaxPool(n.conv("x", 3, 2, 2), kernel_shape=[3, 3], strides=[3, 5], ceil_mode=1),
    "pads-included": lambda n: n.AveragePool(
        n.conv("x", 3, 2, 2), kernel_shape=[2, 2], pads=[1, 0, 0, 1], count_include_pad=1
    ),
    "pads-excluded": lambda n: n.AveragePool(n.conv("x", 3, 2, 2), kernel_shape=[2, 2], pads=[1, 0, 0, 1]),
    "pad-node": lambda n: n.conv(n.Pad("x", n.const([0, 0, 1, 2, 0, 0, 1, 0])), 3, 3, 3),
    "pad-node-channels": lambda n: n.Add(
        n.Pad(n.conv("x", 3, 3, 3, **SQUARE), n.const([0, 1, 0, 0, 0, 0, 0, 0])), n.conv("x", 4, 1, 1)
    ),
    "slice": lambda n: n.Slice(n.conv("x", 3, 2, 2), n.const([1, 0]), n.const([7, 9]), n.const([2, 3])),
    "slice-stepped": lambda n: n.Slice(
        n.conv("x", 3, 2, 2), n.const([1, 1]), n.const([2**40, -1]), n.const([2, 3]), n.const([2, 3])
    ),
    "cropped-residual": cropped_residual,
    "focus": lambda n: n.Concat(
        *(
            n.Slice(n.Identity("x"), n.const([r, c]), n.const([8, 12]), n.const([2, 3]), n.const([2, 2]))
            for r in (0, 1)
            for c in (0, 1)
        ),
        axis=1,
    ),
    "conv-transpose": lambda n: n.ConvTranspose(
        n.conv("x", 3, 3, 3, strides=[2, 2]), n.ints(3, 2, 2, 2), strides=[2, 2]
    ),
    "depth-to-space": lambda n: n.DepthToSpace(n.conv("x", 4, 3, 3, strides=[2, 2]), blocksize=2),
}


SIZES = [(9, 12), (8, 12), (10, 13)]


@pytest.mark.parametrize(
    ("trunk", "size"), [(t, s) for t in PADDED for s in SIZES if t != "focus" or s == (8, 12)], ids=str
)
def test_padded_trunk(trunk: str, size: tuple[int, int]) -> None:
    net = Net(1, 2, *size)
    baked = trunk in ("slice", "focus")  # ends that name the native size: the original's trunk runs on no other
    aligned = 2 if trunk in ("conv-transpose", "depth-to-space") else 1  # cells come in twos
    model = net.model(head(net, PADDED[trunk](net)))
    made = check_lifted(model, equivalence="native-size", oracle=not baked, aligned=aligned)
    assert not any(a.name == "auto_pad" for n in made.model.graph.node for a in n.attribute)


RESIZED: dict[str, dict[str, Any]] = {
    "nearest": {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    "linear": {"mode": "linear", "coordinate_transformation_mode": "half_pixel"},
}


@pytest.mark.parametrize("by", ["scales", "sizes"])
@pytest.mark.parametrize("mode", RESIZED)
def test_resize(mode: str, by: str) -> None:
    net = Net(1, 2, 9, 12)
    small = net.conv("x", 3, 3, 3, strides=[2, 2])
    _, c, h, w = net.shape(small)
    by_scales = ["", net.const(np.float32([1, 1, 2, 2]))]
    inputs = by_scales if by == "scales" else ["", "", net.const([1, c, 2 * h, 2 * w])]
    large = net.Resize(small, *inputs, **RESIZED[mode])
    check_lifted(net.model(head(net, large)), equivalence="native-size", exact=False, oracle=by == "scales", aligned=2)


@pytest.mark.parametrize("opset", [7, 9])
def test_upsample(opset: int) -> None:
    net = Net(1, 2, 9, 12, opset=opset)
    small = net.conv("x", 3, 3, 3, strides=[2, 2])
    if opset == 7:
        large = net.Upsample(small, mode="nearest", scales=[1.0, 1.0, 2.0, 2.0])
    else:
        large = net.Upsample(small, net.const(np.float32([1, 1, 2, 2])), mode="nearest")
    check_lifted(net.model(head(net, large)), equivalence="native-size", exact=False, aligned=2)


@pytest.mark.parametrize("op", ["LRN", "BatchNormalization", "LpPool"])
def test_rounding_trunk(op: str) -> None:
    net = Net(1, 2, 9, 12)
    x = net.conv("x", 4, 3, 3)
    if op == "LRN":
        x = net.LRN(x, size=3, alpha=0.5)
    elif op == "LpPool":
        x = net.LpPool(x, kernel_shape=[2, 3], p=2)
    else:
        x = net.BatchNormalization(x, net.ints(4), net.ints(4), net.ints(4), net.const(net.rng.uniform(1, 2, 4)))
    check_lifted(net.model(head(net, x)), exact=False)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_batch_norm_of_flattened_map(layout: str) -> None:
    """One parameter per feature; legal while it is the same at every position of a channel."""
    net = Net(1, 2, 6, 7)
    x = net.conv("x", 3, 3, 3)
    per_channel = np.arange(1, 4, dtype=np.float32)
    if layout == "NHWC":
        x = net.Transpose(x, perm=[0, 2, 3, 1])
    values = np.tile(per_channel, 20) if layout == "NHWC" else np.repeat(per_channel, 20)
    flat = net.BatchNormalization(net.Flatten(x), *(net.const(values) for _ in range(4)))
    check_lifted(net.model(net.fc(flat, 4)), exact=False)


def test_instance_norm_is_native_size() -> None:
    net = Net(1, 2, 9, 12)
    x = net.InstanceNormalization(net.conv("x", 3, 3, 3), net.ints(3), net.ints(3))
    made = check_lifted(net.model(head(net, x)), equivalence="native-size", exact=False)
    assert made.window.why.startswith("InstanceNormalization")


@pytest.mark.parametrize("opset", [11, 13])
def test_softmax_over_the_width_is_native_size(opset: int) -> None:
    net = Net(1, 2, 9, 12, opset=opset)
    made = check_lifted(
        net.model(head(net, net.Softmax(net.conv("x", 3, 3, 3), axis=3))), equivalence="native-size", exact=False
    )
    assert made.window.why.startswith("Softmax")


def test_node_that_nothing_reads() -> None:
    net = Net(1, 2, 9, 12)
    net.Reshape("x", net.const([1, 3, 2, 36]))
    check_lifted(net.model(head(net, net.conv("x", 3, 3, 3))))


# Squeeze and excite -------------------------------------------------------------------------------------------------


def gate(net: Net, x: str, form: str) -> str:
    """A factor per channel from the whole map."""
    c = net.shape(x)[1]
    if form == "reduce-mean":
        pooled = net.reduce("ReduceMean", x, [2, 3])
        return str(net.Relu(net.conv(net.Relu(net.conv(pooled, 2, 1, 1)), c, 1, 1)))
    if form == "global-average-pool":
        return str(net.Relu(net.conv(net.GlobalAveragePool(x), c, 1, 1)))
    if form == "whole-map-average-pool":
        pooled = net.AveragePool(x, kernel_shape=list(net.shape(x)[2:]))
        return str(net.Relu(net.conv(pooled, c, 1, 1)))
    flat = net.Flatten(net.GlobalAveragePool(x))
    return str(net.Reshape(net.Relu(net.fc(net.Relu(net.fc(flat, 2)), c)), net.const([1, c, 1, 1])))


GATES = ["reduce-mean", "global-average-pool", "whole-map-average-pool", "flatten-gemm-reshape"]


@pytest.mark.parametrize("pooled_head", [False, True])
@pytest.mark.parametrize("form", GATES)
def test_squeeze_and_excite(form: str, pooled_head: bool) -> None:
    """The block stays over the whole map; a head that pools as well is one classifier per window."""
    net = Net(1, 2, 6, 10)
    x = net.conv("x", 3, 3, 3)
    x = net.Mul(x, gate(net, x, form))
    scores = net.fc(net.Flatten(net.GlobalAveragePool(x)), 4) if pooled_head else head(net, x)
    made = check_lifted(
        net.model(scores), equivalence="native-size", exact=False, oracle=form != "whole-map-average-pool"
    )
    assert any(op in ("GlobalAveragePool", "ReduceMean") for op in made.operators)
    assert "map as a whole" in made.window.why or "axes as a whole" in made.window.why


def test_two_squeeze_and_excite_blocks() -> None:
    net = Net(1, 2, 6, 10)
    x = net.conv("x", 3, 3, 3)
    x = net.Mul(gate(net, x, "global-average-pool"), x)
    x = net.conv(x, 4, 3, 3, pads=[1, 1, 1, 1])
    x = net.Mul(x, gate(net, x, "flatten-gemm-reshape"))
    check_lifted(net.model(net.fc(net.Flatten(net.GlobalAveragePool(x)), 4)), equivalence="native-size", exact=False)


def test_slice_end_is_counted_from_the_far_border() -> None:
    """An end that names the native size, and the same end from the far border, give one model at any size."""
    converted = []
    for ends in ([7, 9], [-1, -2]):
        net = Net(1, 2, 9, 12)
        map_ = net.Slice(net.conv("x", 3, 2, 2), net.const([1, 0]), net.const(ends), net.const([2, 3]))
        model = net.model(head(net, map_), shapes={})
        converted.append(check_lifted(model, equivalence="native-size", oracle=ends[0] < 0).model)
    image = np.random.default_rng(0).integers(-3, 4, (1, 2, 14, 19)).astype(np.float32)
    (first,), (second,) = (run(model, {"x": image}).values() for model in converted)
    assert first.shape[2:] == (6, 8)
    np.testing.assert_array_equal(first, second)
