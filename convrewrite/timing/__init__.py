"""Is a model faster than another, on this machine and provider? With a control, an interval and a verdict.

    print(bench("in.onnx", "out.onnx", sizes=[(224, 224), (512, 512)], batches=[1, 8]))

`statistics` says when the answer is *faster* or *slower* and not *no difference*; `worker` how the times are taken.
"""

from __future__ import annotations

from convrewrite.timing import plot
from convrewrite.timing.process import CellFailed
from convrewrite.timing.result import Bench, Cell, Cost, Missed
from convrewrite.timing.runner import bench, cores
from convrewrite.timing.statistics import (
    FASTER,
    NO_DIFFERENCE,
    SLOWER,
    Comparison,
    Estimate,
    Rounds,
    compare,
    estimate,
    geometric_mean,
    ratios,
    tells_apart,
)

__all__ = [
    "FASTER",
    "NO_DIFFERENCE",
    "SLOWER",
    "Bench",
    "Cell",
    "CellFailed",
    "Comparison",
    "Cost",
    "Estimate",
    "Missed",
    "Rounds",
    "bench",
    "compare",
    "cores",
    "estimate",
    "geometric_mean",
    "plot",
    "ratios",
    "tells_apart",
]
