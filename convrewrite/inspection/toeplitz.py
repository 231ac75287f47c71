"""A convolution as a matrix: the doubly block Toeplitz matrix T with vec(conv(x)) = T vec(x).

    y[o, r, c] = sum over i, u, v of  W[o, i, u, v] x[i, r s + u d - p, c s + v d - p]

so row (o, r, c) of T holds W[o, i, u, v] in column (i, r s + u d - p, c s + v d - p), where that pixel exists. Along
each spatial axis the blocks repeat down the diagonals, which is what Toeplitz means; a stride skips rows. T has
O R' C' rows and I R C columns. The transposed convolution of the same kernel is the product with T's transpose.
Source: the ONNX operator pages of Conv and ConvTranspose.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.sparse

from convrewrite.engine.layers import Sliding
from convrewrite.errors import UsageError
from convrewrite.text import counted, parameter

LARGEST = 20_000_000
"""Entries that a matrix may have: about 320 MB while it is built."""


def entries(weight: np.ndarray[Any, Any], sliding: Sliding) -> int:
    """An upper bound on the entries of the matrix that are stored, before it is built."""
    return int(weight.size * math.prod(sliding.output))


def toeplitz(weight: np.ndarray[Any, Any], sliding: Sliding, *, group: int = 1) -> scipy.sparse.csr_array:
    """The matrix of a convolution.

    Args:
        weight: kernel [O, I/g, *kernel]. sliding: stride, dilation and pads on a map of its `size`. group: g.

    Returns:
        [O * prod(output size), I * prod(size)], in the weight's own type.

    Raises:
        UsageError: the matrix would have more than LARGEST entries.
    """
    count = entries(weight, sliding)
    if count > LARGEST:
        raise UsageError(
            f"the Toeplitz matrix would have {counted(count, 'entry')}, more than {LARGEST:,}",
            remedy=f"choose a smaller input with {parameter('size')}, or a smaller layer",
        )
    outs, per_group, *_ = weight.shape
    taps = np.indices(weight.shape)
    cells = np.indices(sliding.output).reshape(len(sliding.size), -1)
    rows, columns, values = [], [], []
    channel = taps[1] + (taps[0] // (outs // group)) * per_group
    for cell in cells.T:
        pixels, inside = [], np.ones(weight.shape, bool)
        for axis, index in enumerate(cell):
            pixel = index * sliding.strides[axis] + taps[2 + axis] * sliding.dilations[axis] - sliding.begin[axis]
            inside &= (pixel >= 0) & (pixel < sliding.size[axis])
            pixels.append(pixel)
        column = np.ravel_multi_index(
            (channel[inside], *(pixel[inside] for pixel in pixels)), (per_group * group, *sliding.size)
        )
        place = np.ravel_multi_index(tuple(cell), sliding.output)
        rows.append(taps[0][inside] * cells.shape[1] + place)
        columns.append(column)
        values.append(weight[inside])
    shape = outs * cells.shape[1], per_group * group * math.prod(sliding.size)
    where = np.concatenate(rows), np.concatenate(columns)
    return scipy.sparse.coo_array((np.concatenate(values), where), shape=shape).tocsr()
