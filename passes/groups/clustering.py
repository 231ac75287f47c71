"""The N equal groups of channels that keep the most of a kernel's energy, where not all of it can be kept.

    energy [O, I]           rows and columns sorted into N blocks        kept: the blocks; lost: what lies outside
        9 1 8 0                     9 8 . .
        0 7 1 9         ==>         8 9 . .             || W - W~ ||^2 / || W ||^2  =  sum outside / sum of all
        8 0 9 1                     . . 7 9
        1 9 0 8                     . . 9 8

Start. The energy, each entry divided by the roots of the sums of its row and its column, has the same singular vectors
as the graph of channels has smooth functions on it; channels of one block lie close together along the first few.
Refinement. With the groups of the columns given, what a row keeps in each group is known, and the best rows for every
group, all groups of one size, are an assignment problem; then the columns, given the rows; until nothing is gained. No
step loses energy. The result is a bound from below on what is possible: no polynomial method finds the best blocks.

Sources: Dhillon, "Co-clustering documents and words using bipartite spectral graph partitioning", KDD 2001;
scipy.optimize.linear_sum_assignment.
"""

from __future__ import annotations

import math

import numpy as np
from threadpoolctl import threadpool_limits

from convrewrite.passes.groups.detection import Array, Component
from convrewrite.passes.groups.packing import Layout, Part, by_inputs

ROUNDS = 12
"""Rounds of refinement at most; a few are usual where there is something to find."""

DENSE = 96
"""Channels up to which all singular vectors are computed at once."""

SPARE, POWERS = 6, 8
"""Vectors beside those wanted, and rounds, of the subspace iteration that finds the singular vectors of more."""

ASSIGNABLE = 512
"""Channels up to which an assignment is solved as a whole; more are halved and halved again."""


def best_groups(norms: Array, groups: int, group: int = 1) -> Layout | None:
    """The equal groups that keep the most energy; None where the channels cannot be divided so.

    Args:
        norms: kernel norms [O, I] of the dense convolution. groups: wanted. group: there are already: they are divided.
    """
    out, inputs = norms.shape
    if groups < 2 or out % groups or inputs % groups or groups % group:
        return None
    made: list[Component] = []
    for index in range(group):
        rows, columns = (np.arange(index * n // group, (index + 1) * n // group) for n in (out, inputs))
        part = norms[np.ix_(rows, columns)]
        part = np.ldexp(part, -int(np.frexp(part.max(initial=0.0))[1]))  # near 1, or squares of float32 overflow
        energy = np.square(part).astype(np.float32)  # only labels come of it
        with threadpool_limits(1):  # many small products, whose threads would wait for each other
            row_labels, column_labels = cocluster(energy, groups // group)
        made += [
            Component(rows[row_labels == label], columns[column_labels == label]) for label in range(groups // group)
        ]
    return by_inputs(Layout((Part(tuple(made)),)))


def cocluster(energy: Array, groups: int) -> tuple[Array, Array]:
    """Labels of rows and of columns, each label as often as any other, that keep much of the energy within a label."""
    if groups == 1:
        return tuple(np.zeros(n, int) for n in energy.shape)  # type: ignore[return-value]
    out, inputs = energy.shape
    halves = groups % 2 == 0 and groups > 2 and max(out, inputs) > ASSIGNABLE
    if halves:
        return _halved(energy, groups)
    rows, columns = _refined(energy, _spectral(energy, groups), groups)
    return rows, columns


def _halved(energy: Array, groups: int) -> tuple[Array, Array]:
    """Two halves, and each of them divided further."""
    halves = cocluster(energy, 2)
    rows, columns = (np.zeros(n, int) for n in energy.shape)
    for half in (0, 1):
        inside = [np.flatnonzero(labels == half) for labels in halves]
        labels = cocluster(energy[np.ix_(*inside)], groups // 2)
        rows[inside[0]] = labels[0] + half * (groups // 2)
        columns[inside[1]] = labels[1] + half * (groups // 2)
    return rows, columns


def _spectral(energy: Array, groups: int) -> Array:
    """Labels of the columns to start from."""
    scale = [1.0 / np.sqrt(np.maximum(energy.sum(axis), np.finfo(np.float32).tiny)) for axis in (1, 0)]
    scaled = energy * scale[0][:, None] * scale[1]
    count = min(math.ceil(math.log2(groups)), min(energy.shape) - 1) or 1
    if min(energy.shape) <= max(DENSE, count + 2):
        right = np.linalg.svd(scaled, full_matrices=False)[2][1 : count + 1]
    else:
        right = _leading(scaled, count + 1)[1:]
    if not len(right):
        return np.arange(energy.shape[1]) % groups
    points = right.T * scale[1][:, None]
    if groups == 2:
        return _balanced(np.stack([points[:, 0], -points[:, 0]], 1))
    return _balanced(-_distances(points, _spread_out(points, groups)))


def _leading(matrix: Array, count: int) -> Array:
    """The first right singular vectors [count, n], roughly: only where to start is asked of them."""
    basis = np.random.default_rng(0).standard_normal((matrix.shape[1], count + SPARE)).astype(matrix.dtype)
    for _ in range(POWERS):
        basis = np.linalg.qr(matrix.T @ (matrix @ basis))[0]
    vectors = np.linalg.svd(matrix @ basis, full_matrices=False)[2] @ basis.T
    first: Array = vectors[:count]
    return first


def _spread_out(points: Array, count: int) -> Array:
    """Points that are far from each other, each the farthest from those before, moved to the middle of what is near."""
    chosen = [int(np.argmax(np.square(points).sum(1)))]
    nearest = np.square(points - points[chosen[0]]).sum(1)
    for _ in range(count - 1):
        chosen.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, np.square(points - points[chosen[-1]]).sum(1))
    centres = points[chosen].copy()
    for _ in range(8):
        labels = _distances(points, centres).argmin(1)
        for label in range(count):
            if (labels == label).any():
                centres[label] = points[labels == label].mean(0)
    return centres


def _distances(points: Array, centres: Array) -> Array:
    squared: Array = np.square(points[:, None] - centres[None]).sum(2)
    return squared


def _refined(energy: Array, columns: Array, groups: int) -> tuple[Array, Array]:
    best, labels = -1.0, (np.zeros(len(energy), int), columns)
    for _ in range(ROUNDS):
        rows = _balanced(_per_label(energy, columns, groups))
        gain = _per_label(energy.T, rows, groups)
        columns = _balanced(gain)
        kept = float(gain[np.arange(len(columns)), columns].sum())
        if kept <= best * (1 + 1e-12):
            break
        best, labels = kept, (rows, columns)
    return labels


def _per_label(energy: Array, labels: Array, groups: int) -> Array:
    """What each row would keep in each group of columns."""
    members = np.zeros((len(labels), groups), energy.dtype)
    members[np.arange(len(labels)), labels] = 1.0
    gained: Array = energy @ members
    return gained


def _balanced(gain: Array) -> Array:
    """Labels for the rows of a gain [n, N], each label n / N times, that gain the most."""
    count, groups = gain.shape
    labels = np.zeros(count, int)
    if groups == 2:
        labels[np.argsort(gain[:, 0] - gain[:, 1], kind="stable")[: count // 2]] = 1
        return labels
    from scipy.optimize import linear_sum_assignment  # half a second, which every other command would wait

    rows, slots = linear_sum_assignment(np.repeat(gain, count // groups, axis=1), maximize=True)
    labels[rows] = slots // (count // groups)
    return labels


def error_of_layout(norms: Array, layout: Layout) -> float:
    """Relative Frobenius error of keeping only the blocks of a layout."""
    total = float(np.square(norms).sum())
    outside = np.where(layout.mask(*norms.shape), 0.0, norms)
    return math.sqrt(float(np.square(outside).sum()) / total) if total > 0 else 0.0


def needed_tol(norms: Array, group: int = 1) -> float | None:
    """The tolerance at which a convolution would have twice as many groups; None where its channels are odd."""
    layout = best_groups(norms, 2 * group, group)
    return None if layout is None else error_of_layout(norms, layout)
