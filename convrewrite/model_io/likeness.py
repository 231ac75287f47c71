"""Whether two files hold one network: the same graph, and the same weights or nearly so."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from convrewrite.model_io.protofile import Payload, marked
from convrewrite.model_io.protograph import tensors

VALUES = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")

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


def _near(a: TensorProto, b: TensorProto, one: Exported, other: Exported, tolerance: float) -> bool:
    if a.data_type == TensorProto.STRING:
        return list(a.string_data) == list(b.string_data)
    left, right = _bytes(a, one[1]), _bytes(b, other[1])
    if left == right:
        return True
    if not tolerance or a.data_type not in (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16):
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
