"""A function that takes an options object becomes one that takes its fields as keywords: the Python API.

    @keywords(FcnOptions)
    def fcn(model, options): ...          fcn(model, *, window=None, size=None, ...)

The new function's signature and docstring say every option; its types are those of the dataclass.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, get_args, get_type_hints, overload

from convrewrite.errors import UsageError
from convrewrite.options.kinds import API, Option, options_of

P = ParamSpec("P")
O_co = TypeVar("O_co", covariant=True)
A = TypeVar("A")
B = TypeVar("B")
R = TypeVar("R")


class Decorator(Protocol[P, O_co]):
    """What `keywords` gives; the options come last, after one model or two."""

    @overload
    def __call__(self, function: Callable[[A, O_co], R]) -> Callable[Concatenate[A, P], R]: ...
    @overload
    def __call__(self, function: Callable[[A, B, O_co], R]) -> Callable[Concatenate[A, B, P], R]: ...


def keywords(options: Callable[P, O_co]) -> Decorator[P, O_co]:
    """Let a function, whose last parameter is such an options object, take the options as keywords.

    The function raises UsageError for an option that there is not, and for a value that does not fit one.
    """
    decorator: Decorator[P, O_co] = functools.partial(_spread, options)
    return decorator


def keywords_of(options: type) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """As `keywords`, for a function whose other parameters can be left out, which no static type can say."""
    return functools.partial(_spread, options)


def _spread(options: Any, function: Callable[..., R]) -> Callable[..., R]:
    known = {option.name: option for option in options_of(options) if API in option.on}
    own = inspect.signature(function)
    *first, last = own.parameters.values()

    @functools.wraps(function)
    def spread(*args: Any, **given: Any) -> R:
        named = {parameter.name: given.pop(parameter.name) for parameter in first if parameter.name in given}
        if unknown := set(given) - set(known):
            raise UsageError(f"there is no option '{min(unknown)}'", remedy=f"choose from {', '.join(sorted(known))}")
        return function(*args, **named, **{last.name: options(**given)})

    types = get_type_hints(options)
    more = [
        inspect.Parameter(
            option.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=option.default,
            annotation=get_args(types[option.name])[0],
        )
        for option in known.values()
    ]
    spread.__signature__ = own.replace(parameters=[*first, *more])  # type: ignore[attr-defined]
    spread.__doc__ = documented(function.__doc__ or "", list(known.values()))
    return spread


def documented(text: str, options: list[Option[Any, Any]]) -> str:
    """A docstring whose list of arguments goes on with the options."""
    told = [f"    {option.name}: {plain(option.help)}" for option in options]
    before, raises, after = inspect.cleandoc(text).partition("\n\nRaises:")
    arguments = "" if "\nArgs:" in before else "\n\nArgs:"
    return "\n".join([f"{before}{arguments}", *told]) + raises + after


def plain(text: str) -> str:
    """The help of an option outside of the command line: names in the place of what is written there, no markup."""
    named = re.sub(r"--([a-z-]+)", lambda found: f"`{found[1].replace('-', '_')}`", text)
    return re.sub(r"\[/?\w*\]", "", named)
