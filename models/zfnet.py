"""ZFNet: Zeiler, Fergus 2014, "Visualizing and understanding convolutional networks", figure 3.

    conv1  7x7, 96, stride 2    224x224 -> 110x110   ReLU, max pool 3x3 stride 2 -> 55x55, LRN
    conv2  5x5, 256, stride 2           -> 26x26     ReLU, max pool 3x3 stride 2 -> 13x13, LRN
    conv3  3x3, 384                                  ReLU
    conv4  3x3, 384                                  ReLU
    conv5  3x3, 256                                  ReLU, max pool 3x3 stride 2 -> 6x6
    fc6    4096, ReLU, Dropout
    fc7    4096, ReLU, Dropout
    fc8    1000, Softmax

62,357,608 parameters. The paper pads its images by a pixel; here conv1 and the first two pools do.
"""

from __future__ import annotations

import onnx

from convrewrite.models.builder import NetBuilder, Size, image_shape, scaled


def build(
    *, seed: int = 0, width: float = 1.0, size: Size | None = None, classes: int = 1000, opset: int = 13
) -> onnx.ModelProto:
    """ZFNet: "image" [1,3,224,224] -> "probabilities" [1,classes]."""
    net = NetBuilder(image_shape(3, size, 224), seed, opset)
    x = net.relu(net.conv(net.input, scaled(96, width), 7, stride=2, pad=1, name="conv1"))
    x = net.lrn(net.maxpool(x, 3, stride=2, pad=1, name="pool1"), name="norm1")
    x = net.relu(net.conv(x, scaled(256, width), 5, stride=2, name="conv2"))
    x = net.lrn(net.maxpool(x, 3, stride=2, pad=1, name="pool2"), name="norm2")
    x = net.relu(net.conv(x, scaled(384, width), 3, pad=1, name="conv3"))
    x = net.relu(net.conv(x, scaled(384, width), 3, pad=1, name="conv4"))
    x = net.relu(net.conv(x, scaled(256, width), 3, pad=1, name="conv5"))
    x = net.flatten(net.maxpool(x, 3, stride=2, name="pool5"))
    x = net.dropout(net.relu(net.gemm(x, scaled(4096, width), name="fc6")))
    x = net.dropout(net.relu(net.gemm(x, scaled(4096, width), name="fc7")))
    x = net.gemm(x, classes, name="fc8")
    return net.finish(net.softmax(x, name="probabilities"), name="zfnet")
