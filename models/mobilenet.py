"""MobileNetV1: Howard et al. 2017, arXiv:1704.04861, table 1.

    conv 3x3, 32, stride 2                      224x224 -> 112x112
    13 x (depthwise 3x3, pointwise 1x1)                 -> 7x7, 1024 channels
    global average pool, 1000 logits

Each convolution is without bias and followed by its own BatchNormalization node (not folded) and ReLU.
The paper's table gives stride 2 for the last depthwise layer, on a 7x7 map that stays 7x7: stride 1 is
meant. 4,231,976 parameters at width 1.0, running means and variances not counted. The Softmax of the
table is left to the caller.
"""

from __future__ import annotations

import onnx

from convrewrite.models.builder import NetBuilder, Size, image_shape, scaled

BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
"""(channels of the pointwise, stride of the depthwise) of each separable block."""


def build(
    *, seed: int = 0, width: float = 1.0, size: Size | None = None, classes: int = 1000, opset: int = 13
) -> onnx.ModelProto:
    """MobileNetV1: "image" [1,3,224,224] -> "logits" [1,classes] (no Softmax)."""
    net = NetBuilder(image_shape(3, size, 224), seed, opset)
    x = net.conv(net.input, scaled(32, width), 3, stride=2, pad=1, bias=False, name="conv1")
    x = net.relu(net.batchnorm(x, name="conv1_bn"))
    for index, (channels, stride) in enumerate(BLOCKS, 2):
        x = net.depthwise(x, 3, stride=stride, pad=1, bias=False, name=f"conv{index}_dw")
        x = net.relu(net.batchnorm(x, name=f"conv{index}_dw_bn"))
        x = net.conv(x, scaled(channels, width), 1, bias=False, name=f"conv{index}_pw")
        x = net.relu(net.batchnorm(x, name=f"conv{index}_pw_bn"))
    x = net.flatten(net.global_avg_pool(x, name="pool"))
    return net.finish(net.gemm(x, classes, name="logits"), name="mobilenet_v1")
