"""How a process ended that left no answer, in words: which signal, what causes it, what helps."""

from __future__ import annotations

import signal

from convrewrite.errors import ConvrewriteError, PassFault, UsageError
from convrewrite.system.board import Board, mine

CAUSES = {
    "SIGFPE": (
        "a division of integers that has no result",
        "look for a Div or Mod of integers by zero, or of the smallest one by -1",
    ),
    "SIGBUS": ("a file was cut short while it was read", "leave its files alone meanwhile, and try again"),
    "SIGKILL": ("perhaps for want of memory", "give it less to do at a time, or a machine with more memory"),
    "SIGSEGV": ("a fault of native code", "try the provider cpu, or another version of ONNX Runtime"),
    "SIGABRT": ("native code gave up", "try the provider cpu, or another version of ONNX Runtime"),
    "SIGILL": ("an instruction that this processor lacks", "try another version of ONNX Runtime"),
    "SIGXCPU": ("its limit of processor time", "raise it (ulimit -t)"),
}
"""What most often ends a process by a signal, and what helps."""


def signal_name(code: int) -> str:
    """The name of the signal -code; empty where the process ended by itself with that exit code."""
    if code >= 0:
        return ""
    return signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"


def theirs(error: ConvrewriteError, board: Board | None = None) -> ConvrewriteError:
    """An internal error as the fault of the passes of other packages, where the process has loaded such.

    Whether it was theirs is not known for sure, but their authors see it sooner than those of this project: the same
    code runs the project's own passes.

    Args:
        error: any; others stay as they are. board: of the process; by default of this one.
    """
    strangers = (board or mine()).strangers
    if not strangers or error.exit_code != ConvrewriteError.exit_code or isinstance(error, PassFault):
        return error
    return PassFault(error.message, reason=error.reason, remedy=f"report it to the authors of {strangers}")


def unanswered(subject: str, code: int, board: Board, said: str = "", remedy: str = "") -> ConvrewriteError:
    """The error for a process that ended without saying so.

    Args:
        subject: what to call the process. code: as `subprocess` gives it: negative for a signal.
        board: on which it has noted what it was doing. said: its last line. remedy: against want of memory.

    Returns:
        UsageError (2) where a signal ended it: what it was given is more than this machine or its native code bears. An
        internal error (70) where it left by itself, also with exit code 0: something in it called `os._exit`; the fault
        of passes of other packages, where it had loaded such.
    """
    activity = board.activity
    if code < 0:
        name = signal_name(code)
        cause, helps = CAUSES.get(name, ("", ""))
        if -code == getattr(signal, "SIGKILL", 9):
            helps = remedy or helps
        why = f", {cause}" if cause else ""
        meanwhile = f"{',' if cause else ''} while it was {activity}" if activity else ""
        return UsageError(f"{subject} was ended by {name}{why}{meanwhile}", remedy=helps or None)
    meanwhile = f", while it was {activity}" if activity else ""
    error = ConvrewriteError(f"{subject} ended with {code} before it was done{meanwhile}: {said or 'without a word'}")
    return theirs(error, board)
