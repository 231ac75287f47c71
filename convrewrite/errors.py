"""Every failure a user can meet, with the exit code the command line gives it.

Each message is one line that says what is wrong, where, and how to fix it. `refused` is not `broken`: a valid
model that cannot be rewritten as asked raises `Refused`, a file that is no usable model raises `UsageError`.

A message names parameters neutrally (`text.parameter`). `str` of an error is in the words of the Python API; other
readers are told in theirs by `speak`, and whoever makes one message out of another takes what `said` gives.
"""

from __future__ import annotations

from typing import ClassVar

from convrewrite.text import PYTHON, Words, told


class ConvrewriteError(Exception):
    """Base of all errors that are reported as one line, without a traceback.

    Attributes:
        exit_code: what the process returns (DESIGN: 1 check failed, 2 usage or input, 3 refused).
        reason: a namespaced code such as ``fcn/position-dependent-constant``, where there is one.
        remedy: what the user can do about it, where there is something.
    """

    exit_code: ClassVar[int] = 70

    def __init__(self, message: str, *, reason: str | None = None, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.remedy = remedy

    @property
    def text(self) -> str:
        """The whole line, with its parameters still neutral."""
        return f"{self.message}; {self.remedy}" if self.remedy else self.message

    def __str__(self) -> str:
        return told(self.text, PYTHON)

    def speak(self, words: Words) -> None:
        """Name parameters in these words from now on."""
        self.message, self.remedy = told(self.message, words), told(self.remedy, words)
        self.args = (self.message,)


class CheckFailed(ConvrewriteError):
    """A check that ran and failed: not equivalent, vacuous, a gate missed. Nothing is written."""

    exit_code = 1


class PassFault(ConvrewriteError):
    """A pass of another package failed; its authors can help."""


class UsageError(ConvrewriteError):
    """Wrong usage or input: unreadable, not ONNX, unwritable target, a provider that is not usable here."""

    exit_code = 2


class Interrupted(ConvrewriteError):
    """The user stopped the command."""

    exit_code = 130


class Terminated(SystemExit):
    """The system asked the process to end; like `KeyboardInterrupt` no fault of whatever ran meanwhile."""


class ReaderGone(ConvrewriteError):
    """Whoever read standard output has left, as `head` does; like other programs, the command ends without a word.

    128 + 13 is what shells give for a program that SIGPIPE ended.
    """

    exit_code = 141


class Refused(ConvrewriteError):
    """A valid model that cannot be rewritten as asked; the message names the node, the reason and the remedy."""

    exit_code = 3


class InstallationWarning(UserWarning):
    """Something about the installed packages that may surprise later, such as two distributions of ONNX Runtime."""


def said(error: BaseException | str) -> str:
    """The text of any error, or a text itself, to make one message out of another: its parameters stay neutral."""
    return error.text if isinstance(error, ConvrewriteError) else str(error)
