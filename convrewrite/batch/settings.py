"""What convrewrite.toml may say. A key that it may not is answered with the nearest one that it may."""

from __future__ import annotations

import difflib
import math
import os
import re
import reprlib
import string
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag

from convrewrite import plugins
from convrewrite.errors import UsageError

DEFAULT = "convrewrite.toml"

MOST = 4 << 20
"""Bytes of the file."""

MISTAKES = 20
"""So many are told."""


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("it is not a number")
    return value


def _size(value: list[int]) -> list[int]:
    if not 1 <= len(value) <= 3 or min(value) < 1 or max(value) >= LARGEST:
        raise ValueError("write one to three extents, such as [224, 224]")
    return value


def _path(value: str) -> str:
    """A path that a file system can have; whether it does, is seen later."""
    if not value.strip() or not value.isprintable():
        raise ValueError("it is no path: it is empty, or has characters that do not print")
    if value == "-":
        raise ValueError(
            "it needs a path, as nothing of a run goes to standard output; write ./- for a file of that name"
        )
    first, *more = re.split(r"[/\\]", value)
    if first == "~" or (more and first.startswith(("~", "$"))):
        raise ValueError(f"'{first[0]}' is not expanded here; write the path out, or ./{first} for a name like that")
    if max(len(os.fsencode(part)) for part in Path(value).parts or ("",)) > LONGEST:
        raise ValueError(f"a name in it has more than {LONGEST} bytes")
    return value


def _template(value: str) -> str:
    """A path with fields in it."""
    try:
        fields = [(name, spec, how) for _, name, spec, how in string.Formatter().parse(value) if name is not None]
    except ValueError as error:
        raise ValueError(f"{error}; write {{name}} or {{folder}}") from None
    if any(name not in FIELDS or spec or how for name, spec, how in fields):
        raise ValueError("it has a field that is not {name} or {folder}")
    return _path(value)


LARGEST = 10**9
"""No count, extent or number of samples is larger."""

LONGEST = 255
"""Bytes of a name in a path."""

FIELDS = ("name", "folder", "stem")

Count = Annotated[int, Field(ge=1, lt=LARGEST)]
FilePath = Annotated[str, AfterValidator(_path)]
Template = Annotated[str, AfterValidator(_template)]
Tolerance = Annotated[float, Field(ge=0), AfterValidator(_finite)]
Size = Annotated[list[int], AfterValidator(_size)]
Accept = Literal["smaller", "faster", "always"]
Class = Literal["exact", "reassociated", "approximate"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Step(_Section):
    only: list[str] = []
    skip: list[str] = []


class FcnStep(_Step):
    """As the command `fcn`."""

    name: Literal["fcn"] = Field("fcn", alias="pass")
    window: Size | None = None
    size: Size | None = None
    stride: Size | None = None
    upsample: Literal["bilinear", "nearest"] | None = None
    softmax: Literal["last", "none"] | None = None
    opset: Annotated[int, Field(ge=7, lt=LARGEST)] | None = None
    dynamic_batch: bool = False


class SeparableStep(_Step):
    """As the command `separable`; `max_output_error` here rewrites only as many layers as stay within it."""

    name: Literal["separable"] = Field("separable", alias="pass")
    tol: Tolerance = 0.0
    form: Literal["auto", "spatial", "depthwise", "channel", "tucker"] = "auto"
    accept: Accept = "smaller"
    fit: bool = True
    size: Size | None = None
    max_output_error: Tolerance | None = None


class GroupsStep(_Step):
    """As the command `groups`."""

    name: Literal["groups"] = Field("groups", alias="pass")
    tol: Tolerance = 0.0
    into: Annotated[int, Field(ge=2, lt=LARGEST)] | None = None
    expand: Literal["branches", "dense"] | None = None
    accept: Accept = "smaller"
    size: Size | None = None
    max_output_error: Tolerance | None = None


class PluginStep(_Step):
    """A pass of another package; further keys are its own options."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    name: str = Field(alias="pass")
    accept: Accept = "always"
    size: Size | None = None
    max_output_error: Tolerance | None = None


def _kind(step: Any) -> str | None:
    """Which kind of step it is, by the name of its pass."""
    name = step.get("pass") if isinstance(step, dict) else getattr(step, "name", None)
    return None if not isinstance(name, str) else name if name in ("fcn", "separable", "groups") else "plugin"


Step = Annotated[
    Annotated[FcnStep, Tag("fcn")]
    | Annotated[SeparableStep, Tag("separable")]
    | Annotated[GroupsStep, Tag("groups")]
    | Annotated[PluginStep, Tag("plugin")],
    Discriminator(_kind),
]


class Verification(_Section):
    """How results are checked."""

    data: Template | None = None
    samples: Count = 3
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    provider: Literal["auto", "cpu", "cuda", "tensorrt"] = "auto"
    size: Size | None = None


class Gates(_Section):
    """What every model has to pass, its steps taken together."""

    equivalence: Class | None = None
    max_output_error: Tolerance | None = None
    min_top1_agreement: Annotated[float, Field(ge=0, le=1)] | None = None
    max_bytes: Annotated[int, Field(ge=1, lt=2**63)] | None = None
    min_speedup: Annotated[float, Field(gt=0), AfterValidator(_finite)] | None = None
    bench_seconds: Annotated[float, Field(gt=0), AfterValidator(_finite)] = 5.0


class Reports(_Section):
    """Where the results go."""

    json_: FilePath | None = Field(None, alias="json")
    junit: FilePath | None = None
    markdown: FilePath | None = None
    html: FilePath | None = None


class Settings(_Section):
    """The whole file; paths in it are relative to its folder."""

    models: Annotated[list[FilePath], Field(min_length=1)]
    output: Template = "optimized/{name}.onnx"
    steps: Annotated[list[Step], Field(min_length=1)]
    jobs: Count | None = None
    timeout: Annotated[float, Field(gt=0), AfterValidator(_finite)] = 3600.0
    allow_refused: bool = False
    lock: FilePath = "convrewrite.lock"
    verification: Verification = Verification()
    gates: Gates = Gates()
    reports: Reports = Field(default_factory=lambda: Reports.model_validate({}))


SECTIONS: dict[str, type[BaseModel]] = {
    "": Settings,
    "verification": Verification,
    "gates": Gates,
    "reports": Reports,
    "fcn": FcnStep,
    "separable": SeparableStep,
    "groups": GroupsStep,
}


def read(path: Path) -> Settings:
    """Read and validate the file.

    Raises:
        UsageError: it cannot be read, is not TOML, or says something that it may not; every mistake on one line.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MOST + 1)
        if len(content) > MOST:
            raise UsageError(f"{path} has more than {MOST:,} bytes", remedy="is it the right file?")
        data = tomllib.loads(content.decode("utf-8"))
    except FileNotFoundError:
        raise UsageError(f"there is no {path}", remedy="write one with 'convrewrite init'") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:  # TOML's own, text that is not UTF-8, a number of too many digits
        raise UsageError(f"{path} is not TOML: {_short(error)}", remedy="mend it there") from None
    except RecursionError:
        raise UsageError(f"{path} is nested too deeply", remedy="mend it there") from None
    try:
        settings = Settings.model_validate(data)
    except pydantic.ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
        mistakes = "; ".join(_told(mistake) for mistake in found[:MISTAKES])
        more = f"; and {len(found) - MISTAKES} more" if len(found) > MISTAKES else ""
        raise UsageError(f"{path}: {mistakes}{more}") from None
    except RecursionError:
        raise UsageError(f"{path} is nested too deeply", remedy="mend it there") from None
    for step in settings.steps:
        if isinstance(step, PluginStep):
            _check_plugin(path, step)
    return settings


def _check_plugin(path: Path, step: PluginStep) -> None:
    try:
        plugins.make(step.name, step.model_extra or {})
    except UsageError as error:
        raise UsageError(f"{path}: {error.text}") from None


def _told(mistake: Any) -> str:
    """Where a mistake is, what it is, and for a wrong key the nearest right one."""
    place = [_short(part) for part in mistake["loc"]]
    where = ".".join(place)
    if mistake["type"] == "extra_forbidden":
        owner = next((part for part in reversed(place[:-1]) if part in SECTIONS), "")
        fields = SECTIONS[owner].model_fields
        known = [field.alias or name for name, field in fields.items()]
        near = difflib.get_close_matches(place[-1], known, 1, 0.4)
        return f"there is no key '{where}'; " + (f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}")
    if mistake["type"] == "missing":
        return f"'{where}' is missing"
    if mistake["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return f'\'{where}\' needs pass = "fcn", "separable", "groups" or the name of another one'
    text = str(mistake["msg"]).removeprefix("Value error, ")
    return f"'{where}': {_short(f'{text[:1].lower()}{text[1:]}')}, not {_short(reprlib.repr(mistake['input']))}"


def _short(what: object) -> str:
    """On one line, and no longer than one wants to read."""
    text = "".join(char if char.isprintable() else "?" for char in " ".join(str(what).split()))
    return text if len(text) <= 200 else f"{text[:200]}..."
