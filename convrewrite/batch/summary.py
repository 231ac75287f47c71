"""The results of a run for machines and for pages: JSON, JUnit XML, Markdown, HTML."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from convrewrite import text
from convrewrite.batch.baseline import SCHEMA
from convrewrite.batch.changes import Against, Change, Comparison
from convrewrite.pipeline import report

if TYPE_CHECKING:
    from convrewrite.batch.results import Batch, Result

FROM_LOCK = (
    "not verified again: its model, data, settings, versions and the bytes of its output are as in the lock file"
)

SIZES = ("macs", "parameters", "bytes")

FIGURES = ("parameters", "bytes", "output_error", "top1_agreement", "speedup")

COMPARED = ("model", "now", "MACs", "parameters", "bytes", "output error", "same class", "speedup", "")

_TITLES = {
    "macs": "MACs",
    "macs_left": "MACs left",
    "parameters": "parameters",
    "bytes": "bytes",
    "output_error": "output error",
    "top1_agreement": "same class",
    "speedup": "speedup",
}

HEADER = ("model", "result", "MACs", "output error", "same class", "speedup", "")


def to_json(batch: Batch) -> str:
    """All that is known, each step's report included (schema convrewrite.run/1)."""
    models = [
        {"model": r.name, "output": os.fspath(r.target), "cached": r.cached, "note": "", **_plain(_facts(r))}
        for r in batch.results
    ]
    data = {
        "schema": SCHEMA,
        "versions": report.versions(),
        "exit_code": batch.exit_code,
        "models": models,
        "baseline": None if batch.against is None else batch.against.to_dict(),
    }
    return text.json_text(data)


def _facts(result: Result) -> dict[str, Any]:
    return {name: fact for name, fact in result.facts.items() if name != "views"}


def to_html(batch: Batch) -> str:
    """The page: a table, and below it what each step of each model did; a model that had not changed has a row only."""
    from convrewrite.page.render import render
    from convrewrite.page.views import run_view

    models = [
        {"name": r.name, "exit_code": r.exit_code, "cells": row(r), "views": r.facts.get("views", [])}
        for r in batch.results
    ]
    against = batch.against
    table = None if against is None else {"title": str(against), "header": COMPARED, "rows": compared(against)}
    return render(run_view(models, batch.exit_code, table))


def _plain(value: Any) -> Any:
    """Without the numbers that JSON has no word for."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list) else value


def to_junit(batch: Batch) -> str:
    """One test case per model: a failed check is a failure, what is broken an error, a refusal skipped."""
    kinds = {1: "failure", 3: "skipped"}
    counts = {
        name: str(sum(kinds.get(r.exit_code, "error") == kind for r in batch.results if r.exit_code))
        for name, kind in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped"))
    }
    suite = ElementTree.Element("testsuite", {"name": "convrewrite", "tests": str(len(batch.results)), **counts})
    for result in batch.results:
        seconds = str(0 if result.cached else result.facts.get("seconds", 0))
        case = ElementTree.SubElement(
            suite, "testcase", classname="convrewrite.run", name=text.xml(result.name), time=seconds
        )
        if result.exit_code:
            kind = kinds.get(result.exit_code, "error")
            ElementTree.SubElement(case, kind, message=text.xml(result.facts["message"]))
        else:
            ElementTree.SubElement(case, "system-out").text = text.xml(", ".join(filter(None, row(result)[1:])))
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def to_markdown(batch: Batch) -> str:
    """The results as a Markdown table with one row per model, and below it the comparison with a baseline."""
    lines = ["### convrewrite", "", *_table(HEADER, [row(result) for result in batch.results])]
    if batch.against is not None:
        rows = compared(batch.against)
        lines += [
            "",
            f"#### {text.markdown_cell(str(batch.against))}",
            *(["", *_table(COMPARED, rows)] if rows else []),
        ]
    return "\n".join([*lines, "", f"exit code {batch.exit_code}", ""])


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [header, ("---",) * len(header), *(tuple(map(text.markdown_cell, cells)) for cells in rows)]
    return [f"| {' | '.join(words)} |" for words in cells]


def compared(against: Against) -> list[tuple[str, ...]]:
    """One row per model of either side, and one for each of its steps whose sizes are others."""
    rows = []
    for model in against.models:
        figures = [_change(model, "macs", "macs_left"), *(_change(model, name) for name in FIGURES)]
        rows.append((model.model, model.standing, *figures, "; ".join(model.notes)))
        for step in model.steps:
            ends = (step.before, step.now)
            names = [end.name for end in ends if end is not None]
            name = (
                names[0] if len(set(names)) == 1 and len(names) == 2 else _arrow(*(e.name if e else "-" for e in ends))
            )
            sizes = [_arrow(*(_size(getattr(end, key)) if end else "-" for end in ends)) for key in SIZES]
            rows.append((f"  step {step.step + 1}: {name}", "", *sizes, "", "", "", ""))
    return rows


def told(against: Against) -> list[str]:
    """The comparison for a terminal: each model that is not as it was, and below it the figures that are not."""
    lines = [str(against)]
    for model in against.models:
        if model.standing == "same" and not model.notes:
            continue
        lines += text.columns([(model.model, model.standing)])
        rows = [(f"  {_TITLES[c.figure]}", c.verdict, _change(model, c.figure)) for c in model.changes]
        rows = [cells for cells, c in zip(rows, model.changes, strict=True) if c.verdict != "same"]
        lines += text.columns(rows) if rows else []
        lines += [f"  {note}" for note in model.notes]
    return [text.terminal(line) for line in lines]


def _change(model: Comparison, *figures: str) -> str:
    """One figure there and here; the first of these that is known."""
    change = next((c for name in figures for c in model.changes if c.figure == name), None)
    if change is None:
        return ""
    before, now = (_figure(change.figure, value) for value in (change.before, change.now))
    if change.verdict == "same" or before == now:
        return now
    return f"{_arrow(before, now)}{_by(change)}"


def _by(change: Change) -> str:
    """How much more it is, for figures of which that says something."""
    if change.figure not in SIZES or not math.isfinite(change.by):
        return ""
    return f" ({change.by:+.1%})"


def _figure(figure: str, value: float) -> str:
    if figure in SIZES:
        return f"{value:,.0f}"
    return {"output_error": f"{value:.1e}", "speedup": f"{value:.2f}x"}.get(figure, f"{value:.1%}")


def _size(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def _arrow(before: str, now: str) -> str:
    return now if before == now else f"{before} -> {now}"


def to_outputs(batch: Batch) -> str:
    """The outputs of a GitHub step: paths of the reports, and the smallest speedup that was measured."""
    names = {"report": "reports.json", "html": "reports.html", "markdown": "reports.markdown"}
    lines = [
        text.github_output(name, str(batch.reports[kind])) for name, kind in names.items() if kind in batch.reports
    ]
    speeds = [r.facts["speedup"]["median"] for r in batch.results if r.facts.get("speedup")]
    lines += [text.github_output("speedup", f"{min(speeds):.3f}")] if speeds else []
    return "".join(lines)


def row(result: Result) -> tuple[str, ...]:
    """One model as words: what came of it, what was saved, what it cost, and why where it failed."""
    facts = result.facts
    status = f"{facts['status']}{', as before, not verified again' if result.cached else ''}"
    if facts["exit_code"]:
        return result.name, facts["status"], _macs(facts), *_measured(facts), facts["message"]
    return result.name, status, _macs(facts), *_measured(facts), _kind(facts)


def _kind(facts: Mapping[str, Any]) -> str:
    return "" if facts["status"] == "unchanged" else str(facts.get("equivalence", ""))


def _measured(facts: Mapping[str, Any]) -> tuple[str, str, str]:
    error, same, speedup = facts.get("output_error"), facts.get("top1_agreement"), facts.get("speedup")
    return (
        "" if error is None else f"{error:.1e}",
        "" if same is None else f"{same:.1%}",
        "" if speedup is None else f"{speedup['median']:.2f}x ({speedup['low']:.2f} to {speedup['high']:.2f})",
    )


def _macs(facts: Mapping[str, Any]) -> str:
    """How many MACs are left."""
    left = facts.get("macs_left")
    return "" if left is None else f"{left:.0%}"
