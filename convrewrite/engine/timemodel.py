"""What a convolution costs beside its multiply-accumulates, in a unit that ranks rewrites by their time.

    48 -> 20 channels, 3x3    9 * 48 * 32    channels are computed in whole blocks
    between two operators     12 * entries   each is written and read again

Measured with ONNX Runtime on AVX-512; the timing test decides, this only sorts what it is given.
"""

from __future__ import annotations

import math

BLOCK = 16
"""Channels that ONNX Runtime computes together on AVX-512; a part of a block costs as much as the whole."""

TRAFFIC = 12
"""MACs that take as long as writing an entry of a tensor and reading it again."""

DEPTHWISE = 6
"""MACs that take as long as one of a depthwise convolution, which is bound by what it reads."""


def blocks(channels: int) -> int:
    """The numbers of channels, rounded up to whole blocks."""
    return math.ceil(channels / BLOCK) * BLOCK


def dense(channels: int) -> int:
    """The same for a convolution of one group, which computes fewer channels than a block as they are."""
    return channels if channels < BLOCK else blocks(channels)


def grouped(out: int, inputs: int, groups: int, taps: int) -> int:
    """Time per cell of the output of one Conv with groups of out x inputs channels and kernels of `taps` entries."""
    if out == inputs == 1:
        return blocks(groups) * taps * DEPTHWISE
    return groups * blocks(out) * blocks(inputs) * taps
