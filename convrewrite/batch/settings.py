"""What convrewrite.toml may say. A key that it may not is answered with the nearest one that it may."""

from __future__ import annotations

import difflib
import math
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag

from convrewrite import plugins
from convrewrite.errors import UsageError

DEFAULT = "convrewrite.toml"


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("it is not a number")
    return value


def _size(value: list[int]) -> list[int]:
    if not 1 <= len(value) <= 3 or min(value) < 1:
        raise ValueError("write one to three extents, such as [224, 224]")
    return value


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
    opset: Annotated[int, Field(ge=7)] | None = None
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
    into: Annotated[int, Field(ge=2)] | None = None
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

    data: str | None = None
    samples: Annotated[int, Field(ge=1)] = 3
    seed: Annotated[int, Field(ge=0)] = 0
    provider: Literal["auto", "cpu", "cuda", "tensorrt"] = "auto"
    size: Size | None = None


class Gates(_Section):
    """What every model has to pass, its steps taken together."""

    equivalence: Class | None = None
    max_output_error: Tolerance | None = None
    min_top1_agreement: Annotated[float, Field(ge=0, le=1)] | None = None
    max_bytes: Annotated[int, Field(ge=1)] | None = None
    min_speedup: Annotated[float, Field(gt=0), AfterValidator(_finite)] | None = None
    bench_seconds: Annotated[float, Field(gt=0), AfterValidator(_finite)] = 5.0


class Reports(_Section):
    """Where the results go."""

    json_: str | None = Field(None, alias="json")
    junit: str | None = None
    markdown: str | None = None
    html: str | None = None


class Settings(_Section):
    """The whole file; paths in it are relative to its folder."""

    models: Annotated[list[str], Field(min_length=1)]
    output: str = "optimized/{name}.onnx"
    steps: Annotated[list[Step], Field(min_length=1)]
    jobs: Annotated[int, Field(ge=1)] | None = None
    timeout: Annotated[float, Field(gt=0), AfterValidator(_finite)] = 3600.0
    allow_refused: bool = False
    lock: str = "convrewrite.lock"
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
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"there is no {path}", remedy="write one with 'convrewrite init'") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}", remedy="mend it there") from None
    try:
        settings = Settings.model_validate(data)
    except pydantic.ValidationError as error:
        mistakes = "; ".join(_told(mistake) for mistake in error.errors())
        raise UsageError(f"{path}: {mistakes}") from None
    _check_output(path, settings)
    for step in settings.steps:
        if isinstance(step, PluginStep):
            _check_plugin(path, step)
    return settings


def _check_plugin(path: Path, step: PluginStep) -> None:
    try:
        plugins.make(step.name, step.model_extra or {})
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _check_output(path: Path, settings: Settings) -> None:
    try:
        settings.output.format(name="x", folder="y", stem="x")
    except (KeyError, IndexError, ValueError, AttributeError, TypeError):
        raise UsageError(f"{path}: output '{settings.output}' has a field that is not {{name}} or {{folder}}") from None


def _told(mistake: Any) -> str:
    """Where a mistake is, what it is, and for a wrong key the nearest right one."""
    place = [str(part) for part in mistake["loc"]]
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
    return f"'{where}': {text[:1].lower()}{text[1:]}, not {mistake['input']!r}"
