"""The grouped error curve: what is left of trained networks whose convolutions are cut into 1, 2, 4 and 8 groups.

    python -m benchmarks.group_curve --out benchmarks/results/group_curve.json --date 2026-01-31
    python -m benchmarks.group_curve --draw docs/figures/group_curve.png

AlexNet was trained in two groups; these networks were not, so whatever a group cannot reach is lost. For each number of
groups, every convolution that can be divided is cut into the blocks that keep the most energy of its kernel, without
any training afterwards: the energy that is kept, multiply-accumulates, time, and the accuracy on held-out digits.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import common, pairs
from benchmarks.trade_off import correct
from convrewrite import models, pipeline
from convrewrite.options import GroupsOptions

NAME = "group_curve"
MODELS = {"digits_vgg": "small VGG", "digits_dw7": "7x7 depthwise net"}
COUNTS = (2, 4, 8)
RESULTS = Path(__file__).resolve().parent / "results" / f"{NAME}.json"


def point(model: str, groups: int, folder: Path, seconds: float, sets: int) -> dict[str, Any]:
    """One network in one number of groups; 1 is the network as it is."""
    source, target = models.trained_path(model), folder / "grouped.onnx"
    right, digits = correct(source)
    row: dict[str, Any] = {"model": model, "groups": groups, "digits": digits}
    if groups == 1:
        return row | {"sites": 0, "energy": 1.0, "macs_ratio": 1.0, "correct": right, "speedup": None}
    options = GroupsOptions(provider="cpu", samples=1, tol=1.0, into=groups)
    outcome = pipeline.groups(str(source), str(target), options).check()
    sites = [site for site in outcome.sites if site.outcome == "rewritten"]
    if not sites:
        return row | {"sites": 0, "energy": 1.0, "macs_ratio": 1.0, "correct": right, "speedup": None}
    assert outcome.input is not None
    assert outcome.output is not None
    assert outcome.input.macs is not None
    assert outcome.output.macs is not None
    return row | {
        "sites": len(sites),
        "energy": sum(1 - site.error**2 for site in sites) / len(sites),
        "macs_ratio": outcome.output.macs / outcome.input.macs,
        "correct": correct(target)[0],
        **pairs.time_pair(source, target, seconds, sets),
    }


def markdown(data: Mapping[str, Any]) -> str:
    """The table and what belongs below it."""
    rows = []
    for row in data["points"]:
        speed = "-" if row["speedup"] is None else pairs.interval(row["speedup"], "x")
        right = f"{row['correct'] / row['digits']:.1%}"
        cells = [
            str(row["groups"]),
            str(row["sites"]),
            f"{row['energy']:.1%}",
            f"{row['macs_ratio']:.0%}",
            speed,
            right,
        ]
        rows.append([MODELS[row["model"]], *cells])
    header = ["network", "groups", "layers cut", "energy kept", "MACs", "speedup", "accuracy"]
    below = (
        "Energy kept is the mean over the layers that were cut; accuracy is on the held-out digits, without training."
    )
    return "\n".join([common.table(header, rows), "", below, common.provenance(data)])


def draw(data: Mapping[str, Any], target: Path) -> None:
    """Energy, arithmetic, time and accuracy against the number of groups, a panel per network."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.9), layout="constrained")
    for axes, model in zip(figure.subplots(1, len(MODELS), sharey=True), MODELS, strict=True):
        rows = [row for row in data["points"] if row["model"] == model]
        x = range(len(rows))
        times = [100.0 if row["speedup"] is None else 100 / row["speedup"]["median"] for row in rows]
        axes.plot(x, [100 * row["energy"] for row in rows], "o-", label="energy kept")
        axes.plot(x, [100 * row["macs_ratio"] for row in rows], "s--", color="0.45", label="multiply-accumulates")
        axes.plot(x, times, "^-", color="C2", label="time")
        axes.plot(x, [100 * row["correct"] / row["digits"] for row in rows], "D-", color="C3", label="accuracy")
        axes.set_xticks(list(x), labels=[str(row["groups"]) for row in rows])
        axes.set_xlabel("groups")
        axes.set_title(MODELS[model])
        axes.set_ylim(0, 105)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylabel("% of the network as it was trained" if model == next(iter(MODELS)) else "")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(target, dpi=140, metadata={"Software": None} if target.suffix == ".png" else None)


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(prog=f"python -m benchmarks.{NAME}", description=__doc__.partition("\n")[0])
    options.add_argument("--seconds", type=float, default=3.0, help="of timing per point; default: 3")
    options.add_argument("--sets", type=int, default=8, help="of fresh sessions per point; default: 8")
    options.add_argument("--quick", action="store_true", help="a rehearsal: two groups alone, short timings")
    common.add_options(options)
    options.add_argument("--draw", type=Path, metavar="F.png", help="measure nothing: draw the kept results")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; or draw."""
    options = parser().parse_args(arguments)
    if options.draw is not None:
        draw(json.loads(RESULTS.read_text(encoding="utf-8")), options.draw)
        return 0
    seconds, sets = (0.5, 5) if options.quick else (options.seconds, options.sets)
    data: dict[str, Any] = {
        **common.head(NAME, options),
        "points": [],
    }
    with tempfile.TemporaryDirectory(prefix="convrewrite-bench-") as folder:
        for model in MODELS:
            for groups in (1, *(COUNTS[:1] if options.quick else COUNTS)):
                data["points"].append(point(model, groups, Path(folder), seconds, sets))
                print(f"  {model}, {groups}: {data['points'][-1]['correct']} right", file=sys.stderr)
    print(markdown(data))
    common.keep(data, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
