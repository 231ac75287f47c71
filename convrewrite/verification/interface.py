"""Do two models take the same inputs and give the same outputs, and at which shapes are they run?

image [N, 3, H, W]   size 512x512, batch 8     ->   image [8, 3, 512, 512]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from convrewrite.engine.windows import Window
from convrewrite.errors import UsageError
from convrewrite.options import VerifyOptions
from convrewrite.running.runtime import TensorInfo
from convrewrite.running.sampling import Images, InputSpec, bind_batch, fill, named_array
from convrewrite.text import Call, by, counted, parameter
from convrewrite.verification.specimens import Data, Specimen
from convrewrite.verification.twins import narrower


@dataclass(frozen=True)
class Shapes:
    """What open dimensions become.

    Attributes:
        size: of the image axes. batch: of the first axis. named: whole shapes by input name.
    """

    size: tuple[int, ...] | None = None
    batch: int | None = None
    named: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [by(self.size)] if self.size else []
        return " ".join([*parts, *([f"batch {self.batch}"] if self.batch else [])])

    def apply(self, info: TensorInfo, known: Sequence[int | str | None], bound: Mapping[str, int]) -> InputSpec:
        """Fill in the shape of one input."""
        shape = self.named.get(info.name)
        if shape is None:
            named = parameter("shapes", {info.name: "..."})
            remedy = f", or {named}, or real inputs with {parameter('data', 'F.npz')}"
            return fill(info, self.size, known, self.batch, bound=bound, remedy=remedy)
        for dims in (info.shape, known):
            pairs = zip(dims, shape, strict=False)
            if dims and (len(dims) != len(shape) or any(isinstance(a, int) and a != b for a, b in pairs)):
                words = "x".join(map(str, dims))
                raise UsageError(f"{parameter('shapes', {info.name: shape})} does not fit: the input is {words}")
        return InputSpec(info.name, info.dtype, shape)


def same_outputs(a: Specimen, b: Specimen) -> None:
    """Raise UsageError where two models do not have the same outputs."""
    missing = [name for name in a.outputs if name not in b.outputs]
    added = [name for name in b.outputs if name not in a.outputs]
    if missing or added:
        which = f"output '{missing[0]}' is only in {a.path}" if missing else f"output '{added[0]}' is only in {b.path}"
        raise UsageError(f"the models have different outputs: {which}")


def match_inputs(a: Specimen, b: Specimen, shapes: Shapes, data: Data | None = None) -> list[InputSpec]:
    """Match inputs by name, type and shape, and fill what is open: from the other model, the user, the data."""
    theirs = {info.name: info for info in b.session.inputs}
    ours = {info.name: info for info in a.session.inputs}
    if lonely := sorted(ours.keys() ^ theirs.keys()):
        whose = a.path if lonely[0] in ours else b.path
        raise UsageError(f"the models have different inputs: '{lonely[0]}' is only in {whose}")
    if strange := [name for name in shapes.named if name not in ours]:
        raise UsageError(
            f"{parameter('shapes')} names '{strange[0]}', which is no input", remedy=f"there are {', '.join(ours)}"
        )
    for name, info in ours.items():
        _match(info, theirs[name], a.twins)
    specs = []
    bound = bind_batch(a.session.inputs, shapes.batch, shapes.named)
    for name, info in ours.items():
        if data is not None and not isinstance(data, Images):
            named_array(data, name)
        known = theirs[name].shape if shapes.size else _or_data(info, theirs[name].shape, data)
        spec = replace(shapes.apply(info, known, bound), below=a.below.get(name, 0))
        specs.append(_narrowed(spec, info, theirs[name]) if a.twins else spec)
    if shapes.size and not any(_took(shapes, info, theirs[info.name]) for info in ours.values()):
        raise UsageError(
            f"{parameter('size', by(shapes.size))} does not fit: no input is open, and none has that size",
            remedy=f"leave {parameter('size')} out",
        )
    return specs


def _narrowed(spec: InputSpec, ours: TensorInfo, theirs: TensorInfo) -> InputSpec:
    """Drawn in the narrower type of the two; the user's array may be of the wider one."""
    return replace(spec, dtype=narrower(ours, theirs), wide=ours.dtype != theirs.dtype)


def _or_data(info: TensorInfo, known: Sequence[int | str | None], data: Data | None) -> Sequence[int | str | None]:
    """The open dimensions behind the first axis take what the user's array has."""
    if data is None or isinstance(data, Images) or info.name not in data:
        return known
    dims = list(info.shape or known)
    given = data[info.name].shape
    given = given[1:] if len(given) == len(dims) + 1 else given
    if dims and len(given) != len(dims):
        shape, wanted = by(data[info.name].shape), by([str(dim) for dim in dims])
        found = f"has shape {shape}" if shape else "is a scalar"
        raise UsageError(f"array '{info.name}' of the data {found}, the input is {wanted}")
    other = list(known) or [None] * len(dims)
    return [
        found if axis and not isinstance(mine, int) and not isinstance(theirs, int) else theirs
        for axis, (mine, theirs, found) in enumerate(zip(dims, other, given, strict=True))
    ]


def _took(shapes: Shapes, a: TensorInfo, b: TensorInfo) -> bool:
    """Whether an input has an open axis for the size, or that very size."""
    dims = [x if isinstance(x, int) else y for x, y in zip(a.shape, b.shape or a.shape, strict=False)]
    size = shapes.size or ()
    if any(not isinstance(dim, int) for dim in (dims[1:] if len(dims) > 1 else dims)) or not dims:
        return True
    want = list(size) * (2 if len(size) == 1 else 1)
    return any(dims[i : i + len(want)] == want for i in range(len(dims))) or (len(size) == 1 and size[0] in dims[1:])


def _match(a: TensorInfo, b: TensorInfo, twins: bool) -> None:
    """Raise UsageError where two inputs of one name cannot take the same array."""
    if a.kind != b.kind and not twins:
        raise UsageError(f"input '{a.name}' is {a.kind} in one model and {b.kind} in the other")
    narrower(a, b)
    if not a.shape or not b.shape:
        return
    pairs = list(zip(a.shape, b.shape, strict=False))
    differ = any(isinstance(x, int) and isinstance(y, int) and x != y for x, y in pairs)
    if len(a.shape) != len(b.shape) or differ:
        words = ["x".join(map(str, info.shape)) for info in (a, b)]
        raise UsageError(f"input '{a.name}' has shape {words[0]} in one model and {words[1]} in the other")


def native_inputs(original: Specimen, converted: Specimen, window: Window, batch: int | None = None) -> list[InputSpec]:
    """The inputs of the original at the native size."""
    ours = {info.name: info for info in original.session.inputs}
    theirs = {info.name: info for info in converted.session.inputs}
    if lonely := sorted(ours.keys() ^ theirs.keys()):
        raise UsageError(f"the models have different inputs: '{lonely[0]}' is in one of them alone")
    for name in window.images:
        if name not in ours:
            raise UsageError(f"the window's image input '{name}' is no input of {original.path}")
    specs = []
    for name, info in ours.items():
        known: list[int | str | None] = list(theirs[name].shape)
        if name in window.images:
            axes = window.images[name]
            known = [dim if isinstance(dim, int) else None for dim in known] or [None] * len(axes)
            if len(known) != len(axes):
                raise UsageError(f"input '{name}' has {counted(len(known), 'axis')}, the window's metadata says {axes}")
            known = window.at_size(name, known, window.size)
            if "N" in axes and known[axes.index("N")] is None:
                known[axes.index("N")] = batch or 1
        spec = fill(replace(info, shape=info.shape or tuple(known)), None, known, batch)
        spec = replace(spec, below=original.below.get(name, 0))
        specs.append(_narrowed(spec, info, theirs[name]) if original.twins else spec)
    return specs


def repeated(a: object, b: object, options: VerifyOptions, shapes: Shapes) -> Call:
    """What repeats a verification; where the user's arrays came from is not known here: `F.npz`."""
    data, tolerance, sizes = options.data, options.max_output_error, [shapes.size] if shapes.size else options.sizes
    given: dict[str, Any] = {"seed": options.seed}
    if isinstance(data, Images):
        given |= data.parameters()
    else:
        given |= {"samples": options.samples} if data is None else {"data": "F.npz"}
    given |= {"sizes": [tuple(size) for size in sizes] or None, "batch": shapes.batch or None}
    given |= {"shapes": {name: tuple(shape) for name, shape in shapes.named.items()}}
    limits = dict(tolerance) if isinstance(tolerance, Mapping) else {"": tolerance}
    limits = {name: limit for name, limit in limits.items() if limit is not None}
    given["max_output_error"] = limits[""] if list(limits) == [""] else limits
    given |= {"provider": options.provider if options.provider != "auto" else None}
    given |= {"reference": options.reference if options.reference != "onnxruntime" else None}
    return Call("verify", (str(a), str(b)), given)
