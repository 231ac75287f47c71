"""From the pixels of an image to what the model was trained on: (pixel / scale - mean) / std, channel by channel."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from convrewrite.errors import UsageError
from convrewrite.options import LazyOptions
from convrewrite.text import counted, parameter

Array = np.ndarray[Any, Any]

PREPARE_KEY = "convrewrite.prepare"
"""Metadata entry of a model: JSON with "scale", "mean", "std" and "channels", each of which may be left out."""

RANGES = {"NominalRange_0_255": (1.0, ()), "Normalized_0_1": (255.0, ()), "Normalized_1_1": (127.5, (1.0,))}
"""ONNX's own metadata entry Image.NominalPixelRange, as scale and mean."""


@dataclass(frozen=True)
class Preparation:
    """What is done to pixels.

    Attributes:
        scale: divides them. mean, std: one for all channels, or one each; () leaves them. channels: that are taken.
    """

    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    channels: tuple[int, ...] = ()

    def of(self, pixels: Array) -> Array:
        """Turn the pixels of an image into float32 [C, *spatial], as the model expects them."""
        values = pixels.astype(np.float32)
        if self.scale != 1.0:
            values /= np.float32(self.scale)
        if self.mean:
            values -= self._line(self.mean, values)
        if self.std:
            values /= self._line(self.std, values)
        return values

    @staticmethod
    def _line(numbers: Sequence[float], values: Array) -> Array:
        return np.asarray(numbers, np.float32).reshape(-1, *[1] * (values.ndim - 1))

    def fitting(self, channels: int) -> Preparation:
        """Itself. Raises UsageError where the numbers do not fit so many channels, or cannot be divided by."""
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if len(numbers) not in (0, 1, channels):
                raise UsageError(
                    f"{parameter(name)} has {counted(len(numbers), 'number')}, the model {counted(channels, 'channel')}"
                )
        if not self.scale or not all(self.std or (1.0,)):
            raise UsageError(
                "pixels cannot be divided by zero", remedy=f"give another {parameter('scale')} or {parameter('std')}"
            )
        return self

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)


def prepared(metadata: Mapping[str, str], options: LazyOptions) -> Preparation:
    """What the model's metadata says of its pixels, and in its place what the user says.

    Raises:
        UsageError: the metadata is damaged.
    """
    found = _stored(metadata)
    return replace(
        found,
        scale=found.scale if options.scale is None else options.scale,
        mean=found.mean if options.mean is None else options.mean,
        std=found.std if options.std is None else options.std,
        channels=found.channels if options.channels is None else options.channels,
    )


def _stored(metadata: Mapping[str, str]) -> Preparation:
    if PREPARE_KEY in metadata:
        try:
            data = json.loads(metadata[PREPARE_KEY])
            if strange := set(data) - {"scale", "mean", "std", "channels"}:
                raise UsageError(f"the model's metadata entry {PREPARE_KEY} has an unknown '{min(strange)}'")
            means, deviations = (tuple(map(float, data.get(name, ()))) for name in ("mean", "std"))
            return Preparation(
                float(data.get("scale", 1.0)), means, deviations, tuple(map(int, data.get("channels", ())))
            )
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            raise UsageError(
                f"the model's metadata entry {PREPARE_KEY} is damaged",
                remedy=f"give {parameter('scale')}, {parameter('mean')}, {parameter('std')}, {parameter('channels')}",
            ) from None
    scale, mean = RANGES.get(metadata.get("Image.NominalPixelRange", ""), (1.0, ()))
    turned = metadata.get("Image.BitmapPixelFormat", "").startswith("Bgr")
    return Preparation(scale, mean, (), (2, 1, 0) if turned else ())
