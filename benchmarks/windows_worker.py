"""The process that measures one model: `fcn_vs_windows` starts one per model, because a thread pool is process-wide.

    python -m benchmarks.windows_worker '{"model": "lenet5", "positions": [5], ...}'

prints one line of JSON per cell. All sessions share one pool of threads; each is made once, from a file.

What is timed
    fcn       one call of the converted model on one image that holds P x P windows
    again     the same file in a second session: the A/A pair
    batch b   the original on all P * P crops, b at a time, the last batch with what is left. The crops lie ready in
              memory: cutting them out costs the sliding window nothing here.
Where a sweep over all crops is long, whole batches of one call after the other are timed on a sample and scaled to
their number; the last, smaller batch is timed as it is.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from benchmarks import common
from convrewrite import model_io
from convrewrite.engine import costs, graph
from convrewrite.engine.windows import Window
from convrewrite.timing.statistics import Estimate, estimate, ratios

BATCHES = (1, 8, 32)
MIN_SAMPLE = 3
"""Whole batches that a sampled sweep times at the least."""
HOPELESS = 1.5
"""A batching that takes this many times as long as the best one in the warm-up is not measured further."""
TOLERANCE = 1e-4

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Task:
    """What to measure.

    Attributes:
        model: name in convrewrite.models. positions: windows per axis, one cell each.
        seconds: to spend on the rounds of one cell. rounds: at least so many. threads: in the shared pool.
        folder: for the model files; None is the system's temporary folder.
    """

    model: str
    positions: tuple[int, ...]
    seconds: float
    rounds: int
    threads: int
    folder: str | None = None


@dataclass(frozen=True)
class Cell:
    """One model at one number of windows.

    Attributes:
        positions: windows per axis. image: its size in pixels. windows: their number.
        fcn, sliding: seconds for the whole image. batch: the best batching. by_batch: median seconds of each.
        timed: whole batches timed per round. batches: whole batches in a sweep. So timed < batches is a sample.
        speedup: sliding / fcn per round. again: fcn / fcn per round (A/A).
        limit: multiply-accumulates of all crops over those of the one pass.
        equivalence: what the converted model claims. error: max|a-b|/max|b| of the outputs compared, their number
            in compared.
    """

    model: str
    positions: int
    image: tuple[int, ...]
    windows: int
    fcn: Estimate
    sliding: Estimate
    batch: int
    by_batch: dict[str, float]
    timed: int
    batches: int
    speedup: Estimate
    again: Estimate
    limit: float
    equivalence: str
    error: float
    compared: int

    @property
    def share(self) -> float:
        """How much of the limit is reached."""
        return self.speedup.median / self.limit

    @property
    def correct(self) -> bool:
        """Whether the outputs agree; NaN never does."""
        return self.error <= TOLERANCE

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Cell:
        """The inverse of dataclasses.asdict through JSON."""
        estimates = {name: Estimate(**data[name]) for name in ("fcn", "sliding", "speedup", "again")}
        return cls(**{**data, **estimates, "image": tuple(data["image"])})


@dataclass(frozen=True)
class Sweep:
    """The calls that classify every crop: `full` batches, of which `timed` are timed, and one batch of `rest`."""

    full: int
    rest: int
    timed: int

    @classmethod
    def over(cls, windows: int, batch: int, call_seconds: float, budget: float) -> Sweep:
        """All batches where that fits the budget in seconds, else as many as fit and no less than MIN_SAMPLE."""
        full, rest = divmod(windows, batch)
        affordable = int(budget / call_seconds) if call_seconds > 0 else full
        return cls(full, rest, min(full, max(MIN_SAMPLE, affordable)))

    def scaled(self, timed_seconds: float, rest_seconds: float) -> float:
        """Seconds of the whole sweep."""
        return (timed_seconds * self.full / self.timed if self.timed else 0.0) + rest_seconds


def macs(path: Path, shape: tuple[int, ...], image: str) -> int:
    """Multiply-accumulates of one run of a model on an input of that shape."""
    loaded = model_io.load(path).graph
    return costs.graph_macs(loaded, graph.infer_shapes(loaded, {image: shape}))


def flop_limit(window_macs: int, windows: int, pass_macs: int) -> float:
    """What no batching can change: the arithmetic of all crops over that of one pass."""
    return window_macs * windows / pass_macs


def relative_error(got: Array, want: Array) -> float:
    """max|a-b|/max|b|; NaN where anything is not finite, so that no comparison with it holds."""
    if got.shape != want.shape or not (np.isfinite(got).all() and np.isfinite(want).all()):
        return float("nan")
    return float(np.abs(got - want).max() / np.abs(want).max())


class Bench:
    """The sessions of one model, and what is measured with them."""

    def __init__(self, task: Task, folder: Path) -> None:
        """Build, convert and load the model."""
        self.task = task
        self.original, self.converted = folder / "original.onnx", folder / "converted.onnx"
        common.save_model(task.model, self.original)
        common.convert(self.original, self.converted)
        self.fcn, self.again, self.classifier = map(_session, (self.converted, self.converted, self.original))
        window = Window.from_metadata(self.fcn.get_modelmeta().custom_metadata_map)
        if window is None:
            raise SystemExit(f"{task.model}: the converted model carries no window")
        self.window = window
        self.channels = self.classifier.get_inputs()[0].shape[1]
        self.native = (1, self.channels, *window.size)

    def cell(self, positions: int) -> Cell:
        """Measure one number of windows per axis."""
        image, crops, places = self._inputs(positions)
        error, compared = self._compare(image, crops, places)
        sweeps, contestants, first = self._contestants(image, crops)
        best = min(first.values())
        rivals = {f"batch {b}": b for b in BATCHES if first[b] <= HOPELESS * best}
        chosen = {name: m for name, m in contestants.items() if name in ("fcn", "again") or name in rivals}
        samples = common.interleave(chosen, self.task.seconds, self.task.rounds)
        winner = min(rivals, key=lambda name: estimate(samples[name]).median)
        batch = rivals[winner]
        medians = {b: estimate(samples[name]).median for name, b in rivals.items()}
        return Cell(
            model=self.task.model,
            positions=positions,
            image=image.shape[2:],
            windows=len(crops),
            fcn=estimate(samples["fcn"]),
            sliding=estimate(samples[winner]),
            batch=batch,
            by_batch={str(b): medians.get(b, first[b]) for b in BATCHES},
            timed=sweeps[batch].timed,
            batches=sweeps[batch].full,
            speedup=estimate(ratios(samples[winner], samples["fcn"])),
            again=estimate(ratios(samples["again"], samples["fcn"])),
            limit=flop_limit(
                macs(self.original, self.native, self.window.input),
                len(crops),
                macs(self.converted, image.shape, self.window.input),
            ),
            equivalence=self.window.equivalence,
            error=error,
            compared=compared,
        )

    def _inputs(self, positions: int) -> tuple[Array, Array, list[tuple[int, ...]]]:
        """A random image, its crops in a row, and the output cell of each crop."""
        size = self.window.image_size((positions, positions))
        rng = np.random.default_rng(positions)
        image = rng.standard_normal((1, self.channels, *size), np.float32)
        places = list(np.ndindex(positions, positions))
        (height, width), (down, right) = self.window.size, self.window.stride
        crops = np.empty((len(places), *self.native[1:]), np.float32)
        for crop, (row, column) in zip(crops, places, strict=True):
            crop[:] = image[0, :, row * down : row * down + height, column * right : column * right + width]
        return image, crops, places

    def _compare(self, image: Array, crops: Array, places: list[tuple[int, ...]]) -> tuple[float, int]:
        """The largest relative error: over windows of the image where that is claimed, else at the native size."""
        if self.window.equivalence != "windows":
            native = _call(self.fcn, crops[:1])
            return relative_error(native, _call(self.classifier, crops[:1]).reshape(native.shape)), 1
        cells = _call(self.fcn, image)[0]
        chosen = sorted({0, len(crops) // 3, len(crops) // 2, len(crops) - 1})
        got = np.stack([cells[:, row, column] for row, column in (places[index] for index in chosen)])
        return relative_error(got, _call(self.classifier, crops[chosen])), len(chosen)

    def _contestants(
        self, image: Array, crops: Array
    ) -> tuple[dict[int, Sweep], dict[str, common.Measure], dict[int, float]]:
        """Sweep and measurement per contestant, all of them warmed up, and the first seconds of each batching."""
        sweeps: dict[int, Sweep] = {}
        first: dict[int, float] = {}
        measures = {"fcn": _timed(self.fcn, image)}
        for batch in BATCHES:
            seconds = _warm(self.classifier, crops[:batch])
            sweeps[batch] = Sweep.over(len(crops), batch, seconds, self.task.seconds / 20)
            measure = _sweeping(self.classifier, crops, batch, sweeps[batch])
            first[batch] = measure()
            measures[f"batch {batch}"] = measure
        measures["again"] = _timed(self.again, image)
        _warm(self.fcn, image)
        _warm(self.again, image)
        return sweeps, measures, first


def _session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.use_per_session_threads = False
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _call(session: Any, feed: Array) -> Array:
    output: Array = session.run(None, {session.get_inputs()[0].name: feed})[0]
    return output


def _caller(session: Any, feed: Array) -> Callable[[], object]:
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: feed})


def _warm(session: Any, feed: Array) -> float:
    """Run twice; the seconds of the second time."""
    _call(session, feed)
    start = time.perf_counter()
    _call(session, feed)
    return time.perf_counter() - start


def _timed(session: Any, feed: Array) -> common.Measure:
    return common.repeated(_caller(session, feed), at_least=0.02)


def _sweeping(session: Any, crops: Array, batch: int, sweep: Sweep) -> common.Measure:
    """Seconds of a sweep over all crops, from the timed batches; short calls start after an untimed one."""
    calls = [_caller(session, crops[i * batch : (i + 1) * batch]) for i in range(sweep.timed)]
    rest = _caller(session, crops[len(crops) - sweep.rest :]) if sweep.rest else None
    calls_per_sweep = sweep.full + bool(sweep.rest)

    def once() -> float:
        start = time.perf_counter()
        for call in calls:
            call()
        middle = time.perf_counter()
        if rest is not None:
            rest()
        return sweep.scaled(middle - start, time.perf_counter() - middle)

    prime = calls[-1] if calls else rest
    seconds: list[float] = []

    def measure() -> float:
        if prime is not None and (not seconds or seconds[-1] / calls_per_sweep < common.PRIME_BELOW):
            prime()
        samples = [once()]
        spent = samples[0] * (sweep.timed / sweep.full if sweep.full else 1.0)
        while spent * len(samples) < 0.02:
            samples.append(once())
        seconds.append(float(np.mean(samples)))
        return seconds[-1]

    return measure


def run(task: Task) -> Iterator[Cell]:
    """All cells of one model."""
    onnxruntime.set_global_thread_pool_sizes(task.threads, 1)
    with tempfile.TemporaryDirectory(dir=task.folder, prefix="convrewrite-bench-", ignore_cleanup_errors=True) as name:
        bench = Bench(task, Path(name))
        for positions in task.positions:
            yield bench.cell(positions)


def main() -> None:
    """Read the task from the command line, print the cells."""
    data = json.loads(sys.argv[1])
    for cell in run(Task(**{**data, "positions": tuple(data["positions"])})):
        print(json.dumps(asdict(cell)), flush=True)


if __name__ == "__main__":
    main()
