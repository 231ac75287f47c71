"""Whose fault it is: the model's, or this program's. What ONNX Runtime says of the model decides.

    refuse_contradictions   a model whose shapes or types contradict each other is named as such before any work
    blaming                 an error that nobody foresaw is the model's only where ONNX Runtime cannot load or run it

The ONNX package is stricter than ONNX Runtime here and there, and a model that runs is a valid model: so what shape
inference says is a suspicion, and the runtime's own refusal the proof. A fault of ours on a valid model stays one
(exit 70), and is never passed off as the user's.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto

from convrewrite.errors import ConvrewriteError, UsageError
from convrewrite.model_io import Model
from convrewrite.model_io.extents import contradiction
from convrewrite.model_io.protofile import marked
from convrewrite.model_io.protograph import tensors
from convrewrite.running import runtime
from convrewrite.running.installed import RuntimeMissing

MOST = 1 << 24
"""Entries of an input that is made up to see whether a model runs."""

KNOWN_DOMAINS = frozenset(("", "ai.onnx", "ai.onnx.ml", "com.microsoft"))
"""Of the operators that ONNX Runtime has; a model with others is refused for those, by the pass that meets one."""


def refuse_contradictions(model: Model) -> None:
    """Refuse a model whose operators contradict their inputs, or share a name, where ONNX Runtime does not load it.

    Raises:
        UsageError: with ONNX Runtime's own words, where it cannot load the model; or extents contradict each other,
            which it finds only when it runs.
    """
    origin = model.origin
    if origin is None:
        return
    proto = _skeleton(model)
    names = [node.name for node in proto.graph.node if node.name]
    if len(names) > len(set(names)) and (fault := unloadable(model)) is not None:  # which shapes do not show
        raise fault
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except Exception:  # InferenceError, or whatever the C++ side lets through
        fault = unloadable(model)
        if fault is not None:
            raise fault from None
        return
    words = contradiction(inferred.graph)
    if words:
        raise UsageError(f"{model.path or 'standard input'}: not a valid ONNX model: {words}")


@contextlib.contextmanager
def blaming(models: Sequence[Model]) -> Iterator[None]:
    """Run work on models; an error that is none of ours becomes theirs where ONNX Runtime cannot load or run one.

    Args:
        models: looked at when the error comes, so they may be added inside.

    Raises:
        UsageError: ONNX Runtime's reason. Any other error passes through as it is.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        if isinstance(error, ConvrewriteError) and error.exit_code != ConvrewriteError.exit_code:
            raise
        for model in models:
            fault = unloadable(model, run=True)
            if fault is not None:
                raise fault from error
        raise


def unloadable(model: Model, *, run: bool = False) -> UsageError | None:
    """Why ONNX Runtime cannot load a file, as it was read; None where it can, or where it lacks the operators.

    Args:
        model: the file. run: also run it once on small numbers, where its inputs have fixed shapes; without it no
            operator runs, as nothing is optimized.
    """
    origin = model.origin
    if origin is None or not _domains(model) <= KNOWN_DOMAINS:
        return None
    label = str(model.path or "standard input")
    source = model.path or bytes(origin.source.view)
    try:
        session = runtime.open_session(source, "cpu", optimize=False, label=label)
        feeds = _feeds(session.inputs) if run else None
        if feeds is not None:
            session.run(feeds)
    except (runtime.DeviceFailed, RuntimeMissing):  # which say nothing of the model
        return None
    except runtime.RunFailed as error:
        return UsageError(error.text)
    except UsageError as error:
        return error
    return None


def _feeds(inputs: Sequence[runtime.TensorInfo]) -> dict[str, np.ndarray[Any, Any]] | None:
    """Ones for numbers that are not whole, zeros else; None where a shape is open behind the first axis, or large."""
    feeds = {}
    for info in inputs:
        shape = [1 if place == 0 and not isinstance(dim, int) else dim for place, dim in enumerate(info.shape)]
        fixed = [dim for dim in shape if isinstance(dim, int) and dim > 0]
        if len(fixed) < len(shape) or math.prod(fixed) > MOST or info.dtype.kind == "O":
            return None
        feeds[info.name] = np.ones(fixed, info.dtype) if info.dtype.kind == "f" else np.zeros(fixed, info.dtype)
    return feeds


def _domains(model: Model) -> set[str]:
    assert model.origin is not None
    own = {function.domain for function in model.shell.functions}
    return {node.domain for node in model.origin.graph.node} - own


def _skeleton(model: Model) -> ModelProto:
    """The file's graph, without large weights, and without what it says of tensors inside: that may be stale."""
    assert model.origin is not None
    proto = ModelProto()
    proto.CopyFrom(model.shell)
    proto.ir_version = model.ir_version
    proto.opset_import.extend(model.graph.import_domains)
    proto.graph.CopyFrom(model.origin.graph)
    proto.graph.name = proto.graph.name or "graph"
    proto.graph.ClearField("value_info")
    for info in proto.graph.output:
        if info.type.HasField("tensor_type"):
            info.type.tensor_type.ClearField("shape")
    for tensor in tensors(proto.graph):
        index = marked(tensor.raw_data)
        if index is not None and tensor.data_type == TensorProto.INT64 and len(tensor.dims) <= 1:
            tensor.raw_data = bytes(model.origin.payloads[index].view)
        elif index is not None:
            tensor.ClearField("raw_data")
    return proto
