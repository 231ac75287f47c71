"""Reading and writing ONNX files: weights stay in the file until a pass asks for one.

A file is mapped and only its skeleton parsed (`protofile`); the skeleton becomes a graphsurgeon graph (`protograph`)
whose constants know where their bytes lie. Saving streams untouched weights from file to file. What is written
appears whole or not at all, and the file that was read is never changed: where both have one path, the old file stays
readable until the process ends. (Windows does not replace a file that is mapped: there, choose another path.)
"""

from __future__ import annotations

import filecmp
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_graphsurgeon as gs
from onnx import GraphProto, ModelProto, TensorProto

from convrewrite.atomic import (
    discard,
    publish,
    refuse_target,
    sync_folder,
    temporary_beside,
    write_durably,
    write_errors,
)
from convrewrite.board import doing
from convrewrite.errors import UsageError
from convrewrite.model_io.checks import DEFAULT_DOMAIN, dangling_input, drop_meaningless, refuse_unusable, run_checker
from convrewrite.model_io.external_data import move_weights_out, settle_tensors
from convrewrite.model_io.functions import inlined
from convrewrite.model_io.names import is_text, unreadable_text
from convrewrite.model_io.protofile import MappedFile, Memory, Payload, Segment, Source, chunks, cut, marked, splice
from convrewrite.model_io.protograph import export_graph, import_graph, sort_nodes, tensors

MAX_FILE_BYTES = 2**31 - 1
"""What protobuf can read; a model beyond it gets its weights in a second file."""


@dataclass(frozen=True)
class Origin:
    """What was read: the file, its external data files by location, and the skeleton of its graph."""

    source: Source
    external: dict[str, MappedFile]
    graph: GraphProto
    payloads: list[Payload]

    @cached_property
    def sha256(self) -> str:
        """Hash over the file and its external data files."""
        digest = hashlib.sha256()
        for source in [self.source, *self.external.values()]:
            for chunk in source.chunks(0, source.size):
                digest.update(chunk)
        return digest.hexdigest()


@dataclass
class Model:
    """A graph, and all of its file that is not graph.

    Attributes:
        graph: the nodes; weights are lazy. Initializers that the file lists as inputs are no `graph.inputs`.
        ir_version: kept on saving.
        path: where it was read from; None for standard input and for a model made in memory.
        metadata: `metadata_props`, in order; those that are not UTF-8 stay in the shell.
        shell: the rest of the file: producer, doc_string, training_info, functions that could not be inlined.
        origin: what was read; None for a model made in memory.
    """

    graph: gs.Graph
    ir_version: int
    path: Path | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    shell: ModelProto = field(default_factory=ModelProto, repr=False)
    origin: Origin | None = field(default=None, repr=False)

    @property
    def opset(self) -> int:
        """The version of the default operator domain."""
        return int(self.graph.opset)

    @property
    def sha256(self) -> str:
        """Of the file as it was read, followed by its external data files in order of their names."""
        return self.origin.sha256 if self.origin else ""

    @property
    def nbytes(self) -> int:
        """Size of the file as it was read, external data files included."""
        return sum(s.size for s in [self.origin.source, *self.origin.external.values()]) if self.origin else 0

    @property
    def defaults(self) -> tuple[str, ...]:
        """Initializers that the file lists as inputs, so that a caller may give other values (from IR version 4 on)."""
        if self.origin is None or self.ir_version < 4:
            return ()
        held = {tensor.name for tensor in self.origin.graph.initializer}
        return tuple(info.name for info in self.origin.graph.input if info.name in held)

    @property
    def has_external_data(self) -> bool:
        """Whether the file keeps tensors in other files."""
        return bool(self.origin and self.origin.external)

    def skeleton(self) -> ModelProto:
        """The whole model without the data of its large constants, for shape inference.

        Constants below 4 KiB and int64 vectors (the shapes that nodes take as inputs) keep their values.
        """
        proto, payloads = _export(self)
        for tensor in tensors(proto.graph):
            index = marked(tensor.raw_data)
            if index is not None and tensor.data_type == TensorProto.INT64 and len(tensor.dims) <= 1:
                tensor.raw_data = bytes(payloads[index].view)
            elif index is not None:
                tensor.ClearField("raw_data")
        return proto


def load(source: str | Path | bytes) -> Model:
    """Read a model; its weights stay where they are.

    Args:
        source: the path of an ONNX file, or its bytes (standard input).

    Raises:
        UsageError: where this is no file, no ONNX model, or one that the ONNX checker refuses.
    """
    path = None if isinstance(source, bytes) else Path(source)
    label = "standard input" if path is None else str(path)
    with doing(f"reading {label}"):
        return _load(source, path, label)


def _load(source: str | Path | bytes, path: Path | None, label: str) -> Model:
    data = Memory(source) if isinstance(source, bytes) else _map(Path(source))
    if not data.size:
        raise UsageError(f"{label}: the file is empty")
    try:
        skeleton, payloads = cut(data)
        proto = ModelProto.FromString(skeleton)
    except Exception as error:  # MalformedError, or what this release of protobuf raises
        raise UsageError(f"{label}: truncated, or not an ONNX model ({_one_line(error)})") from error
    if not proto.HasField("graph"):
        raise UsageError(f"{label}: not an ONNX model: it holds no readable graph")
    fault = unreadable_text(proto)
    if fault:
        raise UsageError(f"{label}: not a valid ONNX model: {fault} is not text in UTF-8")
    drop_meaningless(proto.graph)
    external = settle_tensors(proto.graph, payloads, path, label)
    refuse_unusable(proto, label)
    try:
        sort_nodes(proto.graph)
        run_checker(proto)
        proto = inlined(proto)
        graph = import_graph(proto, payloads)
    except Exception as error:  # the checker and graphsurgeon raise what they like on a model that is wrong
        raise UsageError(
            f"{label}: not a valid ONNX model: {dangling_input(proto.graph) or _one_line(error)}"
        ) from error
    shell = ModelProto()
    shell.CopyFrom(proto)
    for name in ("graph", "opset_import", "metadata_props", "ir_version"):
        shell.ClearField(name)
    metadata = {entry.key: entry.value for entry in proto.metadata_props if is_text(entry)}
    shell.metadata_props.extend(entry for entry in proto.metadata_props if not is_text(entry))
    return Model(graph, proto.ir_version, path, metadata, shell, Origin(data, external, proto.graph, payloads))


def _map(path: Path) -> MappedFile:
    try:
        return MappedFile(path)
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        reason = "it is a folder" if path.is_dir() else getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot read {path}: {reason}") from error


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]}..."


def _export(model: Model) -> tuple[ModelProto, list[Payload]]:
    """The skeleton of what a save would write, and the payloads of its marks."""
    origin = model.origin
    graph, payloads = export_graph(
        model.graph,
        origin.graph if origin else GraphProto(),
        origin.payloads if origin else [],
        all_are_inputs=model.ir_version < 4,
    )
    proto = ModelProto()
    proto.CopyFrom(model.shell)
    proto.ir_version = model.ir_version
    proto.graph.CopyFrom(graph)
    proto.opset_import.extend(model.graph.import_domains or [onnx.helper.make_opsetid("", model.opset)])
    for opset in proto.opset_import:
        if opset.domain in DEFAULT_DOMAIN:
            opset.version = model.opset
    declared = {"ai.onnx", *(opset.domain for opset in proto.opset_import)}
    used = {n.domain for g in [model.graph, *model.graph.subgraphs(recursive=True)] for n in g.nodes if n.domain}
    proto.opset_import.extend(onnx.helper.make_opsetid(domain, 1) for domain in sorted(used - declared))
    for key, value in model.metadata.items():
        proto.metadata_props.add(key=key, value=value)
    return proto, payloads


def _segments(proto: ModelProto, payloads: list[Payload]) -> list[Segment]:
    return splice(proto.SerializeToString(deterministic=True), payloads)


def _fits_one_file(segments: list[Segment]) -> bool:
    return sum(map(len, segments)) <= MAX_FILE_BYTES


def write_stream(model: Model, file: BinaryIO) -> None:
    """Write a model to a stream, such as standard output, with all of its weights in it.

    Raises:
        UsageError: where the model has more than 2 GB, or the stream cannot be written.
    """
    segments = _segments(*_export(model))
    if not _fits_one_file(segments):
        raise UsageError("a model over 2 GB cannot go to standard output", remedy="give a path to write to")
    with write_errors("the model to the output stream"):
        file.writelines(chunks(segments))
        file.flush()


def to_bytes(model: Model) -> bytes:
    """The bytes of a model with all of its weights; `UsageError` over 2 GB."""
    segments = _segments(*_export(model))
    if not _fits_one_file(segments):
        raise UsageError("a model over 2 GB cannot be held in one piece", remedy="save it to a path")
    return b"".join(chunks(segments))


@dataclass
class Staged:
    """A model that is written whole beside its target, under a temporary name.

    Attributes:
        path: the temporary file, ready to be run.
        target: the path that `commit` gives it.
    """

    path: Path
    target: Path
    committed: bool = False

    def commit(self) -> None:
        """Publish it: rename, then make the folder's new entries durable."""
        with write_errors(self.target):
            publish(self.path, self.target)
            self.committed = True
            sync_folder(self.target.parent)


@contextmanager
def staged(model: Model, target: str | Path) -> Iterator[Staged]:
    """Write a model under a temporary name; leaving without `commit` removes all that was written.

    A model over 2 GB, and one that was read with external data, gets one data file beside it. That one carries the
    hash of its content in its name, so it can be in place before the model is, and never overwrites what an older
    model still uses. The data file of a model that is replaced stays: other models may name it.

    Raises:
        UsageError: where the target cannot be written.
    """
    target = Path(target)
    target = refuse_target(target)
    result = Staged(temporary_beside(target, ".onnx"), target)
    data_file = None
    try:
        with write_errors(target), doing(f"writing {target}"):
            proto, payloads = _export(model)
            segments = _segments(proto, payloads)
            if model.has_external_data or not _fits_one_file(segments):
                data_file = move_weights_out(proto.graph, payloads, target)
                segments = _segments(proto, payloads)
            if not _fits_one_file(segments):
                raise UsageError(f"cannot write {target}: over 2 GB of constants inside nodes")
            write_durably(result.path, chunks(segments))
        yield result
    finally:
        discard(result.path)
        if data_file and not result.committed:
            discard(data_file)


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

    Its external data files go along to another folder. Where other files of their names are there already, which
    must not be overwritten, and where a stream is the target, the model is saved instead.

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
    target = Path(target)
    target = refuse_target(target)
    if origin.external and not _copy_external(model, target):
        save(model, target)
        return
    result = Staged(temporary_beside(target, ".onnx"), target)
    try:
        with write_errors(target):
            write_durably(result.path, origin.source.chunks(0, origin.source.size))
        result.commit()
    finally:
        discard(result.path)


def _copy_external(model: Model, target: Path) -> bool:
    """Bring the external data files to the target's folder; False, and nothing done, where others are in the way."""
    assert model.origin is not None
    assert model.path is not None
    moves = [(model.path.parent / name, target.parent / name, data) for name, data in model.origin.external.items()]
    missing = [(to, data) for _, to, data in moves if not os.path.lexists(to)]
    for source, to, _ in moves:
        if os.path.lexists(to) and not (to.is_file() and filecmp.cmp(source, to, shallow=False)):
            return False
    with write_errors(target):
        for to, data in missing:
            to.parent.mkdir(parents=True, exist_ok=True)
            temporary = temporary_beside(to, ".data")
            try:
                write_durably(temporary, data.chunks(0, data.size))
                publish(temporary, to)
            finally:
                discard(temporary)
    return True
