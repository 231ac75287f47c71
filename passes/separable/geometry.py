"""Where the stride, the padding and the dilation of a convolution go when it becomes a chain, and what that costs.

    Conv 5x3, stride 2x2, pads 2,1,2,1  ==>  Conv 5x1, stride 2x1, pads 2,0,2,0  ->  Conv 1x3, stride 1x2, pads 0,1,0,1

Each spatial axis belongs to one stage, the one whose kernel extends along it (the first, where none does): it takes the
stride, the dilation and the pads of that axis. Only the last stage has a bias, so the zeros of the padding stay zeros
on their way through the chain. An auto_pad goes to every stage as it is: a kernel of extent 1 at stride 1 needs none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from convrewrite.engine import timemodel
from convrewrite.engine.layers import Sliding
from convrewrite.passes.separable.factors import Stage

Chain = tuple[Stage, ...]
Layout = tuple[Chain, ...]


@dataclass(frozen=True)
class Placed:
    """A stage with the attributes and the operator of its node."""

    stage: Stage
    attrs: Mapping[str, Any]
    op: str = "Conv"


@dataclass(frozen=True)
class Cells:
    """How often a stage applies its weights to a map, and how many cells it writes."""

    computed: int
    written: int


def placed(chain: Chain, attrs: Mapping[str, Any]) -> list[Placed]:
    """Give every stage of a chain its part of the attributes of the one Conv that the chain replaces."""
    rank = len(chain[0].kernel)
    owners = [next((i for i, stage in enumerate(chain) if stage.kernel[axis] > 1), 0) for axis in range(rank)]
    strides = list(attrs.get("strides") or (1,) * rank)
    dilations = list(attrs.get("dilations") or (1,) * rank)
    pads = list(attrs.get("pads") or (0,) * (2 * rank))
    auto_pad = attrs.get("auto_pad") or "NOTSET"
    nodes = []
    for index, stage in enumerate(chain):
        own = [owner == index for owner in owners]
        more: dict[str, Any] = {"kernel_shape": list(stage.kernel)}
        more["strides"] = [s if mine else 1 for s, mine in zip(strides, own, strict=True)]
        more["dilations"] = [d if mine else 1 for d, mine in zip(dilations, own, strict=True)]
        if auto_pad == "NOTSET":
            more["pads"] = [p if mine else 0 for p, mine in zip(pads, own + own, strict=True)]
        else:
            more["auto_pad"] = auto_pad
        if stage.group > 1:
            more["group"] = stage.group
        nodes.append(Placed(stage, more))
    return nodes


@dataclass(frozen=True)
class Cost:
    """What a layout costs on one input.

    Attributes:
        macs: multiply-accumulates; where the extents of the input are not known, per cell of the output (of a
            ConvTranspose: of the input), or per vector that a matrix multiplies.
        time: the same in a unit that ranks forms by their time: channels filled up to whole blocks, and what goes
            through memory between the stages.
        parameters: entries of the weights.
    """

    macs: int
    time: int
    parameters: int


def cost(layout: Layout, cells: Sequence[Cells], batch: int = 1) -> Cost:
    """The cost of chains that replace one layer, given the cells of each stage of a chain (`cells_of`)."""
    macs = time = parameters = 0
    for branch, chain in enumerate(layout):
        for index, (stage, count) in enumerate(zip(chain, cells, strict=True)):
            taps, inputs = math.prod(stage.kernel), stage.inputs // stage.group
            macs += count.computed * stage.out * inputs * taps
            time += count.computed * taps * timemodel.dense(inputs) * timemodel.dense(stage.out)
            parameters += stage.out * inputs * taps
            if index < len(chain) - 1 or branch < len(layout) - 1:
                time += count.written * timemodel.dense(stage.out) * timemodel.TRAFFIC
    return Cost(batch * macs, batch * time, parameters)


def cells_of(chain: Chain, attrs: Mapping[str, Any], size: Sequence[int] | None) -> list[Cells]:
    """Cells of each stage's output on a map of that size; relative to the last one's where that is not known.

    Channels play no part: every chain whose stages have the same kernels has the same.
    """
    nodes = placed(chain, attrs)
    counts = []
    if size is not None:
        extents = tuple(size)
        for node in nodes:
            extents = Sliding.read(node.attrs, node.stage.kernel, extents).output
            counts.append(math.prod(extents))
        return [Cells(count, count) for count in counts]
    left = 1
    for node in reversed(nodes):
        counts.append(left)
        left *= math.prod(node.attrs["strides"])
    return [Cells(count, count) for count in reversed(counts)]
