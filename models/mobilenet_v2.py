"""MobileNetV2: Sandler et al. 2018, arXiv:1801.04381, table 2.

    conv 3x3, 32, stride 2                 224x224 -> 112x112
    17 inverted residuals (t, c, n, s)             -> 7x7, 320 channels
    conv 1x1, 1280; global average pool, Dropout, 1000 logits

An inverted residual expands by t (1x1), convolves each channel (3x3) and projects to c channels (1x1, linear); it
is added to what it reads where the shapes allow it. ReLU6 throughout, a BatchNormalization behind each convolution.
3,504,872 parameters, running means and variances not counted.
"""

from __future__ import annotations

import onnx

from convrewrite.models.builder import NetBuilder, Size, Tensor, image_shape, scaled

BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""(expansion t, channels c, repeats n, stride s of the first)."""


def build(
    *, seed: int = 0, width: float = 1.0, size: Size | None = None, classes: int = 1000, opset: int = 13
) -> onnx.ModelProto:
    """MobileNetV2: "image" [1,3,224,224] -> "logits" [1,classes] (no Softmax)."""
    net = NetBuilder(image_shape(3, size, 224), seed, opset)
    x = _conv(net, net.input, scaled(32, width), 3, stride=2, name="conv1")
    count = 0
    for expansion, channels, repeats, stride in BLOCKS:
        for repeat in range(repeats):
            count += 1
            step = stride if repeat == 0 else 1
            x = _inverted_residual(net, x, expansion, scaled(channels, width), stride=step, name=f"block{count}")
    x = _conv(net, x, scaled(1280, width), 1, name="conv_last")
    x = net.dropout(net.flatten(net.global_avg_pool(x, name="pool")))
    return net.finish(net.gemm(x, classes, name="logits"), name="mobilenet_v2")


def _conv(
    net: NetBuilder, x: Tensor, channels: int, kernel: int, *, stride: int = 1, groups: int = 1, name: str
) -> Tensor:
    y = net.conv(x, channels, kernel, stride=stride, pad=kernel // 2, groups=groups, bias=False, name=name)
    return net.relu6(net.batchnorm(y, name=f"{name}_bn"))


def _inverted_residual(net: NetBuilder, x: Tensor, expansion: int, channels: int, stride: int, name: str) -> Tensor:
    wide = x.shape[1] * expansion
    y = _conv(net, x, wide, 1, name=f"{name}_expand") if expansion > 1 else x
    y = _conv(net, y, wide, 3, stride=stride, groups=wide, name=f"{name}_depthwise")
    y = net.batchnorm(net.conv(y, channels, 1, bias=False, name=f"{name}_project"), gain=0.7, name=f"{name}_project_bn")
    return net.add(x, y, name=f"{name}_add") if stride == 1 and x.shape[1] == channels else y
