"""The judges: by multiply-accumulates, by time with the timing replaced by a known one, and by the model's outputs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from convrewrite import model_io, timing
from convrewrite.acceptance import (
    NOT_FASTER,
    NOT_SMALLER,
    OVER_BUDGET,
    Decision,
    Decisions,
    Faster,
    smaller,
    structure_key,
    with_kernels,
    within,
)
from convrewrite.acceptance.regions import region
from convrewrite.engine.graph import infer_shapes
from convrewrite.engine.rewrite import (
    Context,
    Declined,
    Judge,
    Kernels,
    Pass,
    PassResult,
    Plan,
    Refusal,
    Site,
    run_pass,
)
from convrewrite.errors import UsageError
from convrewrite.passes.separable import Separable
from helpers import Net, run


def plan_with(before: int, after: int, params: tuple[int, int] = (1, 1)) -> Plan:
    site = Site("toy", "t", "Conv", "rewritten", macs_before=before, macs_after=after)
    return Plan((replace(site, params_before=params[0], params_after=params[1]),), None)


@pytest.mark.parametrize(
    ("plan", "accepted"),
    [
        (plan_with(100, 99), True),
        (plan_with(100, 100), False),
        (plan_with(100, 101), False),
        (plan_with(100, 100, (10, 9)), True),
        (plan_with(100, 101, (10, 1)), False),
    ],
)
def test_smaller(plan: Plan, accepted: bool) -> None:
    verdict = smaller(gs.Graph(), plan)
    assert (verdict is None) == accepted
    assert verdict is None or verdict.reason is NOT_SMALLER


def three_convs(scale: float = 0.0) -> onnx.ModelProto:
    """Three 3x3 convolutions of spatial rank one, the second with noise."""
    net = Net(1, 16, 12, 13, seed=2)
    x = "x"
    for name, noise in (("one", 0.0), ("two", scale), ("three", 4 * scale)):
        column, row = net.rng.standard_normal((16, 3)), net.rng.standard_normal((16, 3))
        weight = np.einsum("ih,ow->oihw", column, row) / 12 + noise * net.rng.standard_normal((16, 16, 3, 3)) / 12
        x = net.Relu(net.node("Conv", x, net.const(weight), outputs=[name], name=name, pads=[1, 1, 1, 1]))
    return net.model(x)


def loaded(model: onnx.ModelProto) -> tuple[gs.Graph, dict[str, tuple[int, ...]]]:
    graph = model_io.load(model.SerializeToString()).graph
    return graph, infer_shapes(graph, {t.name: t.shape for t in graph.inputs})


def first_plan(graph: gs.Graph, anchor: str, pass_: Separable) -> Plan:
    node = next(node for node in graph.nodes if node.outputs[0].name == anchor)
    plans = pass_.plan(Context.of(graph), node)
    assert not isinstance(plans, Declined)
    return plans[0]  # type: ignore[index]


# Regions ------------------------------------------------------------------------------------------------------------


def test_a_region_is_the_layer_at_its_real_shape() -> None:
    model = three_convs()
    graph, shapes = loaded(model)
    found = region(graph, Separable(), first_plan(graph, "two", Separable()), shapes, 8)
    before, after = (onnx.load_model_from_string(model_io.to_bytes(m)) for m in (found.before, found.after))
    assert [node.op_type for node in before.graph.node] == ["Conv"]
    assert {node.op_type for node in after.graph.node} == {"Conv"}
    assert len(after.graph.node) == 2
    for part in (before, after):
        (image,) = [i for i in part.graph.input if i.name not in {t.name for t in part.graph.initializer}]
        assert [d.dim_value for d in image.type.tensor_type.shape.dim] == [1, 16, 12, 13]
    feeds = {image.name: np.random.default_rng(0).standard_normal((1, 16, 12, 13)).astype(np.float32)}
    want, got = run(before, feeds)["two"], run(after, feeds)["two"]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * float(np.abs(want).max()))


def test_identical_layers_share_a_key_whatever_their_weights_and_names() -> None:
    graph, shapes = loaded(three_convs())
    keys = {
        region(graph, Separable(), first_plan(graph, anchor, Separable()), shapes, 8).key for anchor in ("one", "two")
    }
    assert len(keys) == 1
    other = dict(shapes)
    plan = first_plan(graph, "one", Separable())
    other["x"] = (1, 16, 24, 13)
    assert region(graph, Separable(), plan, other, 8).key not in keys


def test_a_region_without_a_shape_asks_for_the_size() -> None:
    graph, _ = loaded(three_convs())
    with pytest.raises(UsageError, match="give size "):
        region(graph, Separable(), first_plan(graph, "two", Separable()), {}, 8)


def test_nodes_between_two_changes_belong_to_the_region() -> None:
    graph, shapes = loaded(three_convs())

    class Both(Pass):
        name = "both"
        reasons: ClassVar[Mapping[str, Any]] = {}

        def candidates(self, graph: gs.Graph) -> Any:
            return iter(())

        def plan(self, context: Context, node: gs.Node) -> Any:
            return []

        def apply(self, graph: gs.Graph, plan: Plan) -> None:
            for anchor in ("one", "three"):
                Separable().apply(graph, first_plan(graph, anchor, Separable()))

    found = region(graph, Both(), plan_with(2, 1), shapes, 8)
    assert [node.op for node in found.before.graph.nodes] == ["Conv", "Relu", "Conv", "Relu", "Conv"]
    assert [node.op for node in found.after.graph.nodes] == ["Conv", "Conv", "Relu", "Conv", "Relu", "Conv", "Conv"]


# Faster -------------------------------------------------------------------------------------------------------------


def timed(verdicts: Callable[[int], str]) -> tuple[Callable[..., Any], list[Path]]:
    """In the place of `Faster._time`: verdicts by the number of convolutions after the rewrite."""
    calls: list[Path] = []

    def time(self: Faster, a: Path, b: Path) -> Decision:
        calls.append(b)
        count = sum(node.op_type == "Conv" for node in onnx.load(b).graph.node)
        return Decision(verdicts(count), 1.5, 1.4, 1.6, 3.0, 2.0)

    return time, calls


def test_faster_times_identical_layers_once(monkeypatch: pytest.MonkeyPatch) -> None:
    time, calls = timed(lambda count: timing.FASTER)
    monkeypatch.setattr(Faster, "_time", time)
    graph, shapes = loaded(three_convs())
    pass_ = Separable()
    result = run_pass(pass_, graph, judge=Faster(pass_, shapes, 8))
    assert len(result.outcome("rewritten")) == 3
    assert len(calls) == 1


@pytest.mark.parametrize("verdict", [timing.SLOWER, timing.NO_DIFFERENCE])
def test_what_is_not_faster_stays(verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    time, _ = timed(lambda count: verdict)
    monkeypatch.setattr(Faster, "_time", time)
    graph, shapes = loaded(three_convs())
    pass_ = Separable()
    result = run_pass(pass_, graph, judge=Faster(pass_, shapes, 8))
    assert not result.changed
    assert {site.reason for site in result.sites} == {NOT_FASTER.code}
    assert verdict in result.sites[0].detail
    assert "3 ms to 2 ms" in result.sites[0].detail


def test_faster_takes_a_plan_of_a_later_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first form is slow here: another one, with another number of convolutions, is accepted."""
    graph, shapes = loaded(three_convs())
    pass_ = Separable(tol=0.5)
    plans = pass_.plan(Context.of(graph), graph.nodes[0])
    assert not isinstance(plans, Declined | Refusal)
    seen: list[int] = []

    def verdicts(count: int) -> str:
        seen.append(count)
        return timing.SLOWER if len(seen) == 1 else timing.FASTER

    time, _ = timed(verdicts)
    monkeypatch.setattr(Faster, "_time", time)
    fewer = [plan for plan in plans if smaller(graph, plan) is None]
    result = run_pass(pass_, graph, judge=Faster(pass_, shapes, 8), only=["one"])
    if len(fewer) > 1:
        assert result.outcome("rewritten")[0].detail == fewer[1].sites[0].detail


def test_timings_are_kept_and_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    time, calls = timed(lambda count: timing.FASTER)
    monkeypatch.setattr(Faster, "_time", time)
    path = tmp_path / "timings.json"
    for _ in range(2):
        graph, shapes = loaded(three_convs())
        pass_ = Separable()
        decisions = Decisions.read(path)
        result = run_pass(pass_, graph, judge=Faster(pass_, shapes, 8, decisions))
        assert result.changed
        decisions.save()
    assert len(calls) == 1
    data = json.loads(path.read_text())
    assert data["schema"] == "convrewrite.timings/1"
    ((name, entries),) = data["devices"].items()
    assert name.startswith("cpu: ")
    assert len(entries) == 1


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema": "other", "devices": {}}', '{"schema": "convrewrite.timings/1", "devices": 3}']
)
def test_a_broken_file_of_timings_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "timings.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="give timings "):
        Decisions.read(path)
    assert path.read_text() == text


def test_another_device_knows_nothing() -> None:
    decisions = Decisions()
    decisions.put("cpu: a", "key", Decision(timing.FASTER, 2.0, 1.9, 2.1, 2.0, 1.0))
    assert decisions.get("cpu: a", "key") is not None
    assert decisions.get("cpu: b", "key") is None


def test_the_key_of_a_whole_model_knows_its_shapes() -> None:
    graph, shapes = loaded(three_convs())
    same, _ = loaded(three_convs(0.5))
    assert structure_key([graph], shapes) == structure_key([same], shapes)
    assert structure_key([graph], {**shapes, "x": (1, 16, 99, 99)}) != structure_key([graph], shapes)


# The closed loop ----------------------------------------------------------------------------------------------------

LIMITS = [0.0, 1e-6, 1e-3, 0.03, 0.1, 10.0]


@pytest.mark.parametrize("limit", LIMITS)
def test_sites_are_accepted_while_the_outputs_stay_within_the_bound(limit: float) -> None:
    model = three_convs(0.05)
    graph, _ = loaded(model)
    pass_ = Separable(tol=0.9, form="spatial")
    rng = np.random.default_rng(1)
    feeds = {"x": rng.standard_normal((1, 16, 12, 13)).astype(np.float32)}
    (want,) = run(model, feeds).values()
    tried: list[float] = []

    def error_of(result: PassResult) -> float:
        made = onnx.load_model_from_string(model_io.to_bytes(model_io.Model(result.graph, 8)))
        (got,) = run(made, feeds).values()
        tried.append(float(np.abs(got - want).max() / np.abs(want).max()))
        return tried[-1]

    def go(judge: Judge) -> PassResult:
        return run_pass(pass_, graph, judge=judge)

    result = within(go, smaller, error_of, limit)
    assert not result.changed or error_of(result) <= limit
    refused = [site for site in result.sites if site.outcome == "declined"]
    assert all(site.reason == OVER_BUDGET.code for site in refused)
    rewritten = {site.anchor for site in result.outcome("rewritten")}
    if limit >= 10:
        assert rewritten == {"one", "two", "three"}
        assert len(tried) == 2, "one look is enough where all is within the bound"
    if limit == 1e-3:
        assert "one" in rewritten, "the exact one costs nothing"
    if refused and limit > 1e-6:
        assert any("the bound is" in site.detail for site in refused)


def test_the_best_saving_per_error_comes_first() -> None:
    order: list[set[str]] = []
    graph, _ = loaded(three_convs(0.05))
    pass_ = Separable(tol=0.9, form="spatial")

    def error_of(result: PassResult) -> float:
        order.append({site.anchor for site in result.outcome("rewritten")})
        return 1.0 if "three" in order[-1] else 0.0

    result = within(lambda judge: run_pass(pass_, graph, judge=judge), smaller, error_of, 0.5)
    assert {site.anchor for site in result.outcome("rewritten")} == {"one", "two"}
    assert order[0] == {"one", "two", "three"}
    assert order[1] == {"one"}
    assert order[2] == {"one", "two"}


def test_the_reference_holds_the_new_kernels() -> None:
    """Against ONNX Runtime on the rewritten model; the noise of the second kernel is far above the rounding."""
    model = three_convs(0.05)
    graph, _ = loaded(model)
    result = run_pass(Separable(tol=0.9, form="spatial"), graph, judge=smaller)
    reference = with_kernels(graph, result.evidence_of(Kernels))
    assert [node.op for node in reference.nodes] == [node.op for node in graph.nodes]
    models = [onnx.load_model_from_string(model_io.to_bytes(model_io.Model(g, 8))) for g in (reference, result.graph)]
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 16, 12, 13)).astype(np.float32)}
    (want,), (got,), (original,) = (run(m, feeds).values() for m in (*models, model))
    peak = float(np.abs(want).max())
    assert float(np.abs(got - want).max()) < 2e-6 * peak
    assert float(np.abs(got - original).max()) > 1e-2 * peak
