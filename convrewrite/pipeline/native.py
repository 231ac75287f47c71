"""The shapes at which a model is looked at: its own, or those of `size`, or a usual size that it runs at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from convrewrite.engine import costs
from convrewrite.engine.graph import infer_shapes
from convrewrite.engine.skeletons import is_tensor
from convrewrite.engine.windows import Window
from convrewrite.errors import UsageError
from convrewrite.model_io import Model
from convrewrite.running.runtime import TensorInfo
from convrewrite.running.sampling import fill
from convrewrite.text import as_line, parameter

USUAL = (224, 256, 299, 128, 64, 32, 28, 512)
"""Sizes that are tried where the file leaves it open and the user says nothing."""


@dataclass(frozen=True)
class Native:
    """Shapes of one run.

    Attributes:
        size: that was given or assumed for open inputs; None where the file fixes all.
        assumed: nobody gave it. inputs: shapes by name. tensors: of all tensors; empty where they do not follow.
    """

    size: tuple[int, ...] | None = None
    assumed: bool = False
    inputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    tensors: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def macs(self, graph: gs.Graph) -> int | None:
        """Multiply-accumulates of a graph at these input shapes; None where shapes do not follow from them."""
        if not self.inputs:
            return None
        try:
            return costs.graph_macs(graph, infer_shapes(graph, self.inputs))
        except onnx.shape_inference.InferenceError:
            return None


def native(model: Model, size: Sequence[int] | None, data: Mapping[str, np.ndarray[Any, Any]] | None = None) -> Native:
    """The shapes at which a model is verified, counted and timed; `data` has real inputs, which have their own.

    Raises:
        UsageError: the given size does not fit an input.
    """
    infos = [_info(tensor) for tensor in model.graph.inputs]
    infos = infos if size is not None else [_shaped(info, (data or {}).get(info.name)) for info in infos]
    wanted = None if size is None else tuple(size)
    if wanted is not None or not any(_is_open(info) for info in infos):
        return _at(model.graph, infos, wanted, assumed=False)
    window = Window.from_metadata(model.metadata)
    tries = [window.size] if window is not None else []
    tries += [(extent,) for extent in USUAL]
    for guess in tries:
        try:
            found = _at(model.graph, infos, guess, assumed=True)
        except UsageError:
            continue
        if found.tensors and _runs(model.graph, found.tensors):
            return found
    return Native()


def check_known(model: Model, at: Native, options: str) -> None:
    """Raise UsageError where nothing says at which size the model is to run.

    Args:
        model: as it was read. at: what `native` found for it. options: of the command, which can say it.
    """
    infos = [_info(tensor) for tensor in model.graph.inputs]
    open_ = [info for info in infos if _is_open(info)]
    if at.inputs or not open_:
        return
    shape = next(tensor.shape for tensor in model.graph.inputs if tensor.name == open_[0].name)
    dims = "x".join("?" if dim is None else str(dim) for dim in shape)
    tried = ", ".join(map(str, USUAL))
    raise UsageError(
        f"input '{open_[0].name}' has the open shape {dims}, and the model runs at none of the usual sizes ({tried})",
        remedy=options,
    )


def _runs(graph: gs.Graph, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether something is left of every map; an operand without entries, as a Resize has, is no map."""
    constants = {name for name, tensor in graph.tensors().items() if isinstance(tensor, gs.Constant)}
    constants |= {tensor.name for node in graph.nodes if node.op == "Constant" for tensor in node.outputs}
    return all(extent > 0 for name, shape in shapes.items() if name not in constants for extent in shape)


def _shaped(info: TensorInfo, array: np.ndarray[Any, Any] | None) -> TensorInfo:
    """The input with the extents that real data has behind the first axis, where the file leaves them open."""
    if array is None or array.ndim - len(info.shape) not in (0, 1):
        return info
    given = array.shape[array.ndim - len(info.shape) :]
    dims = (own if own is not None or not axis else given[axis] for axis, own in enumerate(info.shape))
    return replace(info, shape=tuple(dims))


def _at(graph: gs.Graph, infos: Sequence[TensorInfo], size: tuple[int, ...] | None, *, assumed: bool) -> Native:
    inputs = {info.name: fill(info, size).shape for info in infos}
    try:
        tensors = infer_shapes(graph, inputs)
    except onnx.shape_inference.InferenceError as error:
        if size is not None and not assumed:
            text = as_line(error)[:200]
            words = "x".join(map(str, size))
            raise UsageError(
                f"the model does not run at {parameter('size', words)}: {text}", remedy="try another"
            ) from None
        tensors = {}
    return Native(size, assumed, inputs, tensors)


def _info(tensor: gs.Variable) -> TensorInfo:
    shape = tuple(d if isinstance(d, int) and d > 0 else None for d in tensor.shape or ())
    if not is_tensor(tensor):
        return TensorInfo(tensor.name, np.dtype("object"), shape, "no tensor")
    known = tensor.dtype is not None and not isinstance(tensor.dtype, int)
    return TensorInfo(tensor.name, np.dtype(tensor.dtype if known else np.float32), shape, "?")


def _is_open(info: TensorInfo) -> bool:
    """Whether an extent behind the batch is open."""
    return any(dim is None for dim in (info.shape[1:] if len(info.shape) > 1 else info.shape))
