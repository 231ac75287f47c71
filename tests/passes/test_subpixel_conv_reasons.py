"""Layers that subpixel-conv leaves alone: every reason is provoked, and the model stays as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from subpixel_nets import net_of, operators

from convrewrite import model_io
from convrewrite.acceptance import accept_all
from convrewrite.engine.rewrite import Context, Refusal
from convrewrite.passes.subpixel_conv import REASONS, SubpixelConv
from nets import Net
from rewriting import rewrite


def reason_of(model: onnx.ModelProto) -> str:
    """The code of the one site, which names its node; the model stays as it was."""
    result, made = rewrite(model, SubpixelConv(), accept_all)
    assert operators(made) == operators(model)
    (site,) = result.sites
    assert (site.outcome, site.reason in REASONS) == ("refused", True)
    assert f"'{next(node.name for node in model.graph.node if node.op_type == 'ConvTranspose')}'" in site.detail
    return site.reason.removeprefix("subpixel-conv/")


@pytest.mark.parametrize("place", [1, 2])
def test_a_weight_or_bias_that_is_fed(place: int) -> None:
    net = Net("N", 2, "H", "W")
    inputs = ["x", net.ints(2, 3, 3, 3), net.ints(3)]
    inputs[place] = net.input("fed", *((2, 3, 3, 3), (3,))[place - 1])
    assert reason_of(net.model(net.node("ConvTranspose", *inputs, strides=[2, 2]))) == "weight-not-constant"


def test_a_weight_of_another_type() -> None:
    net = Net("N", 2, "H", "W")
    weight = net.Cast(net.ints(2, 3, 3, 3), to=onnx.TensorProto.BFLOAT16)
    x = net.Cast("x", to=onnx.TensorProto.BFLOAT16)
    y = net.ConvTranspose(x, weight)
    model = net.model("x")
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info(y, onnx.TensorProto.BFLOAT16, None))
    model.opset_import[0].version = 22  # the first with bfloat16; ONNX Runtime does not have it on the CPU
    assert reason_of(model) == "weight-type"


@pytest.mark.parametrize("kernel", [(3,), (3, 3, 3)])
def test_a_line_and_a_volume(kernel: tuple[int, ...]) -> None:
    model = net_of(kernel, size=("N", "D", "H", "W")[: len(kernel) + 1], strides=[2] * len(kernel))
    assert reason_of(model) == "not-an-image"


def test_a_weight_that_is_no_kernel() -> None:
    net = Net("N", 2, *"ABCD")
    assert reason_of(net.model(net.ConvTranspose("x", net.ints(2, 3, 1, 1, 1, 1)), shapes={})) == "unknown-rank"


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_weight_that_is_no_number(number: float) -> None:
    net = Net("N", 2, "H", "W")
    weight = net.numbers_of(2, 3, 3, 3)
    weight[0, 0, 0, 0] = number
    assert reason_of(net.model(net.ConvTranspose("x", net.const(weight)))) == "nan-weight"


def test_a_quantized_weight_stays_quantized() -> None:
    net = Net("N", 2, "H", "W")
    stored = net.const(net.numbers_of(2, 3, 3, 3), dtype=np.int8)
    weight = net.DequantizeLinear(stored, net.const(0.5))
    assert reason_of(net.model(net.ConvTranspose("x", weight))) == "quantized"


def test_an_output_shape_of_an_open_map() -> None:
    assert reason_of(net_of(strides=[2, 2], output_shape=[8, 9])) == "open-map"
    assert reason_of(net_of(size=("N", 4, "W"), strides=[2, 2], output_shape=[8, 9])) == "open-map"


@pytest.mark.parametrize(
    "how", [{"kernel": (2, 3), "output_padding": [1, 1]}, {"kernel": (3, 4), "output_padding": [0, 1]}]
)
def test_an_auto_pad_that_is_read_in_two_ways(how: dict[str, Any]) -> None:
    assert reason_of(net_of(strides=[2, 2], auto_pad="SAME_UPPER", **how)) == "auto-pad"


@pytest.mark.parametrize(
    ("kernel", "strides", "dilations"),
    [((1, 2), [12, 12], [1, 1]), ((1, 2), [2**20, 1], [1, 1]), ((4, 3), [3, 1], [2**40, 1])],
)
def test_a_kernel_that_would_be_mostly_zeros(kernel: tuple[int, int], strides: list[int], dilations: list[int]) -> None:
    """Nothing of it is built: two of these would not fit into any memory."""
    (site,) = rewrite(net_of(kernel, strides=strides, dilations=dilations), SubpixelConv(), accept_all)[0].sites
    assert (site.outcome, site.reason.partition("/")[2]) == ("declined", "mostly-zeros")


@pytest.mark.parametrize("extent", [2**62, 2**63 - 1])
def test_a_map_of_any_claimed_extent(extent: int) -> None:
    """It runs nowhere; it is not for the pass to end with an error of its own."""
    model = net_of(strides=[2, 3])
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = extent
    result, _ = rewrite(model, SubpixelConv(), accept_all)
    assert result.changed


def test_a_weight_without_entries() -> None:
    """With groups, so that no extent of the new kernel follows from the others."""
    model = net_of(strides=[2, 2], group=3, bias=False)
    (weight,) = model.graph.initializer
    weight.CopyFrom(numpy_helper.from_array(np.zeros((0, 2, 3, 3), np.float32), weight.name))
    loaded = model_io.load(model.SerializeToString()).graph
    (node,) = SubpixelConv().candidates(loaded)
    refused = SubpixelConv().plan(Context.of(loaded), node)
    assert isinstance(refused, Refusal)
    assert refused.reason.code.removeprefix("subpixel-conv/") == "empty-weight"


def test_an_old_opset() -> None:
    assert reason_of(net_of(strides=[2, 2], opset=6)) == "opset"


def test_an_operator_of_that_name_from_elsewhere() -> None:
    model = net_of()
    model.graph.node[0].domain = "elsewhere"
    model.opset_import.append(onnx.helper.make_opsetid("elsewhere", 1))
    result, _ = rewrite(model, SubpixelConv(), accept_all)
    assert not result.sites


def test_every_reason_is_provoked_here() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert not [code for code in REASONS if f'"{code.removeprefix("subpixel-conv/")}"' not in text]
