"""subpixel-conv: a strided transposed convolution becomes a convolution whose channels are the pixels of a block.

Before                                              After
    x [N, C, h, w] ── ConvTranspose k, stride s ── y    x ── Conv [M s s] ── DepthToSpace s (CRD) ── Slice ── y

Algebra. A ConvTranspose adds  W[t] x[p]  to its output cell  p s + t d - b,  for every tap t (dilation d, crop b; each
axis by itself). Count the output from c cells further ahead. Its cell  s m + r  then gets, for each phase r < s,

    y[s m + r] = sum over j of  K[r, j] x[m - j],      K[r, j] = W[t]  where  t d - b + c = s j + r,  else 0

which for each r is a convolution at stride 1 of the map that came; there are s s of them, and they lie side by side as
channels: M s s in all, M of the output. DepthToSpace in the order CRD puts the phases of a channel back to their
places, which keeps groups apart. K has about k / s taps where W has k; c is 0, or b mod s where they are fewer then. A
Slice cuts off the c cells ahead and those that are too many behind, where there are any.

    k = 4, s = 2, pads 1:   taps  0 1 | 2 3   two for each phase, and the Slice cuts one cell off at each end (c = 1)
    k = 3, s = 2, pads 1, output padding 1:   . 0 | 1 2   two for each phase, one of them 0 in phase 0; nothing is cut

Where the strides of the two axes differ, or the opset (below 11) has no order CRD, the channels are put to their places
by Reshape, Transpose and Reshape. At stride 1 the Conv alone is left. The result has as many multiply-accumulates as
the original where s divides k, and more where zeros fill K up: at k = 3, s = 2 it is 16 for 9.

Requires a constant weight of float16, float32 or float64, and finite numbers in x, as 0 times infinity is no number.
It holds at any size of the map; with `output_shape` the crop is that of one size, which has to be fixed: by the file,
or by `size`, and then in the file that is written, too.
Refuses maps with one or three spatial axes, since DepthToSpace takes two; weights that are fed, or stored as integers;
an auto_pad of SAME with output_padding, which ONNX and ONNX Runtime do not read alike; strides so far beyond the kernel
that almost all of the result is zeros; a weight without any channels.
Sources: Shi et al., "Is the deconvolution layer the same as a convolutional layer?", 2016, arXiv:1609.07009; the ONNX
operator pages of ConvTranspose, Conv and DepthToSpace.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite.engine.convsite import ConvSite, described, read_site, weight_reasons
from convrewrite.engine.emitting import END, Emitter
from convrewrite.engine.graph import maker, names_taken, position
from convrewrite.engine.layers import Spreading
from convrewrite.engine.operators import is_standard
from convrewrite.engine.quantized import Stored
from convrewrite.engine.rewrite import Context, Declined, FixedSize, Pass, Plan, Reason, Refusal, Site
from convrewrite.text import by, parameter

Array = np.ndarray[Any, Any]

MOST = 64
"""How many times as large a kernel may become; strides far beyond it, of which most channels are zeros, are no use."""

LARGEST = 2**31
"""A map of more cells along an axis runs nowhere, whatever the file says."""

REASONS = {
    reason.code: reason
    for reason in (
        *weight_reasons("subpixel-conv"),
        Reason(
            "subpixel-conv/opset",
            "the model's opset is older than 7, the first that ONNX Runtime has",
            "convert the model with onnx.version_converter first",
        ),
        Reason(
            "subpixel-conv/not-an-image",
            "the map has one or three spatial axes, and DepthToSpace takes two",
            f"leave the layer out with {parameter('skip')}",
        ),
        Reason(
            "subpixel-conv/empty-weight",
            "the weight is empty, as that of a layer without channels, and ONNX Runtime runs no such convolution",
            f"leave the layer out with {parameter('skip')}",
        ),
        Reason(
            "subpixel-conv/quantized",
            "the weight is stored as integers, and would have to become floating-point numbers",
            "rewrite the model before it is quantized",
        ),
        Reason(
            "subpixel-conv/mostly-zeros",
            f"the kernel would become more than {MOST} times as large, by zeros: the stride is far beyond its taps",
            f"leave the layer out with {parameter('skip')}",
        ),
        Reason(
            "subpixel-conv/open-map",
            "the layer has an output_shape, and the extents of its map follow an open axis of the input",
            f"give {parameter('size')}, which fixes the input in the file that is written, too",
        ),
        Reason(
            "subpixel-conv/auto-pad",
            "an auto_pad of SAME with this output_padding has other extents in ONNX than in ONNX Runtime",
            "write pads in its place",
        ),
    )
}


@dataclass(frozen=True)
class SubpixelConv(Pass):
    """The pass."""

    name: ClassVar[str] = "subpixel-conv"
    reasons: ClassVar[Mapping[str, Reason]] = REASONS
    noun: ClassVar[str] = "transposed convolution"

    def candidates(self, graph: gs.Graph) -> Iterator[gs.Node]:
        """Every ConvTranspose."""
        yield from (node for node in graph.nodes if node.op == "ConvTranspose" and is_standard(node))

    def plan(self, context: Context, node: gs.Node) -> Sequence[Plan] | Declined | Refusal:
        """The kernel for each phase, and what brings the phases to their places."""
        label = f"ConvTranspose '{node.name or node.outputs[0].name}'"
        if context.graph.opset < 7:
            return Refusal(REASONS["subpixel-conv/opset"], f"{label}, opset {context.graph.opset}")
        if Stored.read(node.inputs[1], context.constants) is not None:
            return Refusal(REASONS["subpixel-conv/quantized"], f"'{node.inputs[1].name}' of {label}")
        site = read_site(context.graph, node, self.name, context.shapes)
        if isinstance(site, Refusal):
            return site
        if len(site.kernel) != 2:
            return Refusal(REASONS["subpixel-conv/not-an-image"], f"{label} has weights {list(site.weight.shape)}")
        if 0 in site.weight.shape:
            return Refusal(REASONS["subpixel-conv/empty-weight"], f"{label} has weights {list(site.weight.shape)}")
        extents, fixes = _extents(context, node)
        if node.attrs.get("output_shape") and None in extents:
            return Refusal(REASONS["subpixel-conv/open-map"], f"{label}, map {by(e or '?' for e in extents)}")
        axes = _axes(site, extents)
        if axes is None:
            return Refusal(REASONS["subpixel-conv/auto-pad"], f"{label}, auto_pad {node.attrs['auto_pad']}")
        growth = math.prod(axis.stride * axis.kernel for axis in axes) / site.taps
        if growth > MOST:
            return Declined(REASONS["subpixel-conv/mostly-zeros"], f"{label}: {growth:.0f} times as many weights")
        block = _Block(site.anchor, *_phases(site, axes), site.group, axes=axes, extents=extents)
        known = context.shapes.get(node.inputs[0].name, ())[2:]
        cells = site.cells if not known else site.cells * math.prod(block.cells(known)) // max(1, math.prod(known))
        made = described("Conv", (len(block.weight), site.channels[1]), block.weight.shape[2:], site.group)
        text = f"{site} -> {', '.join([made, *block.told(context.graph.opset)])}"
        text += f", the input fixed at {parameter('size')}" if fixes else ""
        rewritten = Site(
            self.name,
            site.anchor,
            node.op,
            "rewritten",
            detail=text,
            equivalence="reassociated",
            macs_before=site.macs,
            macs_after=block.weight.size * cells,
            params_before=site.params,
            params_after=block.weight.size + (0 if block.bias is None else block.bias.size),
        )
        return [Plan((rewritten,), block, evidence=[FixedSize()] if fixes else ())]

    def apply(self, graph: gs.Graph, plan: Plan) -> None:
        """Put the Conv and what follows it in the place of the ConvTranspose."""
        plan.payload.put(graph)


Extents = tuple[int | None, ...]


def _extents(context: Context, node: gs.Node) -> tuple[Extents, bool]:
    """Extents of the map as far as they are fixed; and whether that takes an input of the size that was given."""
    name = node.inputs[0].name
    fixed, sized = (
        tuple(None if extent is None or extent > LARGEST else extent for extent in known.get(name, (None,) * 4)[2:])
        for known in (context.fixed, context.sized)
    )
    wanted = bool(node.attrs.get("output_shape")) and None in fixed and None not in sized
    return (sized, True) if wanted else (fixed, False)


@dataclass(frozen=True)
class _Axis:
    """How one axis goes over to phases.

    Attributes:
        phases, places: of each tap of the old kernel: its phase, and its place in the new kernel, which has `kernel`
            taps that are `dilation` apart. pads: of the new Conv. begin, end: cells that are cut off behind it.
    """

    stride: int
    phases: tuple[int, ...]
    places: tuple[int, ...]
    kernel: int
    dilation: int
    pads: tuple[int, int]
    begin: int
    end: int

    @classmethod
    def of(cls, taps: int, stride: int, dilation: int, *, crop: int, gain: int) -> _Axis:
        """The axis of a kernel with so many taps, for an output of  extent x stride + gain  cells, any extent."""
        begins = 0, crop % stride
        found = [cls._from(begin, taps, stride, dilation, crop=crop, gain=gain) for begin in begins]
        return min(found, key=lambda axis: (axis.kernel, axis.begin))

    @classmethod
    def _from(cls, begin: int, taps: int, stride: int, dilation: int, *, crop: int, gain: int) -> _Axis:
        """The axis counted from so many cells further ahead; from more of them where the crop leaves no tap there."""
        begin += stride * max(0, -(((taps - 1) * dilation - crop + begin) // stride))
        blocks, phases = zip(*(divmod(tap * dilation - crop + begin, stride) for tap in range(taps)), strict=True)
        first, last = blocks[0], blocks[-1]
        step = math.gcd(*(block - first for block in blocks)) or 1
        after = max(0, -(-(gain + begin) // stride) - first)
        return cls(
            stride,
            phases,
            places=tuple((last - block) // step for block in blocks),
            kernel=(last - first) // step + 1,
            dilation=step,
            pads=(last, after),
            begin=begin,
            end=stride * (after + first) - gain - begin,
        )

    def cells(self, extent: int) -> int:
        """Cells of the Conv on a map of that extent."""
        return extent + sum(self.pads) - (self.kernel - 1) * self.dilation


def _axes(site: ConvSite, extents: Extents) -> tuple[_Axis, ...] | None:
    """Both axes; None where an auto_pad of SAME with output_padding has two meanings."""
    at = tuple(extent or 1 for extent in extents)  # any will do: only an output_shape depends on it
    spread, rank = Spreading.read(site.attrs, site.kernel, at), range(len(at))
    same = (site.attrs.get("auto_pad") or "").startswith("SAME") and not site.attrs.get("output_shape")
    more = site.attrs.get("output_padding") or (0,) * len(at)
    reach = [(k - 1) * d + 1 for k, d in zip(spread.kernel, spread.dilations, strict=True)]
    if same and any(more[axis] and reach[axis] + more[axis] > spread.strides[axis] for axis in rank):
        return None  # ONNX Runtime crops what output_padding adds, and shape inference does not
    steps, gains = spread.strides, [spread.output[axis] - at[axis] * spread.strides[axis] for axis in rank]
    parts = zip(site.kernel, steps, spread.dilations, spread.begin, gains, strict=True)
    return tuple(_Axis.of(taps, s, d, crop=crop, gain=gain) for taps, s, d, crop, gain in parts)


def _phases(site: ConvSite, axes: tuple[_Axis, ...]) -> tuple[Array, Array | None]:
    """The kernels of all phases [M s s, C / g, *kernel], those of one channel side by side, and their biases."""
    (out, per), (down, across) = site.kernels.shape[:2], axes
    made = np.zeros((out, down.stride, across.stride, per, down.kernel, across.kernel), site.weight.dtype)
    rows, columns = np.ix_(down.phases, across.phases)
    places = np.ix_(down.places, across.places)
    made[:, rows, columns, :, places[0], places[1]] = site.kernels.transpose(2, 3, 0, 1)
    bias = None if site.bias is None else np.repeat(site.bias, down.stride * across.stride)
    return made.reshape(out * down.stride * across.stride, *made.shape[3:]), bias


@dataclass(frozen=True)
class _Block:
    """What takes the place of the node that gives `output`; the extents are those of the map that it reads."""

    output: str
    weight: Array
    bias: Array | None
    group: int
    axes: tuple[_Axis, ...]
    extents: Extents

    @property
    def strides(self) -> tuple[int, ...]:
        """Cells of the output per cell of the Conv."""
        return tuple(axis.stride for axis in self.axes)

    def cells(self, extents: Sequence[int]) -> list[int]:
        """Extents of what the Conv gives on a map of these."""
        return [axis.cells(extent) for axis, extent in zip(self.axes, extents, strict=True)]

    def moves(self, opset: int) -> list[str]:
        """The operators that follow the Conv; Reshape stands for the three."""
        one = opset >= 11 and len(set(self.strides)) == 1
        moved = [] if max(self.strides) == 1 else ["DepthToSpace" if one else "Reshape"]
        return [*moved, *(["Slice"] if any(axis.begin or axis.end for axis in self.axes) else [])]

    def told(self, opset: int) -> list[str]:
        """The same in words."""
        sizes = {"DepthToSpace": f" {self.strides[0]}", "Reshape": f" {by(self.strides)}"}
        return [move + sizes.get(move, "") for move in self.moves(opset)]

    def put(self, graph: gs.Graph) -> None:
        """Make the change in the graph."""
        node = maker(graph, self.output)
        data, result, place = node.inputs[0], node.outputs[0], position(graph, node)
        dtype = data.dtype if data.dtype is not None else result.dtype
        emit = Emitter(graph.opset, names_taken(graph), prefix=f"{self.output}/subpixel-conv", dtype=dtype)
        node.inputs.clear()
        node.outputs.clear()
        del graph.nodes[place]
        inputs = [data, emit.constant("weight", self.weight)]
        inputs += [] if self.bias is None else [emit.constant("bias", self.bias)]
        attrs = {
            "kernel_shape": [axis.kernel for axis in self.axes],
            "dilations": [axis.dilation for axis in self.axes],
            "pads": [axis.pads[end] for end in (0, 1) for axis in self.axes],
            "group": self.group,
        }
        map_ = emit("Conv", "phases", inputs, **attrs)
        make = {"DepthToSpace": self._shuffled, "Reshape": self._spread, "Slice": self._cut}
        for move in self.moves(graph.opset):
            map_ = make[move](emit, map_)
        emit.nodes[-1].outputs[0] = result
        graph.nodes[place:place] = emit.nodes

    def _shuffled(self, emit: Emitter, map_: gs.Tensor) -> gs.Tensor:
        """[N, M s s, h, w] as [N, M, h s, w s]."""
        return emit("DepthToSpace", "blocks", [map_], blocksize=self.strides[0], mode="CRD")

    def _spread(self, emit: Emitter, map_: gs.Tensor) -> gs.Tensor:
        """[N, M s t, h, w] as [N, M, h s, w t]; a Reshape finds out one extent that is not known, and no second."""
        channels = [0, len(self.weight) // math.prod(self.strides)]
        if self.extents.count(None) < 2:
            cells = [-1 if n is None else axis.cells(n) for axis, n in zip(self.axes, self.extents, strict=True)]
            ends = [-1 if n < 0 else n * stride for n, stride in zip(cells, self.strides, strict=True)]
            shapes: list[gs.Tensor] = [emit.ints("apart", [*channels, *self.strides, *cells])]
            shapes += [emit.ints("together", [*channels, *ends])]
        else:
            sizes = emit("Shape", "sizes", [map_], dtype=np.int64)
            found = emit("Gather", "cells", [sizes, emit.ints("axes", [2, 3])], axis=0, dtype=np.int64)
            wide = emit("Mul", "extents", [found, emit.ints("strides", self.strides)], dtype=np.int64)
            first = emit.ints("channels-and-phases", [*channels, *self.strides]), emit.ints("channels", channels)
            named = zip(("apart", "together"), first, (found, wide), strict=True)
            shapes = [emit("Concat", name, parts, axis=0, dtype=np.int64) for name, *parts in named]
        apart = emit("Reshape", "in-phases", [map_, shapes[0]])
        turned = emit("Transpose", "in-turns", [apart], perm=[0, 1, 4, 2, 5, 3])
        return emit("Reshape", "in-place", [turned, shapes[1]])

    def _cut(self, emit: Emitter, map_: gs.Tensor) -> gs.Tensor:
        """The map without the cells that are too many."""
        starts, ends = [axis.begin for axis in self.axes], [-axis.end if axis.end else END for axis in self.axes]
        if emit.opset < 10:
            return emit("Slice", "cut", [map_], starts=starts, ends=ends, axes=[2, 3])
        parts = {"starts": starts, "ends": ends, "axes": [2, 3]}
        return emit("Slice", "cut", [map_, *(emit.ints(f"cut/{part}", values) for part, values in parts.items())])
