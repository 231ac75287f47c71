"""A model as it is given to the functions of the Python API, and the words of their errors."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from onnx import ModelProto

from convrewrite import model_io
from convrewrite.errors import ConvrewriteError, UsageError
from convrewrite.model_io import Model
from convrewrite.options.kinds import path
from convrewrite.text import PYTHON, as_line

__all__ = ["Given", "model", "path", "spoken"]

Given = Model | ModelProto | str | os.PathLike[str]
"""A model, one of the package onnx, or the path of one."""

PLACE = re.compile(r"[^\s'\"]*convrewrite-[0-9a-f]{16}-[^\s/\\]*[/\\]([^\s'\";:,()]*)")
"""A file in a folder of the package's own making."""

KNOWN_AS = {"original.onnx": "the model", "model.onnx": "the result", "a.onnx": "a", "b.onnx": "b"}
"""What the caller knows such a file as."""

P = ParamSpec("P")
R = TypeVar("R")


def spoken(function: Callable[P, R]) -> Callable[P, R]:
    """The function, whose errors speak of its parameters and not of options of the command line."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **named: P.kwargs) -> R:
        try:
            return function(*args, **named)
        except ConvrewriteError as error:
            error.speak(PYTHON)
            error.message = placeless(error.message)
            error.remedy = error.remedy and placeless(error.remedy)
            error.args = (error.message,)
            raise

    return wrapped


def placeless(text: str) -> str:
    """The text without folders of the package's own making, which a caller knows nothing of."""
    return PLACE.sub(lambda found: KNOWN_AS.get(found[1], found[1]), text)


def model(given: object) -> Model:
    """A model, read where it is none yet. Raises UsageError."""
    if isinstance(given, Model):
        return given
    if isinstance(given, ModelProto):
        return _from_proto(given)
    return model_io.load(path("the model", given))


def _from_proto(proto: ModelProto) -> Model:
    try:
        content = proto.SerializeToString()
    except Exception as error:  # what this release of protobuf raises above 2 GB
        text = as_line(error)
        raise UsageError(f"the onnx model cannot be written to memory: {text}", remedy="give its path") from None
    try:
        return model_io.load(content)
    except UsageError as error:
        error.message = error.message.replace("standard input", "the onnx model")
        raise
