"""What the benchmark and its worker process say to each other: one task as JSON in, one event per line out.

parent  -> {"kind": "time", "first": {"path": ..., "ways": [...]}, ...}
worker  -> {"event": "ready", "provider": "cpu", ...}
           {"event": "set", "first": [...], "again": [...], "second": [...]}   once per set
           {"event": "error", "exit_code": 2, "message": ..., "remedy": ...}   instead of a result
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]
"""Shape by the name of the input."""


@dataclass(frozen=True)
class Part:
    """`count` runs at those input shapes, of which three at least are timed (all where there are fewer)."""

    shapes: Shapes
    count: int = 1


@dataclass(frozen=True)
class Subject:
    """A model and the ways to do its work: the worker takes the fastest. A way is all of its parts."""

    path: str
    ways: tuple[tuple[Part, ...], ...]

    @classmethod
    def plain(cls, path: str, shapes: Shapes) -> Subject:
        """A task of one run at these shapes."""
        return cls(path, ((Part(shapes),),))


@dataclass(frozen=True)
class Task:
    """What one worker does.

    Attributes:
        kind: "time" (first against again and second), "memory" or "profile" (of first alone).
        provider, tf32, threads, verbose: as for `convrewrite.timing.bench`; threads is a number here.
        seconds: of rounds, over all sets. sets: of fresh sessions. seed: of the order and the inputs.
        folder: where a profile may be written.
    """

    kind: str
    first: Subject
    second: Subject | None = None
    provider: str = "cpu"
    tf32: bool = False
    threads: int = 1
    seconds: float = 10.0
    sets: int = 10
    seed: int = 0
    folder: str = ""
    verbose: bool = False

    def to_json(self) -> str:
        """The message as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Task:
        """Read a message that `to_json` has written."""
        data = json.loads(text)
        first, second = _subject(data.pop("first")), data.pop("second")
        return cls(first=first, second=None if second is None else _subject(second), **data)


def _subject(data: Mapping[str, Any]) -> Subject:
    return Subject(data["path"], tuple(tuple(map(_part, way)) for way in data["ways"]))


def _part(data: Mapping[str, Any]) -> Part:
    return Part({name: tuple(shape) for name, shape in data["shapes"].items()}, data["count"])
