"""A value that is computed at the first question and kept: `functools.cached_property` without its lock.

Until Python 3.12 that lock is one for all instances of a class, so that spectra in threads would wait for each other.
Two threads that ask for the same value at once may both compute it, and get the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, final

T = TypeVar("T")


@final
class lazy(Generic[T]):
    """Decorates a method without arguments; the value stands in the instance's __dict__ afterwards."""

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute = compute
        self.__doc__ = compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type | None = None) -> T:
        value = self._compute(instance)
        vars(instance)[self._name] = value
        return value
