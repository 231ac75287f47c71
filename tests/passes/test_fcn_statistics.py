"""Statistics pooling: means and deviations are all of one window, or all of the whole map."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import onnx
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from helpers import Net, check_lifted, convert, run

Statistic = Callable[[Net, str, Sequence[int]], str]
"""Adds a statistic of a map over some of its axes, without those axes."""


def cells(net: Net, x: str, axes: Sequence[int]) -> int:
    return int(np.prod([net.shape(x)[axis] for axis in axes]))


def difference(net: Net, x: str, axes: Sequence[int]) -> str:
    return str(net.Sub(x, net.reduce("ReduceMean", x, axes)))


def torch_std(net: Net, x: str, axes: Sequence[int], unbiased: bool = True) -> str:
    """As torch.std is exported: the number of cells is read from the shape."""
    gone = difference(net, x, axes)
    variance = net.reduce("ReduceMean", net.Mul(gone, gone), axes, keepdims=0)
    if unbiased:
        picked = net.Gather(net.Shape(x), net.const(list(axes)), axis=0)
        count = net.Cast(net.ReduceProd(picked, keepdims=0), to=1)
        variance = net.Div(net.Mul(variance, count), net.Sub(count, net.const(np.float32(1))))
    return str(net.Sqrt(variance))


def by_power(net: Net, x: str, axes: Sequence[int]) -> str:
    squared = net.Pow(difference(net, x, axes), net.const(np.float32(2)))
    return str(net.Sqrt(net.Add(net.reduce("ReduceMean", squared, axes, 0), net.const(np.float32(1e-5)))))


def by_sum(net: Net, x: str, axes: Sequence[int]) -> str:
    gone = net.Sub(net.reduce("ReduceMean", x, axes), x)
    total = net.reduce("ReduceSum", net.Mul(gone, gone), axes, 0)
    return str(net.Sqrt(net.Div(total, net.const(np.float32(cells(net, x, axes) - 1)))))


def by_mean_from_a_sum(net: Net, x: str, axes: Sequence[int]) -> str:
    mean = net.Div(net.reduce("ReduceSum", x, axes), net.const(np.float32(cells(net, x, axes))))
    gone = net.Identity(net.Sub(x, mean))
    return str(net.reduce("ReduceMean", net.Mul(gone, gone), axes, 0))


def by_square_sum(net: Net, x: str, axes: Sequence[int]) -> str:
    return str(net.reduce("ReduceSumSquare", difference(net, x, axes), axes, 0))


def by_norm(net: Net, x: str, axes: Sequence[int]) -> str:
    return str(net.reduce("ReduceL2", net.Abs(difference(net, x, axes)), axes, 0))


def clipped(net: Net, x: str, axes: Sequence[int]) -> str:
    half = net.Mul(net.const(np.float32(0.5)), difference(net, x, axes))
    variance = net.reduce("ReduceMean", net.Mul(half, half), axes, 0)
    return str(net.Sqrt(net.Max(variance, net.const(np.float32(0.05)))))


def two_moments(net: Net, x: str, axes: Sequence[int]) -> str:
    """The mean of the squares less the square of the mean: two pools of one window."""
    mean = net.reduce("ReduceMean", x, axes, 0)
    return str(net.Sub(net.reduce("ReduceMean", net.Mul(x, x), axes, 0), net.Mul(mean, mean)))


FORMS: dict[str, Statistic] = {
    "torch": torch_std,
    "torch-biased": functools.partial(torch_std, unbiased=False),
    "power-and-epsilon": by_power,
    "sum": by_sum,
    "mean-from-a-sum": by_mean_from_a_sum,
    "square-sum": by_square_sum,
    "norm": by_norm,
    "clipped": clipped,
    "two-moments": two_moments,
}


def sound(length: int = 17, opset: int = 13) -> tuple[Net, str]:
    """A trunk over time without padding, [1, 5, length - 6]."""
    net = Net(1, 3, length, opset=opset)
    return net, net.Relu(net.conv(net.Relu(net.conv("x", 4, 3)), 5, 3, dilations=[2]))


def picture(size: tuple[int, int] = (8, 9), opset: int = 13, stride: int = 1) -> tuple[Net, str]:
    """A trunk over an image without padding."""
    net = Net(1, 2, *size, opset=opset)
    return net, net.Relu(net.conv("x", 4, 3, 3, strides=[stride, stride]))


def pooled(net: Net, x: str, statistic: Statistic, axes: Sequence[int]) -> onnx.ModelProto:
    """Mean and statistic side by side, and a fully connected layer."""
    mean = net.reduce("ReduceMean", x, axes, 0)
    joined = net.Concat(net.Flatten(mean), net.Flatten(statistic(net, x, axes)), axis=1)
    return net.model(net.fc(joined, 4))


@pytest.mark.parametrize("opset", [9, 13, 18])
@pytest.mark.parametrize("form", FORMS)
def test_over_time(form: str, opset: int) -> None:
    check_lifted(pooled(*sound(opset=opset), FORMS[form], [2]), exact=False)


@pytest.mark.parametrize("axes", [(2, 3), (2,), (3,)], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_over_rows_columns_or_both(form: str, axes: tuple[int, ...]) -> None:
    check_lifted(pooled(*picture(), FORMS[form], axes), exact=False)


@pytest.mark.parametrize("length", range(8, 24))
def test_any_number_of_cells(length: int) -> None:
    check_lifted(pooled(*sound(length), torch_std, [2]), exact=False)


def test_a_stride() -> None:
    check_lifted(pooled(*picture((11, 13), stride=2), torch_std, [2, 3]), exact=False)


def test_over_channels_as_well() -> None:
    net, x = picture()
    gone = net.Sub(x, net.reduce("ReduceMean", x, [1, 2, 3]))
    variance = net.reduce("ReduceMean", net.Mul(gone, gone), [1, 2, 3], 0)
    check_lifted(net.model(net.fc(net.Reshape(variance, net.const([1, 1])), 3)), exact=False)


def test_over_a_joined_axis() -> None:
    net, x = picture()
    rows = net.Reshape(x, net.const([1, 4, 42]))
    check_lifted(pooled(net, rows, torch_std, [2]), exact=False)


def test_global_pools() -> None:
    net, x = picture()
    gone = net.Sub(x, net.GlobalAveragePool(x))
    variance = net.GlobalAveragePool(net.Mul(gone, gone))
    padded = net.AveragePool(net.Mul(gone, gone), kernel_shape=[8, 8], pads=[1, 1, 1, 0], count_include_pad=1)
    check_lifted(net.model(net.fc(net.Flatten(net.Concat(variance, padded, axis=1)), 3)), exact=False)


def test_channels_last() -> None:
    net = Net(1, 8, 9, 2)
    x = net.Transpose(net.conv(net.Transpose("x", perm=[0, 3, 1, 2]), 4, 3, 3), perm=[0, 2, 3, 1])
    check_lifted(pooled(net, x, torch_std, [1, 2]), exact=False)


def test_variance_along_time_then_mean_along_frequency() -> None:
    net, x = picture()
    gone = net.Sub(x, net.reduce("ReduceMean", x, [3]))
    check_lifted(net.model(net.fc(net.reduce("ReduceMean", net.Mul(gone, gone), [2, 3], 0), 3)), exact=False)


def test_about_another_value_than_the_mean() -> None:
    """The square about the maximum of the window: its variance, and the square of the gap."""
    net, x = sound()
    gone = net.Sub(x, net.reduce("ReduceMax", x, [2]))
    check_lifted(net.model(net.fc(net.reduce("ReduceMean", net.Mul(gone, gone), [2], 0), 3)), exact=False)


def test_two_layers_of_different_stride() -> None:
    net = Net(1, 3, 21)
    first = net.Relu(net.conv("x", 4, 3))
    second = net.Relu(net.conv(first, 5, 3, strides=[2]))
    both = [net.Concat(net.reduce("ReduceMean", y, [2], 0), torch_std(net, y, [2]), axis=1) for y in (first, second)]
    check_lifted(net.model(net.fc(net.Concat(*both, axis=1), 4)), exact=False)


def test_more_samples_than_one() -> None:
    net = Net("N", 3, 17)
    check_lifted(pooled(net, net.Relu(net.conv("x", 4, 3)), by_power, [2]), exact=False)


# Numerics, against float64 ---------------------------------------------------------------------------------------


def deviations(values: np.ndarray, length: int, ddof: int = 0) -> np.ndarray:
    """Standard deviations of every window, in float64."""
    return sliding_window_view(values.astype(np.float64), length, axis=-1).std(-1, ddof=ddof)


def bare(length: int) -> onnx.ModelProto:
    """The standard deviation over time, and nothing else: [1, 2, length] to [1, 2]."""
    net = Net(1, 2, length)
    x = net.Conv("x", net.const(np.eye(2, dtype=np.float32)[:, :, None]))
    return net.model(torch_std(net, x, [2]))


@pytest.mark.parametrize("level", [0.0, 1e3, -1e5])
@pytest.mark.parametrize("length", [7, 52, 100])
def test_nothing_cancels_at_a_high_level(level: float, length: int) -> None:
    _, new = convert(bare(length))
    image = (level + np.random.default_rng(length).standard_normal((1, 2, 3 * length))).astype(np.float32)
    (got,) = run(new, {"x": image}).values()
    want = deviations(image, length, ddof=1)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=2e-6)


def test_a_quiet_window_of_a_loud_image() -> None:
    """What a shift by the mean of the whole map would lose: the variance is 1e-12 of the squared distance from it."""
    length = 40
    rng = np.random.default_rng(0)
    quiet, loud = rng.uniform(0.25, 0.250001, (1, 2, 100)), rng.uniform(-1000, 1000, (1, 2, 100))
    image = np.concatenate([quiet, loud], axis=2).astype(np.float32)
    _, new = convert(bare(length))
    (got,) = run(new, {"x": image}).values()
    want = deviations(image, length, ddof=1)
    np.testing.assert_allclose(got, want, rtol=1e-4)
    assert want.min() < 1e-6


def test_a_constant_window_has_no_deviation() -> None:
    image = np.concatenate([np.full((1, 2, 60), 1000.1), np.ones((1, 2, 30))], axis=2).astype(np.float32)
    (got,) = run(convert(bare(29))[1], {"x": image}).values()
    assert np.array_equal(got[..., :32], np.zeros((1, 2, 32)))
    assert np.isfinite(got).all()


def test_pixels_outside_of_a_window_do_not_count() -> None:
    image = np.random.default_rng(0).standard_normal((1, 2, 60)).astype(np.float32)
    _, new = convert(bare(20))
    (before,) = run(new, {"x": image}).values()
    image[..., 30:] = np.inf
    (after,) = run(new, {"x": image}).values()
    assert np.array_equal(before[..., :11], after[..., :11])


# All of the whole map --------------------------------------------------------------------------------------------


def third_moment(net: Net, x: str, axes: Sequence[int]) -> str:
    gone = difference(net, x, axes)
    return str(net.reduce("ReduceMean", net.Mul(net.Mul(gone, gone), gone), axes, 0))


def skewness(net: Net, x: str, axes: Sequence[int]) -> str:
    gone = difference(net, x, axes)
    deviation = net.Sqrt(net.reduce("ReduceMean", net.Mul(gone, gone), axes))
    return str(net.reduce("ReduceMean", net.Pow(net.Div(gone, deviation), net.const(np.float32(3))), axes, 0))


def mean_absolute(net: Net, x: str, axes: Sequence[int]) -> str:
    return str(net.reduce("ReduceMean", net.Abs(difference(net, x, axes)), axes, 0))


HIGHER: dict[str, Statistic] = {
    "third-moment": third_moment,
    "skewness": skewness,
    "mean-absolute-deviation": mean_absolute,
}


@pytest.mark.parametrize("form", HIGHER)
def test_a_head_of_other_moments_is_refused(form: str) -> None:
    result, _ = convert(pooled(*sound(), HIGHER[form], [2]))
    assert not result.changed
    (site,) = result.sites
    assert (site.outcome, site.reason) == ("refused", "fcn/whole-map-statistic")


@pytest.mark.parametrize("form", HIGHER)
def test_no_output_of_a_window_beside_one_of_the_map(form: str) -> None:
    net, x = sound()
    mean, other = (net.fc(y, 2) for y in (net.reduce("ReduceMean", x, [2], 0), HIGHER[form](net, x, [2])))
    (site,) = convert(net.model(mean, other))[0].sites
    assert (site.outcome, site.reason) == ("refused", "fcn/whole-map-statistic")


def gated(form: Statistic) -> onnx.ModelProto:
    """A gate per channel, made of the mean and a statistic of the map."""
    net, x = picture((9, 9))
    both = net.Concat(net.Flatten(net.reduce("ReduceMean", x, [2, 3], 0)), net.Flatten(form(net, x, [2, 3])), axis=1)
    gate = net.Reshape(net.Sigmoid(net.fc(both, 4)), net.const([1, 4, 1, 1]))
    return net.model(net.fc(net.Flatten(net.Mul(x, gate)), 3))


@pytest.mark.parametrize("form", [torch_std, by_power, third_moment, skewness, mean_absolute])
def test_a_gate_of_statistics_is_of_the_whole_map(form: Statistic) -> None:
    """The oracle is the original's own trunk on the larger image: its counts of cells are those of that image, too."""
    check_lifted(gated(form), exact=False, equivalence="native-size")


def test_a_normalisation_by_hand_is_of_the_whole_map() -> None:
    net, x = picture((9, 9))
    gone = difference(net, x, [2, 3])
    variance = net.reduce("ReduceMean", net.Mul(gone, gone), [2, 3])
    normal = net.Div(gone, net.Sqrt(net.Add(variance, net.const(np.float32(1e-5)))))
    shifted = net.Relu(net.Add(net.Mul(normal, net.ints(4, 1, 1)), net.ints(4, 1, 1)))
    model = net.model(net.fc(net.Flatten(net.GlobalAveragePool(shifted)), 3))
    conversion = check_lifted(model, exact=False, equivalence="native-size")
    kept = [site.detail for site in conversion.result.sites if "whole map" in site.detail and "stays" in site.detail]
    assert len(kept) == 2
