"""The onnx package's own backend cases through `separable` and `groups`: what ONNX Runtime passes must pass after.

Cases without a convolution must be left alone. In those with one, all inputs but the first become weights as well, and
every legal plan is accepted, so that as much as possible is rewritten. With a large tolerance the result is another
function: it must still be a valid model that runs, with outputs of the same shapes and types.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from test_backend_cases import cases, variants

from convrewrite import model_io
from convrewrite.engine.rewrite import Pass, accept_all, run_pass
from convrewrite.errors import UsageError
from convrewrite.passes.groups import Groups
from convrewrite.passes.separable import Separable
from helpers import Feeds, run

pytestmark = pytest.mark.slow

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
ROUNDING = 1e-4
PASSES: dict[str, tuple[Pass, bool, int]] = {
    "separable": (Separable(), True, 10),
    "separable, large tolerance": (Separable(tol=0.5), False, 10),
    "groups": (Groups(), True, 0),
    "groups, large tolerance": (Groups(tol=0.9), False, 1),
    "branches": (Groups(expand="branches"), True, 1),
    "dense": (Groups(expand="dense"), True, 1),
}
"""The pass, whether its result is the same function, and how many models it must at least rewrite."""


def with_weights(model: onnx.ModelProto, feeds: Feeds) -> Iterator[tuple[onnx.ModelProto, Feeds]]:
    """The model as it is, and with all inputs but the first as initializers."""
    yield model, feeds
    if len(feeds) > 1:
        first, *rest = feeds
        made = onnx.ModelProto()
        made.CopyFrom(model)
        kept = [info for info in made.graph.input if info.name not in rest]
        del made.graph.input[:]
        made.graph.input.extend(kept)
        made.graph.initializer.extend(numpy_helper.from_array(feeds[name], name) for name in rest)
        yield made, {first: feeds[first]}


def check(model: onnx.ModelProto, feeds: Feeds, pass_: Pass, *, same: bool) -> str:
    """Rewrite and run; what came of it."""
    try:
        loaded = model_io.load(model.SerializeToString())
    except UsageError:
        return "not read"
    result = run_pass(pass_, loaded.graph, judge=accept_all)
    convolutions = any(node.op_type in CONVOLUTIONS for node in model.graph.node)
    assert convolutions or not result.sites
    if not result.changed:
        return "left alone"
    made = onnx.load_model_from_string(model_io.to_bytes(model_io.Model(result.graph, loaded.ir_version)))
    want, got = run(model, feeds), run(made, feeds)
    for name, values in want.items():
        assert (got[name].shape, got[name].dtype) == (values.shape, values.dtype), name
        peak = float(np.abs(values).max(initial=0))
        if same:
            assert float(np.abs(got[name] - values).max(initial=0)) <= ROUNDING * max(peak, 1e-30), name
        else:
            assert np.isfinite(got[name]).all()
    return "rewritten"


@pytest.mark.parametrize("name", PASSES)
def test_backend_cases(name: str) -> None:
    pass_, same, least = PASSES[name]
    counts: Counter[str] = Counter()
    failures: list[str] = []
    for case in cases():
        for model, feeds in _models(case):
            try:
                counts[check(model, feeds, pass_, same=same)] += 1
            except Exception as error:  # every case is looked at before the test fails
                failures.append(f"{case.kind} {case.name}: {type(error).__name__}: {error}")
    assert not failures, "\n".join(failures)
    assert counts["rewritten"] >= least, counts
    assert counts["rewritten"] + counts["left alone"] >= 20, counts


def _models(case: Any) -> Iterator[tuple[onnx.ModelProto, Feeds]]:
    """The variants of a case that has a convolution; of others nothing, since the pass has no candidate there."""
    model = case.model
    if model is not None and not any(node.op_type in CONVOLUTIONS for node in model.graph.node):
        return
    for own, feeds in variants("own", case):
        if any(node.op_type in CONVOLUTIONS for node in own.graph.node):
            yield from with_weights(own, feeds)
