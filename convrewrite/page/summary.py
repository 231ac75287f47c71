"""The summary of a page, for a notebook: what came of it, the figures, one table, and the whole text folded away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.filesize import decimal

from convrewrite.inspection import Inspection
from convrewrite.page.render import fragment
from convrewrite.page.views import TITLES
from convrewrite.pipeline.outcome import Outcome
from convrewrite.text import by, counted, short
from convrewrite.timing import Bench
from convrewrite.verification import Verification, leading

ROWS = 20
"""Rows of the table that are shown; the text has all."""

TONES = {
    **dict.fromkeys(("verified", "faster", "rewritten", "passed", "applied"), "good"),
    **dict.fromkeys(("failed", "slower", "vacuous", "a check failed", "stopped by an error"), "bad"),
}
"""Colours of words that judge; any other is neither."""


@dataclass
class Summary:
    """What is drawn.

    Attributes:
        title: what came of it, in a word or two. lead: a sentence. facts: names with values. header, rows: the table.
    """

    title: str
    lead: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    header: Sequence[str] = ()
    rows: list[Sequence[str]] = field(default_factory=list)


def summary(result: Any) -> str:
    """A piece of HTML that needs nothing else, of whatever the Python API gives."""
    match result:
        case Verification():
            found = _verification(result)
        case Bench():
            found = _bench(result)
        case Inspection():
            found = _inspection(result)
        case _ if isinstance(getattr(result, "outcome", None), Outcome):
            found = _outcome(result.outcome)
        case _ if hasattr(result, "tiles"):
            found = _applied(result)
        case _:
            found = Summary(type(result).__name__)
    hidden = len(found.rows) - ROWS
    more = f"and {counted(hidden, 'more row')}, in the text" if hidden > 0 else ""
    view = {**vars(found), "rows": found.rows[:ROWS], "more": more, "text": str(result), "tones": TONES}
    return fragment("summary", view)


def _outcome(outcome: Outcome) -> Summary:
    found = Summary(TITLES.get(outcome.status, outcome.status), outcome.advice)
    before, after = outcome.input, outcome.output
    if before is not None and after is not None:
        found.facts["parameters"] = f"{before.parameters:,} to {after.parameters:,}"
        found.facts["bytes"] = f"{decimal(before.bytes)} to {decimal(after.bytes)}"
        if before.macs and after.macs is not None:
            found.facts["MACs left"] = f"{after.macs / before.macs:.1%}"
    if outcome.verification is not None:
        found.facts["proved"] = outcome.verification.verdict
    if outcome.window is not None:
        found.facts["window"] = f"{by(outcome.window.size)}, one every {by(outcome.window.stride)}"
        found.facts["means"] = outcome.window.equivalence
    found.header = ("site", "outcome", "what", "equivalence")
    found.rows = [(site.anchor, site.outcome, site.detail, site.equivalence) for site in outcome.sites]
    return found


def _verification(found: Verification) -> Summary:
    made = Summary(found.verdict, found.message())
    worst = found.worst
    if worst is not None and worst.error is not None:
        made.facts["largest error"] = f"{worst.error:.1e}, tolerance {worst.tolerance or 0.0:.1e}"
    made.facts |= {"ran on": found.provider} if found.provider else {}
    made.header = ("check", "output", "error", "tolerance", "status")
    made.rows = [
        (
            case.name,
            case.output,
            "-" if case.error is None else f"{case.error:.1e}",
            "-" if case.tolerance is None else f"{case.tolerance:.1e}",
            case.status,
        )
        for case in leading.ordered(found.cases)
    ]
    return made


def _bench(found: Bench) -> Summary:
    made = Summary(found.verdict or "nothing was measured")
    if found.speedup is not None:
        made.facts["speedup, worst size"] = found.speedup.text()
    made.facts |= {"ran on": found.provider} if found.provider else {}
    made.header = ("size", "verdict", "speedup", "A, ms", "B, ms")
    made.rows = [
        (
            cell.label,
            cell.comparison.verdict,
            cell.comparison.speedup.text(),
            f"{cell.a.seconds * 1e3:.3g}",
            f"{cell.b.seconds * 1e3:.3g}",
        )
        for cell in found.cells
    ]
    return made


def _inspection(found: Inspection) -> Summary:
    made = Summary("what it is made of")
    made.facts = {
        "nodes": f"{len(found.layers):,}",
        "parameters": f"{found.file.parameters:,}",
        "MACs": f"{found.macs:,}",
        "bytes": decimal(found.file.bytes),
    }
    made.header = ("layer", "op", "out", "parameters", "MACs")
    made.rows = [
        (
            layer.cost.name,
            layer.cost.op,
            "-" if layer.cost.output is None else by(layer.cost.output),
            short(layer.cost.parameters),
            "?" if layer.cost.macs is None else short(layer.cost.macs),
        )
        for layer in found.layers
        if layer.counts
    ]
    return made


def _applied(found: Any) -> Summary:
    made = Summary("a check failed" if found.failed else "applied")
    made.facts = {
        "image": by(found.size),
        **{name: by(shape) for name, shape in found.outputs.items()},
        "tiles": f"{found.tiles:,}",
        "wrote": found.target,
    }
    return made
