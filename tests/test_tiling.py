"""Tiles give what one pass over the whole image gives: by ONNX Runtime on the whole image, on nets of every kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from campaigns import campaign
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiled_nets import check_tiles, loaded, open_net, opened, padded, run, session, tiled

import convrewrite as cr
from convrewrite import models
from convrewrite.engine.rewrite import Lifting, run_pass
from convrewrite.engine.windows import Field
from convrewrite.errors import Refused, UsageError
from convrewrite.model_io import Model
from convrewrite.passes.fcn import Fcn
from convrewrite.tiling import REASONS
from convrewrite.tiling.geometry import Cells, Geometry, Pixels
from convrewrite.tiling.recipe import Recipe
from convrewrite.tiling.survey import outline, survey
from nets import Net
from random_nets import nets

# Fully convolutional nets that are not made by fcn


def residual(net: Net) -> str:
    x = net.conv("x", 4, 3, 3, pads=[1, 1, 1, 1])
    y = net.conv(net.Relu(net.conv(x, 4, 3, 3, pads=[1, 1, 1, 1], strides=[2, 2])), 4, 3, 3, pads=[1, 1, 1, 1])
    return net.Add(net.conv(x, 4, 1, 1, strides=[2, 2]), y)


def same(net: Net) -> str:
    x = net.conv("x", 4, 4, 3, auto_pad="SAME_UPPER", strides=[2, 2])
    x = net.AveragePool(x, kernel_shape=[4, 4], strides=[2, 2], auto_pad="SAME_LOWER", count_include_pad=1)
    return net.conv(x, 3, 2, 2, auto_pad="SAME_UPPER")


def counted(net: Net) -> str:
    """A mean over the cells that are there: fewer at the border."""
    return net.AveragePool(net.conv("x", 4, 3, 3), kernel_shape=[4, 4], strides=[2, 2], pads=[2, 2, 2, 2])


def ceiling(net: Net) -> str:
    x = net.MaxPool(net.conv("x", 4, 3, 3), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
    return net.MaxPool(x, kernel_shape=[3, 3], strides=[3, 3], ceil_mode=1)


def transposed(net: Net) -> str:
    x = net.conv("x", 4, 3, 3, pads=[1, 1, 1, 1], strides=[2, 2])
    x = net.ConvTranspose(net.Relu(x), net.ints(4, 4, 4, 4), strides=[2, 2], pads=[1, 1, 1, 1])
    return net.conv(x, 3, 3, 3, pads=[1, 1, 1, 1])


def transposed_far(net: Net) -> str:
    x = net.MaxPool("x", kernel_shape=[4, 4], strides=[4, 4])
    return net.ConvTranspose(x, net.ints(3, 2, 7, 5), strides=[4, 4], dilations=[2, 1], output_padding=[1, 2])


def u_net(net: Net) -> str:
    fine = net.Relu(net.conv("x", 4, 3, 3, pads=[1, 1, 1, 1]))
    coarse = net.Relu(net.conv(net.MaxPool(fine, kernel_shape=[2, 2], strides=[2, 2]), 4, 3, 3, pads=[1, 1, 1, 1]))
    up = net.Resize(coarse, "", net.const(np.float32([1, 1, 2, 2])), mode="nearest")
    return net.conv(net.Concat(fine, up, axis=1), 3, 3, 3, pads=[1, 1, 1, 1])


def bilinear(net: Net) -> str:
    x = net.conv("x", 4, 3, 3, pads=[1, 1, 1, 1], strides=[2, 2])
    return net.Resize(x, "", net.const(np.float32([1, 1, 2, 2])), mode="linear")


def cubic(net: Net) -> str:
    x = net.conv("x", 4, 3, 3, pads=[1, 1, 1, 1], strides=[2, 2])
    return net.Resize(
        x, "", net.const(np.float32([1, 1, 2, 2])), mode="cubic", coordinate_transformation_mode="asymmetric"
    )


def shuffled(net: Net) -> str:
    return net.DepthToSpace(net.conv("x", 8, 3, 3, pads=[1, 1, 1, 1], strides=[2, 2]), blocksize=2)


def sliced(net: Net) -> str:
    """Every second cell from the third on, and a border taken off by negative pads."""
    x = net.Slice(
        net.conv("x", 4, 3, 3), net.const([2, 1]), net.const([2**62, 2**62]), net.const([2, 3]), net.const([2, 2])
    )
    return net.Pad(x, net.const([0, 0, -1, 0, 0, 0, 0, 2]))


BUILT: dict[str, tuple[Callable[[Net], str], tuple[int, int]]] = {
    "padded": (padded, (61, 47)),
    "residual": (residual, (45, 38)),
    "same": (same, (63, 50)),
    "same-odd": (same, (64, 53)),
    "counted": (counted, (41, 44)),
    "ceiling": (ceiling, (58, 61)),
    "transposed": (transposed, (48, 40)),
    "transposed-odd": (transposed, (47, 41)),
    "transposed-far": (transposed_far, (40, 52)),
    "u-net": (u_net, (48, 40)),
    "bilinear": (bilinear, (48, 41)),
    "cubic": (cubic, (48, 42)),
    "shuffled": (shuffled, (47, 40)),
    "sliced": (sliced, (47, 40)),
}
ROUNDING = ("bilinear", "cubic", "counted")


@pytest.mark.parametrize("step", [(3, 5), (1, 4), (8, 7)])
@pytest.mark.parametrize("name", BUILT)
def test_nets_of_every_kind(name: str, step: tuple[int, int]) -> None:
    build, size = BUILT[name]
    net = open_net()
    model = opened(net.model(build(net)))
    reads = check_tiles(model, size, step, exact=name not in ROUNDING)
    assert reads > 1


@pytest.mark.parametrize(("rank", "size", "step"), [(1, (333,), (7,)), (3, (19, 22, 17), (2, 3, 2))])
def test_one_and_three_dimensions(rank: int, size: tuple[int, ...], step: tuple[int, ...]) -> None:
    net = open_net(rank)
    x = net.conv("x", 4, *(3,) * rank, pads=[1] * (2 * rank), strides=[2] * rank)
    check_tiles(opened(net.model(net.conv(net.Relu(x), 3, *(3,) * rank))), size, step)


def test_channels_last_and_outputs_of_several_strides() -> None:
    net = Net(1, 48, 48, 3, opset=13)
    x = net.Relu(net.conv(net.Transpose("x", perm=[0, 3, 1, 2]), 4, 3, 3, pads=[1, 1, 1, 1]))
    coarse = net.conv(net.MaxPool(x, kernel_shape=[2, 2], strides=[2, 2]), 5, 3, 3, strides=[3, 3])
    fine = net.Transpose(net.conv(x, 2, 1, 1), perm=[0, 2, 3, 1])
    model = net.model(coarse, fine)
    for info, dims in zip((*model.graph.input, *model.graph.output), ((1, 2), (2, 3), (1, 2)), strict=True):
        for dim in dims:
            info.type.tensor_type.shape.dim[dim].dim_param = f"{info.name}_{dim}"
    seen = survey(loaded(model), (61, 50))
    assert seen.geometry.unit == (6, 6)
    assert [seen.values[name] for name in (coarse, fine)] == [5, 2]
    check_tiles(loaded(model), (61, 50), (2, 3))


# Nets that fcn has made


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"stride": 1},
        {"stride": 2},
        {"upsample": "nearest"},
        {"upsample": "bilinear", "stride": 2, "softmax": "last"},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(32, 32), (33, 61), (101, 77)])
def test_the_trained_net(how: dict[str, Any], size: tuple[int, int]) -> None:
    model = cr.fcn(models.lenet5_path(), verify=False, **how).model
    step = (17, 30) if "upsample" in how else (3, 4)
    check_tiles(model, size, step, exact=False)


SMALL = ("vgg16", "resnet18", "mobilenet_v1", "googlenet", "densenet121", "shufflenet")


@pytest.mark.parametrize("how", [{}, {"stride": 8}, {"upsample": "bilinear"}], ids=str)
@pytest.mark.parametrize("name", SMALL)
def test_built_networks(name: str, how: dict[str, Any]) -> None:
    original = models.build(name, width=0.125, size=64)
    model = cr.fcn(loaded(original), verify=False, **how).model
    check_tiles(model, (333, 271), (160, 150) if "upsample" in how else (3, 2), exact=False)


@pytest.mark.slow
@campaign(80, 240)
@pytest.mark.parametrize("padded", [False, True])
def test_random_networks(padded: bool, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(data=st.data())
    def run_all(data: st.DataObject) -> None:
        check_drawn(padded, data)

    run_all()


def check_drawn(padded: bool, data: st.DataObject) -> None:
    """What fcn makes of a random net: refused by name, or exact."""
    drawn = data.draw(nets(2, padded))
    original = loaded(drawn.model)
    result = run_pass(Fcn(), original.graph)
    if not result.changed:
        return
    model = replace(original, graph=result.graph, metadata=dict(result.metadata))
    window = result.evidence_of(Lifting).window
    size = window.image_size((4, 5))
    step = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    try:
        survey(model, size)
    except (Refused, UsageError) as error:
        known = isinstance(error, UsageError) or error.reason in REASONS
    else:
        known = True
        check_random(model, size, step)
    assert known


def check_random(model: Model, size: Sequence[int], step: Sequence[int]) -> None:
    """As `check_tiles`, without asking for outputs that differ."""
    seen = survey(model, size)
    image = np.random.default_rng(0).integers(-3, 4, (seen.channels, *size)).astype(np.float32)
    want = run(session(model), seen.image, Recipe.of(seen).feed(image))
    got, _ = tiled(model, seen, image, step)
    for name, places in seen.places.items():
        whole = np.moveaxis(want[name], places, range(-len(places), 0)).reshape(got[name].shape)
        limit = 1e-5 * max(1e-30, float(np.abs(whole[np.isfinite(whole)]).max(initial=0)))
        np.testing.assert_allclose(got[name], whole, atol=limit)


@pytest.mark.parametrize("what", ["halo", "period", "offset"])
def test_a_wrong_geometry_is_seen(what: str) -> None:
    """The comparison above can fail: a halo one pixel short, a crop of another phase, cells of another place."""
    net = open_net()
    model = opened(net.model(padded(net)))
    seen = survey(model, (61, 47))
    axes = next(iter(seen.geometry.outputs.values()))
    name = next(iter(seen.geometry.outputs))
    geometry = seen.geometry
    if what == "period":
        wrong = replace(geometry, period=(1, 1))
    else:
        fields = [
            replace(a.field, size=a.field.size - 2 * a.stride)
            if what == "halo"
            else replace(a.field, offset=a.field.offset + 8)
            for a in axes
            if isinstance(a, Cells)
        ]
        wrong = replace(geometry, outputs={name: tuple(Cells(a.count, f) for a, f in zip(axes, fields, strict=True))})
    image = np.random.default_rng(0).integers(-3, 4, (3, 61, 47)).astype(np.float32)
    want = run(session(model), seen.image, image[None])[name][0]
    if what == "period":  # the crop begins at a place where no cell of the whole begins, and has one less
        with pytest.raises(ValueError, match="could not broadcast"):
            tiled(model, replace(seen, geometry=wrong), image, (1, 2))
        return
    got, _ = tiled(model, replace(seen, geometry=wrong), image, (1, 2))
    assert not np.array_equal(got[name], want)


# Arithmetic by hand


def test_the_crop_of_a_tile() -> None:
    """Stride 4, a field of 11 that begins 3 pixels ahead: cells 5 and 6 of an image of 62 read pixels 17 to 32."""
    axis = Cells(15, Field(4, 11, -3))
    geometry = Geometry((62,), (4,), {"y": (axis,)})
    assert axis.needs(5, 7) == (17, 32)
    assert geometry.crop({"y": ((5, 7),)}) == ((16, 34),)  # from a multiple of 4; 62 - 34 is one
    assert geometry.crop({"y": ((0, 1),)}) == ((0, 14),)  # no less than a field
    assert geometry.counts((2,)) == (8,)
    assert geometry.tile((7,), (2,)).cells == {"y": ((14, 15),)}


def test_the_crop_of_pixels() -> None:
    """Pixel 20 lies between the centres of two windows of 8 pixels, 4 apart; the last pixel holds the last window."""
    axis = Pixels(62, Cells(14, Field(4, 8, 0)), 8, 0)
    first, last = axis.needs(20, 21)
    assert (first, last) == (16, 28)  # (20 - 3.5) / 4 = 4.125: cells 4 and 5
    assert axis.needs(61, 62) == (52, 62)
    assert axis.needs(0, 1) == (0, 8)


def test_metadata_is_read() -> None:
    """The window's axes say where the image's are, also of a net with channels last."""
    net = Net("n", 16, 16, 3, opset=13)
    x = net.Transpose(net.conv(net.Transpose("x", perm=[0, 3, 1, 2]), 4, 3, 3), perm=[0, 2, 3, 1])
    original = net.model(net.fc(net.Reshape(x, net.const([-1, 784])), 5))
    model = cr.fcn(loaded(original), verify=False).model
    assert outline(model) == (2, 3)
    check_tiles(model, (40, 37), (5, 4), exact=False)
