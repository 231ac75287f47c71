"""`separable`: models with planted low rank, so that the pass finds factors, and the form alone is what counts."""

from __future__ import annotations

from functools import partial

import onnx

from benchmarks import planted
from benchmarks.gpu.traded import Traded
from benchmarks.separable import Layer
from convrewrite import models
from convrewrite.passes.separable import Separable

NAME = "separable"
TOL = 1e-5
"""Above what storing planted factors in float32 costs, and far below any trade."""
HALF = 0.5
"""Of the spatial rank at which factoring breaks even."""
LAYERS_MODEL = "layers"
"""What `--models` calls all layers together."""
LAYER_SHARE = 0.3
"""A layer takes its two measurements and little else."""

LAYERS = (
    Layer("spatial", 128, 3, 48, 56),
    Layer("spatial", 256, 7, 192, 28),
    Layer("depthwise", 64, 11, 1, 56),
    Layer("depthwise", 64, 31, 1, 56),
    Layer("decoupled", 64, 7, 2, 56),
)
QUICK_LAYERS = (
    Layer("spatial", 32, 3, 16, 14),
    Layer("depthwise", 16, 11, 1, 14),
    Layer("decoupled", 32, 7, 2, 14),
)


SPATIAL = Separable(tol=TOL, form="spatial")
"""The form that is planted alone: in large kernels, looking at all of them takes the time that is for measuring."""
ANY = Separable(tol=TOL)


def network(name: str, width: float) -> onnx.ModelProto:
    """A network of convrewrite.models at half rank."""
    return planted.with_spatial_rank(models.build(name, width=width), HALF)


def works(quick: bool) -> list[Traded]:
    """All of it, the slowest last; in a rehearsal narrow models and small layers."""
    resnet18, vgg16 = (
        Traded(SPATIAL, name, f"{title}, half rank", partial(network, name, 0.125 if quick else 1.0), share)
        for name, title, share in (("resnet18", "ResNet-18", 1.0), ("vgg16", "VGG-16", 1.5))
    )
    layers = [
        Traded(SPATIAL if layer.form == "spatial" else ANY, LAYERS_MODEL, layer.label, layer.model, LAYER_SHARE)
        for layer in (QUICK_LAYERS if quick else LAYERS)
    ]
    return [resnet18, *layers, vgg16]
