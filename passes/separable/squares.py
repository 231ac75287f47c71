"""The linear least-squares problems of the refinement: one factor is sought, the others are held.

    minimise over F   tr (W~ - T) S (W~ - T)^T      W~ linear in F,  S the second moment of the patches,  T S = C

A chain, at the factor F between what comes before it, P, and what comes after it, Q:

    W~[o, i, (p, f, q)] = sum  Q[o, n, q] F[n, m, f] P[m, i, p]
    normal equations     sum  (Q^T Q)[n q, n' q'] F[n', m' f'] (P S P^T)[m f q, m' f' q']  =  (Q^T C P^T)[n, m f]

Where nothing that comes after owns an axis (q = 1) this is A F B = R, solved by two small systems. Otherwise by
conjugate gradients with a product A (x) B as preconditioner: P S P^T ~ c[q, q'] (x) B, as neighbours are alike.
Decoupled and depthwise forms are small systems for each filter, or for each input channel.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.linalg

from convrewrite.passes.separable.factors import Array, Factor, composed

_JITTER = 1e-13  # of the mean diagonal: channels of zeros stay zeros
_STEPS = 10  # of conjugate gradients; each lowers the error, and the next round goes on from there
_CLOSE = 1e-5  # of the distance that is left; its square is what the error may still fall
_SLAB = 1 << 22  # numbers in a temporary


def sweep_chain(chain: list[Array], second: Array, cross: Array) -> list[Array]:
    """Improve each factor of one group's chain once, from the output to the input.

    Args:
        chain: weights [out, in, *kernel] of one group. second: S [D, D]. cross: C [O, D], D = I * prod(kernel).
    """
    chain = list(chain)
    for place in reversed(range(len(chain))):
        chain[place] = link(chain, place, second, cross)
    return chain


def link(chain: list[Array], place: int, second: Array, cross: Array) -> Array:
    """The factor at `place` of one group's chain, improved; the best one unless several later axes are involved."""
    old = chain[place]
    kernel = np.max([weight.shape[2:] for weight in chain], axis=0)
    before = _axes(chain[:place])
    after = _axes(chain[place + 1 :])
    own = [axis for axis in range(len(kernel)) if axis not in before and axis not in after]
    inputs, out = chain[0].shape[1], chain[-1].shape[0]
    order = [0, *(1 + axis for axis in (*before, *own, *after))]
    later = int(np.prod(kernel[after], initial=1))
    rows = inputs * int(np.prod(kernel[before], initial=1))
    extents = (inputs, *kernel)
    rank = len(extents)
    right = cross.reshape(out, *extents).transpose(0, *(1 + axis for axis in order)).reshape(out, rows, -1)
    metric = second.reshape(*extents, *extents).transpose(*order, *(rank + axis for axis in order))
    metric = metric.reshape(rows, len(second) // rows, rows, len(second) // rows)
    if place > 0:
        ahead = _composed(chain[:place]).reshape(old.shape[1], rows)
        right = np.einsum("orf,mr->omf", right, ahead, optimize=True)
        metric = np.tensordot(np.tensordot(ahead, metric, (1, 0)), ahead, (2, 1)).transpose(0, 1, 3, 2)
    size = old[0].size
    metric = metric.reshape(size, later, size, later)
    right = right.reshape(out, size, later)
    if place == len(chain) - 1:
        found = solved(metric.reshape(size, size), right.reshape(out, size).T).T
        return found.reshape(old.shape)
    behind = _composed(chain[place + 1 :]).reshape(out, old.shape[0], later)
    right = np.einsum("onq,osq->ns", behind, right, optimize=True)
    gram = np.tensordot(behind, behind, (0, 0))
    if later == 1:
        found = solved(metric.reshape(size, size), solved(gram[:, 0, :, 0], right).T).T
        return found.reshape(old.shape)
    alike, inner = _separated(np.einsum("sqsp->qp", metric), np.einsum("sqtq->st", metric))
    outer = np.einsum("nqmp,qp->nm", gram, alike, optimize=True)
    left, back = solved(outer, np.eye(len(outer))), solved(inner, np.eye(len(inner)))
    wide = metric.reshape(size, later * size * later)

    def normal(weight: Array) -> Array:
        seen = (weight @ wide).reshape(old.shape[0], later, size, later)
        image: Array = np.tensordot(gram, seen, ((2, 3, 1), (0, 1, 3)))
        return image

    start = old.reshape(old.shape[0], size)
    return conjugate(normal, right, start, lambda residual: left @ residual @ back).reshape(old.shape)


def sweep_depthwise_first(depthwise: Array, pointwise: Array, second: Array, cross: Array) -> tuple[Array, Array]:
    """Improve r branches k x k on each channel, then 1 x 1: of one group.

    Args:
        depthwise: [I, r, K]. pointwise: [O, r, I]. second: [D, D]. cross: [O, D].
    """
    inputs, terms, cells = depthwise.shape
    depthwise = depthwise.swapaxes(0, 1)
    right = cross.reshape(-1, inputs, cells)
    metric = second.reshape(inputs, cells, inputs * cells)

    def rows(filters: Array) -> Array:
        """Each filter on its channel, against all patches: [r, I, I, K]."""
        seen: Array = np.stack([np.matmul(one[:, None], metric) for one in filters])
        return seen.reshape(terms, inputs, inputs, cells)

    system = np.einsum("rijl,tjl->ritj", rows(depthwise), depthwise, optimize=True)
    sides = np.einsum("oik,rik->rio", right, depthwise, optimize=True)
    size = terms * inputs
    pointwise = solved(system.reshape(size, size), sides.reshape(size, -1)).T.reshape(-1, terms, inputs)

    gram = np.tensordot(pointwise, pointwise, (0, 0))
    wanted = np.einsum("ori,oik->rik", pointwise, right, optimize=True)

    def normal(filters: Array) -> Array:
        image: Array = np.einsum("ritj,rijl->tjl", gram, rows(filters), optimize=True)
        return image

    own = np.stack([metric[i].reshape(cells, inputs, cells)[:, i] for i in range(inputs)])
    blocks = np.einsum("riti,ikl->irktl", gram, own, optimize=True).reshape(inputs, terms * cells, -1)
    inverses = np.stack([solved(block, np.eye(terms * cells)) for block in blocks])

    def precondition(residual: Array) -> Array:
        stacked = residual.swapaxes(0, 1).reshape(inputs, -1, 1)
        solution: Array = inverses @ stacked
        return solution.reshape(inputs, terms, cells).swapaxes(0, 1)

    return conjugate(normal, wanted, depthwise, precondition).swapaxes(0, 1), pointwise


def sweep_pointwise_first(pointwise: Array, depthwise: Array, second: Array, cross: Array) -> tuple[Array, Array]:
    """Improve r branches 1 x 1, then k x k on each channel: of one group. Each output channel is a problem of its own.

    Args:
        pointwise: [O, r, I]. depthwise: [O, r, K]. second: [D, D]. cross: [O, D].
    """
    outs, terms, inputs = pointwise.shape
    cells = depthwise.shape[2]
    metric = second.reshape(inputs, cells, inputs, cells)
    right = cross.reshape(outs, inputs, cells)

    together = max(1, _SLAB // (terms * cells * len(second)))
    found = []
    for start in range(0, outs, together):
        some = pointwise[start : start + together]
        seen = (some.reshape(-1, inputs) @ second.reshape(inputs, -1)).reshape(len(some), -1, inputs, cells)
        system = np.matmul(some[:, None], seen).reshape(len(some), terms * cells, terms * cells)
        wanted = (some @ right[start : start + together]).reshape(len(some), -1)
        found.append(np.stack([solved(one, side[:, None]) for one, side in zip(system, wanted, strict=True)]))
    depthwise = np.concatenate(found).reshape(outs, terms, cells)

    def normal(weight: Array) -> Array:
        seen = (weight.swapaxes(1, 2) @ depthwise).reshape(outs, -1) @ second
        image: Array = depthwise @ seen.reshape(outs, inputs, cells).swapaxes(1, 2)
        return image

    alike, inner = _separated(np.einsum("ikil->kl", metric), np.einsum("ikjk->ij", metric))
    outer = np.stack([solved(one, np.eye(terms)) for one in depthwise @ alike @ depthwise.swapaxes(1, 2)])
    inverse = solved(inner, np.eye(inputs))
    wanted = depthwise @ right.swapaxes(1, 2)
    return conjugate(normal, wanted, pointwise, lambda residual: outer @ residual @ inverse), depthwise


def sweep_filter(parts: list[Array], places: list[Array], second: Array, cross: Array) -> list[Array]:
    """Improve r branches of chains that filter one channel, for one filter.

    Args:
        parts: for each stage [r, extent]. places: for each stage [K], where in it each cell of the kernel falls.
        second: [K, K]. cross: [K].
    """
    parts = list(parts)
    for stage, part in enumerate(parts):
        others = np.ones((len(part), len(cross)))
        for other, (values, at) in enumerate(zip(parts, places, strict=True)):
            if other != stage:
                others = others * values[:, at]
        design = others[:, None] * (np.arange(part.shape[1])[:, None] == places[stage])
        design = design.reshape(-1, len(cross))
        parts[stage] = solved(design @ second @ design.T, (design @ cross)[:, None]).reshape(part.shape)
    return parts


def solved(system: Array, right: Array) -> Array:
    """A^-1 B for a positive semidefinite A; directions without weight get nothing."""
    scale = np.trace(system) / len(system)
    if not scale > 0:
        return np.zeros_like(right)
    diagonal = np.einsum("ii->i", system)
    # Equal diagonals, since channels may differ by many digits.
    roots = np.sqrt(np.where(diagonal > _JITTER * scale, diagonal, scale))
    for jitter in (_JITTER, 1e-10, 1e-7, 1e-4):
        try:
            even = system / roots / roots[:, None] + jitter * np.eye(len(system))
            factor = scipy.linalg.cho_factor(even, lower=True, overwrite_a=True, check_finite=False)
        except np.linalg.LinAlgError:
            continue
        solution: Array = scipy.linalg.cho_solve(factor, right / roots[:, None], check_finite=False) / roots[:, None]
        return solution
    return np.zeros_like(right)


def conjugate(
    normal: Callable[[Array], Array], right: Array, start: Array, precondition: Callable[[Array], Array]
) -> Array:
    """Some steps of preconditioned conjugate gradients from `start`; each lowers the error."""
    found, residual = start, right - normal(start)
    direction = precondition(residual)
    energy = float(np.vdot(residual, direction))
    enough = _CLOSE**2 * max(float(np.vdot(right, precondition(right))), 0.0)
    for _ in range(_STEPS):
        if not energy > enough:
            break
        image = normal(direction)
        curvature = float(np.vdot(direction, image))
        if not curvature > 0:
            break
        found = found + energy / curvature * direction
        residual = residual - energy / curvature * image
        turned = precondition(residual)
        before, energy = energy, float(np.vdot(residual, turned))
        direction = turned + energy / before * direction
    return found


def _separated(one: Array, two: Array) -> tuple[Array, Array]:
    """The two marginals of a metric, so that their product has its trace."""
    trace = np.trace(one)
    return (one / trace if trace > 0 else one), two


def _composed(chain: list[Array]) -> Array:
    return composed(tuple(Factor(weight, 1) for weight in chain)).weight


def _axes(chain: list[Array]) -> list[int]:
    """The axes that these stages own."""
    return sorted({axis for weight in chain for axis, extent in enumerate(weight.shape[2:]) if extent > 1})
