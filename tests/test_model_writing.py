"""What is written appears whole or not at all."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import Any

import onnx_graphsurgeon as gs
import pytest

from convrewrite.errors import UsageError
from convrewrite.model_io import Model, copy_bytes, load, protofile, save, staged, to_bytes, write_stream
from stored_models import assert_same_outputs, content, external, if_model, mlp, outputs_of, stored

pytestmark = pytest.mark.usefixtures("small_chunks")


def test_a_staged_file_runs_before_it_is_published(tmp_path: Path) -> None:
    model = load(mlp().SerializeToString())
    target = tmp_path / "out.onnx"
    with staged(model, target) as written:
        assert written.path.parent == tmp_path
        outputs_of(written.path)
        assert not target.exists()
    assert content(tmp_path) == {}
    with staged(model, target) as written:
        written.commit()
    assert list(content(tmp_path)) == ["out.onnx"]


def test_staged_data_goes_unless_it_is_published(tmp_path: Path) -> None:
    model = load(external(tmp_path))
    target = tmp_path / "out.onnx"
    with staged(model, target) as written:
        assert_same_outputs(written.path, mlp().SerializeToString())
    assert content(tmp_path) == {}
    save(model, target)
    before = content(tmp_path)
    with staged(load(target), target):
        pass
    assert content(tmp_path) == before, "the data file that was there before stays"


def test_input_and_output_may_be_one_path(tmp_path: Path) -> None:
    path = stored(mlp(), tmp_path / "model.onnx")
    before = path.read_bytes()
    model = load(path)
    with staged(model, path) as written:
        assert path.read_bytes() == before
        written.commit()
    assert list(content(tmp_path)) == ["model.onnx"]
    assert_same_outputs(before, path)
    assert_same_outputs(before, to_bytes(model))  # the replaced file can still be read from


def failing_replace(monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    replace = os.replace

    def fail(source: Path, target: Path) -> None:
        if str(target).endswith(suffix):
            raise OSError(errno.EIO, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)


@pytest.mark.parametrize("suffix", [".onnx", ".data"])
def test_a_failure_leaves_the_old_files_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    model = load(external(tmp_path))
    target = tmp_path / "out.onnx"
    target.write_bytes(b"old")
    failing_replace(monkeypatch, suffix)
    with pytest.raises(UsageError, match=r"cannot write .*out\.onnx: Input/output error"):
        save(model, target)
    assert content(tmp_path) == {"out.onnx": b"old"}


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(stored(mlp(), tmp_path / "in.onnx"))
    before = content(tmp_path)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match="No space left on device"):
        save(model, tmp_path / "out.onnx")
    with pytest.raises(UsageError, match="No space left on device"):
        copy_bytes(model, tmp_path / "out.onnx")
    assert content(tmp_path) == before


def test_a_target_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    model = load(mlp().SerializeToString())
    (tmp_path / "file").write_bytes(b"1")
    cases: dict[Path, str] = {
        tmp_path: "it is a folder",
        tmp_path / "missing" / "out.onnx": "No such file or directory",
        tmp_path / "file" / "out.onnx": "Not a directory",
        tmp_path / ("n" * 300 + ".onnx"): "File name too long",
        Path(os.devnull): "no regular file",
    }
    for target, fragment in cases.items():
        for write in (save, copy_bytes):
            with pytest.raises(UsageError, match=fragment) as caught:
                write(model, target)
            assert caught.value.exit_code == 2
    assert content(tmp_path) == {"file": b"1"}


def test_a_read_only_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(mlp().SerializeToString())

    def denied(path: Path, mode: str) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr("builtins.open", denied)  # chmod would not stop root
    with pytest.raises(UsageError, match="Permission denied"):
        save(model, tmp_path / "out.onnx")


class ClosedPipe(io.BytesIO):
    def write(self, data: Any) -> int:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)


def test_a_model_goes_to_a_stream(tmp_path: Path) -> None:
    model = load(external(tmp_path))
    stream = io.BytesIO()
    write_stream(model, stream)
    assert stream.getvalue() == to_bytes(model)
    assert_same_outputs(stream.getvalue(), mlp().SerializeToString())
    with pytest.raises(UsageError, match="Broken pipe"):
        write_stream(model, ClosedPipe())


def test_a_file_is_copied_byte_for_byte(tmp_path: Path) -> None:
    odd = mlp().SerializeToString() + bytes([0xFA, 0x7F, 3]) + b"new"
    path = tmp_path / "in.onnx"
    path.write_bytes(odd)
    stream = io.BytesIO()
    copy_bytes(load(path), stream)
    assert stream.getvalue() == odd
    copy_bytes(load(odd), tmp_path / "out.onnx")
    copy_bytes(load(path), path)
    assert content(tmp_path) == {"in.onnx": odd, "out.onnx": odd}
    with pytest.raises(UsageError, match="not read from a file"):
        copy_bytes(Model(gs.import_onnx(mlp()), ir_version=8), path)


def test_a_copy_takes_its_external_data_along(tmp_path: Path) -> None:
    source = external(tmp_path, location="w.bin")
    model = load(source)
    target = tmp_path / "copy.onnx"
    for _ in range(2):
        copy_bytes(model, target)
        assert content(tmp_path) == {"copy.onnx": source.read_bytes(), "w.bin": (source.parent / "w.bin").read_bytes()}
    stream = io.BytesIO()
    copy_bytes(model, stream)
    assert stream.getvalue() == to_bytes(model)


def test_a_copy_does_not_overwrite_the_data_of_others(tmp_path: Path) -> None:
    model = load(external(tmp_path, location="w.bin"))
    (tmp_path / "w.bin").write_bytes(b"of another model")
    copy_bytes(model, tmp_path / "copy.onnx")
    assert (tmp_path / "w.bin").read_bytes() == b"of another model"
    assert_same_outputs(mlp().SerializeToString(), tmp_path / "copy.onnx")


def test_the_wire_format_is_put_back_as_it_was(tmp_path: Path) -> None:
    for proto in (mlp(), if_model()):
        data = proto.SerializeToString()
        skeleton, payloads = protofile.cut(protofile.Memory(data))
        assert len(skeleton) < 2500
        assert payloads
        assert b"".join(protofile.chunks(protofile.splice(skeleton, payloads))) == data
