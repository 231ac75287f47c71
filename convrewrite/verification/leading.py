"""The order in which comparisons are told: what a saturated operator hides comes ahead of it.

A Softmax over scores that lie far apart gives (1, 0, 0) whatever happens ahead of it: its own error, such as 4.7e-29,
looks exact where the scores moved by 3.1e-3. Where random inputs do that, the scores lead.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

HIDES = 10.0
"""An output hides what lies ahead of it where that is off by so many times more."""


class Told(Protocol):
    """What is looked at of a comparison."""

    @property
    def name(self) -> str: ...
    @property
    def output(self) -> str: ...
    @property
    def error(self) -> float | None: ...


T = TypeVar("T", bound=Told)


def ahead(case: Told, cases: Iterable[T]) -> T | None:
    """The comparison of what lies ahead of the output's final operator, where that is off by far more; else None."""
    if case.error is None:
        return None
    for other in cases:
        if other.output.startswith(f"{case.output} (before ") and _check(other.name) == _check(case.name):
            return other if other.error is not None and other.error > HIDES * case.error else None
    return None


def ordered(cases: Sequence[T]) -> list[T]:
    """The comparisons, each that hides another one behind that one."""
    found: list[T] = []
    for case in cases:
        first = ahead(case, cases)
        found += [one for one in (first, case) if one is not None and not any(one is other for other in found)]
    return found


def _check(name: str) -> str:
    """The check without what says which of the two tensors it is of."""
    return name.replace(", ahead of its final operator", "").replace("ahead of the final operator", "outputs")
