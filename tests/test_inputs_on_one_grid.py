"""Several inputs on one grid of pixels: a mask, coordinates, a second signal beside the image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from input_nets import scores, session

import convrewrite as cr
from convrewrite.errors import Refused, UsageError
from helpers import Net


def second_signal() -> onnx.ModelProto:
    net = Net("N", 1, 24)
    net.input("spec", "N", 3, 24)
    return scores(net, net.conv(net.Concat("x", "spec", axis=1), 8, 3))


def mask() -> onnx.ModelProto:
    net = Net(1, 3, 14, 17)
    net.input("mask", 1, 1, 14, 17)
    return scores(net, net.conv(net.Mul("x", "mask"), 8, 3, 3, strides=[2, 1]))


def mask_without_channels() -> onnx.ModelProto:
    net = Net("N", 3, 14, 17)
    net.input("mask", "N", 14, 17)
    return scores(net, net.conv(net.Mul("x", net.with_axes("Unsqueeze", "mask", [1])), 8, 3, 3))


def mask_of_a_fixed_batch() -> onnx.ModelProto:
    net = Net(2, 3, 14, 17)
    net.input("mask", 2, 14, 17)
    return scores(net, net.conv(net.Mul("x", net.with_axes("Unsqueeze", "mask", [1])), 8, 3, 3))


def mask_of_every_image() -> onnx.ModelProto:
    net = Net("N", 3, 14, 17)
    net.input("mask", 14, 17)
    return scores(net, net.conv(net.Mul("x", "mask"), 8, 3, 3))


def mask_of_features() -> onnx.ModelProto:
    net = Net(1, 3, 14, 17)
    net.input("mask", 1, 1, 14, 17)
    small = net.MaxPool("mask", kernel_shape=[3, 3], strides=[2, 2])
    return scores(net, net.Mul(net.conv("x", 8, 3, 3, strides=[2, 2]), small))


def coordinates_of_an_open_image() -> onnx.ModelProto:
    net = Net("N", 3, "height", "width")
    net.input("grid", "N", 2, "height", "width")
    return scores(net, net.conv(net.Concat("x", "grid", axis=1), 8, 3, 3))


def depth_with_its_own_trunk() -> onnx.ModelProto:
    net = Net(1, 3, 14, 17)
    net.input("depth", 1, 1, 14, 17)
    return scores(net, net.Add(net.conv("x", 6, 3, 3), net.conv("depth", 6, 3, 3)))


def channels_last() -> onnx.ModelProto:
    net = Net(1, 14, 17, 3)
    net.input("mask", 1, 14, 17, 1)
    return scores(net, net.conv(net.Transpose(net.Mul("x", "mask"), perm=[0, 3, 1, 2]), 8, 3, 3))


def one_first(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same with its inputs in the other order."""
    inputs = list(model.graph.input)[::-1]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    return model


GRIDS = {
    "second signal": (second_signal, {"spec": "NCL"}),
    "mask": (mask, {"mask": "NCHW"}),
    "mask of rank 3": (mask_without_channels, {"mask": "NHW"}),
    "mask of rank 3 first": (lambda: one_first(mask_without_channels()), {"mask": "NHW"}),
    "mask of a fixed batch": (mask_of_a_fixed_batch, {"mask": "NHW"}),
    "mask of every image": (mask_of_every_image, {"mask": "HW"}),
    "mask of features": (mask_of_features, {"mask": "NCHW"}),
    "coordinates": (coordinates_of_an_open_image, {"grid": "NCHW"}),
    "depth": (depth_with_its_own_trunk, {"depth": "NCHW"}),
    "channels last": (channels_last, {"mask": "NHWC"}),
}


def at_place(array: np.ndarray, axes: str, starts: dict[str, int], size: dict[str, int]) -> np.ndarray:
    """The crop of an array with these axes."""
    index = tuple(slice(starts[c], starts[c] + size[c]) if c in starts else slice(None) for c in axes)
    return np.ascontiguousarray(array[index])


@pytest.mark.parametrize("name", GRIDS)
def test_inputs_on_one_grid_are_lifted_together(name: str, tmp_path: Path) -> None:
    build, beside = GRIDS[name]
    model = build()
    onnx.save(model, tmp_path / "in.onnx")
    window = (14, 17) if name == "coordinates" else None
    result = cr.fcn(tmp_path / "in.onnx", window=window)
    found = result.window
    assert found is not None
    assert (dict(found.beside), found.equivalence) == (beside, "windows")
    result.save(tmp_path / "any.onnx")
    rng = np.random.default_rng(1)
    sizes = dict(
        zip(found.letters, (s + 2 * t + 1 for s, t in zip(found.size, found.stride, strict=True)), strict=True)
    )
    feeds = {
        info.name: rng.standard_normal(
            [
                sizes.get(c, d if isinstance(d, int) else 1)
                for c, d in zip(found.images[info.name], info.shape, strict=True)
            ]
        ).astype(np.float32)
        for info in session(tmp_path / "any.onnx").get_inputs()
    }
    cells = session(tmp_path / "any.onnx").run(None, feeds)[0]
    old = session(model)
    native = dict(zip(found.letters, found.size, strict=True))
    places = list(np.ndindex(*found.positions(list(sizes.values()))))
    assert len(places) > 2
    for place in places:
        starts = {c: i * s for c, i, s in zip(found.letters, place, found.stride, strict=True)}
        crop = {key: at_place(array, found.images[key], starts, native) for key, array in feeds.items()}
        want = old.run(None, crop)[0]
        np.testing.assert_allclose(cells[(slice(None), slice(None), *place)], want, rtol=1e-4, atol=1e-4)


def test_a_padded_net_of_two_inputs_is_held_against_its_own_trunk(tmp_path: Path) -> None:
    net = Net(1, 3, 14, 17)
    net.input("mask", 1, 1, 14, 17)
    onnx.save(scores(net, net.conv(net.Mul("x", "mask"), 8, 3, 3, pads=[1, 1, 1, 1])), tmp_path / "in.onnx")
    result = cr.fcn(tmp_path / "in.onnx", dynamic_batch=True)
    assert result.verification is not None
    larger = [case for case in result.verification.cases if "trunk" in case.name]
    assert larger
    assert all(case.status == "passed" for case in larger)


@pytest.mark.parametrize("more", [{"stride": 1}, {"upsample": "bilinear"}, {"size": (18, 21)}, {"dynamic_batch": True}])
def test_what_fcn_does_besides_takes_both_inputs(more: dict[str, object], tmp_path: Path) -> None:
    onnx.save(mask(), tmp_path / "in.onnx")
    result = cr.fcn(tmp_path / "in.onnx", **more)
    assert result.changed
    assert result.verification is not None
    assert result.verification.passed


def test_larger_images_of_the_user_come_with_what_lies_beside_them(tmp_path: Path) -> None:
    onnx.save(mask(), tmp_path / "in.onnx")
    result = cr.fcn(tmp_path / "in.onnx")
    result.save(tmp_path / "any.onnx")
    rng = np.random.default_rng(0)
    data = {"x": rng.random((2, 3, 18, 20), np.float32), "mask": rng.random((2, 1, 18, 20), np.float32)}
    found = cr.verify(tmp_path / "in.onnx", tmp_path / "any.onnx", data=data)
    assert found.passed
    assert any("18x20" in case.name for case in found.cases)
    with pytest.raises(UsageError, match="mask"):
        cr.verify(tmp_path / "in.onnx", tmp_path / "any.onnx", data={**data, "mask": data["mask"][..., :-1]})


def siamese() -> onnx.ModelProto:
    net = Net(1, 3, 14, 17)
    net.input("other", 1, 3, 14, 17)
    pooled = [net.Flatten(net.GlobalAveragePool(net.conv(x, 6, 3, 3))) for x in ("x", "other")]
    return net.model(net.fc(net.Concat(*pooled, axis=1), 5))


def smaller_mask() -> onnx.ModelProto:
    net = Net(1, 3, 14, 17)
    net.input("mask", 1, 1, 12, 15)
    return scores(net, net.Mul(net.conv("x", 8, 3, 3), "mask"))


def shorter_signal() -> onnx.ModelProto:
    net = Net(1, 1, 24)
    net.input("spec", 1, 3, 22)
    return scores(net, net.Concat(net.conv("x", 8, 3), "spec", axis=1))


@pytest.mark.parametrize("build", [siamese, smaller_mask, shorter_signal])
def test_inputs_of_another_grid_are_named_as_what_they_are(build, tmp_path: Path) -> None:
    model = build()
    onnx.save(model, tmp_path / "in.onnx")
    with pytest.raises(Refused) as refused:
        cr.fcn(tmp_path / "in.onnx")
    assert refused.value.reason == "fcn/several-images"
    assert model.graph.input[1].name in str(refused.value)
    assert "constant" not in str(refused.value)


def test_a_damaged_entry_for_the_other_inputs_is_refused(tmp_path: Path) -> None:
    onnx.save(mask(), tmp_path / "in.onnx")
    result = cr.fcn(tmp_path / "in.onnx")
    path = result.save(tmp_path / "any.onnx")
    model = onnx.load(path)
    for entry in model.metadata_props:
        if entry.key == "convrewrite.window":
            entry.value = entry.value.replace('"mask": "NCHW"', '"mask": "NCLW"')
    onnx.save(model, path)
    with pytest.raises(UsageError, match="damaged"):
        cr.verify(tmp_path / "in.onnx", path)
