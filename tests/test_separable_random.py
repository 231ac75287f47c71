"""Random convolutions and random small graphs through `separable`.

A convolution      what the pass says of its error, its cost and its kernel, against numpy, SciPy and ONNX Runtime
A graph            at rounding, against ONNX Runtime on the original; what was planted is found

The kernel that a rewrite amounts to is put into the original by hand. `CONVREWRITE_EXAMPLES=5000` draws others.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import scipy.signal
from campaigns import campaign
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from convrewrite.acceptance import smaller
from convrewrite.engine.rewrite import Judge, Kernels, accept_all
from convrewrite.passes.separable import FORMS, Separable
from helpers import Array, Feeds, run
from random_convs import PlantedGraph, RandomConv, convs, planted_graphs
from rewriting import assert_close, feeds_of, macs_of, reference_of, rewrite

EXAMPLES = int(os.environ.get("CONVREWRITE_EXAMPLES", "0"))
EXACT = 8
"""Spacings of the numbers next to 1 that count as rounding, as the documentation of the pass says."""

CLOSE = {"float16": 2e-2, "float32": 1e-5}
JUDGES: tuple[Judge, ...] = (smaller, accept_all)


def drawn(examples: int) -> Callable[..., Any]:
    return settings(
        max_examples=EXAMPLES or examples,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


def by_hand(model: onnx.ModelProto, kernel: Array) -> onnx.ModelProto:
    """The model with another kernel."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    tensor = next(tensor for tensor in made.graph.initializer if tensor.name == "W")
    assert (list(tensor.dims), numpy_helper.to_array(tensor).dtype) == (list(kernel.shape), kernel.dtype)
    tensor.CopyFrom(numpy_helper.from_array(kernel, "W"))
    return made


def convolved(conv: RandomConv, kernel: Array, x: Array) -> Array:
    """What SciPy gives for the Conv with a kernel, in float64: pads, holes in the kernel, and cells left out."""
    rank = x.ndim - 2
    strides, dilations = (conv.attrs.get(name, [1] * rank) for name in ("strides", "dilations"))
    pads, group = conv.attrs.get("pads", [0] * (2 * rank)), conv.attrs.get("group", 1)
    wide = np.pad(x.astype(np.float64), [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
    reach = [(k - 1) * d + 1 for k, d in zip(kernel.shape[2:], dilations, strict=True)]
    holes = np.zeros((*kernel.shape[:2], *reach))
    holes[(..., *(slice(None, None, d) for d in dilations))] = kernel
    outs, each = kernel.shape[0] // group, kernel.shape[1]
    result = []
    for image in wide:
        for number, filters in enumerate(holes):
            first = number // outs * each
            sums = scipy.signal.correlate(image[first : first + each], filters, mode="valid", method="direct")[0]
            result.append(sums[tuple(slice(None, None, s) for s in strides)])
    return np.stack(result).reshape(x.shape[0], kernel.shape[0], *result[0].shape)


def finished(conv: RandomConv, sums: Array) -> Array:
    """Bias, BatchNormalization and Relu behind the sums of products."""

    def column(values: Array) -> Array:
        return values.astype(np.float64).reshape(-1, *[1] * (sums.ndim - 2))

    if conv.bias is not None:
        sums = sums + column(conv.bias)
    if conv.norm:
        sums = (sums - column(conv.norm["mean"])) * column(conv.gain) + column(conv.norm["offset"])
    return np.maximum(sums, 0) if conv.model.graph.node[-1].op_type == "Relu" else sums


def check_conv(conv: RandomConv, tol: float, form: str, judge: Judge) -> None:
    """Rewrite a convolution and compare all that is said of it."""
    pass_ = Separable(tol=tol, form=form)
    result, made = rewrite(conv.model, pass_, judge)
    (site,) = result.sites
    event(f"{site.outcome} {site.reason} {site.equivalence}")
    assert site.outcome in ("rewritten", "declined"), site
    if not result.changed:
        assert judge is smaller or site.reason in ("separable/no-form", "separable/zero-kernel"), site
        return
    eps = float(np.finfo(conv.dtype).eps)
    limit = max(tol, EXACT * eps)
    kernel, shift = result.evidence_of(Kernels).made["y"]()
    true = conv.error(kernel)
    assert shift is None
    assert abs(site.error - true) <= 0.01 * true + eps
    assert site.error <= limit
    assert true <= limit + eps
    assert (site.equivalence == "reassociated") == (site.error <= EXACT * eps)
    assert site.macs_before == macs_of(conv.model)
    assert site.macs_after == macs_of(made)
    assert site.params_after == sum(math.prod(t.dims) for t in made.graph.initializer)
    if judge is smaller:
        assert (site.macs_after, site.params_after) < (site.macs_before, site.params_before)
    onnx.checker.check_model(made, full_check=True)
    assert {t.name for t in made.graph.initializer} <= {i.name for i in made.graph.input} or made.ir_version >= 4
    compare(conv, kernel, made, feeds_of(conv.model), reference_of(conv.model, result))
    again, _ = rewrite(made, pass_, judge)
    assert not again.changed


def compare(conv: RandomConv, kernel: Array, made: onnx.ModelProto, feeds: Feeds, reference: onnx.ModelProto) -> None:
    """The rewritten model against the original with the kernel in ONNX Runtime, and where SciPy can, against that."""
    close = CLOSE[conv.dtype.name]
    (want,) = run(by_hand(conv.model, kernel), feeds).values()
    (got,) = run(made, feeds).values()
    (same,) = run(reference, feeds).values()
    np.testing.assert_array_equal(same, want)
    assert_close(got, want, close, "by hand")
    if conv.attrs.get("auto_pad", "NOTSET") in ("NOTSET", "VALID") and not (
        "auto_pad" in conv.attrs and conv.attrs["auto_pad"] == "VALID" and "pads" in conv.attrs
    ):
        by_scipy = finished(conv, convolved(conv, kernel, feeds["x"]))
        assert_close(got, by_scipy.astype(conv.dtype), close, "SciPy")


@campaign(50, 150)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_random_conv(rank: int, examples: int) -> None:
    """Whatever is drawn: the error is right and within the bound, the function is the one that is claimed."""

    @drawn(examples)
    @given(
        conv=convs(rank),
        tol=st.one_of(st.just(0.0), st.floats(-4, -0.05).map(lambda power: 10**power)),
        form=st.sampled_from(("auto", "auto", *FORMS)),
        judge=st.sampled_from(JUDGES),
    )
    def run_all(conv: RandomConv, tol: float, form: str, judge: Judge) -> None:
        if not np.any(conv.error(np.zeros_like(conv.weight)) > 0):
            return
        check_conv(conv, tol, form, judge)

    run_all()


def check_graph(graph: PlantedGraph) -> None:
    """What was planted is found; the outputs stay."""
    result, made = rewrite(graph.model, Separable())
    outcomes = {site.anchor: site for site in result.sites}
    assert set(outcomes) == {*graph.planted, *graph.full}
    for name in graph.planted:
        assert (outcomes[name].outcome, outcomes[name].equivalence) == ("rewritten", "reassociated"), outcomes[name]
    onnx.checker.check_model(made, full_check=True)
    saved = sum(site.macs_before - site.macs_after for site in result.outcome("rewritten"))
    assert macs_of(graph.model) - macs_of(made) == saved
    names = [node.name for node in made.graph.node]
    assert len(set(names)) == len(names)
    feeds = feeds_of(graph.model)
    got = run(made, feeds)
    for name, want in run(graph.model, feeds).items():
        assert_close(got[name], want, 1e-5, name)
    negated = {name: -value for name, value in feeds.items()}
    got = run(made, negated)
    for name, want in run(graph.model, negated).items():
        assert_close(got[name], want, 1e-5, name)
    assert not rewrite(made, Separable())[0].changed


@campaign(20, 60)
def test_random_graph(examples: int) -> None:
    """Inception blocks, residuals, shared weights, subgraphs that read a convolution, several outputs."""

    @drawn(examples)
    @given(graph=planted_graphs())
    def run_all(graph: PlantedGraph) -> None:
        check_graph(graph)

    run_all()
