"""The results of a run for machines and for pages: JSON, JUnit XML, Markdown, HTML."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from convrewrite import text
from convrewrite.pipeline import report

if TYPE_CHECKING:
    from convrewrite.batch.results import Batch, Result

SCHEMA = "convrewrite.run/1"

FROM_LOCK = (
    "not verified again: its model, data, settings, versions and the bytes of its output are as in the lock file"
)

HEADER = ("model", "result", "MACs", "output error", "same class", "speedup", "")


def to_json(batch: Batch) -> str:
    """All that is known, each step's report included (schema convrewrite.run/1)."""
    models = [
        {"model": r.name, "output": os.fspath(r.target), "cached": r.cached, "note": "", **_plain(_facts(r))}
        for r in batch.results
    ]
    data = {"schema": SCHEMA, "versions": report.versions(), "exit_code": batch.exit_code, "models": models}
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
    return render(run_view(models, batch.exit_code))


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
    """The results as a Markdown table with one row per model."""
    rows = [HEADER, ("---",) * len(HEADER), *(tuple(map(text.markdown_cell, row(result))) for result in batch.results)]
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join(["### convrewrite", "", *lines, "", f"exit code {batch.exit_code}", ""])


def to_outputs(batch: Batch) -> str:
    """The outputs of a GitHub step: paths of the reports, and the smallest speedup that was measured."""
    names = {"report": "reports.json", "html": "reports.html"}
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
