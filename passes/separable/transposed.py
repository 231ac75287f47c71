"""A ConvTranspose as a chain: which stage spreads along which axis, and what that costs.

    ConvTranspose 5x3, stride 2x2   ==>   ConvTranspose 5x1, stride 2x1  ->  ConvTranspose 1x3, stride 1x2
                                    or    Conv 1x1  ->  ConvTranspose 5x3, stride 2x2

It spreads and crops each axis by itself, whatever the others do, so each axis has one owner as in a Conv: its stride,
dilation, pads and output padding go there. A stage that owns none is a Conv of 1 x 1. An axis of extent 1 goes to the
last owner, so that the map grows late. An auto_pad goes to every stage as it is, since it crops nothing where the
kernel has extent 1 at stride 1. An `output_shape` becomes the pads that follow from it on a map of fixed extents; on an
open one it goes to the one stage that owns all axes, so that forms of several owners are not offered.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from convrewrite.engine.layers import Spreading
from convrewrite.passes.separable.geometry import Cells, Chain, Placed


def explicit(attrs: Mapping[str, Any], kernel: Sequence[int], size: Sequence[int]) -> dict[str, Any]:
    """The attributes with pads in the place of an `output_shape`, for a map of that size; cells beyond it are added.

    An `output_shape` stays where more cells would have to be added than an `output_padding` may.
    """
    if not attrs.get("output_shape"):
        return dict(attrs)
    plain = {name: value for name, value in attrs.items() if name not in ("output_shape", "auto_pad", "pads")}
    whole, cut = Spreading.read(plain, kernel, size), Spreading.read(attrs, kernel, size)
    end = [w - c - b for w, c, b in zip(whole.output, cut.output, cut.begin, strict=True)]
    more = [extent - min(e, 0) for extent, e in zip(plain.get("output_padding") or (0,) * len(end), end, strict=True)]
    if any(extra >= stride for extra, stride in zip(more, cut.strides, strict=True) if extra):
        return dict(attrs)
    padding = {"output_padding": more} if any(more) else {}
    return plain | {"pads": [*cut.begin, *(max(e, 0) for e in end)]} | padding


def placed(chain: Chain, attrs: Mapping[str, Any]) -> list[Placed]:
    """Give every stage of a chain its part of the attributes of the one ConvTranspose that the chain replaces."""
    rank = len(chain[0].kernel)
    wide = [next((i for i, stage in enumerate(chain) if stage.kernel[axis] > 1), None) for axis in range(rank)]
    last = max((owner for owner in wide if owner is not None), default=len(chain) - 1)
    owners = [last if owner is None else owner for owner in wide]
    whole = list(attrs.get("output_shape") or ())[-rank:]
    nodes = []
    for index, stage in enumerate(chain):
        own = [owner == index for owner in owners]
        grouped = {"group": stage.group} if stage.group > 1 else {}
        more: dict[str, Any] = {"kernel_shape": list(stage.kernel)}
        if not any(own):
            nodes.append(Placed(stage, more | grouped))
            continue
        for name, plain in (("strides", 1), ("dilations", 1), ("output_padding", 0)):
            given = list(attrs.get(name) or (plain,) * rank)
            if name in attrs or name != "output_padding":
                more[name] = [value if mine else plain for value, mine in zip(given, own, strict=True)]
        auto_pad = attrs.get("auto_pad") or "NOTSET"
        if auto_pad != "NOTSET":
            more["auto_pad"] = auto_pad
        elif not whole:
            pads = list(attrs.get("pads") or (0,) * (2 * rank))
            more["pads"] = [pad if mine else 0 for pad, mine in zip(pads, own + own, strict=True)]
        if whole:
            more["output_shape"] = whole
        nodes.append(Placed(stage, more | grouped, "ConvTranspose"))
    return nodes


def cells_of(chain: Chain, attrs: Mapping[str, Any], size: Sequence[int] | None) -> list[Cells]:
    """Cells that each stage of a chain reads, which is where it multiplies, and that it writes.

    On a map of that size; relative to the cells of the input where that is not known.
    """
    counts = []
    extents = None if size is None else tuple(size)
    read = 1 if extents is None else math.prod(extents)
    for node in placed(chain, attrs):
        written = read
        if node.op == "ConvTranspose" and extents is not None:
            extents = Spreading.read(node.attrs, node.stage.kernel, extents).output
            written = math.prod(extents)
        elif node.op == "ConvTranspose":
            written = read * math.prod(node.attrs["strides"])
        counts.append(Cells(read, written))
        read = written
    return counts
