"""`groups` with `expand`: a grouped convolution as branches or as one dense convolution, bit for bit, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from convrewrite.passes.groups import Groups
from groups_nets import assert_equal, conv, equal, group_counts, ops, planted, rewrite
from helpers import Net

KINDS = ["branches", "dense"]


def grouped(rank: int, groups: int, *, bias: bool = True, opset: int = 13, **attrs: Any) -> onnx.ModelProto:
    """One grouped Conv of 12 channels in and 24 out, and a Relu."""
    net = Net(2, 12, *(9, 11, 8)[:rank], opset=opset)
    kernel = (3, 2, 3)[:rank]
    return net.model(net.Relu(net.conv("x", 24, *kernel, group=groups, bias=bias, **attrs)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize("groups", [2, 3, 12])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_grouped_convolution_is_expanded(rank: int, groups: int, bias: bool, kind: str) -> None:
    model = grouped(rank, groups, bias=bias, strides=[2, 1, 1][:rank], pads=[1] * (2 * rank))
    result, made = rewrite(model, Groups(expand=kind))
    (site,) = result.sites
    assert (site.outcome, site.equivalence, site.error) == ("rewritten", "exact", 0.0)
    assert set(group_counts(made)) == {1}
    assert_equal(model, made)
    if kind == "branches":
        assert ops(made) == ["Split", *["Conv"] * groups, "Concat", "Relu"]
        assert (site.macs_after, site.params_after) == (site.macs_before, site.params_before)
    else:
        assert ops(made) == ["Conv", "Relu"]
        assert site.macs_after == groups * site.macs_before
    assert not rewrite(made, Groups(expand=kind))[0].changed


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attrs", [{"auto_pad": "SAME_UPPER", "strides": [2, 2]}, {"dilations": [2, 3]}], ids=str)
@pytest.mark.parametrize("opset", [11, 13, 18])
def test_geometry_and_opset(opset: int, attrs: dict[str, Any], kind: str) -> None:
    model = grouped(2, 4, opset=opset, **attrs)
    _, made = rewrite(model, Groups(expand=kind))
    assert_equal(model, made)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize("attrs", [{}, {"strides": [2, 3], "output_padding": [1, 2], "pads": [1, 0, 0, 1]}], ids=str)
def test_a_transposed_convolution_is_expanded(attrs: dict[str, Any], bias: bool, kind: str) -> None:
    net = Net(2, 12, 5, 7)
    weight, more = net.ints(12, 2, 3, 3), [net.ints(8)] if bias else []
    model = net.model(net.Relu(net.ConvTranspose("x", weight, *more, group=4, **attrs)))
    result, made = rewrite(model, Groups(expand=kind))
    assert result.sites[0].op == "ConvTranspose"
    assert result.sites[0].macs_before == 2 * 5 * 7 * 12 * 2 * 9
    assert_equal(model, made)
    assert "Split" in ops(made) or kind == "dense"


@pytest.mark.parametrize("kind", KINDS)
def test_quantized_weights_stay_quantized(kind: str) -> None:
    net = Net(1, 8, 5, 7)
    stored = net.const(net.rng.integers(-5, 6, (8, 2, 3, 3)), dtype=np.int8)
    zero = net.const(net.rng.integers(-3, 4, 8), dtype=np.int8)
    weight = net.DequantizeLinear(stored, net.const(np.exp2(net.rng.integers(0, 3, 8))), zero, axis=0)
    model = net.model(net.Conv("x", weight, group=4))
    _, made = rewrite(model, Groups(expand=kind))
    assert all(t.data_type != onnx.TensorProto.FLOAT for t in made.graph.initializer if len(t.dims) == 4)
    assert_equal(model, made)


def test_a_weight_that_is_an_input_is_refused() -> None:
    net = Net(1, 4, 8, 12)
    model = net.model(net.Conv("x", net.input("w", 4, 2, 3, 3), group=2))
    assert rewrite(model, Groups(expand="dense"))[0].sites[0].reason == "groups/weight-not-constant"


def test_expanding_and_grouping_gives_the_model_back() -> None:
    net = Net(1, 32, 8, 12)
    x = net.Relu(net.conv("x", 64, 3, 3, group=2, bound=3, pads=[1] * 4))
    x = net.Relu(net.conv(x, 64, 3, 3, group=4, pads=[1] * 4))
    x = net.Relu(net.conv(x, 64, 5, 5, group=64, pads=[2] * 4))
    model = net.model(net.conv(x, 3, 1, 1))
    _, dense = rewrite(model, Groups(expand="dense"))
    assert group_counts(dense) == [1, 1, 1, 1]
    _, back = rewrite(dense)
    assert group_counts(back) == group_counts(model)
    assert ops(back) == ops(model)

    def weights(m: onnx.ModelProto) -> list[Any]:
        values = {t.name: onnx.numpy_helper.to_array(t) for t in m.graph.initializer}
        return [values[name] for node in m.graph.node if node.op_type == "Conv" for name in node.input[1:]]

    for old, new in zip(weights(model), weights(back), strict=True):
        np.testing.assert_array_equal(old, new)


def test_the_numbers_of_groups_can_be_asked_for() -> None:
    """Groups below a block of channels are found fatter unless their number is given."""
    net = Net(1, 32, 8, 12)
    rows = np.arange(32)
    weight = planted(net.rng, equal(8, 32), rows=rows, columns=rows)
    model = net.model(conv(net, "x", weight))
    assert group_counts(rewrite(model)[1]) == [2]
    assert group_counts(rewrite(model, Groups(into=8))[1]) == [8]
