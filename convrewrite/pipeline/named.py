"""The commands that are named after a pass of their own, and `transform`, which runs any."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from convrewrite.engine.rewrite import Pass
from convrewrite.options import GroupsOptions, SeparableOptions, TransformOptions
from convrewrite.passes.groups import Groups
from convrewrite.passes.separable import Separable
from convrewrite.pipeline.any_size import fcn
from convrewrite.pipeline.outcome import Outcome
from convrewrite.pipeline.trading import trade


def separable(source: str, target: str, options: SeparableOptions) -> Outcome:
    """Factor convolutions and linear layers; as `trade`."""
    return trade(source, target, Separable(tol=options.tol, form=options.form), options)


def groups(source: str, target: str, options: GroupsOptions) -> Outcome:
    """Split convolutions into groups, or undo groups; as `trade`."""
    return trade(source, target, Groups(tol=options.tol, into=options.into, expand=options.expand), options)


def transform(source: str, target: str, pass_: Pass, options: TransformOptions) -> Outcome:
    """Run any pass, `fcn` among them; as `trade`."""
    run = RUNNERS.get(pass_.command, trade)
    return run(source, target, pass_, options)


def _any_size(source: str, target: str, pass_: Any, options: TransformOptions) -> Outcome:
    return fcn(source, target, options.for_fcn(pass_.window, pass_.size))


RUNNERS: Mapping[str, Callable[[str, str, Pass, TransformOptions], Outcome]] = {"fcn": _any_size}
"""By `Pass.command`: what runs a pass whose command does more than to judge and to verify its sites."""
