"""How docstrings become the pages of the reference: an extension of griffe, which mkdocstrings reads the code with.

    Raises: Refused: it cannot be converted. CheckFailed: it is not equivalent.     one line, for readers of the code
    Raises:
        Refused: it cannot be converted.                                            an entry each, for the pages
        CheckFailed: it is not equivalent.

A function of the Python API takes its options as keywords, which its own `def` does not list: its signature and its
docstring are asked for at run time.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

from griffe import Class, Extension, Function, Object, Parameter, ParameterKind, Parameters

from convrewrite import api

SECTIONS = ("Args", "Attributes", "Raises")
HEADER = re.compile(rf"(?P<name>{'|'.join(SECTIONS)}):")
ENTRY = re.compile(r"(?<=[.;)]) (?=(?:\w+|\*+\w+)(?:, \w+)*: )")
KINDS = {
    inspect.Parameter.POSITIONAL_ONLY: ParameterKind.positional_only,
    inspect.Parameter.POSITIONAL_OR_KEYWORD: ParameterKind.positional_or_keyword,
    inspect.Parameter.KEYWORD_ONLY: ParameterKind.keyword_only,
    inspect.Parameter.VAR_POSITIONAL: ParameterKind.var_positional,
    inspect.Parameter.VAR_KEYWORD: ParameterKind.var_keyword,
}


class OneEntryEach(Extension):
    """Docstrings with one entry to a line, and signatures as callers see them."""

    def on_function(self, *, func: Function, **_: Any) -> None:
        """Give a function of the API its keywords, and every function its entries."""
        made = getattr(api, func.name, None) if func.module.path == "convrewrite.api" else None
        if func.name in api.__all__ and callable(made):
            func.parameters = parameters(made)
            if func.docstring is not None:
                func.docstring.value = inspect.getdoc(made) or ""
        _spread(func)

    def on_class(self, *, cls: Class, **_: Any) -> None:
        """Give a class its entries."""
        _spread(cls)


def parameters(function: Callable[..., Any]) -> Parameters:
    """The parameters as the signature of a decorated function says."""
    return Parameters(
        *(
            Parameter(
                known.name,
                annotation=_short(known.annotation),
                kind=KINDS[known.kind],
                default=None if known.default is known.empty else repr(known.default),
            )
            for known in inspect.signature(function).parameters.values()
        )
    )


def _short(annotation: Any) -> str | None:
    if annotation is inspect.Parameter.empty:
        return None
    said = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Z])", "", said)


def _spread(item: Object) -> None:
    if item.docstring is not None:
        item.docstring.value = spread(item.docstring.value)


def spread(text: str) -> str:
    """A docstring in which every argument, attribute and error has a line of its own."""
    lines, section, entry = [], False, ""
    for line in [*text.splitlines(), ""]:
        if section and line.startswith("    "):
            entry = f"{entry} {line.strip()}" if entry and line.startswith("     ") else f"{entry}\n{line.strip()}"
            continue
        if entry:
            lines += [f"    {part.strip()}" for one in entry.split("\n") for part in ENTRY.split(one) if part.strip()]
            entry = ""
        section = HEADER.fullmatch(line) is not None
        lines.append(line)
    return "\n".join(lines).rstrip()
