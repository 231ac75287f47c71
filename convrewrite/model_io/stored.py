"""Values of constants as a file holds them: how many bytes they take, and how to read them on demand."""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues

from convrewrite.model_io.protofile import CHUNK, RELEASED, MappedFile, Payload
from convrewrite.text import counted

_BITS_NAMED_OTHERWISE = {"FLOAT": 32, "DOUBLE": 64, "BOOL": 8, "STRING": 0, "UNDEFINED": 0}
_BITS = {
    code: _BITS_NAMED_OTHERWISE[name] if name in _BITS_NAMED_OTHERWISE else int(re.findall(r"\d+", name)[0])
    for name, code in TensorProto.DataType.items()
}
_VALUE_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")


def is_packed(code: int) -> bool:
    """Whether values of this type share bytes, or have no fixed size: strings."""
    return not _BITS[code] or _BITS[code] % 8 != 0


def raw_bytes(tensor: TensorProto) -> int | None:
    """How many bytes the values of a tensor take in a file; None for strings and unknown types.

    Raises:
        ValueError: where a dimension is negative.
    """
    if any(dim < 0 for dim in tensor.dims):
        raise ValueError("has a negative dimension")
    bits = _BITS.get(tensor.data_type, 0)
    return (prod(tensor.dims) * bits + 7) // 8 if bits else None


def values_fault(tensor: TensorProto, length: int | None) -> str | None:
    """What is wrong with the number of values of a tensor whose raw data (if any) has this many bytes."""
    try:
        expected = raw_bytes(tensor)
    except ValueError as error:
        return str(error)
    if length is not None:
        if expected != length:
            return (
                f"has {counted(length, 'byte')} of data where its type and shape {list(tensor.dims)} ask for {expected}"
            )
        return None
    held = max(len(getattr(tensor, field)) for field in _VALUE_FIELDS)
    count = prod(tensor.dims)
    if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
        count *= 2
    if _BITS.get(tensor.data_type, 0) % 8:
        count = int(expected or 0)
    return (
        None if held == count else f"has {counted(held, 'value')} where its shape {list(tensor.dims)} asks for {count}"
    )


class StoredValues(LazyValues):  # type: ignore[misc]
    """The values of a constant as the file holds them: read when a pass asks for them, else only passed on.

    `load` gives a read-only view of the mapped file where NumPy has the type.
    """

    def __init__(self, proto: TensorProto, payload: Payload | None) -> None:
        self._proto = proto
        self.payload = payload
        self.shape = tuple(proto.dims)
        self.dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(proto.data_type))
        self.nbytes = raw_bytes(proto) or 0

    @property
    def tensor(self) -> TensorProto:
        """The tensor without its payload: a copy each time, because graphsurgeon's exporter renames what it gets."""
        proto = TensorProto()
        proto.CopyFrom(self._proto)
        if self.payload is not None:
            proto.ClearField("raw_data")
        return proto

    def load(self) -> np.ndarray[Any, Any]:
        """Read the values into an array."""
        if self.payload is None:
            return onnx.numpy_helper.to_array(self._proto)
        if self.dtype.itemsize * prod(self.shape) == len(self.payload):
            values = np.frombuffer(self.payload.view, self.dtype)
            if isinstance(self.payload.source, MappedFile) and len(self.payload) >= RELEASED:
                span = self.payload.offset, len(self.payload)
                weakref.finalize(values, self.payload.source.release, *span).atexit = False
            return values.reshape(self.shape)
        proto = self.tensor  # several values share a byte, or this release of onnx widens the type
        proto.raw_data = bytes(self.payload.view)
        return onnx.numpy_helper.to_array(proto)

    def pieces(self) -> Iterator[np.ndarray[Any, Any]]:
        """The values one part after the other, in no shape; of a file they are read without mapping them."""
        if (
            self.payload is None
            or CHUNK % self.dtype.itemsize
            or self.dtype.itemsize * prod(self.shape) != len(self.payload)
        ):
            yield self.load().reshape(-1)
        else:
            yield from (np.frombuffer(chunk, self.dtype) for chunk in self.payload.chunks())


class StoredSparse(SparseValues):  # type: ignore[misc]
    """A sparse initializer. graphsurgeon's own reader knows only some of the fields that values may lie in."""

    def load(self) -> np.ndarray[Any, Any]:
        """Read the values into a dense array."""
        values = onnx.numpy_helper.to_array(self.tensor.values)
        indices = onnx.numpy_helper.to_array(self.tensor.indices)
        dense = np.zeros(tuple(self.tensor.dims), values.dtype)
        if indices.ndim == 1:
            dense.reshape(-1)[indices] = values
        else:
            dense[tuple(indices.T)] = values
        return dense
