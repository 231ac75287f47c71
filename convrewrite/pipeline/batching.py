"""A model for any number of images, ahead of everything else: the option `dynamic_batch` of `fcn`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from convrewrite.engine.rewrite import Context, Site, run_pass
from convrewrite.model_io import Model
from convrewrite.passes.open_batch import OpenBatch
from convrewrite.pipeline.native import native
from convrewrite.pipeline.steps import refusal


def opened(model: Model, size: Sequence[int] | None) -> tuple[Model, tuple[Site, ...]]:
    """Run the pass `open-batch`; the model as it is where its batch is open already.

    Args:
        model: it is not changed. size: of the image, where the model leaves it open.

    Raises:
        Refused: an operator or output has no place for more images. UsageError: the size does not fit.
    """
    pass_, at = OpenBatch(), native(model, size)
    result = run_pass(pass_, model.graph, context=Context.of(model.graph, shapes=at.tensors or None))
    for site in result.outcome("refused"):
        raise refusal(pass_, site)
    return (replace(model, graph=result.graph), result.sites) if result.changed else (model, result.sites)
