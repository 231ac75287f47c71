"""`separable` on Gemm and MatMul: planted matrices of low rank, by hand; what is no site, and what is left alone.

The oracles are ONNX Runtime on the original model, and numpy's singular value decomposition.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from convrewrite import model_io
from convrewrite.acceptance import smaller
from convrewrite.engine.graph import computed_from_constants
from convrewrite.engine.layers import LinearLayer
from convrewrite.engine.rewrite import Declined, Kernels, accept_all
from convrewrite.page.spectra import spectra
from convrewrite.passes.separable import Separable
from convrewrite.passes.separable.emission import Replacement, emit
from convrewrite.passes.separable.matrices import read_matrix
from convrewrite.passes.separable.plans import offers
from convrewrite.passes.separable.site import LayerSite
from convrewrite.pipeline import native, responses
from nets import Array, Net, run
from rewriting import ROUNDING, assert_same, feeds_of, macs_of, reference_of, rewrite

F, K, R = 24, 20, 3


def low(rows: int = F, columns: int = K, rank: int = R, seed: int = 0) -> Array:
    """A matrix of that rank, by hand."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns))


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def check(model: onnx.ModelProto, op: str, pass_: Separable | None = None, *, count: int = 1) -> onnx.ModelProto:
    """Every layer of that operator became two of them, exactly, at the cost that was told, and stays so."""
    result, made = rewrite(model, pass_ or Separable())
    found = result.outcome("rewritten")
    assert [(site.op, site.equivalence) for site in found] == [(op, "reassociated")] * count, result.sites
    assert all(site.rank == (R,) and site.form == "channel" for site in found)
    assert ops(made).count(op) == ops(model).count(op) + count
    assert_same(model, made)
    if all(isinstance(d.dim_value, int) and d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim):
        before, after = sum(s.macs_before for s in found), sum(s.macs_after for s in found)
        assert macs_of(model) - macs_of(made) == before - after > 0
    again, _ = rewrite(made, pass_ or Separable())
    assert not again.changed
    assert {site.reason for site in again.sites} <= {"separable/already-factored", "accept/not-smaller"}
    return made


# Gemm


@pytest.mark.parametrize("more", [{}, {"alpha": 0.5, "beta": -2.0}, {"beta": 0.0}], ids=str)
@pytest.mark.parametrize("flags", [(0, 0), (0, 1), (1, 0), (1, 1)], ids=str)
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_gemm(side: str, flags: tuple[int, int], more: dict[str, float]) -> None:
    attrs: dict[str, Any] = {"transA": flags[0], "transB": flags[1], **more}
    shape, matrix = ((7, F), low()) if side == "right" else ((F, 7), low(K, F))
    turned = flags if side == "right" else flags[::-1]
    net = Net(*(shape[::-1] if turned[0] else shape))
    weight = net.const(matrix.T if turned[1] else matrix)
    bias = net.const(net.rng.standard_normal(K if side == "right" else (K, 1)))
    factors = ("x", weight) if side == "right" else (weight, "x")
    made = check(net.model(net.Gemm(*factors, bias, **attrs)), "Gemm")
    first, second = made.graph.node
    assert len(first.input) == 2, "what is added goes to the second"
    assert len(second.input) == 3


@pytest.mark.parametrize("added", [(), (1,), (K,), (1, K), (7, 1), (7, K), None, "dynamic"], ids=str)
@pytest.mark.parametrize("beta", [1.0, 3.0])
def test_what_a_gemm_adds(added: Any, beta: float) -> None:
    net = Net(7, F)
    if added == "dynamic":
        more = [net.input("c", 7, K)]
    else:
        more = [] if added is None else [net.const(np.asarray(net.rng.standard_normal(added)))]
    check(net.model(net.Gemm("x", net.const(low()), *more, beta=beta)), "Gemm")


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 18, 21])
def test_opsets(opset: int) -> None:
    net = Net(7, F, opset=opset)
    check(net.model(net.Relu(net.Gemm("x", net.const(low().T), net.const(np.ones(K)), transB=1))), "Gemm")
    net = Net(2, 7, F, opset=opset)
    check(net.model(net.Add(net.MatMul("x", net.const(low())), net.const(np.ones(K)))), "MatMul")


# MatMul


@pytest.mark.parametrize("ones", [0, 1, 2, 3])
@pytest.mark.parametrize("shape", [(F,), (7, F), (2, 7, F), (2, 3, 7, F), (1, 7, F)], ids=str)
def test_a_matmul_on_any_number_of_axes(shape: tuple[int, ...], ones: int) -> None:
    net = Net(*shape)
    weight = net.const(low().reshape(*[1] * ones, F, K))
    check(net.model(net.Add(net.MatMul("x", weight), net.const(np.ones(K)))), "MatMul")


@pytest.mark.parametrize("ones", [0, 1, 2])
@pytest.mark.parametrize("shape", [(F,), (F, 7), (2, F, 7), (2, 3, F, 7)], ids=str)
def test_a_constant_on_the_left(shape: tuple[int, ...], ones: int) -> None:
    net = Net(*shape)
    check(net.model(net.MatMul(net.const(low(K, F).reshape(*[1] * ones, K, F)), "x")), "MatMul")


def test_open_extents() -> None:
    net = Net("batch", "tokens", F)
    model = net.model(net.MatMul("x", net.const(low())))
    result, made = rewrite(model, Separable())
    (site,) = result.sites
    assert (site.macs_before, site.macs_after) == (F * K, R * (F + K)), "for each vector"
    assert_same(model, made)


@pytest.mark.parametrize("way", ["Constant", "Reshape", "Transpose", "Identity", "DequantizeLinear", "chain"])
def test_the_weight_may_be_computed(way: str) -> None:
    net = Net(7, F)
    weight = low().astype(np.float32)
    if way == "Constant":
        name = net.node("Constant", value=numpy_helper.from_array(weight))
    elif way == "Reshape":
        name = net.Reshape(net.const(weight.reshape(2, -1)), net.const([1, F, K]))
    elif way == "Transpose":
        name = net.Transpose(net.const(weight.T), perm=[1, 0])
    elif way == "Identity":
        name = net.Identity(net.const(weight))
    elif way == "chain":
        name = net.Transpose(net.Unsqueeze(net.Cast(net.const(weight.T), to=1), net.const([0])), perm=[0, 2, 1])
    else:
        numbers = np.clip(np.rint(low() * 10), -127, 127)
        quantized = np.outer(numbers[:, 0], np.sign(numbers[0]))
        name = net.DequantizeLinear(net.const(quantized, dtype=np.int8), net.const(np.float32(0.5)))
    model = net.model(net.Relu(net.MatMul("x", name)))
    result, made = rewrite(model, Separable())
    assert [site.equivalence for site in result.sites] == ["reassociated"]
    assert_same(model, made)


def test_float16() -> None:
    net = Net(7, F, dtype=np.float16)
    model = net.model(net.Gemm("x", net.const(low()), net.const(np.ones(K))))
    result, made = rewrite(model, Separable(tol=2e-3))
    assert result.changed
    assert {tensor.data_type for tensor in made.graph.initializer} == {onnx.TensorProto.FLOAT16}
    assert_same(model, made, 2e-2)


# Rank, error and cost, by numpy


def noisy(tol: float) -> Array:
    exact, noise = low(), np.random.default_rng(9).standard_normal((F, K))
    return exact + 0.5 * tol * np.linalg.norm(exact) / np.linalg.norm(noise) * noise


@pytest.mark.parametrize("tol", [1e-3, 1e-2, 0.1])
@pytest.mark.parametrize("op", ["Gemm", "MatMul", "left"])
def test_the_factors_are_those_of_the_truncated_svd(op: str, tol: float) -> None:
    net, matrix = Net(7, F) if op != "left" else Net(F, 7), noisy(tol)
    if op == "left":
        y = net.node("MatMul", net.const(matrix.T), "x", outputs=["planted"])
    else:
        y = net.node(op, "x", net.const(matrix), outputs=["planted"])
    model = net.model(y)
    result, made = rewrite(model, Separable(tol=tol))
    (site,) = result.sites
    u, s, v = np.linalg.svd(matrix)
    tails = [np.linalg.norm(s[r:]) / np.linalg.norm(s) for r in range(len(s) + 1)]
    assert site.rank == (next(r for r, tail in enumerate(tails) if tail <= tol),) == (R,)
    assert site.equivalence == "approximate"
    assert site.error == pytest.approx(tails[R], rel=0.01)
    best = (u[:, :R] * s[:R]) @ v[:R]
    kernel, shift = result.evidence_of(Kernels).made["planted"]()
    assert shift is None
    np.testing.assert_allclose(kernel if op != "left" else kernel.T, best, atol=1e-5 * np.abs(best).max())
    assert_same(reference_of(model, result), made)


@pytest.mark.parametrize(("rank", "outcome"), [(3, "rewritten"), (4, "declined"), (5, "declined")])
def test_a_rank_pays_below_its_break_even(rank: int, outcome: str) -> None:
    """8 x 8 = 64 = 4 (8 + 8): at rank 4 nothing is saved."""
    net = Net(5, 8)
    result, _ = rewrite(net.model(net.MatMul("x", net.const(low(8, 8, rank)))), Separable())
    (site,) = result.sites
    assert (site.outcome, site.macs_before) == (outcome, 5 * 64)
    assert site.macs_after == 5 * 16 * rank or outcome == "declined"
    if outcome == "declined":
        assert site.reason == "accept/not-smaller"
        assert site.tol_pays is not None


def test_ranks_on_the_grid_of_channels_are_offered() -> None:
    """An approximate rank of 17 is offered as 32 too, which takes as many blocks of channels."""
    net = Net(5, 256)
    matrix = low(256, 256, 17, seed=1) + 1e-3 * low(256, 256, 256, seed=2)
    graph = model_io.load(net.model(net.MatMul("x", net.const(matrix))).SerializeToString()).graph
    layer = LinearLayer.of(graph.nodes[0])
    assert layer is not None
    site = read_matrix(graph, graph.nodes[0], layer)
    assert isinstance(site, LayerSite)
    found = offers(site, 0.1, ["channel"])
    assert found is not None
    assert {(17,), (32,)} <= {option.rank for option in found.options} | {(17,)}
    assert found.options[0].rank == (32,)


# What is read twice, and what is no site


def test_a_weight_that_two_layers_read_is_never_edited() -> None:
    net = Net(7, F)
    weight = net.const(low(F, F), "W")
    y = net.node("MatMul", net.node("Gemm", "x", weight, transB=1, outputs=["one"]), weight, outputs=["two"])
    model = net.model(y)
    result, made = rewrite(model, Separable())
    assert [site.outcome for site in result.sites] == ["rewritten", "rewritten"]
    assert_same(model, made)
    no = Declined(Separable.reasons["separable/no-form"], "by the test")
    half, kept = rewrite(model, Separable(), lambda g, plan: smaller(g, plan) if plan.sites[0].anchor == "one" else no)
    assert [site.outcome for site in half.sites] == ["rewritten", "declined"]
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in kept.graph.initializer}
    np.testing.assert_array_equal(stored["W"], low(F, F).astype(np.float32))
    assert_same(model, kept)


def test_an_embedding_is_no_site_and_keeps_a_weight_that_is_tied_to_it() -> None:
    net = Net()
    net.input("tokens", 5, dtype=np.int64)
    weight = net.const(low(30, F), "W")
    model = net.model(net.MatMul(net.Gather(weight, "tokens"), net.Transpose(weight, perm=[1, 0])))
    result, made = rewrite(model, Separable())
    assert [(site.op, site.outcome) for site in result.sites] == [("MatMul", "rewritten")]
    feeds = {"tokens": np.array([0, 29, 3, 3, 7])}
    assert_same(model, made, feeds=feeds)
    assert "W" in {tensor.name for tensor in made.graph.initializer}


def test_attention_has_its_projections_as_sites_and_no_products_of_activations() -> None:
    net = Net(1, 7, F)
    q, k, v = (net.MatMul("x", net.const(low(F, F, seed=seed))) for seed in range(3))
    scores = net.Softmax(net.MatMul(q, net.Transpose(k, perm=[0, 2, 1])), axis=-1)
    model = net.model(net.MatMul(net.MatMul(scores, v), net.const(low(F, F, seed=3))))
    result, made = rewrite(model, Separable())
    assert [site.outcome for site in result.sites] == ["rewritten"] * 4
    assert ops(made).count("MatMul") == 10
    assert_same(model, made, 1e-5)


def test_what_depends_on_an_input_is_no_constant() -> None:
    net = Net(7, F)
    weight = net.input("W", F, K)
    filled = net.Transpose(net.ConstantOfShape(net.Shape("x")), perm=[1, 0])
    model = net.model(net.MatMul("x", weight), net.MatMul("x", filled))
    graph = model_io.load(model.SerializeToString()).graph
    assert not any(computed_from_constants(node.inputs[1]) for node in graph.nodes if node.op == "MatMul")
    assert list(Separable().candidates(graph)) == []


# What is left alone, and why


def reason_of(model: onnx.ModelProto, pass_: Separable | None = None) -> tuple[str, str]:
    result, _ = rewrite(model, pass_ or Separable(), accept_all)
    assert not result.changed
    (site,) = result.sites
    return site.outcome, site.reason


@pytest.mark.parametrize(
    ("build", "form", "want"),
    [
        (lambda n: n.MatMul("x", n.const(np.zeros((F, K)))), "auto", ("declined", "separable/zero-kernel")),
        (lambda n: n.MatMul("x", n.const(np.full((F, K), np.nan))), "auto", ("refused", "separable/nan-weight")),
        (lambda n: n.Gemm("x", n.const(np.full((F, K), np.inf))), "auto", ("refused", "separable/nan-weight")),
        (lambda n: n.MatMul("x", n.ints(F)), "auto", ("declined", "separable/not-a-matrix")),
        (lambda n: n.MatMul("x", n.ints(2, F, K)), "auto", ("declined", "separable/not-a-matrix")),
        (lambda n: n.MatMul("x", n.ints(F, 1)), "auto", ("declined", "separable/no-form")),
        (lambda n: n.MatMul("x", n.const(low())), "spatial", ("declined", "separable/no-form")),
        (lambda n: n.MatMul("x", n.const(low())), "tucker", ("declined", "separable/no-form")),
    ],
)
def test_reasons(build: Callable[[Net], str], form: str, want: tuple[str, str]) -> None:
    net = Net(7, F)
    assert reason_of(net.model(build(net)), Separable(form=form)) == want


def test_integers_are_no_weights() -> None:
    net = Net()
    net.input("x", 3, 4, dtype=np.int32)
    model = net.model(net.MatMul("x", net.const(np.ones((4, 5)), dtype=np.int32)))
    assert reason_of(model) == ("declined", "separable/weight-type")


def test_a_weight_that_cannot_be_folded() -> None:
    """Hashing is an operator of ONNX Runtime alone."""
    net = Net(7, F)
    weight = net.node("Gelu", net.const(low()), domain="com.microsoft")
    proto = onnx.helper.make_graph(
        [*net.nodes, onnx.helper.make_node("MatMul", ["x", weight], ["y"])],
        "net",
        net.inputs,
        [onnx.helper.make_tensor_value_info("y", 1, [7, K])],
        list(net.initializers.values()),
    )
    opsets = [onnx.helper.make_opsetid("", 13), onnx.helper.make_opsetid("com.microsoft", 1)]
    assert reason_of(onnx.helper.make_model(proto, opset_imports=opsets, ir_version=8)) == (
        "declined",
        "separable/not-folded",
    )


def test_a_constant_on_the_left_of_who_knows_what() -> None:
    """A vector and a matrix are multiplied differently, and nothing says which it is."""
    net = Net(F, 5)
    y = net.MatMul(net.const(low(K, F)), net.Reshape("x", net.input("to", "axes", dtype=np.int64)))
    info = onnx.helper.make_tensor_value_info(y, onnx.TensorProto.FLOAT, ["K", 5])
    graph = onnx.helper.make_graph(net.nodes, "net", net.inputs, [info], list(net.initializers.values()))
    opsets = [onnx.helper.make_opsetid("", 13)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    assert reason_of(model) == ("declined", "separable/open-rank")


def test_a_factor_is_not_factored_again() -> None:
    net = Net(7, F)
    _, made = rewrite(net.model(net.Gemm("x", net.const(low()))), Separable())
    again, _ = rewrite(made, Separable(tol=0.9))
    assert {site.reason for site in again.sites} == {"separable/already-factored"}


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
