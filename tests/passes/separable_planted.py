"""Convolutions with planted kernels, for the tests of `separable`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from convrewrite.acceptance import NOT_SMALLER
from convrewrite.engine.rewrite import Declined, PassResult, Site
from helpers import Array, Net

NO = Declined(NOT_SMALLER, "by the test")


def planted(rng: np.random.Generator, form: str, out: int, inputs: int, kernel: Sequence[int], group: int = 1) -> Array:
    """A kernel [O, I/g, *k] of low rank in one form, by hand."""
    per = inputs // group
    parts = []
    for _ in range(group):
        o, i = out // group, per
        if form == "spatial":
            factors = [rng.standard_normal((2, i, kernel[0]))]
            factors += [
                rng.standard_normal((2, o if n == len(kernel) - 1 else 1, k)) for n, k in enumerate(kernel) if n
            ]
            if len(kernel) == 2:
                parts.append(np.einsum("rih,row->oihw", *factors))
            else:
                parts.append(np.einsum("rid,rah,row->oidhw", *factors))
        elif form == "depthwise":
            left, right = rng.standard_normal((o, i)), rng.standard_normal((i, *kernel))
            parts.append(np.einsum("oi,i...->oi...", left, right))
        elif form == "channel":
            left, right = rng.standard_normal((o, 2)), rng.standard_normal((2, i, *kernel))
            parts.append(np.einsum("or,r...->o...", left, right))
        else:
            left, core, right = (
                rng.standard_normal((o, 3)),
                rng.standard_normal((3, 3, *kernel)),
                rng.standard_normal((3, i)),
            )
            parts.append(np.einsum("or,rs...,si->oi...", left, core, right))
    return np.concatenate(parts)


def net_of(
    weight: Array, shape: Sequence[int | str], *, bias: bool = True, norm: bool = False, opset: int = 13, **attrs: Any
) -> onnx.ModelProto:
    """One Conv with that weight, a BatchNormalization if wanted, a Relu, and one more Conv behind it."""
    net = Net(*shape, opset=opset, seed=5)
    out = weight.shape[0]
    inputs = ["x", net.const(weight, "W")] + ([net.const(net.rng.standard_normal(out), "b")] if bias else [])
    y = net.node("Conv", *inputs, name="planted", outputs=["planted"], **attrs)
    if norm:
        values = [net.rng.uniform(0.5, 2, out), net.rng.standard_normal(out), net.rng.standard_normal(out)]
        y = net.BatchNormalization(y, *(net.const(v) for v in (*values, net.rng.uniform(0.5, 2, out))))
    return net.model(net.Relu(y))


def only_site(result: PassResult) -> Site:
    (site,) = result.sites
    return site


def low_rank(out: int = 16, inputs: int = 12) -> Array:
    return planted(np.random.default_rng(1), "spatial", out, inputs, (3, 3))
