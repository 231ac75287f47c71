"""Inputs in every layout, the options `window` and `size`, and the facts about a window, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from helpers import Net, check_lifted


def head(net: Net, map_: str, classes: int = 4) -> str:
    """The map flattened, and two fully connected layers."""
    return net.fc(net.Relu(net.fc(net.Flatten(map_), 5)), classes)


@pytest.mark.parametrize("batch", [1, 2, "batch"])
def test_channels_last_input(batch: int | str) -> None:
    net = Net(batch, 9, 12, 2)
    x = net.Relu(net.conv(net.Transpose("x", perm=[0, 3, 1, 2]), 3, 3, 3))
    x = net.MaxPool(x, kernel_shape=[2, 2], strides=[2, 2])
    made = check_lifted(net.model(net.fc(net.Flatten(net.Transpose(x, perm=[0, 2, 3, 1])), 4)))
    assert made.window.axes == "NHWC"
    dims = [d.dim_param or d.dim_value for d in made.model.graph.input[0].type.tensor_type.shape.dim]
    assert dims == [batch, "height", "width", 2]


@pytest.mark.parametrize("axes", ["CHW", "HWC"])
def test_image_without_batch_axis(axes: str) -> None:
    net = Net(*((2, 9, 12) if axes == "CHW" else (9, 12, 2)))
    x = "x" if axes == "CHW" else net.Transpose("x", perm=[2, 0, 1])
    x = net.conv(net.with_axes("Unsqueeze", x, [0]), 3, 3, 3)
    check_lifted(net.model(head(net, x)))


def test_image_reshaped_at_once() -> None:
    net = Net("batch", 9, 12)
    x = net.conv(net.Reshape("x", net.const([-1, 1, 9, 12])), 3, 3, 3)
    check_lifted(net.model(head(net, x)))


def test_grey_image_reshaped_to_channels_last() -> None:
    net = Net("batch", 9, 12, 1)
    x = net.conv(net.Reshape("x", net.const([-1, 1, 9, 12])), 3, 3, 3)
    check_lifted(net.model(head(net, x)))


@pytest.mark.parametrize("axes", ["NCL", "NLC"])
def test_one_dimension(axes: str) -> None:
    net = Net("batch", *((3, 17) if axes == "NCL" else (17, 3)))
    x = "x" if axes == "NCL" else net.Transpose("x", perm=[0, 2, 1])
    x = net.MaxPool(net.Relu(net.conv(x, 4, 4)), kernel_shape=[3], strides=[2])
    made = check_lifted(net.model(head(net, net.conv(x, 3, 2, strides=[2]))))
    assert (made.window.axes, made.window.size, made.window.stride) == (axes, (17,), (4,))


def test_raw_audio() -> None:
    net = Net("batch", 33)
    x = net.conv(net.with_axes("Unsqueeze", "x", [1]), 3, 5, strides=[4])
    made = check_lifted(net.model(head(net, x)))
    assert (made.window.axes, made.window.stride) == ("NL", (4,))


@pytest.mark.parametrize("axes", ["NCDHW", "NDHWC"])
def test_three_dimensions(axes: str) -> None:
    net = Net(1, *((2, 5, 7, 6) if axes == "NCDHW" else (5, 7, 6, 2)))
    x = "x" if axes == "NCDHW" else net.Transpose("x", perm=[0, 4, 1, 2, 3])
    x = net.MaxPool(net.conv(x, 3, 2, 3, 2), kernel_shape=[2, 2, 2], strides=[1, 2, 1])
    made = check_lifted(net.model(head(net, x)))
    assert made.window.stride == (1, 2, 1)


@pytest.mark.parametrize("dims", [(1, 2, "h", "w"), ("n", 2, "h", "w"), (1, "h", "w", 2)])
def test_window_of_a_symbolic_input(dims: tuple[int | str, ...]) -> None:
    net = Net(*dims)
    x = "x" if dims[1] == 2 else net.Transpose("x", perm=[0, 3, 1, 2])
    flat = net.Flatten(net.conv(x, 3, 3, 3))
    scores = net.Gemm(flat, net.ints(210, 4), net.ints(4))
    made = check_lifted(net.model(scores), window=(9, 12), exact=False)
    assert made.window.size == (9, 12)


@pytest.mark.parametrize("size", [(9, 12), (13, 15), (14, 12)])
def test_fixed_new_size(size: tuple[int, int]) -> None:
    net = Net(1, 2, 9, 12)
    x = net.MaxPool(net.conv("x", 3, 2, 2), kernel_shape=[2, 2], strides=[2, 1])
    made = check_lifted(net.model(head(net, x)), size=size)
    assert [d.dim_value for d in made.model.graph.input[0].type.tensor_type.shape.dim] == [1, 2, *size]


def test_fixed_batch() -> None:
    net = Net(3, 2, 9, 12)
    x = net.conv("x", 3, 3, 3)
    flat = net.Reshape(x, net.const([3, 210]))
    made = check_lifted(net.model(net.fc(flat, 4)))
    assert [d.dim_value for d in made.model.graph.output[0].type.tensor_type.shape.dim][:2] == [3, 4]


def test_mean_per_channel_is_subtracted() -> None:
    net = Net(1, 9, 12, 2)
    x = net.Div(net.Sub("x", net.ints(2)), net.const(np.float32([2, 4])))
    x = net.conv(net.Transpose(x, perm=[0, 3, 1, 2]), 3, 3, 3)
    check_lifted(net.model(head(net, x)), exact=False)


def test_mean_image_that_is_the_same_everywhere() -> None:
    net = Net(1, 2, 9, 12)
    mean = np.broadcast_to(net.numbers_of(2, 1, 1), (2, 9, 12))
    check_lifted(net.model(head(net, net.conv(net.Sub("x", net.const(np.array(mean))), 3, 3, 3))))


# Facts, worked out by hand ------------------------------------------------------------------------------------------


def test_facts_of_an_unpadded_net() -> None:
    """conv 3 (rf 3), pool 2/2 (rf 4, stride 2), conv 3 (rf 8), full map 3 x 1."""
    net = Net(1, 2, 14, 10)
    x = net.MaxPool(net.conv("x", 3, 3, 3), kernel_shape=[2, 2], strides=[2, 2])
    scores = head(net, net.conv(x, 3, 3, 3))
    window = check_lifted(net.model(scores)).window
    assert (window.input, window.axes, window.size, window.stride) == ("x", "NCHW", (14, 10), (2, 2))
    assert window.offset == (0, 0)
    assert window.receptive_field == (14, 10)
    assert window.outputs[scores].size == (1, 1)


def test_facts_of_a_net_that_sees_less_than_its_window() -> None:
    net = Net(1, 2, 9, 13)
    x = net.conv("x", 3, 3, 3, strides=[4, 4])
    window = check_lifted(net.model(head(net, x))).window
    assert (window.stride, window.receptive_field) == ((4, 4), (7, 11))


def test_facts_of_a_padded_net() -> None:
    net = Net(1, 2, 9, 12)
    model = net.model(head(net, net.conv("x", 3, 3, 5, pads=[1, 2, 1, 2], name="first")))
    window = check_lifted(model, equivalence="native-size").window
    assert (window.size, window.receptive_field) == ((9, 12), (11, 16))
    assert window.why == "Conv sees zero padding at the native size ('first')"


def test_trailing_pads_stay_where_the_net_is_padded_anyway() -> None:
    """They keep the two branches of a residual Add of one size at other image sizes."""
    net = Net(1, 2, 9, 12)
    x = net.conv("x", 3, 3, 3, pads=[1, 1, 1, 1])
    left = net.conv(x, 3, 3, 2, strides=[3, 2], pads=[0, 0, 2, 1], name="left")
    model = net.model(head(net, left))
    made = check_lifted(model, equivalence="native-size")
    (conv,) = (n for n in made.model.graph.node if n.name == "left")
    assert {a.name: helper.get_attribute_value(a) for a in conv.attribute}["pads"] == [0, 0, 2, 1]
