"""Operators that lower the stride: how far the cells of their output look, by bounds that hold for all of them.

    old cells   |   0   |   1   |   2   |          a ConvTranspose of stride 2 and kernel 3, pads 1:
    new cells   | 0 | 1 | 2 | 3 | 4 | 5 |          new cell y reads old cells (y - 1) / 2 to (y + 1) / 2

Which old cells a new one reads differs with its place between two old ones; the bounds are those of all places.
Sources: the ONNX operator pages of ConvTranspose, DepthToSpace and Resize.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_graphsurgeon as gs

from convrewrite.engine.layers import Spreading

MARGINS = {"nearest": 1, "linear": 2, "cubic": 3}
"""Old cells to each side of its own place that an entry of a Resize may read."""


def spread(
    node: gs.Node, dim: int, old: Sequence[int], new: Sequence[int], kernel: Sequence[int], opset: int
) -> tuple[int, int, int]:
    """New cells per old cell, and by how many new cells an old one may lie ahead of its own place and behind it.

    Args:
        node: one that lowers the stride. dim: the axis. old, new: shapes of its input and its output.
        kernel: of a ConvTranspose, where the node does not say.

    Raises:
        ValueError: there are no such bounds, and why.
    """
    attrs = node.attrs
    if node.op == "DepthToSpace":
        block = int(attrs["blocksize"])
        return block, block - 1, 0
    if node.op == "ConvTranspose":
        if attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or attrs.get("output_shape"):
            raise ValueError("ConvTranspose has pads that depend on the size")
        geometry = Spreading.read(attrs, attrs.get("kernel_shape") or kernel, old[2:])
        at = dim - 2
        reach, begin = (geometry.kernel[at] - 1) * geometry.dilations[at], geometry.begin[at]
        return geometry.strides[at], reach - begin, begin
    mode = attrs.get("coordinate_transformation_mode", "half_pixel" if opset >= 11 else "asymmetric")
    if new[dim] == old[dim]:
        return 1, 0, 0
    if new[dim] % old[dim] or mode in ("align_corners", "tf_crop_and_resize"):
        raise ValueError(
            f"{node.op} from {old[dim]} to {new[dim]} cells: its places depend on the size of the whole map"
        )
    times = new[dim] // old[dim]
    margin = MARGINS.get(str(attrs.get("mode", "nearest")), MARGINS["cubic"]) * times
    return times, margin, margin
