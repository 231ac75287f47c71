"""LeNet-5: LeCun, Bottou, Bengio, Haffner 1998, "Gradient-based learning applied to document recognition".

    C1  conv 5x5, 6 maps     32x32 -> 28x28   (VALID: no padding)
    S2  pool 2x2, stride 2         -> 14x14
    C3  conv 5x5, 16 maps          -> 10x10
    S4  pool 2x2, stride 2         -> 5x5
    C5  fully connected, 120       (a 5x5 convolution on a 5x5 map; Flatten and Gemm here)
    F6  fully connected, 84
    output, 10 classes, Softmax

As is usual today, and unlike the paper: ReLU for the scaled tanh, max pooling for the trained
subsampling, C3 connected to all maps of S2, and Softmax for the radial basis functions.
"""

from __future__ import annotations

import onnx

from convrewrite.models.builder import NetBuilder, Size, Weights, image_shape, scaled


def build(
    *,
    seed: int = 0,
    width: float = 1.0,
    size: Size | None = None,
    classes: int = 10,
    opset: int = 13,
    weights: Weights | None = None,
) -> onnx.ModelProto:
    """LeNet-5: "image" [1,1,32,32] -> "probabilities" [1,classes]; ``weights`` replaces the random ones."""
    net = NetBuilder(image_shape(1, size, 32), seed, opset, weights)
    x = net.relu(net.conv(net.input, scaled(6, width, 1), 5, name="c1"))
    x = net.maxpool(x, 2, stride=2, name="s2")
    x = net.relu(net.conv(x, scaled(16, width, 1), 5, name="c3"))
    x = net.maxpool(x, 2, stride=2, name="s4")
    x = net.flatten(x)
    x = net.relu(net.gemm(x, scaled(120, width, 1), name="c5"))
    x = net.relu(net.gemm(x, scaled(84, width, 1), name="f6"))
    x = net.gemm(x, classes, name="logits")
    return net.finish(net.softmax(x, name="probabilities"), name="lenet5")
