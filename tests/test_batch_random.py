"""open-batch on random networks in which each image is by itself: all are opened, and equal to one run per batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from batched_nets import draw

from convrewrite import model_io
from convrewrite.engine.rewrite import run_pass
from convrewrite.passes.open_batch import OpenBatch
from nets import run, session

SEEDS = 80
MANY = 240
PER_TEST = 20


def check(seed: int) -> None:
    model, batch = draw(seed)
    loaded = model_io.load(model.SerializeToString())
    result = run_pass(OpenBatch(), loaded.graph)
    assert result.changed, f"seed {seed}: {result}"
    made = onnx.load_from_string(model_io.to_bytes(replace(loaded, graph=result.graph)))
    assert not made.graph.input[0].type.tensor_type.shape.dim[0].dim_value, f"seed {seed}"
    original, opened = session(model), session(made)
    for count in (1, 2, 3, 7):
        x = np.random.default_rng(seed + count).standard_normal((count * batch, 2, 5, 4)).astype(np.float32)
        wants = [run(original, {"x": x[i : i + batch]}) for i in range(0, len(x), batch)]
        got = run(opened, {"x": x})
        for name, value in got.items():
            want = np.concatenate([w[name] for w in wants])
            np.testing.assert_allclose(
                value, want, rtol=1e-3, atol=1e-4 * (1 + float(np.abs(want).max())), err_msg=f"seed {seed}, {count}"
            )


FIRST = [pytest.param(n, marks=[pytest.mark.campaign] if n >= SEEDS else []) for n in range(0, MANY, PER_TEST)]


@pytest.mark.parametrize("first", FIRST)
def test_every_one_is_opened(first: int) -> None:
    for seed in range(first, first + PER_TEST):
        check(seed)
