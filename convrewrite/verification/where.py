"""Where do two models begin to differ? Every tensor that both have by name is compared, in the order of computation.

    A:  image -> c1 -> r1 -> c2 -> prob          c1 agrees, r1 agrees, c2 is the first that differs
    B:  image -> c1 -> r1 -> c2' -> ...

Rewrites keep the names of the tensors at the boundary of what they replace. All of them become outputs of temporary
copies, a few at a time; each is held against the tolerance that an output would have in the same verification: that
of the coarser type, in parts too, and by the steps of a quantized model, whose integers are compared as numbers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from convrewrite.errors import ConvrewriteError, said
from convrewrite.verification import exposure, shaking, surrogate
from convrewrite.verification.comparison import Ledger, finite, relative_error
from convrewrite.verification.precision import roundings
from convrewrite.verification.shaking import Shaken
from convrewrite.verification.specimens import Specimen, session_of
from convrewrite.verification.verdicts import Divergence

Array = np.ndarray[Any, Any]
Values = Mapping[str, Any]

AT_A_TIME = 32
"""So many tensors are kept in memory at once."""


@dataclass(frozen=True)
class _Model:
    path: str
    sketch: exposure.Sketch
    provider: str

    def giving(
        self,
        names: Sequence[str],
        *,
        optimize: bool | None = None,
        change: Callable[[onnx.ModelProto], None] | None = None,
    ) -> _Inner:
        """A copy whose outputs are some inner tensors; `change` is made to it."""
        variant = onnx.ModelProto()
        variant.CopyFrom(self.sketch.model)
        del variant.graph.output[:]
        variant.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        if change is not None:
            change(variant)
        return _Inner(session_of(self.sketch, variant, self.path, self.provider, optimize=optimize))


@dataclass(frozen=True)
class _Inner:
    """A copy of a model that gives inner tensors."""

    session: Any

    def run(self, feeds: Values) -> dict[str, Any]:
        """Their values by name; inputs are cast to the model's types."""
        given = {info.name: feeds[info.name].astype(info.dtype, copy=False) for info in self.session.inputs}
        found: dict[str, Any] = self.session.run(given)
        return found


def locate(original: Specimen, rewritten: Specimen, feeds: dict[str, Array], judged: Ledger) -> Divergence:
    """The first tensor that both models have and that differs on `feeds`.

    Args:
        original, rewritten: as they were judged. feeds: of both. judged: the ledger that the outputs were held
            against; it is not changed.
    """
    provider = original.session.provider
    a, b = (_Model(specimen.path, specimen.read(), provider) for specimen in (original, rewritten))
    makers = exposure.producers(b.sketch.model.graph)
    ours = exposure.producers(a.sketch.model.graph)
    constant = {n for n in makers if not exposure.reached(b.sketch.model.graph, [n]) & set(feeds)}
    names = [name for name in _in_order(b.sketch.model.graph) if name in ours and name not in constant]
    agreeing = compared = shapes = 0
    first: Divergence | None = None
    try:
        for name, case in _compare_all(names, a, b, feeds, original=original, judged=judged):
            if case is None:
                shapes += 1
                continue
            compared += 1
            if case.status != "failed":
                agreeing += first is None
            elif first is None:
                node = makers[name]
                part = case.part if case.failed_in_part else ""
                first = Divergence(name, node.op_type, node.name, error=case.error, tolerance=case.tolerance, part=part)
    except ConvrewriteError as error:  # a tensor that cannot be an output, or does not fit
        return Divergence(note=said(error))
    note = f"{shapes} of another shape or type left out" if shapes else ""
    first = first or Divergence()
    return replace(first, agreeing=agreeing, compared=compared, note=note)


def _in_order(graph: onnx.GraphProto) -> list[str]:
    """Tensors in the order of computation: the checker demands that nodes stand in it."""
    return [name for node in graph.node for name in node.output if name]


def _compare_all(
    names: Sequence[str], a: _Model, b: _Model, feeds: dict[str, Array], original: Specimen, judged: Ledger
) -> Iterator[tuple[str, Any]]:
    """Each name with its case, or None where the two cannot be compared."""
    usual = not exposure.holds_integers(a.sketch.model)
    units = roundings(a.sketch.model)
    for start in range(0, len(names), AT_A_TIME):
        part = names[start : start + AT_A_TIME]
        other = a.giving(part, optimize=not usual)
        wants, otherwise, gots = a.giving(part, optimize=usual).run(feeds), other.run(feeds), b.giving(part).run(feeds)
        shaken = Shaken(other, functools.partial(_shaken, a, part, original))
        for name in part:
            got, want, off = (_settled(values[name], wants[name]) for values in (gots, wants, otherwise))
            if not isinstance(got, np.ndarray) or not isinstance(want, np.ndarray) or _extents(got) != _extents(want):
                yield name, None
                continue
            counted = original.rounds and got.dtype == want.dtype and want.dtype.kind in "iu" and want.itemsize < 8
            if counted:
                got, want, off = (array.astype(np.float64) for array in (got, want, off))
            if got.dtype != want.dtype and not (judged.twins and got.dtype.kind == want.dtype.kind == "f"):
                yield name, None
                continue
            ledger = _as_judged(name, judged, want, off, shaken=shaken, feeds=feeds, original=original)
            ledger.units, ledger.steps = units, {name: 1.0} if counted else judged.steps
            ledger.compare("where", name, got.reshape(want.shape), want)
            yield name, ledger.cases[0]


def _as_judged(
    name: str, judged: Ledger, want: Array, off: Array, shaken: Shaken, feeds: dict[str, Array], original: Specimen
) -> Ledger:
    """A ledger that holds an inner tensor against what the outputs of the verification were held against."""
    errors = [relative_error(off, want)] if want.dtype.kind == "f" else []
    moved = 0.0
    if want.dtype.kind == "f" and (original.proven or original.coarse):
        draws = [run[name].astype(np.float64) for run in shaken.runs(feeds) if name in run]
        if original.proven:
            moved = max((float(np.max(np.abs(draw - want), initial=0.0)) for draw in draws), default=0.0)
        else:
            errors += [relative_error(draw, want) for draw in draws]
    noise = max((error for error in errors if math.isfinite(error)), default=0.0)
    return replace(
        judged,
        noise={name: max(noise, judged.noise.get(name, 0.0))},
        peak={name: float(np.max(np.abs(want.astype(np.float64)), initial=0.0))} if want.dtype.kind in "fiu" else {},
        stepped={name: max(moved, judged.stepped.get(name, 0.0))} if original.proven else {},
        inputs=feeds,
        failing=None,
        shaken=None if original.rounds else shaken,
        _worst={},
        _tallies={},
    )


def _shaken(a: _Model, names: Sequence[str], original: Specimen) -> _Inner:
    """The original with every number changed a little, as `open_shaken` does it for the outputs."""

    def change(model: onnx.ModelProto) -> None:
        if original.rounds:
            surrogate.dithered(model)
        shaking.shaken(model, original.coarse / 8 or None)

    return a.giving(names, optimize=False, change=change)


def _extents(array: Array) -> list[int]:
    """The shape without extents of 1: [N, K] scores become [N, K, 1, 1] in a fully convolutional form."""
    return [extent for extent in array.shape if extent != 1]


def _settled(values: Any, want: Any) -> Any:
    """A mask of -Inf inside a model is no fault: what is infinite in the original, and equal, counts as 0."""
    if not isinstance(values, np.ndarray) or finite(values) or values.size != want.size:
        return values
    same = np.isinf(want) & (values.reshape(want.shape) == want)
    return np.where(same, np.zeros((), want.dtype), values.reshape(want.shape))
