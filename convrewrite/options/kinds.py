"""Kinds of options: how the value of one is read and checked, whoever gives it.

An `Option` is an attribute of a frozen dataclass, which says in one place all there is to say of it:

    @option_class
    class FcnOptions(RewriteOptions):
        size: Extents = Sizes(None, "Fix the new input to this size.", metavar="HxW", panel=MAKE)

It reads its value wherever one is given, so that `FcnOptions(size=224).size` is `(224,)` and `FcnOptions(size="x")`
raises `UsageError`. The command line, the functions of the Python API and the keys of convrewrite.toml are made from
these declarations (`cli.options`, `options.keywords`, `batch.sections`).
"""

from __future__ import annotations

import math
import operator
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar, dataclass_transform, get_args

from convrewrite.errors import UsageError

MAKE, CHECK, TELL = "What is made", "How it is checked", "What is told"
IMAGE, RUN = "What the image is", "How it is run"

Given = TypeVar("Given")
Kept = TypeVar("Kept")
T = TypeVar("T")

CLI, API, TOML = "cli", "api", "toml"
EVERYWHERE = (CLI, API, TOML)


class Option(ABC, Generic[Given, Kept]):
    """One option of a command; `Given` is what a caller may write, `Kept` what the command reads.

    Attributes:
        default: what stands where nothing is given. help: one sentence or two for a user.
        metavar: what stands for the value in --help. panel: the heading that it stands under there.
        flag: its name on the command line, where that is not its own. on: where it can be given.
        after: the inherited option that it, and what is declared below it, follows in --help.
        shown: whether --help shows the default. example: a value, where that of its kind would not do.
    """

    name: str

    def __init__(
        self,
        default: Kept,
        help: str,
        *,
        metavar: str = "",
        panel: str = CHECK,
        flag: str | tuple[str, ...] = (),
        on: Sequence[str] = EVERYWHERE,
        after: str = "",
        shown: bool = True,
        example: str = "",
    ) -> None:
        self.default, self.help, self.metavar, self.panel, self.example = default, help, metavar, panel, example
        self.flags = (flag,) if isinstance(flag, str) else flag
        self.on, self.after, self.shown = on, after, shown

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: object | None, owner: type) -> Kept:
        kept: Kept = self.default if instance is None else instance.__dict__[self.name]
        return kept

    def __set__(self, instance: object, given: Given) -> None:
        absent = given is None and self.default is None
        instance.__dict__[self.name] = self.default if absent else self.read(given)

    @abstractmethod
    def read(self, given: Any) -> Kept:
        """What is kept of a value. Raises UsageError."""


Value: TypeAlias = Option[T, T]
Word: TypeAlias = Option[str, T]
Extents: TypeAlias = Option[int | Sequence[int] | None, tuple[int, ...] | None]
SeveralExtents: TypeAlias = Option[Sequence[int | Sequence[int]], tuple[tuple[int, ...], ...]]
Limit: TypeAlias = Option[float | Mapping[str, float] | None, float | Mapping[str, float] | None]
Globs: TypeAlias = Option[str | Iterable[str], tuple[str, ...]]
Numbers: TypeAlias = Option[float | Sequence[float] | None, tuple[float, ...] | None]


@dataclass_transform(kw_only_default=True)
def option_class(cls: type[T]) -> type[T]:
    """A frozen dataclass of options, all of them keywords.

    Type checkers are told that its fields can be written: mypy 2.4 takes what a frozen class inherits for what may be
    given instead of what is kept.
    """
    return dataclass(frozen=True, kw_only=True)(cls)


def options_of(owner: type) -> Iterator[Option[Any, Any]]:
    """The options of a dataclass, its own before those that it inherits, each where it was first declared."""
    found: dict[str, Option[Any, Any]] = {}
    moved: list[tuple[str, list[str]]] = []
    for number, parent in enumerate(owner.__mro__):
        older = [base.__dict__ for base in owner.__mro__[number + 1 :]]
        follows: list[str] | None = None
        for name, option in vars(parent).items():
            if not isinstance(option, Option) or any(name in attributes for attributes in older):
                continue
            if option.after:
                follows = []
                moved.append((option.after, follows))
            if follows is not None:
                follows.append(name)
            found[name] = getattr_static(owner, name)
    order = list(found)
    for after, names in moved:
        order = [name for name in order if name not in names]
        place = order.index(after) + 1
        order[place:place] = names
    return (found[name] for name in order)


def getattr_static(owner: type, name: str) -> Option[Any, Any]:
    """The option of that name itself, which a plain look would answer with its default."""
    option: Option[Any, Any] = next(parent.__dict__[name] for parent in owner.__mro__ if name in parent.__dict__)
    return option


class Sizes(Option[Any, Any]):
    """A size: one extent for all axes, or one per axis."""

    def read(self, given: Any) -> tuple[int, ...]:
        return extents(self.name, given)


class ManySizes(Option[Any, Any]):
    """Several sizes; a number or a tuple of numbers among them is one."""

    def read(self, given: Any) -> tuple[tuple[int, ...], ...]:
        if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
            raise UsageError(
                f"{self.name} is {given!r}", remedy=f"give a list, such as {self.name}=[(224, 224), (512, 512)]"
            )
        return tuple(extents(self.name, one) for one in given)


class Wholes(Option[Any, Any]):
    """Several whole numbers above 0."""

    def read(self, given: Any) -> tuple[int, ...]:
        return extents(self.name, given) if not isinstance(given, Sequence) or given else ()


class Whole(Option[Any, Any]):
    """A whole number, `at_least` or more."""

    def __init__(self, default: int | None, help: str, *, at_least: int, **more: Any) -> None:
        super().__init__(default, help, **{"metavar": "N", **more})
        self.at_least = at_least

    def read(self, given: Any) -> int:
        try:
            number = whole(given)
        except TypeError:
            number = self.at_least - 1
        if number < self.at_least:
            raise UsageError(f"{self.name} is {given!r}", remedy=f"give a whole number, {self.at_least} or more")
        return number


class Tolerance(Option[Any, Any]):
    """A number that bounds an error; with `named` one for each of several names, too."""

    def __init__(self, default: float | None, help: str, *, named: bool = False, **more: Any) -> None:
        super().__init__(default, help, **more)
        self.named = named

    def read(self, given: Any) -> float | Mapping[str, float]:
        if isinstance(given, Mapping):
            return {str(name): tolerance(limit) for name, limit in given.items()}
        return tolerance(given)


class Positive(Option[Any, Any]):
    """A number above 0."""

    def read(self, given: Any) -> float:
        number = number_of(given)
        if not (math.isfinite(number) and number > 0):
            raise UsageError(f"{self.name} is {given!r}", remedy="give a number above 0")
        return number


class Number(Option[Any, Any]):
    """Any number."""

    def read(self, given: Any) -> float:
        number = number_of(given)
        if math.isnan(number):
            raise UsageError(f"{self.name} is {given!r}", remedy="give a number")
        return number


class ManyNumbers(Option[Any, Any]):
    """One number, or several."""

    def __init__(self, default: Any, help: str, *, of: type[int] | type[float] = float, **more: Any) -> None:
        super().__init__(default, help, **more)
        self.of = of

    def read(self, given: Any) -> tuple[Any, ...]:
        several = hasattr(given, "__iter__") and not isinstance(given, str | bytes)
        try:
            return tuple(self.of(one) for one in (given if several else [given]))
        except (TypeError, ValueError):
            raise UsageError(f"{self.name} is {given!r}", remedy="give one number, or a list of them") from None


class Choice(Option[Any, Any]):
    """One of several words, which a Literal type lists; "" is none, where that is the default."""

    def __init__(self, default: str | None, help: str, *, of: Any, **more: Any) -> None:
        super().__init__(default, help, **{"metavar": "NAME", "shown": False, **more})
        self.of = of

    def read(self, given: Any) -> Any:
        known = get_args(self.of)
        if isinstance(given, str) and (given in known or given == self.default):
            return given
        shown = f"'{given}'" if isinstance(given, str) else repr(given)
        raise UsageError(f"{self.name} is {shown}", remedy=f"choose one of {', '.join(known)}")


class Flag(Option[Any, Any]):
    """True or False; with `words`, the command line has these two words for them."""

    def __init__(self, default: bool, help: str, *, words: Any = None, **more: Any) -> None:
        super().__init__(default, help, **more)
        self.words = words

    def read(self, given: Any) -> bool:
        if given is True or given is False or type(given).__name__ in ("bool", "bool_"):
            return bool(given)
        raise UsageError(f"{self.name} is {given!r}", remedy="give True or False")


class Patterns(Option[Any, Any]):
    """Globs; one alone needs no list."""

    def read(self, given: Any) -> tuple[str, ...]:
        found = (given,) if isinstance(given, str) else given
        if isinstance(found, bytes | Mapping) or not isinstance(found, Iterable):
            found = (None,)
        patterns = tuple(found)
        if not all(isinstance(pattern, str) for pattern in patterns):
            raise UsageError(f"{self.name} is {given!r}", remedy=f"give names, such as {self.name}=('conv*',)")
        return patterns


class Text(Option[Any, Any]):
    """Text that a later step reads."""

    def read(self, given: Any) -> str:
        if isinstance(given, str):
            return given
        raise UsageError(f"{self.name} is {given!r}", remedy="give text")


class FilePath(Option[Any, Any]):
    """The path of a file."""

    def read(self, given: Any) -> str:
        return path(self.name, given)


class Arrays(Option[Any, Any]):
    """Arrays by input name, or what makes them (`sampling.Images`); lists of numbers become arrays."""

    def read(self, given: Any) -> Any:
        if hasattr(given, "samples"):
            return given
        if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
            raise UsageError(
                f"{self.name} is {kind_of(given)}", remedy="give arrays by input name, such as {'image': array}"
            )
        return {name: self._array(name, values) for name, values in given.items()}

    def _array(self, name: str, values: Any) -> Any:
        import numpy as np

        try:
            array = np.asarray(values)
        except ValueError:
            array = np.asarray(None)
        if array.dtype.hasobject:
            raise UsageError(f"{self.name}['{name}'] is {kind_of(values)}", remedy="give an array of numbers")
        return array


class Shapes(Option[Any, Any]):
    """Whole shapes by input name."""

    def read(self, given: Any) -> dict[str, tuple[int, ...]]:
        if not isinstance(given, Mapping):
            raise UsageError(f"{self.name} is {given!r}", remedy="give shapes by input, as {'x': (1, 3, 8, 8)}")
        return {name: extents(self.name, shape) for name, shape in given.items()}


class Fields(Option[Any, Any]):
    """Options of a pass by name."""

    def read(self, given: Any) -> Mapping[str, Any]:
        if isinstance(given, Mapping):
            return given
        raise UsageError(f"{self.name} is {given!r}", remedy="give options by name, such as fields={'tol': 0.1}")


class Hook(Option[Any, Any]):
    """A function that is called as work goes on."""

    def read(self, given: Any) -> Callable[..., Any]:
        if not callable(given):
            raise UsageError(f"{self.name} is {given!r}", remedy="give a function of a text and two numbers")
        called: Callable[..., Any] = given
        return called


def extents(name: str, given: Any) -> tuple[int, ...]:
    """A size per axis, one number for all. Raises UsageError."""
    single = hasattr(given, "__index__") and not getattr(given, "ndim", 0)
    try:
        if isinstance(given, str | bytes | Mapping):
            raise TypeError
        found = tuple(whole(value) for value in ([given] if single else given))
    except TypeError:
        found = ()
    if not found or min(found) < 1:
        raise UsageError(f"{name} is {given!r}", remedy=f"give whole numbers above 0, such as {name}=(224, 224)")
    return found


def whole(given: Any) -> int:
    """A whole number; a truth value is none. Raises TypeError."""
    if type(given).__name__ in ("bool", "bool_"):
        raise TypeError
    return operator.index(given)


def number_of(given: Any) -> float:
    """A number; NaN where it is none."""
    try:
        return float(given) if not isinstance(given, str | bytes | bool) else math.nan
    except (TypeError, ValueError):
        return math.nan


def tolerance(given: Any) -> float:
    """A number that can bound an error. Raises UsageError."""
    number = number_of(given)
    if not (math.isfinite(number) and number >= 0):
        raise UsageError(f"{given!r} is not a tolerance", remedy="give a number such as 1e-5")
    return number


def path(what: str, given: Any) -> str:
    """A path, or the address of one. Raises UsageError."""
    if isinstance(given, str | os.PathLike) and isinstance(os.fspath(given), str):
        if os.fspath(given):
            return str(os.fspath(given))
        raise UsageError(f"{what} is an empty path", remedy="give a path")
    raise UsageError(
        f"{what} is {kind_of(given)}",
        remedy="give a path, what load gives, or an onnx.ModelProto" if what == "the model" else "give a path",
    )


def kind_of(given: Any) -> str:
    """What a value of the wrong type is, in words."""
    return "None" if given is None else f"of type {type(given).__name__}"
