"""Factors fitted to real inputs, on the trained small VGG: held-out digits are the oracle.

The fit sees training digits alone; the judge of both kinds of factors is how many held-out digits are named right.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from convrewrite import models, pipeline
from convrewrite.options import SeparableOptions
from convrewrite.pipeline.outcome import Outcome
from convrewrite.running.runtime import open_session

pytestmark = pytest.mark.slow

SOURCE = models.trained_path("digits_vgg")
DIGITS = 32


def correct(path: Path) -> int:
    """Held-out digits that a model names right."""
    images, labels = models.digit_images("held-out")
    session = open_session(path, "cpu")
    (scores,) = session.run({session.inputs[0].name: images}).values()
    return int(np.count_nonzero(scores[:, :10].argmax(axis=1) == labels))


@cache
def count() -> int:
    return len(models.digit_images("held-out")[1])


def rewritten(target: Path, tol: float, *, fit: bool, form: str = "spatial") -> Outcome:
    """The small VGG at a tolerance, with factors fitted to training digits or as the decomposition gives them."""
    images, _ = models.digit_images("train")
    data = {"image": images[:DIGITS]} if fit else None
    options = SeparableOptions(provider="cpu", data=data, tol=tol, form=form)
    return pipeline.separable(str(SOURCE), str(target), options).check()


@pytest.mark.parametrize("tol", [0.05, 0.3, 0.5])
def test_accuracy_at_equal_cost_is_not_below_that_of_factors_without_data(tol: float, tmp_path: Path) -> None:
    """The fit aims at the original: where factors without data happen to beat even that, it need not."""
    plain, fitted = rewritten(tmp_path / "plain.onnx", tol, fit=False), rewritten(tmp_path / "fit.onnx", tol, fit=True)
    assert plain.output is not None
    assert fitted.output is not None
    assert plain.output.macs == fitted.output.macs
    assert correct(tmp_path / "fit.onnx") >= min(correct(tmp_path / "plain.onnx"), correct(SOURCE))
    assert all(site.error <= tol for site in fitted.sites)
    assert all(site.response_error is not None for site in fitted.sites if site.outcome == "rewritten")


def test_half_of_the_arithmetic_costs_a_point_at_most(tmp_path: Path) -> None:
    outcome = rewritten(tmp_path / "fit.onnx", 0.05, fit=True, form="auto")
    assert outcome.input is not None
    assert outcome.output is not None
    assert outcome.input.macs is not None
    assert outcome.output.macs is not None
    assert 2 * outcome.output.macs <= outcome.input.macs
    assert correct(tmp_path / "fit.onnx") >= correct(SOURCE) - 0.01 * count()
