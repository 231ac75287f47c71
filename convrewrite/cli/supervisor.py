"""The command in a process of its own: ONNX Runtime, a pass or the system may end that one, and this one tells why.

    terminal ── supervisor ──fork──> the whole command: typer, passes, numpy, ONNX Runtime
                    │ waits              │ notes what it does, its folders and its exit code (`board`)
                    └────── one line, an exit code that is no signal, no temporary file

The fork comes before anything heavy is imported, so it costs milliseconds, and both share the standard streams. Where
there is no fork (Windows), the interpreter is started again. A process in which ONNX Runtime is loaded, or whose
streams somebody replaced, is no console script: there the command runs in place.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NoReturn

from convrewrite.errors import ConvrewriteError, Interrupted, Terminated
from convrewrite.system import board, streams
from convrewrite.system.board import Board

GRACE = 3.0
"""Seconds that a command has to end after a signal that asks it to."""

ONE_EVENT = 0.5
"""Seconds within which a signal is the same one again: a terminal sends Ctrl-C to both processes."""

AT_ONCE = {"--help", "-h", "--version"}
"""Words that are answered at once: nothing that could die is loaded for them."""

WORK = {"--verbose", "-v"}
"""Words that make more of it: `--version -v` loads ONNX Runtime."""

ASKING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

Command = Callable[[], int]
Died = Callable[[ConvrewriteError, dict[str, Any]], None]


def supervised(command: Command, died: Died) -> NoReturn:
    """Run a command in a process of its own, and leave with its exit code.

    Args:
        command: does the work, tells its errors and returns its exit code.
        died: tells the error of a command that ended otherwise, with the facts that it noted on its board.

    Raises:
        SystemExit: always, in the process that watches; the other one ends at once, whatever runs in it besides.
    """
    if not _is_a_script():
        before = {number: signal.getsignal(number) for number in ASKING}
        catch_signals()
        try:
            sys.exit(command())
        finally:
            for number, handler in before.items():
                with contextlib.suppress(ValueError, TypeError):  # not in the main thread, or not one of Python's
                    signal.signal(number, handler)
    streams.settle()
    if not sys.argv[1:] or (AT_ONCE & set(sys.argv[1:]) and not WORK & set(sys.argv[1:])):
        sys.exit(command())
    if board.VARIABLE in os.environ:
        _be_the_child(command, board.join(), os.getppid())
    if hasattr(os, "fork"):
        watched = Board.shared()
        _end(_Watch(watched).forked(command), watched, died)
    from convrewrite.system import atomic

    with atomic.scratch() as folder:
        path = os.path.join(folder, "board")
        watched = Board.make(path)
        words = [sys.executable, "-P", "-m", "convrewrite", *sys.argv[1:]]
        _end(_Watch(watched).spawned(words, path), watched, died)


def _is_a_script() -> bool:
    """Whether this process does nothing but this command."""
    ours = sys.stdout is sys.__stdout__ and sys.stderr is sys.__stderr__
    return ours and threading.active_count() == 1 and "onnxruntime" not in sys.modules


def _be_the_child(
    command: Command, watched: Board, parent: int, unmask: Callable[[], object] = lambda: None
) -> NoReturn:
    from convrewrite.system import children

    children.die_with(parent)
    board.join(watched)
    catch_signals()
    try:
        unmask()
        code = command()
    except Terminated as error:
        code = error.code if isinstance(error.code, int) else ConvrewriteError.exit_code
    except KeyboardInterrupt:
        code = Interrupted.exit_code
    watched.code = code
    children.leave(code)


def catch_signals() -> None:
    """Let the signals that ask to end raise: KeyboardInterrupt, or Terminated, so that temporary files go."""
    last: dict[int, float] = {}

    def asked(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        again = now - last.get(number, -ONE_EVENT) < ONE_EVENT
        last[number] = now
        if not again:
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated(128 + number)

    for number in ASKING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            with contextlib.suppress(ValueError):  # not in the main thread
                signal.signal(number, asked)


@dataclass
class _End:
    """How the child ended: its code as `subprocess` gives it, and the signals that this process was asked with."""

    code: int
    asked: list[int]


@dataclass
class _Watch:
    """Hands signals on to the child, and insists where it does not end."""

    watched: Board
    child: int = 0
    asked: list[int] = field(default_factory=list)

    def forked(self, command: Command) -> _End:
        """Run the command in a fork; returns in the parent alone."""
        from convrewrite.system import children

        parent = os.getpid()
        children.adopt_orphans()
        signal.signal(
            signal.SIGCHLD, signal.SIG_DFL
        )  # whoever started this may ignore it, which leaves nothing to wait for
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)  # until each process knows what to do with them
        try:
            self.child = os.fork()
        except OSError:  # no more processes: better unwatched than not at all
            catch_signals()
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            sys.exit(command())
        if self.child == 0:
            _be_the_child(command, self.watched, parent, lambda: signal.pthread_sigmask(signal.SIG_SETMASK, mask))
        signal.signal(signal.SIGALRM, self._insist)
        self._listen()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        _, status = os.waitpid(self.child, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        children.end_orphans()
        return _End(os.waitstatus_to_exitcode(status), self.asked)

    def spawned(self, words: Sequence[str], board_path: str) -> _End:
        """Run the command in an interpreter of its own."""
        from convrewrite.system import children

        with subprocess.Popen(words, env=children.environment(board_path)) as process:
            self.child = process.pid
            self._listen()
            return _End(process.wait(), self.asked)

    def _listen(self) -> None:
        for number in ASKING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._hand_on)

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        self.asked.append(number)
        if os.name == "nt" and number == signal.SIGINT:
            return  # the console has told both, and os.kill would end the child at once
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.child, number)
        if (number != signal.SIGINT or len(self.asked) > 1) and hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, GRACE)

    def _insist(self, number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.child, signal.SIGKILL)


def _end(end: _End, watched: Board, died: Died) -> NoReturn:
    """Leave as the child did, or in its place."""
    if watched.code is not None:  # whatever its leaving came to: its work was done
        sys.exit(watched.code)
    from convrewrite.system import endings, leftovers

    for folder in watched.folders:
        leftovers.sweep(folder, again=True)
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K\x1b[?25h")  # of a bar that nobody took down
    if end.asked or end.code == -signal.SIGINT:
        sys.exit(128 + (end.asked or [signal.SIGINT])[0])
    error = endings.unanswered(
        "the command", end.code, watched, remedy="choose a smaller size, or a machine with more memory"
    )
    died(error, watched.facts)
    sys.exit(error.exit_code)
