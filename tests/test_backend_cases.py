"""The onnx package's own backend cases through the pass: what ONNX Runtime passes before must pass after.

Each case is converted twice: with graphsurgeon alone, and through the project's reader and writer. It must be rewritten
to the same function, declined or refused with a known reason, or, by the reader only, be refused as input.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

import oracles
from convrewrite.errors import UsageError
from convrewrite.passes.fcn import Fcn
from convrewrite.rewrite import Site, run_pass
from helpers import Array, Feeds, run, session

pytestmark = pytest.mark.slow

CHUNKS = 12
ROUNDING = 1e-5
IR_VERSION = 10

EXPECTED: dict[str, int] = {}


@functools.cache
def cases() -> tuple[Any, ...]:
    """All cases whose model and data come with the onnx package."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import load_model_tests

        found = [case for kind in KINDS for case in load_model_tests(kind=kind)]
    return tuple(sorted(found, key=lambda case: (case.kind, case.name)))


KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")


def model_of(case: Any) -> onnx.ModelProto:
    """The model of a case, with an IR version that ONNX Runtime reads."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model if case.model is not None else onnx.load(Path(case.model_dir) / "model.onnx"))
    model.ir_version = min(model.ir_version, IR_VERSION)
    return model


def data_of(case: Any, model: onnx.ModelProto) -> tuple[Feeds, list[Any]] | None:
    """Inputs by name and the expected outputs, or None where they are not all tensors."""
    constants = {tensor.name for tensor in model.graph.initializer}
    names = [info.name for info in model.graph.input if info.name not in constants]
    if case.data_sets is not None:
        inputs, outputs = case.data_sets[0]
    else:
        folder = Path(case.model_dir) / "test_data_set_0"
        try:
            inputs, outputs = ([_tensor(folder / f"{kind}_{i}.pb") for i in range(len(list(folder.glob(f"{kind}_*"))))] for kind in ("input", "output"))
        except (ValueError, TypeError, onnx.onnx_cpp2py_export.checker.ValidationError):
            return None
    if len(inputs) != len(names) or not all(isinstance(value, np.ndarray | np.generic) for value in (*inputs, *outputs)):
        return None
    return dict(zip(names, map(np.asarray, inputs), strict=True)), list(outputs)


def _tensor(path: Path) -> Array:
    tensor = onnx.TensorProto()
    tensor.ParseFromString(path.read_bytes())
    return numpy_helper.to_array(tensor)


def passes_before(case: Any, model: onnx.ModelProto, feeds: Feeds, expected: list[Any]) -> bool:
    """Whether ONNX Runtime runs the original and gives what the case expects."""
    try:
        values = run(model, feeds)
    except Exception:  # the exception classes of ONNX Runtime share no base but Exception
        return False
    try:
        for got, want in zip(values.values(), expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=case.rtol, atol=case.atol)
    except (AssertionError, TypeError, ValueError):
        return False
    return True
