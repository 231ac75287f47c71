"""Small classifiers of images, lines and maps, and a session that knows nothing of what is tested."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime as ort

from helpers import Net


def session(model: onnx.ModelProto | Path | str) -> ort.InferenceSession:
    """A session of the plain model, which knows nothing of what is tested."""
    content = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    return ort.InferenceSession(content, providers=["CPUExecutionProvider"])


def lines(*dims: int | str) -> onnx.ModelProto:
    """A classifier of text lines [N, 3, 16, W], or with the channels last: convolution, mean over the map, matrix."""
    net = Net(*dims)
    x = "x" if dims[1] == 3 else net.Transpose("x", perm=[0, 3, 1, 2])
    pooled = net.GlobalAveragePool(net.Relu(net.conv(x, 8, 3, 3)))
    return net.model(net.fc(net.Flatten(pooled), 5))


def scores(net: Net, map_: str) -> onnx.ModelProto:
    """Classes of a map: its mean, and a matrix."""
    return net.model(net.fc(net.Flatten(net.GlobalAveragePool(net.Relu(map_))), 5))
