"""Standard streams that are closed, or that nothing can be written to.

convrewrite fcn in.onnx out.onnx 2>/dev/full     nothing can be said, but the file is right: exit code 0
convrewrite fcn in.onnx out.onnx >&- 2>&- <&-    a file that is opened must not get the number of a stream
"""

from __future__ import annotations

import contextlib
import io
import os
import sys

from convrewrite.errors import ConvrewriteError, ReaderGone, UsageError


class Lossy(io.TextIOWrapper):
    """Text for people: what cannot be written is lost, and fails nothing."""

    def write(self, text: str) -> int:
        """Write the text, or drop it where the stream is broken."""
        with contextlib.suppress(OSError, ValueError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream, unless it is broken."""
        with contextlib.suppress(OSError, ValueError):
            super().flush()


class Strict(io.TextIOWrapper):
    """What was asked for: where it cannot be written, that is an error in one line, or none where nobody reads on.

    (typer ends with 1 where the reader is gone, which means a failed check here.)
    """

    def write(self, text: str) -> int:
        """Write. Raises UsageError where that is not possible, and ReaderGone where nobody reads any more."""
        try:
            return super().write(text)
        except OSError as error:
            raise _unwritable(error) from error

    def flush(self) -> None:
        """Flush. Raises UsageError where that is not possible, and ReaderGone where nobody reads any more."""
        try:
            super().flush()
        except OSError as error:
            raise _unwritable(error) from error


def _unwritable(error: OSError) -> ConvrewriteError:
    if isinstance(error, BrokenPipeError):
        return ReaderGone("nobody reads standard output any more")
    return UsageError(f"cannot write to standard output: {error.strerror or error}")


def settle() -> None:
    """Take the numbers of closed streams, so that no file gets them; standard error loses what it must, output fails.

    `sys.stdin` and `sys.stdout` stay None where they were closed.
    """
    for number, mode in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, mode)  # the lowest that is free, so this one
            if opened == number:
                os.set_inheritable(number, True)
    if sys.stdout is not None:
        sys.stdout.flush()
        kept = {name: getattr(sys.stdout, name) for name in ("encoding", "errors", "line_buffering")}
        sys.stdout = Strict(io.BufferedWriter(io.FileIO(1, "w", closefd=False)), **kept)
    encoding = "utf-8" if sys.stderr is None else sys.stderr.encoding
    raw = io.BufferedWriter(io.FileIO(2, "w", closefd=False))
    sys.stderr = Lossy(raw, encoding=encoding, errors="backslashreplace", line_buffering=True)


def refuse_closed_output() -> None:
    """Raise UsageError where standard output is closed."""
    if sys.stdout is None:
        raise UsageError("cannot write to standard output: it is closed")
