"""A pass that trades, `separable` for one: a model in which it finds something, against what it makes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from benchmarks import common
from benchmarks.gpu.work import Batch, Job
from convrewrite import pipeline
from convrewrite.engine.rewrite import Pass
from convrewrite.errors import CheckFailed
from convrewrite.options import TradeOptions
from convrewrite.pipeline.outcome import Outcome

JOBS = (Batch(1), Batch(8))


@dataclass(frozen=True)
class Traded:
    """A model, and the pass that rewrites it where that saves multiply-accumulates: whether it is faster is measured.

    Attributes:
        rewrite: the pass. model, title, share, jobs: as of `work.Work`. build: the model.
    """

    rewrite: Pass
    model: str
    title: str
    build: Callable[[], onnx.ModelProto]
    share: float = 1.0
    jobs: Sequence[Job] = JOBS

    @property
    def pass_name(self) -> str:
        """Of the pass."""
        return self.rewrite.name

    def make(self, original: Path, rewritten: Path, provider: str) -> Outcome:
        """Write the model, and let the pipeline rewrite it and verify that on the provider."""
        onnx.save(common.any_batch(self.build()), original)
        outcome = pipeline.trade(str(original), str(rewritten), self.rewrite, TradeOptions(provider=provider))
        if outcome.error is None and outcome.status != "rewritten":
            raise CheckFailed(f"the pass did not find what the model holds: {outcome.advice}")
        return outcome
