"""What convrewrite.toml may say. A key that it may not is answered with the nearest one that it may."""

from __future__ import annotations

import difflib
import math
import os
import re
import reprlib
import string
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, create_model

from convrewrite import plugins
from convrewrite.errors import UsageError
from convrewrite.options import (
    ChangeOptions,
    CheckOptions,
    FcnOptions,
    GroupsOptions,
    SeparableOptions,
    TransformOptions,
    kinds,
)
from convrewrite.options.keywords import plain
from convrewrite.options.kinds import TOML, Option, options_of
from convrewrite.text import as_line

DEFAULT = "convrewrite.toml"

Made = TypeVar("Made")

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

MOST_SEEDS = 2**63

LONGEST = 255
"""Bytes of a name in a path."""

FIELDS = ("name", "folder", "stem")

Count = Annotated[int, Field(ge=1, lt=LARGEST)]
FilePath = Annotated[str, AfterValidator(_path)]
Template = Annotated[str, AfterValidator(_template)]
Tolerance = Annotated[float, Field(ge=0), AfterValidator(_finite)]
Positive = Annotated[float, Field(gt=0), AfterValidator(_finite)]
Size = Annotated[list[int], AfterValidator(_size)]
Class = Literal["exact", "reassociated", "approximate"]


class Section(BaseModel):
    """A table of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def key_of(option: Option[Any, Any]) -> tuple[Any, Any]:
    """An option as a key of the file: its type, its default and its help; what is "" elsewhere is left out here."""
    kind: Any
    match option:
        case kinds.Sizes():
            kind = Size
        case kinds.Whole():
            kind = Annotated[int, Field(ge=option.at_least, lt=MOST_SEEDS if option.at_least == 0 else LARGEST)]
        case kinds.Tolerance():
            kind = Tolerance
        case kinds.Choice():
            kind = option.of
        case kinds.Flag():
            kind = bool
        case kinds.Patterns():
            kind = list[str]
        case kinds.Arrays():
            kind = Template
        case _:
            kind = str
    default = list(option.default) if isinstance(option.default, tuple) else option.default or None
    default = option.default if isinstance(option.default, bool | int | float) else default
    return (kind if default is not None else kind | None), Field(default, description=plain(option.help))


def keys(title: str, options: type, /, *, but: Collection[str] = (), base: type[Section] = Section, **more: Any) -> Any:
    """A table whose keys are those of a dataclass of options, with some more, and without those named in `but`."""
    own = {
        option.name: key_of(option) for option in options_of(options) if TOML in option.on and option.name not in but
    }
    fields: dict[str, Any] = {**more, **own}
    return create_model(title, __base__=base, **fields)


PASS = "The name of the pass."

CHECKED = ("provider", "samples", "seed", "data")
"""What the table [verification] says for all steps."""


class Step(Section):
    """A step: what the options of its command are, but for those that [verification] says."""

    name: str = Field(alias="pass", description=PASS)

    def options(self, kind: type[Made], checked: CheckOptions, **more: Any) -> Made:
        """The options object of that kind, which is `checked` as all are."""
        known = {option.name for option in options_of(kind)} & set(type(self).model_fields)
        shared = {name: getattr(checked, name) for name in (*CHECKED, "data_path")}
        return kind(**shared, **{name: value for name, value in self if name in known and value is not None}, **more)


def _step(name: str, options: type, told: str) -> Any:
    """The table of a command."""
    title = options.__name__.replace("Options", "Step")
    made = keys(
        title, options, but=CHECKED, base=Step, name=(Literal[name], Field(name, alias="pass", description=PASS))
    )
    made.__doc__ = told
    return made


FcnStep = _step("fcn", FcnOptions, "As the command `fcn`.")
SeparableStep = _step(
    "separable",
    SeparableOptions,
    "As the command `separable`; `max_output_error` here rewrites only as many layers as stay within it.",
)
GroupsStep = _step("groups", GroupsOptions, "As the command `groups`.")


class PluginStep(keys("PluginKeys", TransformOptions, but=CHECKED, base=Step)):  # type: ignore[misc]
    """A pass of another package; further keys are its own options."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)


def _kind(step: Any) -> str | None:
    """Which kind of step it is, by the name of its pass."""
    name = step.get("pass") if isinstance(step, dict) else getattr(step, "name", None)
    return None if not isinstance(name, str) else name if name in ("fcn", "separable", "groups") else "plugin"


if TYPE_CHECKING:
    AnyStep = Step
else:
    AnyStep = Annotated[
        Annotated[FcnStep, Tag("fcn")]
        | Annotated[SeparableStep, Tag("separable")]
        | Annotated[GroupsStep, Tag("groups")]
        | Annotated[PluginStep, Tag("plugin")],
        Discriminator(_kind),
    ]


SIZE = Field(None, description="Compare at this size, where inputs are open, such as [224, 224].")


class Verification(keys("CheckKeys", CheckOptions, size=(Size | None, SIZE))):  # type: ignore[misc]
    """The settings of the check that every written model goes through."""

    def options(self, data: Any, path: str | None = None) -> CheckOptions:
        """What holds for every step, with the data that was read."""
        return CheckOptions(
            provider=self.provider, samples=self.samples, seed=self.seed, data=data, data_path=path or "F.npz"
        )


class Gates(Section):
    """What every model has to pass, its steps taken together; one that does not is not written (exit code 1)."""

    equivalence: Class | None = Field(
        default=None, description="The loosest class of a result: exact, reassociated (rounding alone) or approximate."
    )
    max_output_error: Tolerance | None = Field(
        default=None, description="The most that max|a-b| / max|b| of an output may be."
    )
    min_top1_agreement: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="The least share of samples that keep the original's class."
    )
    max_bytes: Annotated[int, Field(ge=1, lt=2**63)] | None = Field(default=None, description="The largest file.")
    min_speedup: Positive | None = Field(
        default=None, description="The least speedup over the original, measured on this machine."
    )
    bench_seconds: Positive = Field(default=5.0, description="Measure for so long per size, for min_speedup.")


class Changes(keys("ChangeKeys", ChangeOptions)):  # type: ignore[misc]
    """How much worse than the baseline of `run` a model may become: shares of what it was there."""

    def options(self) -> ChangeOptions:
        """The same as an options object."""
        return ChangeOptions(**dict(self))


class Reports(Section):
    """The paths of the reports."""

    json_: FilePath | None = Field(
        default=None, alias="json", description="For machines: all that is known of every step."
    )
    junit: FilePath | None = Field(
        default=None, description="For the page of a CI: JUnit XML, one test case per model."
    )
    markdown: FilePath | None = Field(default=None, description="For a pull request: the table.")
    html: FilePath | None = Field(default=None, description="For people: one page with what every step did.")


class Settings(Section):
    """The whole file; paths in it are relative to its folder."""

    models: Annotated[list[FilePath], Field(min_length=1)] = Field(
        description="Globs of the models; ** goes through folders."
    )
    output: Template = Field(
        default="optimized/{name}.onnx",
        description="Where each goes: {name} is its own without .onnx, {folder} its folder.",
    )
    steps: Annotated[list[AnyStep], Field(min_length=1)] = Field(
        description="What is done, one step after another; a table each."
    )
    jobs: Count | None = Field(
        default=None, description="Models at a time. Left out: one per core, or one where something is timed."
    )
    timeout: Positive = Field(
        default=3600.0, description="Seconds for one model, all steps taken together; then it is ended."
    )
    allow_refused: bool = Field(
        default=False, description="Let a model that cannot be rewritten as asked pass, which is exit code 3 otherwise."
    )
    lock: FilePath = Field(
        default="convrewrite.lock",
        description="What was done, and the timings that decided it: keep it under version control.",
    )
    verification: Verification = Field(default=Verification(), description="How every result is checked.")
    gates: Gates = Field(default=Gates(), description="What every model has to pass.")
    baseline: Changes = Field(default=Changes(), description="How much worse than elsewhere a model may become.")
    reports: Reports = Field(
        default_factory=lambda: Reports.model_validate({}), description="Where results are written."
    )


SECTIONS: dict[str, type[BaseModel]] = {
    "": Settings,
    "verification": Verification,
    "gates": Gates,
    "baseline": Changes,
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
        raise UsageError(f"{path} is not TOML: {_short(error)}", remedy="correct it there") from None
    except RecursionError:
        raise UsageError(f"{path} is nested too deeply", remedy="correct it there") from None
    try:
        settings = Settings.model_validate(data)
    except pydantic.ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
        mistakes = "; ".join(_told(mistake) for mistake in found[:MISTAKES])
        more = f"; and {len(found) - MISTAKES} more" if len(found) > MISTAKES else ""
        raise UsageError(f"{path}: {mistakes}{more}") from None
    except RecursionError:
        raise UsageError(f"{path} is nested too deeply", remedy="correct it there") from None
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
    """The message on one line, cut where it is too long to read."""
    text = "".join(char if char.isprintable() else "?" for char in as_line(what))
    return text if len(text) <= 200 else f"{text[:200]}..."
