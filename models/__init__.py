"""The lecture architectures as ONNX models, and small trained models with the data that they were trained on.

``build(name)`` gives a network with seeded random weights, layer for layer as in its paper;
``trained_path(name)`` is a network trained on handwritten digits (``train_lenet5.py`` and
``train_digit_nets.py`` made them), and ``digit_images(part)`` are such digits.

This package imports nothing of the rest of convrewrite: it only supplies models to work on.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx

from convrewrite.models import (
    alexnet,
    densenet,
    digits,
    efficientnet,
    googlenet,
    lenet,
    mobilenet,
    mobilenet_v2,
    other_signals,
    resnet,
    shufflenet,
    vgg,
    zfnet,
)

__all__ = ["NAMES", "TRAINED", "build", "digit_images", "lenet5_path", "trained_path"]

_BUILDERS: dict[str, Callable[..., onnx.ModelProto]] = {
    "lenet5": lenet.build,
    "alexnet": alexnet.build,
    "zfnet": zfnet.build,
    "vgg16": vgg.build,
    "vgg19": partial(vgg.build, depth=19),
    "googlenet": googlenet.build,
    "resnet18": resnet.build,
    "resnet50": partial(resnet.build, depth=50),
    "densenet121": densenet.build,
    "mobilenet_v1": mobilenet.build,
    "mobilenet_v2": mobilenet_v2.build,
    "shufflenet": shufflenet.build,
    "efficientnet_b0": efficientnet.build,
    "audio_cnn": other_signals.build_audio,
    "video_cnn": other_signals.build_video,
    "segnet": other_signals.build_segmentation,
}

NAMES: tuple[str, ...] = tuple(_BUILDERS)
"""The names that ``build`` takes."""


def build(name: str, **options: Any) -> onnx.ModelProto:
    """Build the architecture ``name`` (one of ``NAMES``) with seeded random float32 weights.

    Every builder takes ``seed=0``, ``width=1.0`` (factor on the number of channels), ``size=None``
    (image side in pixels, or ``(height, width)``; None means the paper's), ``classes`` (by default the
    paper's) and ``opset=13`` (7 to 22). The input is "image", NCHW with N = 1 (NCL for sound, NCDHW for video);
    the output, [1, classes], is "probabilities" where the network ends in Softmax and "logits" where it does not,
    and "scores" [1, classes, H, W] of the segmentation network.
    """
    if name not in _BUILDERS:
        raise ValueError(f"unknown model {name!r}; the known ones are {', '.join(NAMES)}")
    return _BUILDERS[name](**options)


TRAINED: tuple[str, ...] = ("lenet5", "digits_vgg", "digits_dw7")
"""The names that ``trained_path`` takes."""


def trained_path(name: str) -> Path:
    """Path of the trained network ``name`` (one of ``TRAINED``).

    All map "image" [N, 1, 32, 32] in 0..1 to "probabilities" [N, 11]: classes 0 to 9 are the digits, 10 is
    "background, or nothing centred here". N is 1 in lenet5 and open in the others.
    """
    if name not in TRAINED:
        raise ValueError(f"unknown trained model {name!r}; the known ones are {', '.join(TRAINED)}")
    return Path(__file__).with_name(f"{name}.onnx")


def lenet5_path() -> Path:
    """The path of the trained LeNet-5."""
    return trained_path("lenet5")


def digit_images(
    part: Literal["train", "held-out"] = "held-out",
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Digits as the trained networks take them: images [n, 1, 32, 32] in 0..1 and labels [n].

    "held-out" are the 445 that no network was trained on, for accuracy; "train" are the other 1352, for whatever a
    rewrite learns from data. Needs scikit-learn, which ships them; torch is not needed.
    """
    images, labels = digits.glyphs(part)
    return images[:, None], labels
