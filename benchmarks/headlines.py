"""One line per capability for the README, each from the committed result of its benchmark."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import apply, dense, fcn_vs_windows, groups, trade_off

NAME = "headlines"

Result = Mapping[str, Any]


def _one_pass(data: Result) -> str:
    (cell,) = (cell for cell in data["cells"] if (cell["model"], cell["positions"]) == ("resnet18", 9))
    side = "x".join(map(str, cell["image"]))
    found = cell["speedup"]["median"]
    return (
        f"ResNet-18, the {cell['windows']} windows of a {side} image in one pass: {found:.1f}x all windows in batches"
    )


def _every_pixel(data: Result) -> str:
    cell = max(data["models"]["small VGG"], key=lambda cell: cell["outputs"])
    outputs = f"{cell['outputs']}x{cell['outputs']}"
    return f"small VGG, {outputs} cells one pixel apart: {cell['speedup']['windows']['median']:.0f}x every window"


def _tiles(data: Result) -> str:
    canvas = data["canvas"]
    side = f"{canvas['side']:,} x {canvas['side']:,}"
    return f"LeNet-5 over {side} pixels in {canvas['peak'] / 1e9:.1f} GB, killed half-way and resumed"


def _factored(data: Result) -> str:
    point = next(p for p in data["points"] if (p["kind"], p["tol"]) == ("weights", 0.01))
    before, after = point["macs"]
    was, now = (f"{right / point['digits']:.1%}" for right in (data["before"], point["correct"]))
    accuracy = f"{now} of the held-out digits right (before: {was})"
    return f"small VGG at `--tol 0.01`: {point['speedup']['median']:.1f}x, {after / before:.0%} of the MACs, {accuracy}"


def _grouped(data: Result) -> str:
    least = min(data["nets"], key=lambda net: net["share"])  # of the ratio of multiply-accumulates
    return f"planted groups are found, and run at {least['share']:.0%} or more of the speed that their MACs allow"


LINES: tuple[tuple[str, str, Callable[[Result], str]], ...] = (
    ("`fcn`", fcn_vs_windows.NAME, _one_pass),
    ("`fcn --dense`", dense.NAME, _every_pixel),
    ("`apply`", apply.NAME, _tiles),
    ("`separable`", trade_off.NAME, _factored),
    ("`groups`", groups.NAME, _grouped),
)
"""The capability, its benchmark, and what its result says."""

PAGES = {
    fcn_vs_windows.NAME: "docs/any-size.md#what-one-pass-saves",
    dense.NAME: "docs/every-pixel.md",
    apply.NAME: "docs/apply.md",
    trade_off.NAME: "docs/forms/separable.md",
    groups.NAME: "benchmarks/README.md",
}
"""Where each table stands."""


def markdown(results: Path) -> str:
    """A list: the capability, what was measured, and where the whole table is."""
    lines = []
    for capability, name, line in LINES:
        data = json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
        lines.append(
            f"- {capability}: {line(data)} ([{name}]({PAGES[name]}), {data['machine']['cpu']}, {data['date']})"
        )
    return "\n".join(lines)
