"""One reason to leave something as it is, shown by the smallest model that gives it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

HEAD = '<ir_version: 8, opset_import: ["": 17]>'


@dataclass(frozen=True)
class Example:
    """A model and the command that gives the reason with it; on the page, and run by tests/test_refused.py.

    Attributes:
        code: the reason.
        command: words behind `convrewrite`, a line for each command; or a program that gives `result`, where the reason
            is that of a pass which has no command.
        model: its text, without a header where that is `HEAD`.
        weights: numpy expressions for initializers that may not be random, by name.
        other: the text of a second model, other.onnx. numbers: for its initializers, as `weights`.
        works: commands that succeed, on model.onnx, or on other.onnx, which is then the model repaired.
        note: what is to be seen in the model, where that is not plain.
    """

    code: str
    command: str
    model: str
    weights: Mapping[str, str] = field(default_factory=dict)
    other: str = ""
    numbers: Mapping[str, str] = field(default_factory=dict)
    works: str = ""
    note: str = ""

    @property
    def program(self) -> str:
        """The Python program in the place of a command, if it is one."""
        return self.command.strip() if self.command.lstrip().startswith("import ") else ""

    def texts(self) -> Iterator[tuple[str, str, Mapping[str, str]]]:
        """Each model's file, text and weights."""
        yield "model.onnx", with_head(self.model), self.weights
        if self.other:
            yield "other.onnx", with_head(self.other), self.numbers


def with_head(text: str) -> str:
    """The text of a model with versions ahead of it."""
    text = textwrap.dedent(text).strip()
    return text if text.startswith("<ir_version") else f"{HEAD}\n{text}"


def made(text: str, **weights: np.ndarray[Any, Any]) -> onnx.ModelProto:
    """The model of a text; initializers written as {} get the numbers that are given, or else random ones."""
    model, random = onnx.parser.parse_model(text), np.random.default_rng(0)
    for tensor in model.graph.initializer:
        if not (tensor.raw_data or tensor.float_data or tensor.int32_data or tensor.int64_data):
            values = weights.get(tensor.name, random.standard_normal(tensor.dims))
            kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            values = np.broadcast_to(values, tensor.dims).astype(kind)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return model
