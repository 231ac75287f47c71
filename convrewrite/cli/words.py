"""How the command line calls parameters: `--size 224x224`, or `--set tol=0.1` for those of a pass that is named."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from convrewrite.text import Call, extents

OTHERWISE = {
    "batches": "batch",
    "chosen": "class",
    "fields": "set",
    "outputs": "output",
    "shapes": "shape",
    "sizes": "size",
}
"""Options whose name is not that of the parameter."""

LISTS = ("channels", "mean", "std")
"""Options of several numbers with commas in between."""


@dataclass(frozen=True)
class Flags:
    """Words of the command line.

    Attributes:
        settings: parameters that `--set` gives.
    """

    settings: frozenset[str] = frozenset()

    def parameter(self, name: str, value: Any) -> str:
        """An option with its value."""
        if name in self.settings:
            return f"--set {name}" if value is None else f"--set {name}={_setting(value)}"
        return " ".join(_option(name, value))

    def call(self, call: Call) -> str:
        """A line for a shell."""
        words = ["convrewrite", call.name, *call.files]
        for name, value in call.parameters.items():
            words += _option(name, value)
        return shlex.join(words)


FLAGS = Flags()


def _option(name: str, value: Any) -> list[str]:
    """The words of an option; several where it is given several times."""
    flag = f"--{OTHERWISE.get(name, name).replace('_', '-')}"
    if value is None or value is True:
        return [flag]
    if name == "fit":
        return [flag, "responses" if value else "weights"]
    if value is False:
        return [f"--no-{flag.removeprefix('--')}"]
    return [word for text in _texts(name, value) for word in (flag, text)]


def _texts(name: str, value: Any) -> Iterator[str]:
    """The values of an option, as the command line reads them."""
    if name == "fields":
        yield from (f"{key}={entry!r}" for key, entry in value.items())
    elif isinstance(value, Mapping):
        sign = {key: f"{key}=" if key else "" for key in value}
        yield from (f"{sign[key]}{text}" for key, entry in value.items() for text in _texts(name, entry))
    elif name in ("sizes", "batches"):
        yield ",".join("x".join(extents(one) or [str(one)]) for one in value) if isinstance(value, list) else str(value)
    elif isinstance(value, list):
        yield from map(str, value)
    elif name in LISTS and isinstance(value, tuple):
        yield ",".join(map(repr, value))
    else:
        yield "x".join(extents(value) or [str(value)])


def _setting(value: Any) -> str:
    """A value of `--set`, which is read as TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    found = extents(value)
    if found is None or (len(found) == 1 and not isinstance(value, tuple)):
        return str(value)
    return f"[{','.join(found)}]"
