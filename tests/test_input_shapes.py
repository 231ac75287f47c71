"""Inputs of odd shapes: half of the axes open, several inputs of one grid, strange batches, images read in a branch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

import convrewrite as cr
from convrewrite.errors import Refused, UsageError
from helpers import Net


def session(model: onnx.ModelProto | Path | str) -> ort.InferenceSession:
    """A session of the plain model, which knows nothing of what is tested."""
    content = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    return ort.InferenceSession(content, providers=["CPUExecutionProvider"])


def lines(*dims: int | str) -> onnx.ModelProto:
    """A classifier of text lines [N, 3, 16, W], or with the channels last: convolution, mean over the map, matrix."""
    net = Net(*dims)
    x = "x" if dims[1] == 3 else net.Transpose("x", perm=[0, 3, 1, 2])
    pooled = net.GlobalAveragePool(net.Relu(net.conv(x, 8, 3, 3)))
    return net.model(net.fc(net.Flatten(pooled), 5))


HALF_OPEN = {
    "width": ((1, 3, 16, "W"), (16, 32), "NCHW"),
    "height": ((1, 3, "H", 16), (32, 16), "NCHW"),
    "both last": ((1, 16, "W", 3), (16, 32), "NHWC"),
    "first, last": ((1, "H", 16, 3), (32, 16), "NHWC"),
    "batch": (("N", 3, 16, "W"), (16, 32), "NCHW"),
}


@pytest.fixture(params=HALF_OPEN, ids=str)
def half_open(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, tuple[int, ...], str]:
    """A file, the size that its open axis of 32 makes, and its axes."""
    dims, size, axes = HALF_OPEN[request.param]
    path = tmp_path / "lines.onnx"
    onnx.save(lines(*dims), path)
    return path, size, axes


@pytest.mark.parametrize("dynamic_batch", [False, True])
@pytest.mark.parametrize("whole", [False, True], ids=["open axis", "whole image"])
def test_fcn_takes_a_window_in_each_spelling(
    half_open: tuple[Path, tuple[int, ...], str], whole: bool, dynamic_batch: bool
) -> None:
    path, size, axes = half_open
    target = path.with_name("any.onnx")
    result = cr.fcn(path, window=size if whole else 32, dynamic_batch=dynamic_batch)
    result.save(target)
    assert result.window is not None
    assert (result.window.size, result.window.axes) == (size, axes)
    shape = [{"N": 1, "C": 3, "H": size[0] + 2, "W": size[1] + 3}[letter] for letter in axes]
    image = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    cells = session(target).run(None, {"x": image})[0]
    assert cells.shape == (1, 5, 3, 4)
    first = axes.index("H")
    crop = image[(slice(None),) * first + (slice(2, 2 + size[0]), slice(1, 1 + size[1]))]
    want = session(path).run(None, {"x": np.ascontiguousarray(crop)})[0]
    np.testing.assert_allclose(cells[:, :, 2, 1], want, rtol=1e-4, atol=1e-4)


def test_every_command_takes_a_size_in_each_spelling(half_open: tuple[Path, tuple[int, ...], str]) -> None:
    path, size, _ = half_open
    for given in (32, size):
        found = cr.inspect(path, size=given)
        conv = next(layer for layer in found.layers if layer.cost.op == "Conv")
        assert conv.input == (1, 3, *size)
        assert cr.verify(path, path, sizes=[given]).passed
        assert cr.bench(path, path, sizes=[given], seconds=0.01, memory=False, sets=1)
        opened = cr.transform(path, "open-batch", size=given)
        assert opened.verification is None or opened.verification.passed


def test_fixing_the_new_input_keeps_what_is_fixed(tmp_path: Path) -> None:
    source, target = tmp_path / "lines.onnx", tmp_path / "wide.onnx"
    onnx.save(lines(1, 3, 16, "W"), source)
    cr.fcn(source, window=32, size=64).save(target)
    assert session(target).get_inputs()[0].shape == [1, 3, 16, 64]
    cr.fcn(source, window=32, size=(20, 64)).save(target)
    assert session(target).get_inputs()[0].shape == [1, 3, 20, 64]


def test_what_contradicts_the_fixed_extent_is_named(half_open: tuple[Path, tuple[int, ...], str]) -> None:
    path, size, _ = half_open
    wrong = tuple(extent + (4 if extent == 16 else 0) for extent in size)
    own = "x".join("?" if extent == 32 else "16" for extent in size)
    for dynamic_batch in (False, True):
        with pytest.raises(UsageError, match=r"window=\(.*\) does not fit: input 'x' is fixed at") as error:
            cr.fcn(path, window=wrong, dynamic_batch=dynamic_batch)
        assert own in str(error.value)
        assert str(size) in str(error.value)
    with pytest.raises(UsageError, match=r"does not fit: input 'x' is fixed at \S*16"):
        cr.inspect(path, size=wrong)
    with pytest.raises(UsageError, match=r"does not fit: input 'x' is fixed at \S*16"):
        cr.verify(path, path, sizes=[wrong])


def test_channels_that_are_known_are_not_called_open(half_open: tuple[Path, tuple[int, ...], str]) -> None:
    path, _, _ = half_open
    with pytest.raises(Refused) as refused:
        cr.fcn(path)
    assert refused.value.reason == "fcn/window-needed"


@pytest.mark.parametrize("dims", [(1, "C", 16, 32), (1, "C", "H", "W")])
def test_channels_that_are_open_are_called_so(dims: tuple[int | str, ...], tmp_path: Path) -> None:
    model = lines(1, 3, 16, 32)
    for dim, extent in zip(model.graph.input[0].type.tensor_type.shape.dim, dims, strict=True):
        if isinstance(extent, str):
            dim.dim_param = extent
    onnx.save(model, tmp_path / "open.onnx")
    with pytest.raises(Refused, match="number of channels"):
        cr.fcn(tmp_path / "open.onnx")


# Several inputs on one grid ------------------------------------------------------------------------------------------


def scores(net: Net, map_: str) -> onnx.ModelProto:
    """Classes of a map: its mean, and a matrix."""
    return net.model(net.fc(net.Flatten(net.GlobalAveragePool(net.Relu(map_))), 5))


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


# Batches and sizes that are written in odd ways ----------------------------------------------------------------------


def written(model: onnx.ModelProto, places: dict[int, int | str | None]) -> onnx.ModelProto:
    """The model with some dimensions of its input, and the batch of its output, written like that."""
    dims = model.graph.input[0].type.tensor_type.shape.dim
    fields = [(dims[axis], value) for axis, value in places.items()]
    fields += [(model.graph.output[0].type.tensor_type.shape.dim[0], places[0])] if 0 in places else []
    for dim, value in fields:
        dim.Clear()
        if isinstance(value, int):
            dim.dim_value = value
        elif value is not None:
            dim.dim_param = value
    return model


ODD = {
    "minus one": {0: -1},
    "no name": {0: None},
    "a name with spaces": {0: "batch size"},
    "the symbol of the height": {0: "N", 2: "N"},
    "one symbol for all": {0: "N", 2: "N", 3: "N"},
    "all minus one": {0: -1, 2: -1, 3: -1},
}


@pytest.mark.parametrize("name", ODD)
def test_a_batch_in_odd_writing_is_an_open_batch(name: str, tmp_path: Path) -> None:
    model = written(lines(1, 3, 16, 16), ODD[name])
    onnx.save(model, tmp_path / "in.onnx")
    open_size = None if len(ODD[name]) == 1 else 16
    result = cr.fcn(tmp_path / "in.onnx", window=open_size, dynamic_batch=True)
    result.save(tmp_path / "any.onnx")
    images = np.random.default_rng(0).standard_normal((2, 3, 17, 19)).astype(np.float32)
    cells = session(tmp_path / "any.onnx").run(None, {"x": images})[0]
    want = session(model).run(None, {"x": np.ascontiguousarray(images[..., 1:17, 3:19])})[0]
    np.testing.assert_allclose(cells[..., 1, 3], want, rtol=1e-4, atol=1e-4)
    assert cr.inspect(tmp_path / "in.onnx", size=open_size).macs
    assert cr.verify(tmp_path / "in.onnx", tmp_path / "in.onnx", sizes=[16] if open_size else []).passed


@pytest.mark.parametrize("size", [(16, 20), ("H", "W")])
def test_pixels_as_they_come_from_a_camera(size: tuple[int | str, int | str], tmp_path: Path) -> None:
    net = Net("N", *size, 3)
    image = net.Transpose(net.Cast("x", to=1), perm=[0, 3, 1, 2])
    model = scores(net, net.conv(image, 8, 3, 3))
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    onnx.save(model, tmp_path / "in.onnx")
    result = cr.fcn(tmp_path / "in.onnx", window=(16, 20))
    result.save(tmp_path / "any.onnx")
    assert result.window is not None
    assert result.window.axes == "NHWC"
    image = np.random.default_rng(0).integers(0, 256, (1, 19, 22, 3), np.uint8)
    cells = session(tmp_path / "any.onnx").run(None, {"x": image})[0]
    want = session(model).run(None, {"x": np.ascontiguousarray(image[:, 2:18, 1:21])})[0]
    np.testing.assert_allclose(cells[..., 2, 1], want, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("dims", "words"), [({0: 0}, "has a dimension of size 0"), (None, "has no shape, not even a number of axes")]
)
def test_the_remedy_for_an_input_without_a_shape_can_be_followed(dims, words: str, tmp_path: Path) -> None:
    model = lines(1, 3, 16, 16)
    if dims is None:
        model.graph.input[0].type.tensor_type.ClearField("shape")
    else:
        written(model, dims)
    onnx.save(model, tmp_path / "in.onnx")
    with pytest.raises(UsageError, match=words) as error:
        cr.fcn(tmp_path / "in.onnx", window=16)
    exec(
        str(error.value).partition("model.graph")[1] + str(error.value).partition("model.graph")[2],
        {**globals(), "model": model},
    )
    if dims == {0: 0}:
        model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "N"
    onnx.save(model, tmp_path / "in.onnx")
    assert cr.fcn(tmp_path / "in.onnx", window=16).changed


# Images that are read in a branch ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", ["Constant nodes", "initializers of the branch", "initializers of the model"])
def test_what_branches_hold_is_counted_and_named(stored: str, tmp_path: Path) -> None:
    outer: list[onnx.TensorProto] = []

    def branch(tag: str) -> onnx.GraphProto:
        weight = onnx.numpy_helper.from_array(np.ones((5, 3, 16, 16), np.float32), f"w_{tag}")
        nodes = [helper.make_node("Conv", ["x", weight.name], [f"y_{tag}"])]
        inner = [weight] if stored == "initializers of the branch" else []
        if stored == "Constant nodes":
            nodes.insert(0, helper.make_node("Constant", [], [weight.name], value=weight))
        elif not inner:
            outer.append(weight)
        result = helper.make_tensor_value_info(f"y_{tag}", onnx.TensorProto.FLOAT, [1, 5, 1, 1])
        return helper.make_graph(nodes, tag, [], [result], inner)

    choice = helper.make_node("If", ["rate"], ["y"], name="choice", then_branch=branch("a"), else_branch=branch("b"))
    graph = helper.make_graph(
        [choice],
        "g",
        [
            helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, 16, 16]),
            helper.make_tensor_value_info("rate", onnx.TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 5, 1, 1])],
        outer,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, tmp_path / "in.onnx")
    assert cr.inspect(tmp_path / "in.onnx").file.parameters == 2 * 5 * 3 * 16 * 16
    with pytest.raises(Refused, match="If 'choice' reads the image inside a subgraph"):
        cr.fcn(tmp_path / "in.onnx")
