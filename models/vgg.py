"""VGG-16 and VGG-19 (configurations D and E): Simonyan, Zisserman 2015, arXiv:1409.1556, table 1.

    VGG-16                                         VGG-19
    conv3-64  x2, max pool   224x224 -> 112x112    x2
    conv3-128 x2, max pool           -> 56x56      x2
    conv3-256 x3, max pool           -> 28x28      x4
    conv3-512 x3, max pool           -> 14x14      x4
    conv3-512 x3, max pool           -> 7x7        x4
    FC-4096, FC-4096 (ReLU, Dropout), FC-1000, Softmax

138,357,544 and 143,667,240 parameters.
"""

from __future__ import annotations

import onnx

from convrewrite.models.builder import NetBuilder, Size, image_shape, scaled

STAGES = {
    16: ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)),
    19: ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)),
}
"""(channels, convolutions) of each stage, by depth; a 2x2 max pool ends it."""


def build(
    *,
    depth: int = 16,
    seed: int = 0,
    width: float = 1.0,
    size: Size | None = None,
    classes: int = 1000,
    opset: int = 13,
) -> onnx.ModelProto:
    """VGG of depth 16 or 19: "image" [1,3,224,224] -> "probabilities" [1,classes]."""
    net = NetBuilder(image_shape(3, size, 224), seed, opset)
    x = net.input
    for stage, (channels, convolutions) in enumerate(STAGES[depth], 1):
        for index in range(1, convolutions + 1):
            x = net.relu(net.conv(x, scaled(channels, width), 3, pad=1, name=f"conv{stage}_{index}"))
        x = net.maxpool(x, 2, stride=2, name=f"pool{stage}")
    x = net.flatten(x)
    x = net.dropout(net.relu(net.gemm(x, scaled(4096, width), name="fc6")))
    x = net.dropout(net.relu(net.gemm(x, scaled(4096, width), name="fc7")))
    x = net.gemm(x, classes, name="fc8")
    return net.finish(net.softmax(x, name="probabilities"), name=f"vgg{depth}")
