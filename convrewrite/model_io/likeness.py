"""Whether two files hold one network: the same graph, and the same weights or nearly so."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from convrewrite.model_io.protofile import Payload, marked
from convrewrite.model_io.protograph import tensors

VALUES = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")

FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)

VIEWS = 8
"""Sums of all weights, each with signs of its own: as many as a byte has bits."""

CHUNK = 1 << 20
"""Weights that are looked at together."""

Exported = tuple[ModelProto, Sequence[Payload]]
"""A skeleton, and the payloads of its marks; it is used up."""


def alike(one: Exported, other: Exported, tolerance: float) -> bool:
    """Whether all but the values of weights is the same, and these differ by no more than a share of the largest.

    Args:
        tolerance: on max|a-b| / max|b| of each tensor of floats; every other tensor has to be the same.
    """
    pairs = zip(tensors(one[0].graph), tensors(other[0].graph), strict=False)
    for a, b in pairs:
        if (
            list(a.dims) != list(b.dims)
            or a.data_type != b.data_type
            or not _near(a, b, one, other, tolerance=tolerance)
        ):
            return False
        for tensor in (a, b):
            for name in VALUES:
                tensor.ClearField(name)
    # as text of the wire format: what was passed over above, an odd number of tensors included, differs here
    left, right = (proto.SerializeToString(deterministic=True) for proto in (one[0], other[0]))
    return bool(left == right)


def fingerprint(one: Exported) -> dict[str, Any]:
    """What is kept of a network to know it again, though its weights may differ in their last digits.

    Returns:
        `structure`: a hash of all but the weights. `tensors`: how many of floats there are. `sums`: of all weights,
        each divided by the largest of its tensor, and of the logarithms of the largest, with random signs.
    """
    digest = hashlib.sha256()
    sums, count = np.zeros(VIEWS), 0
    for number, tensor in enumerate(tensors(one[0].graph)):
        if tensor.data_type in FLOATS:
            content = _bytes(tensor, one[1])
            sums += _sums(np.frombuffer(content, np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))), number)
            count += 1
        elif tensor.data_type == TensorProto.STRING:
            digest.update(repr(list(tensor.string_data)).encode())
        else:
            digest.update(_bytes(tensor, one[1]))
        for name in VALUES:
            tensor.ClearField(name)
    digest.update(one[0].SerializeToString(deterministic=True))
    return {"structure": digest.hexdigest(), "tensors": count, "sums": [float(f"{value:.9g}") for value in sums]}


def recognized(one: Mapping[str, Any], other: Mapping[str, Any], tolerance: float) -> bool:
    """Whether two fingerprints are those of one network, whose weights differ by no more than a share of the largest.

    Differences that know nothing of the signs add up to that share times the root of the number of tensors; six times
    that is allowed.
    """
    if any(one[name] != other[name] for name in ("structure", "tensors")) or len(one["sums"]) != len(other["sums"]):
        return False
    room = 6 * tolerance * math.sqrt(one["tensors"])
    return all(abs(a - b) <= room for a, b in zip(one["sums"], other["sums"], strict=True))


def _sums(values: np.ndarray[Any, Any], seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Sums of the values over the largest and the root of their number, with random signs; the largest counts, too."""
    largest = float(np.abs(values).max(initial=0.0))
    if not largest or not math.isfinite(largest):
        return np.full(VIEWS, float(not math.isfinite(largest)))
    signs = np.unpackbits(np.frombuffer(hashlib.shake_256(f"{seed}".encode()).digest(1), np.uint8))
    sums = math.log(largest) * (2 * signs.astype(np.float64) - 1)
    for start in range(0, values.size, CHUNK):
        part = values[start : start + CHUNK].astype(np.float64)
        drawn = hashlib.shake_256(f"{seed} {start}".encode()).digest(part.size)  # the same in every version of NumPy
        signs = np.unpackbits(np.frombuffer(drawn, np.uint8)[:, None], axis=1)
        sums += (2 * (part @ signs) - part.sum()) / (largest * math.sqrt(values.size))
    return sums


def _near(a: TensorProto, b: TensorProto, one: Exported, other: Exported, tolerance: float) -> bool:
    if a.data_type == TensorProto.STRING:
        return list(a.string_data) == list(b.string_data)
    left, right = _bytes(a, one[1]), _bytes(b, other[1])
    if left == right:
        return True
    if not tolerance or a.data_type not in FLOATS:
        return False
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(a.data_type))
    x, y = (np.frombuffer(part, dtype).astype(np.float64) for part in (left, right))
    largest = float(np.abs(y).max(initial=0.0))
    return bool(np.isfinite(largest) and x.shape == y.shape and np.abs(x - y).max(initial=0.0) <= tolerance * largest)


def _bytes(tensor: TensorProto, payloads: Sequence[Payload]) -> bytes:
    index = marked(tensor.raw_data)
    if index is not None:
        return bytes(payloads[index].view)
    return tensor.raw_data or numpy_helper.to_array(tensor).tobytes()
