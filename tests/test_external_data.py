"""Weights in files of their own: they come back, and what leads elsewhere is refused."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import onnx
import pytest
from onnx import helper

from convrewrite import model_io
from convrewrite.errors import UsageError
from convrewrite.model_io import external_data, load, save, to_bytes, write_stream
from stored_models import arrays, assert_same_outputs, external, info, mlp, model_of, refusal, stored, weight

pytestmark = pytest.mark.usefixtures("small_chunks")


@pytest.mark.parametrize("one_file", [True, False])
def test_external_data_comes_back(tmp_path: Path, one_file: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    source = external(tmp_path, all_tensors_to_one_file=one_file, location="w.bin" if one_file else None)
    monkeypatch.chdir(tmp_path)  # names are relative to the model, not to the current folder
    model = load(source)
    assert model.has_external_data
    assert model.nbytes == sum(path.stat().st_size for path in source.parent.iterdir())
    target = save(model, tmp_path / "out.onnx")
    data = [path for path in tmp_path.iterdir() if path.suffix == ".data"]
    assert [path.name for path in data] == [f"out-{hashlib.sha256(data[0].read_bytes()).hexdigest()[:12]}.data"]
    assert_same_outputs(source, target)
    assert arrays(onnx.load(target).graph)["w"].tobytes() == arrays(mlp().graph)["w"].tobytes()
    assert save(load(target), tmp_path / "out.onnx").read_bytes() == target.read_bytes()
    assert_same_outputs(mlp().SerializeToString(), to_bytes(model))
    skeleton = model.skeleton()
    assert not any(tensor.external_data for tensor in skeleton.graph.initializer)


def test_a_model_over_the_limit_gets_a_data_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "w2"], ["y"])],
        [weight("w"), weight("w2", (64, 65), 3)],
        outputs=[info("y", (1, 65))],
    )
    source = stored(proto, tmp_path / "in.onnx")
    monkeypatch.setattr(model_io.writing, "MAX_FILE_BYTES", 20_000)
    model = load(source)
    target = save(model, tmp_path / "big.onnx")
    offsets = [
        int(entry.value)
        for t in onnx.load(target, load_external_data=False).graph.initializer
        for entry in t.external_data
        if entry.key == "offset"
    ]
    assert len(offsets) == 2
    assert all(offset % external_data.ALIGNMENT == 0 for offset in offsets)
    assert_same_outputs(source, target)
    with pytest.raises(UsageError, match="2 GB"):
        write_stream(model, io.BytesIO())
    with pytest.raises(UsageError, match="2 GB"):
        to_bytes(model)


def with_entries(source: Path, **entries: str) -> Path:
    proto = onnx.load(source, load_external_data=False)
    for tensor in proto.graph.initializer:
        if tensor.name == "w":
            held = {entry.key: entry.value for entry in tensor.external_data} | entries
            del tensor.external_data[:]
            for key, value in held.items():
                if value:
                    tensor.external_data.add(key=key, value=value)
    source.write_bytes(proto.SerializeToString())
    return source


@pytest.mark.parametrize(
    ("entries", "fragment"),
    [
        ({"location": "../secret.bin"}, "escapes the model's folder"),
        ({"location": "/etc/hostname"}, "escapes the model's folder"),
        ({"location": "sub/../../secret.bin"}, "escapes the model's folder"),
        ({"location": "..\\secret.bin"}, "escapes the model's folder"),
        ({"location": "C:\\secret.bin"}, "escapes the model's folder"),
        ({"location": "link.bin"}, "escapes the model's folder"),
        ({"location": "linked/secret.bin"}, "escapes the model's folder"),
        ({"location": ""}, "escapes the model's folder"),
        ({"location": "missing.bin"}, "'missing.bin' is missing"),
        ({"location": "."}, "is missing"),
        ({"offset": "1000000"}, "lie outside"),
        ({"offset": "-4"}, "lie outside"),
        ({"offset": "many"}, "no valid offset"),
        ({"length": "16380"}, "16380 bytes of external data"),
        ({"length": "-1"}, "-1 bytes of external data"),
    ],
    ids=str,
)
def test_external_data_that_is_wrong_is_refused(tmp_path: Path, entries: dict[str, str], fragment: str) -> None:
    source = external(tmp_path, location="w.bin")
    (tmp_path / "secret.bin").write_bytes(bytes(64 * 64 * 4))
    (source.parent / "link.bin").symlink_to(tmp_path / "secret.bin")
    (source.parent / "linked").symlink_to(tmp_path)
    message = refusal(with_entries(source, **entries))
    assert fragment in message
    assert "tensor 'w'" in message


def test_a_link_inside_the_folder_and_a_missing_length_are_fine(tmp_path: Path) -> None:
    source = external(tmp_path, location="w.bin")
    (source.parent / "link.bin").symlink_to("w.bin")
    target = save(load(with_entries(source, location="link.bin", length="")), tmp_path / "out.onnx")
    assert_same_outputs(mlp().SerializeToString(), target)


def test_external_data_cannot_come_from_standard_input(tmp_path: Path) -> None:
    assert "standard input" in refusal(external(tmp_path).read_bytes())
