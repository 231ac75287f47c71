"""What `verify` is given to compare at: types and indices, several sizes, and images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from faulty_nets import changed, check, network, scaled, weights
from onnx import TensorProto, helper, numpy_helper

from convrewrite.errors import UsageError
from convrewrite.running.sampling import Images, InputSpec


def lookup(rows: int) -> onnx.ModelProto:
    """Indices into a table of `rows`."""
    table = np.random.default_rng(0).standard_normal((rows, 4)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Reshape", ["ids", "flat"], ["i"]),
            helper.make_node("Gather", ["table", "i"], ["e"]),
            helper.make_node("Where", ["keep", "e", "zero"], ["k"]),
            helper.make_node("Cast", ["pixels"], ["p"], to=TensorProto.DOUBLE),
            helper.make_node("Cast", ["k"], ["d"], to=TensorProto.DOUBLE),
            helper.make_node("Add", ["d", "p"], ["s"]),
            helper.make_node("Add", ["s", "x"], ["y"]),
        ],
        "g",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, [1, 6]),
            helper.make_tensor_value_info("keep", TensorProto.BOOL, [6, 4]),
            helper.make_tensor_value_info("pixels", TensorProto.INT32, [6, 4]),
            helper.make_tensor_value_info("x", TensorProto.DOUBLE, [6, 4]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.DOUBLE, [6, 4])],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.array([6]), "flat"),
            numpy_helper.from_array(np.zeros((), np.float32), "zero"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


@pytest.mark.parametrize("rows", [1, 7])
def test_indices_stay_in_range_and_every_type_is_drawn(tmp_path, rows):
    from convrewrite.verification.ranges import integer_limits

    assert integer_limits(lookup(rows)) == {"ids": rows, "pixels": 256}
    assert check(tmp_path, lookup(rows), lookup(rows), samples=6).passed


def test_several_sizes_and_what_does_not_fit(tmp_path):
    def pooled(shape) -> onnx.ModelProto:
        graph = helper.make_graph(
            [helper.make_node("GlobalAveragePool", ["image"], ["y"])],
            "g",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        )
        graph.output[0].type.tensor_type.ClearField("shape")
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)

    free = pooled(["N", 3, "H", "W"])
    result = check(tmp_path, free, free, sizes=[(8, 8), (9, 12)], batch=2)
    assert [case.name for case in result.cases] == ["outputs at 8x8 batch 2", "outputs at 9x12 batch 2"]
    assert result.passed
    assert check(tmp_path, free, free, shapes={"image": (2, 3, 5, 7)}).passed
    with pytest.raises(UsageError, match=r"shapes={'image': \(2, 3, 5\)} does not fit"):
        check(tmp_path, free, free, shapes={"image": (2, 3, 5)})
    with pytest.raises(UsageError, match="shapes names 'img', which is no input; there are image"):
        check(tmp_path, free, free, shapes={"img": (2, 3, 5, 5)})
    with pytest.raises(UsageError, match="give size="):
        check(tmp_path, free, free)
    assert check(tmp_path, free, free, data={"image": np.ones((4, 3, 6, 5), np.float32)}).verdict == "vacuous"
    fixed = pooled([1, 3, 8, 8])
    with pytest.raises(UsageError, match=r"size=\(9, 9\) does not fit: no input is open"):
        check(tmp_path, fixed, fixed, size=(9, 9))
    with pytest.raises(UsageError, match="batch=2 does not fit"):
        check(tmp_path, fixed, fixed, batch=2)


def test_a_size_that_does_not_run_keeps_what_ran(tmp_path):
    """A kernel of 5 on a map of 4: the second size fails in the original itself."""
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, "H", "W"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1, "h", "w"])],
        [numpy_helper.from_array(np.arange(25, dtype=np.float32).reshape(1, 1, 5, 5), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    result = check(tmp_path, model, model, sizes=[(8, 8), (4, 4)])
    assert [case.status for case in result.cases] == ["passed"]
    assert result.verdict == "skipped"
    with pytest.raises(Exception, match=r"at 4x4; it ran at 8x8") as caught:
        result.check()
    assert caught.value.exit_code == 2


def save_images(folder: Path) -> np.ndarray:
    pil = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(1).integers(0, 256, (3, 10, 8, 3)).astype(np.uint8)
    folder.mkdir()
    for number, image in enumerate(pixels):
        pil.fromarray(image).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("no image")
    return pixels


def test_images(tmp_path):
    folder = tmp_path / "images"
    pixels = save_images(folder)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    spec = InputSpec("image", np.dtype(np.float32), (1, 3, 10, 8))
    samples = Images(folder, mean, std).samples([spec])
    assert [sample.source for sample in samples] == ["image 0.png", "image 1.png", "image 2.png"]
    want = ((pixels[1] / 255 - mean) / std).transpose(2, 0, 1)[None]
    np.testing.assert_allclose(samples[1].feeds["image"], want, rtol=1e-6)
    nhwc = Images(folder).samples([InputSpec("image", np.dtype(np.uint8), (3, 10, 8, 3))])
    np.testing.assert_array_equal(nhwc[0].feeds["image"], pixels)
    chw = Images(folder, layout="CHW", limit=1).samples([InputSpec("image", np.dtype(np.float32), (3, 10, 8))])
    assert chw[0].feeds["image"].shape == (3, 10, 8)
    gray = Images(folder).samples([InputSpec("image", np.dtype(np.float32), (1, 1, 20, 8))])
    assert gray[0].feeds["image"].shape == (1, 1, 20, 8)
    values = weights()
    assert check(tmp_path, network(values), network(values), data=Images(folder, mean, std)).passed
    assert not check(tmp_path, network(values), network(changed(values, w2=scaled)), data=Images(folder)).passed


def test_images_that_cannot_be_used(tmp_path):
    folder = tmp_path / "images"
    save_images(folder)
    spec = InputSpec("image", np.dtype(np.float32), (1, 3, 10, 8))
    for bad, text in [
        (Images(tmp_path / "none"), "there is no such folder"),
        (Images(tmp_path), "no image in it"),
        (Images(folder, mean=(0.5, 0.5)), "mean has 2 numbers, the input has 3 channels"),
        (Images(folder, layout="HWX"), "give its axes"),
        (Images(folder, std=(0.0,)), "std has a 0"),
    ]:
        with pytest.raises(UsageError, match=text):
            bad.samples([spec])
    with pytest.raises(UsageError, match="holds 3 images, no multiple of the batch 2"):
        Images(folder).samples([InputSpec("image", np.dtype(np.float32), (2, 3, 10, 8))])
    with pytest.raises(UsageError, match="has 5 channels"):
        Images(folder, layout="NCHW").samples([InputSpec("image", np.dtype(np.float32), (1, 5, 10, 8))])
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:40])
    with pytest.raises(UsageError, match=r"cannot read the image .*1\.png: ") as caught:
        Images(folder).samples([spec])
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
