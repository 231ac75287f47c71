"""Factors of linear layers that are fitted to data, and how far they can be trusted."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from convrewrite import model_io
from convrewrite.engine.layers import LinearLayer
from convrewrite.page.spectra import spectra
from convrewrite.passes.separable import Separable
from convrewrite.passes.separable.emission import Replacement, emit
from convrewrite.passes.separable.matrices import read_matrix
from convrewrite.passes.separable.plans import offers
from convrewrite.passes.separable.site import LayerSite
from convrewrite.pipeline import native, responses
from nets import Net, run
from rewriting import ROUNDING, assert_same, feeds_of, reference_of, rewrite
from separable_matrices import F, K, R, low, noisy, ops

# Fitted to responses


@pytest.mark.parametrize("build", ["Gemm", "Gemm, beta", "Gemm, nothing added", "MatMul", "MatMul, Add", "left"])
def test_a_fit_is_the_reduced_rank_regression(build: str) -> None:
    """Its response error is that of the principal components of the responses, by numpy; the bias takes the mean."""
    rng = np.random.default_rng(4)
    x = rng.standard_normal((400, F)) @ rng.standard_normal((F, F)) * np.geomspace(1, 1e-3, F) + 2.0
    x = x.astype(np.float32)
    matrix = rng.standard_normal((F, K))
    net = Net(400, F) if build != "left" else Net(F, 400)
    weight, bias = net.const(matrix), net.const(rng.standard_normal(K))
    if build.startswith("Gemm"):
        more = [] if "nothing" in build else [bias]
        y = net.Gemm("x", weight, *more, **({"beta": 3.0, "alpha": 0.5} if "beta" in build else {}))
    elif build == "left":
        y = net.MatMul(net.const(matrix.T), "x")
    else:
        y = net.MatMul("x", weight)
        y = net.Add(bias, y) if "Add" in build else y
    model = net.model(net.Relu(y))
    scaled = matrix * (0.5 if "beta" in build else 1.0)

    feeds = {"x": x if build != "left" else np.ascontiguousarray(x.T)}
    loaded = model_io.load(model.SerializeToString())
    seen = responses.Collected.read(loaded, feeds, native.native(loaded, None), "cpu", 0)
    result, made = rewrite(model, Separable(tol=0.9), responses=seen)
    (site,) = result.outcome("rewritten")
    rank, answers = site.rank[0], (x - x.mean(0)).astype(np.float64) @ scaled
    values = np.linalg.svd(answers, compute_uv=False)
    best = np.linalg.norm(values[rank:]) / np.linalg.norm(values)
    assert site.response_error == pytest.approx(best, rel=0.02, abs=1e-6)
    assert_same(reference_of(model, result), made, feeds=feeds)
    assert ops(made).count("Add") == (1 if "MatMul" in build or build == "left" else 0), "one, with the shift in it"
    want, got = (next(iter(run(m, feeds).values())) for m in (model, made))
    assert np.linalg.norm(got - want) <= 1.01 * best * np.linalg.norm(answers)


# Whole numbers, bit for bit


@pytest.mark.parametrize("build", ["Gemm", "Gemm, transposed", "MatMul", "MatMul, ones", "left", "left Gemm"])
def test_whole_numbers_agree_bit_for_bit(build: str) -> None:
    """Factors of whole numbers in the place of those of the decomposition: what is emitted is what they mean."""
    rng = np.random.default_rng(0)
    one, two = rng.integers(-2, 3, (R, F)).astype(float), rng.integers(-2, 3, (K, R)).astype(float)
    matrix = (two @ one).T
    net = Net(*((F, 7) if "left" in build else (7, F)))
    if build == "left":
        y = net.MatMul(net.const(matrix.T), "x")
    elif build == "left Gemm":
        y = net.Gemm(net.const(matrix), "x", net.ints(K, 1), transA=1)
    elif build == "Gemm, transposed":
        y = net.Gemm("x", net.const(matrix.T), net.ints(K), transB=1, beta=2.0)
    elif build == "Gemm":
        y = net.Gemm("x", net.const(matrix), net.ints(7, K))
    else:
        y = net.Add(net.ints(K), net.MatMul("x", net.const(matrix.reshape(*[1] * (2 * ("ones" in build)), F, K))))
    model = net.model(y)
    loaded = model_io.load(model.SerializeToString())
    node = next(n for n in loaded.graph.nodes if n.op in ("Gemm", "MatMul"))
    layer = LinearLayer.of(node)
    assert layer is not None
    site = read_matrix(loaded.graph, node, layer)
    assert isinstance(site, LayerSite)
    found = offers(site, 0.0, ["channel"])
    assert found is not None
    replacement = Replacement(site, found.options[0], None, 0.0)
    exact = replacement.factorization
    first, second = exact.branches[0]
    assert (first.weight.shape, second.weight.shape) == (one.shape, two.shape)
    vars(first)["weight"], vars(second)["weight"] = one, two
    emit(loaded.graph, replacement)
    made = onnx.load_model_from_string(model_io.to_bytes(loaded))
    feeds = {"x": rng.integers(-3, 4, (F, 7) if "left" in build else (7, F)).astype(np.float32)}
    want, got = (next(iter(run(m, feeds).values())) for m in (model, made))
    assert np.abs(want).max() > 0
    np.testing.assert_array_equal(got, want)


# What is shown


def test_singular_values_of_a_matrix_are_drawn() -> None:
    net, matrix = Net(7, F), noisy(0.1)
    model = net.model(net.MatMul("x", net.const(matrix)))
    loaded = model_io.load(model.SerializeToString())
    result, _ = rewrite(model, Separable(tol=0.1))
    ((curve,),) = spectra(loaded.graph, result.sites).values()
    assert curve["form"] == "channel"


def test_noise_does_not_hide_in_feeds() -> None:
    """The feeds of these tests show a factor that is wrong."""
    net = Net(7, F)
    model = net.model(net.MatMul("x", net.const(low())))
    net = Net(7, F)
    other = net.model(net.MatMul("x", net.const(low() * (1 + 10 * ROUNDING))))
    feeds = feeds_of(model)
    want, got = (next(iter(run(m, feeds).values())) for m in (model, other))
    assert np.abs(want - got).max() > ROUNDING * np.abs(want).max()
