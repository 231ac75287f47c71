"""What `groups` makes of block-diagonal kernels under random permutations: against the ratio of the arithmetic.

    python -m benchmarks.groups --out benchmarks/results/groups.json --date 2026-01-31

    layers      a 3x3 convolution between two 1x1 ones that take its permutations in; what is timed is the whole small
                net, and the ratio of multiply-accumulates is that of the whole net, too
    nets        sequential, residual and Inception-like nets: no Gather may be left, and all convolutions be grouped
    detection   the search for blocks in all kernels of ResNet-50 (random ones: nothing is found), in seconds

Times come from `convrewrite.timing.bench`: sets of fresh sessions, interleaved, the net against itself beside it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from benchmarks import common, pairs, planted
from convrewrite import timing
from convrewrite.engine.rewrite import Context
from convrewrite.passes.groups import Groups

NAME = "groups"
GOALS = {64: 0.9, 32: 0.75}
"""Share of the ratio that is wanted, from so many channels per group on."""
DETECTION_SECONDS = 3.0
RESNET50 = (
    (64, 3, 7, 1),
    *((64, 64, 1, 1), (64, 64, 3, 3), (256, 64, 1, 3), (256, 64, 1, 1), (64, 256, 1, 2)),
    *((128, 256, 1, 1), (128, 128, 3, 4), (512, 128, 1, 4), (512, 256, 1, 1), (128, 512, 1, 3)),
    *((256, 512, 1, 1), (256, 256, 3, 6), (1024, 256, 1, 6), (1024, 512, 1, 1), (256, 1024, 1, 5)),
    *((512, 1024, 1, 1), (512, 512, 3, 3), (2048, 512, 1, 3), (2048, 1024, 1, 1), (512, 2048, 1, 2)),
)
"""(out, in, kernel, how many): He et al. 2016, table 1."""


@dataclass(frozen=True)
class Net:
    """A planted net of one kind."""

    kind: str
    channels: int
    group: int
    size: int

    def model(self) -> onnx.ModelProto:
        """As it is trained."""
        make = {"sequential": planted.sequential, "residual": planted.residual, "inception": planted.inception}
        return make[self.kind](self.channels, self.group, self.size)

    @property
    def label(self) -> str:
        """In words."""
        return f"{self.kind}, {self.channels} channels in {self.group} blocks of {self.channels // self.group}"

    @property
    def goal(self) -> float | None:
        """Share of the ratio that is wanted."""
        each = self.channels // self.group
        return next((share for least, share in GOALS.items() if each >= least), None)


NETS = (
    Net("sequential", 64, 2, 56),
    Net("sequential", 128, 2, 56),
    Net("sequential", 128, 4, 56),
    Net("sequential", 256, 4, 28),
    Net("sequential", 256, 8, 28),
    Net("sequential", 512, 8, 14),
    Net("sequential", 512, 16, 14),
    Net("sequential", 128, 16, 56),
    Net("residual", 128, 2, 56),
    Net("residual", 256, 4, 28),
    Net("inception", 128, 2, 56),
    Net("inception", 256, 4, 28),
)


def time_net(net: Net, folder: Path, seconds: float, sets: int) -> dict[str, Any]:
    """One row of the table."""
    source, target, result = pairs.rewritten(net.model(), Groups(), folder, "net")
    found = result.outcome("rewritten")
    before, after = (_macs(path) for path in (source, target))
    ratio = before / after
    times = pairs.time_pair(source, target, seconds, sets)
    share = times["speedup"]["median"] / ratio
    gathers = sum(node.op_type == "Gather" for node in onnx.load(target).graph.node)
    return {
        "net": net.label,
        "map": net.size,
        "grouped": len(found),
        "planted": sum(
            node.op_type == "Conv" for node in onnx.load(source).graph.node if node.attribute and _is_3x3(node)
        ),
        "gathers": gathers,
        "ratio": ratio,
        "share": share,
        "goal": net.goal,
        "met": (net.goal is None or share >= net.goal) and not gathers,
        **times,
    }


def _is_3x3(node: onnx.NodeProto) -> bool:
    return any(attribute.name == "pads" for attribute in node.attribute)


def _macs(path: Path) -> int:
    from convrewrite import model_io
    from convrewrite.engine import costs
    from convrewrite.engine.graph import infer_shapes

    graph = model_io.load(path).graph
    return costs.graph_macs(graph, infer_shapes(graph, {t.name: t.shape for t in graph.inputs}))


def detection() -> dict[str, Any]:
    """Seconds to look for blocks in all convolutions of ResNet-50."""
    rng = np.random.default_rng(0)
    pass_, seconds, count = Groups(), 0.0, 0
    for out, inputs, kernel, times in RESNET50:
        weight = rng.standard_normal((out, inputs, kernel, kernel), dtype=np.float32)
        x, y = gs.Variable("x", np.float32, [1, inputs, 7, 7]), gs.Variable("y", np.float32)
        node = gs.Node("Conv", "conv", {}, [x, gs.Constant("W", weight)], [y])
        graph = gs.Graph([node], [x], [y], opset=13)
        shapes = {"x": (1, inputs, 7, 7), "y": (1, out, 8 - kernel, 8 - kernel)}
        for _ in range(times):
            start = time.perf_counter()
            pass_.plan(Context.of(graph, shapes=shapes), node)
            seconds += time.perf_counter() - start
            count += 1
    return {"kernels": count, "seconds": seconds, "met": seconds < DETECTION_SECONDS}


def goals(data: Mapping[str, Any]) -> list[str]:
    """What was wanted, and what came of it."""
    lines = []
    for wanted in sorted(set(GOALS.values()), reverse=True):
        rows = [row for row in data["nets"] if row["goal"] == wanted]
        if rows:
            worst = min(rows, key=lambda row: row["share"])
            met = all(row["share"] >= wanted for row in rows)
            least = next(channels for channels, share in GOALS.items() if share == wanted)
            lines.append(
                f"From {least} channels per group on, smallest share: {worst['share']:.2f}, {worst['net']} "
                f"(goal {wanted}: {common.verdict(met)})."
            )
    gathers = sum(row["gathers"] for row in data["nets"])
    whole = all(row["grouped"] == row["planted"] for row in data["nets"])
    lines.append(
        f"Gathers left in all nets: {gathers}, all planted convolutions grouped: {'yes' if whole else 'no'} "
        f"(goal none, and all: {common.verdict(not gathers and whole)})."
    )
    if data.get("detection"):
        row = data["detection"]
        lines.append(
            f"The search in all {row['kernels']} kernels of ResNet-50: {row['seconds']:.2f} s "
            f"(goal {DETECTION_SECONDS:g} s: {common.verdict(row['met'])})."
        )
    return lines


def markdown(data: Mapping[str, Any]) -> str:
    """The table and what belongs below it."""
    rows = [
        [
            row["net"],
            f"{row['map']}x{row['map']}",
            f"{row['grouped']} of {row['planted']}",
            f"{row['before_ms']:.2f}",
            f"{row['after_ms']:.2f}",
            f"{row['ratio']:.2f}",
            pairs.interval(row["speedup"], "x"),
            f"{row['share']:.2f}",
            f"{row['control']['low']:.2f} to {row['control']['high']:.2f}",
        ]
        for row in data["nets"]
    ]
    header = ["net", "map", "grouped", "before, ms", "after, ms", "MACs before/after", "speedup", "share", "A/A"]
    return "\n".join([common.table(header, rows), "", *goals(data), common.provenance(data)])


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(prog=f"python -m benchmarks.{NAME}", description=__doc__.partition("\n")[0])
    options.add_argument("--seconds", type=float, default=2.0, help="of timing per pair; default: 2")
    options.add_argument("--sets", type=int, default=8, help="of fresh sessions per pair; default: 8")
    options.add_argument("--quick", action="store_true", help="a rehearsal: one small net of each kind")
    options.add_argument("--date", default="", help="to record with the results")
    options.add_argument("--out", type=Path, help="write the results as JSON, after each net")
    options.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    options = parser().parse_args(arguments)
    nets = [Net(kind, 32, 2, 14) for kind in ("sequential", "residual", "inception")] if options.quick else NETS
    data: dict[str, Any] = {
        **common.head(NAME, options),
        "nets": [],
    }

    def save() -> None:
        common.keep(data, options.out)

    with tempfile.TemporaryDirectory(prefix="convrewrite-bench-") as name:
        for net in nets:
            data["nets"].append(time_net(net, Path(name), options.seconds, options.sets))
            row = data["nets"][-1]
            print(f"  {net.label}: {row['speedup']['median']:.2f}x of {row['ratio']:.2f}", file=sys.stderr)
            save()
    data["detection"] = detection()
    save()
    slower = [row["net"] for row in data["nets"] if row["verdict"] == timing.SLOWER]
    print(markdown(data) if options.markdown else "\n".join([*goals(data), *(f"slower: {net}" for net in slower)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
