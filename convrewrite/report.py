"""What a command did: a report as JSON for machines (schema `convrewrite.report/1`), a short text for people."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from convrewrite.atomic import refuse_target, temporary_beside, write_durably, write_errors
from convrewrite.pipeline import FileFacts, Outcome
from convrewrite.rewrite import Site
from convrewrite.windows import Window

SCHEMA = "convrewrite.report/1"
SCHEMA_FILE = Path(__file__).with_name("report.schema.json")
PACKAGES = ("convrewrite", "onnx", "onnx-graphsurgeon", "onnxruntime-gpu", "onnxruntime", "numpy")


def versions() -> dict[str, str]:
    """Versions of what the result depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def to_dict(outcome: Outcome) -> dict[str, Any]:
    """The report of one command."""
    window = None if outcome.window is None else json.loads(outcome.window.to_json())
    verification = outcome.verification
    return {
        "schema": SCHEMA,
        "command": outcome.command,
        "versions": versions(),
        "provider": outcome.provider,
        "outcome": outcome.status,
        "exit_code": outcome.exit_code,
        "message": "" if outcome.error is None else str(outcome.error),
        "input": _facts(outcome.input),
        "output": _facts(outcome.output),
        "sites": [site.to_dict() for site in outcome.sites],
        "window": window,
        "verify": None if verification is None else dict(verification.to_dict()),
        "bench": None,
    }


def _facts(facts: FileFacts | None) -> dict[str, Any] | None:
    return None if facts is None else dict(vars(facts))


def write(outcome: Outcome, target: Path) -> None:
    """Write the JSON report, whole or not at all. Raises UsageError where the target cannot be written."""
    refuse_target(target)
    temporary = temporary_beside(target, ".json")
    text = json.dumps(to_dict(outcome), indent=2, allow_nan=False) + "\n"
    try:
        with write_errors(target):
            write_durably(temporary, [text.encode()])
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def show(outcome: Outcome, console: Console, *, verbose: bool = False) -> None:
    """Print the text for a person: what was rewritten, what a window is, how it was verified, what to do next."""
    if verbose or any(site.outcome == "rewritten" for site in outcome.sites):
        console.print(_table(outcome.sites, verbose=verbose))
    for line in _lines(outcome):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _table(sites: tuple[Site, ...], *, verbose: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("site", "outcome", "what"):
        table.add_column(column, overflow="fold")
    shown = sites if verbose or len(sites) <= 12 else sites[:11]
    for site in shown:
        what = site.detail if site.outcome == "rewritten" else f"{site.detail} [{site.reason}]"
        table.add_row(
            escape(site.anchor), site.outcome, escape(f"{what} ({site.equivalence})" if site.equivalence else what)
        )
    if len(shown) < len(sites):
        table.add_row(f"{len(sites) - len(shown)} more", "", "shown with --verbose")
    return table


def _lines(outcome: Outcome) -> Iterator[str]:
    if outcome.window is not None and outcome.status == "rewritten":
        yield from _window_lines(outcome.window)
    if outcome.verification is not None:
        verdict, *details = str(outcome.verification).splitlines()
        yield f"{verdict} on {outcome.provider}:" if details else verdict
        yield from details
    if outcome.advice:
        yield outcome.advice


def _window_lines(window: Window) -> Iterator[str]:
    size, stride, field = (
        "x".join(map(str, values)) for values in (window.size, window.stride, window.receptive_field)
    )
    yield f"window {size}, one every {stride} pixels (receptive field {field}): metadata convrewrite.window"
    if window.equivalence == "windows":
        yield "windows: every output equals the original on its window of the image"
    else:
        yield f"native-size: equal to the original at {size}; beyond it a different function, since {window.why}"
