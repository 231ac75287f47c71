"""Which input channels a convolution's outputs really read: the connected components of its channel graph.

    kernel norms [O, I]         as a graph                      components
        a b c d                 0 ── a, c                       outputs 0, 2  read  inputs a, c
      0 x . x .                 1 ── b                          output  1     reads input  b
      1 . x . .        ==>      2 ── a, c             ==>       output  3     is dead: it reads nothing
      2 x . x .                 3                               input   d     is dead: nothing reads it
      3 . . . .

Two channels belong together where some path of non-zero kernels joins them; a convolution whose channels fall into
several components is block-diagonal up to a permutation of its rows and columns, and each block is a convolution of its
own. A kernel counts as zero where dropping it costs less than rounding does in its own output channel; above that, the
smallest kernels of the layer are dropped as long as their energy together stays within the tolerance:

    || W - W~ || / || W ||  =  sqrt(sum of the squared norms of the dropped kernels) / || W ||

Source: scipy.sparse.csgraph.connected_components.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Array = np.ndarray[Any, Any]


def kernel_norms(weight: Array, group: int = 1) -> Array:
    """Norms of the kernels of a weight [O, I/g, *kernel], as the matrix [O, I] of the dense convolution, float64."""
    out, per = weight.shape[:2]
    flat = weight.reshape(out, per, -1).astype(np.float64)
    own = np.sqrt(np.einsum("oik,oik->oi", flat, flat))
    return own if group == 1 else spread(own, group)


def spread(blocks: Array, group: int) -> Array:
    """Rows [O, I/g, ...] of a grouped convolution as those of the dense one, [O, I, ...], with zeros between."""
    out, per = blocks.shape[:2]
    dense = np.zeros((out, per * group, *blocks.shape[2:]), blocks.dtype)
    rows = out // group
    for g in range(group):
        dense[g * rows : (g + 1) * rows, g * per : (g + 1) * per] = blocks[g * rows : (g + 1) * rows]
    return dense


@dataclass(frozen=True)
class Component:
    """Output and input channels that belong together, each in ascending order."""

    outputs: Array
    inputs: Array

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of output and input channels."""
        return len(self.outputs), len(self.inputs)


@dataclass(frozen=True)
class Structure:
    """The channel graph of one convolution, taken apart.

    Attributes:
        components: by their first input channel. dead_outputs, dead_inputs: channels in no component, ascending.
        error: relative Frobenius error of dropping the kernels that count as zero.
    """

    channels: tuple[int, int]
    components: tuple[Component, ...]
    dead_outputs: Array
    dead_inputs: Array
    error: float

    def __str__(self) -> str:
        shapes = [f"{o}x{i}" for o, i in (c.shape for c in self.components)]
        return f"{len(shapes)} components ({', '.join(shapes[:8])}{' ...' if len(shapes) > 8 else ''})"


def zero_kernels(norms: Array, tol: float, exact: float) -> Array:
    """Which kernels count as zero, as a boolean matrix.

    Args:
        norms: [O, I]. tol: bound on the relative error of the layer. exact: share of an output channel's own norm
            that is lost in rounding anyway.
    """
    rows = np.sqrt(np.square(norms).sum(1, keepdims=True))
    negligible: Array = norms <= exact / 4 * rows / max(1.0, np.sqrt(norms.shape[1]))
    if tol <= 0:
        return negligible
    order = np.argsort(norms, axis=None, kind="stable")
    energy = np.cumsum(np.square(norms.ravel()[order]))
    count = int(np.searchsorted(energy, tol**2 * energy[-1], side="right"))
    small = negligible.ravel().copy()
    small[order[:count]] = True
    union: Array = small.reshape(norms.shape)
    return union if error_of(norms, ~union) <= tol else negligible


def error_of(norms: Array, kept: Array) -> float:
    """Relative Frobenius error where only the marked kernels are kept."""
    total = float(np.square(norms).sum())
    lost = float(np.square(np.where(kept, 0.0, norms)).sum())
    return float(np.sqrt(lost / total)) if total > 0 else 0.0


def structure(norms: Array, tol: float = 0.0, exact: float = 0.0) -> Structure:
    """Take the channel graph apart; `tol` and `exact` as for `zero_kernels`."""
    out, inputs = norms.shape
    kept = ~zero_kernels(norms, tol, exact)
    if kept.all():  # as most are: one component
        everything = Component(np.arange(out), np.arange(inputs))
        return Structure((out, inputs), (everything,), np.arange(0), dead_inputs=np.arange(0), error=0.0)
    rows, columns = np.nonzero(kept)
    graph = coo_array((np.ones(len(rows), np.int8), (rows, columns + out)), shape=(out + inputs, out + inputs))
    count, labels = connected_components(graph, directed=False)
    row_labels, column_labels = labels[:out], labels[out:]
    live_outputs, live_inputs = kept.any(1), kept.any(0)
    found = []
    for outputs, columns in zip(_by_label(row_labels, count), _by_label(column_labels, count), strict=True):
        if len(outputs) and len(columns):
            found.append(Component(outputs, columns))
    found.sort(key=lambda component: int(component.inputs[0]))
    error = error_of(norms, kept)
    return Structure(
        (out, inputs),
        tuple(found),
        np.flatnonzero(~live_outputs),
        dead_inputs=np.flatnonzero(~live_inputs),
        error=error,
    )


def _by_label(labels: Array, count: int) -> list[Array]:
    """The positions of each label, ascending."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.searchsorted(labels[order], np.arange(1, count)))
