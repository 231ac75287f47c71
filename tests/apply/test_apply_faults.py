"""`convrewrite apply`: processes that are killed, images that are cut short, disks that are full, wrong options."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import zarr
from apply_images import LENET, as_tiff, as_zarr, stored
from cli_models import COMMAND, run
from onnx import numpy_helper
from PIL import Image
from processes import HANGS

import convrewrite as cr
from convrewrite import models
from convrewrite.errors import UsageError

# What goes wrong


def begin(model: str, folder: Path, *words: str) -> subprocess.Popen[bytes]:
    command = [*COMMAND, "apply", model, "im.npy", "o.zarr", "--scale", "255", "--tile", "4x4", *words]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def children(pid: int) -> list[int]:
    """Processes below one, workers last."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(path.parent.name))
    return found + [grandchild for child in found for grandchild in children(child)]


def done_tiles(folder: Path) -> int:
    try:
        return int(np.asarray(zarr.open_group(folder / "o.zarr", mode="r")["done"][:]).sum())
    except Exception:
        return 0


def wait_for(folder: Path, tiles: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + HANGS
    while done_tiles(folder) < tiles:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_killed_worker_is_replaced(tmp_path: Path, model: str, workers: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (400, 380)).astype(np.uint8)
    np.save(tmp_path / "im.npy", image)
    with begin(model, tmp_path, "--workers", workers) as process:
        wait_for(tmp_path, 5, process)
        for pid in children(process.pid):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"spawn_main" in command:
                os.kill(pid, signal.SIGKILL)
                break
        else:
            raise AssertionError("no worker was found")
        _, told = process.communicate(timeout=HANGS)
    assert process.returncode == 0, told
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    want = session.run(None, {"image": (image / np.float32(255))[None, None].astype(np.float32)})[0][0]
    np.testing.assert_allclose(stored(tmp_path / "o.zarr"), want, atol=1e-6)


def test_a_stopped_run_is_gone_on_with(tmp_path: Path, model: str) -> None:
    """Killed at once and whole, then resumed: the same bytes as without a break, and no tile twice."""
    image = np.random.default_rng(0).integers(0, 256, (300, 280)).astype(np.uint8)
    np.save(tmp_path / "im.npy", image)
    with begin(model, tmp_path, "--workers", "1") as process:
        wait_for(tmp_path, 5, process)
        for pid in (process.pid, *children(process.pid)):
            os.kill(pid, signal.SIGKILL)
    before = done_tiles(tmp_path)
    (tmp_path / "o.zarr" / "probabilities" / "c" / "0" / "0" / "9.0123.partial").write_bytes(b"cut short")
    words = ["--scale", "255", "--tile", "4x4", "--workers", "1"]
    done = run("apply", model, "im.npy", "o.zarr", *words, cwd=tmp_path)
    assert (done.returncode, b"give --resume to go on, or --overwrite" in done.stderr) == (2, True)
    done = run("apply", model, "im.npy", "o.zarr", *words[2:], "--resume", cwd=tmp_path)
    assert (done.returncode, b"was begun with another prepare" in done.stderr) == (2, True)
    done = run("apply", model, "im.npy", "o.zarr", *words, "--resume", "--report", "r.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    tiles = json.loads((tmp_path / "r.json").read_text())["tiles"]
    assert tiles["resumed"] >= before >= 5
    assert tiles["computed"] == tiles["total"] - tiles["resumed"] > 0
    assert run("apply", model, "im.npy", "whole.zarr", *words, cwd=tmp_path).returncode == 0
    one, other = (
        {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
        for root in (tmp_path / "o.zarr", tmp_path / "whole.zarr")
    )
    assert one == other


@pytest.mark.parametrize("damage", ["corrupt", "missing"])
def test_a_chunk_that_cannot_be_read(tmp_path: Path, model: str, pixels: np.ndarray, damage: str) -> None:
    """Its tiles are named, the others are there; once it is readable, --resume computes what was left."""
    as_zarr(tmp_path / "im.zarr", pixels, 3)
    chunk = tmp_path / "im.zarr" / "c" / "1" / "1"
    kept = chunk.read_bytes()
    chunk.write_bytes(b"no chunk" if damage == "corrupt" else kept[: len(kept) // 2])
    words = ["--scale", "255", "--tile", "8x8", "--workers", "1"]
    done = run("apply", model, "im.zarr", "o.zarr", *words, "--report", "r.json", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert b"tiles failed: (" in done.stderr
    assert b"--resume" in done.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    assert 0 < len(report["failed"]) < report["tiles"]["total"]
    assert report["tiles"]["computed"] + len(report["failed"]) == report["tiles"]["total"]
    chunk.write_bytes(kept)
    done = run("apply", model, "im.zarr", "o.zarr", *words, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_an_image_that_is_cut_short(tmp_path: Path, model: str, pixels: np.ndarray) -> None:
    np.save(tmp_path / "im.npy", pixels)
    content = (tmp_path / "im.npy").read_bytes()
    (tmp_path / "im.npy").write_bytes(content[: len(content) // 2])
    done = run("apply", model, "im.npy", "o.zarr", cwd=tmp_path)
    assert (done.returncode, b"cannot read the image im.npy" in done.stderr) == (2, True)
    as_tiff(tmp_path / "im.tif", pixels, "tiled")
    content = (tmp_path / "im.tif").read_bytes()
    (tmp_path / "im.tif").write_bytes(content[: len(content) // 2])
    done = run("apply", model, "im.tif", "o.zarr", "--workers", "1", cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert b"Traceback" not in done.stderr


def test_ctrl_c(tmp_path: Path, model: str) -> None:
    """One line, no traceback of any process, and --resume goes on."""
    np.save(tmp_path / "im.npy", np.random.default_rng(0).integers(0, 256, (400, 380)).astype(np.uint8))
    command = [*COMMAND, "apply", model, "im.npy", "o.zarr", "--scale", "255", "--tile", "4x4"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        wait_for(tmp_path, 5, process)
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=HANGS)
    assert process.returncode == 130, told
    assert told.strip() == b"interrupted; the tiles that are done are kept, and --resume goes on"


def test_a_tiff_that_needs_another_codec(tmp_path: Path, model: str, pixels: np.ndarray, whole: np.ndarray) -> None:
    Image.fromarray(pixels).save(tmp_path / "lzw.tif", compression="tiff_lzw")
    cr.apply(model, tmp_path / "lzw.tif", tmp_path / "o.npy", scale=255, workers=1)
    np.testing.assert_allclose(np.load(tmp_path / "o.npy"), whole, atol=1e-6)


@pytest.mark.skipif(not hasattr(os, "statvfs") or os.geteuid() != 0, reason="mounts a small file system")
def test_a_full_disk(tmp_path: Path, model: str) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(small)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        np.save(tmp_path / "im.npy", np.random.default_rng(0).random((700, 700), np.float32))
        words = ["--tile", "32x32", "--workers", "1"]
        done = run("apply", model, "im.npy", str(small / "o.zarr"), *words, cwd=tmp_path)
        assert done.returncode == 1, done.stderr
        assert b"No space left on device" in done.stderr
        shutil.copytree(small / "o.zarr", tmp_path / "o.zarr")
        done = run("apply", model, "im.npy", "o.zarr", *words, "--resume", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    finally:
        subprocess.run(["umount", str(small)], check=False)


@pytest.mark.parametrize(
    ("size", "says"),
    [((31, 200), b"smaller than the model's window"), ((1, 200), b"smaller than the model's window"), ((32, 32), b"")],
)
def test_images_about_as_large_as_the_window(tmp_path: Path, model: str, size: tuple[int, int], says: bytes) -> None:
    np.save(tmp_path / "im.npy", np.random.default_rng(0).random(size, np.float32))
    done = run("apply", model, "im.npy", "o.zarr", "--workers", "1", cwd=tmp_path)
    assert done.returncode == (2 if says else 0), done.stderr
    assert says in done.stderr
    assert (tmp_path / "o.zarr").exists() == (not says)


BAD: dict[str, tuple[list[str], bytes]] = {
    "no-image": (["nope.zarr", "o.zarr"], b"cannot read the image nope.zarr: no such file"),
    "no-memory": (["im.npy", "o.zarr", "--memory", "much"], b"'much' is no amount of memory"),
    "little-memory": (["im.npy", "o.zarr", "--memory", "100MB"], b"give --memory"),
    "layout": (["im.npy", "o.zarr", "--layout", "CHW"], b"--layout CHW names 3 axes, the image [173x141] has 2"),
    "channels": (["im.npy", "o.zarr", "--channels", "3"], b"--channels 3: the image has 1"),
    "mean": (["im.npy", "o.zarr", "--mean", "1,2"], b"--mean has 2 numbers, the model 1 channel"),
    "std": (["im.npy", "o.zarr", "--std", "0"], b"cannot be divided by zero"),
    "numbers": (["im.npy", "o.zarr", "--mean", "a"], b"--mean needs M,..., for example 0.485,0.456,0.406, not 'a'"),
    "output": (["im.npy", "o.zarr", "--output", "nope"], b"no output 'nope'"),
    "scheduler": (["im.npy", "o.zarr", "--scheduler", "tcp://127.0.0.1:1"], b"no Dask scheduler answers"),
    "original": (["im.npy", "o.zarr", "--original", LENET], b"give --check N, too"),
    "both": (["im.npy", "o.zarr", "--resume", "--overwrite"], b"leave one of them out"),
    "itself": (["im.npy", "im.npy", "--overwrite"], b"OUT would overwrite 'im.npy', which is IMAGE"),
    "ending": (["im.npy", "o.jpg"], b"no map is written as .jpg"),
    "class": (["im.npy", "o.zarr", "--class", "1"], b"--class draws the values of one class"),
    "class-and-top1": (["im.npy", "o.png", "--class", "1", "--top1"], b"leave it out, or --top1"),
    "bytes": (["im.npy", "o.zarr", "--memory", "5"], b"write 5GB"),
    "not-a-result": (["im.npy", "folder", "--overwrite"], b"is no result of apply"),
    "folder": (["im.npy", "no/such/folder.npy", "--workers", "1"], b"cannot write"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(tmp_path: Path, model: str, pixels: np.ndarray, name: str) -> None:
    np.save(tmp_path / "im.npy", pixels)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").write_text("mine")
    words, says = BAD[name]
    done = run("apply", model, *words, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert (tmp_path / "folder" / "mine.txt").exists()


def test_pixels_without_a_value(tmp_path: Path, model: str, pixels: np.ndarray) -> None:
    """A hole of NaN gives NaN in every cell that sees it; both models say so, and the check passes."""
    image = (pixels / 255).astype(np.float32)
    image[40:70, 30:90] = np.nan
    np.save(tmp_path / "im.npy", image)
    made = cr.apply(model, tmp_path / "im.npy", tmp_path / "o.zarr", tile=(9,), workers=1, check=60, original=LENET)
    assert len(made.checks) == 2
    cells = stored(tmp_path / "o.zarr")
    assert np.isnan(cells[:, 10, 8]).all()
    assert np.isfinite(cells[:, -1, -1]).all()


def test_complex_pixels_are_refused(tmp_path: Path, model: str) -> None:
    np.save(tmp_path / "im.npy", np.ones((64, 64), np.complex64))
    with pytest.raises(UsageError, match="pixels of type complex64; give real numbers"):
        cr.apply(model, tmp_path / "im.npy", tmp_path / "o.npy")


def test_a_classifier_is_refused(tmp_path: Path, pixels: np.ndarray) -> None:
    np.save(tmp_path / "im.npy", pixels)
    done = run("apply", LENET, "im.npy", "o.zarr", cwd=tmp_path)
    assert done.returncode in (2, 3)
    assert b"convrewrite fcn" in done.stderr


def test_a_model_of_one_size(tmp_path: Path, pixels: np.ndarray, whole: np.ndarray) -> None:
    """An unpadded one takes crops of that size; a padded one is refused, since no crop ends where the image does."""
    cr.fcn(LENET, size=(64, 64), verify=False).save(tmp_path / "one.onnx")
    np.save(tmp_path / "im.npy", pixels)
    cr.apply(tmp_path / "one.onnx", tmp_path / "im.npy", tmp_path / "o.npy", scale=255, workers=1)
    got = np.load(tmp_path / "o.npy")
    np.testing.assert_allclose(got[:, : whole.shape[1], : whole.shape[2]], whole, atol=1e-6)
    onnx.save(models.build("resnet18", width=0.125, size=64), tmp_path / "r.onnx")
    cr.fcn(tmp_path / "r.onnx", size=(64, 64), verify=False).save(tmp_path / "padded.onnx")
    np.save(tmp_path / "rgb.npy", np.zeros((101, 90, 3), np.float32))
    done = run("apply", "padded.onnx", "rgb.npy", "p.npy", cwd=tmp_path)
    assert done.returncode == 3
    assert b"[apply/fixed-size]" in done.stderr


def test_a_planted_fault_is_found_by_the_check(tmp_path: Path, model: str, pixels: np.ndarray) -> None:
    """A tile whose cells lie one to the right; and an original that is another model."""
    np.save(tmp_path / "im.npy", pixels)
    how = {"scale": 255, "tile": (16,), "workers": 1}
    cr.apply(model, tmp_path / "im.npy", tmp_path / "o.zarr", **how)
    group = zarr.open_group(tmp_path / "o.zarr", mode="r+")
    group["probabilities"][:, :16, :16] = np.roll(group["probabilities"][:, :16, :16], 1, axis=2)
    with pytest.raises(cr.CheckFailed, match="the model on other crops"):
        cr.apply(model, tmp_path / "im.npy", tmp_path / "o.zarr", resume=True, check=60, **how)
    other = onnx.load(LENET)
    weight = other.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.01), weight.name))
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(cr.CheckFailed, match="the original on its crops"):
        cr.apply(
            model,
            tmp_path / "im.npy",
            tmp_path / "o.zarr",
            overwrite=True,
            check=20,
            original=str(tmp_path / "other.onnx"),
            **how,
        )


def test_unknown_options_of_the_api(model: str) -> None:
    with pytest.raises(UsageError, match="there is no option 'nope'"):
        cr.apply(model, "im.npy", "o.zarr", nope=1)


def test_a_cluster_that_is_there(tmp_path: Path, model: str, pixels: np.ndarray, whole: np.ndarray) -> None:
    import distributed

    np.save(tmp_path / "im.npy", pixels)
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster:
        words = ["--scale", "255", "--tile", "9x9", "--scheduler", cluster.scheduler_address]
        done = run("apply", model, str(tmp_path / "im.npy"), str(tmp_path / "o.zarr"), *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(stored(tmp_path / "o.zarr"), whole, atol=1e-6)
    assert b"Traceback" not in done.stderr
    assert b"arn" not in done.stderr.replace(b"learn", b"")
