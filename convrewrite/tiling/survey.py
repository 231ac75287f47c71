"""What a fully convolutional model does with an image of one size: its outputs' axes, and a model fit for crops of it.

The pads of an auto_pad depend on the size of what it pads, and a crop has another size than the image: they are written
down here as they are for the whole image. What looks at the whole of a map (a global pool, an InstanceNormalization),
or at the place of a cell in it, cannot be computed from crops, and is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from convrewrite.engine.fields import Reach, receptive_fields
from convrewrite.engine.graph import Shape, add_types, infer_shapes
from convrewrite.engine.image_axes import image_input, spatial_dims
from convrewrite.engine.layers import Sliding
from convrewrite.engine.rewrite import Reason
from convrewrite.engine.windows import ELEMENTWISE, SLIDING, Window
from convrewrite.errors import Refused, UsageError
from convrewrite.model_io import Model
from convrewrite.text import Call, as_line, by, counted, parameter
from convrewrite.tiling.geometry import Axis, Cells, Geometry, Pixels

REASONS = {
    reason.code: reason
    for reason in (
        Reason(
            "apply/whole-map",
            "its cells look at the whole of a map, which no crop shows, or no rule says how far they look",
            "use a model without it, or one pass over an image that fits into memory",
        ),
        Reason(
            "apply/not-a-map",
            "an output has one value for the whole image",
            f"convert the classifier with '{Call('fcn')}', or choose other outputs with {parameter('outputs')}",
        ),
        Reason(
            "apply/position",
            "an operator reads where a cell lies in the image",
            "leave the positions out of the model",
        ),
        Reason(
            "apply/fixed-batch",
            "the model takes several images at once, and no other number",
            f"convert it again with '{Call('fcn', given={'dynamic_batch': True})}'",
        ),
        Reason(
            "apply/other-input",
            "the model has a second input, which an image does not give",
            "make it a constant of the model",
        ),
        Reason(
            "apply/fixed-size",
            "the model takes images of one size, and no crop of it shows what the whole image would",
            f"convert it again without {parameter('size')}, export it with open rows and columns, or give a smaller "
            f"{parameter('tile')}",
        ),
    )
}


def refused(code: str, where: str) -> Refused:
    """The error for one of the codes in REASONS."""
    reason = REASONS[code]
    return Refused(f"{where}: {reason.meaning} [{code}]; {reason.remedy}", reason=code)


@dataclass(frozen=True)
class Survey:
    """A model over an image.

    Attributes:
        model: with the pads of the whole image. image: name of its input. shape: of that, for the whole image.
        dims: of its spatial axes. channel: dimension of the channels; None where there is none.
        geometry: of the outputs. places: of each output, the dimensions of its spatial axes.
        values: of each output, entries per cell. dtypes: of each output. window: that the file states.
    """

    model: Model
    image: str
    shape: Shape
    dims: tuple[int, ...]
    channel: int | None
    geometry: Geometry
    places: Mapping[str, tuple[int, ...]]
    values: Mapping[str, int]
    dtypes: Mapping[str, np.dtype[Any]]
    window: Window | None = None

    @property
    def channels(self) -> int:
        """The number of channels of the image."""
        return 1 if self.channel is None else self.shape[self.channel]

    def crop_shape(self, size: Sequence[int]) -> Shape:
        """The shape of the input for a crop of this size."""
        shape = list(self.shape)
        for dim, extent in zip(self.dims, size, strict=True):
            shape[dim] = extent
        return tuple(shape)


def survey(model: Model, size: Sequence[int], outputs: Sequence[str] = ()) -> Survey:
    """Look at a model as it would run over an image of that size.

    Args:
        model: it is not changed. size: of the image, per spatial axis. outputs: names; all that are maps, if none.

    Raises:
        Refused: crops cannot give what the whole image gives. UsageError: the image or a name does not fit.
    """
    window, pixels = _window(model)
    graph = model.graph.copy()
    add_types(graph)
    image, dims = _image(graph, window)
    if len(dims) != len(size):
        raise UsageError(f"the image has {counted(len(size), 'spatial axis')}, the model's input '{image}' {len(dims)}")
    source = next(t for t in graph.inputs if t.name == image)
    fixed = tuple(source.shape[dim] for dim in dims)
    shape = _shape(graph, source, dims, size)
    if window is not None and any(n < own for n, own in zip(size, window.size, strict=True)):
        text, own = (by(extents) for extents in (size, window.size))
        raise UsageError(f"an image of {text} is smaller than the model's window, {own}", remedy="give a larger one")
    known = _shapes(graph, image, shape)
    _freeze(graph, known)
    reaches = receptive_fields(graph, known, image, bounds=True, dims=dims)
    chosen = _chosen(graph, outputs, reaches)
    graph.outputs = list(chosen)
    graph.cleanup(remove_unused_graph_inputs=False)
    _refuse_positions(graph, known, reaches)
    axes: dict[str, tuple[Axis, ...]] = {}
    places: dict[str, tuple[int, ...]] = {}
    for tensor in chosen:
        axes[tensor.name], places[tensor.name] = _axes(
            graph, tensor, known, reaches, between=window if pixels else None, size=size
        )
    strides = [reach.stride for reach in reaches.values() if reach.axes and all(a.dim is not None for a in reach.axes)]
    period = tuple(math.lcm(*(stride[axis] for stride in strides)) for axis in range(len(dims)))
    one_size = all(isinstance(extent, int) for extent in fixed)
    if one_size and any(n < own for n, own in zip(size, fixed, strict=True)):
        text, own = (by(extents) for extents in (size, fixed))
        raise UsageError(f"an image of {text} is smaller than the one size that the model takes, {own}")
    geometry = Geometry(tuple(size), period, axes, fixed if one_size else None)
    others = [dim for dim in range(len(shape)) if dim not in dims and not _is_batch(dim, window)]
    values = {t.name: math.prod(e for dim, e in enumerate(known[t.name]) if dim not in places[t.name]) for t in chosen}
    return Survey(
        model=replace(model, graph=graph),
        image=image,
        shape=shape,
        dims=dims,
        channel=others[0] if others else None,
        geometry=geometry,
        places=places,
        values=values,
        dtypes={t.name: np.dtype(t.dtype) for t in chosen},
        window=window,
    )


def outline(model: Model) -> tuple[int, int]:
    """Spatial axes and channels of the image that a model takes. Raises Refused and UsageError as `survey` does."""
    window, _ = _window(model)
    image, dims = _image(model.graph, window)
    shape = next(t.shape for t in model.graph.inputs if t.name == image)
    others = [extent for dim, extent in enumerate(shape) if dim not in dims and not _is_batch(dim, window)]
    if not all(isinstance(extent, int) for extent in others):
        raise UsageError(f"input '{image}' {list(shape)} leaves its channels open")
    return len(dims), math.prod(others)


def _window(model: Model) -> tuple[Window | None, bool]:
    """What the file says of its cells; and whether each pixel has one, interpolated from those of the window."""
    finer = Window.interpolated(model.metadata)
    if finer is not None:
        return finer.of_graph(model.graph), True
    return Window.from_metadata(model.metadata, model.graph), False


def _is_batch(dim: int, window: Window | None) -> bool:
    return window.axes[dim] == "N" if window is not None else dim == 0


def _image(graph: gs.Graph, window: Window | None) -> tuple[str, tuple[int, ...]]:
    """The input that is the image, and its spatial dimensions."""
    ones = {t.name: tuple(d if isinstance(d, int) else 64 for d in t.shape or ()) for t in graph.inputs}
    if window is not None:
        name, dims = window.input, tuple(window.axes.index(letter) for letter in window.letters)
    else:
        found = image_input(graph, ones)
        if found is None:
            raise UsageError("the model has no input that is an image", remedy="give a fully convolutional model")
        name, dims = found, ()
    for tensor in graph.inputs:
        if tensor.name != name:
            raise refused("apply/other-input", f"input '{tensor.name}'")
    return name, dims or spatial_dims(graph, _shapes(graph, name, ones[name]), name)


def _shape(graph: gs.Graph, source: gs.Variable, dims: Sequence[int], size: Sequence[int]) -> Shape:
    """The input's shape for the whole image."""
    shape: list[int] = []
    for dim, extent in enumerate(source.shape):
        if dim in dims:
            shape.append(int(size[dims.index(dim)]))
        elif isinstance(extent, int):
            shape.append(extent)
        elif dim == 0:
            shape.append(1)
        else:
            raise UsageError(f"input '{source.name}' {list(source.shape)} leaves its channels open")
    if len(shape) > len(dims) + 1 and shape[0] > 1:
        raise refused("apply/fixed-batch", f"input '{source.name}' {list(source.shape)}")
    return tuple(shape)


def _shapes(graph: gs.Graph, image: str, shape: Shape) -> Mapping[str, Shape]:
    """Shapes of all tensors. Raises UsageError where the model does not run at that size."""
    try:
        known = infer_shapes(graph, {image: shape})
    except onnx.shape_inference.InferenceError as error:
        text = as_line(error).removeprefix("[ShapeInferenceError] ")
        raise UsageError(
            f"the model does not run on an image of {by(shape)}: {text[:300]}",
            remedy="a classifier has to be converted with 'convrewrite fcn' first; a network that joins maps of "
            "several sizes needs an image of a size that fits, such as a multiple of its strides",
        ) from None
    if any(extent < 1 for name in known for extent in known[name] if name in {t.name for t in graph.outputs}):
        raise UsageError(
            f"an image of {by(shape)} is smaller than what one cell of the model sees",
            remedy="give a larger image",
        )
    return known


def _freeze(graph: gs.Graph, known: Mapping[str, Shape]) -> None:
    """Write the pads of every auto_pad down as numbers."""
    for node in graph.nodes:
        if node.op in SLIDING and str(node.attrs.get("auto_pad", "NOTSET")).startswith("SAME"):
            kernel = node.attrs.get("kernel_shape") or known[node.inputs[1].name][2:]
            sliding = Sliding.read(node.attrs, kernel, known[node.inputs[0].name][2:])
            node.attrs.update(pads=[*sliding.begin, *sliding.end])
            del node.attrs["auto_pad"]


def _chosen(graph: gs.Graph, outputs: Sequence[str], reaches: Mapping[str, Reach]) -> list[gs.Variable]:
    """The outputs that are wanted: by name, or all that depend on the image."""
    by_name = {t.name: t for t in graph.outputs}
    for name in outputs:
        if name not in by_name:
            raise UsageError(f"the model has no output '{name}'", remedy=f"choose from {', '.join(by_name)}")
    found = [by_name[name] for name in outputs or by_name if name in reaches]
    if not found:
        raise UsageError("no output depends on the image", remedy="give a fully convolutional model")
    return found


def _axes(
    graph: gs.Graph,
    tensor: gs.Variable,
    known: Mapping[str, Shape],
    reaches: Mapping[str, Reach],
    between: Window | None,
    size: Sequence[int],
) -> tuple[tuple[Axis, ...], tuple[int, ...]]:
    """The axes of one output, and which of its dimensions they are."""
    held = next((n for n in graph.nodes if between and n.outputs[0].name == f"{tensor.name}/upsample/held"), None)
    if held is None or between is None:
        reach = _reach(tensor.name, tensor.name, reaches)
        dims = tuple(int(along.dim or 0) for along in reach.axes)
        return tuple(Cells(known[tensor.name][a.dim or 0], a.field) for a in reach.axes), dims
    reach = _reach(tensor.name, held.inputs[0].name, reaches)
    cells = [Cells(known[held.inputs[0].name][along.dim or 0], along.field) for along in reach.axes]
    rank = len(size)
    found = zip(size, cells, between.size, between.offset, strict=True)
    return tuple(Pixels(pixels, of, extent, at) for pixels, of, extent, at in found), tuple(range(2, 2 + rank))


def _reach(output: str, name: str, reaches: Mapping[str, Reach]) -> Reach:
    """The field of a tensor that gives an output. Raises Refused where its cells look further than any crop."""
    reach = reaches[name]
    if reach.why:
        raise refused("apply/whole-map", f"output '{output}': {reach.why}")
    if any(along.dim is None for along in reach.axes):
        raise refused("apply/not-a-map", f"output '{output}'")
    return reach


def _refuse_positions(graph: gs.Graph, known: Mapping[str, Shape], reaches: Mapping[str, Reach]) -> None:
    """Refuse a map that does not depend on the image where it meets one that does: it says where its cells lie."""
    for node, tensor in _met(graph, reaches):
        shape, out = known.get(tensor.name), known.get(node.outputs[0].name)
        reach = reaches.get(node.outputs[0].name)
        if shape is None or out is None or reach is None or "/dense/" in tensor.name:
            continue  # of dense: how many cells a mean has is counted anew in each crop, padding apart
        for along in reach.axes:
            at = None if along.dim is None else along.dim - len(out) + len(shape)
            if at is not None and at >= 0 and shape[at] > 1:
                label = f"{node.op} '{node.name or node.outputs[0].name}'"
                raise refused("apply/position", f"{label} reads '{tensor.name}' {list(shape)}")


def _met(graph: gs.Graph, reaches: Mapping[str, Reach]) -> Iterator[tuple[gs.Node, gs.Tensor]]:
    """Operands, of operators that work cell by cell, that do not depend on the image."""
    for node in graph.nodes:
        if (node.op in ELEMENTWISE or node.op == "Concat") and any(t.name in reaches for t in node.inputs):
            yield from ((node, t) for t in node.inputs if t.name and t.name not in reaches)
