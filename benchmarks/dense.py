"""Dense class maps, D x D outputs at stride 1: one dense pass against every other way to get them.

    python -m benchmarks.dense --out benchmarks/results/dense.json --date 2026-01-31

    dense       fcn --dense, one call on the image
    windows     the original on every window, in the best of several batches; a sample of whole batches, scaled
    shifts      shift-and-stitch: the model at its own stride on every shift of the image, k x k calls
    stacked     the same with all shifts in one batch, padded at the end to one size
    again       the dense pass in a second session: the A/A pair

The crops and the shifts lie ready in memory, and nothing is stitched: both cost the others nothing. All sessions share
one pool of threads. Models: LeNet-5, a small VGG (the trained ones of this repository), and strided convolutions.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from benchmarks import common
from benchmarks.windows_worker import relative_error
from convrewrite import pipeline, timing
from convrewrite.models import trained_path
from convrewrite.models.builder import NetBuilder
from convrewrite.options import FcnOptions
from convrewrite.timing.statistics import Estimate, estimate, ratios

NAME = "dense"
OUTPUTS = (8, 16, 32, 64)
BATCHES = (8, 32, 128)
SAMPLE = 4
"""Whole batches of windows that are timed per round; the rest is scaled."""
ROUNDS = 7
SHORTEST = 0.02
"""Seconds for which a call is repeated at the least, per round."""
LINEAR = 1.05
"""A power up to this is linear, within what timing tells apart."""
WANTED = ("small VGG", 64, 60.0)
"""The speedup over windows that is wanted there."""

Array = np.ndarray[Any, Any]


def strided() -> onnx.ModelProto:
    """Convolutions of stride 2 and no pools: what a mobile classifier begins with."""
    net = NetBuilder((1, 1, 32, 32), seed=0)
    x = net.relu(net.conv(net.input, 16, 5, stride=2, name="c1"))
    x = net.relu(net.conv(x, 32, 3, stride=2, name="c2"))
    x = net.relu(net.conv(x, 64, 3, name="c3"))
    return net.finish(net.gemm(net.flatten(x), 11, name="scores"), name="strided")


MODELS: Mapping[str, Callable[[], onnx.ModelProto]] = {
    "LeNet-5": lambda: onnx.load(trained_path("lenet5")),
    "small VGG": lambda: onnx.load(trained_path("digits_vgg")),
    "strided": strided,
}


class Contest:
    """One model's sessions."""

    def __init__(self, make: Callable[[], onnx.ModelProto], folder: Path) -> None:
        """Write the original with an open batch, and both of its fully convolutional forms."""
        original, coarse, dense = (folder / f"{name}.onnx" for name in ("original", "coarse", "dense"))
        onnx.save(common.any_batch(make()), original)
        outcome = None
        for target, stride in ((coarse, None), (dense, 1)):
            how = FcnOptions(provider="cpu", verify=False, stride=stride)
            outcome = pipeline.fcn(str(original), str(target), how).check()
        assert outcome is not None
        assert outcome.window is not None
        self.window = outcome.window
        self.original, self.coarse, self.dense, self.again = map(_session, (original, coarse, dense, dense))
        self.input = self.original.get_inputs()[0].name

    def cell(self, outputs: int, seconds: float) -> dict[str, Any]:
        """All ways to the same number of outputs per axis."""
        side = self.window.size[0] + outputs - 1
        image = np.random.default_rng(outputs).random((1, 1, side, side), np.float32)
        crops = self._crops(image, outputs)
        error = self._error(image, crops, outputs)
        k = self.window.coarse[0]
        shifts = [np.ascontiguousarray(image[:, :, i:, j:]) for i in range(k) for j in range(k)]
        stack = np.concatenate([_at_end(shift, side) for shift in shifts])
        contestants: dict[str, Callable[[], float]] = {
            "dense": self._timed(self.dense, [image]),
            "again": self._timed(self.again, [image]),
            "shifts": self._timed(self.coarse, shifts),
            "stacked": self._timed(self.coarse, [stack]),
        }
        for batch in BATCHES:
            batches = [crops[at : at + batch] for at in range(0, len(crops) - batch + 1, batch)][:SAMPLE]
            if batches:
                scale = len(crops) / (len(batches) * batch)
                contestants[f"windows of {batch}"] = self._timed(self.original, batches, scale)
        samples = common.interleave(contestants, seconds, ROUNDS)
        medians = {name: estimate(values).median for name, values in samples.items()}
        windows = min((name for name in medians if name.startswith("windows")), key=lambda name: medians[name])
        others = {"windows": windows, "shifts": "shifts", "stacked": "stacked"}
        return {
            "outputs": outputs,
            "image": side,
            "ms": {name: 1e3 * value for name, value in medians.items()},
            "speedup": {
                name: asdict(estimate(ratios(samples[source], samples["dense"]))) for name, source in others.items()
            },
            "batch": windows,
            "control": asdict(estimate(ratios(samples["again"], samples["dense"]))),
            "error": error,
        }

    def _crops(self, image: Array, outputs: int) -> Array:
        height, width = self.window.size
        views = np.lib.stride_tricks.sliding_window_view(image[0, 0], (height, width))
        return np.ascontiguousarray(views[:outputs, :outputs].reshape(-1, 1, height, width))

    def _error(self, image: Array, crops: Array, outputs: int) -> float | None:
        """Of the dense map against the original on some crops; None where padding makes it another function."""
        if self.window.equivalence != "windows":
            return None
        cells = self.dense.run(None, {self.input: image})[0]
        places = np.random.default_rng(0).choice(outputs * outputs, size=min(32, outputs * outputs), replace=False)
        want = self.original.run(None, {self.input: crops[places]})[0]
        got = cells[0].reshape(cells.shape[1], *cells.shape[2:])[:, :outputs, :outputs].reshape(cells.shape[1], -1)
        return relative_error(np.ascontiguousarray(got[:, places].T), want)

    def _timed(self, session: Any, feeds: Sequence[Array], scale: float = 1.0) -> Callable[[], float]:
        def call() -> None:
            for feed in feeds:
                session.run(None, {self.input: feed})

        timed = common.repeated(call, SHORTEST)
        return lambda: scale * timed()


def _at_end(image: Array, side: int) -> Array:
    """Padded at the end to a square of that side."""
    return np.pad(image, ((0, 0), (0, 0), (0, side - image.shape[2]), (0, side - image.shape[3])))


def _session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.use_per_session_threads = False
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def goals(data: Mapping[str, Any]) -> list[str]:
    """What was wanted, and what came of it."""
    cells = [(model, cell) for model, rows in data["models"].items() for cell in rows]
    worst = min(((model, cell, name) for model, cell in cells for name in cell["speedup"]), key=_median)
    model, cell, name = worst
    least = cell["speedup"][name]["median"]
    lines = [
        f"Against the best alternative, smallest speedup: {least:.2f}x, {model} at {cell['outputs']}x{cell['outputs']} "
        f"against {name} (goal 1, never slower: {common.verdict(_not_slower(cells))})."
    ]
    for model, cell in cells:
        if (model, cell["outputs"]) == WANTED[:2]:
            found = cell["speedup"]["windows"]["median"]
            lines.append(
                f"{model} at {cell['outputs']}x{cell['outputs']} against windows: {found:.1f}x "
                f"(goal {WANTED[2]:g}: {common.verdict(found >= WANTED[2])})."
            )
    power, model, outputs = max(
        (_growth(a, b), model, b["outputs"])
        for model, rows in data["models"].items()
        for a, b in itertools.pairwise(rows)
    )
    lines.append(
        f"Time against the number of outputs grows at most by the power {power:.2f} from one size to the next, {model} "
        f"to {outputs}x{outputs} (goal 1, no faster than linearly: {common.verdict(power <= LINEAR)})."
    )
    return lines


def _growth(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    """The power of the number of outputs with which the dense pass grows from one row to the next."""
    return math.log(b["ms"]["dense"] / a["ms"]["dense"]) / math.log((b["outputs"] / a["outputs"]) ** 2)


def _median(entry: tuple[str, Mapping[str, Any], str]) -> float:
    return float(entry[1]["speedup"][entry[2]]["median"])


def _not_slower(cells: Sequence[tuple[str, Mapping[str, Any]]]) -> bool:
    """Whether no interval lies below 1 as a whole."""
    return all(found["high"] >= 1 for _, cell in cells for found in cell["speedup"].values())


def markdown(data: Mapping[str, Any]) -> str:
    """The table and what belongs below it."""
    rows = []
    for model, cells in data["models"].items():
        for cell in cells:
            found = {name: Estimate(**value) for name, value in cell["speedup"].items()}
            rows.append(
                [
                    model,
                    f"{cell['outputs']}x{cell['outputs']}",
                    f"{cell['image']}x{cell['image']}",
                    f"{cell['ms']['dense']:.2f}",
                    *(f"{found[name].text(digits=1)}x" for name in ("windows", "shifts", "stacked")),
                    f"{cell['control']['low']:.2f} to {cell['control']['high']:.2f}",
                    "-" if cell["error"] is None else f"{cell['error']:.0e}",
                ]
            )
    header = ["model", "outputs", "image", "dense, ms", "over windows", "over shifts", "over stacked", "A/A", "error"]
    return "\n".join([common.table(header, rows), "", *goals(data), common.provenance(data)])


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(prog=f"python -m benchmarks.{NAME}", description=__doc__.partition("\n")[0])
    options.add_argument("--seconds", type=float, default=12.0, help="of timing per model and size; default: 12")
    options.add_argument("--quick", action="store_true", help="a rehearsal: the smallest sizes, half a second each")
    options.add_argument("--date", default="", help="to record with the results")
    options.add_argument("--out", type=Path, help="write the results as JSON, after each size")
    options.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    options = parser().parse_args(arguments)
    onnxruntime.set_global_thread_pool_sizes(timing.cores(), 1)
    data: dict[str, Any] = {
        **common.head(NAME, options),
        "models": {},
    }
    for model, make in MODELS.items():
        with tempfile.TemporaryDirectory(prefix="convrewrite-bench-") as folder:
            contest = Contest(make, Path(folder))
            rows = data["models"].setdefault(model, [])
            for outputs in OUTPUTS[:2] if options.quick else OUTPUTS:
                rows.append(contest.cell(outputs, 0.5 if options.quick else options.seconds))
                told = ", ".join(f"{found['median']:.1f}x {name}" for name, found in rows[-1]["speedup"].items())
                print(f"  {model} at {outputs}x{outputs}: {told}", file=sys.stderr)
                common.keep(data, options.out)
    print(markdown(data) if options.markdown else "\n".join(goals(data)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
