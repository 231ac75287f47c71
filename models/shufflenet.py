"""ShuffleNet (v1) 1x with 3 groups: Zhang, Zhou, Lin, Sun 2018, arXiv:1707.01083, table 1.

    conv 3x3, 24, stride 2   224x224 -> 112x112   max pool 3x3 stride 2 -> 56x56
    stage 2: 4 units, 240 channels   -> 28x28
    stage 3: 8 units, 480 channels   -> 14x14
    stage 4: 4 units, 960 channels   -> 7x7
    global average pool, 1000 logits

A unit is a grouped 1x1, a channel shuffle, a depthwise 3x3 and a grouped 1x1; it is added to what it reads, or, at
stride 2, stands beside its 3x3 average pool. The first 1x1 of stage 2 has no groups. 1,865,728 parameters, running
means and variances not counted.
"""

from __future__ import annotations

import onnx

from convrewrite.models.builder import NetBuilder, Size, Tensor, image_shape

GROUPS = 3
STAGES = ((240, 4), (480, 8), (960, 4))
"""(channels, units)."""


def build(
    *, seed: int = 0, width: float = 1.0, size: Size | None = None, classes: int = 1000, opset: int = 13
) -> onnx.ModelProto:
    """ShuffleNet: "image" [1,3,224,224] -> "logits" [1,classes] (no Softmax)."""
    net = NetBuilder(image_shape(3, size, 224), seed, opset)
    x = net.conv(net.input, 24, 3, stride=2, pad=1, bias=False, name="conv1")
    x = net.maxpool(net.relu(net.batchnorm(x, name="conv1_bn")), 3, stride=2, pad=1, name="pool1")
    for stage, (channels, units) in enumerate(STAGES, 2):
        wide = max(4 * GROUPS * GROUPS, round(channels * width / (4 * GROUPS * GROUPS)) * 4 * GROUPS * GROUPS)
        wide = channels if width == 1.0 else wide
        for unit in range(1, units + 1):
            x = _unit(
                net,
                x,
                wide,
                2 if unit == 1 else 1,
                first=1 if (stage, unit) == (2, 1) else GROUPS,
                name=f"unit{stage}_{unit}",
            )
    x = net.flatten(net.global_avg_pool(x, name="pool5"))
    return net.finish(net.gemm(x, classes, name="logits"), name="shufflenet")


def _unit(net: NetBuilder, x: Tensor, channels: int, stride: int, first: int, name: str) -> Tensor:
    out = channels - x.shape[1] if stride == 2 else channels
    narrow = channels // 4
    y = net.relu(net.batchnorm(net.conv(x, narrow, 1, groups=first, bias=False, name=f"{name}a"), name=f"{name}a_bn"))
    y = net.shuffle(y, GROUPS)
    y = net.batchnorm(net.depthwise(y, 3, stride=stride, pad=1, bias=False, name=f"{name}b"), name=f"{name}b_bn")
    y = net.conv(y, out, 1, groups=GROUPS, bias=False, name=f"{name}c")
    y = net.batchnorm(y, gain=0.4, name=f"{name}c_bn")
    if stride == 2:
        pooled = net.avgpool(x, 3, stride=2, pad=1, name=f"{name}_pool")
        return net.relu(net.concat(pooled, y, name=f"{name}_concat"))
    return net.relu(net.add(x, y, name=f"{name}_add"))
