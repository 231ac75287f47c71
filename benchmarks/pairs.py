"""A model and what a pass makes of it, timed side by side: what the benchmarks of `separable` and `groups` share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from convrewrite import model_io, timing
from convrewrite.acceptance import smaller
from convrewrite.engine.rewrite import Pass, PassResult, run_pass
from convrewrite.options import BenchOptions


def rewritten(model: onnx.ModelProto, pass_: Pass, folder: Path, name: str) -> tuple[Path, Path, PassResult]:
    """The model and what the pass makes of it, as files."""
    source, target = folder / f"{name}.onnx", folder / f"{name}-rewritten.onnx"
    onnx.save(model, source)
    loaded = model_io.load(source)
    result = run_pass(pass_, loaded.graph, judge=smaller)
    model_io.save(model_io.Model(result.graph, loaded.ir_version), target)
    return source, target, result


def time_pair(source: Path, target: Path, seconds: float, sets: int) -> dict[str, Any]:
    """Milliseconds of both, the speedup, the control, and the verdict."""
    how = BenchOptions(seconds=seconds, sets=sets, provider="cpu", memory=False)
    (cell,) = timing.bench(source, target, how).check().cells
    return {
        "before_ms": cell.a.seconds * 1e3,
        "after_ms": cell.b.seconds * 1e3,
        "speedup": cell.comparison.speedup.to_dict(),
        "control": cell.comparison.control.to_dict(),
        "verdict": cell.comparison.verdict,
    }


def interval(estimate: Mapping[str, float], unit: str = "") -> str:
    """A median with its interval."""
    return f"{estimate['median']:.2f}{unit} ({estimate['low']:.2f} to {estimate['high']:.2f})"
