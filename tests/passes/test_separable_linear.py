"""`separable` on Gemm and MatMul: planted matrices of low rank, by hand; what is no site, and what is left alone.

The oracles are ONNX Runtime on the original model, and numpy's singular value decomposition.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from convrewrite import model_io
from convrewrite.engine.layers import LinearLayer
from convrewrite.engine.rewrite import Kernels
from convrewrite.passes.separable import Separable
from convrewrite.passes.separable.matrices import read_matrix
from convrewrite.passes.separable.plans import offers
from convrewrite.passes.separable.site import LayerSite
from nets import Net
from rewriting import assert_same, macs_of, reference_of, rewrite
from separable_matrices import F, K, R, low, noisy, ops


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
