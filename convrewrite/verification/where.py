"""Where do two models begin to differ? Every tensor that both have by name is compared, in the order of computation.

    A:  image -> c1 -> r1 -> c2 -> prob          c1 agrees, r1 agrees, c2 is the first that differs
    B:  image -> c1 -> r1 -> c2' -> ...

Rewrites keep the names of the tensors at the boundary of what they replace. All of them become outputs of temporary
copies, a few at a time; each is held against the tolerance that an output would have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from convrewrite.errors import ConvrewriteError
from convrewrite.verification import exposure
from convrewrite.verification.comparison import Ledger, finite, relative_error
from convrewrite.verification.specimens import session_of
from convrewrite.verification.verdicts import Divergence

Array = np.ndarray[Any, Any]
Values = Mapping[str, Any]

AT_A_TIME = 32
"""So many tensors are kept in memory at once."""


@dataclass(frozen=True)
class _Model:
    path: str
    sketch: exposure.Sketch

    def run(self, names: Sequence[str], feeds: Values, provider: str, *, optimize: bool | None = None) -> Values:
        """The values of some inner tensors."""
        variant = onnx.ModelProto()
        variant.CopyFrom(self.sketch.model)
        del variant.graph.output[:]
        variant.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        session = session_of(self.sketch, variant, self.path, provider, optimize=optimize)
        return session.run({info.name: feeds[info.name] for info in session.inputs})


def locate(
    original: str, rewritten: str, feeds: Values, *, provider: str = "cpu", limit: float | None = None
) -> Divergence:
    """The first tensor that both models have and that differs on `feeds`.

    Args:
        original, rewritten: paths. feeds: of both. limit: the user's tolerance; None for the default by type and noise.
    """
    a, b = (_Model(path, exposure.read_sketch(path)) for path in (original, rewritten))
    makers = exposure.producers(b.sketch.model.graph)
    ours = exposure.producers(a.sketch.model.graph)
    constant = {n for n in makers if not exposure.reached(b.sketch.model.graph, [n]) & set(feeds)}
    names = [name for name in _in_order(b.sketch.model.graph) if name in ours and name not in constant]
    agreeing = compared = shapes = 0
    first: Divergence | None = None
    try:
        for name, case in _compare_all(names, a, b, feeds, provider, limit):
            if case is None:
                shapes += 1
                continue
            compared += 1
            if case.status != "failed":
                agreeing += first is None
            elif first is None:
                node = makers[name]
                first = Divergence(name, node.op_type, node.name, case.error, case.tolerance)
    except ConvrewriteError as error:  # a tensor that cannot be an output, or does not fit
        return Divergence(note=str(error))
    note = f"{shapes} of another shape or type left out" if shapes else ""
    first = first or Divergence()
    return Divergence(first.tensor, first.op, first.node, first.error, first.tolerance, agreeing, compared, note)


def _in_order(graph: onnx.GraphProto) -> list[str]:
    """Tensors in the order of computation: the checker demands that nodes stand in it."""
    return [name for node in graph.node for name in node.output if name]


def _compare_all(
    names: Sequence[str], a: _Model, b: _Model, feeds: Values, provider: str, limit: float | None
) -> Iterator[tuple[str, Any]]:
    """Each name with its case, or None where the two cannot be compared."""
    usual = not exposure.holds_integers(a.sketch.model)
    for start in range(0, len(names), AT_A_TIME):
        part = names[start : start + AT_A_TIME]
        wants, otherwise = (a.run(part, feeds, provider, optimize=optimize) for optimize in (usual, not usual))
        gots = b.run(part, feeds, provider)
        for name in part:
            got, want, off = (_settled(values[name], wants[name]) for values in (gots, wants, otherwise))
            if not isinstance(got, np.ndarray) or got.dtype != want.dtype or _extents(got) != _extents(want):
                yield name, None
                continue
            noise = relative_error(off, want) if want.dtype.kind == "f" else 0.0
            ledger = Ledger(limit=limit, noise={name: noise if math.isfinite(noise) else 0.0})
            ledger.compare("where", name, got.reshape(want.shape), want)
            yield name, ledger.cases[0]


def _extents(array: Array) -> list[int]:
    """The shape without extents of 1: [N, K] scores become [N, K, 1, 1] in a fully convolutional form."""
    return [extent for extent in array.shape if extent != 1]


def _settled(values: Any, want: Any) -> Any:
    """A mask of -Inf inside a model is no fault: what is infinite in the original, and equal, counts as 0."""
    if not isinstance(values, np.ndarray) or finite(values) or values.size != want.size:
        return values
    same = np.isinf(want) & (values.reshape(want.shape) == want)
    return np.where(same, np.zeros((), want.dtype), values.reshape(want.shape))
