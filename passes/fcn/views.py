"""What stands for a tensor of the original while its model is lifted, and the nodes that bring it into a layout.

A `View` says: this tensor of the new graph, whose axes are `base`, holds what the original held with axes `axes`.
Reshape, Transpose, Flatten and Squeeze change `axes` and emit nothing; `Layouts.bring` emits the Reshape and Transpose
that an operator needs, when it needs them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite.engine.axes import Atom, Axis, Layout, atoms, extent, large, substitute
from convrewrite.engine.emitting import Emitter
from convrewrite.engine.rewrite import Reason
from convrewrite.engine.windows import CutTensor, Field
from convrewrite.passes.fcn.reasons import REASONS


class Refuse(Exception):
    """Raised inside the lifting where an operator cannot be lifted; becomes the plan's Refusal."""

    def __init__(self, code: str, detail: str, pools: frozenset[str] = frozenset()) -> None:
        """Args: pools: anchors of the whole-map pools behind which it happened; kept global, they may not be in it."""
        super().__init__(detail)
        self.reason: Reason = REASONS[code]
        self.detail = detail
        self.pools = pools


class MeetsLargerMap(Exception):
    """A value that stands for a whole window met a map with several positions: its pool must stay global."""

    def __init__(self, pools: frozenset[str]) -> None:
        super().__init__()
        self.pools = pools


@dataclass(frozen=True)
class Static:
    """A tensor that does not depend on the values of any input."""

    tensor: gs.Tensor


@dataclass(frozen=True)
class Fixed:
    """The same tensor in the new graph, of the same shape at any image size: a vector input, a global pool.

    Attributes:
        pools: anchors of the pools over the whole image that it came through.
        spread: the native shape of `tensor`, where the original repeats it over the map: broadcasting does the same.
    """

    tensor: gs.Variable
    pools: frozenset[str] = frozenset()
    spread: tuple[int, ...] | None = None


@dataclass(frozen=True)
class View:
    """A tensor that depends on the position in the image.

    Attributes:
        tensor: of the new graph. base: its axes; every axis holds one spatial atom or none.
        axes: the axes of the original tensor. Atoms of extent 1 may be missing from it.
        fields: receptive field per spatial letter, in pixels of the image.
        pools: anchors of the whole-map pools that this value came through.
        cuts: the last spatial tensors of the original that it was computed from.
    """

    tensor: gs.Variable
    base: Layout
    axes: Layout
    fields: Mapping[str, Field]
    pools: frozenset[str] = frozenset()
    cuts: frozenset[CutTensor] = frozenset()

    def spatial(self, letter: str) -> Atom:
        """The spatial atom of this letter."""
        return next(atom for atom in atoms(self.base) if atom.letter == letter)

    @property
    def letters(self) -> tuple[str, ...]:
        """The spatial letters, in the order of the base."""
        return tuple(atom.letter for atom in atoms(self.base) if atom.spatial)

    @property
    def one_position(self) -> bool:
        """Whether the original has one position here, so that a cell stands for a whole window."""
        return not large(atoms(self.base))

    def refined(self, parts: Mapping[Atom, tuple[Atom, ...]]) -> View:
        """The same view with channel atoms replaced by their factors."""
        return replace(self, base=substitute(self.base, parts), axes=substitute(self.axes, parts)) if parts else self

    @property
    def natural(self) -> bool:
        """Whether the new tensor has the very layout of the original, so that it may carry its name."""
        return len(self.base) == len(self.axes) and all(
            _real(b) == _real(a) for b, a in zip(self.base, self.axes, strict=True)
        )


@dataclass(frozen=True)
class Parts:
    """A Concat of features from several places along `axis`, not joined yet: a fully connected layer follows."""

    members: tuple[View | Fixed, ...]
    extents: tuple[int, ...]
    axis: int
    rank: int


@dataclass(frozen=True)
class Centred:
    """A map less one number per window (`square`: the square of that), which has no map of its own.

    Attributes:
        data, centre: the map, and what is taken off. letters: spatial letters over which the centre is one number.
        plain: the centre is the mean of the map over those letters. scales: Mul and Div by scalars, put off until the
            statistic is made.
    """

    data: View
    centre: View
    letters: frozenset[str]
    plain: bool
    square: bool = False
    scales: tuple[tuple[str, gs.Tensor], ...] = ()


@dataclass(frozen=True)
class Weights:
    """A softmax over all positions of the map, or a map times one: `attention` has what becomes of it.

    Attributes:
        view: the weights, or the map times the weights. mass: what the sum of the weights is taken of, where it is the
            sum over a window and still to be divided by; None where they are normalised over the whole image.
        anchor: the softmax. product: whether a map has been multiplied.
    """

    view: View
    mass: View | None
    anchor: str
    product: bool = False


@dataclass(frozen=True)
class Strip:
    """A map of which one axis has been pooled as a whole: the tensor has the original's own layout, `view.axes`."""

    view: View
    anchor: str


State = Static | Fixed | View | Parts | Weights | Strip | Centred


def _real(axis: Sequence[Atom]) -> tuple[Atom, ...]:
    return tuple(atom for atom in axis if atom.extent != 1)


def _kept(axis: Sequence[Atom]) -> tuple[Atom, ...]:
    """Atoms that matter for the order of memory: a channel atom of extent 1 stays 1 at every size, others need not."""
    return tuple(atom for atom in axis if not (atom.letter == "C" and atom.extent == 1))


def is_dynamic(axis: Sequence[Atom]) -> bool:
    """Whether the extent of an axis changes with the image or the batch."""
    return any(atom.letter != "C" for atom in axis)


class Layouts(Emitter):
    """Emits the nodes of the new graph; the original's constants are shared, never edited."""

    @functools.cached_property
    def _shared(self) -> dict[str, gs.Constant]:
        return {}

    def share(self, constant: gs.Constant) -> gs.Constant:
        """The original's constant under its own name; the values are shared and stay lazy."""
        if constant.name not in self._shared:
            copy = gs.Constant(constant.name, constant._values, constant.data_location, constant._export_dtype)
            self._shared[constant.name] = copy
        return self._shared[constant.name]

    def bring(self, view: View, target: Layout) -> View:
        """Emit what brings a view's tensor into another layout of the same atoms; often nothing."""
        if view.base == target:
            return view
        name = f"{view.tensor.name}/{_letters(target)}"
        permutation = _permutation(view.base, target)
        if permutation is not None:
            tensor = view.tensor
            if permutation != list(range(len(permutation))):
                tensor = self.emit("Transpose", [tensor], {"perm": permutation}, output=name, dtype=tensor.dtype)
        elif _order(view.base) == _order(target):
            tensor = self._reshape(view.tensor, view.base, target, name)
        else:
            apart: Layout = tuple((atom,) for atom in _order(view.base))
            tensor = self._reshape(view.tensor, view.base, apart, f"{name}/apart")
            turned: Layout = tuple((atom,) for atom in _order(target))
            order = [apart.index(axis) for axis in turned]
            tensor = self.emit("Transpose", [tensor], {"perm": order}, output=f"{name}/turned", dtype=tensor.dtype)
            tensor = self._reshape(tensor, turned, target, name)
        return replace(view, tensor=tensor, base=target)

    def as_map(self, view: View) -> View:
        """The view as a map [N, C, *spatial]."""
        batch = tuple(a for a in atoms(view.base) if a.letter == "N")
        channel = tuple(a for a in atoms(view.base) if a.letter == "C")
        layout: Layout = (batch, channel, *((view.spatial(letter),) for letter in view.letters))
        return replace(self.bring(view, layout), axes=layout)

    def split_off(self, view: View, axis: Axis, *, last: bool = False, letters: Sequence[str] = ()) -> tuple[View, int]:
        """Bring a view into a layout in which the channel atoms of `axis` have an axis of their own.

        Args:
            last: put that axis behind the spatial ones. letters: order of the spatial axes; the view's own by default.

        Returns:
            (the view, the place of that axis in its base): [N, axis, *spatial], or [N, *spatial, axis] with `last`;
            channel atoms aside stand ahead of it.
        """
        own = tuple(a for a in axis if a.letter == "C")
        base = atoms(view.base)
        aside = tuple(a for a in base if a.letter == "C" and a not in own)
        if not own:
            spare = next((a for a in aside if a.extent == 1), None)
            own, aside = ((spare,), tuple(a for a in aside if a is not spare)) if spare else (own, aside)
        batch = tuple(a for a in base if a.letter == "N")
        spatial = tuple((view.spatial(letter),) for letter in letters or view.letters)
        ahead: Layout = (batch, aside) if any(a.extent > 1 for a in aside) else (batch,)
        if not any(a.extent > 1 for a in aside):
            own += aside
        target: Layout = (*ahead, *spatial, own) if last else (*ahead, own, *spatial)
        return self.bring(view, target), (len(target) - 1 if last else len(ahead))

    def _reshape(self, tensor: gs.Variable, base: Layout, target: Layout, name: str) -> gs.Variable:
        """Regroup axes without moving data; extents that change with the image are read from the tensor's shape."""
        if [_kept(a) for a in base] == [_kept(a) for a in target]:
            return tensor
        filled_base, filled_target = [a for a in base if _kept(a)], [a for a in target if _kept(a)]
        if [_kept(a) for a in filled_base] == [_kept(a) for a in filled_target]:
            return self._only_ones_move(tensor, base, target, name)
        dims: list[int | None] = []
        for index, axis in enumerate(target):
            if not is_dynamic(axis):
                dims.append(extent(axis))
            elif index < len(base) and _kept(base[index]) == _kept(axis):
                dims.append(0)
            else:
                dims.append(None)
        if dims.count(None) <= 1:
            shape: gs.Tensor = self.ints(f"{name}/shape", [-1 if d is None else d for d in dims])
        else:
            shape = self._shape(tensor, base, target, dims, name=name)
        return self.emit("Reshape", [tensor, shape], output=name, dtype=tensor.dtype)

    def _shape(
        self, tensor: gs.Variable, base: Layout, target: Layout, dims: Sequence[int | None], name: str
    ) -> gs.Tensor:
        sizes = self.emit("Shape", [tensor], output=f"{tensor.name}/shape", dtype=np.int64)
        entries: list[gs.Tensor] = []
        for axis, dim in zip(target, dims, strict=True):
            if dim is not None:
                entries.append(self.ints(f"{name}/dim", [dim]))
                continue
            place = next((i for i, old in enumerate(base) if _kept(old) == _kept(axis)), None)
            if place is None:
                raise Refuse("fcn/mixed-axes", f"'{tensor.name}' lists positions or samples in two axes at once")
            index = self.ints(f"{name}/axis", [place])
            entries.append(self.emit("Gather", [sizes, index], {"axis": 0}, output=f"{name}/extent", dtype=np.int64))
        return self.emit("Concat", entries, {"axis": 0}, output=f"{name}/shape", dtype=np.int64)

    def _only_ones_move(self, tensor: gs.Variable, base: Layout, target: Layout, name: str) -> gs.Variable:
        """Squeeze the axes of one entry that go, unsqueeze those that come."""
        gone = [i for i, axis in enumerate(base) if not _kept(axis)]
        come = [i for i, axis in enumerate(target) if not _kept(axis)]
        if gone:
            tensor = self._axes_op("Squeeze", tensor, gone, f"{name}/squeezed" if come else name)
        return self._axes_op("Unsqueeze", tensor, come, name) if come else tensor

    def _axes_op(self, op: str, tensor: gs.Variable, axes: Sequence[int], name: str) -> gs.Variable:
        if self.opset >= 13:
            return self.emit(op, [tensor, self.ints(f"{name}/axes", axes)], output=name, dtype=tensor.dtype)
        return self.emit(op, [tensor], {"axes": list(axes)}, output=name, dtype=tensor.dtype)

    def thinned(self, view: View, steps: Mapping[str, int], name: str) -> View:
        """Keep every steps[letter]-th position: brings a finer grid of windows to a coarser one."""
        places = {i: steps[a.letter] for i, axis in enumerate(view.base) for a in axis if steps.get(a.letter, 1) > 1}
        if not places:
            return view
        if self.opset >= 10:
            tensor = self.every(name, view.tensor, places)
        else:
            view, tensor = self._pooled(view, steps, name)
        fields = {letter: replace(f, stride=f.stride * steps.get(letter, 1)) for letter, f in view.fields.items()}
        return replace(view, tensor=tensor, fields=fields)

    def _pooled(self, view: View, steps: Mapping[str, int], name: str) -> tuple[View, gs.Variable]:
        """Subsampling by a 1x1 MaxPool, where Slice has no steps; it reads [N, C, *spatial] in a float type."""
        batch = tuple(a for a in atoms(view.base) if a.letter == "N")
        channel = tuple(a for a in atoms(view.base) if a.letter == "C")
        view = self.bring(view, (batch, channel, *((view.spatial(letter),) for letter in view.letters)))
        attrs = {"kernel_shape": [1] * len(view.letters), "strides": [steps.get(letter, 1) for letter in view.letters]}
        dtype = view.tensor.dtype
        if dtype is None or np.dtype(dtype).kind == "f":
            return view, self.emit("MaxPool", [view.tensor], attrs, output=name, dtype=dtype)
        real = self.emit("Cast", [view.tensor], {"to": np.float32}, output=f"{name}/float", dtype=np.dtype(np.float32))
        kept = self.emit("MaxPool", [real], attrs, output=f"{name}/kept", dtype=np.dtype(np.float32))
        return view, self.emit("Cast", [kept], {"to": np.dtype(dtype).type}, output=name, dtype=dtype)


def behind(view: View, pooled: View) -> Layout:
    """The axes of a view behind a pool of its map: those that were pooled have one entry."""
    kept = set(atoms(pooled.base))
    old = {atom: (pooled.spatial(atom.letter),) for atom in atoms(view.axes) if atom.spatial}
    return tuple(tuple(a for b in axis for a in old.get(b, (b,)) if a in kept) for axis in view.axes)


def _order(layout: Layout) -> tuple[Atom, ...]:
    return _kept(atoms(layout))


def _permutation(base: Layout, target: Layout) -> list[int] | None:
    """The permutation that turns base into target, or None where axes must be split or merged."""
    if len(base) != len(target):
        return None
    free = list(range(len(base)))
    result: list[int] = []
    for axis in target:
        match = next((i for i in free if _kept(base[i]) == _kept(axis)), None)
        if match is None:
            return None
        free.remove(match)
        result.append(match)
    return result


def _letters(layout: Layout) -> str:
    return "".join("".join(a.letter for a in axis)[:1] or "1" for axis in layout).lower()


def relayout(values: np.ndarray[Any, Any], axes: Layout, base: Layout, what: str) -> np.ndarray[Any, Any]:
    """A constant that was broadcast against `axes`, for broadcasting against `base`.

    Args:
        values: rank <= len(axes), right-aligned. what: names the constant and its node in a refusal.

    Returns:
        An array of rank len(base).

    Raises:
        Refuse: fcn/position-dependent-constant where it differs between rows, columns or samples.
    """
    padded = values.reshape((1,) * (len(axes) - values.ndim) + values.shape)
    apart: list[int] = []
    for dim, axis in zip(padded.shape, axes, strict=True):
        apart.extend([1] * len(axis) if dim == 1 else [atom.extent for atom in axis])
    present = atoms(axes)
    spread = padded.reshape(apart)
    for place, atom in enumerate(present):
        if atom.letter != "C" and spread.shape[place] > 1:
            first = spread.take([0], axis=place)
            if not np.array_equal(np.broadcast_to(first, spread.shape), spread):
                which = "sample" if atom.letter == "N" else "position"
                raise Refuse("fcn/position-dependent-constant", f"{what} differs from {which} to {which}")
            spread = first
    kept = set(atoms(base))
    spread = spread.reshape([n for n, a in zip(spread.shape, present, strict=True) if a in kept])
    present = tuple(a for a in present if a in kept)
    order = [a for a in atoms(base) if a in present]
    spread = spread.transpose([present.index(a) for a in order])
    sizes = dict(zip(order, spread.shape, strict=True))
    for place, atom in enumerate(order):
        axis = next(axis for axis in base if atom in axis)
        if sizes[atom] == 1 and any(sizes.get(a, 1) > 1 for a in axis):
            spread = spread.repeat(atom.extent, axis=place)
    sizes = dict(zip(order, spread.shape, strict=True))
    return spread.reshape([math.prod(sizes.get(a, 1) for a in axis) for axis in base])
