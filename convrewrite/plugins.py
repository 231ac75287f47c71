"""Passes of other packages, found by the entry-point group `convrewrite.passes`.

    [project.entry-points."convrewrite.passes"]
    fold-scale = "mypackage.passes:FoldScale"

The entry names the pass; its class is a frozen dataclass of the same `name` that inherits from `rewrite.Pass`. It runs
by `convrewrite transform`, as a step of `convrewrite run` and by `transform` from Python, through the same runner,
judges and verification as those of the project. Nothing of another package is imported before it is asked for.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, get_type_hints

from convrewrite.engine.rewrite import Pass, Reason, option_defaults
from convrewrite.errors import Terminated, UsageError
from convrewrite.passes import ALL
from convrewrite.system.board import doing, mine
from convrewrite.system.children import no_fork_returns

GROUP = "convrewrite.passes"

PARTS = ("candidates", "plan", "apply", "reasons")
"""What a pass has beside its name."""

OWN: dict[str, type[Pass]] = {pass_.name: pass_ for pass_ in ALL}
"""The passes of the project."""


def _entries() -> tuple[dict[str, EntryPoint], dict[str, UsageError]]:
    """The passes of other packages by name, not loaded; and what is wrong with names that more than one has."""
    found: dict[str, EntryPoint] = {}
    broken: dict[str, UsageError] = {}
    for entry in entry_points(group=GROUP):
        if entry.name in OWN:
            broken[entry.name] = UsageError(
                f"package {_package(entry)} brings a pass called '{entry.name}', which is one of convrewrite's own",
                remedy=f"rename it, or uninstall {_package(entry)}",
            )
            continue
        other = found.setdefault(entry.name, entry)
        if other.value != entry.value or _package(other) != _package(entry):
            packages = " and ".join(sorted({_package(other), _package(entry)}))
            broken[entry.name] = UsageError(
                f"there are two passes called '{entry.name}', of {packages}", remedy="uninstall one"
            )
    return {name: entry for name, entry in found.items() if name not in broken}, broken


def names() -> list[str]:
    """The names of other packages' passes; nothing of them is imported."""
    return sorted(_entries()[0])


def load(name: str) -> type[Pass]:
    """The class of a pass.

    Raises:
        UsageError: there is none of that name, or more than one, it does not import, or it is no pass.
    """
    found, broken = _entries()
    if name in broken:
        raise broken[name]
    if name in OWN:
        return OWN[name]
    if name not in found:
        near = difflib.get_close_matches(name, [*OWN, *found], 1)
        known = ", ".join([*OWN, *sorted(found)])
        raise UsageError(
            f"there is no pass '{name}'", remedy=f"did you mean '{near[0]}'?" if near else f"known: {known}"
        )
    entry = found[name]
    mine().add_stranger(f"pass '{name}' of package {_package(entry)}")
    try:
        with doing(f"importing pass '{name}' of package {_package(entry)}"), no_fork_returns():
            made: Any = entry.load()
    except Terminated:
        raise
    except (Exception, SystemExit) as error:  # whatever another package's import raises
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(
            f"pass '{name}' of package {_package(entry)} does not load: {text}", remedy=f"correct {entry.value}"
        ) from error
    abstract: frozenset[str] = getattr(made, "__abstractmethods__", frozenset())
    lacks = [part for part in PARTS if part in abstract or not hasattr(made, part)]
    frozen = dataclasses.is_dataclass(made) and getattr(made, "__dataclass_params__").frozen  # noqa: B009
    if lacks or not frozen or not isinstance(made, type) or getattr(made, "name", None) != name:
        fault = f"it has no {', '.join(lacks)}" if lacks else "it is no frozen dataclass"
        if not lacks and frozen:
            fault = f"its own name is {getattr(made, 'name', None)!r}"
        raise UsageError(f"{entry.value} of package {_package(entry)} is no pass '{name}': {fault}")
    if not issubclass(made, Pass) or "context" not in inspect.signature(made.plan).parameters:
        raise UsageError(
            f"{entry.value} of package {_package(entry)} is written for an older convrewrite",
            remedy="inherit from convrewrite.rewrite.Pass, and plan by plan(context, node): context.graph is the graph",
        )
    reasons: Any = made.reasons
    if not isinstance(reasons, Mapping) or not all(isinstance(reason, Reason) for reason in reasons.values()):
        fault = "its 'reasons' are no mapping of codes to Reason"
        raise UsageError(f"{entry.value} of package {_package(entry)} is no pass '{name}': {fault}")
    return made


def load_all() -> tuple[list[type[Pass]], dict[str, UsageError]]:
    """The classes of all passes, the project's own first; and for each that is broken, what is wrong with it."""
    loaded: list[type[Pass]] = list(OWN.values())
    found, broken = _entries()
    for name in sorted(found):
        try:
            loaded.append(load(name))
        except UsageError as error:
            broken.setdefault(name, error)
    return loaded, broken


def make(name: str, options: Mapping[str, Any]) -> Pass:
    """A pass with these options, by the names of its fields.

    Raises:
        UsageError: there is no such pass, or it has no such option, or does not take the value.
    """
    pass_: Any = load(name)
    fields = list(option_defaults(pass_))
    for option in options:
        if option not in fields and option in {field.name for field in dataclasses.fields(pass_)}:
            raise UsageError(
                f"the field '{option}' of pass '{name}' is no option",
                remedy="its authors mark options by option(default)",
            )
        if option not in fields:
            near = difflib.get_close_matches(option, fields, 1, 0.4)
            known = f"known: {', '.join(fields)}" if fields else "it has none"
            raise UsageError(
                f"pass '{name}' has no option '{option}'", remedy=f"did you mean '{near[0]}'?" if near else known
            )
    values = _checked(pass_, options)
    try:
        with no_fork_returns():
            made: Pass = pass_(**values)
    except (TypeError, ValueError) as error:
        raise UsageError(f"pass '{name}' does not take {dict(options)}: {error}") from error
    return made


def _checked(pass_: type[Pass], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as the types of their fields have them: a list becomes a tuple, a whole number a floating one.

    Raises:
        UsageError: a value is not of the type of its field.
    """
    from pydantic import PydanticUserError, TypeAdapter, ValidationError

    try:
        types = get_type_hints(pass_)
    except (NameError, TypeError):  # names that are there for type checkers alone
        types = {}
    checked: dict[str, Any] = {}
    for option, value in options.items():
        checked[option] = tuple(value) if isinstance(value, list) else value
        try:
            check = TypeAdapter[Any](types[option])
        except (KeyError, PydanticUserError):  # a type that says nothing of values
            continue
        try:
            found = check.validate_python(value, strict=not isinstance(value, list))
        except ValidationError as error:
            told = error.errors()[0]["msg"]
            raise UsageError(
                f"pass '{pass_.name}' does not take {option}={value!r}", remedy=f"{told[:1].lower()}{told[1:]}"
            ) from None
        checked[option] = tuple(found) if isinstance(found, list) else found
    return checked


def version(name: str) -> str:
    """The version of the package that a pass comes from; "" for the project's own passes."""
    entry = None if name in OWN else _entries()[0].get(name)
    return "" if entry is None or entry.dist is None else f"{entry.dist.name} {entry.dist.version}"


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.value
