"""Models with weights in a second file: published whole, beside others that do the same, and over no file of theirs."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from cli_models import call, convolutional, snapshot
from onnx import numpy_helper

from convrewrite import model_io
from convrewrite.errors import UsageError
from convrewrite.model_io import publishing
from helpers import Net

IMAGE = np.random.default_rng(0).random((1, 3, 16, 12), np.float32)


def wide() -> onnx.ModelProto:
    """A classifier whose weights are large enough for a file of their own."""
    net = Net(1, 3, 16, 12)
    trunk = net.conv(net.Relu(net.conv("x", 16, 3, 3)), 16, 3, 3, strides=[2, 2])
    return net.model(net.fc(net.Flatten(trunk), 32, name="head"))


def outputs(path: Path) -> np.ndarray:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: IMAGE})[0])


def external(proto: onnx.ModelProto, path: Path, location: str = "w.bin") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(proto, path, save_as_external_data=True, location=location, size_threshold=0)
    return path


def scaled(factor: float) -> onnx.ModelProto:
    """The same net with other weights."""
    model = wide()
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), tensor.name))
    return model


# What is in the way ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("location", ["out.onnx", "sub/w.bin", "w.bin"])
def test_a_copy_brings_its_data_and_stays_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str) -> None:
    """Nothing to do: a byte copy, also where the weights lie in a file of OUT's own name."""
    source = external(convolutional(), tmp_path / "a" / "in.onnx", "moved.bin")
    proto = onnx.load(source, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            entry.value = location if entry.key == "location" else entry.value
    (source.parent / location).parent.mkdir(exist_ok=True)
    (source.parent / "moved.bin").rename(source.parent / location)
    source.write_bytes(proto.SerializeToString())
    want, before = outputs(source), snapshot(source.parent)
    (tmp_path / "b").mkdir()
    assert call(monkeypatch, "fcn", source, tmp_path / "b" / "out.onnx") == 0
    np.testing.assert_array_equal(outputs(tmp_path / "b" / "out.onnx"), want)
    assert snapshot(source.parent) == before
    assert not list((tmp_path / "b").glob(".*"))


def test_a_copy_does_not_leave_its_folder(tmp_path: Path) -> None:
    """A folder of the target that is a link to elsewhere: the weights get a name of their own."""
    source = external(convolutional(), tmp_path / "a" / "in.onnx", "w.bin")
    proto = onnx.load(source, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            entry.value = "sub/w.bin" if entry.key == "location" else entry.value
    (source.parent / "sub").mkdir()
    (source.parent / "w.bin").rename(source.parent / "sub" / "w.bin")
    source.write_bytes(proto.SerializeToString())
    for name in ("b", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "b" / "sub").symlink_to(tmp_path / "elsewhere")
    model_io.copy_bytes(model_io.load(source), tmp_path / "b" / "out.onnx")
    assert list((tmp_path / "elsewhere").iterdir()) == []
    np.testing.assert_array_equal(outputs(tmp_path / "b" / "out.onnx"), outputs(source))


@pytest.mark.parametrize("kind", ["other bytes", "a folder", "a link"])
def test_a_file_under_the_name_of_the_data_stays(tmp_path: Path, kind: str) -> None:
    source = external(wide(), tmp_path / "a" / "in.onnx")
    model = model_io.load(source)
    (tmp_path / "b").mkdir()
    model_io.save(model, tmp_path / "b" / "out.onnx")
    (data,) = (tmp_path / "b").glob("*.data")
    if kind == "a folder":
        data.unlink()
        data.mkdir()
    elif kind == "a link":
        shutil.move(data, tmp_path / "moved")
        data.symlink_to(tmp_path / "moved")
    else:
        data.write_bytes(b"of somebody else")
    before = snapshot(tmp_path / "b")
    model_io.save(model, tmp_path / "b" / "out.onnx")
    after = snapshot(tmp_path / "b")
    assert {name: after[name] for name in before if name != "out.onnx"} == {
        name: digest for name, digest in before.items() if name != "out.onnx"
    }
    np.testing.assert_array_equal(outputs(tmp_path / "b" / "out.onnx"), outputs(source))


def test_data_that_was_there_stays_where_a_later_run_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_io.load(external(wide(), tmp_path / "a" / "in.onnx"))
    (tmp_path / "b").mkdir()
    target = model_io.save(model, tmp_path / "b" / "out.onnx")
    before, want = snapshot(tmp_path / "b"), outputs(target)
    replace = os.replace

    def failing(source: Path, to: Path) -> None:
        if Path(to) == target:
            raise OSError(5, "Input/output error")
        replace(source, to)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(UsageError, match="Input/output error"):
        model_io.save(model, target)
    assert snapshot(tmp_path / "b") == before
    np.testing.assert_array_equal(outputs(target), want)
    target.unlink()
    (data,) = (tmp_path / "b").glob("*.data")
    data.unlink()
    with pytest.raises(UsageError, match="Input/output error"):
        model_io.save(model, target)
    assert list((tmp_path / "b").iterdir()) == [], "what nobody else can know of goes"


def test_data_that_another_has_put_there_in_the_meantime_stays(tmp_path: Path) -> None:
    """The other's model names it; ours fails or is never committed."""
    model = model_io.load(external(wide(), tmp_path / "a" / "in.onnx"))
    (tmp_path / "b").mkdir()
    with model_io.staged(model, tmp_path / "b" / "out.onnx") as mine:
        theirs = model_io.save(model, tmp_path / "b" / "out.onnx")
        assert mine.path.exists()
    np.testing.assert_array_equal(outputs(theirs), outputs(tmp_path / "a" / "in.onnx"))
    with model_io.staged(model, tmp_path / "b" / "late.onnx") as mine:
        (place,) = mine.data.values()
        place.write_bytes(b"of somebody else")
        with pytest.raises(UsageError, match="another file has come there"):
            mine.commit()
    assert place.read_bytes() == b"of somebody else"
    assert not (tmp_path / "b" / "late.onnx").exists()
    assert not list((tmp_path / "b").glob(".*"))


def test_without_locks_a_failure_leaves_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can tell then whether another model relies on it."""

    @contextlib.contextmanager
    def unlocked(folder: Path) -> Iterator[bool]:
        yield False

    monkeypatch.setattr(publishing, "_locked", unlocked)
    model = model_io.load(external(wide(), tmp_path / "a" / "in.onnx"))
    (tmp_path / "b").mkdir()
    with model_io.staged(model, tmp_path / "b" / "out.onnx") as mine:
        (tmp_path / "b" / "out.onnx").mkdir()
        with pytest.raises(UsageError, match="cannot write"):
            mine.commit()
    assert [path.suffix for path in (tmp_path / "b").iterdir() if path.is_file()] == [".data"]


# Names that lead elsewhere --------------------------------------------------------------------------------------------


def test_a_hard_link_is_refused_as_the_checker_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    source = external(wide(), tmp_path / "a" / "in.onnx")
    os.link(source.parent / "w.bin", tmp_path / "elsewhere")
    with pytest.raises(Exception, match="hard link"):
        onnx.checker.check_model(str(source))
    assert call(monkeypatch, "fcn", source, tmp_path / "o.onnx") == 2
    assert "has 2 names (hard links)" in capfd.readouterr().err
    (tmp_path / "elsewhere").unlink()
    assert call(monkeypatch, "fcn", source, tmp_path / "o.onnx") == 0


@pytest.mark.parametrize("location", ["x" * 5000, "x/" * 2500 + "w", "./" * 2500 + "w.bin", "é" * 5000])
def test_long_locations_are_one_short_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], location: str
) -> None:
    source = external(wide(), tmp_path / "in.onnx")
    proto = onnx.load(source, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            entry.value = location if entry.key == "location" else entry.value
    source.write_bytes(proto.SerializeToString())
    for words in (["inspect", source], ["fcn", source, tmp_path / "o.onnx"], ["verify", source, source]):
        code = call(monkeypatch, *words)
        told = capfd.readouterr().err
        assert code == 2 or (code == 0 and location.endswith("w.bin")), told  # ONNX Runtime does not read that one
        assert "internal" not in told
        if code:
            assert len(told) < 1000
            assert len(told.strip().splitlines()) == 1


# At once --------------------------------------------------------------------------------------------------------------

RACE = """
import sys, time
from pathlib import Path
from convrewrite import model_io
source, target, begin, rounds, fails = sys.argv[1:6]
model = model_io.load(source)
while not Path(begin).exists():
    time.sleep(0.001)
for number in range(int(rounds)):
    try:
        with model_io.staged(model, target) as written:
            if fails == "commit":
                written.target = Path(target).with_name("a folder")  # the rename of the model fails, its data is there
            if fails != "verify":
                written.commit()
    except Exception as error:
        if fails != "commit":
            raise
"""


@pytest.mark.parametrize("fails", ["verify", "commit"])
def test_a_run_that_fails_does_not_take_the_data_of_one_that_succeeds(tmp_path: Path, fails: str) -> None:
    """Processes of the same OUT and the same weights, one of which always fails: what stands names what is there."""
    source = external(wide(), tmp_path / "a" / "in.onnx")
    (tmp_path / "b" / "a folder" / "full").mkdir(parents=True)
    target, begin = tmp_path / "b" / "out.onnx", tmp_path / "begin"
    kinds = ["no", fails, "no", fails]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(source), str(target), str(begin), "40", kind], stderr=subprocess.PIPE
        )
        for kind in kinds
    ]
    time.sleep(1)
    begin.touch()
    want, seen = outputs(source), 0
    while any(process.poll() is None for process in processes):
        if target.exists():
            np.testing.assert_array_equal(outputs(target), want)
            seen += 1
    for process in processes:
        assert process.wait() == 0, process.stderr.read()
        process.stderr.close()
    np.testing.assert_array_equal(outputs(target), want)
    assert seen
    assert len(list((tmp_path / "b").glob("*.data"))) == 1
    assert not list((tmp_path / "b").glob(".*"))


SLOW_LOSER = """
import sys, time
from pathlib import Path
from convrewrite import model_io
source, target, folder = sys.argv[1:4]
with model_io.staged(model_io.load(source), target):
    Path(folder, "staged").touch()
    while not Path(folder, "done").exists():
        time.sleep(0.001)
"""


def test_the_loser_leaves_the_winners_data(tmp_path: Path) -> None:
    """A process that has staged the same weights first, and whose check fails after another has published."""
    source = external(wide(), tmp_path / "a" / "in.onnx")
    (tmp_path / "b").mkdir()
    target = tmp_path / "b" / "out.onnx"
    with subprocess.Popen([sys.executable, "-c", SLOW_LOSER, str(source), str(target), str(tmp_path)]) as loser:
        while not (tmp_path / "staged").exists():
            assert loser.poll() is None
            time.sleep(0.01)
        model_io.save(model_io.load(source), target)
        (tmp_path / "done").touch()
        assert loser.wait() == 0
    np.testing.assert_array_equal(outputs(target), outputs(source))
    assert len(list((tmp_path / "b").iterdir())) == 2


def test_two_models_to_one_target_at_once(tmp_path: Path) -> None:
    """Whichever comes last is there, whole; the data of both stays."""
    sources = [external(scaled(factor), tmp_path / f"s{factor}" / "in.onnx") for factor in (1.0, 2.0)]
    (tmp_path / "b").mkdir()
    target, begin = tmp_path / "b" / "out.onnx", tmp_path / "begin"
    processes = [
        subprocess.Popen([sys.executable, "-c", RACE, str(source), str(target), str(begin), "40", "no"])
        for source in sources
    ]
    time.sleep(1)
    begin.touch()
    wants = [outputs(source) for source in sources]
    assert not np.array_equal(*wants)
    while any(process.poll() is None for process in processes):
        if target.exists():
            found = outputs(target)
            assert any(np.array_equal(found, want) for want in wants)
    assert [process.wait() for process in processes] == [0, 0]
    assert len(list((tmp_path / "b").glob("*.data"))) == 2
    assert not list((tmp_path / "b").glob(".*"))
