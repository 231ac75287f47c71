"""The verdict comes first, what is hidden ahead of what hides it, and nothing is said of what did not happen."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_models import run
from onnx import numpy_helper

import convrewrite as cr
from convrewrite import models, page, text
from convrewrite.page.render import render
from convrewrite.pipeline.outcome import Outcome
from convrewrite.timing import Bench
from convrewrite.timing.result import Cell, Cost
from convrewrite.timing.statistics import Comparison, Estimate
from convrewrite.verification import leading
from convrewrite.verification.verdicts import Case, Divergence, Verification

LENET = str(models.lenet5_path())
VGG = str(models.trained_path("digits_vgg"))


def benchmark(verdict: str, median: float = 37.49) -> Bench:
    found = Comparison(
        first=0.01,
        second=0.01,
        speedup=Estimate(median, 0.2, 60.0, 10),
        control=Estimate(1.0, 0.1, 9.0, 10),
        p=0.4,
        verdict=verdict,
        sets=10,
        rounds=50,
    )
    cost = Cost(0.01, 1, 1000, None)
    return Bench("a.onnx", "b.onnx", "cpu", False, 1, 10.0, (Cell((32, 32), 1, cost, cost, found),))


@pytest.mark.parametrize("verdict", ["no difference", "faster", "slower"])
def test_the_page_of_a_benchmark_has_its_verdict_first(verdict: str) -> None:
    told = render(page.outcome_view(Outcome("bench", "cpu", "compared", bench=benchmark(verdict))))
    body = told[told.index("<main") :]
    large = re.findall(r'class="big[^"]*">([^<]+)<', body)
    if verdict == "no difference":
        assert "37.49x" not in large, "in large type above a verdict of no difference"
    assert told.index(verdict) < told.index("37.49x")
    assert f"{verdict}</span>" in told[: told.index("<main")]


def case(name: str, output: str, error: float) -> Case:
    return Case(name, output, error=error, tolerance=1e-2)


def test_what_a_saturated_softmax_hides_leads() -> None:
    cases = [
        case("outputs", "p", 4.7e-29),
        case("outputs", "q", 1e-3),
        case("ahead of the final operator", "p (before Softmax)", 3.1e-3),
        case("outputs at 64x64", "p", 1e-3),
        case("ahead of the final operator at 64x64", "p (before Softmax)", 1.1e-3),
    ]
    told = leading.ordered(cases)
    assert [(one.name, one.error) for one in told[:2]] == [
        ("ahead of the final operator", 3.1e-3),
        ("outputs", 4.7e-29),
    ]
    assert sorted(map(id, told)) == sorted(map(id, cases))
    assert told.index(cases[3]) < told.index(cases[4]), "not saturated: as they came"
    lines = str(Verification(tuple(cases), provider="cpu")).splitlines()
    assert lines[1].strip().startswith("ahead of the final operator, p (before Softmax): max error 3.1e-03")


def test_on_a_real_model(tmp_path: Path) -> None:
    done = run("separable", VGG, "s.onnx", "--tol", "0.1", "--html", "p.html", cwd=tmp_path)
    told = done.stderr.decode()
    assert told.index("the original itself, ahead of its final operator") < told.index("the original itself  ")
    assert "saturated" in told
    page_ = (tmp_path / "p.html").read_text()
    assert page_.index("the original itself, ahead") < page_.index(">the original itself<")
    assert page_.count("saturated: what lies ahead") >= 1
    assert page_.count("from seed 0") == 1
    assert not re.search(r"\bseed [1-9]", page_)


def test_transform_says_that_it_accepts_always_and_what_became_dearer(tmp_path: Path) -> None:
    done = run(
        "transform", "separable", LENET, "o.onnx", "--set", "tol=0.0", "--no-verify", "--report", "r.json", cwd=tmp_path
    )
    told = done.stderr.decode()
    report = json.loads((tmp_path / "r.json").read_text())
    dearer = [s for s in report["sites"] if s["outcome"] == "rewritten" and s["macs_after"] > s["macs_before"]]
    assert dearer
    assert f"{len(dearer)} layers became dearer" in told
    assert "--accept smaller asks whether it is worth it" in told
    assert any("became dearer" in line for line in report["warnings"])
    done = run("separable", LENET, "p.onnx", "--tol", "0.3", "--no-verify", cwd=tmp_path)
    assert b"dearer" not in done.stderr
    assert b"--accept" not in done.stderr


def test_where_nothing_ran_no_page_says_where(tmp_path: Path) -> None:
    assert run("groups", VGG, "g.onnx", "--html", "p.html", cwd=tmp_path).returncode == 0
    assert "ran on" not in (tmp_path / "p.html").read_text()
    assert run("fc-to-conv", LENET, "f.onnx", "--html", "q.html", "--provider", "cpu", cwd=tmp_path).returncode == 0
    assert "ran on</dt><dd>cpu" in (tmp_path / "q.html").read_text()


def test_a_copy_still_takes_its_one_size(tmp_path: Path) -> None:
    """A network without a head is convolutional already; but its file fixes the size."""
    for shape, still in (("1,3,20,24", True), ("1,3,H,W", False)):
        body = '<ir_version: 8, opset_import: ["": 13]> net (float[{}] x) => (float[1,2,h,w] y) {{ y = Conv (x, w) }}'
        model = onnx.parser.parse_model(body.format(shape).replace("h,w", "20,24" if still else "H,W"))
        weight = numpy_helper.from_array(np.ones((2, 3, 1, 1), np.float32), "w")
        model.graph.initializer.append(weight)
        onnx.save(model, tmp_path / "m.onnx")
        done = run("fcn", tmp_path / "m.onnx", tmp_path / "o.onnx")
        assert done.returncode == 0, done.stderr
        assert (b"it still takes only 20x24" in done.stderr) is still, done.stderr


def test_a_hint_names_no_option_that_a_pass_lacks() -> None:
    from convrewrite.acceptance import judges
    from convrewrite.engine.rewrite import Site
    from convrewrite.passes.conv_to_fc import ConvToFc
    from convrewrite.passes.separable import Separable
    from convrewrite.pipeline.worth import helpful

    reason = judges.NOT_SMALLER
    site = Site("x", "c", "Conv", "declined", reason.code, "")
    site = replace(site, remedy=reason.remedy)
    assert "tol" in helpful(site, Separable()).remedy
    remedy = text.told(helpful(site, ConvToFc()).remedy, text.PYTHON)
    assert "tol" not in remedy
    assert remedy == "accept='always' rewrites all the same"


@pytest.mark.parametrize(
    ("count", "told"),
    [(0, "0 batches"), (1, "1 batch"), (2, "2 batches")],
)
def test_plurals(count: int, told: str) -> None:
    assert text.counted(count, "batch") == told


@pytest.mark.parametrize("noun", ["layer", "pass", "axis", "entry", "batch", "index", "window", "class"])
def test_nouns_have_one_singular(noun: str) -> None:
    zero, one, two = (text.counted(n, noun).partition(" ")[2] for n in (0, 1, 2))
    assert one == noun
    assert zero == two != noun


@pytest.mark.parametrize(
    ("compared", "told"),
    [
        (0, "where: the models have no tensor of one name and shape"),
        (1, "where: the one tensor that both models have agrees"),
        (2, "where: all 2 tensors that both models have agree"),
    ],
)
def test_tensors_that_agree(compared: int, told: str) -> None:
    assert str(Divergence(compared=compared)) == told


@pytest.mark.parametrize("count", [0, 1, 2])
def test_subgraphs_and_threads(count: int) -> None:
    from convrewrite.engine import costs

    told = costs.told_uncounted(count)
    assert told == ("", "1 subgraph is not counted", "2 subgraphs are not counted")[count]
    found = replace(benchmark("faster"), threads=count)
    plural = ("0 threads", "1 thread", "2 threads")[count]
    assert f"{plural};" in str(found)
    assert f"{plural}." in render(page.outcome_view(Outcome("bench", "cpu", "compared", bench=found)))


def test_a_notebook_shows_the_summary_of_the_page() -> None:
    result = cr.fcn(LENET)
    for thing, parts in (
        (result, ("rewritten", "MACs left", "verified", "c5")),
        (result.verification, ("verified", "largest error", "native size")),
        (cr.inspect(LENET), ("parameters", "61,791", "Conv")),
        (benchmark("no difference"), ("no difference", "37.49")),
    ):
        told = thing._repr_html_()  # type: ignore[union-attr]
        summary, _, rest = told.partition("<details>")
        assert all(part in summary for part in parts), summary
        assert not told.lstrip().startswith("<pre>")
        assert "<pre>" in rest
        assert "<script" not in told


def test_a_summary_is_safe() -> None:
    found = Verification((Case("outputs", "<b>x</b>", error=0.0, tolerance=1.0),), provider="cpu")
    assert "<b>" not in found._repr_html_()


@pytest.mark.parametrize("how", ["", "bilinear"])
def test_pixels_between_cells_are_not_called_windows(how: str) -> None:
    result = cr.fcn(LENET, upsample=how, verify=False, provider="cpu")
    told = str(result)
    assert ("every output equals the original on its window" in told) is (how == "")
    assert ("interpolated between cells" in told) is (how != "")
    (named,) = re.findall(r"metadata (convrewrite\.\w+)", told)
    assert named in result.model.metadata
