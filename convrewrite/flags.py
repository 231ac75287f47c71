"""Options in messages, in the words of whoever reads them: parameters from Python, settings of a file, `--set`.

    give --size 224x224, or real inputs with --data F.npz     on the command line
    give size=(224, 224), or real inputs with data            from Python

Commands that a message quotes (`convrewrite verify a.onnx b.onnx --seed 0`) stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from convrewrite.errors import ConvrewriteError

UNVERIFIED = ", or write unverified with --no-verify"
"""What a command offers that writes a model; one that only compares has no such option."""

_COMMAND = re.compile(r"(convrewrite [a-z-]+ [^;]*)")
_FLAG = re.compile(
    r"(?<![\w/\\'\"=.-])--(?P<name>[a-z][a-z0-9]*(?:-[a-z0-9]+)*)(?P<value> (?:\d+(?:x\d+)*|[HLD](?:x[HW])+|F\.\w+)\b)?"
)

Name = Callable[[str, str], str | None]
"""From the name of an option and its value, "" where none follows, to other words; None leaves both as they are."""


def reworded(text: str, name: Name) -> str:
    """The text with its options named otherwise."""

    def renamed(found: re.Match[str]) -> str:
        words = name(found["name"], (found["value"] or "").strip())
        return found[0] if words is None else words

    parts = _COMMAND.split(text)
    return "".join(part if number % 2 else _FLAG.sub(renamed, part) for number, part in enumerate(parts))


def reword(error: ConvrewriteError, name: Name) -> None:
    """Name the options otherwise in the lines of an error."""
    error.message = reworded(error.message, name)
    error.remedy = None if error.remedy is None else reworded(error.remedy, name)
    error.args = (error.message,)


def without_writing(error: ConvrewriteError) -> None:
    """Leave out the offer to write a model unverified, where no model is written."""
    error.remedy = error.remedy and error.remedy.removesuffix(UNVERIFIED)
    error.message = error.message.replace(UNVERIFIED, "")
    error.args = (error.message,)


def parameter(name: str, value: str) -> str:
    """An option as a parameter of the function in Python."""
    if name.startswith("no-"):
        return f"{name.removeprefix('no-')}=False"
    if name == "dense":
        return "stride=1"
    known = name.replace("-", "_")
    if not value or value.startswith("F."):
        return known
    extents = value.split("x")
    return f"{known}={value}" if len(extents) == 1 and value.isdecimal() else f"{known}=({', '.join(extents)})"


def settings_of(names: Collection[str], form: str = "{}") -> Name:
    """Options as settings, which are written as in TOML: those of these names, with `form` around them."""

    def setting(name: str, value: str) -> str | None:
        known = name.replace("-", "_")
        if known not in names:
            return None
        if not value or value.startswith("F."):
            return form.format(known)
        extents = value.split("x")
        single = len(extents) == 1 and value.isdecimal()
        return form.format(f"{known}={value}" if single else f"{known}=[{','.join(extents)}]")

    return setting
