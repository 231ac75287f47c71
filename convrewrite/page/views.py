"""What a page shows, as plain data that JSON could hold: the report, and what a person sees better in a drawing."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from convrewrite.engine import costs
from convrewrite.engine.rewrite import Site
from convrewrite.page import applied_map, charts
from convrewrite.page.class_map import class_map
from convrewrite.page.spectra import spectra
from convrewrite.page.surgery import SHOWN, Surgery, surgeries
from convrewrite.pipeline import report
from convrewrite.pipeline.outcome import ModelPair, Outcome
from convrewrite.text import counted
from convrewrite.verification import leading
from convrewrite.verification.verdicts import inputs_of

if TYPE_CHECKING:
    from convrewrite.inspection import Inspection

View = dict[str, Any]

TITLES = {
    "rewritten": "rewritten",
    "unchanged": "nothing to do",
    "compared": "compared",
    "failed": "a check failed",
    "refused": "refused",
    "error": "stopped by an error",
}


def outcome_view(outcome: Outcome, image: np.ndarray[Any, Any] | None = None, labels: str | None = None) -> View:
    """The page of a command.

    Args:
        outcome: of `fcn`, `separable`, `groups`, `verify` or `bench`. image: for the class map of `fcn`.
        labels: the path of a file with the names of its classes.

    Raises:
        UsageError: the image, or the names, do not fit the model.
    """
    data = report.to_dict(outcome)
    ends = outcome.ends
    view: View = {
        **data,
        "kind": "outcome",
        "title": _title(outcome),
        "advice": outcome.advice,
        "ran": _ran(outcome),
        "checks": _checks(data["verify"], outcome),
        "speeds": _speeds(data["bench"]),
        "layers": [],
        "map": None,
    }
    graphs: dict[str, Surgery] = {}
    if ends is not None:
        anchors = [site.anchor for site in outcome.sites if site.outcome == "rewritten"]
        graphs = surgeries(ends.before.graph, ends.after.graph, anchors)
        view["layers"] = _costs(ends, graphs)
        view["sites"] = _sites(outcome.sites, graphs, spectra(ends.before.graph, outcome.sites))
        if outcome.window is not None and outcome.exit_code == 0:
            view["map"] = class_map(ends.after, outcome.window, ends.data, image, labels=labels)
    else:
        view["sites"] = _sites(outcome.sites, {}, {})
    return view


def _title(outcome: Outcome) -> str:
    """What came of it; of a benchmark its verdict, which is what it was for."""
    timed = outcome.bench.verdict if outcome.command == "bench" and outcome.bench is not None else None
    return timed if timed is not None and outcome.exit_code == 0 else TITLES.get(outcome.status, outcome.status)


def _ran(outcome: Outcome) -> str:
    """Where models were run; "" where none was."""
    measured = [part.provider for part in (outcome.verification, outcome.bench) if part is not None]
    return next(filter(None, measured), "")


def inspection_view(found: Inspection, graph: gs.Graph) -> View:
    """The page of `inspect`."""
    data = found.to_dict()
    shown = [(layer, told) for layer, told in zip(found.layers, data["layers"], strict=True) if layer.counts]
    bars = charts.shares([float(layer.cost.macs or 0) for layer, _ in shown])
    layers = [{**told, "bar": bar} for (_, told), bar in zip(shown, bars, strict=True)]
    return {
        **data,
        "kind": "inspection",
        "title": "what it is made of",
        "versions": report.versions(),
        "layers": layers,
        "hidden": len(found.layers) - len(layers),
        "total": found.macs,
        "passes": list(dict.fromkeys(site.pass_name for site in found.sites)),
        "sites": _sites(found.sites, {}, spectra(graph, found.sites)),
    }


def applied_view(facts: Mapping[str, Any], maps: Mapping[str, Any], *, model: str, image: str) -> View:
    """The page of `apply`.

    Args:
        facts: what its report says. maps: by output a `tiling.overview.Overview`, or None where there is no picture.
        model, image: as they were named.
    """
    attributes = facts["attributes"]
    drawn = [applied_map.drawn(name, found, attributes.get(name, {})) for name, found in maps.items()]
    return {
        **facts,
        "kind": "applied",
        "title": "a check failed" if any(check["status"] == "failed" for check in facts["checks"]) else "applied",
        "versions": report.versions(),
        "model": model,
        "source": image,
        "maps": drawn,
    }


def run_view(results: Sequence[Mapping[str, Any]], exit_code: int, against: Mapping[str, Any] | None = None) -> View:
    """The page of `run`.

    Args:
        results: for each model its `name`, its `cells` (the row of the summary), and of each step its `views`.
        against: the comparison with a baseline as a table: `title`, `header`, `rows`.
    """
    return {
        "kind": "run",
        "title": f"{counted(len(results), 'model')}",
        "versions": report.versions(),
        "exit_code": exit_code,
        "models": [dict(result) for result in results],
        "against": against,
    }


def _sites(
    sites: Sequence[Site], graphs: Mapping[str, Surgery], curves: Mapping[str, list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    rank = {"rewritten": 0, "refused": 1, "declined": 2}
    told: list[dict[str, Any]] = []
    for site in sorted(sites, key=lambda site: rank.get(site.outcome, 3)):
        drawn = graphs.get(site.anchor) if site.outcome == "rewritten" and len(told) < SHOWN else None
        counted = site.macs_before and site.macs_after is not None and site.outcome == "rewritten"
        saved = 1 - (site.macs_after or 0) / (site.macs_before or 1) if counted else None
        own = curves.get(site.anchor, []) if site.pass_name == "separable" else []
        told.append(
            {**site.to_dict(), "saved": saved, "graph": None if drawn is None else drawn.to_dict(), "spectra": own}
        )
    return told


def _costs(ends: ModelPair, graphs: Mapping[str, Surgery]) -> list[dict[str, Any]]:
    """MACs of each layer of the original, and of what took its place."""
    before, after = (_macs(model.graph, ends.inputs) for model in (ends.before, ends.after))
    if before is None or after is None:
        return []
    new = {_name(node): anchor for anchor, done in graphs.items() for node in done.after}
    old = {_name(node): anchor for anchor, done in graphs.items() for node in done.before}
    rows: dict[str, dict[str, Any]] = {}
    for name, (op, macs) in before.items():
        row = rows.setdefault(old.get(name, name), {"name": old.get(name, name), "op": op, "before": 0, "after": 0})
        row["before"] += macs
        row["op"] = op if macs else row["op"]
    for name, (op, macs) in after.items():
        row = rows.setdefault(new.get(name, name), {"name": name, "op": op, "before": 0, "after": 0})
        row["after"] += macs
    found = [row for row in rows.values() if row["before"] or row["after"]]
    bars = charts.shares([float(row[end]) for row in found for end in ("before", "after")])
    for place, row in enumerate(found):
        row |= {"bar_before": bars[2 * place], "bar_after": bars[2 * place + 1], "new": row["before"] != row["after"]}
    return found


def _macs(graph: gs.Graph, inputs: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[str, int]] | None:
    """Operator and MACs of each node, by its first output."""
    with contextlib.suppress(onnx.shape_inference.InferenceError):
        counted = costs.count(graph, dict(inputs) if inputs else None)
        return {layer.name: (layer.op, layer.macs or 0) for layer in counted.layers}
    return None


def _name(node: gs.Node) -> str:
    return str(node.outputs[0].name) if node.outputs else ""


def _checks(verify: Mapping[str, Any] | None, outcome: Outcome) -> dict[str, Any] | None:
    """The cases, each with its places on one logarithmic scale per metric; what others hide comes ahead of them."""
    found = outcome.verification
    if verify is None or found is None:
        return None
    cases = [
        {
            **case.to_dict(),
            "hidden": leading.ahead(case, found.cases) is not None,
            "note": inputs_of(case, named=False) if case.error is not None else case.note,
        }
        for case in leading.ordered(found.cases)
    ]
    seeds = {case["seed"] for case in cases if case["error"] is not None}
    verify = {**verify, "seed": seeds.pop() if len(seeds) == 1 and not found.given else None}
    scales = {}
    for metric in dict.fromkeys(case["metric"] for case in cases):
        of = [case for case in cases if case["metric"] == metric]
        scales[metric] = charts.Log([case[key] for case in of for key in ("error", "tolerance", "noise")])
    for case in cases:
        scale = scales[case["metric"]]
        shown = case["tolerance"] if case["status"] != "stated" else None
        case["at"] = {
            "error": scale.at(case["error"]),
            "tolerance": scale.at(shown),
            "noise": scale.at(case["noise"]),
        }
        case["tolerance"] = shown
    return {**verify, "cases": cases}


def _speeds(bench: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The cells, with their intervals on one scale of ratios."""
    if bench is None:
        return None
    ratios = [cell[key][end] for cell in bench["cells"] for key in ("speedup", "control") for end in ("low", "high")]
    scale = charts.Log([*ratios, 1.0], room=1.1)
    cells = []
    for cell in bench["cells"]:
        at = {f"{key}_{end}": scale.at(cell[key][end]) for key in ("speedup", "control") for end in ("low", "high")}
        extents = "x".join(map(str, cell["size"]))
        label = f"{extents}, batch {cell['batch']}" if extents else f"batch {cell['batch']}"
        cells.append({**cell, "label": label, "at": {**at, "median": scale.at(cell["speedup"]["median"])}})
    return {**bench, "cells": cells, "one": scale.at(1.0)}
