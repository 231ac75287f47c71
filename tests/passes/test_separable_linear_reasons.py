"""Linear layers that `separable` leaves alone, and weights that it may not edit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from convrewrite import model_io
from convrewrite.acceptance import smaller
from convrewrite.engine.graph import computed_from_constants
from convrewrite.engine.rewrite import Declined, accept_all
from convrewrite.passes.separable import Separable
from nets import Net
from rewriting import assert_same, rewrite
from separable_matrices import F, K, low, ops

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
