"""What `separable` leaves alone, and why; and what it does not do twice."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from convrewrite import model_io
from convrewrite.engine.rewrite import accept_all
from convrewrite.passes.separable import Separable
from helpers import Array, Net
from rewriting import assert_same, rewrite
from separable_planted import low_rank, net_of, only_site

# What is left alone, and why ----------------------------------------------------------------------------------------


def reason_of(model: onnx.ModelProto, pass_: Separable | None = None) -> tuple[str, str]:
    result, _ = rewrite(model, pass_ or Separable())
    assert not result.changed
    site = result.sites[0]
    return site.outcome, site.reason


def test_full_rank_is_declined_with_what_it_would_take() -> None:
    rng = np.random.default_rng(0)
    model = net_of(rng.standard_normal((16, 12, 3, 3)), (1, 12, 10, 11))
    assert reason_of(model) == ("declined", "accept/not-smaller")
    site = only_site(rewrite(model, Separable())[0])
    assert 0 < site.tol_pays < site.tol_halves < 1
    changed, _ = rewrite(model, Separable(tol=1.01 * site.tol_pays))
    assert changed.changed
    halved = only_site(rewrite(model, Separable(tol=1.001 * site.tol_halves))[0])
    assert halved.macs_after <= 1.1 * halved.macs_before / 2
    unchanged, _ = rewrite(model, Separable(tol=0.99 * site.tol_pays))
    assert not unchanged.changed


def test_always_rewrites_what_does_not_pay() -> None:
    model = net_of(np.random.default_rng(0).standard_normal((8, 4, 3, 3)), (1, 4, 10, 11))
    result, made = rewrite(model, Separable(), accept_all)
    assert result.changed
    assert_same(model, made, 1e-5)


@pytest.mark.parametrize(
    ("weight", "want"),
    [
        (np.zeros((8, 4, 3, 3)), ("declined", "separable/zero-kernel")),
        (np.full((8, 4, 3, 3), np.nan), ("refused", "separable/nan-weight")),
    ],
)
def test_odd_weights(weight: Array, want: tuple[str, str]) -> None:
    assert reason_of(net_of(weight, (1, 4, 9, 9))) == want


def test_a_1x1_kernel_has_no_spatial_form() -> None:
    model = net_of(np.ones((8, 4, 1, 1)), (1, 4, 9, 9))
    assert reason_of(model, Separable(form="spatial")) == ("declined", "separable/no-form")


def test_a_1x1_kernel_of_low_rank_becomes_two() -> None:
    rng = np.random.default_rng(0)
    model = net_of(np.outer(rng.standard_normal(16), rng.standard_normal(12))[:, :, None, None], (1, 12, 9, 9))
    result, made = rewrite(model, Separable())
    assert only_site(result).macs_after == 81 * (16 + 12)
    assert_same(model, made)


def test_a_kernel_that_is_separable_already() -> None:
    rng = np.random.default_rng(0)
    model = net_of(rng.standard_normal((8, 8, 3, 1)), (1, 8, 9, 9))
    assert reason_of(model) == ("declined", "accept/not-smaller")


def test_a_weight_that_is_an_input() -> None:
    net = Net(1, 4, 9, 9)
    weight = net.input("W", 8, 4, 3, 3)
    assert reason_of(net.model(net.Conv("x", weight))) == ("refused", "separable/weight-not-constant")


def test_a_weight_of_four_spatial_axes() -> None:
    net = Net(1, 4, 5, 5, 5, 5)
    node = onnx.helper.make_node("Conv", ["x", "W"], ["y"])
    weight = numpy_helper.from_array(np.ones((2, 4, 1, 1, 1, 1), np.float32), "W")
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph([node], "g", net.inputs, [info("y", 1, [1, 2, 5, 5, 5, 5])], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    assert reason_of(model) == ("refused", "separable/unknown-rank")


def test_integer_weights() -> None:
    from convrewrite.passes.separable.site import read_site

    net = Net(1, 4, 9, 9)
    model = net.model(net.Conv("x", net.const(np.ones((8, 4, 3, 3)), "W")))
    graph = model_io.load(model.SerializeToString()).graph
    node = next(node for node in graph.nodes if node.op == "Conv")
    node.inputs[1].values = np.ones((8, 4, 3, 3), np.int32)
    refusal = read_site(graph, node)
    assert refusal.reason.code == "separable/weight-type"  # type: ignore[union-attr]


def test_a_factor_is_not_factored_again() -> None:
    model = net_of(low_rank(), (1, 12, 10, 11))
    _, made = rewrite(model, Separable())
    again, _ = rewrite(made, Separable(tol=0.5))
    assert {site.reason for site in again.sites} == {"separable/already-factored"}


def test_the_same_input_gives_the_same_bytes() -> None:
    model = net_of(low_rank(), (1, 12, 10, 11), norm=True)
    one, two = (rewrite(model, Separable(tol=0.1))[1].SerializeToString(deterministic=True) for _ in range(2))
    assert one == two


def test_a_rank_is_filled_up_to_a_block_where_that_costs_nothing() -> None:
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((64, 64, 3, 3))
    tols = [
        only_site(rewrite(net_of(weight, (1, 64, 12, 12)), Separable(tol=t, form="spatial"))[0]) for t in (0.75, 0.8)
    ]
    for site in tols:
        rank = int(site.detail.rpartition(" ")[2])
        assert rank % 16 == 0, site.detail


@pytest.mark.parametrize("names", list(itertools.product(["", "named"], [""])))
def test_nodes_may_be_unnamed(names: tuple[str, str]) -> None:
    net = Net(1, 12, 12, 12)
    first = net.Relu(net.node("Conv", "x", net.const(low_rank(12, 12)), pads=[1] * 4))
    model = net.model(net.node("Conv", first, net.const(low_rank(16, 12))))
    for node, name in zip((n for n in model.graph.node if n.op_type == "Conv"), names, strict=True):
        node.name = name
    result, made = rewrite(model, Separable())
    assert [site.outcome for site in result.sites] == ["rewritten", "rewritten"]
    assert_same(model, made)
