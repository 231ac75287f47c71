"""Inputs for an original that gives NaN, Inf or an error on plain random ones: what names and types suggest.

    sr, sample_rate             16000                  mask                    1
    length, lens, num_frames    the longest axis       state, hidden, cache    a tenth of the normal distribution
    im_shape, orig_size         the image's extents    scale_factor, ratio     1
    threshold, temperature      0.1 to 0.9             other integers          1, or as the graph limits them

All other inputs run over further ranges: above 0, around 1, near 0. The same seed gives the same numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from convrewrite.running.sampling import SCALES, InputSpec, Sample, Scale, draw

Array = np.ndarray[Any, Any]

RANGES = (
    *SCALES,
    Scale("-1..1", low=-1.0),
    Scale("0.1..0.9", low=0.1, high=0.9),
    Scale("1..2", low=1.0, high=2.0),
    Scale("0..0.01", high=0.01),
)
"""What inputs without a telling name take, one after the other."""

SAMPLE_RATE = 16000

_RATES = frozenset("sr fs samplerate samplingrate".split())
_LENGTHS = frozenset("len lens length lengths frames seqlen seqlens".split())
_STATES = frozenset("state states h c h0 c0 hn cn hx cx hidden cell cache mem memory past context".split())
_SHARES = frozenset("threshold thresh temperature confidence iou nms".split())


def suggested(specs: Sequence[InputSpec], seed: int) -> Iterator[Sample]:
    """The samples to try, in order."""
    for index, scale in enumerate(RANGES):
        sample = draw(specs, scale, seed + index)
        rng = np.random.default_rng(seed + index)
        named = {spec.name: value for spec in specs if (value := by_name(spec, specs, rng)) is not None}
        words = f"{scale.name}, {', '.join(sorted(named))} as named, seed {seed + index}" if named else sample.source
        yield replace(sample, feeds={**sample.feeds, **named}, source=words)


def telling(specs: Sequence[InputSpec]) -> bool:
    """Whether the name of an input suggests what it holds."""
    return any(by_name(spec, specs, np.random.default_rng(0)) is not None for spec in specs)


def by_name(spec: InputSpec, specs: Sequence[InputSpec], rng: np.random.Generator) -> Array | None:
    """What the name of an input suggests, or the type of an integer; None for nothing."""
    words = _words(spec.name)
    whole = spec.dtype.kind in "iu"
    longest = max((e for other in specs if other is not spec for e in other.shape[1:]), default=1)

    def filled(value: float) -> Array:
        return np.full(spec.shape, value, spec.dtype)

    if spec.dtype.kind not in "iufb":
        return None
    if words & _RATES or {"sample", "rate"} <= words or {"sampling", "rate"} <= words:
        return filled(SAMPLE_RATE)
    if words & {"mask", "masks"}:
        return filled(1)
    if words & _LENGTHS and (whole or len(spec.shape) < 2):
        return filled(longest)
    if words & {"shape", "size", "sizes"} and spec.shape[-1:] == (2,):
        image = max(specs, key=lambda other: len(other.shape))
        inner = sorted(image.shape[1:])[-2:]
        return np.broadcast_to(np.asarray([*inner, *inner][:2], spec.dtype), spec.shape).copy()
    if words & {"scale", "scales", "ratio", "ratios", "factor"}:
        return filled(1)
    if words & _STATES and spec.dtype.kind == "f":
        return np.asarray(0.1 * rng.standard_normal(spec.shape), spec.dtype)
    if words & _SHARES and spec.dtype.kind == "f":
        return np.asarray(rng.uniform(0.1, 0.9, spec.shape), spec.dtype)
    return filled(1) if whole and spec.dtype.itemsize > 1 and not spec.below else None


def _words(name: str) -> set[str]:
    """`attentionMask_1` is attention and mask."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return {word for word in re.split(r"[^a-z0-9]+", spaced.lower()) if word}
