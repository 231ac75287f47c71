"""open-batch on networks whose images see each other: none is accepted, though no sample shows it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from batched_nets import draw
from mixed_batches import MIXERS, D, mixing, planted
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException

from convrewrite import model_io
from convrewrite.engine.rewrite import run_pass
from convrewrite.passes.open_batch import OpenBatch
from nets import Net, run


def images(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 2, 5, 4)).astype(np.float32)


OF_ONE = {"one_row", "flat_softmax"}
"""They say [1, -1]: in a file for one image that is the row of that image, and is opened as such."""


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", MIXERS)
def test_it_is_refused_by_its_axes(name: str, batch: int) -> None:
    if batch == 1 and name in OF_ONE:
        batch = 3
    model = planted(name, batch=batch)
    result = run_pass(OpenBatch(), model_io.load(model.SerializeToString()).graph)
    assert [site.outcome for site in result.sites] == ["refused"], result
    assert result.sites[0].reason.startswith("open-batch/")
    assert result.sites[0].detail


@pytest.mark.parametrize("first", range(0, 200, 20))
def test_random_networks_with_one_planted_are_refused(first: int) -> None:
    names = sorted(set(MIXERS) - OF_ONE)
    for seed in range(first, first + 20):
        name = names[seed % len(names)]

        def head(net: Net, x: str, batch: int, name: str = name) -> str:
            size = int(np.prod(net.shape(x)[1:]))
            rows = net.Reshape(x, net.const([batch, size]))
            features = net.MatMul(rows, net.ints(size, D, bound=1))
            return net.MatMul(mixing(net, features, name), net.ints(D, 4))

        model, _ = draw(seed, head)
        result = run_pass(OpenBatch(), model_io.load(model.SerializeToString()).graph)
        assert [site.outcome for site in result.sites] == ["refused"], f"seed {seed}, {name}: {result}"


LOUD = {"mean_variance", "layer_norm_over_images"}
"""A single image has no variance, and dividing by it opens any gate."""

DRAWN = {"random_numbers", "random_constants"}
"""Drawn numbers say nothing here."""


def at_once(model: onnx.ModelProto, x: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """What a model gives for two images at once, and one after the other; None where it takes one number alone."""
    try:
        both = next(iter(run(model, {"x": x}).values()))
        ones = [next(iter(run(model, {"x": x[i : i + 1]}).values())) for i in range(2)]
    except (Fail, InvalidArgument, RuntimeException):
        return None
    return both, np.concatenate(ones)


@pytest.mark.parametrize("name", sorted(set(MIXERS) - DRAWN))
def test_the_generator_does_mix_and_its_gate_hides_it(name: str) -> None:
    """Without the gate two images at once are not each by itself; behind it they are."""
    x = images(2, 0)
    for gated in (False, *([] if name in LOUD else [True])):
        found = at_once(planted(name, batch="N", gated=gated), x)
        if found is not None:
            both, want = found
            same = both.shape == want.shape and np.allclose(both, want, rtol=1e-4, atol=1e-4)
            assert same == gated, (name, gated)
