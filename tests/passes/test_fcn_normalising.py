"""Normalisations and embeddings in heads and trunks: over the channels of a cell, or over the whole map."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from helpers import Net, check_lifted, convert

Head = Callable[[Net, str], str]


def features(net: Net, count: int = 6) -> str:
    """Features [N, F] behind a fully connected layer on a 3 x 5 map."""
    pooled = net.MaxPool(net.Relu(net.conv("x", 3, 3, 3)), kernel_shape=[2, 2], strides=[2, 2])
    return net.fc(net.Flatten(pooled), count)


def uneven(net: Net, *shape: int) -> str:
    return net.const(net.rng.standard_normal(shape).astype(np.float32))


def torch_normalize(net: Net, x: str) -> str:
    """As torch.nn.functional.normalize is exported: the norm is clipped and expanded to the shape of the features."""
    norm = net.Clip(net.reduce("ReduceL2", x, [1]), net.const(np.float32(1e-12)))
    return str(net.Div(x, net.Expand(norm, net.Shape(x))))


def by_square_sum(net: Net, x: str) -> str:
    """As Keras writes l2_normalize."""
    total = net.Max(net.reduce("ReduceSum", net.Mul(x, x), [1]), net.const(np.float32([1e-12])))
    return str(net.Mul(x, net.Reciprocal(net.Sqrt(total))))


def layer_norm_by_hand(net: Net, x: str) -> str:
    """As exporters write LayerNormalization below opset 17."""
    centred = net.Sub(x, net.reduce("ReduceMean", x, [-1]))
    variance = net.reduce("ReduceMean", net.Pow(centred, net.const(np.float32(2))), [-1])
    scaled = net.Div(centred, net.Sqrt(net.Add(variance, net.const(np.float32(1e-5)))))
    return str(net.Add(net.Mul(scaled, uneven(net, 6)), uneven(net, 6)))


HEADS: dict[str, tuple[Head, int]] = {
    "layer-norm": (lambda n, x: n.LayerNormalization(x, uneven(n, 6), uneven(n, 6), axis=-1), 17),
    "layer-norm-without-bias": (lambda n, x: n.LayerNormalization(x, uneven(n, 6), axis=1), 17),
    "layer-norm-of-groups": (
        lambda n, x: n.Flatten(
            n.LayerNormalization(n.Reshape(x, n.const([-1, 2, 3])), uneven(n, 3), uneven(n, 3), axis=-1)
        ),
        17,
    ),
    "layer-norm-of-two-axes": (
        lambda n, x: n.Flatten(
            n.LayerNormalization(n.Reshape(x, n.const([-1, 2, 3])), uneven(n, 2, 3), uneven(n, 2, 3), axis=1)
        ),
        17,
    ),
    "rms-norm": (lambda n, x: n.RMSNormalization(x, uneven(n, 6), axis=-1), 23),
    "lp-norm": (lambda n, x: n.LpNormalization(x, axis=-1, p=2), 7),
    "lp-norm-1": (lambda n, x: n.LpNormalization(x, axis=1, p=1), 7),
    "torch-normalize": (torch_normalize, 13),
    "keras-normalize": (by_square_sum, 13),
    "layer-norm-by-hand": (layer_norm_by_hand, 13),
    "mean-variance": (lambda n, x: n.MeanVarianceNormalization(x, axes=[1]), 13),
    "cosine-classes": (lambda n, x: n.fc(torch_normalize(n, x), 4), 13),
}
"""The head, and the operator set from which on it can be written so."""

OPSETS = (7, 13, 17, 21, 23)


@pytest.mark.parametrize(
    ("head", "opset"), [(head, opset) for head, (_, since) in HEADS.items() for opset in OPSETS if opset >= since]
)
def test_over_the_features(head: str, opset: int) -> None:
    build, _ = HEADS[head]
    net = Net("batch", 2, 9, 12, opset=opset)
    check_lifted(net.model(build(net, features(net))), exact=False)


@pytest.mark.parametrize("opset", [17, 23])
def test_between_the_layers_of_a_convnext_block(opset: int) -> None:
    """Channels go last for LayerNormalization and two fully connected layers, and come back for the sum."""
    net = Net(1, 2, 9, 12, opset=opset)
    map_ = net.conv("x", 4, 2, 2, strides=[2, 2])
    last = net.Transpose(net.conv(map_, 4, 1, 1, group=4), perm=[0, 2, 3, 1])
    normal = net.LayerNormalization(last, uneven(net, 4), uneven(net, 4), axis=-1)
    wide = net.Relu(net.Add(net.MatMul(normal, uneven(net, 4, 8)), uneven(net, 8)))
    back = net.Transpose(net.Mul(net.MatMul(wide, uneven(net, 8, 4)), uneven(net, 4)), perm=[0, 3, 1, 2])
    pooled = net.Flatten(net.GlobalAveragePool(net.Add(map_, back)))
    normal = net.LayerNormalization(pooled, uneven(net, 4), uneven(net, 4), axis=-1)
    check_lifted(net.model(net.fc(normal, 3)), exact=False)


@pytest.mark.parametrize("opset", [7, 11, 13, 23])
@pytest.mark.parametrize("k", [1, 3])
def test_the_best_classes(k: int, opset: int) -> None:
    net = Net(1, 2, 9, 12, opset=opset)
    scores = net.Add(features(net), net.const(np.arange(6, dtype=np.float32) / 8))
    how = {"k": k} if opset < 10 else {}
    values, indices = net.TopK(scores, *([] if how else [net.const([k])]), axis=-1, outputs=2, **how)
    check_lifted(net.model(values, net.Cast(indices, to=TensorProto.INT64)))


def test_an_expanded_number_is_not_a_map() -> None:
    """What is spread over rows and columns is refused: they change with the image."""
    net = Net(1, 2, 9, 12)
    map_ = net.conv("x", 1, 3, 3)
    one = net.Reshape(net.fc(net.Flatten(map_), 1), net.const([1, 1, 1, 1]))
    wide = net.Expand(one, net.const([1, 1, 7, 10]))
    result, _ = convert(net.model(net.fc(net.Flatten(net.Add(map_, wide)), 3)))
    assert [site.reason for site in result.sites] == ["fcn/spatial-broadcast"]


def over(net: Net, norm: str) -> onnx.ModelProto:
    map_ = net.conv("x", 4, 3, 3)
    if norm == "GroupNormalization":
        count = 4 if net.opset >= 21 else 2
        map_ = net.GroupNormalization(map_, uneven(net, count), uneven(net, count), num_groups=2)
    elif norm == "MeanVarianceNormalization":
        map_ = net.MeanVarianceNormalization(map_, axes=[2, 3])
    else:
        map_ = net.LpNormalization(map_, axis=3)
    return net.model(net.fc(net.Flatten(net.Relu(map_)), 3))


@pytest.mark.parametrize("norm", ["GroupNormalization", "MeanVarianceNormalization", "LpNormalization"])
def test_over_the_map(norm: str) -> None:
    """Statistics of the whole image: equal at the native size alone, and with the original's own trunk beyond it."""
    check_lifted(over(Net(1, 2, 9, 12, opset=21), norm), exact=False, equivalence="native-size")


@pytest.mark.parametrize(
    "head",
    [
        lambda n, x: n.LayerNormalization(x, uneven(n, 2, 7, 10), axis=1),
        lambda n, x: n.MeanVarianceNormalization(x, axes=[0, 1]),
        lambda n, x: n.LayerNormalization(n.Flatten(x), uneven(n, 140), axis=1),
    ],
)
def test_refused(head: Head) -> None:
    net = Net("batch", 2, 9, 12, opset=17)
    map_ = net.conv("x", 2, 3, 3)
    result, _ = convert(net.model(net.fc(net.Flatten(head(net, map_)), 3)))
    assert [site.reason for site in result.sites] == ["fcn/mixed-axes"]
