"""What is given to the functions of the Python API, read as the command line reads its words.

size=224, size=(224, 224), size=np.array([224, 224])      (224,), (224, 224), (224, 224)
size="224x224", size=-1, provider=3, only=7               UsageError, in one line
"""

from __future__ import annotations

import functools
import inspect
import math
import operator
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar

import numpy as np
from onnx import ModelProto

from convrewrite import model_io
from convrewrite.errors import ConvrewriteError, UsageError
from convrewrite.model_io import Model
from convrewrite.pipeline.outcome import Options
from convrewrite.text import PYTHON

Given = Model | ModelProto | str | os.PathLike[str]
"""A model, one of the package onnx, or the path of one."""

Size = int | Sequence[int]
"""Of an image: one extent for all axes, or one per axis."""

PLACE = re.compile(r"[^\s'\"]*convrewrite-[0-9a-f]{16}-[^\s/\\]*[/\\]([^\s'\";:,()]*)")
"""A file in a folder of the package's own making."""

KNOWN_AS = {"original.onnx": "the model", "model.onnx": "the result", "a.onnx": "a", "b.onnx": "b"}
"""What the caller knows such a file as."""

P = ParamSpec("P")
R = TypeVar("R")

COMPARISON = ("sizes", "batch", "shapes", "where", "reference", "tolerance", "fixed", "least", "twins")
"""What `verify` hands on."""

PROVIDERS = ("auto", "cpu", "cuda", "tensorrt")


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
        text = " ".join(str(error).split())
        raise UsageError(f"the onnx model cannot be written to memory: {text}", remedy="give its path") from None
    try:
        return model_io.load(content)
    except UsageError as error:
        error.message = error.message.replace("standard input", "the onnx model")
        raise


def path(what: str, given: object) -> str:
    """A path, or the address of one. Raises UsageError."""
    if isinstance(given, str | os.PathLike) and isinstance(os.fspath(given), str):
        if os.fspath(given):
            return str(os.fspath(given))
        raise UsageError(f"{what} is an empty path", remedy="give a path")
    raise UsageError(
        f"{what} is {_kind(given)}",
        remedy="give a path, what load gives, or an onnx.ModelProto" if what == "the model" else "give a path",
    )


def extents(name: str, given: object) -> tuple[int, ...] | None:
    """A size per axis, one number for all; None stays None. Raises UsageError."""
    if given is None:
        return None
    values = [given] if _is_number(given) else given
    try:
        if isinstance(values, str | bytes | Mapping):
            raise TypeError
        found = tuple(_index(value) for value in values)  # type: ignore[attr-defined]
    except TypeError:
        found = ()
    if not found or min(found) < 1:
        raise UsageError(f"{name} is {given!r}", remedy=f"give whole numbers above 0, such as {name}=(224, 224)")
    return found


def _index(value: Any) -> int:
    if isinstance(value, bool | np.bool_):
        raise TypeError
    return operator.index(value)


def _is_number(given: object) -> bool:
    return hasattr(given, "__index__") and not (isinstance(given, np.ndarray) and given.ndim)


def whole(name: str, given: object, least: int) -> int:
    """A whole number. Raises UsageError."""
    try:
        number = _index(given)
    except TypeError:
        number = least - 1
    if number < least:
        raise UsageError(f"{name} is {given!r}", remedy=f"give a whole number, {least} or more")
    return number


def tolerance(given: object) -> float:
    """A number that can bound an error. Raises UsageError."""
    try:
        number = float(given) if not isinstance(given, str | bytes | bool) else math.nan  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise UsageError(f"{given!r} is not a tolerance", remedy="give a number such as 1e-5")
    return number


def one_of(name: str, given: object, known: Sequence[str]) -> str:
    """One of several words. Raises UsageError."""
    if not isinstance(given, str) or given not in known:
        shown = f"'{given}'" if isinstance(given, str) else repr(given)
        raise UsageError(f"{name} is {shown}", remedy=f"choose one of {', '.join(known)}")
    return given


def yes(name: str, given: object) -> bool:
    """True or False. Raises UsageError."""
    if not isinstance(given, bool | np.bool_):
        raise UsageError(f"{name} is {given!r}", remedy="give True or False")
    return bool(given)


def options(given: Mapping[str, Any]) -> Options:
    """What every function takes. Raises UsageError for what there is not, and for values of another type."""
    known_only(given, Options.__dataclass_fields__)
    found = Options(**given)
    one_of("provider", found.provider, PROVIDERS)
    limit = found.max_output_error
    if not isinstance(limit, Mapping):
        limit = None if limit is None else tolerance(limit)
    if found.progress is not None and not callable(found.progress):
        raise UsageError(f"progress is {found.progress!r}", remedy="give a function of a text and two numbers")
    return replace(
        found,
        verify=yes("verify", found.verify),
        max_output_error=limit,
        samples=whole("samples", found.samples, 1),
        seed=whole("seed", found.seed, 0),
        data=_data(found.data),
        data_path=str(found.data_path),
        only=_patterns("only", found.only),
        skip=_patterns("skip", found.skip),
    )


def _data(given: object) -> Mapping[str, np.ndarray[Any, Any]] | None:
    """Arrays by input name; lists of numbers become arrays."""
    if given is None:
        return None
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise UsageError(f"data is {_kind(given)}", remedy="give arrays by input name, such as {'image': array}")
    arrays = {}
    for name, values in given.items():
        try:
            arrays[name] = np.asarray(values)
        except ValueError:
            arrays[name] = np.asarray(None)
        if arrays[name].dtype.hasobject:
            raise UsageError(f"data['{name}'] is {_kind(values)}", remedy="give an array of numbers")
    return arrays


def _patterns(name: str, given: object) -> tuple[str, ...]:
    """Globs; one alone needs no list."""
    found = (given,) if isinstance(given, str) else given
    if isinstance(found, bytes | Mapping) or not isinstance(found, Iterable):
        found = (None,)
    patterns = tuple(found)
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise UsageError(f"{name} is {given!r}", remedy=f"give patterns of names, such as {name}=('conv*',)")
    return patterns


def timings(given: object) -> str | None:
    """Path of a file of timing decisions. Raises UsageError."""
    return None if given is None else str(path("timings", given))


def _sizes(given: object) -> list[tuple[int, ...]]:
    """Several sizes; a number or a tuple of numbers among them is one."""
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise UsageError(f"sizes is {given!r}", remedy="give a list, such as sizes=[(224, 224), (512, 512)]")
    return [size for one in given if (size := extents("sizes", one)) is not None]


def comparison(given: Mapping[str, Any]) -> dict[str, Any]:
    """What `verification.verify` takes besides the options of all functions. Raises UsageError."""
    known_only(given, [*COMPARISON, *Options.__dataclass_fields__])
    found = dict(given)
    if "sizes" in found:
        found["sizes"] = _sizes(found["sizes"])
    if found.get("batch") is not None:
        found["batch"] = whole("batch", found["batch"], 1)
    if found.get("shapes") is not None:
        if not isinstance(found["shapes"], Mapping):
            raise UsageError(f"shapes is {found['shapes']!r}", remedy="give shapes by input, as {'x': (1, 3, 8, 8)}")
        found["shapes"] = {name: extents("shapes", shape) or () for name, shape in found["shapes"].items()}
    if "where" in found:
        yes("where", found["where"])
    if "reference" in found:
        one_of("reference", found["reference"], ("onnxruntime", "onnx"))
    return found


def timing(given: Mapping[str, Any]) -> dict[str, Any]:
    """What `timing.bench` takes, where it was given. Raises UsageError."""
    found: dict[str, Any] = {}
    if "sizes" in given:
        found["sizes"] = _sizes(given["sizes"])
    if "batches" in given:
        found["batches"] = extents("batches", given["batches"] or None) or ()
    if "provider" in given:
        one_of("provider", given["provider"], PROVIDERS)
    for name in ("seconds", "min_speedup"):
        if given.get(name) is not None and not isinstance(given[name], int | float | np.number):
            raise UsageError(f"{name} is {given[name]!r}", remedy="give a number above 0")
    for name, least in (("threads", 1), ("sets", 1), ("seed", 0)):
        if given.get(name) is not None:
            found[name] = whole(name, given[name], least)
    return found


def known_only(given: Iterable[str], known: Iterable[str]) -> None:
    """Raise UsageError where an option is none of those that there are."""
    if unknown := set(given) - set(known):
        raise UsageError(f"there is no option '{min(unknown)}'", remedy=f"choose from {', '.join(sorted(known))}")


def parameters(function: Callable[..., Any]) -> list[str]:
    """The names that a function takes by keyword alone."""
    every = inspect.signature(function).parameters.values()
    return [parameter.name for parameter in every if parameter.kind is parameter.KEYWORD_ONLY]


def _kind(given: object) -> str:
    return "None" if given is None else f"of type {type(given).__name__}"
