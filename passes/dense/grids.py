"""How dense every tensor becomes, and what that makes of every operator.

coarse   total stride in the original       dense   gcd(coarse, S)       factor   coarse / dense
lengths  cells of the new map, for images of several sizes: where branches meet, all of them have to agree
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite.engine.fields import FIELDLESS, Along, Reach, receptive_fields
from convrewrite.engine.graph import Constants, sort_nodes
from convrewrite.engine.image_axes import image_input
from convrewrite.engine.layers import Sliding, every
from convrewrite.engine.operators import OPERATORS, chosen, ruled
from convrewrite.engine.rewrite import Site
from convrewrite.errors import UsageError
from convrewrite.passes.dense.edits import Attributes, Edit, Extents, Forget, Sampled, Sliced
from convrewrite.passes.dense.pools import averaged, padded
from convrewrite.passes.dense.words import changes, label
from convrewrite.text import by, counted, parameter

Shape = tuple[int, ...]
Lengths = tuple[int, ...]

LOWERING = frozenset(op.name for op in OPERATORS.values() if op.finer) | {"SpaceToDepth"}
BROADCASTING = chosen("unary broadcast cast-like concat")
"""Operators whose operands lie over each other, aligned at their last axis, or beside each other."""


class Refuse(Exception):
    """The rewrite is not legal: a code of REASONS, and where."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(code, detail)
        self.code, self.detail = code, detail


@dataclass(frozen=True)
class Grid:
    """One spatial axis of the image as one tensor has it.

    Attributes:
        dim: of its cells; None where all are taken together. coarse, dense: strides, old and new.
        lengths: cells of the new map for each size of the image that is tried.
    """

    dim: int | None
    coarse: int
    dense: int
    lengths: Lengths

    @property
    def factor(self) -> int:
        """New cells from one old cell to the next; 1 where there are no cells."""
        return 1 if self.dim is None else self.coarse // self.dense


Grids = tuple[Grid, ...]


@dataclass
class Walk:
    """One walk through a graph.

    Attributes:
        graph, shapes, reaches: as they are. stride: that was asked for, per axis.
        grids: of the tensors so far. edits: what changes. told: node and words for each of them.
        strides: of the outputs, by name: the new ones.
    """

    graph: gs.Graph
    shapes: Mapping[str, Shape]
    reaches: Mapping[str, Reach]
    stride: Shape
    constants: Constants
    grids: dict[str, Grids] = field(default_factory=dict)
    edits: list[Edit] = field(default_factory=list)
    told: list[tuple[gs.Node, str]] = field(default_factory=list)
    strides: dict[str, Shape] = field(default_factory=dict)

    @classmethod
    def over(cls, graph: gs.Graph, shapes: Mapping[str, Shape], stride: Sequence[int] | None) -> Walk:
        """Walk through a whole graph.

        Raises:
            Refuse: it cannot be made denser. UsageError: the stride does not fit.
        """
        image = image_input(graph, shapes)
        if image is None:
            raise Refuse("dense/flattened", "no input is an image")
        reaches = receptive_fields(graph, shapes, image, strides_only=True)
        axes = reaches[image].axes
        wanted = tuple(stride or ()) or (1,) * len(axes)
        wanted = wanted * len(axes) if len(wanted) == 1 else wanted
        coarsest = _coarsest(graph, reaches, len(axes))
        _check(wanted, coarsest)
        walk = cls(graph, shapes, reaches, stride=wanted, constants=Constants(graph, shapes))
        walk.grids[image] = tuple(
            Grid(along.dim, 1, 1, walk._sizes(shapes[image][along.dim or 0], step, most))
            for along, step, most in zip(axes, wanted, coarsest, strict=True)
        )
        order = {id(node): place for place, node in enumerate(_sorted(graph))}
        for node in sorted(graph.nodes, key=lambda node: order[id(node)]):
            if any(t.name in walk.grids for t in node.inputs):
                walk._node(node)
        walk.strides = {
            t.name: tuple(grid.dense for grid in walk.grids[t.name]) for t in graph.outputs if t.name in walk.grids
        }
        walk.edits += [Forget(name) for name, grids in walk.grids.items() if any(g.factor > 1 for g in grids)]
        walk.edits += [Extents(name, walk._new_extents(name, image)) for name in walk.factors]
        return walk

    @property
    def factors(self) -> dict[str, dict[int, int]]:
        """New cells per old cell, by dimension, for the outputs that become denser."""
        of = {t.name: self.grids[t.name] for t in self.graph.outputs if t.name in self.grids}
        found = {
            name: {g.dim: g.factor for g in grids if g.dim is not None and g.factor > 1} for name, grids in of.items()
        }
        return {name: steps for name, steps in found.items() if steps}

    def _new_extents(self, name: str, image: str) -> dict[int, int | str]:
        """The extents of an output: numbers where the image has one size, else names."""
        whole = next(t for t in self.graph.inputs if t.name == image)
        old = next(t for t in self.graph.outputs if t.name == name).shape or ()
        extents: dict[int, int | str] = {}
        for grid, source in zip(self.grids[name], self.grids[image], strict=True):
            if grid.dim is None or grid.dim >= len(old):
                continue
            fixed = isinstance(whole.shape[source.dim or 0], int) and bool(grid.lengths)
            if fixed or isinstance(old[grid.dim], int):
                extents[grid.dim] = grid.lengths[0] if fixed else f"{name}_{grid.dim}"
        return extents

    def _sizes(self, native: int, step: int, most: int) -> Lengths:
        """Sizes of the image for which the new model has to run: native + k steps, over two of the largest strides."""
        return tuple(native + k * step for k in range(2 * most // step + 1))

    def sites(self, name: str) -> tuple[Site, ...]:
        """What the report says of every operator that changes."""
        return tuple(
            Site(name, node.outputs[0].name, node.op, "rewritten", detail=text, equivalence="reassociated")
            for node, text in self.told
        )

    # One operator

    def _node(self, node: gs.Node) -> None:
        grids = self._rule(node)
        for tensor in node.outputs:
            if tensor.name:
                self.grids[tensor.name] = grids

    def _rule(self, node: gs.Node) -> Grids:
        read = [t for t in node.inputs if t.name in self.grids]
        denser = any(grid.factor > 1 for t in read for grid in self.grids[t.name])
        found = self.reaches.get(node.outputs[0].name)
        if node.op in FIELDLESS:
            return ()
        if node.op in LOWERING:
            if denser or (found is not None and self._made(found, read[0]) and node.op == "SpaceToDepth"):
                raise Refuse("dense/lowers-stride", label(node))
            return self._unchanged(found, read)
        if found is None or found.why:
            if denser:
                raise Refuse("dense/no-rule", f"{label(node)}: {found.why if found else 'no rule'}")
            return self._unchanged(found, read)
        return RULES[node.op](self, node, found, read)

    def _made(self, found: Reach, tensor: gs.Tensor) -> bool:
        """Whether the stride that an operator makes would be a finer one."""
        return any(self._dense(i, along) != along.field.stride for i, along in enumerate(found.axes))

    def _dense(self, axis: int, along: Along) -> int:
        return math.gcd(along.field.stride, self.stride[axis])

    def _unchanged(self, found: Reach | None, read: Sequence[gs.Tensor]) -> Grids:
        """The state after an operator that reads maps at their old stride: what follows cannot become denser."""
        return () if found is None or found.why else self._following(found, [0 for _ in found.axes])

    def _following(self, found: Reach, lengths: Sequence[Any]) -> Grids:
        return tuple(Grid(a.dim, a.field.stride, self._dense(i, a), lengths[i] or ()) for i, a in enumerate(found.axes))

    def _slide(self, node: gs.Node, found: Reach, read: Sequence[gs.Tensor]) -> Grids:
        data = node.inputs[0]
        shape, grids = self.shapes[data.name], self.grids[data.name]
        weight = OPERATORS[node.op].weight or 1
        kernel = node.attrs.get("kernel_shape") or self.shapes[node.inputs[weight].name][2:]
        old = Sliding.read(node.attrs, kernel, shape[2:])
        if str(node.attrs.get("auto_pad", "NOTSET")).startswith("SAME") and any(s > 1 for s in old.strides):
            raise Refuse("dense/no-rule", f"{label(node)}: its auto_pad depends on the size; convert it with fcn first")
        new = self._dilated(node, old, grids, found)
        if new != old:
            self._edit_slide(node, old, new)
        return self._following(found, [_cells(grid, new) for grid in grids])

    def _dilated(self, node: gs.Node, old: Sliding, grids: Grids, found: Reach) -> Sliding:
        """The geometry at the new strides; a ceil_mode becomes pads, if anything changes."""
        places = [(grid, i, grid.dim - 2) for i, grid in enumerate(grids) if grid.dim is not None]
        strides, dilations, begin, end = (list(v) for v in (old.strides, old.dilations, old.begin, old.end))
        for grid, i, at in places:
            strides[at] = self._dense(i, found.axes[i]) // grid.dense
            dilations[at] *= grid.factor if old.kernel[at] > 1 else 1
            begin[at], end[at] = begin[at] * grid.factor, end[at] * grid.factor
        new = replace(old, strides=tuple(strides), dilations=tuple(dilations), begin=tuple(begin), end=tuple(end))
        if new == old or not old.ceil_mode:
            return new
        for grid, _, at in places:
            if old.end[at] + old.strides[at] > old.reach[at]:  # a last window in the padding is left out, there
                raise Refuse("dense/ceil-mode", label(node))
            end[at] += (old.strides[at] - 1) * grid.factor
        return replace(new, end=tuple(end), ceil_mode=False)

    def _edit_slide(self, node: gs.Node, old: Sliding, new: Sliding) -> None:
        if len(node.outputs) > 1 and any(t.name for t in node.outputs[1:]):
            raise Refuse("dense/uses-indices", label(node))
        if old.ceil_mode and node.op != "MaxPool":
            raise Refuse("dense/ceil-mode", label(node))
        dilated = new.dilations != (1,) * len(new.dilations)
        can_dilate = self.graph.opset >= OPERATORS[node.op].dilates_from
        if node.op == "MaxPool" and dilated and not can_dilate:
            raise Refuse("dense/opset", f"{label(node)} needs opset 10, the model has {self.graph.opset}")
        name = node.outputs[0].name
        reaching = any(max(b, e) >= k for b, e, k in zip(new.begin, new.end, new.kernel, strict=True))
        if node.op == "MaxPool" and reaching:
            self.edits.append(padded(name, node, new, self.graph.opset))
        elif node.op in ("AveragePool", "LpPool") and dilated and (reaching or not can_dilate):
            shape = self.shapes[node.inputs[0].name]
            self.edits.append(averaged(name, node, old, new, shape=shape, opset=self.graph.opset))
        else:
            self.edits.append(Attributes(name, new.attributes(node.attrs, pool=OPERATORS[node.op].kind == "pool")))
        self.told.append((node, changes(old, new)))

    def _taken_together(self, node: gs.Node, found: Reach, read: Sequence[gs.Tensor]) -> Grids:
        """An operator over whole axes: it sees the cells that it saw, every factor-th."""
        data = node.inputs[0]
        grids = self.grids[data.name]
        steps = {
            grid.dim: grid.factor
            for grid, after in zip(grids, found.axes, strict=True)
            if grid.dim is not None and after.dim is None and grid.factor > 1
        }
        if steps:
            self.edits.append(Sampled(node.outputs[0].name, steps))
            self.told.append((node, f"sees every {' and '.join(map(str, sorted(set(steps.values()))))}-th cell"))
        return self._following(found, [grid.lengths for grid in grids])

    def _pad(self, node: gs.Node, found: Reach, read: Sequence[gs.Tensor]) -> Grids:
        data = node.inputs[0]
        rank, grids = len(self.shapes[data.name]), self.grids[data.name]
        given = node.attrs.get("pads")
        stored: Any = self.constants.value(node.inputs[1]) if given is None else given
        pads = [int(p) for p in np.ravel(stored)]
        new = list(pads)
        lengths: list[Lengths] = []
        for grid in grids:
            if grid.dim is None:
                lengths.append(())
                continue
            for end in (grid.dim, grid.dim + rank):
                new[end] *= grid.factor
            more = new[grid.dim] + new[grid.dim + rank]
            if min(pads[grid.dim], pads[grid.dim + rank]) < 0 and grid.factor > 1:
                raise Refuse("dense/no-rule", f"{label(node)}: its pads are negative")
            lengths.append(tuple(n + more for n in grid.lengths))
        if new != pads:
            self.edits.append(Sliced(node.outputs[0].name, "pads", 1, tuple(new)))
            self.told.append((node, f"pads {pads} -> {new}"))
        return self._following(found, lengths)

    def _slice(self, node: gs.Node, found: Reach, read: Sequence[gs.Tensor]) -> Grids:
        data = node.inputs[0]
        cut = every(node, self.constants, len(self.shapes[data.name])) or {}
        order = list(cut)
        starts, steps = [c.start for c in cut.values()], [c.step for c in cut.values()]
        old = list(starts), list(steps)
        lengths: list[Lengths] = []
        for i, (grid, after) in enumerate(zip(self.grids[data.name], found.axes, strict=True)):
            if grid.dim not in cut:
                lengths.append(grid.lengths)
                continue
            place = order.index(grid.dim)
            starts[place] *= grid.factor
            steps[place] = self._dense(i, after) // grid.dense
            lengths.append(tuple(-(-(n - starts[place]) // steps[place]) for n in grid.lengths))
        if (starts, steps) != old:
            for place, part, values in ((1, "starts", starts), (4, "steps", steps)):
                self.edits.append(Sliced(node.outputs[0].name, part, place, tuple(values)))
            self.told.append((node, f"steps {old[1]} -> {steps}"))
        return self._following(found, lengths)

    def _reshape(self, node: gs.Node, found: Reach, read: Sequence[gs.Tensor]) -> Grids:
        """An axis that stays is told by 0 or -1, of an Expand by 1; one that goes is flattened."""
        grids = self.grids[read[0].name]
        stored = Constants(self.graph)  # a shape that is computed from the map's own has no numbers of it
        shape = stored.value(node.inputs[1]) if node.op in ("Reshape", "Expand") and len(node.inputs) > 1 else None
        most = 1 if node.op == "Expand" else 0
        for grid, after in zip(grids, found.axes, strict=True):
            if grid.factor == 1:
                continue
            if after.dim is None:
                raise Refuse("dense/flattened", label(node))
            if shape is not None and int(shape[after.dim]) > most:
                raise Refuse("dense/baked-shape", f"{label(node)} to {[int(d) for d in shape]}")
        return self._following(found, [grid.lengths for grid in grids])

    def _check_constant_maps(self, node: gs.Node, found: Reach, read: Sequence[gs.Tensor]) -> None:
        """What does not depend on the image must not have cells of its own where the map becomes denser."""
        if node.op not in BROADCASTING:
            return
        factors = [max((g[i].factor for t in read if len(g := self.grids[t.name]) > i), default=1) for i in range(9)]
        rank = len(self.shapes.get(node.outputs[0].name, ()))
        for tensor in node.inputs:
            shape = self.shapes.get(tensor.name) or (tensor.shape if isinstance(tensor, gs.Constant) else None)
            if tensor.name in self.grids or not shape:
                continue
            for i, after in enumerate(found.axes):
                at = None if after.dim is None else after.dim - rank + len(shape)
                if at is not None and at >= 0 and shape[at] != 1 and factors[i] > 1:
                    raise Refuse("dense/baked-shape", f"{label(node)} reads '{tensor.name}' {list(shape)}")

    def _joined(self, node: gs.Node, found: Reach, read: Sequence[gs.Tensor]) -> Grids:
        """Cell by cell: all maps that meet have the same extents, whatever the size of the image."""
        self._check_constant_maps(node, found, read)
        lengths: list[Lengths] = []
        for i, after in enumerate(found.axes):
            meeting = [
                g[i]
                for t in read
                if len(g := self.grids[t.name]) > i and g[i].dim is not None and after.dim is not None
            ]
            meeting = [grid for grid in meeting if grid.coarse == after.field.stride and grid.lengths]
            if len({grid.lengths for grid in meeting}) > 1:
                names = " and ".join(f"'{t.name}'" for t in read)
                raise Refuse("dense/branches", f"{label(node)} joins {names}")
            if after.dim is None and any(grid[i].factor > 1 for t in read if (grid := self.grids[t.name])):
                raise Refuse("dense/flattened", label(node))
            lengths.append(meeting[0].lengths if meeting else ())
        return self._following(found, lengths)


RULES: Mapping[str, Callable[[Walk, gs.Node, Reach, Sequence[gs.Tensor]], Grids]] = ruled(
    {
        "convolution integer-convolution pool": Walk._slide,
        "global-pool reduction search": Walk._taken_together,
        "pad": Walk._pad,
        "slice": Walk._slice,
        "reshape Expand": Walk._reshape,
        "unary broadcast cast-like quantizer matrix transpose concat split gather top": Walk._joined,
        "softmax batch-norm layer-norm channel-norm axis-norm axes-norm": Walk._joined,
    }
)
"""What an operator means whose cells have a receptive field (`fields.RULES`); the others cannot become denser."""


def _cells(grid: Grid, sliding: Sliding) -> Lengths:
    """Cells of an operator's output along one axis, for each of the sizes."""
    if grid.dim is None:
        return ()
    at = grid.dim - 2
    return tuple(
        replace(sliding, size=tuple(n if i == at else old for i, old in enumerate(sliding.size))).output[at]
        for n in grid.lengths
    )


def _coarsest(graph: gs.Graph, reaches: Mapping[str, Reach], axes: int) -> Shape:
    """The strides of the outputs, per axis: the largest where there are several."""
    known = [reaches[t.name] for t in graph.outputs if t.name in reaches]
    if any(reach.why for reach in known):  # some operator says why, once the walk comes to it
        known = list(reaches.values())
    of = [reach.axes for reach in known if any(along.dim is not None for along in reach.axes)]
    if not of:
        raise Refuse("dense/flattened", "no output is a map")
    return tuple(max(found[axis].field.stride for found in of) for axis in range(axes))


def _check(wanted: Shape, coarsest: Shape) -> None:
    given = parameter("stride", by(wanted))
    if len(wanted) != len(coarsest):
        raise UsageError(f"{given} does not fit: the model has {counted(len(coarsest), 'spatial axis')}")
    if any(whole % part for whole, part in zip(coarsest, wanted, strict=True)):
        choices = " or ".join(map(str, (n for n in range(1, max(coarsest) + 1) if all(c % n == 0 for c in coarsest))))
        raise UsageError(f"{given} does not divide the model's own, {by(coarsest)}", remedy=f"choose {choices}")


def _sorted(graph: gs.Graph) -> Iterator[gs.Node]:
    """The nodes of the graph itself in the order of computation."""
    by_output = {t.name: node for node in graph.nodes for t in node.outputs if t.name}
    for node in sort_nodes(graph.copy()).nodes:
        name = next((t.name for t in node.outputs if t.name), None)
        if name is not None:
            yield by_output[name]
