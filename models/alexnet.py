"""AlexNet: Krizhevsky, Sutskever, Hinton 2012, "ImageNet classification with deep convolutional neural
networks".

    conv1  11x11, 96, stride 4   227x227 -> 55x55    ReLU, LRN, max pool 3x3 stride 2 -> 27x27
    conv2  5x5, 256, 2 groups                        ReLU, LRN, max pool 3x3 stride 2 -> 13x13
    conv3  3x3, 384                                  ReLU
    conv4  3x3, 384, 2 groups                        ReLU
    conv5  3x3, 256, 2 groups                        ReLU, max pool 3x3 stride 2 -> 6x6
    fc6    4096, ReLU, Dropout
    fc7    4096, ReLU, Dropout
    fc8    1000, Softmax

The two groups are the paper's two GPUs. The paper writes 224x224; its numbers work out at 227x227.
60,965,224 parameters.
"""

from __future__ import annotations

import onnx

from convrewrite.models.builder import NetBuilder, Size, image_shape, scaled


def build(
    *, seed: int = 0, width: float = 1.0, size: Size | None = None, classes: int = 1000, opset: int = 13
) -> onnx.ModelProto:
    """AlexNet: "image" [1,3,227,227] -> "probabilities" [1,classes]."""
    net = NetBuilder(image_shape(3, size, 227), seed, opset)
    x = net.relu(net.conv(net.input, scaled(96, width), 11, stride=4, name="conv1"))
    x = net.maxpool(net.lrn(x, name="norm1"), 3, stride=2, name="pool1")
    x = net.relu(net.conv(x, scaled(256, width), 5, pad=2, groups=2, name="conv2"))
    x = net.maxpool(net.lrn(x, name="norm2"), 3, stride=2, name="pool2")
    x = net.relu(net.conv(x, scaled(384, width), 3, pad=1, name="conv3"))
    x = net.relu(net.conv(x, scaled(384, width), 3, pad=1, groups=2, name="conv4"))
    x = net.relu(net.conv(x, scaled(256, width), 3, pad=1, groups=2, name="conv5"))
    x = net.maxpool(x, 3, stride=2, name="pool5")
    x = net.flatten(x)
    x = net.dropout(net.relu(net.gemm(x, scaled(4096, width), name="fc6")))
    x = net.dropout(net.relu(net.gemm(x, scaled(4096, width), name="fc7")))
    x = net.gemm(x, classes, name="fc8")
    return net.finish(net.softmax(x, name="probabilities"), name="alexnet")
