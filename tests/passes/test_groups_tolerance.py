"""`groups` within a tolerance: blocks under noise, and the error that each costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from convrewrite.cli.words import FLAGS
from convrewrite.engine.rewrite import Kernels
from convrewrite.passes.groups import Groups
from convrewrite.text import told
from groups_nets import assert_equal, group_counts, ops, rewrite
from groups_planted import noisy


@pytest.mark.parametrize("groups", [2, 4])
def test_blocks_that_are_almost_there(groups: int) -> None:
    model = noisy(groups, 0.02)
    result, made = rewrite(model, Groups(tol=0.1, into=groups))
    (site,) = result.outcome("rewritten")
    assert site.equivalence == "approximate"
    assert 0.01 < site.error <= 0.1
    assert group_counts(made) == [1, groups, 1]
    assert ops(made) == ops(model)
    kept, _ = result.evidence_of(Kernels).made[site.anchor]()
    assert_equal(with_weight(model, site.anchor, kept), made, error=1e-5)
    before = weight_of(model, site.anchor)
    assert np.linalg.norm(before - kept) / np.linalg.norm(before) == pytest.approx(site.error, rel=1e-5)


def test_the_evidence_of_a_chain_is_in_the_original_order() -> None:
    """The first rewrite moves the columns of the second convolution before that is planned."""
    model = noisy(2, 0.02, chain=2)
    result, made = rewrite(model, Groups(tol=0.1))
    reference = model
    assert len(result.outcome("rewritten")) == 2
    for anchor, kernel in result.evidence_of(Kernels).made.items():
        reference = with_weight(reference, anchor, kernel()[0])
    assert_equal(reference, made, error=1e-5)


def weight_of(model: onnx.ModelProto, anchor: str) -> Any:
    (node,) = (n for n in model.graph.node if anchor in n.output)
    return onnx.numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == node.input[1]))


def with_weight(model: onnx.ModelProto, anchor: str, weight: Any) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    (node,) = (n for n in changed.graph.node if anchor in n.output)
    stored = next(t for t in changed.graph.initializer if t.name == node.input[1])
    assert weight.dtype == np.float32
    stored.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(weight), stored.name))
    return changed


def test_the_tolerance_that_it_would_take() -> None:
    model = noisy(2, 0.02)
    result, _ = rewrite(model)
    (site,) = (s for s in result.sites if s.macs_before > 64 * 64 * 8 * 12)
    assert site.reason == "groups/no-structure"
    assert site.tol_pays is not None
    printed = told(site.detail, FLAGS).rpartition("--tol ")[2]
    assert rewrite(model, Groups(tol=float(printed)))[0].changed, "the printed one suffices"
    assert rewrite(model, Groups(tol=site.tol_pays * 1.001))[0].changed
    assert not rewrite(model, Groups(tol=site.tol_pays * 0.9))[0].changed
