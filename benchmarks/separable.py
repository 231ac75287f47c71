"""What `separable` makes of planted low rank, in time: against the ratio of the multiply-accumulates, with a control.

    python -m benchmarks.separable --out benchmarks/results/separable.json --date 2026-01-31

    layers     one convolution of known rank, rewritten by the pass, timed against itself as it was
    vgg16      its trunk at half the break-even rank, timed the same way
    planning   all kernels of VGG-16 (random ones: the usual answer) planned in a fresh process: seconds, memory
    accept     `separable --accept faster` on every model at hand, and a second, independent benchmark of the result

Times come from `convrewrite.timing.bench`: sets of fresh sessions, interleaved, the layer against itself beside it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks import common, pairs, planted
from convrewrite import models, pipeline, timing
from convrewrite.options import SeparableOptions
from convrewrite.passes.separable import Separable

NAME = "separable"
SHARE_GOAL = 0.8
UP_TO = 5.0
"""The goal for the share is for ratios of multiply-accumulates up to this."""
PLAN_SECONDS, PLAN_BYTES = 4.0, 1 << 30
GIB = 1 << 30


@dataclass(frozen=True)
class Layer:
    """A planted convolution: `rank` of `form`; `goal` for the speedup, or 0 where the share of the ratio counts."""

    form: str
    channels: int
    kernel: int
    rank: int
    size: int
    goal: float = 0.0

    def model(self) -> onnx.ModelProto:
        """The layer as it is trained."""
        rng = np.random.default_rng(self.channels + self.kernel + self.rank)
        kernel = (self.kernel, self.kernel)
        if self.form == "depthwise":
            return planted.layer(planted.depthwise(rng, self.channels, kernel), self.size, self.channels)
        make = planted.spatial if self.form == "spatial" else planted.decoupled
        return planted.layer(make(rng, self.channels, self.channels, kernel, self.rank), self.size)

    @property
    def label(self) -> str:
        """In words."""
        return {
            "spatial": f"{self.channels} channels, {self.kernel}x{self.kernel}, rank {self.rank}",
            "depthwise": f"{self.channels} channels, depthwise {self.kernel}x{self.kernel}, rank 1",
            "decoupled": f"{self.channels} channels, {self.kernel}x{self.kernel}, {self.rank} x depthwise + pointwise",
        }[self.form]


LAYERS = (
    *(Layer("spatial", 128, k, r, 56) for k, r in ((3, 48), (3, 64), (5, 64), (5, 96), (7, 96), (11, 144), (11, 32))),
    *(Layer("spatial", 256, k, r, 28) for k, r in ((3, 80), (3, 128), (5, 128), (7, 192), (11, 288), (11, 64))),
    Layer("depthwise", 64, 11, 1, 56, 2.5),
    Layer("depthwise", 64, 31, 1, 56, 10.0),
    Layer("decoupled", 64, 7, 2, 56, 9.0),
)
VGG_GOAL = 1.7


def time_layer(layer: Layer, folder: Path, seconds: float, sets: int) -> dict[str, Any]:
    """One row of the table."""
    source, target, result = pairs.rewritten(layer.model(), Separable(), folder, "layer")
    (site,) = result.sites
    ratio = site.macs_before / site.macs_after
    times = pairs.time_pair(source, target, seconds, sets)
    share = times["speedup"]["median"] / ratio
    met = times["speedup"]["median"] >= layer.goal if layer.goal else (ratio > UP_TO or share >= SHARE_GOAL)
    return {
        "layer": layer.label,
        "made": site.detail.partition(" -> ")[2],
        "map": layer.size,
        "ratio": ratio,
        "share": share,
        "goal": layer.goal or (SHARE_GOAL if ratio <= UP_TO else None),
        "met": met,
        **times,
    }


def time_trunk(folder: Path, seconds: float, sets: int, width: float) -> dict[str, Any]:
    """VGG-16's convolutions at half the break-even rank."""
    model = planted.trunk(models.build("vgg16", width=width), "pool5")
    model = planted.with_spatial_rank(model, 0.5)
    source, target, result = pairs.rewritten(model, Separable(tol=1e-5), folder, "trunk")
    before, after = (sum(getattr(site, name) for site in result.sites) for name in ("macs_before", "macs_after"))
    times = pairs.time_pair(source, target, seconds, sets)
    return {"ratio": before / after, "met": times["speedup"]["median"] >= VGG_GOAL, **times}


PLAN = """
import re, sys, time
from pathlib import Path
from convrewrite import model_io
from convrewrite.engine.graph import infer_shapes
from convrewrite.acceptance import smaller
from convrewrite.passes.separable import Separable
from convrewrite.engine.rewrite import Context, run_pass
model = model_io.load(sys.argv[1])
shapes = infer_shapes(model.graph, {t.name: t.shape for t in model.graph.inputs})
def resident(entry):
    return 1024 * int(re.search(entry + r":\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
base = resident("VmRSS")
start = time.perf_counter()
context = Context.of(model.graph, shapes=shapes)
result = run_pass(Separable(tol=float(sys.argv[2])), model.graph, judge=smaller, context=context)
seconds = time.perf_counter() - start
print(seconds, resident("VmHWM") - base, len(result.sites), sum(s.tol_pays is not None for s in result.sites))
"""


def plan_vgg16(folder: Path, width: float, rounds: int) -> dict[str, Any]:
    """Seconds and extra memory of planning every kernel of VGG-16, each time in a fresh process."""
    import subprocess

    path = folder / "vgg16.onnx"
    onnx.save(models.build("vgg16", width=width), path)
    found = []
    for _ in range(rounds):
        command = [sys.executable, "-c", PLAN, str(path), "1e-4"]
        done = subprocess.run(
            command, cwd=common.ROOT, env=common.environment(), capture_output=True, text=True, check=True
        )
        found.append([float(word) for word in done.stdout.split()])
    seconds = sorted(row[0] for row in found)[len(found) // 2]
    memory = max(row[1] for row in found)
    return {
        "kernels": int(found[0][2]),
        "planned": int(found[0][3]),
        "seconds": seconds,
        "all_seconds": [row[0] for row in found],
        "bytes": memory,
        "met": seconds < PLAN_SECONDS and memory < PLAN_BYTES,
    }


def at_hand(folder: Path, quick: bool) -> dict[str, tuple[Path, float]]:
    """Models with the tolerance that `--accept faster` gets: large where the weights are random."""
    found = {path.stem: (path, 0.3) for path in sorted(Path(models.__file__).parent.glob("*.onnx"))}
    for name in () if quick else ("alexnet", "resnet18", "mobilenet_v1"):
        path = folder / f"{name}.onnx"
        onnx.save(models.build(name), path)
        found[name] = path, 0.7
    path = folder / "planted-resnet18.onnx"
    onnx.save(planted.with_spatial_rank(models.build("resnet18", width=0.25 if quick else 1.0), 0.5), path)
    return {**found, "resnet18, planted": (path, 1e-4)}


def accepted(folder: Path, seconds: float, sets: int, quick: bool) -> list[dict[str, Any]]:
    """`--accept faster` on every model, then an independent benchmark of what it wrote."""
    rows = []
    for name, (source, tol) in at_hand(folder, quick).items():
        target = folder / "accepted.onnx"
        options = SeparableOptions(provider="cpu", samples=1, tol=tol, accept="faster")
        outcome = pipeline.separable(str(source), str(target), options).check()
        sites = [site for site in outcome.sites if site.outcome == "rewritten"]
        row: dict[str, Any] = {"model": name, "tol": tol, "sites": len(sites), "of": len(outcome.sites)}
        row |= pairs.time_pair(source, target, seconds, sets) if sites else {}
        rows.append(row)
        print(
            f"  {name}: {len(sites)} of {len(outcome.sites)} sites, {row.get('verdict', 'unchanged')}", file=sys.stderr
        )
    return rows


def goals(data: Mapping[str, Any]) -> list[str]:
    """What was wanted, and what came of it."""
    layers = data["layers"]
    shared = [row for row in layers if row["goal"] == SHARE_GOAL]
    lines = []
    if shared:
        worst = min(shared, key=lambda row: row["share"])
        lines.append(
            f"Smallest share of the ratio, where that is at most {UP_TO:g}: {worst['share']:.2f}, {worst['layer']} "
            f"(goal {SHARE_GOAL}: {common.verdict(all(row['met'] for row in shared))})."
        )
    for row in layers:
        if row["goal"] not in (SHARE_GOAL, None):
            lines.append(
                f"{row['layer']}: {row['speedup']['median']:.1f}x (goal {row['goal']:g}: {common.verdict(row['met'])})."
            )
    if data.get("trunk"):
        row = data["trunk"]
        lines.append(
            f"VGG-16's trunk at half rank, {row['ratio']:.2f} times fewer multiply-accumulates: "
            f"{row['speedup']['median']:.2f}x (goal {VGG_GOAL}: {common.verdict(row['met'])})."
        )
    if data.get("planning"):
        row = data["planning"]
        lines.append(
            f"Planning all {row['kernels']} kernels of VGG-16: {row['seconds']:.1f} s and {row['bytes'] / GIB:.2f} GiB "
            f"(goals {PLAN_SECONDS:g} s, {PLAN_BYTES / GIB:g} GiB: {common.verdict(row['met'])})."
        )
    if data.get("accepted"):
        slower = [row["model"] for row in data["accepted"] if row.get("verdict") == timing.SLOWER]
        faster = [row for row in data["accepted"] if row.get("verdict") == timing.FASTER]
        lines.append(
            f"With --accept faster, in a second benchmark: {len(slower)} of {len(data['accepted'])} models slower, "
            f"{len(faster)} faster (goal no model slower: {common.verdict(not slower)})."
        )
    return lines


def markdown(data: Mapping[str, Any]) -> str:
    """The tables and what belongs below them."""
    rows = [
        [
            row["layer"],
            f"{row['map']}x{row['map']}",
            row["made"],
            f"{row['before_ms']:.2f}",
            f"{row['after_ms']:.2f}",
            f"{row['ratio']:.2f}",
            pairs.interval(row["speedup"], "x"),
            f"{row['share']:.2f}",
            f"{row['control']['low']:.2f} to {row['control']['high']:.2f}",
        ]
        for row in data["layers"]
    ]
    header = ["layer", "map", "becomes", "before, ms", "after, ms", "MACs before/after", "speedup", "share", "A/A"]
    parts = [common.table(header, rows)]
    if data.get("accepted"):
        rows = [
            [
                row["model"],
                f"{row['tol']:g}",
                f"{row['sites']} of {row['of']}",
                pairs.interval(row["speedup"], "x") if "speedup" in row else "-",
                row.get("verdict", "unchanged"),
            ]
            for row in data["accepted"]
        ]
        parts += ["", common.table(["--accept faster on", "--tol", "sites rewritten", "speedup", "verdict"], rows)]
    return "\n".join([*parts, "", *goals(data), common.provenance(data)])


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(prog=f"python -m benchmarks.{NAME}", description=__doc__.partition("\n")[0])
    options.add_argument("--seconds", type=float, default=2.0, help="of timing per pair; default: 2")
    options.add_argument("--sets", type=int, default=8, help="of fresh sessions per pair; default: 8")
    options.add_argument("--quick", action="store_true", help="a rehearsal: a few small layers, a narrow VGG-16")
    options.add_argument("--date", default="", help="to record with the results")
    options.add_argument("--out", type=Path, help="write the results as JSON, after each part")
    options.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    options = parser().parse_args(arguments)
    width = 0.125 if options.quick else 1.0
    layers = [LAYERS[0], LAYERS[-3]] if options.quick else LAYERS
    data: dict[str, Any] = {
        **common.head(NAME, options),
        "layers": [],
    }

    def save() -> None:
        common.keep(data, options.out)

    with tempfile.TemporaryDirectory(prefix="convrewrite-bench-") as name:
        folder = Path(name)
        for layer in layers:
            data["layers"].append(time_layer(layer, folder, options.seconds, options.sets))
            print(f"  {layer.label}: {data['layers'][-1]['speedup']['median']:.2f}x", file=sys.stderr)
            save()
        data["trunk"] = time_trunk(folder, 4 * options.seconds, options.sets, width)
        save()
        data["planning"] = plan_vgg16(folder, width, 1 if options.quick else 3)
        save()
        data["accepted"] = accepted(folder, 2 * options.seconds, options.sets, options.quick)
        save()
    print(markdown(data) if options.markdown else "\n".join(goals(data)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
