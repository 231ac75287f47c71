"""What `apply` refuses, by name: what no crop shows, and what does not fit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from tiled_nets import loaded, open_net, opened, padded, run, session, tiled

import convrewrite as cr
from convrewrite import models
from convrewrite.errors import Refused, UsageError
from convrewrite.tiling.survey import outline, survey
from nets import Net


def se_net(net: Net) -> str:
    x = net.conv("x", 4, 3, 3, pads=[1, 1, 1, 1])
    return net.conv(net.Mul(x, net.Sigmoid(net.GlobalAveragePool(x))), 3, 1, 1)


def instance_norm(net: Net) -> str:
    return net.InstanceNormalization(net.conv("x", 4, 3, 3), net.ints(4), net.ints(4))


def over_rows(net: Net) -> str:
    return net.Softmax(net.conv("x", 4, 3, 3), axis=2)


def pooled(net: Net) -> str:
    return net.Flatten(net.GlobalAveragePool(net.conv("x", 4, 3, 3)))


def coordinates(net: Net) -> str:
    """Row numbers of the map, made from its shape."""
    x = net.conv("x", 4, 3, 3)
    rows = net.Range(net.const(0), net.Gather(net.Shape(x), net.const(2), axis=0), net.const(1))
    line = net.Reshape(net.Cast(rows, to=1), net.const([1, 1, -1, 1]))
    return net.Add(x, line)


REFUSED: dict[str, tuple[Callable[[Net], str], str]] = {
    "squeeze-excite": (se_net, "apply/whole-map"),
    "instance-norm": (instance_norm, "apply/whole-map"),
    "softmax-over-rows": (over_rows, "apply/whole-map"),
    "pooled": (pooled, "apply/not-a-map"),
    "coordinates": (coordinates, "apply/position"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    build, code = REFUSED[name]
    net = open_net()
    with pytest.raises(Refused, match=code) as caught:
        survey(opened(net.model(build(net))), (40, 40))
    assert caught.value.reason == code


def test_other_inputs_and_batches() -> None:
    net = open_net()
    net.input("v", 1, 4, 1, 1)
    with pytest.raises(Refused, match=r"input 'v'.*apply/other-input"):
        outline(opened(net.model(net.Add(net.conv("x", 4, 3, 3), "v"))))
    net = Net(2, 3, 48, 48)
    with pytest.raises(Refused, match="apply/fixed-batch"):
        survey(opened(net.model(net.conv("x", 4, 3, 3))), (40, 40))


def test_a_model_of_one_size() -> None:
    """Its crops have that size; unpadded nets can be moved against the border of the image, padded ones cannot."""
    model = cr.fcn(models.lenet5_path(), size=(64, 48), verify=False).model
    seen = survey(model, (133, 96))
    image = np.random.default_rng(0).random((1, 133, 96), np.float32)
    got, _ = tiled(model, seen, image, (4, 4))
    free = cr.fcn(models.lenet5_path(), verify=False).model
    name = next(iter(got))
    want = run(session(free), seen.image, image[None])[name][0]
    np.testing.assert_allclose(got[name][:, : want.shape[1]], want, atol=1e-5)
    net = Net(1, 3, 32, 32)
    stuck = survey(loaded(net.model(padded(net))), (61, 47))
    with pytest.raises(ValueError, match="no crop of 32 pixels"):
        tiled(loaded(net.model(padded(net))), stuck, np.zeros((3, 61, 47), np.float32), (2, 2))


def test_images_that_are_too_small() -> None:
    model = cr.fcn(models.lenet5_path(), verify=False).model
    with pytest.raises(UsageError, match="smaller than the model's window"):
        survey(model, (31, 400))
    with pytest.raises(UsageError, match="the image has 1 spatial axis,"):
        survey(model, (64,))


def test_names_of_outputs() -> None:
    net = open_net()
    x = net.conv("x", 4, 3, 3)
    model = opened(net.model(net.Relu(x), x))
    assert list(survey(model, (20, 20), [x]).geometry.outputs) == [x]
    with pytest.raises(UsageError, match="no output 'nope'"):
        survey(model, (20, 20), ["nope"])
