"""Two networks with more in them than handwritten digits need: a small VGG, and one of 7x7 depthwise convolutions.

    digits_vgg                          digits_dw7
    2 x conv3-64, max pool  -> 16x16    conv3-64                          32x32
    2 x conv3-64, max pool  -> 8x8      depthwise 7x7, pointwise-64       32x32
    2 x conv3-64, max pool  -> 4x4      depthwise 7x7 / 2, pointwise-96   16x16
    FC-11, Softmax                      depthwise 7x7, pointwise-96       16x16
                                        depthwise 7x7 / 2, pointwise-128  8x8
                                        depthwise 7x7, pointwise-128      8x8
                                        global average pool, FC-11, Softmax

Every convolution is padded to keep the map's size, is without bias, and is followed by its own BatchNormalization node
(not folded) and ReLU; "/ 2" is a stride of 2. The batch is open. ``train_digit_nets.py`` trains them.
"""

from __future__ import annotations

import onnx

from convrewrite.models.builder import NetBuilder, Weights
from convrewrite.models.digits import BACKGROUND, SIDE

__all__ = ["BLOCKS", "CHANNELS", "CLASSES", "NAMES", "STAGES", "build"]

NAMES = ("digits_vgg", "digits_dw7")
CLASSES = BACKGROUND + 1
STAGES, CHANNELS = 3, 64
"""Of the VGG: two convolutions of so many channels, and a max pool, per stage."""
BLOCKS = ((64, 1), (96, 2), (96, 1), (128, 2), (128, 1))
"""Of the other: (channels of the pointwise, stride of the depthwise) of each block."""


def build(name: str, weights: Weights | None = None) -> onnx.ModelProto:
    """ "image" [N,1,32,32] -> "probabilities" [N,11]; ``weights`` replaces the random ones."""
    if name not in NAMES:
        raise ValueError(f"unknown network {name!r}; the known ones are {', '.join(NAMES)}")
    net = NetBuilder((1, 1, SIDE, SIDE), weights=weights)
    x = net.input
    if name == "digits_vgg":
        for stage in range(1, STAGES + 1):
            for index in (1, 2):
                x = net.conv(x, CHANNELS, 3, pad=1, bias=False, name=f"conv{stage}_{index}")
                x = net.relu(net.batchnorm(x, name=f"bn{stage}_{index}"))
            x = net.maxpool(x, 2, stride=2, name=f"pool{stage}")
    else:
        x = net.conv(x, BLOCKS[0][0], 3, pad=1, bias=False, name="stem")
        x = net.relu(net.batchnorm(x, name="stem_bn"))
        for index, (channels, stride) in enumerate(BLOCKS, 1):
            x = net.depthwise(x, 7, stride=stride, pad=3, bias=False, name=f"dw{index}")
            x = net.relu(net.batchnorm(x, name=f"dw{index}_bn"))
            x = net.conv(x, channels, 1, bias=False, name=f"pw{index}")
            x = net.relu(net.batchnorm(x, name=f"pw{index}_bn"))
        x = net.global_avg_pool(x, name="pool")
    x = net.gemm(net.flatten(x), CLASSES, name="logits")
    return net.finish(net.softmax(x, name="probabilities"), name=name, open_batch=True)
