"""Random small nets against ONNX Runtime without optimizations: `windows` on every crop, else trunk and head.

Weights, inputs and statistics are small integers, so most nets compute exact sums and are compared bit for bit; where
an operator rounds (Softmax, a mean of three cells) a tolerance is used. A net that was drawn without padding must be
claimed as `windows`; whatever is claimed must hold.

A failure prints the net, node by node, and a blob that draws it again. `CONVREWRITE_EXAMPLES=5000` draws others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from campaigns import campaign
from hypothesis import HealthCheck, event, given, note, settings
from hypothesis import strategies as st

import oracles
from convrewrite.engine.rewrite import Site
from convrewrite.passes.fcn import Fcn
from helpers import Array, Feeds
from random_nets import RandomNet, nets
from random_trunks import BOUND

EXAMPLES = int(os.environ.get("CONVREWRITE_EXAMPLES", "0"))
ROUNDING = 1e-4
LEAST = 0.1
OVER_A_FLAT_MAP = ("Softmax", "LogSoftmax", "Slice")
"""What a head without a fully connected layer may do to the positions of the map."""

SETTINGS = settings(
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)

ALLOWED = frozenset(
    {
        "fcn/already-convolutional",
        "fcn/dynamic-shape",
        "fcn/position-in-output",
        "fcn/position-dependent-constant",
        "fcn/mixed-axes",
        "fcn/no-rule",
        "fcn/pools-one-axis",
        "fcn/spatial-broadcast",
        "fcn/stride-mismatch",
        "fcn/uncontracted-channels",
    }
)
"""Reasons for which a drawn net may be left alone."""


def numbers(rng: np.random.Generator) -> Callable[[Sequence[int]], Array]:
    return lambda shape: rng.integers(-BOUND, BOUND + 1, shape).astype(np.float32)


def check(net: RandomNet, extra: Sequence[int]) -> None:
    """Convert a drawn net and compare it with its oracle."""
    made = oracles.lift(net.model, Fcn(window=net.window))
    if isinstance(made, Site):
        event(f"{made.outcome}: {made.reason}")
        note(str(made))
        assert made.reason in ALLOWED, made
        return
    made = replace(made, least=LEAST)
    try:
        compare(net, made, extra)
    except oracles.Unreadable as error:
        event(f"not compared: {error}")


def compare(net: RandomNet, made: oracles.Lift, extra: Sequence[int]) -> None:
    """Compare a converted net with its oracle, at the native size and larger."""
    draw_numbers = numbers(np.random.default_rng(net.seed))
    tolerance = 0.0 if net.exact else ROUNDING
    window = made.window
    feeds: Feeds = {"x": draw_numbers(net.native), "v": draw_numbers((net.native[0], 3))}
    oracles.check_native(made, feeds, tolerance)
    if window.axes != net.axes:  # without any layer that slides, one image row can as well be one pixel's channels
        event(f"{net.axes} read as {window.axes}")
    elif net.clean:
        assert window.equivalence == "windows" or window.why.startswith(OVER_A_FLAT_MAP), window.why
    positions = (3, 2)[: len(window.size)]
    least = window.image_size(positions)
    if window.equivalence == "windows":
        size = tuple(n + e % s for n, e, s in zip(least, extra, window.stride, strict=False))
        larger = {**feeds, "x": draw_numbers(oracles.image_shape(window, net.native, size))}
        oracles.check_windows(made, larger, positions, tolerance, draw_numbers)
        event(f"windows, {'exact' if net.exact else 'rounded'}")
        return
    assert window.why
    larger = {**feeds, "x": draw_numbers(oracles.image_shape(window, net.native, least))}
    try:
        oracles.check_trunk_and_head(made, larger, positions, tolerance)
        event(f"native-size, {'exact' if net.exact else 'rounded'}")
    except oracles.NoTrunk:
        event("native-size, without a trunk to compare with")


@pytest.mark.slow
@campaign(50, 150)
@pytest.mark.parametrize("padded", [False, True], ids=["valid", "padded"])
@pytest.mark.parametrize("rank", [1, 2])
def test_random_net(rank: int, padded: bool, examples: int) -> None:
    """Whatever is drawn gives the same as its original, or is left alone with a reason."""

    @settings(SETTINGS, max_examples=EXAMPLES or examples)
    @given(net=nets(rank, padded), extra=st.tuples(st.integers(0, 7), st.integers(0, 7)))
    def run_all(net: RandomNet, extra: tuple[int, int]) -> None:
        check(net, extra)

    run_all()
