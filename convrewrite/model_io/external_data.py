"""Where the bytes of each tensor lie: in the model's own file, or in a file beside it that the model names.

A model is untrusted: what it names must lie inside its folder, and offsets, lengths and shapes must agree before
anything is read.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path, PureWindowsPath

from onnx import GraphProto, TensorProto

from convrewrite.errors import UsageError
from convrewrite.model_io.protofile import LARGE, MappedFile, Payload, mark, marked
from convrewrite.model_io.protograph import tensors
from convrewrite.model_io.publishing import free_for
from convrewrite.model_io.stored import raw_bytes, values_fault
from convrewrite.system.atomic import write_durably
from convrewrite.text import counted, file_name, visible

ALIGNMENT = 4096
"""Where tensors start in a data file: at pages, so that a runtime can map them."""

SHOWN = 200
"""Characters of a location in a message."""


def settle_tensors(graph: GraphProto, payloads: list[Payload], path: Path | None, label: str) -> dict[str, MappedFile]:
    """Check the amount of data of every tensor and turn external ones into marks like those of the file's own.

    Args:
        graph: the skeleton; external tensors are changed in place, those that are small to tensors with raw data.
        payloads: what the marks stand for; external ones are appended.
        path: the model's path; None where it came from standard input.
        label: how messages name the model.

    Returns:
        The external data files by location, in order of their names.

    Raises:
        UsageError: where a file is missing or outside the model's folder, or where sizes do not agree.
    """
    files: dict[str, MappedFile] = {}
    for tensor in tensors(graph):
        where = f"{label}: tensor '{tensor.name}'"
        if tensor.data_location == TensorProto.EXTERNAL:
            if path is None:
                raise UsageError(
                    f"{where} has its data in another file, which standard input cannot bring",
                    remedy="give the model's path",
                )
            payload = _external_payload(tensor, path, files, where)
            tensor.ClearField("data_location")
            del tensor.external_data[:]
            if payload.length < LARGE:
                tensor.raw_data = bytes(payload.view)
            else:
                payloads.append(payload)
                tensor.raw_data = mark(len(payloads) - 1)
        length = None
        if tensor.HasField("raw_data"):
            index = marked(tensor.raw_data)
            length = len(tensor.raw_data) if index is None else payloads[index].length
        fault = values_fault(tensor, length)
        if fault:
            raise UsageError(f"{where} {fault}")
    return {location: files[location] for location in sorted(files)}


def _external_payload(tensor: TensorProto, path: Path, files: dict[str, MappedFile], where: str) -> Payload:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if location not in files:
        files[location] = _open_inside(path.parent, location, where)
    try:
        expected = raw_bytes(tensor)
        offset = int(entries.get("offset") or 0)
        length = int(entries["length"]) if entries.get("length") else expected
    except ValueError as error:
        raise UsageError(f"{where}: its external data has no valid offset and length ({error})") from error
    if length is None or length != expected:
        raise UsageError(
            f"{where} has {length} bytes of external data where its type and shape {list(tensor.dims)} "
            f"ask for {expected}"
        )
    size = files[location].size
    if offset < 0 or offset + length > size:
        raise UsageError(f"{where}: bytes {offset} to {offset + length} lie outside '{location}', which has {size}")
    return Payload(files[location], offset, length)


def _open_inside(folder: Path, location: str, where: str) -> MappedFile:
    """A file that a model names, if it is a regular one inside the model's folder."""
    shown = location if len(location) <= SHOWN else f"{location[:SHOWN]}..."
    escapes = f"{where}: its external data '{shown}' escapes the model's folder"
    parts = PureWindowsPath(location)  # knows both separators, and drives
    if not location or "\0" in location or parts.anchor or ".." in parts.parts:
        raise UsageError(escapes)
    file = folder / location
    try:
        if not Path(os.path.realpath(file)).is_relative_to(os.path.realpath(folder)):
            raise UsageError(escapes)
        if not file.is_file():
            raise UsageError(f"{where}: its external data file '{shown}' is missing from {folder}")
        names = file.stat().st_nlink
        if names > 1:  # as the ONNX checker has it: the other names may lie anywhere
            raise UsageError(
                f"{where}: its external data '{shown}' has {counted(names, 'name')} (hard links), which may lie "
                "outside of the model's folder",
                remedy="copy the file, and put the copy in its place",
            )
        return MappedFile(file)
    except OSError as error:  # a name that is too long, a loop of links, no permission
        raise UsageError(f"{where}: cannot read its external data '{shown}' ({error.strerror})") from error


def locations(graph: GraphProto) -> set[str]:
    """The external data files that a graph names, as it names them."""
    external = (tensor for tensor in tensors(graph) if tensor.data_location == TensorProto.EXTERNAL)
    return {entry.value for tensor in external for entry in tensor.external_data if entry.key == "location"}


def move_weights_out(graph: GraphProto, payloads: list[Payload], folder: Path, target: Path) -> Path | None:
    """Write the large initializers into a data file in `folder`; its path, or None where there are none.

    Its name begins as the target's and carries the hash of its content, so that the same name means the same bytes: the
    whole hash, where the target's folder has another file under the short name.

    Constants inside nodes and subgraphs stay in the model's file, where every runtime finds them.
    """
    offsets: dict[Payload, int] = {}
    marks = [(tensor, marked(tensor.raw_data)) for tensor in graph.initializer]
    moved = [(tensor, payloads[index]) for tensor, index in marks if index is not None]
    end = 0
    for _, payload in moved:
        if payload not in offsets:
            offsets[payload] = -(-end // ALIGNMENT) * ALIGNMENT
            end = offsets[payload] + len(payload)
    if not moved:
        return None
    digest = hashlib.sha256()

    def content() -> Iterator[bytes | memoryview]:
        position = 0
        for payload, offset in offsets.items():
            for chunk in chain([bytes(offset - position)], payload.chunks()):
                digest.update(chunk)
                yield chunk
            position = offset + len(payload)

    written = folder / "weights"
    write_durably(written, content())
    stem = file_name(visible(target.stem))  # a model names it in UTF-8, and `\\` separates on other systems
    name = f"{stem}-{digest.hexdigest()[:12]}.data"
    if not free_for(written, target.with_name(name)):
        name = f"{stem}-{digest.hexdigest()}.data"
    path = folder / name
    os.replace(written, path)
    for tensor, payload in moved:
        _point_outside(tensor, name, offsets[payload], len(payload))
    return path


def _point_outside(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    """Let a tensor name a range of an external data file as the place of its data."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": offset, "length": length}.items():
        tensor.external_data.add(key=key, value=str(value))
