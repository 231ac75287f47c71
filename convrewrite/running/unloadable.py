"""What to tell of a model that ONNX Runtime does not load: its own words, and a remedy where the cause is known."""

from __future__ import annotations

import contextlib
from pathlib import Path

import onnx
from onnx import TensorProto

from convrewrite.errors import UsageError
from convrewrite.model_io.protofile import MappedFile, Memory, cut

IN_DOUBLES = "ONNX Runtime has few operators in float64: export the model in float32, or convert it"


def refuse_missing(label: str, source: str | Path | bytes) -> None:
    """Raise UsageError where a model's path is none of a file."""
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise UsageError(f"ONNX Runtime cannot load {label}: {'not a' if Path(source).exists() else 'no such'} file")


def unloadable(label: str, source: str | Path | bytes, cause: str) -> UsageError:
    """The error for a model, given what ONNX Runtime said of it in one line."""
    remedy = IN_DOUBLES if "find an implementation" in cause and _computes_in_doubles(source) else None
    return UsageError(f"ONNX Runtime cannot load {label}: {cause}", remedy=remedy)


def _computes_in_doubles(source: str | Path | bytes) -> bool:
    """Whether a weight, an input or a Cast of the model is float64."""
    with contextlib.suppress(Exception):  # whatever keeps it from being read was told already
        skeleton, _ = cut(Memory(source) if isinstance(source, bytes) else MappedFile(Path(source)))
        graph = onnx.load_model_from_string(skeleton).graph
        kinds = [tensor.data_type for tensor in graph.initializer]
        kinds += [info.type.tensor_type.elem_type for info in graph.input]
        kinds += [a.i for node in graph.node if node.op_type == "Cast" for a in node.attribute if a.name == "to"]
        kinds += [a.t.data_type for node in graph.node if node.op_type == "Constant" for a in node.attribute]
        return TensorProto.DOUBLE in kinds
    return False
