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
from convrewrite.engine.fields import ReceptiveField, receptive_fields
from convrewrite.engine.image_axes import image_input, spatial_dims
from convrewrite.engine.layers import Sliding
from convrewrite.engine.operators import OPERATORS, chosen
from convrewrite.engine.rewrite import Context, Pass, Site, run_pass
from convrewrite.errors import UsageError
from convrewrite.inspection.heads import head
from convrewrite.inspection.table import Inspection, Layer, Shape
from convrewrite.model_io import Model
from convrewrite.options import InspectOptions
from convrewrite.passes.fcn import Fcn
from convrewrite.passes.groups import Groups
from convrewrite.passes.separable import Separable
from convrewrite.pipeline.files import input_facts
from convrewrite.pipeline.native import Native, native
from convrewrite.text import parameter

__all__ = ["Inspection", "Layer", "inspect"]

DEFAULT = InspectOptions()

SLIDING = chosen("convolution integer-convolution transposed-convolution pool")


def inspect(
    model: Model,
    path: str,
    options: InspectOptions = DEFAULT,
    *,
    progress: Callable[[str], None] = lambda text: None,
) -> Inspection:
    """Look at a model.

    Args:
        model: it is not changed. path: its name in the result. options: how it is looked at.
        progress: called with the name of each pass before it is asked.

    Raises:
        UsageError: the size does not fit.
    """
    size, tol = options.size, options.tol
    at = native(model, size)
    graph = model.graph
    counted = costs.count(graph, at.inputs if at.tensors else None, strict=bool(at.tensors))
    image = image_input(graph, at.tensors)
    window = None if image is None else tuple(at.tensors[image][d] for d in spatial_dims(graph, at.tensors, image))
    own = () if image is None else next(tuple(t.shape) for t in graph.inputs if t.name == image)
    if size is not None and window is not None and not _fits(size, window, own):
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
    for pass_ in _asked(at, window, tol) if options.passes else ():
        progress(pass_.name)
        sites += run_pass(pass_, graph, judge=acceptance.COUNTING[pass_.judge], context=context).sites
    facts = replace(input_facts(model, path), macs=counted.macs if at.tensors else None)
    outputs = {t.name: reaches[t.name] for t in graph.outputs if t.name in reaches}
    return Inspection(
        file=facts,
        size=at.size,
        assumed=at.assumed,
        image=image,
        layers=layers,
        outputs=outputs,
        sites=sites,
        head=head(graph, at.tensors, reaches),
        uncounted=counted.uncounted,
        needs_size=bool(graph.inputs) and not at.inputs,
    )


def _fits(size: Sequence[int], window: Shape, own: Sequence[int | str | None]) -> bool:
    """Whether an image of that size (one extent is meant for all open axes) is what the model is looked at with."""
    half_open = any(not isinstance(dim, int) for dim in own[1:])
    return (len(size) == 1 and half_open) or tuple(size) * (len(window) if len(size) == 1 else 1) == window


def _asked(at: Native, window: Shape | None, tol: float) -> tuple[Pass, ...]:
    """The passes that are asked what they would do."""
    return Fcn(window=None if at.size is None else window), Separable(tol=tol), Groups(tol=tol)


def _layer(node: gs.Node, cost: LayerCost, at: Native, reach: ReceptiveField | None) -> Layer:
    shape = _shape(node.inputs[0], at) if node.inputs else None
    if node.op not in SLIDING or shape is None:
        return Layer(cost, shape, reach=reach)
    return Layer(cost, shape, _sliding(node, at, shape), group=_group(node), reach=reach)


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
