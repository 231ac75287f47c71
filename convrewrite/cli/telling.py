"""What the command line says to a person: results on standard output, what is wrong in one line on standard error."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import warnings
from typing import Any

import typer
from rich.console import Console

from convrewrite import text
from convrewrite.cli.usage import wrong_value
from convrewrite.cli.words import FLAGS
from convrewrite.errors import (
    CheckFailed,
    ConvrewriteError,
    InstallationWarning,
    Interrupted,
    PassFault,
    ReaderGone,
    Refused,
    UsageError,
)

errors = Console(stderr=True, soft_wrap=True)
results = Console(soft_wrap=True)


def say(line: str) -> None:
    """Print one line to standard error."""
    errors.print(text.terminal(line), markup=False, highlight=False)


def tell_warnings(quiet: bool) -> None:
    """Tell in one line what is wrong with the installed packages, from now on; other warnings stay as they are."""
    if quiet:
        warnings.simplefilter("ignore", InstallationWarning)
        return
    others = warnings.showwarning

    def shown(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, InstallationWarning):
            say(f"warning: {message}")
        else:
            others(message, category, *where, **more)

    warnings.showwarning = shown


def tell(error: ConvrewriteError) -> None:
    """One line on what is wrong; for a fault of ours, a second with the command to report it.

    A reader that went away has seen what it wanted, and nothing is said.
    """
    if isinstance(error, ReaderGone):
        return
    kinds = {CheckFailed.exit_code: "failed: ", UsageError.exit_code: "error: ", Refused.exit_code: "refused: "}
    if error.exit_code == Interrupted.exit_code:
        kinds[error.exit_code] = ""
    error.speak(FLAGS)
    say(text.shortened(f"{kinds.get(error.exit_code, 'internal error: ')}{error}"))
    if error.exit_code not in kinds and not isinstance(error, PassFault) and "--debug" not in sys.argv[1:]:
        command = shlex.join(["convrewrite", *sys.argv[1:], "--debug"])
        say(f"please report it with what this prints: {command}")


def tell_usage(error: typer.TyperException) -> None:
    """What typer says, and where to read more; without any argument, typer has printed the help itself."""
    what = text.shortened(" ".join((wrong_value(error) or error.format_message()).split()))
    context = getattr(error, "ctx", None)
    help_of = context.command_path if context is not None else "convrewrite"
    if what:
        say(f"error: {what.rstrip('.')}; see {help_of} --help")


def settle_output() -> None:
    """Where the reader of standard output went away, what is left in its buffer must not raise on leaving."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError, ConvrewriteError):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
