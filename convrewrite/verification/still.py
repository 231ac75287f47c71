"""Outputs that did not move: do they make a verification say nothing, or are they constant by nature?

a detector on random pixels: 5 outputs move and are equal, 4 hold no detection     verified; 4 did not move
all outputs stay as they are, or one that stays is not bit-equal                    vacuous
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from convrewrite.verification.comparison import Ledger, finite
from convrewrite.verification.exposure import Probe
from convrewrite.verification.verdicts import Case

Array = np.ndarray[Any, Any]


def sorted_out(
    still: Iterable[str], moved: Iterable[str], parts: Mapping[str, Iterable[str]], cases: Iterable[Case]
) -> dict[str, Any]:
    """What outputs that did not move say of a verification: the fields `vacuous` and `constant`.

    Args:
        still, moved: outputs that depend on an input. parts: what else was compared of an output (ahead of its
            Softmax). cases: of the verification.
    """
    every = list(cases)

    def of(name: str) -> list[Case]:
        names = {name, *parts.get(name, ())}
        return [case for case in every if case.output in names and case.status in ("passed", "failed", "stated")]

    shown = any(case.status == "passed" for name in moved for case in of(name))
    constant = [name for name in still if shown and of(name) and all(case.error == 0.0 for case in of(name))]
    return {"vacuous": tuple(name for name in still if name not in constant), "constant": tuple(constant)}


def moved(values: Sequence[Array], beside: Sequence[Array], threshold: float) -> bool:
    """Whether a tensor differs between samples, and its elements from each other, by more than `threshold`.

    A network with constant weights gives every class the same score, larger for a brighter image: its output moves,
    but a converter that confuses rows, columns and classes would go unnoticed.

    Args:
        values: of the tensor, per sample. beside: on further inputs, which need not be even among themselves.
    """
    if values[0].dtype.kind != "f":
        return any(not np.array_equal(values[0], value) for value in [*values[1:], *beside])
    if not all(map(finite, values)) or not any(value.size for value in values):
        return True  # a failure, but no vacuous one
    uneven = any(value.size == 1 or float(np.ptp(value.astype(np.float64))) > threshold for value in values)
    least = most = values[0].astype(np.float64)
    for value in [*values[1:], *beside]:  # one at a time: there may be many samples
        if value.shape == least.shape:
            wide = value.astype(np.float64)
            least, most = np.minimum(least, wide), np.maximum(most, wide)
    return uneven and float(np.max(most - least)) > threshold


def undecided(probes: Iterable[Probe], output: str, reference: Mapping[str, Array], ledger: Ledger) -> Array | None:
    """Where the original's own ArgMax has two candidates within its noise: a mask over the output."""
    for probe in probes:
        if probe.output != output or probe.op != "ArgMax" or probe.reordered:
            continue
        scores = reference[probe.name].astype(np.float64)
        if scores.ndim == 0 or scores.shape[probe.axis] < 2:
            continue
        best = np.partition(scores, -2, axis=probe.axis)
        margin = np.take(best, -1, axis=probe.axis) - np.take(best, -2, axis=probe.axis)
        limit = 2 * ledger.tolerance(probe.name, reference[probe.name].dtype) * float(np.max(np.abs(scores)))
        if margin.size == reference[output].size:
            return np.asarray(margin <= limit).reshape(reference[output].shape)
    return None
