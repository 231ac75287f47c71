"""No command writes over a file that it reads: every role of a path that is written against every one that is read.

Whatever name a file goes by (another spelling, a symbolic link, a link of its folder), what is there stays as it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_models import call, plain, snapshot
from PIL import Image

from convrewrite import model_io
from convrewrite.errors import UsageError
from convrewrite.model_io.guards import Files
from convrewrite.system.identity import identity

REWRITING = (
    ["fcn"],
    ["separable", "--tol", "0.1"],
    ["groups"],
    ["fc-to-conv"],
    ["conv-to-fc"],
    ["transform", "separable"],
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two models with their weights beside them, real inputs, an image, and links to all that."""
    for name in ("a", "b"):
        path = tmp_path / f"{name}.onnx"
        onnx.save(plain(), path, save_as_external_data=True, location=f"{name}.bin", size_threshold=0)
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).random((2, 3, 16, 12), np.float32))
    (tmp_path / "images").mkdir()
    for place in (tmp_path, tmp_path / "images"):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 12, 3)).astype(np.uint8)).save(place / "i.png")
    (tmp_path / "link").symlink_to("a.bin")
    (tmp_path / "w.npy").symlink_to("a.bin")
    (tmp_path / "here").symlink_to(".")
    monkeypatch.chdir(tmp_path)
    return tmp_path


SPELLINGS: dict[str, Callable[[Path], str]] = {
    "plain": lambda folder: "a.bin",
    "absolute": lambda folder: str(folder / "a.bin"),
    "dots": lambda folder: "./images/../a.bin",
    "symbolic link": lambda folder: "link",
    "linked folder": lambda folder: "here/here/a.bin",
}


def refused(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], folder: Path, *words: str) -> str:
    before = snapshot(folder)
    assert call(monkeypatch, *words) == 2
    assert snapshot(folder) == before
    told = capfd.readouterr().err
    assert len(told.strip().splitlines()) == 1, told
    return told


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("role", ["OUT", "--report", "--html", "--timings"])
def test_weights_are_not_overwritten_under_any_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], role: str, spelling: str
) -> None:
    path = SPELLINGS[spelling](folder)
    words = ["separable", "a.onnx", path if role == "OUT" else "o.onnx", "--tol", "0.1"]
    told = refused(monkeypatch, capfd, folder, *words, *([] if role == "OUT" else [role, path]))
    assert f"{role} would overwrite 'a.bin', which is external data of IN 'a.onnx'" in told


@pytest.mark.parametrize("command", REWRITING, ids=lambda words: words[0])
@pytest.mark.parametrize(
    ("written", "read"),
    [(w, r) for w in ("OUT", "--report", "--html") for r in ("a.onnx", "a.bin", "data.npz") if w + r != "OUTa.onnx"],
)
def test_every_rewriting_command(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    command: list[str],
    written: str,
    read: str,
) -> None:
    name, *more = command
    ends = [*more[:1], "a.onnx"] if name == "transform" else ["a.onnx"]
    words = [name, *ends, read if written == "OUT" else "o.onnx", "--data", "data.npz"]
    words += [] if name == "transform" else more
    told = refused(monkeypatch, capfd, folder, *words, *([] if written == "OUT" else [written, read]))
    assert f"{written} would overwrite '{read}'" in told


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("verify a.onnx b.onnx --report b.bin", "external data of B 'b.onnx'"),
        ("verify a.onnx b.onnx --html a.bin", "external data of A 'a.onnx'"),
        ("verify a.onnx b.onnx --save-failing b.bin", "external data of B 'b.onnx'"),
        ("verify a.onnx b.onnx --images images --report images/i.png", "'i.png' of --images"),
        ("verify a.onnx b.onnx --images images --save-failing here/images/i.png", "'i.png' of --images"),
        ("bench a.onnx b.onnx --report a.bin", "external data of A 'a.onnx'"),
        ("bench a.onnx b.onnx --plot p.png --html p.png", "which is --plot"),
        ("inspect a.onnx --json a.bin", "external data of MODEL 'a.onnx'"),
        ("inspect a.onnx --html a.bin", "external data of MODEL 'a.onnx'"),
        ("inspect a.onnx --html h --json h", "which is --json"),
        ("inspect a.onnx --toeplitz x --save a.onnx", "which is MODEL"),
        ("fcn a.onnx o.onnx --html h.html --image i.png --report i.png", "which is --image"),
        ("fcn a.onnx o.onnx --report o.onnx", "which is OUT"),
        ("fcn a.onnx o.onnx --report here/o.onnx", "which is OUT"),
        ("separable a.onnx o.onnx --timings o.onnx", "which is OUT"),
        ("separable a.onnx o.onnx --timings t.json --report here/t.json", "which is --timings"),
        ("separable a.onnx o.onnx --data data.npz --timings data.npz", "which is --data"),
    ],
)
def test_every_other_role(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], words: str, text: str
) -> None:
    assert text in refused(monkeypatch, capfd, folder, *words.split())


@pytest.mark.parametrize("target", ["a.onnx", "here/a.onnx"])
def test_out_may_replace_in(folder: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    weights = (folder / "a.bin").read_bytes()
    assert call(monkeypatch, "fcn", "a.onnx", target) == 0
    assert (folder / "a.bin").read_bytes() == weights
    assert b"convrewrite.window" in (folder / "a.onnx").read_bytes()


def test_out_does_not_replace_what_is_in_and_something_else(folder: Path) -> None:
    with pytest.raises(UsageError, match="which is --data"):
        Files({"IN": "a.onnx"}, {"--data": "a.onnx"}, writes={"OUT": "a.onnx"}).keep_apart()


def test_a_result_is_not_saved_over_its_own_weights(folder: Path) -> None:
    before = snapshot(folder)
    model = model_io.load("a.onnx")
    for write in (model_io.save, model_io.copy_bytes):
        with pytest.raises(UsageError, match="it is external data"):
            write(model, "link")
    assert snapshot(folder) == before


def test_a_pipe_is_not_read_before_its_time(folder: Path) -> None:
    os.mkfifo("pipe")
    opened = os.open("pipe", os.O_RDWR | os.O_NONBLOCK)  # so that a reader would not wait for ever
    try:
        os.write(opened, b"model")
        Files({"IN": "pipe"}, writes={"OUT": "o.onnx"}).keep_apart()
        assert os.read(opened, 10) == b"model", "what the pipe holds is still there for the command"
    finally:
        os.close(opened)


def test_what_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("f").write_text("")
    os.link("f", "hard")
    Path("soft").symlink_to("not-there")
    Path("loop").symlink_to("loop")
    assert identity("f") == identity("hard") == identity(tmp_path / "." / "f")
    assert identity("soft") == identity("not-there"), "where it would lead"
    assert identity("a") != identity("b")
    assert identity("no/a") == identity("no/./a") != identity("no/b")
    for odd in ("loop", "x" * 5000, "a\0b", ""):
        assert identity(odd) == identity(odd)


def test_names_that_differ_in_case_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system that knows no cases, told by what it says of the folder itself."""
    folder = tmp_path / "Folder"
    folder.mkdir()
    assert (identity(folder / "A") == identity(folder / "a")) == (tmp_path / "fOLDER").exists()
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **how: stat(str(path).replace("fOLDER", "Folder"), **how))
    assert identity(folder / "A") == identity(folder / "a")
    assert identity(folder / "A") != identity(folder / "b")


# Images ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("im.zarr im.zarr --overwrite", "OUT would overwrite 'im.zarr', which is IMAGE"),
        ("im.zarr here/im.zarr --overwrite", "OUT would overwrite 'im.zarr', which is IMAGE"),
        ("im.zarr im.zarr/o.zarr", "which lies in IMAGE 'im.zarr'"),
        ("im.zarr im.zarr/o.npy", "which lies in IMAGE 'im.zarr'"),
        ("im.zarr o.zarr --report im.zarr/zarr.json", "which lies in IMAGE 'im.zarr'"),
        ("im.zarr o.zarr --report here/im.zarr/r.json", "which lies in IMAGE 'im.zarr'"),
        ("im.zarr/deep im.zarr --overwrite", "OUT would overwrite 'im.zarr/deep', which is IMAGE"),
        ("i.png images --overwrite --original images/i.png", "OUT would overwrite 'images/i.png', which is --original"),
        ("i.png w.npy --overwrite", "external data of MODEL 'a.onnx'"),
        ("i.png o.zarr --original b.onnx --check 1 --report b.bin", "external data of --original 'b.onnx'"),
        ("i.png i.png --overwrite", "which is IMAGE"),
        ("i.png o.zarr --report i.png", "which is IMAGE"),
        ("file:///{folder}/i.png i.png --overwrite", "which is IMAGE"),
        ("o.npy.tiles.zarr o.npy", "which is IMAGE"),
        ("i.png o.npy --report o.npy", "which is OUT"),
    ],
)
def test_what_apply_reads(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], words: str, text: str
) -> None:
    for name in ("im.zarr", "o.npy.tiles.zarr"):
        (folder / name / "deep").mkdir(parents=True)
        (folder / name / "zarr.json").write_text("{}")
    words = words.format(folder=folder)
    more = ["--check", "1"] if "--original" in words and "--check" not in words else []
    assert text in refused(monkeypatch, capfd, folder, "apply", "a.onnx", *words.split(), *more)
