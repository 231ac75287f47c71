"""DenseNet-121: Huang, Liu, van der Maaten, Weinberger 2017, arXiv:1608.06993, table 1, growth rate 32.

    conv 7x7, 64, stride 2   224x224 -> 112x112   BatchNormalization, ReLU, max pool 3x3 stride 2 -> 56x56
    dense block of 6, transition                  -> 28x28
    dense block of 12, transition                 -> 14x14
    dense block of 24, transition                 -> 7x7
    dense block of 16                             BatchNormalization, ReLU, global average pool, 1000

A layer of a block is BatchNormalization, ReLU, 1x1, BatchNormalization, ReLU, 3x3; its 32 channels join all before it.
A transition halves channels by a 1x1 convolution and extents by a 2x2 average pool. 7,978,856 parameters, running means
and variances not counted.
"""

from __future__ import annotations

import onnx

from convrewrite.models.builder import NetBuilder, Size, Tensor, image_shape, scaled

BLOCKS = (6, 12, 24, 16)
GROWTH = 32


def build(
    *, seed: int = 0, width: float = 1.0, size: Size | None = None, classes: int = 1000, opset: int = 13
) -> onnx.ModelProto:
    """DenseNet-121: "image" [1,3,224,224] -> "logits" [1,classes] (no Softmax)."""
    net = NetBuilder(image_shape(3, size, 224), seed, opset)
    growth = scaled(GROWTH, width)
    x = net.conv(net.input, 2 * growth, 7, stride=2, pad=3, bias=False, name="conv1")
    x = net.maxpool(net.relu(net.batchnorm(x, name="conv1_bn")), 3, stride=2, pad=1, name="pool1")
    for block, layers in enumerate(BLOCKS, 1):
        for layer in range(1, layers + 1):
            x = net.concat(x, _layer(net, x, growth, f"block{block}_{layer}"), name=f"block{block}_{layer}")
        if block < len(BLOCKS):
            x = net.relu(net.batchnorm(x, gain=0.7, name=f"transition{block}_bn"))
            x = net.conv(x, x.shape[1] // 2, 1, bias=False, name=f"transition{block}")
            x = net.avgpool(x, 2, stride=2, name=f"transition{block}_pool")
    x = net.relu(net.batchnorm(x, name="last_bn"))
    x = net.flatten(net.global_avg_pool(x, name="pool5"))
    return net.finish(net.gemm(x, classes, name="logits"), name="densenet121")


def _layer(net: NetBuilder, x: Tensor, growth: int, name: str) -> Tensor:
    y = net.relu(net.batchnorm(x, gain=0.7, name=f"{name}a_bn"))
    y = net.conv(y, 4 * growth, 1, bias=False, name=f"{name}a")
    y = net.relu(net.batchnorm(y, name=f"{name}b_bn"))
    return net.conv(y, growth, 3, pad=1, bias=False, name=f"{name}b")
