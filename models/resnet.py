"""ResNet-18 and ResNet-50: He, Zhang, Ren, Sun 2016, arXiv:1512.03385, table 1.

                                                          ResNet-18               ResNet-50
    conv1    7x7, 64, stride 2       224x224 -> 112x112   BatchNormalization, ReLU
    conv2_x  3x3 max pool, stride 2          -> 56x56     2 blocks of [3x3, 64]  x2   3 of [1x1, 64; 3x3, 64; 1x1, 256]
    conv3_x                                  -> 28x28     2 blocks of [3x3, 128] x2   4 of 128, 128, 512
    conv4_x                                  -> 14x14     2 blocks of [3x3, 256] x2   6 of 256, 256, 1024
    conv5_x                                  -> 7x7       2 blocks of [3x3, 512] x2   3 of 512, 512, 2048
    global average pool, 1000 logits

Every convolution is without bias and followed by its own BatchNormalization node (not folded); the
shortcut of a stage's first block is a 1x1 convolution (option B). The stride of a bottleneck is in its first
1x1 convolution, as in the paper. 11,689,512 and 25,557,032 parameters, running means and variances not counted.
"""

from __future__ import annotations

import onnx

from convrewrite.models.builder import NetBuilder, Size, Tensor, image_shape, scaled

STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))
"""(channels, stride of the first block) of conv2_x to conv5_x."""

BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}
"""Blocks in each stage, by depth."""


def build(
    *,
    depth: int = 18,
    seed: int = 0,
    width: float = 1.0,
    size: Size | None = None,
    classes: int = 1000,
    opset: int = 13,
) -> onnx.ModelProto:
    """ResNet of depth 18 or 50: "image" [1,3,224,224] -> "logits" [1,classes] (no Softmax)."""
    net = NetBuilder(image_shape(3, size, 224), seed, opset)
    x = net.conv(net.input, scaled(64, width), 7, stride=2, pad=3, bias=False, name="conv1")
    x = net.relu(net.batchnorm(x, name="conv1_bn"))
    x = net.maxpool(x, 3, stride=2, pad=1, name="pool1")
    block = _block if depth < 50 else _bottleneck
    for stage, ((channels, stride), blocks) in enumerate(zip(STAGES, BLOCKS[depth], strict=True), 2):
        for index in range(1, blocks + 1):
            x = block(net, x, scaled(channels, width), stride if index == 1 else 1, name=f"conv{stage}_{index}")
    x = net.flatten(net.global_avg_pool(x, name="pool5"))
    return net.finish(net.gemm(x, classes, name="logits"), name=f"resnet{depth}")


def _block(net: NetBuilder, x: Tensor, channels: int, stride: int, name: str) -> Tensor:
    """The basic block of the paper's figure 2: ReLU(branch(x) + shortcut(x))."""
    branch = net.conv(x, channels, 3, stride=stride, pad=1, bias=False, name=f"{name}a")
    branch = net.relu(net.batchnorm(branch, name=f"{name}a_bn"))
    branch = net.conv(branch, channels, 3, pad=1, bias=False, name=f"{name}b")
    branch = net.batchnorm(branch, gain=0.5, name=f"{name}b_bn")
    return net.relu(net.add(branch, _shortcut(net, x, channels, stride, name=name), name=f"{name}_add"))


def _bottleneck(net: NetBuilder, x: Tensor, channels: int, stride: int, name: str) -> Tensor:
    """The bottleneck of the paper's figure 5: 1x1 down, 3x3, 1x1 up to four times the channels."""
    branch = net.conv(x, channels, 1, stride=stride, bias=False, name=f"{name}a")
    branch = net.relu(net.batchnorm(branch, name=f"{name}a_bn"))
    branch = net.conv(branch, channels, 3, pad=1, bias=False, name=f"{name}b")
    branch = net.relu(net.batchnorm(branch, name=f"{name}b_bn"))
    branch = net.conv(branch, 4 * channels, 1, bias=False, name=f"{name}c")
    branch = net.batchnorm(branch, gain=0.5, name=f"{name}c_bn")
    return net.relu(net.add(branch, _shortcut(net, x, 4 * channels, stride, name=name), name=f"{name}_add"))


def _shortcut(net: NetBuilder, x: Tensor, channels: int, stride: int, name: str) -> Tensor:
    """The identity, or a 1x1 convolution where channels or extents change."""
    shortcut = x
    if stride != 1 or x.shape[1] != channels:
        shortcut = net.conv(x, channels, 1, stride=stride, bias=False, name=f"{name}_shortcut")
        shortcut = net.batchnorm(shortcut, gain=0.7, name=f"{name}_shortcut_bn")
    return shortcut
