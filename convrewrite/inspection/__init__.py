"""What a model is made of, layer by layer, and what each pass would do with it; nothing is written or run.

layer    op    kernel  stride  in -> out                       parameters  MACs       share  receptive field
c1       Conv  5x5     1x1     1x1x32x32 -> 1x6x28x28                 156    117,600  28.2%  5x5, every 1x1
...
pass       site  outcome
fcn        c5    Gemm [120, 400] -> Conv 120 x 16 x 5 x 5
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import onnx_graphsurgeon as gs

from convrewrite import acceptance
from convrewrite.engine import costs
from convrewrite.engine.costs import LayerCost
from convrewrite.engine.fields import Reach, receptive_fields
from convrewrite.engine.image_axes import image_input, spatial_dims
from convrewrite.engine.layers import Sliding
from convrewrite.engine.operators import OPERATORS
from convrewrite.engine.rewrite import Context, Judge, Pass, Site, accept_all, run_pass
from convrewrite.errors import UsageError
from convrewrite.inspection.heads import head
from convrewrite.inspection.table import Inspection, Layer, Shape
from convrewrite.model_io import Model
from convrewrite.passes.fcn import Fcn
from convrewrite.passes.groups import Groups
from convrewrite.passes.separable import Separable
from convrewrite.pipeline.files import input_facts
from convrewrite.pipeline.native import Native, native
from convrewrite.text import parameter

__all__ = ["Inspection", "Layer", "inspect"]

SLIDING = frozenset("Conv ConvTranspose AveragePool MaxPool LpPool QLinearConv ConvInteger".split())


def inspect(
    model: Model,
    path: str,
    *,
    size: Sequence[int] | None = None,
    tol: float = 0.0,
    passes: bool = True,
    progress: Callable[[str], None] = lambda text: None,
) -> Inspection:
    """Look at a model.

    Args:
        model: it is not changed. path: its name in the result. size: of the image, where the file leaves it open.
        tol: tolerance at which `separable` and `groups` are asked. passes: ask the passes at all.
        progress: called with the name of each pass before it is asked.

    Raises:
        UsageError: the size does not fit.
    """
    at = native(model, size)
    graph = model.graph
    counted = costs.count(graph, at.inputs if at.tensors else None, strict=bool(at.tensors))
    image = image_input(graph, at.tensors)
    window = None if image is None else tuple(at.tensors[image][d] for d in spatial_dims(graph, at.tensors, image))
    if size is not None and window is not None and not _fits(size, window):
        fixed = "x".join(map(str, window))
        raise UsageError(
            f"{parameter('size')} does not fit: the model's input is fixed at {fixed}", remedy="leave it out"
        )
    reaches = {} if image is None else receptive_fields(graph, at.tensors, image)
    layers = tuple(
        _layer(node, cost, at, reaches.get(cost.name)) for node, cost in zip(graph.nodes, counted.layers, strict=True)
    )
    sites: tuple[Site, ...] = ()
    context = Context.of(graph, shapes=at.tensors)
    for pass_, judge in _asked(at, window, tol) if passes else ():
        progress(pass_.name)
        sites += run_pass(pass_, graph, judge=judge, context=context).sites
    facts = replace(input_facts(model, path), macs=counted.macs if at.tensors else None)
    outputs = {t.name: reaches[t.name] for t in graph.outputs if t.name in reaches}
    return Inspection(
        facts,
        at.size,
        at.assumed,
        image,
        layers,
        outputs,
        sites,
        head(graph, at.tensors, reaches),
        counted.uncounted,
        needs_size=bool(graph.inputs) and not at.inputs,
    )


def _fits(size: Sequence[int], window: Shape) -> bool:
    """Whether an image of that size (one extent is meant for all axes) is what the model is looked at with."""
    return tuple(size) * (len(window) if len(size) == 1 else 1) == window


def _asked(at: Native, window: Shape | None, tol: float) -> list[tuple[Pass, Judge]]:
    """The passes, and who judges whether a rewrite is worth it."""
    return [
        (Fcn(window=None if at.size is None else window), accept_all),
        (Separable(tol=tol), acceptance.smaller),
        (Groups(tol=tol), acceptance.smaller),
    ]


def _layer(node: gs.Node, cost: LayerCost, at: Native, reach: Reach | None) -> Layer:
    shape = _shape(node.inputs[0], at) if node.inputs else None
    if node.op not in SLIDING or shape is None:
        return Layer(cost, shape, reach=reach)
    return Layer(cost, shape, _sliding(node, at, shape), _group(node), reach)


def _sliding(node: gs.Node, at: Native, shape: Shape) -> Sliding | None:
    kernel = node.attrs.get("kernel_shape")
    if kernel is None:
        weight = _shape(node.inputs[OPERATORS[node.op].weight or 1], at)
        kernel = None if weight is None else weight[2:]
    return None if kernel is None else Sliding.read(node.attrs, kernel, shape[2:])


def _group(node: gs.Node) -> int | None:
    return int(node.attrs.get("group", 1)) if "Conv" in node.op else None


def _shape(tensor: gs.Tensor, at: Native) -> Shape | None:
    if tensor.name in at.tensors:
        return tuple(at.tensors[tensor.name])
    return tuple(tensor.shape) if isinstance(tensor, gs.Constant) else None
