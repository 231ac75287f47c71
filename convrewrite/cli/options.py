"""The command line's rendering of options: what typer is told of each, and how its words become an options object."""

from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar, get_args

import typer
from typer.core import TyperGroup

from convrewrite.cli.usage import OPTIONS, Command
from convrewrite.cli.words import FLAGS
from convrewrite.errors import ConvrewriteError, UsageError
from convrewrite.options import kinds
from convrewrite.options.kinds import CLI, TELL, FilePath, Flag, Option, Value, option_class, options_of

if TYPE_CHECKING:
    from rich.text import Text

    from convrewrite.model_io.guards import Files
    from convrewrite.pipeline.outcome import Outcome
    from convrewrite.verification import Progress

Made = TypeVar("Made")


class Size(tuple[int, ...]):
    """Extents per spatial axis. (A class of its own: a plain tuple would be an option with several values.)"""


class Many(tuple[Any, ...]):
    """Several values in one word."""


class Words(TyperGroup):
    """The commands. An empty word is no path, no name and no pattern: mostly a variable of a script that is not set."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words of the whole line. Raises UsageError where one is empty."""
        before = ["", *args]
        for number, (word, last) in enumerate(zip(args, before, strict=False)):
            if word == "" or (word.startswith("--") and word.endswith("=")):
                option = word[:-1] or (last if last.startswith("--") else "")
                what = f"the value of {option}" if option else f"word {number + 1} of the command"
                raise UsageError(f"{what} is empty", remedy="give a path or a value, or leave it out")
        return list(super().parse_args(ctx, args))

    def invoke(self, ctx: Any) -> Any:
        """Run the command; what it raises speaks in options."""
        try:
            return super().invoke(ctx)
        except ConvrewriteError as error:
            error.speak(FLAGS)
            raise


In = Annotated[str | None, typer.Argument(metavar="IN", help="The ONNX model; - or nothing is standard input.")]
Out = Annotated[str | None, typer.Argument(metavar="OUT", help="Where it goes; - or nothing is standard output.")]


DebugOption = Annotated[
    bool, typer.Option("--debug", metavar="", rich_help_panel=TELL, help="Show the traceback of an error.")
]


@option_class
class TellOptions:
    """What a command tells, and where."""

    report: Value[str | None] = FilePath(
        None, "Write a report as JSON, on failure too; - is stdout.", metavar="F.json", panel=TELL
    )
    html: Value[str | None] = FilePath(
        None, "Write a page for people, on failure too: one file.", metavar="F.html", panel=TELL
    )
    quiet: Value[bool] = Flag(False, "Print nothing but errors.", flag=("--quiet", "-q"), panel=TELL)
    verbose: Value[bool] = Flag(False, "Print every site and every comparison.", flag=("--verbose", "-v"), panel=TELL)
    debug: Value[bool] = Flag(False, "Show the traceback of an error.", panel=TELL)


@dataclass(frozen=True)
class Line:
    """One command line, read: a value for every option, or None where it was left out."""

    values: Mapping[str, Any]

    def options(self, kind: Callable[..., Made], **more: Any) -> Made:
        """The options object of that kind. Files of data are read now. Raises UsageError."""
        given: dict[str, Any] = {}
        for option in options_of(kind):  # type: ignore[arg-type]
            value = self.values.get(option.name)
            if value is None or value == []:
                continue
            if isinstance(option, kinds.Arrays):
                from convrewrite.running.sampling import read_data

                given |= {"data": read_data(value), "data_path": str(value)}
            elif isinstance(option, kinds.ManySizes):
                given[option.name] = [size for word in value for size in word]
            elif isinstance(option, kinds.Shapes) or getattr(option, "named", False):
                given[option.name] = dict(value)
            elif isinstance(option, Flag) and option.words is not None:
                given[option.name] = value == get_args(option.words)[0]
            else:
                given[option.name] = value
        return kind(**given, **more)


def written(options: Any) -> dict[str, list[str]]:
    """An options object as the words of a command line, by option: whatever is not as it is where it is left out."""
    words: dict[str, list[str]] = {}
    for option in options_of(type(options)):
        value = getattr(options, option.name)
        if CLI not in option.on or value == option.default:
            continue
        flag = (*option.flags, f"--{option.name.replace('_', '-')}")[0]
        words[option.name] = [word for text in _texts(option, value, options) for word in (flag, *text)]
    return words


def _texts(option: Option[Any, Any], value: Any, options: Any) -> list[list[str]]:
    """The words after a flag, once for each time that it is given."""
    match option:
        case kinds.Arrays():
            return [[options.data_path]] if value is not None else []
        case Flag(words=None):
            return [[]] if value else []
        case Flag():
            return [[get_args(option.words)[not value]]]
        case kinds.Sizes():
            return [["x".join(map(str, value))]]
        case kinds.ManySizes():
            return [[",".join("x".join(map(str, size)) for size in value)]]
        case kinds.Wholes() | kinds.ManyNumbers():
            return [[",".join(map(str, value))]]
        case kinds.Shapes():
            return [[f"{name}={'x'.join(map(str, shape))}"] for name, shape in value.items()]
        case kinds.Tolerance():
            limits = value if isinstance(value, Mapping) else {"": value}
            return [[f"{name}={_number(limit)}".removeprefix("=")] for name, limit in limits.items()]
        case kinds.Patterns():
            return [[pattern] for pattern in value]
    return [[str(value)]]


def _number(value: float) -> str:
    """A number as people write it: 1e-5, not 1e-05."""
    return re.sub(r"e([+-])0+(?=\d)", r"e\1", repr(value))


def declared(
    app: typer.Typer, *groups: type, name: str | None = None, but: Sequence[str] = ()
) -> Callable[[Callable[..., None]], None]:
    """Add a command whose options are those of some dataclasses, in their order, but for those named in `but`.

    The function is called with its own parameters, which are typer's arguments, and with the `Line` as `line`.
    """

    def declare(function: Callable[..., None]) -> None:
        own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.name != "line"]
        every = [option for group in groups for option in options_of(group)]
        more = [parameter(option) for option in every if CLI in option.on and option.name not in but]

        @functools.wraps(function)
        def command(**values: Any) -> None:
            words = {p.name: values.pop(p.name) for p in own}
            function(**words, line=Line(values))

        del command.__wrapped__
        command.__signature__ = inspect.Signature([*own, *more])  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in (*own, *more)}
        OPTIONS[name or function.__name__] = {o.name: o for o in every if CLI in o.on and o.name not in but}
        app.command(name, cls=Command)(command)

    return declare


def parameter(option: Option[Any, Any]) -> inspect.Parameter:
    """An option as typer takes it; what --help does not show as a default is None where it is left out."""
    kind, how = _typed(option)
    default = option.default if _has_default(option) else None
    flags = option.flags
    if isinstance(option, Flag) and option.words is None and not option.default:
        flags = flags or (f"--{option.name.replace('_', '-')}",)
    made = typer.Option(
        *flags,
        metavar=option.metavar,
        rich_help_panel=option.panel,
        help=option.help,
        show_default=option.shown,
        **how,
    )
    annotation: Any = Annotated[kind if _has_default(option) else kind | None, made]
    return inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _has_default(option: Option[Any, Any]) -> bool:
    numbers = (kinds.Whole, kinds.Tolerance, kinds.Positive)
    shown = isinstance(option, numbers) and option.shown and option.default is not None
    return shown or (isinstance(option, Flag) and option.words is None)


def _typed(option: Option[Any, Any]) -> tuple[Any, dict[str, Any]]:
    """The type that typer reads, and what else it is told of it."""
    match option:
        case Flag():
            return (bool if option.words is None else option.words), {}
        case kinds.Choice():
            return option.of, {}
        case kinds.Whole():
            return int, {"min": option.at_least}
        case kinds.Tolerance(named=True):
            return list[Many], {"parser": parse_limit}
        case kinds.Tolerance():
            return float, {"callback": finite}
        case kinds.Positive():
            return float, {"callback": _positive}
        case kinds.Number():
            return float, {}
        case kinds.Sizes():
            return Size, {"parser": parse_size}
        case kinds.ManySizes():
            return list[Many], {"parser": parse_sizes}
        case kinds.Wholes():
            return Many, {"parser": parse_batches}
        case kinds.Shapes():
            return list[Many], {"parser": parse_shape}
        case kinds.ManyNumbers():
            return Many, {"parser": parse_places if option.of is int else parse_numbers}
        case kinds.Patterns():
            return list[str], {}
        case kinds.Arrays():
            return Path, {}
    return str, {}


def parse_size(text: str) -> Size:
    """Read `L`, `HxW` or `DxHxW`: one parser for every option that takes a size."""
    parts = text.lower().split("x")
    digits = all(part.isascii() and part.isdecimal() and len(part) < 10 and int(part) > 0 for part in parts)
    if not digits or len(parts) > 3:
        raise typer.BadParameter(f"'{text}' is not a size; write HxW, such as 224x224 (L for audio, DxHxW for video)")
    return Size(int(part) for part in parts)


def parse_sizes(text: str) -> Many:
    """Read `224,512x512,1024`."""
    return Many(parse_size(part.strip()) for part in text.split(","))


def parse_batches(text: str) -> Many:
    """Read `1,8`."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) < 7 and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"'{text}' is no list of batches; write 1,8")
    return Many(int(part) for part in parts)


def parse_numbers(text: str) -> Many:
    """Read `0.5` or `0.485,0.456,0.406`."""
    try:
        return Many(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"'{text}' is no list of numbers; write 0.485,0.456,0.406") from None


def parse_places(text: str) -> Many:
    """Read `2,1,0`."""
    if not all(part.isascii() and part.isdecimal() for part in text.split(",")):
        raise typer.BadParameter(f"'{text}' is no list of channels; write 0,1,2")
    return Many(int(part) for part in text.split(","))


def parse_limit(text: str) -> Many:
    """Read `E` or `NAME=E`; the name of all outputs is ""."""
    name, _, number = text.rpartition("=")
    try:
        limit = float(number)
    except ValueError:
        limit = math.nan
    if not (math.isfinite(limit) and limit >= 0):
        raise typer.BadParameter(f"'{text}' is not a tolerance; write E or NAME=E, such as 1e-4 or prob=1e-4")
    return Many((name, limit))


def parse_shape(text: str) -> Many:
    """Read `NAME=1x3x512x512`."""
    name, _, dims = text.rpartition("=")
    parts = dims.lower().split("x")
    if not name or not all(part.isascii() and part.isdecimal() and 0 < int(part) < 10**9 for part in parts):
        raise typer.BadParameter(f"'{text}' is not a shape")
    return Many((name, tuple(int(part) for part in parts)))


def finite(value: float | None) -> float | None:
    """The value, if it is a finite number of zero or more."""
    if value is not None and not (math.isfinite(value) and value >= 0):
        raise typer.BadParameter(f"{value} is not a tolerance; write a number such as 1e-5")
    return value


def _positive(value: float | None) -> float | None:
    if value is not None and not (math.isfinite(value) and value > 0):
        raise typer.BadParameter(f"{value} is not a number above 0")
    return value


class Details(Protocol):
    """What is told of an outcome besides the report's text: lines for that width, 0 for any."""

    def __call__(self, outcome: Outcome, width: int, /) -> Sequence[Text | str]: ...


class Run(Protocol):
    """Does the work of a command, writes its report and prints its text."""

    def __call__(
        self,
        command: str,
        line: Line,
        work: Callable[[Progress | None], Outcome],
        files: Files,
        *,
        details: Details = ...,
    ) -> None: ...
