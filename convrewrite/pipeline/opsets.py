"""A model in a later operator set, by onnx's own converter."""

from __future__ import annotations

from dataclasses import replace

import onnx
from onnx import version_converter

from convrewrite import model_io
from convrewrite.errors import UsageError
from convrewrite.model_io import Model
from convrewrite.text import as_line, parameter


def upgraded(model: Model, opset: int) -> Model:
    """The model in that operator set; as it is where it has it already. Its weights are read into memory.

    Raises:
        UsageError: the opset is an earlier one or unknown, or an operator has no conversion.
    """
    now, newest = int(model.graph.opset), onnx.defs.onnx_opset_version()
    if opset == now:
        return model
    if not now < opset <= newest:
        raise UsageError(
            f"{parameter('opset', opset)} does not fit: the model has opset {now}",
            remedy=f"choose one from {now} to {newest}",
        )
    proto = onnx.load_from_string(model_io.to_bytes(model))
    try:
        made = version_converter.convert_version(proto, opset)
    except Exception as error:  # the converter raises what its C++ throws
        text = as_line(error)[:200]
        raise UsageError(
            f"onnx cannot convert the model to opset {opset}: {text}", remedy="try another opset"
        ) from None
    made.ir_version = max(made.ir_version, onnx.helper.find_min_ir_version_for(list(made.opset_import), True))
    loaded = model_io.load(made.SerializeToString())
    return replace(loaded, metadata=dict(model.metadata))
