"""From a model to a file or a stream: whole or not at all, and untouched weights from file to file."""

from __future__ import annotations

import filecmp
import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from onnx import ModelProto

from convrewrite.errors import UsageError
from convrewrite.model_io import likeness
from convrewrite.model_io.external_data import move_weights_out
from convrewrite.model_io.model import Model, export
from convrewrite.model_io.protofile import MappedFile, Payload, Segment, chunks, splice
from convrewrite.model_io.publishing import private_folder, publish
from convrewrite.system.atomic import discard, refuse_target, same_path, temporary_beside, write_durably, write_errors
from convrewrite.system.board import doing

MAX_FILE_BYTES = 2**31 - 1
"""What protobuf can read; a model beyond it gets its weights in a second file."""


def _segments(proto: ModelProto, payloads: list[Payload]) -> list[Segment]:
    return splice(proto.SerializeToString(deterministic=True), payloads)


def _fits_one_file(segments: list[Segment]) -> bool:
    return sum(map(len, segments)) <= MAX_FILE_BYTES


def write_stream(model: Model, file: BinaryIO) -> None:
    """Write a model to a stream, such as standard output, with all of its weights in it.

    Raises:
        UsageError: where the model has more than 2 GB, or the stream cannot be written.
    """
    segments = _segments(*export(model))
    if not _fits_one_file(segments):
        raise UsageError("a model over 2 GB cannot go to standard output", remedy="give a path to write to")
    with write_errors("the model to the output stream"):
        file.writelines(chunks(segments))
        file.flush()


def to_bytes(model: Model) -> bytes:
    """The bytes of a model with all of its weights; `UsageError` over 2 GB."""
    segments = _segments(*export(model))
    if not _fits_one_file(segments):
        raise UsageError("a model over 2 GB cannot be held in one piece", remedy="save it to a path")
    return b"".join(chunks(segments))


@dataclass
class Staged:
    """A model that is written whole, ready to take the place of its target.

    Attributes:
        path: where it can be run. target: the path that `commit` gives it.
        data: its data files, each with the path that it will have; they lie beside `path` under the same names.
    """

    path: Path
    target: Path
    data: dict[Path, Path] = field(default_factory=dict)

    def commit(self) -> None:
        """Publish it: the data files, then by a rename the model; then make the folder's new entries durable."""
        with write_errors(self.target):
            publish((self.path, self.target), self.data)


@contextmanager
def staged(model: Model, target: str | Path) -> Iterator[Staged]:
    """Write a model under a temporary name; leaving without `commit` removes all that was written.

    A model over 2 GB, and one that was read with external data, gets one data file beside it. That one carries the
    hash of its content in its name, and never overwrites what an older model still uses. The data file of a model that
    is replaced stays: other models may name it.

    Raises:
        UsageError: where the target cannot be written, or is a data file of the model.
    """
    target = refuse_target(Path(target))
    _refuse_own_data(model, target)
    with ExitStack() as stack:
        with write_errors(target), doing(f"writing {target}"):
            proto, payloads = export(model)
            segments = _segments(proto, payloads)
            data: dict[Path, Path] = {}
            if model.has_external_data or not _fits_one_file(segments):
                folder = stack.enter_context(private_folder(target))
                path, moved = folder / "model.onnx", move_weights_out(proto.graph, payloads, folder, target)
                data = {} if moved is None else {moved: target.with_name(moved.name)}
                segments = _segments(proto, payloads)
            else:
                path = temporary_beside(target, ".onnx")
                stack.callback(discard, path)
            if not _fits_one_file(segments):
                raise UsageError(f"cannot write {target}: over 2 GB of constants inside nodes")
            write_durably(path, chunks(segments))
        yield Staged(path, target, data)


def save(model: Model, target: str | Path) -> Path:
    """Write a model to a path, whole or not at all, and return the path.

    Raises:
        UsageError: where the target cannot be written.
    """
    with staged(model, target) as written:
        written.commit()
    return Path(target)


def copy_bytes(model: Model, target: str | Path | BinaryIO) -> None:
    """Copy the file of a model byte for byte, where there is nothing to rewrite.

    Its external data files go along to another folder. Where they cannot have their names there (another file is in the
    way, the model itself among them), and where a stream is the target, the model is saved instead.

    Raises:
        UsageError: where the target cannot be written, or the model was made in memory.
    """
    origin = model.origin
    if origin is None:
        raise UsageError("a model that was not read from a file cannot be copied", remedy="save it")
    if not isinstance(target, str | Path):
        if origin.external:
            write_stream(model, target)
            return
        with write_errors("the model to the output stream"):
            target.writelines(origin.source.chunks(0, origin.source.size))
            target.flush()
        return
    target = refuse_target(Path(target))
    _refuse_own_data(model, target)
    companions = _companions(model, target)
    if companions is None:
        save(model, target)
        return
    with write_errors(target), ExitStack() as stack:
        data: dict[Path, Path] = {}
        if companions:
            folder = stack.enter_context(private_folder(target))
            path = folder / "model.onnx"
            for number, (to, source) in enumerate(companions.items()):
                to.parent.mkdir(parents=True, exist_ok=True)
                written = folder / f"{number}.data"
                write_durably(written, source.chunks(0, source.size))
                data[written] = to
        else:
            path = temporary_beside(target, ".onnx")
            stack.callback(discard, path)
        write_durably(path, origin.source.chunks(0, origin.source.size))
        publish((path, target), data)


def _companions(model: Model, target: Path) -> dict[Path, MappedFile] | None:
    """The external data files that a copy lacks in its folder, by path; None where one cannot have its name there."""
    assert model.origin is not None
    folder, missing = Path(os.path.realpath(target.parent)), {}
    for source, data in _own_data(model).items():
        assert model.path is not None
        to = target.parent / source.relative_to(model.path.parent)
        if same_path(to, target) or not Path(os.path.realpath(to.parent)).is_relative_to(folder):
            return None
        if not os.path.lexists(to):
            missing[to] = data
        elif not (to.is_file() and filecmp.cmp(source, to, shallow=False)):
            return None
    return missing


def _own_data(model: Model) -> dict[Path, MappedFile]:
    """The external data files of a model by path."""
    if model.origin is None or model.path is None:
        return {}
    return {model.path.parent / location: data for location, data in model.origin.external.items()}


def _refuse_own_data(model: Model, target: Path) -> None:
    for path in _own_data(model):
        if same_path(path, target):
            raise UsageError(
                f"cannot write {target}: it is external data of {model.path}", remedy="give it a path of its own"
            )


def content(model: Model) -> tuple[int, str]:
    """Number and SHA-256 of the bytes that a file with all of the weights of the model, as it is now, would have."""
    digest, size = hashlib.sha256(), 0
    for chunk in chunks(_segments(*export(model))):
        digest.update(chunk)
        size += memoryview(chunk).nbytes
    return size, digest.hexdigest()


def content_sha256(model: Model) -> str:
    """A hash of the model as it is now: of the bytes that a file with all of its weights would have."""
    return content(model)[1]


def same_network(a: Model, b: Model, tolerance: float) -> bool:
    """Whether two models are one graph, with weights that differ by no more than this share of the largest of each."""
    return likeness.alike(export(a), export(b), tolerance)


def fingerprint(model: Model) -> dict[str, Any]:
    """What is kept of a model to know its network again where the file is not at hand: see `likeness.recognized`."""
    return likeness.fingerprint(export(model))
