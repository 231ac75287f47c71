"""`convrewrite apply --resume` goes on with the same model over the same image, told by content, or says why not."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import zarr
from apply_images import as_tiff, as_zarr, stored
from cli_models import snapshot
from onnx import numpy_helper

import convrewrite as cr
from convrewrite.errors import UsageError

Apply = Callable[..., subprocess.CompletedProcess[bytes]]

WORDS = ("--scale", "255", "--tile", "8x8", "--workers", "1")
SIDE = 120


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE)).astype(np.uint8)


def half_done(folder: Path) -> Path:
    """The store as a run that was stopped after half of its tiles has left it."""
    path = folder / "o.zarr"
    group = zarr.open_group(path, mode="r+")
    done = np.asarray(group["done"][:])
    done[done.size // 2 :] = 0
    group["done"][:] = done
    shutil.rmtree(path / "probabilities" / "c" / "0" / "2", ignore_errors=True)
    return path


def one_pass(model: str, image: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": (image / np.float32(255))[None, None].astype(np.float32)})[0][0]


MAKERS = {
    "im.npy": np.save,
    "im.zarr": lambda path, pixels: as_zarr(path, pixels, 3),
    "im.tif": lambda path, pixels: as_tiff(path, pixels, "strips"),
}


@pytest.mark.parametrize("name", MAKERS)
def test_another_image_of_the_same_shape_is_refused(tmp_path: Path, apply: Apply, model: str, name: str) -> None:
    """Also where size and time of the file are the same, and where one pixel differs."""
    image, make = tmp_path / name, MAKERS[name]
    first, changed = picture(0), picture(0)
    changed[3, 4] ^= 1
    make(image, first)
    assert apply(model, name, "o.zarr", *WORDS).returncode == 0
    store = half_done(tmp_path)
    before, times = snapshot(store), image.stat()
    for other in (picture(1), changed):
        shutil.rmtree(image) if image.is_dir() else image.unlink()
        make(image, other)
        os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns))
        done = apply(model, name, "o.zarr", *WORDS, "--resume")
        assert done.returncode == 2, done.stderr
        assert b"was begun with another image: tile (0, 0) was computed from other pixels" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert snapshot(store) == before
    shutil.rmtree(image) if image.is_dir() else image.unlink()
    make(image, first)
    done = apply(model, name, "o.zarr", *WORDS, "--resume", "--check", "20")
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(stored(store), one_pass(model, first), atol=1e-6)


def test_an_image_that_differs_where_nothing_is_done_gives_its_own_cells(
    tmp_path: Path, apply: Apply, model: str
) -> None:
    """What is there is of both images: there is nothing to mix."""
    first = picture(0)
    np.save(tmp_path / "im.npy", first)
    assert apply(model, "im.npy", "o.zarr", *WORDS).returncode == 0
    half_done(tmp_path)
    second = first.copy()
    second[-4:] = 0
    np.save(tmp_path / "im.npy", second)
    assert apply(model, "im.npy", "o.zarr", *WORDS, "--resume").returncode == 0
    np.testing.assert_allclose(stored(tmp_path / "o.zarr"), one_pass(model, second), atol=1e-6)


@pytest.mark.parametrize("target", ["o.zarr", "o.npy"])
def test_another_model_of_the_same_signature_is_refused(tmp_path: Path, apply: Apply, model: str, target: str) -> None:
    np.save(tmp_path / "im.npy", picture(0))
    own = shutil.copy(model, tmp_path / "m.onnx")
    assert apply(own, "im.npy", "o.zarr", *WORDS).returncode == 0
    store = half_done(tmp_path)
    if target == "o.npy":
        store = store.rename(tmp_path / "o.npy.tiles.zarr")
    before = snapshot(store)
    proto = onnx.load(own)
    tensor = next(t for t in proto.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] += 1
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    Path(own).write_bytes(proto.SerializeToString())
    done = apply(own, "im.npy", target, *WORDS, "--resume")
    assert (done.returncode, b"was begun with another model" in done.stderr) == (2, True), done.stderr
    assert snapshot(store) == before


def test_a_model_that_was_changed_in_memory_is_another(tmp_path: Path, model: str) -> None:
    np.save(tmp_path / "im.npy", picture(0))
    loaded = cr.load(model)
    how = {"scale": 255.0, "tile": (8,), "workers": 1}
    cr.apply(loaded, tmp_path / "im.npy", tmp_path / "o.zarr", **how)
    half_done(tmp_path)
    tensor = next(t for t in loaded.graph.tensors().values() if getattr(t, "values", None) is not None)
    tensor.values = tensor.values + 1
    with pytest.raises(UsageError, match="another model"):
        cr.apply(loaded, tmp_path / "im.npy", tmp_path / "o.zarr", resume=True, **how)


@pytest.mark.parametrize("damage", ["done", "seen", "older", "step", "no arrays"])
def test_a_damaged_store_is_one_line(tmp_path: Path, apply: Apply, model: str, damage: str) -> None:
    np.save(tmp_path / "im.npy", picture(0))
    assert apply(model, "im.npy", "o.zarr", *WORDS).returncode == 0
    group = zarr.open_group(tmp_path / "o.zarr", mode="r+")
    plan = dict(group.attrs["convrewrite.plan"])
    if damage in ("done", "seen"):
        del group[damage]
        group.create_array(damage, shape=(3,), chunks=(1,), dtype="uint8")
    elif damage == "older":  # as the first release wrote it
        del plan["version"]
        group.attrs["convrewrite.plan"] = plan
    elif damage == "step":
        group.attrs["convrewrite.plan"] = {**plan, "step": ["a", -1]}
    else:
        for name in list(group.array_keys()):
            del group[name]
    done = apply(model, "im.npy", "o.zarr", *WORDS, "--resume")
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1), done.stderr
