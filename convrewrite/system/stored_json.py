"""JSON files that a run has left for a later one, read as what they are: files that anybody may have changed since."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LARGEST = 64 << 20
"""Bytes of such a file."""

DEEPEST = 32
"""Levels of such a file; ours have six."""


def read(path: Path) -> Any:
    """What a file holds.

    Raises:
        ValueError: it is no plain file, is too large, or is no JSON as this program writes it: no name twice, no NaN,
            no depth. OSError: it cannot be read.
    """
    if not path.is_file():
        raise ValueError("it is no plain file")
    if path.stat().st_size > LARGEST:
        raise ValueError("it is too large")
    return parse(path.read_bytes())


def parse(content: bytes) -> Any:
    """What such a file holds, of which the bytes are at hand. Raises ValueError as `read` does."""
    if not content.strip():
        raise ValueError("it is empty")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("it is no text in UTF-8") from None
    try:
        data = json.loads(text, object_pairs_hook=_single, parse_constant=_refuse, parse_int=_whole)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON from line {error.lineno}, column {error.colno} on") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _refuse_depth(data)
    return data


def _single(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("it has a name twice")
    return found


def _whole(digits: str) -> int:
    try:
        return int(digits)
    except ValueError:  # Python reads no more than some thousand digits
        raise ValueError(f"it holds a number of {len(digits):,} digits") from None


def _refuse(constant: str) -> Any:
    raise ValueError(f"it holds {constant}")


def _refuse_depth(data: Any) -> None:
    level = [data]
    for _ in range(DEEPEST):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return
    raise ValueError("it is nested too deeply")


def _inside(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
