"""GoogLeNet (Inception v1): Szegedy et al. 2015, arXiv:1409.4842, table 1, without the auxiliary classifiers.

    conv 7x7, 64, stride 2   224x224 -> 112x112   max pool 3x3 stride 2 -> 56x56, LRN
    conv 1x1, 64; conv 3x3, 192                   LRN, max pool 3x3 stride 2 -> 28x28
    inception 3a, 3b                              max pool 3x3 stride 2 -> 14x14
    inception 4a to 4e                            max pool 3x3 stride 2 -> 7x7
    inception 5a, 5b                              global average pool, Dropout, 1000, Softmax

An inception module is four branches beside each other: 1x1; 1x1 then 3x3; 1x1 then 5x5; 3x3 max pool then 1x1.
6,998,552 parameters.
"""

from __future__ import annotations

import onnx

from convrewrite.models.builder import NetBuilder, Size, Tensor, image_shape, scaled

MODULES = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
"""Channels: 1x1; 3x3 reduce, 3x3; 5x5 reduce, 5x5; behind the pool."""


def build(
    *, seed: int = 0, width: float = 1.0, size: Size | None = None, classes: int = 1000, opset: int = 13
) -> onnx.ModelProto:
    """GoogLeNet: "image" [1,3,224,224] -> "probabilities" [1,classes]."""
    net = NetBuilder(image_shape(3, size, 224), seed, opset)
    x = net.relu(net.conv(net.input, scaled(64, width), 7, stride=2, pad=3, name="conv1"))
    x = net.lrn(net.maxpool(x, 3, stride=2, pad=1, name="pool1"), name="norm1")
    x = net.relu(net.conv(x, scaled(64, width), 1, name="conv2_reduce"))
    x = net.lrn(net.relu(net.conv(x, scaled(192, width), 3, pad=1, name="conv2")), name="norm2")
    x = net.maxpool(x, 3, stride=2, pad=1, name="pool2")
    for name, channels in MODULES.items():
        if name in ("4a", "5a"):
            x = net.maxpool(x, 3, stride=2, pad=1, name=f"pool{int(name[0]) - 1}")
        x = _inception(net, x, [scaled(c, width) for c in channels], f"inception{name}")
    x = net.dropout(net.flatten(net.global_avg_pool(x, name="pool5")))
    return net.finish(net.softmax(net.gemm(x, classes, name="fc"), name="probabilities"), name="googlenet")


def _inception(net: NetBuilder, x: Tensor, channels: list[int], name: str) -> Tensor:
    """Four branches, their channels beside each other."""
    one, reduce3, three, reduce5, five, pooled = channels
    a = net.relu(net.conv(x, one, 1, name=f"{name}_1x1"))
    b = net.relu(net.conv(x, reduce3, 1, name=f"{name}_3x3_reduce"))
    b = net.relu(net.conv(b, three, 3, pad=1, name=f"{name}_3x3"))
    c = net.relu(net.conv(x, reduce5, 1, name=f"{name}_5x5_reduce"))
    c = net.relu(net.conv(c, five, 5, pad=2, name=f"{name}_5x5"))
    d = net.maxpool(x, 3, stride=1, pad=1, name=f"{name}_pool")
    d = net.relu(net.conv(d, pooled, 1, name=f"{name}_pool_proj"))
    return net.concat(a, b, c, d, name=name)
