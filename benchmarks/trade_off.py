"""What a tolerance buys on the trained small VGG: measured speed and accuracy against `--tol`, with and without data.

    python -m benchmarks.trade_off --out benchmarks/results/trade_off.json --date 2026-01-31
    python -m benchmarks.trade_off --draw docs/figures/trade_off.png

Each point is one run of `separable` with the default judge, its multiply-accumulates, its accuracy on the held-out
digits, and a benchmark of its own against the original (batch 1, sets of fresh sessions, with an A/A control). With
data, the factors are fitted to the responses on training digits; the held-out ones are not among them. The second form
of the command draws the picture from the results that are kept.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import common
from convrewrite import models, pipeline, timing
from convrewrite.options import BenchOptions, SeparableOptions
from convrewrite.running.runtime import open_session

NAME = "trade_off"
MODEL = "digits_vgg"
TOLERANCES = (1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5)
DIGITS = 256
"""Training digits that the factors are fitted to."""
RESULTS = Path(__file__).resolve().parent / "results" / f"{NAME}.json"
KINDS = {"weights": "fitted to the weights", "responses": f"fitted to {DIGITS} training digits"}


def correct(path: Path) -> tuple[int, int]:
    """How many of the held-out digits a model names right, and how many there are."""
    images, labels = models.digit_images("held-out")
    session = open_session(path, "cpu")
    (scores,) = session.run({session.inputs[0].name: images}).values()
    return int(np.count_nonzero(scores[:, :10].argmax(axis=1) == labels)), len(labels)


def point(source: Path, folder: Path, tol: float, kind: str, seconds: float, sets: int) -> dict[str, Any]:
    """One tolerance."""
    target = folder / "smaller.onnx"
    images, _ = models.digit_images("train")
    data = {"image": images[:DIGITS]} if kind == "responses" else None
    options = SeparableOptions(provider="cpu", data=data, samples=3, tol=tol)
    outcome = pipeline.separable(str(source), str(target), options).check()
    rewritten = [site for site in outcome.sites if site.outcome == "rewritten"]
    row: dict[str, Any] = {"kind": kind, "tol": tol, "sites": len(rewritten), "of": len(outcome.sites)}
    assert outcome.input is not None
    assert outcome.output is not None
    row["macs"] = [outcome.input.macs, outcome.output.macs if rewritten else outcome.input.macs]
    row["correct"], row["digits"] = correct(target)
    if rewritten:
        how = BenchOptions(seconds=seconds, sets=sets, provider="cpu", memory=False)
        (cell,) = timing.bench(source, target, how).check().cells
        row |= {
            "milliseconds": [cell.a.seconds * 1e3, cell.b.seconds * 1e3],
            "speedup": cell.comparison.speedup.to_dict(),
            "control": cell.comparison.control.to_dict(),
            "verdict": cell.comparison.verdict,
        }
    return row


def measure(seconds: float, sets: int, tolerances: Sequence[float]) -> list[dict[str, Any]]:
    """All points."""
    source, rows = models.trained_path(MODEL), []
    with tempfile.TemporaryDirectory(prefix="convrewrite-bench-") as folder:
        for tol in tolerances:
            for kind in KINDS:
                rows.append(point(source, Path(folder), tol, kind, seconds, sets))
                print(f"  {tol:g} {kind}: {rows[-1]['correct']} right", file=sys.stderr)
    return rows


def markdown(data: Mapping[str, Any]) -> str:
    """The table and what belongs below it."""
    rows = []
    for tol in dict.fromkeys(row["tol"] for row in data["points"]):
        by_kind = {row["kind"]: row for row in data["points"] if row["tol"] == tol}
        plain = by_kind["weights"]
        cells = [f"{tol:g}", f"{plain['sites']} of {plain['of']}", f"{plain['macs'][1] / plain['macs'][0]:.0%}"]
        speed = plain.get("speedup")
        cells.append("-" if speed is None else f"{speed['median']:.2f}x ({speed['low']:.2f} to {speed['high']:.2f})")
        rows.append([*cells, *(f"{by_kind[kind]['correct'] / by_kind[kind]['digits']:.1%}" for kind in KINDS)])
    before, digits = data["before"], data["points"][0]["digits"]
    header = ["--tol", "layers factored", "MACs", "speedup", "accuracy", "with --data"]
    return "\n".join(
        [
            common.table(header, rows),
            "",
            f"The original names {before} of {digits} held-out digits right ({before / digits:.1%}). Speedups are of "
            "the factors without data; those with data have the same shapes.",
            common.provenance(data),
        ]
    )


def draw(data: Mapping[str, Any], target: Path) -> None:
    """The picture: speedup, and accuracy, against the tolerance."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.9), layout="constrained")
    speed, accuracy = figure.subplots(1, 2)
    plain = [row for row in data["points"] if row["kind"] == "weights"]
    timed = [row for row in plain if "speedup" in row]
    middle = np.array([row["speedup"]["median"] for row in timed])
    spread = np.array([[row["speedup"]["low"], row["speedup"]["high"]] for row in timed]).T
    x = [row["tol"] for row in timed]
    speed.errorbar(x, middle, yerr=np.abs(spread - middle), fmt="o-", color="C0", capsize=3, label="measured")
    ratios = [row["macs"][0] / row["macs"][1] for row in plain]
    speed.plot([row["tol"] for row in plain], ratios, "--", color="0.45", label="by multiply-accumulates")
    speed.axhline(1.0, color="0.8", linewidth=1, zorder=0)
    speed.set_ylabel("speedup over the original")
    for number, (kind, label) in enumerate(KINDS.items()):
        rows = [row for row in data["points"] if row["kind"] == kind]
        right = [100 * row["correct"] / row["digits"] for row in rows]
        accuracy.plot([row["tol"] for row in rows], right, "os"[number] + "-", color=f"C{number}", label=label)
    accuracy.axhline(100 * data["before"] / plain[0]["digits"], color="0.45", linestyle=":", label="the original")
    accuracy.set_ylabel("held-out digits named right, %")
    for axes in (speed, accuracy):
        axes.set_xscale("log")
        axes.set_xlabel("--tol: allowed relative error of each kernel")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(target, dpi=140, metadata={"Software": None} if target.suffix == ".png" else None)


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(prog=f"python -m benchmarks.{NAME}", description=__doc__.partition("\n")[0])
    options.add_argument("--seconds", type=float, default=3.0, help="of timing per point; default: 3")
    options.add_argument("--sets", type=int, default=8, help="of fresh sessions per point; default: 8")
    options.add_argument("--quick", action="store_true", help="a rehearsal: two tolerances, short timings")
    common.add_options(options, table=True)
    options.add_argument("--draw", type=Path, metavar="F.png", help="measure nothing: draw the kept results")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; or draw."""
    options = parser().parse_args(arguments)
    if options.draw is not None:
        draw(json.loads(RESULTS.read_text(encoding="utf-8")), options.draw)
        return 0
    tolerances = (1e-3, 0.1) if options.quick else TOLERANCES
    data: dict[str, Any] = {
        **common.head(NAME, options),
        "before": correct(models.trained_path(MODEL))[0],
    }
    data["points"] = measure(
        0.5 if options.quick else options.seconds, 5 if options.quick else options.sets, tolerances
    )
    print(markdown(data))
    common.keep(data, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
