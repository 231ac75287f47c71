"""Batches, sizes and types that are written in odd ways, and images that are read in a branch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from input_nets import lines, scores, session
from onnx import helper

import convrewrite as cr
from convrewrite.errors import Refused, UsageError
from helpers import Net


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
