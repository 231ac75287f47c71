"""How far a model is from its original, where a difference is meant: measured and stated, and judged only on request.

state(a, b)              every output's error as a case that is `stated`
state(a, b, limit=E)     the same, and a case above E is `failed`

Where both comparisons are made, each check says which of the two it belongs to: `NAME` or `EQUAL` leads its name.

What lies ahead of a final Softmax counts as much as the output: a saturated one shows no error, whatever was done.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from convrewrite.options import VerifyOptions
from convrewrite.verification.verdicts import Case, Verification

NAME = "the original itself"
"""What the check is called."""

ANYTHING = 1e30
"""A tolerance that any number meets, and still a number: the worst of several samples is the one nearest to it."""

EQUAL = "the original with the new kernels"
"""What the check is called that an approximate rewrite has to pass at rounding tolerance."""


def state(
    a_path: str | Path,
    b_path: str | Path,
    options: VerifyOptions,
    *,
    limit: float | None = None,
    fixed: Mapping[str, Sequence[Any]] | None = None,
) -> Verification:
    """Compare the outputs of a model with those of its original, without a verdict on the difference.

    Args:
        a_path: the original. b_path: the approximate model. limit: error above which a case fails; None for none.
        options, fixed: as for `verification.verify`.
    """
    from convrewrite.verification import verify

    found = verify(a_path, b_path, replace(options, max_output_error=ANYTHING), fixed=fixed)
    return replace(found, cases=tuple(_stated(case, limit) for case in found.cases))


def output_error(found: Verification) -> float:
    """The largest error of a verification that `state` made; Inf where one is NaN or nothing ran."""
    ran = [case for case in found.cases if case.status != "skipped"]
    return max((math.inf if case.error is None else case.error for case in ran), default=math.inf)


def part_error(found: Verification) -> float:
    """The largest error of a part of an output, over its own largest value, of a verification that `state` made."""
    return max((case.channel.error for case in found.cases if case.channel is not None), default=0.0)


def _stated(case: Case, limit: float | None) -> Case:
    named = _named(case, NAME)
    if case.status in ("failed", "skipped") or case.error is None:
        return named
    if limit is None:
        return replace(named, tolerance=None, status="stated")
    return replace(named, tolerance=limit, status="passed" if case.error <= limit else "failed")


def joined(equal: Verification, stated: Verification) -> Verification:
    """One verification: equal to the original with the new kernels, and so far from the original itself."""
    named = [_named(case, EQUAL) for case in equal.cases]
    distances = [case for case in stated.cases if case not in named]  # what holds of both is said once
    vacuous = tuple(dict.fromkeys((*equal.vacuous, *stated.vacuous)))
    constant = tuple(name for name in dict.fromkeys((*equal.constant, *stated.constant)) if name not in vacuous)
    failing = equal.failing if equal.failing is not None else stated.failing
    return replace(equal, cases=(*named, *distances), vacuous=vacuous, constant=constant, failing=failing)


def _named(case: Case, whose: str) -> Case:
    """The case under the model that it compares with; what has no figure and did not fail is of neither."""
    if case.error is None and case.status != "failed":
        return case
    short = {"outputs": whose, "ahead of the final operator": f"{whose}, ahead of its final operator"}
    return replace(case, name=short.get(case.name, f"{whose}, {case.name}"))
