"""The receptive field of every tensor: which pixels of the image one of its cells can depend on.

    image ── Conv 3 ── Conv 3, stride 2 ── GlobalAveragePool ── Gemm
    1/1/0    3/1/-1      5/2/-2              the whole map: 5 + (n - 1) * 2          size / stride / offset

Each tensor keeps, per spatial axis of the image, the field of its cells and the dimension along which they lie. An
operator that runs over an axis as a whole widens the field by all cells of that axis; then there is no dimension left,
and one field for all cells. Where fields differ from cell to cell in another way (ConvTranspose, Resize, a map that is
multiplied by a mean of all of it) there is no figure, and the reason is kept instead.

After Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_graphsurgeon as gs

from convrewrite.engine.finer import spread
from convrewrite.engine.graph import Constants, sort_nodes
from convrewrite.engine.image_axes import spatial_dims
from convrewrite.engine.layers import Sliding, every
from convrewrite.engine.operators import OPERATORS, axis_of, chosen, ruled
from convrewrite.engine.windows import Field

Shape = tuple[int, ...]

FIELDLESS = chosen("extents constant")
"""Operators that read no pixel's value."""

ALONG_AXIS = frozenset("softmax axis-norm concat split top".split())
"""Kinds of operators along one axis."""


@dataclass(frozen=True)
class Along:
    """One spatial axis of the image as one tensor has it: its field, and the dimension of its cells if there is one."""

    field: Field
    dim: int | None


@dataclass(frozen=True)
class Reach:
    """What the cells of a tensor can depend on; `why` says why there is no figure, and then `axes` is empty."""

    axes: tuple[Along, ...] = ()
    why: str = ""

    @property
    def size(self) -> Shape:
        """The extent in pixels, one entry per spatial axis."""
        return tuple(along.field.size for along in self.axes)

    @property
    def stride(self) -> Shape:
        """Pixels from one cell to the next; of an axis that is gone, the extent that was taken together."""
        return tuple(along.field.stride for along in self.axes)

    @property
    def offset(self) -> Shape:
        """First pixel of cell 0; negative where padding is read."""
        return tuple(along.field.offset for along in self.axes)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {"size": list(self.size), "stride": list(self.stride), "offset": list(self.offset), "why": self.why}


@dataclass(frozen=True)
class _Lost(Exception):
    """No figure: the fields of a tensor differ from cell to cell."""

    why: str


def receptive_fields(
    graph: gs.Graph,
    shapes: Mapping[str, Shape],
    image: str,
    *,
    strides_only: bool = False,
    bounds: bool = False,
    dims: Sequence[int] | None = None,
) -> dict[str, Reach]:
    """Follow one image input through a graph.

    Args:
        graph: it is not changed. shapes: of its tensors. image: name of the input, [N, C, *spatial] or channels last.
        strides_only: sizes and offsets are not asked for, so that a map may meet what all of it was reduced to.
        bounds: a field that holds for all cells will do where they differ (`finer`); elsewhere there is no figure.
        dims: of the image's spatial axes, where they are known.

    Returns:
        By tensor name, for each tensor that depends on the image.
    """
    places = spatial_dims(graph, shapes, image) if dims is None else dims
    found = {image: Reach(tuple(Along(Field(), dim) for dim in places))}
    constants = Constants(graph, shapes)
    for node in sort_nodes(graph.copy()).nodes:
        read = [found[t.name] for t in node.inputs if t.name in found]
        if not read or node.op in FIELDLESS:
            continue
        try:
            lost = next((reach.why for reach in read if reach.why), "")
            if lost:
                raise _Lost(lost)
            step = _Step(node, found, shapes, constants, opset=graph.opset, strides_only=strides_only, bounds=bounds)
            reach = step.reach()
        except _Lost as loss:
            reach = Reach(why=loss.why)
        if reach.axes or reach.why:
            found.update({t.name: reach for t in node.outputs if t.name})
    return found


@dataclass(frozen=True)
class _Step:
    """One node, and what is known of the tensors ahead of it."""

    node: gs.Node
    found: Mapping[str, Reach]
    shapes: Mapping[str, Shape]
    constants: Constants
    opset: int
    strides_only: bool
    bounds: bool

    def reach(self) -> Reach:
        """The reach of the node's outputs."""
        if self.node.op not in RULES:
            raise _Lost(f"{self.node.op} has no rule for receptive fields")
        return RULES[self.node.op](self, self.node.inputs[0])

    def _shape(self, tensor: gs.Tensor) -> Shape:
        if tensor.name not in self.shapes:
            raise _Lost(f"the shape of '{tensor.name}' is not known")
        return self.shapes[tensor.name]

    def _known(self, tensor: gs.Tensor) -> Reach:
        if tensor.name not in self.found:
            raise _Lost(f"{self.node.op} reads the image in another place than its data")
        return self.found[tensor.name]

    def _slide(self, data: gs.Tensor) -> Reach:
        shape, node = self._shape(data), self.node
        kernel = node.attrs.get("kernel_shape")
        kernel = kernel or self._shape(node.inputs[OPERATORS[node.op].weight or 1])[2:]
        sliding = Sliding.read(node.attrs, kernel, shape[2:])
        axes = []
        for along in self._known(data).axes:
            if along.dim is None:  # one cell for the whole map, such as a block that weighs channels sees
                axes.append(along)
                continue
            if along.dim < 2:
                raise _Lost(f"{node.op} slides over an axis that is not of the image")
            at = along.dim - 2
            moved = sliding.kernel[at], sliding.strides[at], sliding.dilations[at], sliding.begin[at]
            axes.append(replace(along, field=along.field.slide(*moved)))
        return Reach(tuple(axes))

    def _finer(self, data: gs.Tensor) -> Reach:
        """Bounds of the fields behind an operator that lowers the stride by a whole number."""
        if not self.bounds:
            raise _Lost(f"{self.node.op} has no rule for receptive fields")
        node, axes = self.node, []
        kernel = self._shape(node.inputs[1])[2:] if node.op == "ConvTranspose" else ()
        for along in self._known(data).axes:
            if along.dim is None:
                axes.append(along)
                continue
            try:
                times, before, behind = spread(
                    node, along.dim, self._shape(data), self._shape(node.outputs[0]), kernel=kernel, opset=self.opset
                )
            except ValueError as error:
                raise _Lost(str(error)) from None
            if along.field.stride % times:
                raise _Lost(f"{node.op} gives cells that are no whole number of pixels apart")
            step = along.field.stride // times
            size = along.field.size + (before + behind) * step
            axes.append(replace(along, field=Field(step, size, along.field.offset - before * step)))
        return Reach(tuple(axes))

    def _pooled(self, data: gs.Tensor) -> Reach:
        return self._over(range(2, len(self._shape(data))), keep=True)

    def _searched(self, data: gs.Tensor) -> Reach:
        return self._over([self._axis(data)], keep=bool(self.node.attrs.get("keepdims", 1)))

    def _reduced(self, data: gs.Tensor) -> Reach:
        node, rank = self.node, len(self._shape(data))
        given = node.attrs.get("axes")
        if given is None and len(node.inputs) > 1 and node.inputs[1].name:
            given = self.constants.value(node.inputs[1])
            if given is None:
                raise _Lost(f"the axes of {node.op} are not constant")
        axes = [int(axis) % rank for axis in (() if given is None else given)]
        none = [] if node.attrs.get("noop_with_empty_axes", 0) else range(rank)
        return self._over(axes or none, keep=bool(node.attrs.get("keepdims", 1)))

    def _axis(self, data: gs.Tensor) -> int:
        return axis_of(self.node, self.opset) % len(self._shape(data))

    def _over(self, dims: Sequence[int], *, keep: bool) -> Reach:
        """Take dimensions together; without `keep` they are gone, and later ones move up."""
        data = self.node.inputs[0]
        axes = []
        for along in self._known(data).axes:
            if along.dim is None:
                axes.append(along)
            elif along.dim in dims:
                axes.append(Along(self._whole(along, data), None))
            else:
                gone = 0 if keep else sum(dim < along.dim for dim in dims)
                axes.append(replace(along, dim=along.dim - gone))
        return Reach(tuple(axes))

    def _whole(self, along: Along, tensor: gs.Tensor) -> Field:
        """The field of all cells of an axis together."""
        if along.dim is None:
            return along.field
        cells = self._shape(tensor)[along.dim]
        return along.field.slide(cells, cells)

    def _transposed(self, data: gs.Tensor) -> Reach:
        perm = list(self.node.attrs.get("perm") or range(len(self._shape(data)))[::-1])
        axes = self._known(data).axes
        return Reach(tuple(replace(a, dim=None if a.dim is None else perm.index(a.dim)) for a in axes))

    def _in_blocks(self, data: gs.Tensor) -> Reach:
        block = int(self.node.attrs["blocksize"])
        return Reach(tuple(replace(a, field=a.field.slide(block, block)) for a in self._known(data).axes))

    def _reshaped(self, data: gs.Tensor) -> Reach:
        """An axis stays where its extent, and the number of entries behind it, stay; else its cells are mixed."""
        old, new = self._shape(data), self._shape(self.node.outputs[0])
        places = {_place(new, dim): dim for dim in reversed(range(len(new)))}
        axes = []
        for along in self._known(data).axes:
            dim = None if along.dim is None else places.get(_place(old, along.dim))
            if along.dim is not None and dim is not None and old[along.dim] > 1:
                axes.append(replace(along, dim=dim))
            else:
                axes.append(Along(self._whole(along, data), None))
        return Reach(tuple(axes))

    def _padded(self, data: gs.Tensor) -> Reach:
        pads = self.node.attrs.get("pads")
        if pads is None:
            pads = self.constants.value(self.node.inputs[1])
        if pads is None or len(pads) != 2 * len(self._shape(data)):
            raise _Lost("the pads of Pad are not constant, or not of all axes")
        mode = self.node.attrs.get("mode", "constant")
        if mode != "constant" and any(pads):
            raise _Lost(f"Pad in mode {mode} repeats pixels")
        axes = []
        for along in self._known(data).axes:
            begin = 0 if along.dim is None else int(pads[along.dim])
            axes.append(replace(along, field=along.field.slide(1, pad_begin=begin)))
        return Reach(tuple(axes))

    def _sliced(self, data: gs.Tensor) -> Reach:
        """Every n-th cell of an axis, from some cell to the last: the field moves, and the stride grows."""
        cut = every(self.node, self.constants, len(self._shape(data)))
        axes = []
        for along in self._known(data).axes:
            if along.dim is None or (cut is not None and along.dim not in cut):
                axes.append(along)
            elif cut is None or not cut[along.dim].to_the_end:
                raise _Lost("Slice runs over an axis of the image")
            else:
                start, step = cut[along.dim].start, cut[along.dim].step
                axes.append(replace(along, field=along.field.slide(1, step, pad_begin=-start)))
        return Reach(tuple(axes))

    def _gathered(self, data: gs.Tensor) -> Reach:
        """The gathered axis gives way to those of the indices; it must not be one of the image."""
        axis, more = self._axis(data), len(self._shape(self.node.outputs[0])) - len(self._shape(data))
        axes = self._known(data).axes
        if any(a.dim == axis for a in axes) or self.node.inputs[1].name in self.found:
            raise _Lost("Gather runs over an axis of the image")
        return Reach(tuple(a if a.dim is None or a.dim < axis else replace(a, dim=a.dim + more) for a in axes))

    def _multiplied(self, _: gs.Tensor) -> Reach:
        """A matrix product contracts the last axis of its first factor, the last but one of its second."""
        read = [(i, t) for i, t in enumerate(self.node.inputs) if t.name in self.found]
        if len(read) > 1 or read[0][0] > 1:
            raise _Lost(f"{self.node.op} multiplies what depends on the image by itself")
        place, data = read[0]
        rank = len(self._shape(data))
        flipped = bool(self.node.attrs.get("transA" if place == 0 else "transB", 0))
        contracted = rank - 1 if (place == 0) != flipped else rank - 2
        axes = []
        for along in self.found[data.name].axes:
            if along.dim == contracted:
                axes.append(Along(self._whole(along, data), None))
            elif along.dim is not None and flipped:
                axes.append(replace(along, dim=1 - along.dim))
            elif along.dim is not None and along.dim > contracted and len(self._shape(self.node.outputs[0])) < rank:
                axes.append(replace(along, dim=along.dim - 1))  # a vector in front leaves no axis of its own
            else:
                axes.append(along)
        return Reach(tuple(axes))

    def _normalized(self, data: gs.Tensor) -> Reach:
        if self.node.attrs.get("training_mode", 0):
            raise _Lost(f"{self.node.op} in training mode sees the whole map")
        return self._cell_by_cell(data)

    def _over_map(self, _: gs.Tensor) -> Reach:
        raise _Lost(f"{self.node.op} sees the whole map")

    def _cell_by_cell(self, _: gs.Tensor) -> Reach:
        """The fields of all operands together, which broadcasting aligns at their last dimension."""
        node = self.node
        result: tuple[Along, ...] | None = None
        out = self._shape(node.outputs[0])
        for tensor in node.inputs[:1] if node.op == "CastLike" else node.inputs:  # of the other it takes the type
            if tensor.name not in self.found:
                continue
            shape = self._shape(tensor)
            shift = len(out) - len(shape)
            axes = []
            for along in self.found[tensor.name].axes:
                dim = None if along.dim is None else along.dim + shift
                if along.dim is not None and self._runs_over(along.dim, tensor):
                    raise _Lost(f"{node.op} runs over an axis of the image")
                if dim is not None and shape[along.dim or 0] == 1 and out[dim] > 1:
                    dim = None  # one cell for all
                axes.append(Along(along.field, dim))
            result = tuple(axes) if result is None else _together(result, axes, node.op, self.strides_only)
        return Reach(result or ())

    def _runs_over(self, dim: int, data: gs.Tensor) -> bool:
        """Whether an operator along one axis mixes or picks cells of that one."""
        kind = OPERATORS[self.node.op].kind
        if kind == "layer-norm" or (kind == "softmax" and self.opset < 13):  # all axes from that one on
            return dim >= self._axis(data)
        if kind == "axes-norm":
            return dim in {int(axis) % len(self._shape(data)) for axis in self.node.attrs.get("axes", (0, 2, 3))}
        return kind in ALONG_AXIS and dim == self._axis(data)


RULES: Mapping[str, Callable[[_Step, gs.Tensor], Reach]] = ruled(
    {
        "unary broadcast cast-like quantizer": _Step._cell_by_cell,
        "softmax layer-norm channel-norm axis-norm axes-norm concat split top Expand": _Step._cell_by_cell,
        "batch-norm": _Step._normalized,
        "map-norm": _Step._over_map,
        "gather": _Step._gathered,
        "convolution integer-convolution pool": _Step._slide,
        "transposed-convolution resize DepthToSpace": _Step._finer,
        "SpaceToDepth": _Step._in_blocks,
        "global-pool": _Step._pooled,
        "reduction": _Step._reduced,
        "search": _Step._searched,
        "matrix": _Step._multiplied,
        "reshape": _Step._reshaped,
        "transpose": _Step._transposed,
        "pad": _Step._padded,
        "slice": _Step._sliced,
    }
)
"""How the reach of a node's outputs follows from its first input, and from what is known of the others."""

UNRULED = chosen(
    """dynamic-quantizer sampling unpool region integer-matrix product recurrent attention Tile scan triangle entries
    list bits gate random loss signal control sequence text"""
)
"""Operators without such a rule: behind them there is no figure."""


def _together(one: Sequence[Along], other: Sequence[Along], op: str, strides_only: bool) -> tuple[Along, ...]:
    """Both fields, axis by axis; where only one of them moves there is no figure that holds for all cells."""
    axes = []
    for a, b in zip(one, other, strict=True):
        if strides_only and None in (a.dim, b.dim):
            axes.append(b if a.dim is None else a)
            continue
        if (a.dim is None) != (b.dim is None) and a.field != b.field:
            raise _Lost(f"{op} joins a map with what all of it was reduced to")
        if a.dim != b.dim and None not in (a.dim, b.dim):
            raise _Lost(f"{op} joins maps whose axes differ")
        if a.field.stride != b.field.stride and a.dim is not None:
            raise _Lost(f"{op} joins maps of strides {a.field.stride} and {b.field.stride}")
        axes.append(Along(a.field.union(b.field), a.dim))
    return tuple(axes)


def _place(shape: Shape, dim: int) -> tuple[int, int]:
    """An extent and the number of entries behind it: the same where a Reshape leaves an axis alone."""
    behind = 1
    for extent in shape[dim + 1 :]:
        behind *= extent
    return shape[dim], behind
