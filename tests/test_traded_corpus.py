"""The real models, the lecture networks and the trained ones through `separable` and `groups`, from file to file.

The pipeline verifies with ONNX Runtime what it writes; here the files are looked at as well: fewer MACs, a file that is
unchanged where nothing was worth it, and nothing to do a second time.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from test_corpus import load

from convrewrite import models, pipeline
from convrewrite.engine.rewrite import Pass
from convrewrite.options import TradeOptions
from convrewrite.passes.groups import Groups
from convrewrite.passes.separable import Separable
from convrewrite.pipeline.outcome import Outcome

pytestmark = pytest.mark.slow

WIDTH = 0.125
BUILT = ("alexnet", "vgg16", "resnet18", "mobilenet_v1")


def go(source: Path, target: Path, pass_: Pass, accept: str = "smaller") -> Outcome:
    return pipeline.trade(
        str(source), str(target), pass_, TradeOptions(provider="cpu", samples=2, accept=accept)
    ).check()


def checked(source: Path, folder: Path) -> None:
    """At rounding, at 1e-4, and where the first layer pays."""
    target, again = folder / "out.onnx", folder / "again.onnx"
    for tol in (0.0, 1e-4):
        outcome = go(source, target, Separable(tol=tol))
        assert (target.read_bytes() == source.read_bytes()) == (outcome.status == "unchanged")
    needed = [site.tol_pays for site in outcome.sites if site.tol_pays is not None]
    if not needed:
        return
    outcome = go(source, target, Separable(tol=1.02 * min(needed) + 1e-5))
    assert outcome.status == "rewritten"
    assert outcome.input is not None
    assert outcome.output is not None
    if outcome.input.macs is not None and outcome.output.macs is not None:
        assert outcome.output.macs < outcome.input.macs
    assert outcome.verification is not None
    assert outcome.verification.verdict == "verified"
    first = {site.anchor for site in outcome.sites if site.outcome == "rewritten"}
    second = go(target, again, Separable(tol=1.02 * min(needed) + 1e-5))
    assert not first & {site.anchor for site in second.sites if site.outcome == "rewritten"}
    assert again.read_bytes() == target.read_bytes()


def expanded(source: Path, folder: Path) -> None:
    """To branches and to dense, and from dense back to groups."""
    dense, back = folder / "dense.onnx", folder / "back.onnx"
    branches = go(source, folder / "branches.onnx", Groups(expand="branches"), "always")
    outcome = go(source, dense, Groups(expand="dense"), "always")
    assert branches.status == outcome.status
    if outcome.status == "unchanged":
        return
    groups = [n for n in onnx.load(dense).graph.node for a in n.attribute if a.name == "group" and a.i > 1]
    assert groups == []
    returned = go(dense, back, Groups())
    assert returned.status == "rewritten"
    assert returned.output is not None
    assert outcome.output is not None
    assert returned.output.parameters < outcome.output.parameters
    assert go(back, folder / "still.onnx", Groups()).status == "unchanged"


def test_corpus_model(corpus_model: Path, tmp_path: Path) -> None:
    """Each with random weights where it has constant ones, which nothing could be verified with."""
    source = tmp_path / "in.onnx"
    onnx.save(load(corpus_model), source)
    checked(source, tmp_path)
    go(source, tmp_path / "groups.onnx", Groups())
    expanded(source, tmp_path)


@pytest.mark.parametrize("name", BUILT)
def test_lecture_networks(name: str, tmp_path: Path) -> None:
    source = tmp_path / "in.onnx"
    onnx.save(models.build(name, width=WIDTH), source)
    checked(source, tmp_path)
    expanded(source, tmp_path)


@pytest.mark.parametrize("name", models.TRAINED)
def test_trained_networks(name: str, tmp_path: Path) -> None:
    checked(models.trained_path(name), tmp_path)
    assert go(models.trained_path(name), tmp_path / "groups.onnx", Groups()).status == "unchanged"
