"""Making a fully convolutional model denser, and proving it: the option `stride` of `fcn`.

coarse ──dense──> new          new[::f] == coarse                      on every model, in ONNX Runtime
   |                           new == the original on every crop       too, where the windows are the original's own
original
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from convrewrite import model_io, verification
from convrewrite.engine.emitting import Emitter
from convrewrite.engine.graph import sort_nodes
from convrewrite.engine.operators import chosen
from convrewrite.engine.rewrite import Context, Density, Site, run_pass
from convrewrite.engine.windows import METADATA_KEY, Window
from convrewrite.errors import Refused, UsageError
from convrewrite.model_io import Model
from convrewrite.options import CheckOptions
from convrewrite.passes.dense import Dense
from convrewrite.passes.dense.reasons import REASONS
from convrewrite.pipeline.native import Native, native
from convrewrite.pipeline.steps import refusal
from convrewrite.text import by, parameter
from convrewrite.verification import Verification, trunk_oracle

CELLS = (2, 3, 2)
"""Cells of the coarse map, per axis, for which shapes are looked at."""

CELL_BY_CELL = chosen("Softmax LogSoftmax Sigmoid search")
"""Last operators ahead of which the cells may be taken, as long as they keep the axes that there are."""


@dataclass(frozen=True)
class Denser:
    """What came of it.

    Attributes:
        model: the new one, or the old one where nothing changed. window: of it, where it has one. sites: what changed.
        factors: by output, cells per old cell, by dimension. changed: whether anything did.
        sizes: of the image, at which both are compared.
    """

    model: Model
    window: Window | None
    sites: tuple[Site, ...]
    factors: Mapping[str, Mapping[int, int]]
    sizes: tuple[tuple[int, ...], ...]

    @property
    def changed(self) -> bool:
        """Whether any output has become denser."""
        return any(site.outcome == "rewritten" for site in self.sites)


def denser(model: Model, window: Window | None, stride: Sequence[int], size: Sequence[int] | None = None) -> Denser:
    """Run the pass `dense` on a fully convolutional model.

    Args:
        model: it is not changed. window: of it. stride: per spatial axis, or one for all.
        size: of the image, where the model is open and has no window.

    Raises:
        Refused: it cannot be made denser. UsageError: the stride does not fit.
    """
    if window is not None and len(stride) == 1:
        stride = tuple(stride) * len(window.stride)
    sizes = _sizes(model, window, size)
    at = native(model, sizes[0])
    pass_ = Dense(tuple(stride))
    result = run_pass(pass_, model.graph, context=Context.of(model.graph, shapes=at.tensors or None))
    for site in result.outcome("refused"):
        raise refusal(pass_, site)
    if not result.changed:
        return Denser(model, window, result.sites, factors={}, sizes=sizes)
    density = result.evidence_of(Density)
    assert density is not None, "what dense rewrites has other strides"
    metadata = dict(model.metadata)
    if window is not None:
        window = _window(window, density.strides)
        metadata[METADATA_KEY] = window.to_json()
    after = replace(model, graph=result.graph, metadata=metadata)
    return Denser(after, window, result.sites, factors=density.factors, sizes=sizes)


def _sizes(model: Model, window: Window | None, size: Sequence[int] | None) -> tuple[tuple[int, ...], ...]:
    """Images on which the coarse map has several cells on every axis; the one size of a model that takes no other."""
    image = next((t for t in model.graph.inputs if window is None or t.name == window.input), None)
    if window is not None and image is not None:
        fixed = [image.shape[window.axes.index(letter)] for letter in window.letters]
        if all(isinstance(dim, int) for dim in fixed):
            return (tuple(fixed),)
        cells = CELLS[: len(window.size)]
        return window.image_size(cells), window.image_size(cells[::-1])
    found: Native = native(model, size)
    if not found.tensors:
        raise UsageError(
            "the input is open, and no usual size fits it",
            remedy=f"give {parameter('window', 'HxW')}, a size that it takes",
        )
    return (found.size if found.size is not None else (),)


def _window(window: Window, strides: Mapping[str, tuple[int, ...]]) -> Window:
    """The window at the new stride.

    Raises:
        Refused: an output was a map in the original already, whose cells would now lie between the original's own.
    """
    for name, grid in window.outputs.items():
        if any(extent > 1 for extent in grid.size) and strides.get(name) != grid.stride:
            reason = REASONS["dense/map-output"]
            where = f"output '{name}', a map of {by(grid.size)}"
            raise Refused(f"{where}: {reason.meaning} [{reason.code}]", reason=reason.code, remedy=reason.remedy)
    return window.denser(next(strides[name] for name in window.outputs if name in strides))


def proved(coarse: Path, made: Denser, folder: Path, options: CheckOptions) -> Verification:
    """Compare every f-th cell of the new map with the map at the old stride."""
    sampled = model_io.save(_sampled(made), folder / "every-cell.onnx")
    how = replace(options.comparing(sizes=[size for size in made.sizes if size]), data=None)
    found = verification.verify(coarse, sampled, how)
    steps = " and ".join(str(f) for f in sorted({f for of in made.factors.values() for f in of.values()}))
    name = f"cells {steps} apart against the old map"
    return replace(found, cases=tuple(replace(case, name=f"{name}, {case.name}") for case in found.cases))


def trunk_of_coarse(
    original: str | Path,
    coarse: Path,
    window: Window,
    cut: Sequence[Any],
    *,
    found: Verification,
    options: CheckOptions,
) -> list[Verification]:
    """What was found of the new model; where no trunk could be compared with its own, that of the coarse model too.

    A trunk with its size written into it is taken from the rewritten model, which the denser one no longer has.
    """
    if not any(case.status == "skipped" and case.name.startswith(trunk_oracle.CHECK) for case in found.cases):
        return [found]
    kept = tuple(case for case in found.cases if not case.name.startswith(trunk_oracle.CHECK))
    before = verification.verify_fcn(original, coarse, window, options.comparing(), cut=cut)
    cases = tuple(replace(case, name=f"{case.name}, old map") for case in before.cases)
    return [replace(found, cases=kept), replace(before, cases=cases)]


def _sampled(made: Denser) -> Model:
    """The new model, whose outputs keep every f-th cell alone; it says nothing of windows.

    Where a final Softmax gives an output, the cells are taken ahead of it: what it hides is compared as well.
    """
    graph = made.model.graph.copy()
    for output in list(graph.outputs):
        steps = made.factors.get(output.name, {})
        last = output.inputs[0] if output.inputs else None
        if not steps:
            continue
        if last is not None and last.op in CELL_BY_CELL and last.attrs.get("keepdims", 1):
            emit = Emitter.into(graph, f"{output.name}/cells", last.inputs[0].dtype)
            last.inputs[0] = emit.every("every-cell", last.inputs[0], steps)
        else:
            name = output.name
            output.name = f"{name}/every-cell"
            kept = Emitter.into(graph, f"{name}/cells", output.dtype).every("every-cell", output, steps)
            graph.outputs[graph.outputs.index(output)] = kept
            kept.name = name
    metadata = {key: text for key, text in made.model.metadata.items() if key != METADATA_KEY}
    return replace(made.model, graph=sort_nodes(graph), metadata=metadata)
