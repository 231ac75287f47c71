"""Sharing out the time, so that what comes late still gets its part."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass
class Budget:
    """Shares the time until `end` out: each in turn gets its part of what the earlier ones left."""

    end: float
    clock: Callable[[], float] = time.monotonic
    _until: float = 0.0
    _longest: float = 0.0

    def begin(self, share: float, shares_left: float) -> None:
        """A turn that gets `share` of the `shares_left`, its own among them."""
        now = self.clock()
        self._until = now + max(0.0, self.end - now) * share / shares_left
        self._longest = 0.0

    @contextlib.contextmanager
    def job(self) -> Iterator[None]:
        """Remember how long a job takes."""
        start = self.clock()
        yield
        self._longest = max(self._longest, self.clock() - start)

    @property
    def allows(self) -> bool:
        """Whether one more job as long as the longest of this turn ends within it."""
        now = self.clock()
        return now < self._until and now + self._longest <= self._until

    @property
    def over(self) -> bool:
        """Whether no time is left for anyone."""
        return self.clock() >= self.end


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Cut off as Ctrl-C does; nothing where the system has no alarm."""
    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
