"""A result as Markdown: a table for each pass, its verifications, what was left out, and where it was measured."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from benchmarks import common

FCN = ("model", "image", "what", "original, ms", "fcn, ms", "speedup", "limit by FLOPs", "A/A", "verdict")
TRADED = ("model", "image", "what", "original, ms", "{}, ms", "speedup", "MACs before/after", "A/A", "verdict")


def markdown(report: Mapping[str, Any]) -> str:
    """The tables of a result for `benchmarks/README.md`, its verifications, and where it was measured."""
    parts: list[str] = []
    for name, entries in groupby(report["models"], key=lambda entry: entry["pass"]):
        parts += _of_pass(name, list(entries))
    return "\n\n".join([*(parts or ["Nothing was measured."]), _provenance(report)])


def _of_pass(name: str, entries: list[Mapping[str, Any]]) -> Iterator[str]:
    rows = [_row(entry, cell) for entry in entries for cell in entry["cells"]]
    header = FCN if name == "fcn" else tuple(column.format(name) for column in TRADED)
    yield common.table(header, rows) if rows else f"{name}: nothing was measured."
    yield from (_verified(entry) for entry in entries)
    for entry in entries:
        for missed in entry["missed"]:
            yield f"{entry['title']}, {missed['job']}: not measured, {missed['reason']}."


def _row(entry: Mapping[str, Any], cell: Mapping[str, Any]) -> tuple[str, ...]:
    speedup, control = cell["speedup"], cell["control"]
    what = f"{cell['windows']} windows in batches of {cell['batch']}" if cell["windows"] else f"batch {cell['batch']}"
    return (
        entry["title"],
        "x".join(map(str, cell["size"])),
        what,
        f"{cell['original_seconds'] * 1e3:.3g}",
        f"{cell['rewritten_seconds'] * 1e3:.3g}",
        f"{speedup['median']:.2f} ({speedup['low']:.2f} to {speedup['high']:.2f})",
        "-" if cell["limit"] is None else f"{cell['limit']:.2f}",
        f"{control['low']:.2f} to {control['high']:.2f}",
        cell["verdict"] + ("" if cell["complete"] else ", incomplete"),
    )


def _verified(entry: Mapping[str, Any]) -> str:
    found, title = entry["verify"], entry["title"]
    if entry["error"]:
        return f"{title}: {entry['error']}."
    if found is None:
        return f"{title}: not verified."
    worst = found["worst"] or {"error": None}
    known = worst["error"] is not None and worst["tolerance"] is not None
    figures = f" (largest error {worst['error']:.1e}, tolerance {worst['tolerance']:.1e})" if known else ""
    moved = max((case["error"] for case in found["stated"] if case["error"] is not None), default=None)
    stated = "" if moved is None else f"; outputs moved by {moved:.1e} of the largest"
    sites = "" if entry["sites"] is None else "; {} of {} convolutions rewritten".format(*entry["sites"])
    fallen = "".join(f" {line}." for line in found["warnings"])
    return f"{title}: {found['verdict']}{figures}{stated}{sites}.{fallen}"


def _provenance(report: Mapping[str, Any]) -> str:
    used, device = report["versions"], report["device"]
    parts = [
        device["name"] + (f" (driver {device['driver']})" if "driver" in device else ""),
        f"provider {report['provider']}, TF32 {'on' if report['tf32'] else 'off'}",
        f"convrewrite {used['convrewrite']}",
        f"ONNX Runtime {used.get('onnxruntime-gpu') or used.get('onnxruntime', '?')}",
        *(f"{name} {used[name]}" for name in used if re.match(r"nvidia-cud(nn|a-runtime)", name)),
        f"Python {used['python']}",
        *([report["date"]] if report["date"] else []),
    ]
    head = "Rehearsed, which is no result, on " if report["rehearsal"] else "Measured on "
    rest = "" if report["complete"] else " The run was not finished."
    return f"{head}{'; '.join(parts)}.{rest}"
