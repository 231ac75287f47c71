"""Which changes against a baseline of `run` fail."""

from __future__ import annotations

import math
from typing import Any

import pytest
from compared_projects import FACTS

from convrewrite.batch import changes
from convrewrite.batch.baseline import Baseline, Figures
from convrewrite.errors import UsageError
from convrewrite.options import ChangeOptions

LIMITS = ChangeOptions()


def compared(allowed: ChangeOptions = LIMITS, **now: Any) -> changes.Comparison:
    return changes.compare("a", {**FACTS, **now}, Figures.model_validate(_figures(FACTS)), allowed)


def _figures(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name in Figures.model_fields}


def speed(low: float, median: float, high: float) -> dict[str, Any]:
    return {"median": median, "low": low, "high": high}


@pytest.mark.parametrize(
    ("now", "standing", "worse"),
    [
        ({}, "same", []),
        ({"macs": 1010}, "allowed", []),
        ({"macs": 1011}, "worse", ["macs"]),
        ({"macs": 900}, "better", []),
        ({"parameters": 102}, "worse", ["parameters"]),
        ({"bytes": 506}, "worse", ["bytes"]),
        ({"bytes": 505, "macs": 900}, "allowed", []),
        ({"output_error": 1.09e-3}, "allowed", []),
        ({"output_error": 1.2e-3}, "worse", ["output_error"]),
        ({"output_error": 1e-9}, "better", []),
        ({"top1_agreement": 0.986}, "allowed", []),
        ({"top1_agreement": 0.98}, "worse", ["top1_agreement"]),
        ({"top1_agreement": 1.0}, "better", []),
        ({"speedup": speed(1.0, 1.85, 2.0)}, "same", []),  # the intervals meet: nothing is known
        ({"speedup": speed(1.85, 1.86, 1.87)}, "allowed", []),  # 1.9 / 1.87: 1.6 % at least
        ({"speedup": speed(1.0, 1.5, 1.7)}, "worse", ["speedup"]),
        ({"speedup": speed(2.2, 2.5, 2.7)}, "better", []),
        ({"speedup": speed(0.1, 0.2, 0.3), "device": "cpu: y"}, "same", []),
        ({"speedup": speed(0.1, 0.2, 0.3), "device": None}, "same", []),
        ({"speedup": speed(0.1, 0.2, 0.3), "source": "1" * 64}, "same", []),
        ({"speedup": speed(-0.1, 0.2, 0.3)}, "same", []),
        ({"speedup": None}, "same", []),
        ({"macs": 2000, "bytes": 5000}, "worse", ["macs", "bytes"]),
    ],
)
def test_which_changes_fail(now: dict[str, Any], standing: str, worse: list[str]) -> None:
    found = compared(**now)
    assert found.standing == standing
    assert [change.figure for change in found.changes if change.verdict == "worse"] == worse


@pytest.mark.parametrize(
    ("now", "note"),
    [
        ({"device": "cpu: y"}, "times are not compared: there on cpu: x, here on cpu: y"),
        ({"device": None}, "times are not compared: the device is not recorded here"),
        ({"speedup": None}, "times are not compared: nothing was timed here"),
        ({"source": "1" * 64}, "the original is another file than there"),
    ],
)
def test_why_something_is_not_compared(now: dict[str, Any], note: str) -> None:
    assert note in compared(**now).notes


def test_rounding_is_no_error() -> None:
    """1e-7 and 5e-6 are both what sums in another order cost."""
    before = Figures.model_validate({**_figures(FACTS), "output_error": 1e-7})
    assert changes.compare("a", {**FACTS, "output_error": 5e-6}, before, ChangeOptions()).standing == "same"
    assert changes.compare("a", {**FACTS, "output_error": 5e-5}, before, ChangeOptions()).standing == "worse"
    assert changes.compare("a", {**FACTS, "output_error": math.nan}, before, ChangeOptions()).standing == "same"


def test_limits() -> None:
    assert compared(ChangeOptions(max_more_macs=0.0), macs=1001).standing == "worse"
    assert compared(ChangeOptions(max_more_macs=1.0), macs=2000).standing == "allowed"
    assert compared(ChangeOptions(max_slowdown=0.5), speedup=speed(1.0, 1.5, 1.7)).standing == "allowed"
    with pytest.raises(UsageError):
        ChangeOptions(max_slowdown=-0.1)


def test_models_that_fail() -> None:
    """What fails now fails anyway; what failed there is no measure."""
    assert compared(exit_code=1, macs=900).standing == "failed"
    before = Figures.model_validate({**_figures(FACTS), "exit_code": 1})
    assert changes.compare("a", {**FACTS, "macs": 2000}, before, ChangeOptions()).standing == "not compared"
    assert changes.compare("a", FACTS, None, ChangeOptions()).standing == "new"
    assert changes.compare("a", {"exit_code": 2, "status": "error"}, before, ChangeOptions()).standing == "failed"
    found = changes.against(Baseline("main", models={"b": before}), {"a": FACTS}, ChangeOptions())
    assert [(model.model, model.standing) for model in found.models] == [("a", "new"), ("b", "removed")]
    failed = {**FACTS, "exit_code": 1, "message": "m"}
    assert changes.judged("a", failed, Baseline("main", models={"a": before}), ChangeOptions()) == failed


def test_steps_that_came_and_went() -> None:
    one, other = FACTS["by_step"][0], {**FACTS["by_step"][0], "pass": "groups"}
    found = compared(by_step=[other, one]).steps
    assert [(s.step, s.before and s.before.name, s.now and s.now.name) for s in found] == [
        (0, "separable", "groups"),
        (1, None, "separable"),
    ]
    assert compared(by_step=[]).steps[0].now is None
    assert compared().steps == ()
