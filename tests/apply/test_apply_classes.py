"""`convrewrite apply --top1` where scores are NaN: no class, in every kind of file, counted and told."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import tifffile
import zarr
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import convrewrite as cr
from convrewrite.tiling import colours
from convrewrite.tiling.checks import _wrong_classes
from convrewrite.tiling.store import best_class, class_type, no_class

SIZE = (40, 52)

Apply = Callable[..., subprocess.CompletedProcess[bytes]]


def scores(classes: int) -> onnx.ModelProto:
    """A cell per pixel; class c has the score of channel c % 3, less c / 1000: NaN where that channel is."""
    weight = np.zeros((classes, 3, 1, 1), np.float32)
    weight[np.arange(classes), np.arange(classes) % 3] = 1
    bias = -np.arange(classes, dtype=np.float32) / 1000
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"])],
        "scores",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, "h", "w"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, classes, "h", "w"])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def pixels() -> np.ndarray:
    """A block without values, and one where a single channel has none."""
    image = np.random.default_rng(0).normal(size=(3, *SIZE)).astype(np.float32)
    image[:, 5:12, 8:30] = np.nan
    image[2, 30:33, 40:44] = np.nan
    return image


def wanted(image: np.ndarray, classes: int, nothing: int) -> np.ndarray:
    """By hand."""
    every = np.stack([image[c % 3] - np.float32(c) / np.float32(1000) for c in range(classes)])
    best = np.where(np.isnan(every), -np.inf, every).argmax(axis=0)
    return np.where(np.isnan(image).any(axis=0), nothing, best)


@pytest.mark.parametrize(
    ("classes", "dtype", "nothing"), [(5, "uint8", 255), (255, "uint8", 255), (256, "uint16", 65535)]
)
def test_a_cell_whose_scores_are_nan_has_no_class(
    tmp_path: Path, apply: Apply, classes: int, dtype: str, nothing: int
) -> None:
    image = pixels()
    np.save(tmp_path / "im.npy", image)
    onnx.save(scores(classes), tmp_path / "m.onnx")
    words = ["--top1", "--tile", "16x16", "--workers", "1", "--layout", "CHW"]
    done = apply("m.onnx", "im.npy", "o.zarr", *words, "--check", "60", "--report", "r.json")
    assert done.returncode == 0, done.stderr
    want = wanted(image, classes, nothing)
    array = zarr.open_group(tmp_path / "o.zarr", mode="r")["y"]
    assert (array.dtype.name, array.attrs["no_class"]) == (dtype, nothing)
    np.testing.assert_array_equal(array[:], want)
    count = int((want == nothing).sum())
    assert count == 7 * 22 + 3 * 4
    text = f"{count} of {40 * 52:,} cells of 'y' have no class, because a score is NaN: they are {nothing}"
    assert text in done.stderr.decode()
    assert json.loads((tmp_path / "r.json").read_text())["without_class"] == {"y": count}


def test_every_kind_of_file(tmp_path: Path, apply: Apply) -> None:
    image = pixels()
    np.save(tmp_path / "im.npy", image)
    onnx.save(scores(5), tmp_path / "m.onnx")
    want = wanted(image, 5, 255)
    for name in ("o.npy", "o.tif", "o.png"):
        words = ["--top1", "--tile", "16x16", "--workers", "1", "--layout", "CHW", "--check", "60"]
        done = apply("m.onnx", "im.npy", name, *words)
        assert (done.returncode, b"have no class" in done.stderr) == (0, True), done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "o.npy"), want)
    with tifffile.TiffFile(tmp_path / "o.tif") as file:
        np.testing.assert_array_equal(file.pages[0].asarray(), want)
        assert json.loads(file.pages[0].description)["no_class"] == 255
    drawn = np.asarray(Image.open(tmp_path / "o.png"))
    np.testing.assert_array_equal((drawn == 0).all(axis=-1), want == 255)


def test_lazy_arrays_say_the_same() -> None:
    image = pixels()
    loaded = cr.load(scores(5).SerializeToString())
    lazy = cr.apply(loaded, image, layout="CHW", tile=16, top1=True)["y"]
    assert (lazy.dtype, lazy.shape) == (np.uint8, SIZE)
    np.testing.assert_array_equal(lazy.compute(scheduler="sync"), wanted(image, 5, 255))
    values = cr.apply(loaded, image, layout="CHW", tile=16)["y"].compute(scheduler="sync")
    np.testing.assert_array_equal(np.isnan(values).any(axis=0), np.isnan(image).any(axis=0))


def test_the_count_is_of_the_whole_after_a_resumed_run(tmp_path: Path, apply: Apply) -> None:
    """Tiles that were done before count too; what is not done yet is no class 0."""
    image = pixels()
    np.save(tmp_path / "im.npy", image)
    onnx.save(scores(5), tmp_path / "m.onnx")
    words = ["--top1", "--tile", "16x16", "--workers", "1", "--layout", "CHW"]
    assert apply("m.onnx", "im.npy", "o.zarr", *words).returncode == 0
    group = zarr.open_group(tmp_path / "o.zarr", mode="r+")
    (tmp_path / "o.zarr" / "y" / "c" / "2" / "3").unlink()
    group["done"][11] = 0
    assert (np.asarray(group["y"][32:, 48:]) == 255).all()
    done = apply("m.onnx", "im.npy", "o.zarr", *words, "--resume")
    assert (done.returncode, b"166 of 2,080 cells" in done.stderr) == (0, True), done.stderr


def test_numbers_of_classes() -> None:
    assert [class_type(n) for n in (2, 255, 256, 65535, 65536)] == ["uint8", "uint8", "uint16", "uint16", "int32"]
    assert [no_class(kind) for kind in ("uint8", "uint16", "int32")] == [255, 65535, 2**31 - 1]
    cells = np.array([[1, np.nan, np.inf, -np.inf], [2, 5, np.inf, -np.inf]], np.float16)
    assert best_class(cells, "uint8").tolist() == [1, 255, 0, 0]
    assert best_class(np.array([[1, 4], [3, 2]]), "uint8").tolist() == [1, 0]


def test_the_check_finds_a_class_where_there_is_none_and_none_where_there_is_one() -> None:
    want = np.array([[0.1, 0.9], [np.nan, 0.5], [0.1, 0.9], [np.nan, np.nan], [0.2, 0.1]], np.float32)
    got = np.array([1, 0, 255, 255, 7])
    assert _wrong_classes(got, want, 255, 1e-5).tolist() == [False, True, True, False, True]


def test_the_colours_are_those_of_matplotlib():
    """Where it is installed; a picture needs it no more, so what it draws is held here."""
    colormaps = pytest.importorskip("matplotlib").colormaps
    values = np.concatenate([np.linspace(0, 1, 5001), [-3.0, 7.0, 1 / 256, np.nextafter(1, 0)]])
    drawn = colormaps["inferno"](values, bytes=True)[..., :3].astype(int)
    assert np.abs(colours.of_values(values).astype(int) - drawn).max() <= 1  # releases of matplotlib round otherwise
    classes = np.arange(60, dtype=np.uint8).reshape(6, 10)
    assert (colours.of_classes(classes) == colormaps["tab20"](classes % 20, bytes=True)[..., :3]).all()


def test_the_ends_of_the_colours():
    assert colours.of_values(np.array([0.0, 1.0])).tolist() == [[0, 0, 3], [252, 254, 164]]
    assert colours.of_classes(np.array([0, 21])).tolist() == [[31, 119, 180], [174, 199, 232]]
