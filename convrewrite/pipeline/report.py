"""What a command did: a report as JSON for machines (schema `convrewrite.report/1`), a short text for people.

    rewrote   c5      Gemm [120, 400] -> Conv 120 x 16 x 5 x 5   reassociated
    window    32x32 pixels, one every 4x4
    verified  on cpu                 max error  tolerance  own noise
              native size              2.3e-07    1.0e-05    2.9e-07
    wrote     out.onnx (248.7 kB, 61,706 parameters)
    next      run it on a larger image

On a terminal the text fits its width, beside the labels; elsewhere each fact is one line, whole.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.text import Text

from convrewrite import text
from convrewrite.engine.rewrite import Site
from convrewrite.engine.windows import METADATA_KEY, UPSAMPLED_KEY, Window
from convrewrite.errors import UsageError
from convrewrite.pipeline.outcome import STREAM, FileFacts, Outcome
from convrewrite.running.installed import distributions
from convrewrite.system import atomic
from convrewrite.system.atomic import write_errors
from convrewrite.system.streams import refuse_closed_output
from convrewrite.text import Words, counted, layout, parameter, told
from convrewrite.text.layout import Table
from convrewrite.verification import leading
from convrewrite.verification.verdicts import MISMATCHES, Case, Verification

SCHEMA = "convrewrite.report/1"
SCHEMA_FILE = Path(__file__).with_name("report.schema.json")
PACKAGES = ("convrewrite", "onnx", "onnx-graphsurgeon", "numpy")

SATURATED = "saturated"
"""Of an output whose error says little, since its final operator hides what lies ahead of it."""

LABEL = 11
"""Columns of the labels."""

SHOWN = 12
"""Sites that are listed where not all are asked for."""

NAMES = 40
"""Characters of a name in a table."""

NO_STRUCTURE = "groups/no-structure"
BEST = 5
"""Sites that are listed with what they would need."""

STYLES = {
    "verified": "bold green",
    "failed": "bold red",
    "vacuous": "bold red",
    "skipped": "bold yellow",
    "warning": "bold yellow",
}


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """The versions of Python, of the libraries that the result depends on, and of every ONNX Runtime installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found | distributions()


def to_dict(outcome: Outcome) -> dict[str, Any]:
    """The report of one command, as JSON."""
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
        "bench": outcome.bench.to_dict() if outcome.bench is not None and outcome.bench.cells else None,
        "warnings": list(outcome.warnings),
    }


def _facts(facts: FileFacts | None) -> dict[str, Any] | None:
    return None if facts is None else facts.to_dict()


def check_target(target: str, model: object) -> None:
    """Raise UsageError where a report cannot go to standard output: it is closed, or a model goes there."""
    if target == STREAM and model == STREAM:
        raise UsageError(
            "the model and the report cannot both go to standard output", remedy=f"give {parameter('report')} a path"
        )
    if target == STREAM:
        refuse_closed_output()


def write(outcome: Outcome, target: str) -> None:
    """Write the JSON report, whole or not at all. Raises UsageError where the target cannot be written."""
    content = text.json_text(to_dict(outcome))
    if target == STREAM:
        refuse_closed_output()
        with write_errors("the report to standard output"):
            print(content, end="", flush=True)
        return
    atomic.write_whole(target, [content.encode()], ".json")


def show(outcome: Outcome, console: Console, words: Words = text.PYTHON, *, verbose: bool = False) -> None:
    """Print the text for a person: what was rewritten, what a window is, how it was verified, what to do next.

    Args:
        words: how that person calls parameters.
    """
    outcome = outcome.told(words)
    width = layout.width_of(console)
    if outcome.bench is not None:
        layout.show(console, outcome.bench.lines(width))
    room = width - LABEL if width > 2 * LABEL else 0
    for label, parts in _sections(outcome, words, verbose):
        first = label
        for line in _lines(parts, room):
            styled = Text.assemble((first.ljust(LABEL), STYLES.get(label, "bold")), line)
            layout.show(console, [styled])
            first = ""


def _lines(parts: Sequence[str | Table], width: int) -> Iterator[Text | str]:
    """Tables and facts as lines of at most that width."""
    for part in parts:
        if isinstance(part, Table):
            yield from part.lines(width)
        else:
            yield from layout.folded(text.terminal(part), width)


def _sections(outcome: Outcome, words: Words, verbose: bool) -> Iterator[tuple[str, Sequence[str | Table]]]:
    """Labels with their lines."""
    done = outcome.status in ("rewritten", "compared")
    judged = [site for site in outcome.sites if site.reason.startswith("accept/")]
    told = outcome.status == "unchanged" and any(site.reason != "accept/not-smaller" for site in judged)
    if verbose or done or told:
        yield from _site_lines(outcome.sites, words, verbose)
    if outcome.window is not None and done:
        upsampled = outcome.ends is not None and UPSAMPLED_KEY in outcome.ends.after.metadata
        yield "window", _window_lines(outcome.window, upsampled=upsampled)
    if outcome.verification is not None:
        yield outcome.verification.verdict, _verification_lines(outcome, outcome.verification, verbose)
    if outcome.status == "rewritten" and outcome.output is not None:
        label = "wrote" if outcome.output.path else "made"
        beside = [f"its weights are in {name}, which has to lie beside it" for name in outcome.output.data]
        yield label, [_file_line(outcome.output, outcome.window), *beside, *_replaced(outcome)]
    if outcome.status == "unchanged":
        yield from _needs(outcome, words)
    if outcome.warnings and done:
        yield "warning", list(outcome.warnings)
    if outcome.advice:
        yield ("unchanged" if outcome.status == "unchanged" else "next"), [outcome.advice]


def _site_lines(sites: Sequence[Site], words: Words, verbose: bool) -> Iterator[tuple[str, Sequence[str | Table]]]:
    first = [site for site in sites if site.outcome == "rewritten"]
    rest = [site for site in sites if site.outcome != "rewritten"]
    room = len(sites) if verbose or len(sites) <= SHOWN else max(SHOWN - 1 - len(first), 3)
    shown = [*first, *rest[:room]]
    for outcome in ("rewritten", "declined", "refused"):
        rows = [(site.anchor, site.detail, _kind(site)) for site in shown if site.outcome == outcome]
        if rows:
            more = len([site for site in sites if site.outcome == outcome]) - len(rows)
            tail = [f"... and {more} more, shown with {told(parameter('verbose'), words)}"] if more else []
            table = Table(rows, folds={0: 14, 1: 24, 2: 14}, headed=False)
            yield "rewrote" if outcome == "rewritten" else outcome, [table, *tail]


def _kind(site: Site) -> str:
    """How a rewritten site compares with the original, or why there is none."""
    if site.equivalence != "approximate":
        return site.equivalence or f"[{site.reason}]"
    fitted = "" if site.response_error is None else f", its response by {site.response_error:.1e}"
    return f"approximate: the kernel is off by {site.error:.1e}{fitted}"


def _needs(outcome: Outcome, words: Words) -> Iterator[tuple[str, Sequence[str | Table]]]:
    """Where nothing was worth it: the sites that would need the smallest tolerances, and what they would save."""
    known = [s for s in outcome.sites if s.tol_pays is not None and s.reason in ("accept/not-smaller", NO_STRUCTURE)]
    known.sort(key=lambda site: (site.tol_halves or math.inf, site.tol_pays, site.anchor))
    if not known:
        return
    total = outcome.input.macs if outcome.input is not None else None
    tol = told(parameter("tol"), words)
    rows = [("", f"fewer MACs from {tol}", f"half from {tol}", "which saves")]
    for site in known[:BEST]:
        macs = site.macs_before or 0
        half = macs - macs // 2
        share = f" ({half / total:.1%})" if total else ""
        halves = "-" if site.tol_halves is None else text.enough(site.tol_halves)
        saved = "-" if site.tol_halves is None else f"{counted(half, 'MAC')}{share}"
        rows.append((_short(site.anchor), text.enough(site.tol_pays), halves, saved))
    more = [f"... and {len(known) - BEST} more, in the report"] if len(known) > BEST else []
    yield "would need", [Table(rows, right=(1, 2, 3), folds={0: 14, 3: 16}), *more]


def _short(name: str) -> str:
    """A name that leaves room beside it."""
    return name if len(name) <= NAMES else f"{name[: NAMES // 2]}...{name[-NAMES // 2 + 3 :]}"


def _window_lines(window: Window, *, upsampled: bool) -> list[str]:
    """The windows, and what is claimed of them; what lies between two of them is interpolated, not claimed."""
    size, stride, field = (
        "x".join(map(str, values)) for values in (window.size, window.stride, window.receptive_field)
    )
    key = UPSAMPLED_KEY if upsampled else METADATA_KEY
    lines = [f"{size} pixels, one every {stride} (receptive field {field}); metadata {key}"]
    if window.equivalence == "windows" and upsampled:
        return [*lines, "windows: the outputs are interpolated between cells, each equal to the original on its window"]
    if window.equivalence == "windows":
        return [*lines, "windows: every output equals the original on its window of the image"]
    return [
        *lines,
        f"native-size: equal to the original at {size}; not claimed for windows of larger images: {window.why}",
    ]


def _verification_lines(outcome: Outcome, found: Verification, verbose: bool) -> Sequence[str | Table]:
    """One row per check with its worst output; every output of every check where verbose."""
    rows: list[tuple[str, ...]] = []
    notes: list[str] = []
    cases = leading.ordered(found.cases)
    for name in dict.fromkeys(case.name for case in cases):
        group = [case for case in cases if case.name == name]
        ran = [case for case in group if case.error is not None]
        for metric in dict.fromkeys(case.metric for case in ran):
            worst = max((c for c in ran if c.metric == metric), key=lambda c: (c.status == "failed", c.badness))
            hidden = leading.ahead(worst, cases) is not None
            rows.append(_case_row(worst, name if metric != MISMATCHES else f"{name}, whole numbers", hidden=hidden))
        part = max((case for case in ran if case.channel is not None), key=_by_part, default=None)
        if part is not None:
            rows.append(_part_row(part))
        if verbose:
            rows += [_case_row(case, f"  {case.output}") for case in ran]
        notes += [str(case) for case in group if case.error is None]
    if found.deviation is not None:
        notes.append(str(found.deviation))
    notes += [found.still] if found.still else []
    if outcome.command != "verify":  # which prints them beside its own figures
        notes += [f"warning: {line}" for line in found.warnings]
    if not rows:
        return notes
    header = (f"on {outcome.provider}", "max error", "tolerance", "own noise", "")
    return [Table([header, *rows], right=(1, 2, 3), folds={0: 24, 4: 12}, verdict=4), *notes]


def _by_part(case: Case) -> tuple[bool, float]:
    return case.failed_in_part, case.channel.badness if case.channel is not None else 0.0


def _part_row(case: Case) -> tuple[str, ...]:
    """The part of an output that is worst by its own magnitude."""
    part = case.channel
    assert part is not None
    noise = "-" if part.noise is None else f"{part.noise:.1e}"
    tolerance = "-" if case.status == "stated" else f"{part.tolerance:.1e}"
    status = "FAILED" if case.failed_in_part else ""
    return f"  worst part: {case.output}{part}", f"{part.error:.1e}", tolerance, noise, status


def _case_row(case: Case, name: str, hidden: bool = False) -> tuple[str, ...]:
    """One comparison; `hidden` where the output is saturated, and what lies ahead of it says more."""
    told = [SATURATED] if hidden else []
    figure = "{:.2%}" if case.metric == MISMATCHES else "{:.1e}"
    noise = "-" if case.noise is None else figure.format(case.noise)
    if case.status != "stated":
        status = "" if case.status == "passed" else case.status.upper()
        status = status or "".join(told)
        return name, figure.format(case.error), figure.format(case.tolerance or 0.0), noise, status
    same = None if case.metrics is None else case.metrics.top1_agreement
    told += [] if same is None else [f"same class in {same:.0%}"]
    return name, figure.format(case.error), "-", noise, ", ".join(told)


def _file_line(facts: FileFacts, window: Window | None) -> str:
    place = "standard output" if facts.path == STREAM else facts.path or "a model"
    size = f"{decimal(facts.bytes)}, {counted(facts.parameters, 'parameter')}"
    if facts.macs is not None and window is not None:
        size += f", {counted(facts.macs, 'MAC')} at {'x'.join(map(str, window.size))}"
    elif facts.macs is not None:
        size += f", {counted(facts.macs, 'MAC')}"
    return f"{place} ({size})"


def _replaced(outcome: Outcome) -> list[str]:
    """A line where IN and OUT are one file."""
    ends = [facts.path for facts in (outcome.input, outcome.output) if facts is not None]
    with contextlib.suppress(OSError):
        if STREAM not in ends and all(ends) and Path(ends[0]).samefile(ends[-1]):
            return ["the input was replaced"]
    return []
