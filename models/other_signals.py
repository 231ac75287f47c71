"""Convolutions of sound, of video and back to pixels: one small network each, in the shape of well-known ones.

audio_cnn   sound [1,1,8000]: 80, stride 4; pools of 4; 3, ...        after M5 of Dai et al. 2017, arXiv:1610.00087
video_cnn   video [1,3,16,112,112]: 3x3x3 and pools                   after C3D of Tran et al. 2015, arXiv:1412.0767
segnet      image [1,3,96,96] -> class scores of every pixel          after FCN of Long et al. 2015, arXiv:1411.4038
"""

from __future__ import annotations

import onnx

from convrewrite.models.builder import NetBuilder, Size, image_shape, scaled


def build_audio(
    *, seed: int = 0, width: float = 1.0, size: int | None = None, classes: int = 10, opset: int = 13
) -> onnx.ModelProto:
    """Sound: "image" [1,1,8000] -> "logits" [1,classes]."""
    net = NetBuilder((1, 1, size or 8000), seed, opset)
    x = net.relu(net.batchnorm(net.conv(net.input, scaled(128, width), 80, stride=4, bias=False, name="conv1")))
    x = net.maxpool(x, 4, stride=4, name="pool1")
    for index, channels in enumerate((128, 256, 512), 2):
        x = net.conv(x, scaled(channels, width), 3, bias=False, name=f"conv{index}")
        x = net.maxpool(net.relu(net.batchnorm(x)), 4, stride=4, name=f"pool{index}")
    x = net.flatten(net.global_avg_pool(x, name="mean"))
    return net.finish(net.gemm(x, classes, name="logits"), name="audio_cnn")


def build_video(
    *, seed: int = 0, width: float = 1.0, size: Size | None = None, classes: int = 101, opset: int = 13
) -> onnx.ModelProto:
    """Video: "image" [1,3,16,112,112] -> "probabilities" [1,classes]."""
    _, channels, height, breadth = image_shape(3, size, 112)
    net = NetBuilder((1, channels, 16, height, breadth), seed, opset)
    x = net.input
    for index, count in enumerate((64, 128, 256, 512), 1):
        x = net.relu(net.conv(x, scaled(count, width), 3, pad=1, name=f"conv{index}"))
        x = net.maxpool(x, 2, stride=2, name=f"pool{index}")
    x = net.dropout(net.relu(net.gemm(net.flatten(x), scaled(4096, width), name="fc6")))
    return net.finish(net.softmax(net.gemm(x, classes, name="fc7"), name="probabilities"), name="video_cnn")


def build_segmentation(
    *, seed: int = 0, width: float = 1.0, size: Size | None = None, classes: int = 21, opset: int = 13
) -> onnx.ModelProto:
    """Segmentation: "image" [1,3,96,96] -> "scores" [1,classes,96,96]."""
    net = NetBuilder(image_shape(3, size, 96), seed, opset)
    x, kept = net.input, []
    for index, channels in enumerate((32, 64, 128), 1):
        x = net.relu(net.conv(x, scaled(channels, width), 3, pad=1, name=f"down{index}"))
        kept.append(x)
        x = net.maxpool(x, 2, stride=2, name=f"pool{index}")
    for index, skip in enumerate(reversed(kept), 1):
        x = net.concat(net.deconv(x, skip.shape[1], 2, stride=2, name=f"up{index}"), skip)
        x = net.relu(net.conv(x, skip.shape[1], 3, pad=1, name=f"merge{index}"))
    return net.finish(net.conv(x, classes, 1, name="scores"), name="segnet")
