"""`convrewrite apply`: from images of every kind to files of every kind, against one pass over the whole image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tifffile
import zarr
from apply_images import LENET, MAKERS, as_zarr, stored
from cli_models import run
from PIL import Image

import convrewrite as cr
from convrewrite.errors import UsageError

# Images of every kind


@pytest.mark.parametrize("name", MAKERS)
def test_images_of_every_kind(tmp_path: Path, model: str, pixels: np.ndarray, whole: np.ndarray, name: str) -> None:
    MAKERS[name](tmp_path / name, pixels)
    made = cr.apply(model, tmp_path / name, tmp_path / "o.zarr", scale=255, tile=(11,), workers=1)
    assert made.tiles == 4 * 3
    np.testing.assert_allclose(stored(tmp_path / "o.zarr"), whole, atol=1e-6)


def test_one_tile_is_told_as_the_whole_image(tmp_path: Path, model: str, pixels: np.ndarray) -> None:
    """What it reads beyond its cells is no other tile's: there is no share to tell."""
    np.save(tmp_path / "im.npy", pixels)
    lines = {}
    for name, tile in (("one", 1000), ("many", 16)):
        words = ["--scale", "255", "--tile", str(tile), "--workers", "1"]
        done = run("apply", model, "im.npy", f"{name}.zarr", *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        (lines[name],) = (line for line in done.stderr.decode().splitlines() if line.startswith("tiles "))
    assert lines["one"] == "tiles      1, the whole image"
    assert "% of what was read belongs to one tile alone" in lines["many"]


def test_an_address_of_fsspec(tmp_path: Path, model: str, pixels: np.ndarray, whole: np.ndarray) -> None:
    as_zarr(tmp_path / "im.zarr", pixels, 3)
    made = cr.apply(model, f"file://{tmp_path}/im.zarr", f"file://{tmp_path}/o.zarr", scale=255, tile=(20,), workers=1)
    assert made.finished.tiles == made.tiles
    np.testing.assert_allclose(stored(tmp_path / "o.zarr"), whole, atol=1e-6)


# Files of every kind


def test_scores_and_what_they_mean(tmp_path: Path, model: str, pixels: np.ndarray, whole: np.ndarray) -> None:
    np.save(tmp_path / "im.npy", pixels)
    words = ["--scale", "255", "--tile", "16x16", "--check", "20", "--original", LENET, "--report", "r.json"]
    done = run("apply", model, "im.npy", "o.zarr", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(stored(tmp_path / "o.zarr"), whole, atol=1e-6)
    group = zarr.open_group(tmp_path / "o.zarr", mode="r")
    attrs = dict(group["probabilities"].attrs)
    assert (attrs["stride"], attrs["offset"], attrs["window"]) == ([4, 4], [0, 0], [32, 32])
    assert np.asarray(group["done"][:]).all()
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["schema"] == "convrewrite.apply/1"
    assert {check["status"] for check in report["checks"]} == {"passed"}
    assert any(check["name"].startswith("the original on its crops") for check in report["checks"])
    assert b"million pixels per second" in done.stderr


@pytest.mark.parametrize("top1", [False, True])
def test_numpy_and_tiff(tmp_path: Path, model: str, pixels: np.ndarray, whole: np.ndarray, top1: bool) -> None:
    np.save(tmp_path / "im.npy", pixels)
    want = whole.argmax(axis=0).astype(np.uint8) if top1 else whole
    how = {"scale": 255, "tile": (20,), "workers": 1, "top1": top1}
    cr.apply(model, tmp_path / "im.npy", tmp_path / "o.npy", **how)
    np.testing.assert_allclose(np.load(tmp_path / "o.npy"), want, atol=1e-6)
    cr.apply(model, tmp_path / "im.npy", tmp_path / "o.tif", **how)
    np.testing.assert_allclose(tifffile.imread(tmp_path / "o.tif"), want, atol=1e-6)
    with tifffile.TiffFile(tmp_path / "o.tif") as file:
        note = json.loads(file.pages[0].description)
    assert note["stride"] == [4, 4]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["im.npy", "o.npy", "o.tif"]


def test_a_pyramid(tmp_path: Path) -> None:
    """Of pixels as wide as 1300, each level half of the one before, by slicing."""
    model = cr.fcn(LENET, upsample="nearest", verify=False)
    model.save(tmp_path / "pixels.onnx")
    image = np.random.default_rng(1).random((60, 1300), np.float32)
    np.save(tmp_path / "im.npy", image)
    cr.apply(tmp_path / "pixels.onnx", tmp_path / "im.npy", tmp_path / "o.tif", top1=True, workers=1, tile=(60, 500))
    with tifffile.TiffFile(tmp_path / "o.tif") as file:
        levels = [level.asarray() for level in file.series[0].levels]
    assert [level.shape for level in levels] == [(60, 1300), (30, 650), (15, 325)]
    np.testing.assert_array_equal(levels[1], levels[0][::2, ::2])
    session = ort.InferenceSession(str(tmp_path / "pixels.onnx"), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(levels[0], session.run(None, {"image": image[None, None]})[0][0].argmax(axis=0))


def test_a_picture(tmp_path: Path, model: str, pixels: np.ndarray, whole: np.ndarray) -> None:
    np.save(tmp_path / "im.npy", pixels)
    cr.apply(model, tmp_path / "im.npy", tmp_path / "o.png", scale=255, chosen=3, workers=1)
    drawn = np.asarray(Image.open(tmp_path / "o.png")).astype(int).sum(axis=-1)
    assert drawn.shape == whole.shape[1:]
    best, worst = np.unravel_index(whole[3].argmax(), drawn.shape), np.unravel_index(whole[3].argmin(), drawn.shape)
    assert (drawn[best], drawn[worst]) == (drawn.max(), drawn.min())
    done = run("apply", model, "im.npy", "p.png", cwd=tmp_path)
    assert (done.returncode, b"--class K" in done.stderr) == (2, True)


def test_lazy_arrays(model: str, pixels: np.ndarray, whole: np.ndarray) -> None:
    import dask.array as da

    lazy = cr.apply(model, da.from_array(pixels, chunks=(64, 50)), tile=9, scale=255)["probabilities"]
    assert (lazy.shape, lazy.dtype, lazy.numblocks) == (whole.shape, np.float32, (1, 4, 4))
    np.testing.assert_allclose(lazy[:, 3:20, 5:].compute(scheduler="synchronous"), whole[:, 3:20, 5:], atol=1e-6)


def test_lazy_arrays_with_axes_of_one_entry(model: str, pixels: np.ndarray, whole: np.ndarray) -> None:
    import dask.array as da

    lazy = cr.apply(model, da.from_array(pixels[None, None]), scale=255)["probabilities"]
    np.testing.assert_allclose(lazy[:, :5].compute(scheduler="synchronous"), whole[:, :5], atol=1e-6)
    with pytest.raises(UsageError, match="take one plane out of it first"):
        cr.apply(model, da.from_array(np.stack([pixels, pixels])[None, :, None].repeat(2, 0)))
    with pytest.raises(UsageError, match="is a path"):
        cr.apply(model, "im.npy")
    with pytest.raises(UsageError, match="an array has no path"):
        cr.apply(model, pixels, "o.npy")


# Pixels on their way


def test_channels_mean_and_deviation(tmp_path: Path) -> None:
    """By hand in numpy; the picture has an alpha channel, and the model wants blue first."""
    from nets import Net

    net = Net(1, 3, 48, 48)
    built = net.model(net.conv("x", 2, 3, 3, strides=[2, 2]))
    for info in (*built.graph.input, *built.graph.output):
        for dim in (2, 3):
            info.type.tensor_type.shape.dim[dim].dim_param = f"{info.name}{dim}"
    onnx.save(built, tmp_path / "m.onnx")
    rgba = np.random.default_rng(0).integers(0, 256, (61, 70, 4)).astype(np.uint8)
    Image.fromarray(rgba).save(tmp_path / "im.png")
    words = ["--channels", "2,1,0", "--scale", "255", "--mean", "0.4,0.5,0.6", "--std", "0.2"]
    done = run("apply", "m.onnx", "im.png", "o.npy", *words, "--workers", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    feed = (rgba[..., [2, 1, 0]] / np.float32(255) - np.float32([0.4, 0.5, 0.6])) / np.float32(0.2)
    session = ort.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    want = session.run(None, {"x": feed.transpose(2, 0, 1)[None].astype(np.float32)})[0][0]
    np.testing.assert_allclose(np.load(tmp_path / "o.npy"), want, atol=1e-4)
    onnx.helper.set_model_props(
        built,
        {
            "convrewrite.prepare": json.dumps(
                {"scale": 255, "mean": [0.4, 0.5, 0.6], "std": [0.2], "channels": [2, 1, 0]}
            )
        },
    )
    onnx.save(built, tmp_path / "told.onnx")
    cr.apply(tmp_path / "told.onnx", tmp_path / "im.png", tmp_path / "told.npy", workers=1)
    np.testing.assert_array_equal(np.load(tmp_path / "told.npy"), np.load(tmp_path / "o.npy"))
    onnx.helper.set_model_props(built, {"convrewrite.prepare": json.dumps({"scal": 255})})
    onnx.save(built, tmp_path / "typo.onnx")
    with pytest.raises(UsageError, match="has an unknown 'scal'"):
        cr.apply(tmp_path / "typo.onnx", tmp_path / "im.png", tmp_path / "typo.npy")
    done = run("apply", "m.onnx", "im.png", "x.npy", cwd=tmp_path)
    assert done.returncode == 2
    assert b"the image has 4 channels, the model takes 3; choose with --channels 0,1,2" in done.stderr
