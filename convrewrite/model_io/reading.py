"""From a file, or its bytes, to a model: mapped, looked at by the checker, its weights left where they are."""

from __future__ import annotations

from pathlib import Path

from onnx import ModelProto

from convrewrite.errors import UsageError
from convrewrite.model_io.checks import (
    dangling_input,
    drop_meaningless,
    refuse_unusable,
    run_checker,
)
from convrewrite.model_io.external_data import locations, settle_tensors
from convrewrite.model_io.functions import inlined
from convrewrite.model_io.model import Model, Origin
from convrewrite.model_io.names import is_text, unreadable_text
from convrewrite.model_io.protofile import MappedFile, Memory, cut
from convrewrite.model_io.protograph import import_graph, sort_nodes
from convrewrite.system.board import doing
from convrewrite.text import as_line


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
    return Model(
        graph,
        proto.ir_version,
        path,
        metadata=metadata,
        shell=shell,
        origin=Origin(data, external, proto.graph, payloads),
    )


def _map(path: Path) -> MappedFile:
    try:
        return MappedFile(path)
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        reason = "it is a folder" if path.is_dir() else getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot read {path}: {reason}") from error


def _one_line(error: Exception) -> str:
    text = as_line(error)
    return text if len(text) <= 300 else f"{text[:300]}..."


def data_files(path: str | Path) -> list[Path]:
    """The external data files that a model names, whether they are there or not; none of what is no readable model."""
    path = Path(path)
    try:
        if not path.is_file():  # a pipe can be read only once
            return []
        skeleton, _ = cut(MappedFile(path))
        named = locations(ModelProto.FromString(skeleton).graph) if b"location" in skeleton else set()
    except Exception:  # `load` says what is wrong with it
        return []
    return [path.parent / location for location in sorted(named) if "\0" not in location]
