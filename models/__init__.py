"""The lecture architectures as ONNX models, and one small trained model.

``build(name)`` gives a network with seeded random weights, layer for layer as in its paper;
``lenet5_path()`` is a LeNet-5 trained on handwritten digits (``train_lenet5.py`` made it).

This package imports nothing of the rest of convrewrite: it only supplies models to work on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from convrewrite.models import alexnet, lenet, mobilenet, resnet, vgg

__all__ = ["NAMES", "build", "lenet5_path"]

NAMES: tuple[str, ...] = ("lenet5", "alexnet", "vgg16", "resnet18", "mobilenet_v1")
"""The names that ``build`` takes."""

_BUILDERS = {
    "lenet5": lenet.build,
    "alexnet": alexnet.build,
    "vgg16": vgg.build,
    "resnet18": resnet.build,
    "mobilenet_v1": mobilenet.build,
}


def build(name: str, **options: Any) -> onnx.ModelProto:
    """Build the architecture ``name`` (one of ``NAMES``) with seeded random float32 weights.

    Every builder takes ``seed=0``, ``width=1.0`` (factor on the number of channels), ``size=None``
    (image side in pixels, or ``(height, width)``; None means the paper's), ``classes`` (by default the
    paper's) and ``opset=13`` (7 to 22). The input is "image", NCHW with N = 1; the output, [1, classes],
    is "probabilities" where the network ends in Softmax and "logits" where it does not.
    """
    if name not in _BUILDERS:
        raise ValueError(f"unknown model {name!r}; the known ones are {', '.join(NAMES)}")
    return _BUILDERS[name](**options)


def lenet5_path() -> Path:
    """Path of the trained LeNet-5: "image" [1, 1, 32, 32] in 0..1 -> "probabilities" [1, 11].

    Classes 0 to 9 are the digits, 10 is "background, or nothing centred here".
    """
    return Path(__file__).with_name("lenet5.onnx")
