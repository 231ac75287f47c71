"""Each reason of `groups` is provoked once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from convrewrite import model_io
from convrewrite.engine.convsite import read_site
from convrewrite.engine.rewrite import Declined, Kernels, PassResult, Plan, Refusal
from convrewrite.errors import ConvrewriteError
from convrewrite.passes.groups import Groups
from convrewrite.passes.groups.packing import Layout
from groups_nets import conv, equal, feeds_of, group_counts, ops, planted, rewrite, stem
from groups_planted import lrn, noisy, residual
from helpers import Net, run

# Reasons --------------------------------------------------------------------------------------------------------------


def reasons(result: PassResult) -> set[str]:
    return {site.reason for site in result.sites}


def test_no_structure() -> None:
    net = Net(1, 4, 8, 12)
    assert reasons(rewrite(net.model(net.conv("x", 4, 3, 3)))[0]) == {"groups/no-structure"}


def test_already_grouped() -> None:
    """What a tolerance allows once, it does not allow again."""
    model = noisy(4, 0.04)
    at = {groups: rewrite(model, Groups(tol=1.0, into=groups))[0].outcome("rewritten")[-1].error for groups in (2, 4)}
    assert at[2] < at[4]
    tol = 0.5 * (at[2] + at[4])
    _, made = rewrite(model, Groups(tol=tol))
    assert group_counts(made)[1] == 2
    again, same = rewrite(made, Groups(tol=tol))
    assert not again.changed
    assert "groups/already-grouped" in reasons(again)
    assert group_counts(same)[1] == 2


def test_not_grouped() -> None:
    net = Net(1, 4, 8, 12)
    assert reasons(rewrite(net.model(net.conv("x", 4, 3, 3)), Groups(expand="dense"))[0]) == {"groups/not-grouped"}


def test_no_such_number() -> None:
    net = Net(1, 4, 8, 12)
    assert reasons(rewrite(net.model(net.conv("x", 4, 3, 3)), Groups(into=3))[0]) == {"groups/no-such-number"}


def test_public_order() -> None:
    net = Net(1, 16, 8, 12)
    model = net.model(conv(net, "x", planted(net.rng, equal(2, 16), (1, 1))))
    result, made = rewrite(model)
    assert reasons(result) == {"groups/public-order"}
    assert "input or an output" in result.sites[0].detail
    assert ops(made) == ["Conv"]


def test_order_fixed() -> None:
    net = Net(1, 3, 8, 12)
    x = lrn(net, conv(net, "x", stem(net, 16, 3, 1, 1)), 16)
    y = net.Relu(conv(net, x, planted(net.rng, equal(2, 16), (1, 1))))
    result, _ = rewrite(net.model(conv(net, y, stem(net, 3, 16, 1, 1))))
    (site,) = (s for s in result.sites if s.reason != "groups/no-structure")
    assert site.reason == "groups/order-fixed"
    assert "LRN" in site.detail


def test_tied_channels() -> None:
    """A residual unit whose convolution mixes the order: input and output groups do not match."""
    net = Net(1, 3, 8, 12)
    x = net.Relu(conv(net, "x", stem(net, 16, 3, 1, 1)))
    y = net.Add(x, conv(net, x, planted(net.rng, equal(2, 16), (1, 1))))
    result, _ = rewrite(net.model(conv(net, y, stem(net, 3, 16, 1, 1))))
    assert "groups/tied-channels" in reasons(result)


def test_unknown_shape() -> None:
    """With maps of unknown size, nobody knows which features behind a Reshape are one channel."""
    net = Net(1, 3, "height", "width")
    x = net.Relu(conv(net, "x", stem(net, 16, 3, 1, 1)))
    y = net.Relu(conv(net, x, planted(net.rng, equal(2, 16), (1, 1))))
    z = net.Gemm(net.Reshape(y, net.const([1, 16 * 9])), net.ints(16 * 9, 5))
    result, _ = rewrite(net.model(z))
    assert "groups/unknown-shape" in reasons(result)


def test_unknown_rank() -> None:
    net = Net(1, 4, 5, 5, 5, 5)
    weight = onnx.numpy_helper.from_array(np.ones((2, 4, 1, 1, 1, 1), np.float32), "w")
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"])
    y = onnx.helper.make_tensor_value_info("y", 1, [1, 2, 5, 5, 5, 5])
    graph = onnx.helper.make_graph([node], "g", net.inputs, [y], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    assert reasons(rewrite(model)[0]) == {"groups/unknown-rank"}


def test_weight_type() -> None:
    net = Net(1, 4, 9, 9)
    graph = model_io.load(net.model(net.conv("x", 8, 3, 3)).SerializeToString()).graph
    (node,) = graph.nodes
    node.inputs[1].values = np.ones((8, 4, 3, 3), np.int32)
    refusal = read_site(graph, node, "groups")
    assert isinstance(refusal, Refusal)
    assert refusal.reason.code == "groups/weight-type"


def test_weight_not_constant() -> None:
    net = Net(1, 4, 8, 12)
    weight = net.input("w", 4, 4, 3, 3)
    result, _ = rewrite(net.model(net.Conv("x", weight)))
    assert reasons(result) == {"groups/weight-not-constant"}
    assert result.sites[0].outcome == "refused"


def test_nan_weight() -> None:
    net = Net(1, 4, 8, 12)
    result, _ = rewrite(net.model(net.Conv("x", net.const(np.full((4, 4, 1, 1), np.nan)))))
    assert reasons(result) == {"groups/nan-weight"}
    assert Groups.reasons["groups/nan-weight"].whole


def test_only_legal_plans_are_offered_to_the_judge() -> None:
    offered: list[Plan] = []

    def judge(graph: Any, plan: Plan) -> Declined:
        offered.append(plan)
        return Declined(Groups.reasons["groups/no-structure"], "by the test")

    model = residual(4, 64)
    result, made = rewrite(model, judge=judge)
    assert not result.changed
    assert len({plan.sites[0].anchor for plan in offered}) == 4
    assert len(offered) >= 8, "two groups of 32 are offered too"
    assert run(made, feeds_of(model)).keys() == run(model, feeds_of(model)).keys()


def test_every_reason_has_its_test() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_groups*.py"))
    assert all(f'"{code}"' in text for code in Groups.reasons)


def test_the_same_input_gives_the_same_bytes() -> None:
    one, two = (rewrite(noisy(4, 0.02, 2), Groups(tol=0.1))[1] for _ in range(2))
    assert one.SerializeToString(deterministic=True) == two.SerializeToString(deterministic=True)


def test_a_claimed_kernel_that_is_too_far_off_is_an_internal_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an approximate rewrite is verified against is itself held against the original's kernel."""
    result, _ = rewrite(noisy(4, 0.02, 2), Groups(tol=0.1))
    assert result.evidence_of(Kernels).made
    for kernel in result.evidence_of(Kernels).made.values():
        assert np.any(kernel()[0])
    monkeypatch.setattr(Layout, "mask", lambda self, rows, columns: np.eye(rows, columns, dtype=bool))
    for kernel in result.evidence_of(Kernels).made.values():
        with pytest.raises(ConvrewriteError, match=r"are off by .*, not by"):
            kernel()
