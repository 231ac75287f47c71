"""The wire format of an ONNX file, as far as weights can be cut out of it and put back without being read.

    file      ModelProto { graph { initializer { name, dims, raw_data: 400 MB } node { ... } } }
    skeleton  ModelProto { graph { initializer { name, dims, raw_data: MARK + index } node { ... } } }

`cut` walks the nested messages on the way to every large `raw_data`, replaces it by a mark of 24 bytes and says where
the bytes lie; protobuf then parses kilobytes. `splice` does the reverse on a serialised skeleton: each mark becomes
the `Payload` that it stands for, and the lengths of the messages around it are made right. All else, unknown fields
included, passes through as it is.

A message is a run of fields; a field is a varint `number << 3 | wire type`, then its value, which has a length in
front where the wire type is 2 (strings, bytes, messages).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import stat
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

LARGE = 4096
"""Tensors of this many bytes and more are cut out."""

CHUNK = 1 << 22

RELEASED = 1 << 20
"""Values of this many bytes and more give their pages back once nothing looks at them."""

MAX_DEPTH = 100  # protobuf's own limit for nested messages

# Made anew in each process, so that no file can hold a mark of its own; no mark is ever written to a file.
_MARK = secrets.token_bytes(16)
_MARK_LENGTH = len(_MARK) + 8

# The messages on the way to the tensors that become graphsurgeon constants. All other tensors stay in the skeleton.
_NESTED: dict[tuple[str, int], str] = {
    ("Model", 7): "Graph",
    ("Graph", 1): "Node",
    ("Graph", 5): "Tensor",
    ("Node", 5): "Attribute",
    ("Attribute", 5): "Tensor",
    ("Attribute", 6): "Graph",
    ("Tensor", 9): "raw_data",
}


class MalformedError(ValueError):
    """The bytes are no protobuf message, or end in the middle of one."""


class Source(ABC):
    """A file or buffer that holds the bytes of tensors."""

    @property
    @abstractmethod
    def view(self) -> memoryview:
        """All bytes."""

    @property
    @abstractmethod
    def size(self) -> int:
        """The number of bytes."""

    def chunks(self, offset: int, length: int) -> Iterator[bytes | memoryview]:
        """The bytes of a range in pieces that are small enough to hold many of."""
        view = self.view
        for start in range(offset, offset + length, CHUNK):
            yield view[start : min(start + CHUNK, offset + length)]


class MappedFile(Source):
    """A file that is mapped, not read. On Linux it stays readable after its path was replaced."""

    def __init__(self, path: Path) -> None:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if stat.S_ISREG(status.st_mode) and status.st_size:
                # The handle is kept for streaming, which unlike the mapping leaves no pages resident.
                self._handle: int | None = os.dup(file.fileno())
                weakref.finalize(self, os.close, self._handle)
                self._map: mmap.mmap | None = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                self._view = memoryview(self._map)
                _mapped.add(self)
            else:
                self._handle = self._map = None
                self._view = memoryview(file.read())  # a pipe, or nothing

    @property
    def view(self) -> memoryview:
        """All bytes."""
        return self._view

    @property
    def size(self) -> int:
        """The number of bytes."""
        return len(self._view)

    @cached_property
    def address(self) -> int:
        """The address of the mapping in memory."""
        return int(np.frombuffer(self._view, np.uint8).ctypes.data)

    def release(self, offset: int, length: int) -> None:
        """Let the system take the pages of a range back; whoever looks again reads them from the file."""
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            first = offset - offset % mmap.PAGESIZE
            with contextlib.suppress(OSError, ValueError):
                self._map.madvise(mmap.MADV_DONTNEED, first, length + offset - first)

    def chunks(self, offset: int, length: int) -> Iterator[bytes | memoryview]:
        """The bytes of a range, read from the file without touching the mapping."""
        if self._handle is None or not hasattr(os, "pread"):
            yield from super().chunks(offset, length)
            return
        end = offset + length
        while offset < end:
            chunk = os.pread(self._handle, min(CHUNK, end - offset), offset)
            if not chunk:
                raise OSError("a file that is being read was cut short by another program")
            yield chunk
            offset += len(chunk)


_mapped: weakref.WeakSet[MappedFile] = weakref.WeakSet()


def located(array: np.ndarray[Any, Any]) -> Payload | None:
    """Where the bytes of an array lie in a mapped file: then it is a view of weights whose bytes did not change."""
    if not array.flags.c_contiguous or not array.nbytes:
        return None
    start = int(array.__array_interface__["data"][0])
    for file in list(_mapped):
        if file.address <= start and start + array.nbytes <= file.address + file.size:
            return Payload(file, start - file.address, array.nbytes)
    return None


class Memory(Source):
    """Bytes in memory: standard input, or an array that a pass has made."""

    def __init__(self, data: bytes | np.ndarray[Any, Any]) -> None:
        self._data = data

    @property
    def view(self) -> memoryview:
        """All bytes; those of an array that is not contiguous are copied each time."""
        if isinstance(self._data, bytes):
            return memoryview(self._data)
        return np.ascontiguousarray(self._data).reshape(-1).view(np.uint8).data

    @property
    def size(self) -> int:
        """The number of bytes."""
        return len(self._data) if isinstance(self._data, bytes) else int(self._data.nbytes)


@dataclass(frozen=True)
class Payload:
    """The bytes of one tensor, in a file or in memory."""

    source: Source
    offset: int
    length: int

    def __len__(self) -> int:
        return self.length

    @property
    def view(self) -> memoryview:
        """The bytes, without a copy where they are contiguous."""
        return self.source.view[self.offset : self.offset + self.length]

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The bytes, in pieces that fit into memory."""
        return self.source.chunks(self.offset, self.length)


Segment = bytes | memoryview | Payload


def chunks(segments: Sequence[Segment]) -> Iterator[bytes | memoryview]:
    """What the segments hold, in pieces that can be written one after the other."""
    for segment in segments:
        if isinstance(segment, Payload):
            yield from segment.chunks()
        else:
            yield segment


def mark(index: int) -> bytes:
    """What stands in a skeleton's `raw_data` for the payload of this index."""
    return _MARK + index.to_bytes(8, "little")


def marked(raw_data: bytes) -> int | None:
    """The index of the payload that a skeleton's `raw_data` stands for; None where it is the data itself."""
    if len(raw_data) == _MARK_LENGTH and raw_data.startswith(_MARK):
        return int.from_bytes(raw_data[len(_MARK) :], "little")
    return None


def cut(source: Source) -> tuple[bytes, list[Payload]]:
    """The skeleton of a serialised ModelProto, and the payloads that its marks stand for.

    Raises:
        MalformedError: where the bytes are no protobuf message, or end too early.
    """
    payloads: list[Payload] = []

    def replace(start: int, end: int) -> Segment:
        payloads.append(Payload(source, start, end - start))
        return mark(len(payloads) - 1)

    view = source.view
    segments = _rewrite(view, 0, len(view), "Model", worth=lambda start, end: end - start >= LARGE, replace=replace)
    return b"".join(chunks(segments)), payloads


def splice(skeleton: bytes, payloads: Sequence[Payload]) -> list[Segment]:
    """The segments of the whole file: the skeleton with each mark replaced by its payload."""

    def replace(start: int, end: int) -> Segment:
        index = marked(skeleton[start:end])
        return skeleton[start:end] if index is None else payloads[index]

    def holds_mark(start: int, end: int) -> bool:
        return skeleton.find(_MARK, start, end) >= 0

    return _rewrite(memoryview(skeleton), 0, len(skeleton), "Model", worth=holds_mark, replace=replace)


def _rewrite(
    data: memoryview,
    start: int,
    end: int,
    kind: str,
    worth: Callable[[int, int], bool],
    replace: Callable[[int, int], Segment],
    depth: int = 0,
) -> list[Segment]:
    """One message with its `raw_data` replaced, where the message and each one around it is `worth` a look."""
    if depth > MAX_DEPTH:
        raise MalformedError("messages are nested too deeply")
    segments: list[Segment] = []
    kept = start
    for number, wire, tag_start, value_start, value_end in _fields(data, start, end):
        child = _NESTED.get((kind, number)) if wire == 2 else None
        if child is None or not worth(value_start, value_end):
            continue
        if child == "raw_data":
            inner = [replace(value_start, value_end)]
        else:
            inner = _rewrite(data, value_start, value_end, child, worth=worth, replace=replace, depth=depth + 1)
        segments.append(data[kept:tag_start])
        segments.append(_encoded(number << 3 | 2) + _encoded(sum(map(len, inner))))
        segments.extend(inner)
        kept = value_end
    segments.append(data[kept:end])
    return segments


def _fields(data: memoryview, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Each field of a message: number, wire type, where the tag starts, where the value starts and ends."""
    at = start
    while at < end:
        tag_start = at
        tag, at = _varint(data, at, end)
        number, wire = tag >> 3, tag & 7
        value_start = at
        if wire == 0:
            _, at = _varint(data, at, end)
        elif wire == 1:
            at += 8
        elif wire == 2:
            length, value_start = _varint(data, at, end)
            at = value_start + length
        elif wire == 5:
            at += 4
        else:
            raise MalformedError(f"a field has wire type {wire}")
        if number == 0:
            raise MalformedError("a field has number 0")
        if at > end:
            raise MalformedError("a field is longer than what is left of its message")
        yield number, wire, tag_start, value_start, at


def _varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise MalformedError("the data ends in the middle of a number")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise MalformedError("a number has too many digits")


def _encoded(value: int) -> bytes:
    """A number as a varint."""
    digits = bytearray()
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    digits.append(value)
    return bytes(digits)
