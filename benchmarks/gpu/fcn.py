"""`fcn`: one pass over a large image against the original on every window, and both at the native size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.gpu.work import Batch, Job
from convrewrite import model_io, pipeline
from convrewrite.engine.windows import Window
from convrewrite.options import FcnOptions, VerifyOptions
from convrewrite.pipeline.outcome import Outcome

NAME = "fcn"
MODELS = {"alexnet": "AlexNet", "resnet18": "ResNet-18", "mobilenet_v1": "MobileNetV1", "vgg16": "VGG-16"}
"""The slowest last: it gets the time that the others left."""
WINDOW_BATCHES = (1, 8, 32, 64)
"""Batchings of the original over all windows; the fastest counts."""


@dataclass(frozen=True)
class Windows:
    """An image that holds positions x positions windows."""

    positions: int

    @property
    def label(self) -> str:
        """In words."""
        return f"{self.positions}x{self.positions} windows"

    def options(self, rewritten: Path) -> Mapping[str, Any]:
        """What `timing.bench` takes for it: the smallest image with so many windows per axis."""
        window = Window.from_metadata(model_io.load(rewritten).metadata)
        assert window is not None
        size = window.image_size((self.positions,) * len(window.size))
        return {"sizes": [size], "batches": WINDOW_BATCHES, "windows": True}


JOBS = (Batch(1), Windows(9), Windows(5), Batch(8), Windows(17))
QUICK_JOBS = (Batch(1), Windows(3))


@dataclass(frozen=True)
class Converted:
    """A model of convrewrite.models, converted and compared with its original; `width` is a factor on channels."""

    model: str
    jobs: Sequence[Job] = JOBS
    width: float = 1.0
    share: float = 1.0
    pass_name: str = NAME

    @property
    def title(self) -> str:
        """What the tables call it."""
        return MODELS[self.model]

    def make(self, original: Path, rewritten: Path, provider: str) -> Outcome:
        """Write the model, convert it, and verify that on the provider."""
        common.save_model(self.model, original, self.width)
        pipeline.fcn(str(original), str(rewritten), FcnOptions(provider=provider, verify=False)).check()
        return pipeline.compare(str(original), str(rewritten), VerifyOptions(provider=provider))


def works(quick: bool) -> list[Converted]:
    """All of it; in a rehearsal narrow models and few jobs."""
    return [Converted(name, QUICK_JOBS, width=0.125) if quick else Converted(name) for name in MODELS]
