"""What is said of words on a command line that do not fit: the option, what it needs, and an example that it takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import typer
from typer.core import TyperCommand

from convrewrite.cli.examples import EXAMPLES
from convrewrite.options import kinds
from convrewrite.options.kinds import Option

OPTIONS: dict[str, dict[str, Option[Any, Any]]] = {}
"""The options of each command, by name."""


class Command(TyperCommand):
    """A command whose help ends with examples, and whose errors know which command they are of."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help; the examples come last, as they are: each can be copied."""
        super().format_help(ctx, formatter)
        typer.echo("\n".join([" Examples:", *(f"   {line}" for line in EXAMPLES[ctx.info_name]), ""]))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words of one command."""
        words = list(args)
        try:
            return list(super().parse_args(ctx, args))
        except Exception as error:
            if getattr(error, "ctx", ctx) is None:
                error.ctx = ctx  # type: ignore[attr-defined]
            error.words = words  # type: ignore[attr-defined]
            raise


def wrong_value(error: Any) -> str:
    """One line on a value that is missing or does not fit; "" where the error is of another kind."""
    command = getattr(getattr(error, "ctx", None), "info_name", None)
    known = OPTIONS.get(command or "", {})
    name, flag = getattr(getattr(error, "param", None), "name", None), getattr(error, "option_name", None)
    if flag is not None and "requires an argument" in str(getattr(error, "message", "")):
        option = next((option for option in known.values() if flag in flags_of(option)), None)
    else:
        option, flag = known.get(name or ""), None
    if option is None:
        return ""
    given = None if flag is not None else _given(flags_of(option), getattr(error, "words", ()))
    told = f"{flag or flags_of(option)[0]} needs {needs(option)}"
    return told if given is None else f"{told}, not '{given}'"


def flags_of(option: Option[Any, Any]) -> tuple[str, ...]:
    """How an option is written on the command line."""
    return option.flags or (f"--{option.name.replace('_', '-')}",)


def _given(flags: Sequence[str], words: Sequence[str]) -> str | None:
    """The last value that was given."""
    found = None
    for word, following in zip(words, [*words[1:], None], strict=True):
        if word in flags:
            found = following
        elif word.partition("=")[0] in flags:
            found = word.partition("=")[2]
    return found


def needs(option: Option[Any, Any]) -> str:
    """What an option takes, with an example."""
    words = option.of if isinstance(option, kinds.Choice) else getattr(option, "words", None)
    if words is not None:
        *others, last = get_args(words)
        return f"{', '.join(others)} or {last}"
    what, example = _typical(option)
    return f"{what or option.metavar.replace('|', ' or ')}, for example {option.example or example}"


def _typical(option: Option[Any, Any]) -> tuple[str, str]:
    """What a kind takes, "" where its metavar says so, and an example."""
    match option:
        case kinds.Whole():
            return f"a whole number, {option.at_least} or more", str(option.default or max(option.at_least, 2))
        case kinds.Tolerance(named=True):
            return "E or NAME=E, a number of 0 or more", "1e-4 or prob=1e-4"
        case kinds.Tolerance():
            return "a number of 0 or more", "1e-4"
        case kinds.Positive():
            return "a number above 0", "1.5"
        case kinds.Number():
            return "a number", "255"
        case kinds.Sizes():
            return "", "32x32"
        case kinds.ManySizes():
            return "", "224,512x768"
        case kinds.Wholes():
            return "", "1,8"
        case kinds.ManyNumbers():
            return "", "0,1,2" if option.of is int else "0.485,0.456,0.406"
        case kinds.Shapes():
            return "NAME=SHAPE", "x=1x3x512x512"
        case kinds.Patterns():
            return "", "'conv*'"
        case kinds.FilePath() | kinds.Arrays():
            _, dot, ending = option.metavar.rpartition(".")
            return "the path of a file", f"out.{ending.partition('|')[0]}" if dot else "folder"
    return "", option.metavar
